"""MaxQuery as a method: which classes are lesions, what the map shows, and one network for logits and score."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius import catalog
from vesalius.core.case import Batch, Case, Image, LabelMap
from vesalius.core.errors import UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock
from vesalius.core.plan import Plan
from vesalius.methods.networks.maxquery import groups

NAMES = {"background": 0, "organ": 1, "cyst": 2, "solid": 3}


def made(dims: int = 2, names=NAMES, **options):
    torch.manual_seed(0)
    small = {"features": (4, 8), "strides": ((1,) * dims, (2,) * dims), "kernels": ((3,) * dims,) * 2}
    plan = Plan(dims, ("a",), 1, tuple(names), patch=(16,) * dims, test_mirror=(), **small)
    manifest = Manifest("made", Path("."), dims, ("a",), names, ())
    return catalog.build("maxquery", plan, manifest, options={**catalog.get("maxquery").small, **options})


def test_groups_of_classes():
    assert groups(("background", "tumour")) == [0, 2]
    assert groups(("background", "organ", "cyst", "solid")) == [0, 1, 2, 2]
    assert groups(("background", "a", "b", "c"), ("a", "c")) == [0, 2, 1, 2]
    with pytest.raises(UsageError, match="cyst"):
        made(lesions="cist")
    with pytest.raises(UsageError):
        made(lesions="background")
    with pytest.raises(UsageError, match="negative"):
        made(qd_weight=-1)


@pytest.mark.parametrize("dims, names", [(2, {"background": 0, "a": 1}), (3, {"background": 0, **{f"c{k}": k for k in range(1, 7)}})])
def test_losses(dims, names):
    method = made(dims, names).train()
    image, label = torch.randn(2, 1, *(16,) * dims), torch.randint(-1, len(names), (2, *(16,) * dims))
    batch = Batch(image, {"reference": label}, torch.eye(dims + 1).expand(2, -1, -1), ["a", "b"])
    terms = method.losses(batch, Clock(0, 10))
    assert set(terms) == {"segmentation", "query distribution"}
    sum(terms.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())
    assert set(made(dims, names, qd_weight=0.0).losses(batch, Clock(0, 10))) == {"segmentation"}
    twice = made(dims, names, qd_weight=2.0).losses(batch, Clock(0, 10))["query distribution"]
    torch.testing.assert_close(twice, 2 * terms["query distribution"])


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_map_is_of_the_network_that_answers(ema):
    method = made(ema=ema).eval()
    if ema:
        torch.nn.init.zeros_(method.network.queries)  # the average has them still
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        maps = method.fast_forward(x)
        torch.testing.assert_close(maps["logits"], method(x))
    assert maps["ood"].shape == (2, 1, 16, 16) and maps["ood"].std() > 0


def test_the_map_is_shown_where_there_is_foreground():
    method, grid = made(smooth=0.0), Geometry.of((16, 24), (1.0, 2.0))
    logits, raw = torch.zeros(4, 16, 24), torch.randn(1, 16, 24)
    logits[2, :5], logits[0, 5:] = 9, 9
    case = Case("a", images={"a": Image(np.zeros((1, 16, 24), np.float32), grid)})
    answer = method.finish({"logits": logits, "ood": raw}, case)
    shown = answer.images["ood"].data[0]
    assert answer.images["ood"].geometry == grid and (shown[5:] == 0).all() and ((shown[:5] > 0) & (shown[:5] < 1)).all()
    assert (np.argsort(shown[:5], None) == np.argsort(raw[0, :5].numpy(), None)).all()
    assert answer.table["ood"] == shown.max()
    method.case_score = "mean"
    assert method.finish({"logits": logits, "ood": raw}, case).table["ood"] == pytest.approx(shown[:5].mean())
    nothing = method.finish({"logits": torch.flip(logits, (0,)) * 0 + torch.eye(4)[0][:, None, None], "ood": raw}, case)
    assert nothing.table["ood"] == 0 and not nothing.images["ood"].data.any()


def test_blur_is_in_mm():
    method, case = made(smooth=2.0), Case("a", images={"a": Image(np.zeros((1, 33, 33), np.float32), Geometry.of((33, 33), (1.0, 4.0)))})
    logits, raw = torch.zeros(4, 33, 33), torch.full((1, 33, 33), -4.0)
    logits[1], raw[0, 16, 16] = 5, 20
    shown = method.finish({"logits": logits, "ood": raw}, case).images["ood"].data[0]
    assert shown[20, 16] > shown[16, 18] and shown[16, 16] == shown.max()


def test_windows_of_any_size():
    """A patch is rounded up to what the U-Net divides; other windows are padded and cut again."""
    names = tuple(NAMES)
    plan = Plan(2, ("a",), 1, names, patch=(21, 30), features=(4, 8), strides=((1, 1), (2, 2)), kernels=((3, 3),) * 2)
    method = catalog.build("maxquery", plan, Manifest("made", Path("."), 2, ("a",), NAMES, ()), options=catalog.get("maxquery").small)
    assert method.plan.patch == (22, 30)
    with torch.no_grad():
        maps = method.eval().fast_forward(torch.randn(1, 1, 21, 33))
    assert maps["logits"].shape == (1, 4, 21, 33) and maps["ood"].shape == (1, 1, 21, 33)


def test_the_proofs_measure_of_queries_that_lesions_do_not_share():
    """What each query takes of a voxel of each kind is told from any arrangement of queries; few voxels count as much as many."""
    proof = runpy.run_path(str(Path(__file__).resolve().parents[3] / "proofs" / "networks" / "maxquery.py"))
    label, unseen = np.zeros((8, 8), np.int16), np.zeros((8, 8), np.int16)
    label[:4], label[0, :3], label[1, :2], unseen[2, :4] = 1, 2, 3, 1
    grid = Geometry.of((8, 8), (1.0, 1.0))
    kinds = ("background", "organ", "cyst", "solid")
    case = Case("a", images={}, labels={"reference": LabelMap(label, grid, kinds)}, rois={"unseen": LabelMap(unseen, grid)})
    share = np.zeros((5, 8, 8))
    share[4], share[1, label > 1], share[4, label > 1] = 1, 1, 0  # lesions have query 1, all else query 4
    share[:, unseen > 0] = 0.2  # nobody asks what takes the unseen
    own = proof["sums"](share, case)
    assert own[:, -1].tolist() == [5, 32 - 5 - 4, 32] and proof["apart"](own) == pytest.approx(1)
    assert proof["apart"](own[:, [3, 1, 0, 4, 2, 5]]) == pytest.approx(1)
    assert proof["apart"](proof["sums"](np.full((5, 8, 8), 0.2), case)) == pytest.approx(1 / 3)
    share[0, label == 1], share[4, label == 1], share[0, label > 1], share[1, label > 1] = 1, 0, 0.5, 0.5
    assert proof["apart"](2 * proof["sums"](share, case)) == pytest.approx(0.5 + 0.25 / 1.5)
    study = proof["study"]()
    assert "queries on lesions" not in {e.metric for e in study.expects}  # with the loss it cannot exceed the group's share
