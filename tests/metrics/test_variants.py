"""The surface definitions of other tools, against the tools."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from vesalius.core.errors import UsageError
from vesalius.metrics import surface
from vesalius.metrics.surface import border_distances, hd_sitk

SPACINGS = {2: [(1.0, 1.0), (0.7, 1.9)], 3: [(1.0, 1.0, 1.0), (0.8, 0.8, 2.5)]}
PEERS = Path(os.environ.get("VESALIUS_PEERS_PYTHON", Path(__file__).parents[2] / ".venv-peers/bin/python"))


def _pairs(number, seed, margin=0):
    """Blobs and noise in two and three dimensions, some at the image's edge; neither is empty."""
    rng = np.random.default_rng(seed)
    for n in range(number):
        d = 2 + n % 2
        shape = tuple(rng.integers(1 if n % 5 else 6, 12, d))
        field = ndimage.gaussian_filter(rng.random((2, *shape)), (0, *[rng.uniform(0, 1.5)] * d))
        p, r = (f > np.quantile(f, rng.uniform(0.2, 0.9)) for f in field)
        if p.any() and r.any():
            yield np.pad(p, margin), np.pad(r, margin), SPACINGS[d][n % 4 // 2]


def test_equal_monai():
    monai = pytest.importorskip("monai.metrics", reason="MONAI is not installed")
    import torch

    for p, r, spacing in _pairs(40, 1):
        b = border_distances(p, r, spacing)
        a, c = (torch.from_numpy(m)[None, None] for m in (p, r))
        found = [surface.hd_voxel(b), surface.hd95_monai(b), surface.assd_monai(b), surface.nsd_monai(b, 1.3)]
        same = {"include_background": True, "spacing": spacing}
        expected = [
            monai.compute_hausdorff_distance(a, c, **same),
            monai.compute_hausdorff_distance(a, c, percentile=95, **same),
            monai.compute_average_surface_distance(a, c, symmetric=True, **same),
            monai.compute_surface_dice(a, c, [1.3], **same),
        ]
        assert found == pytest.approx([float(e) for e in expected], rel=1e-5), (p.shape, spacing)


def _sitk_recipe(p, r, spacing):
    """SimpleITK notebook 34 with the percentile of each direction."""
    import SimpleITK as sitk

    images = [sitk.GetImageFromArray(m.astype(np.uint8)) for m in (p, r)]
    for image in images:
        image.SetSpacing(spacing[::-1])
    contours = [sitk.LabelContour(image) for image in images]
    maps = [
        sitk.GetArrayFromImage(sitk.Abs(sitk.SignedMaurerDistanceMap(c, squaredDistance=False, useImageSpacing=True))) for c in contours
    ]
    surfaces = [sitk.GetArrayFromImage(c) == 1 for c in contours]
    gaps = [maps[1][surfaces[0]], maps[0][surfaces[1]]]
    between = sitk.HausdorffDistanceImageFilter()
    between.Execute(*images)
    hd95 = np.mean([np.percentile(g, 95) for g in gaps]) if all(g.size for g in gaps) else None
    return hd95, (np.concatenate(gaps).mean() if hd95 is not None else None), between.GetHausdorffDistance()


def test_equal_the_simpleitk_recipe():
    pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    compared = 0
    for p, r, spacing in _pairs(160, 2):
        b = border_distances(p, r, spacing, closed=False)
        hd95, assd, hd = _sitk_recipe(p, r, spacing)
        assert hd_sitk(p, r, spacing) == pytest.approx(hd, rel=1e-5)
        if hd95 is None:
            assert surface.hd95_sitk(b) is None
            continue
        assert surface.hd95_sitk(b) == pytest.approx(hd95, rel=1e-5) and surface.assd_monai(b) == pytest.approx(assd, rel=1e-5)
        compared += 1
    assert compared > 100


JUDGE = """
import json, sys, warnings
import numpy as np
warnings.simplefilter("ignore")
from panoptica.metrics.assd import _average_symmetric_surface_distance as assd
from panoptica.metrics.cldice import _compute_centerline_dice_coefficient as cldice
from panoptica.metrics.hausdorff_distance import _compute_hausdorff_distance as hd, _compute_hausdorff_distance95 as hd95
from panoptica.metrics.normalized_surface_dice import _compute_normalized_surface_dice as nsd
out, masks = [], np.load(sys.argv[1])
for n in range(len(masks.files) // 3):
    p, r, spacing = (masks[f"{k}{n}"] for k in "prs")
    s = tuple(spacing.tolist())
    out.append([float(v) for v in (hd(r, p, s), hd95(r, p, s), assd(r, p, s), nsd(r, p, s, threshold=1.3), cldice(r, p))])
print(json.dumps(out))
"""


def test_equal_panoptica(tmp_path):
    if not PEERS.exists() or subprocess.run([PEERS, "-c", "import panoptica"], capture_output=True).returncode:
        pytest.skip("panoptica is not installed in .venv-peers (or VESALIUS_PEERS_PYTHON)")
    from vesalius.metrics.topology import cldice

    pairs = list(_pairs(40, 3, margin=1))
    np.savez(tmp_path / "masks.npz", **{f"{k}{n}": v for n, pair in enumerate(pairs) for k, v in zip("prs", pair, strict=True)})
    done = subprocess.run([PEERS, "-c", JUDGE, tmp_path / "masks.npz"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for (p, r, spacing), expected in zip(pairs, json.loads(done.stdout.strip().splitlines()[-1]), strict=True):
        b = border_distances(p, r, spacing)
        found = [surface.hd_voxel(b), surface.hd95_panoptica(b), surface.assd_panoptica(b), surface.nsd_panoptica(b, 1.3)]
        assert found == pytest.approx(expected[:4], rel=1e-9)
        ours = cldice(p, r)
        if np.isfinite(expected[4]) and expected[4] > 0:  # where its skeleton vanished it divides by nothing
            assert ours == pytest.approx(expected[4], abs=1e-9)


def test_the_same_masks_differ_between_tools():
    """Why the names are needed: most pairs have a different HD95 by each of the four definitions."""
    distinct = []
    for p, r, spacing in _pairs(60, 4):
        b, opened = border_distances(p, r, spacing), border_distances(p, r, spacing, closed=False)
        values = [
            surface.hd95(surface.surfaces(p, r, spacing)),
            surface.hd95_monai(b),
            surface.hd95_panoptica(b),
            surface.hd95_sitk(opened),
        ]
        distinct.append(len({v if v is None else round(v, 9) for v in values}))
    assert distinct.count(4) > len(distinct) / 3


def test_symmetry_and_open_borders():
    for p, r, spacing in _pairs(30, 5):
        one, other = border_distances(p, r, spacing), border_distances(r, p, spacing)
        for f in (surface.hd_voxel, surface.hd95_monai, surface.hd95_panoptica, surface.assd_monai, surface.nsd_panoptica):
            assert f(one) == pytest.approx(f(other))
    whole = np.ones((3, 4), bool)
    assert surface.hd95_sitk(border_distances(whole, whole, (1, 1), closed=False)) is None  # no contour inside the image
    assert surface.hd95_monai(border_distances(whole, whole, (1, 1))) == 0


def test_bad_input_is_refused():
    with pytest.raises(UsageError):
        surface.nsd_monai(border_distances(np.ones((2, 2), bool), np.ones((2, 2), bool), (1, 1)), -1)
