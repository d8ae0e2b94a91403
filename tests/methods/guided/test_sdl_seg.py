"""SDL-Seg: markers from native Hounsfield units, a saliency that stays a function of the distance, and a U-Net otherwise untouched."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius.core.case import Case, Image, LabelMap, Sample
from vesalius.core.errors import UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import Manifest
from vesalius.core.plan import Plan
from vesalius.methods.guided.sdl_seg import NO_MARKER, SDLSeg, find_markers
from vesalius.methods.learned import Segmenter
from vesalius.ops.augment import PRESETS, pose_at

MANIFEST = Manifest("beds", Path("."), 3, ("CT",), {"background": 0, "tumour bed": 1}, ())
PLAN = Plan(
    dims=3, channels=("CT",), classes=MANIFEST.names, patch=(16, 16, 16), features=(4, 8), strides=((1, 1, 1), (2, 2, 2)),
    kernels=((3, 3, 3), (3, 3, 3)), augmentation=dict(PRESETS["none"]), mirror_axes=(0,),
)  # fmt: skip
GRID = Geometry.of((20, 22, 18), (1.0, 1.5, 2.0), origin=(-30, 12, 5), direction=np.array([[0, -1, 0], [1, 0, 0], [0, 0, -1.0]]))


def ct(*clips: tuple[int, int, int]) -> Case:
    """Noise with a clip of 2 x 2 x 1 voxels (12 mm^3) at each index."""
    hu = np.random.default_rng(0).normal(0, 20, GRID.shape).astype(np.float32)
    for i, j, k in clips:
        hu[i : i + 2, j : j + 2, k] = 3071
    return Case("a", images={"CT": Image(hu[None], GRID)})


def method(plan: Plan = PLAN, **options) -> SDLSeg:
    torch.manual_seed(0)
    return SDLSeg(plan, MANIFEST, **options)


def derived(case: Case, **options) -> Case:
    return method(**options).derive(case, np.random.default_rng(0), training=True)


def test_only_metal_of_a_plausible_size_in_the_breast_is_a_marker():
    hu = np.zeros((20, 20, 20), np.float32)
    hu[2:4, 2:4, 2] = 3000  # a clip: 4 voxels
    hu[6, 6, 6] = 3000  # one bright voxel
    hu[10:15, 10:15, 10:15] = 3000  # a port: 125 voxels
    hu[2:4, 8:10, 2] = 700  # a calcification
    hu[17:19, 17:19, 17] = 3000  # a clip on the skin of the other side
    breast = np.ones(hu.shape, bool)
    breast[16:] = False
    found = find_markers(hu, 1.0, 1500, (3, 100), breast)
    assert found.sum() == 4 and found[2:4, 2:4, 2].all()
    assert find_markers(hu, 1.0, 1500, (3, 100)).sum() == 8
    assert find_markers(hu, 10.0, 1500, (3, 100)).sum() == 9  # the same voxels, larger in mm^3: the single one counts too
    assert not find_markers(np.full((4, 4, 4), 3000.0, np.float32), 1.0, 1500, (3, 60)).any()


def test_saliency_is_one_on_markers_and_falls_with_distance():
    case = derived(ct((4, 4, 4), (14, 15, 12)), sigma_mm=8.0)
    saliency, markers = case.images["saliency"], case.points["markers"].xyz
    index = np.rint(GRID.to_index(markers)).astype(int)
    assert len(markers) == 8 and saliency.geometry == GRID and not saliency.normalise
    assert (saliency.data[0][tuple(index.T)] == 1).all() and (saliency.data == 1).sum() == 8
    world = GRID.to_world(np.stack(np.meshgrid(*map(np.arange, GRID.shape), indexing="ij"), -1))
    distance = np.linalg.norm(world[..., None, :] - markers, axis=-1).min(-1)
    assert np.allclose(saliency.data[0], np.exp(-(distance**2) / 128), atol=1e-5)


def test_the_breast_roi_is_read_when_there_is_one():
    case = ct((4, 4, 4), (14, 15, 12))
    breast = np.zeros(GRID.shape, np.int16)
    breast[:10] = 1
    case = case.with_(rois={"breast": LabelMap(breast, GRID, ("background", "breast"))})
    assert len(derived(case).points["markers"].xyz) == 4
    assert len(derived(case, inside="").points["markers"].xyz) == 8


def test_no_marker_gives_zeros_and_a_note():
    net = method().eval()
    case = net.derive(ct(), np.random.default_rng(0), training=False)
    assert (case.images["saliency"].data == 0).all() and case.points["markers"].xyz.shape == (0, 3)
    with torch.no_grad():
        answer = net.predict(case.without_labels(), rng=np.random.default_rng(0))
        assert answer.notes == (NO_MARKER,) and answer.probability.data.shape == (2, *GRID.shape)
        marked = net.derive(ct((4, 4, 4)), np.random.default_rng(0), training=False)
        assert net.predict(marked.without_labels(), rng=np.random.default_rng(0)).notes == ()


def sample(case: Case, centre=(10, 10, 9)) -> Sample:
    """A patch on its way, read from the derived case."""
    markers = GRID.to_index(case.points["markers"].xyz)
    return Sample(
        "a", case.stack(("CT", "saliency")), {}, (16, 16, 16), pose_at(centre, (16, 16, 16)), GRID.spacing,
        points={"markers": markers}, channels=("CT", "saliency"), frozen=(1,),
    )  # fmt: skip


def test_unaugmented_patches_hold_the_cases_saliency():
    case = derived(ct((1, 1, 1), (14, 15, 12)))  # the first marker lies outside the patch
    got = method().augment(sample(case), np.random.default_rng(0))
    inside = case.images["saliency"].data[0, 2:18, 2:18, 1:17]
    assert np.allclose(got.patch["image"][1], inside, atol=1e-5)
    far = derived(ct((1, 1, 1)))
    assert method().augment(sample(far), np.random.default_rng(0)).patch["image"][1].max() > 0.1


def test_saliency_is_made_anew_from_the_moved_markers():
    """Turned, scaled and bent patches: distances to the moved markers, not a warped map."""
    strength = {**PRESETS["full"], "rotation_p": 1.0, "scaling_p": 1.0, "bend_p": 1.0}
    net, case = method(PLAN.derive(augmentation=strength), sigma_mm=7.0), derived(ct((3, 3, 3), (16, 17, 13)))
    for seed in range(5):
        got = net.augment(sample(case), np.random.default_rng(seed))
        assert got.bend is not None
        size = np.linalg.norm(np.diag(GRID.spacing) @ got.pose[:3, :3], axis=0)
        voxels = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"), -1)
        distance = np.linalg.norm((voxels[..., None, :] - got.moved["markers"]) * size, axis=-1).min(-1)
        assert np.allclose(got.patch["image"][1], np.exp(-(distance**2) / 98), atol=1e-5)


def test_patches_without_markers_hold_zeros():
    strength = {**PRESETS["full"], "bend_p": 1.0, "noise_p": 1.0}
    got = method(PLAN.derive(augmentation=strength)).augment(sample(derived(ct())), np.random.default_rng(0))
    assert (got.patch["image"][1] == 0).all() and got.patch["image"][0].std() > 0


def test_without_saliency_weights_it_is_the_plain_unet_bit_for_bit():
    net = method(ema=0.0).eval()
    assert net.channels == ("CT", "saliency") and net.in_channels == 2
    plain = Segmenter(PLAN, MANIFEST, ema=0.0).eval()
    weights = net.network.state_dict()
    first = next(k for k, v in weights.items() if v.ndim == 5)
    assert weights[first].shape[1] == 2
    with torch.no_grad():
        dict(net.network.named_parameters())[first][:, 1] = 0
        plain.network.load_state_dict({k: v[:, :1] if k == first else v for k, v in net.network.state_dict().items()})
        x = torch.randn(2, 2, 16, 16, 16)
        assert torch.equal(net(x), plain(x[:, :1]))
        other = torch.cat([x[:, :1], torch.rand_like(x[:, 1:])], 1)
        assert torch.equal(net(x), net(other))


def test_options_are_part_of_the_prepared_cases_key():
    assert method().preparation == method().preparation != method(sigma_mm=11.0).preparation
    with pytest.raises(UsageError, match="small to large"):
        method(smallest=10.0, largest=5.0)


def test_the_control_arm_lays_another_patients_markers_over_the_case():
    from vesalius.datasets import open_dataset, read_case

    manifest = open_dataset("phantom:tumour-bed")
    study = runpy.run_path(str(Path(__file__).parents[3] / "proofs" / "guided" / "sdl_seg.py"))["study"]()
    plan, case = PLAN.derive(classes=manifest.names), read_case(manifest, manifest.cases[0].id)
    own = SDLSeg(plan, manifest).derive(case, np.random.default_rng(0), training=True)
    control = study.arms[2].method(plan, manifest).derive(case, np.random.default_rng(0), training=True)
    a, b = own.images["saliency"], control.images["saliency"]
    assert a.geometry == b.geometry and np.isclose(b.data.max(), 1) and np.corrcoef(a.data.ravel(), b.data.ravel())[0, 1] < 0.9
    index = np.rint(case.geometry.to_index(control.points["markers"].xyz)).astype(int)
    assert (b.data[0][tuple(index.T)] == 1).all() and np.array_equal(control.images["CT"].data, case.images["CT"].data)


def test_native_hounsfield_units_of_a_dicom_ct(shared):
    """A real breast planning CT slice without clips; one of 3 x 3 voxels written into it is found."""
    from vesalius.io import dicom

    hu, grid = dicom.read(shared / "3d" / "dicom_samples" / "breast_rt" / "ct.0.dcm")
    assert len(derived(Case("a", images={"CT": Image(hu, grid)})).points["markers"].xyz) == 0
    hu = hu.copy()
    hu[0, 200:203, 220:223] = 3000
    case = derived(Case("a", images={"CT": Image(hu, grid)}))
    middle = grid.to_world(np.array([201, 221, 0.0]))
    assert np.allclose(case.points["markers"].xyz.mean(0), middle) and (case.images["saliency"].data[0, 200:203, 220:223] == 1).all()
