"""Every objective as a method, from files to an answer: any size, one slice, grey and RGB, two classes and seven, one absent."""

import numpy as np
import pytest
import torch
from PIL import Image

from vesalius import catalog
from vesalius.engine import api
from vesalius.engine.infer import infer

SMALL = {"features": (4, 8), "batch": 2, "precision": "32", "workers": 0, "threads": 1}
PLANES = [(1, 2, (45, 70)), (3, 7, (64, 37))]
VOLUMES = [(1, 2, (21, 18, 13)), (3, 7, (20, 17, 1))]
TRIES = [
    (s, *t) for s in catalog.names(family="objectives") for d, ts in ((2, PLANES), (3, VOLUMES)) if d in catalog.get(s).dims for t in ts
]


def written(folder, channels: int, classes: int, size: tuple[int, ...]):
    """A data set of four cases: pictures of one component or three, or volumes of so many images; class 1 is absent in one of them."""
    rng, names = np.random.default_rng(0), ["i"] if len(size) == 2 else [f"i{c}" for c in range(channels)]
    rows = ["case,patient,split," + ",".join(f"image:{n}" for n in names) + ",label:reference"]
    for k in range(4):
        label = np.zeros(size, np.uint8)
        for c in range(1 + (k == 3), classes):
            low = [int(rng.integers(0, max(1, n - n // 3))) for n in size]
            label[tuple(slice(a, a + max(1, n // 3)) for a, n in zip(low, size))] = c
        if len(size) == 2:
            picture = (20 * label[..., None] + rng.integers(0, 60, (*size, channels))).astype(np.uint8)
            Image.fromarray(picture if channels == 3 else picture[..., 0]).save(folder / f"{k}.png")
            Image.fromarray(label).save(folder / f"{k}_label.png")
            files = [f"{k}.png", f"{k}_label.png"]
        else:
            images = {n: (label + rng.normal(size=size)).astype(np.float32) for n in names}
            np.savez(folder / f"{k}.npz", label=label, **images)
            files = [f"{k}.npz:{n}" for n in (*names, "label")]
        rows.append(",".join([f"c{k}", f"p{k}", "test" if k == 3 else "train", *files]))
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    labels = "\n".join(f'"c{c}" = {c}' for c in range(1, classes))
    head = f'name = "made"\nmodality = "MR"\ndims = {len(size)}\nlicence = "none"\nsource = "made"\n'
    head += "spacing_mm = [1.0, 1.0, 2.0]\n" if len(size) == 3 else ""
    (folder / "dataset.toml").write_text(f'{head}\n[labels]\n"background" = 0\n{labels}\n')
    return folder


@pytest.mark.parametrize("slug, channels, classes, size", TRIES)
def test_any_input(slug, channels, classes, size, tmp_path):
    data = written(tmp_path, channels, classes, size)
    run = api.train(slug, data, tmp_path / "run", iterations=2, validations=0, plan_overrides=SMALL)
    assert run.plan.in_channels == channels and run.method.out_channels == classes - 1
    assert all(torch.isfinite(p).all() for p in run.method.parameters())
    case = api.reader(run.manifest)("c3")
    answer = infer(run.method, case, run.plan, probability=True)
    assert answer.label.data.shape == size and answer.probability.data.shape == (classes, *size)
    assert np.isfinite(answer.probability.data).all()
    maps = run.method.targets(case)
    assert all(np.isfinite(m.data).all() and m.data.shape == (classes - 1, *size) for m in maps.values())
