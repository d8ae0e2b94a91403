"""Poses, rendering and intensities of training patches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from vesalius.core.case import IGNORE, Sample
from vesalius.core.errors import GeometryError, UsageError
from vesalius.core.plan import Plan
from vesalius.ops import augment
from vesalius.ops.augment import PRESETS, draw, intensity, pose_at, render, swap_pairs
from vesalius.ops.warp import bend_at

ALWAYS = {key: 1.0 if key.endswith("_p") else value for key, value in PRESETS["full"].items()}
SPATIAL = {**PRESETS["none"], "rotation_p": 1.0, "scaling_p": 1.0, "mirror_p": 0.5, "bend_p": 1.0}


def blob_sample(d: int, size: tuple[int, ...] | None = None) -> Sample:
    """Smooth bright ellipsoid at a known place; its label, its membership map and its centre."""
    shape = (44, 48, 52)[-d:]
    centre = np.array([20.3, 24.8, 27.1][-d:])
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    image = np.exp(-0.5 * (((grid - centre) / np.array([7.0, 9.0, 6.0][-d:])) ** 2).sum(-1)).astype(np.float32)
    size = size or (36, 40, 40)[-d:]
    return Sample(
        case="blob",
        image=np.stack([image, 1 - image]),
        labels={"reference": (image > 0.5).astype(np.int16), "other": np.where(image > 0.5, IGNORE, 0).astype(np.int8)},
        size=size,
        pose=pose_at(centre, size),
        spacing=(1.0,) * d,
        maps={"soft": image[None]},
        points={"centre": centre[None]},
        frozen=(1,),
    )


def plan_for(d: int, **changes) -> Plan:
    return Plan(dims=d, **changes)


# --------------------------------------------------------------------------------------------------------------------------------- poses
@pytest.mark.parametrize("size", [(5, 6), (4, 5, 6)])
def test_pose_at_centres(size):
    pose = pose_at([10.2] * len(size), size)
    middle = np.append(np.array(size) // 2, 1)
    assert (pose @ middle)[:-1].tolist() == [10] * len(size)


@pytest.mark.parametrize("d", [2, 3])
def test_no_strength_reads_the_plain_patch(d):
    sample = augment.default(blob_sample(d), np.random.default_rng(0), plan_for(d))
    low = blob_sample(d).pose[:d, d].astype(int) + 50
    padded = np.pad(sample.image, [(0, 0), *[(50, 50)] * d])
    assert np.array_equal(sample.patch["image"], padded[(slice(None), *(slice(a, a + n) for a, n in zip(low, sample.size, strict=True)))])


@pytest.mark.parametrize("d", [2, 3])
def test_outside_the_case_each_map_holds_what_it_says(d):
    sample = blob_sample(d, (10,) * d)
    sample.maps, sample.outside = {"far": sample.image[:1], "near": sample.image[:1]}, {"far": -1.0}
    sample.pose[:-1, -1] = -5
    patch = render(sample).patch
    inside = (slice(None), *(slice(5, None),) * d)
    for name, fill in (("far", -1.0), ("near", 0.0)):
        expected = np.full((1, *(10,) * d), fill, np.float32)
        expected[inside] = sample.image[(slice(1), *(slice(5),) * d)]
        assert np.array_equal(patch[f"map:{name}"], expected)


@pytest.mark.parametrize("size", [(20, 20), (18, 20, 20)])
def test_exact_poses_only_permute_voxels(size):
    d = len(size)
    for seed in range(20):
        drawn = draw(blob_sample(d, size), np.random.default_rng(seed), strength=ALWAYS, mirror_axes=range(d), spatial="exact")
        assert drawn.bend is None
        assert np.array_equal(drawn.pose, np.rint(drawn.pose))
        patch = render(drawn).patch["image"]
        plain = render(blob_sample(d, size)).patch["image"]
        assert np.array_equal(np.sort(patch[0], None), np.sort(plain[0], None))
    unequal = draw(blob_sample(3, (18, 19, 20)), np.random.default_rng(0), strength=ALWAYS, spatial="exact")
    assert np.array_equal(unequal.pose, blob_sample(3, (18, 19, 20)).pose)  # no plane to turn in, no axis to mirror


def test_quarter_turns_need_equal_spacing():
    sample = replace(blob_sample(3, (20, 20, 20)), spacing=(3.0, 1.0, 1.005))
    for seed in range(10):
        pose = draw(sample, np.random.default_rng(seed), strength=ALWAYS, spatial="exact").pose
        assert pose[0, :3].tolist() == [1, 0, 0]


def test_mirror_is_exact_and_keeps_the_place():
    sample = blob_sample(3)
    strength = {"mirror_p": 1.0}
    got = render(draw(sample, np.random.default_rng(0), strength=strength, mirror_axes=(0, 2))).patch["image"]
    assert np.array_equal(got, render(sample).patch["image"][:, ::-1, :, ::-1])


def test_rotations_are_rigid_in_mm():
    spacing = np.array([1.0, 2.0, 1.5])
    sample = replace(blob_sample(3), spacing=tuple(spacing))
    strength = {"rotation_p": 1.0, "rotation": 30.0}
    pose = draw(sample, np.random.default_rng(1), strength=strength).pose[:3, :3]
    turn = spacing[:, None] * pose / spacing
    assert np.allclose(turn @ turn.T, np.eye(3)) and np.linalg.det(turn) == pytest.approx(1)
    assert np.abs(turn - np.eye(3)).max() > 0.05
    thick = draw(replace(sample, spacing=(5.0, 1.0, 1.0)), np.random.default_rng(1), strength=strength).pose
    assert np.allclose(thick[0, :3], [1, 0, 0]) and np.allclose(thick[:3, 0], [1, 0, 0])
    assert abs(thick[1, 2]) > 0.01


def test_scaling_enlarges_objects():
    strength = {"scaling_p": 1.0, "scaling_low": 1.3, "scaling_high": 1.3, "scaling_axes": 0.0}
    sample = blob_sample(3)
    large = render(draw(sample, np.random.default_rng(0), strength=strength)).patch["label:reference"].sum()
    assert large / render(sample).patch["label:reference"].sum() == pytest.approx(1.3**3, rel=0.06)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_image_label_map_and_points_move_together(d, seed):
    """The blob's centroid, its label, its map and its point stay one thing under affine, mirror and bend."""
    rng = np.random.default_rng(seed)
    sample = render(draw(blob_sample(d), rng, strength=SPATIAL, mirror_axes=range(d)))
    assert sample.bend is not None
    image, label = sample.patch["image"][0], sample.patch["label:reference"]
    assert np.array_equal(sample.patch["map:soft"][0], image)
    assert (label == (image > 0.5)).mean() > 0.98
    overlap = 2 * (label * (image > 0.5)).sum() / (label.sum() + (image > 0.5).sum())
    assert overlap > 0.93
    peak = np.array(ndimage.center_of_mass(np.where(image > 0.85, image - 0.85, 0)))  # near the top, where the bend is nearly affine
    assert np.abs(sample.moved["centre"][0] - peak).max() < 0.5
    assert set(np.unique(sample.patch["label:other"])) == {IGNORE, 0}
    assert np.array_equal(sample.patch["label:other"] == IGNORE, label == 1)


def test_drawn_bends_do_not_fold():
    sample = blob_sample(3)
    points = np.random.default_rng(0).uniform(0, np.array(sample.size) - 1, (200, 3))
    for seed in range(10):
        bend = draw(sample, np.random.default_rng(seed), strength={"bend_p": 1.0, "bend": 0.2}).bend
        eps = 1e-3
        ends = [points + sign * eps * e for e in np.eye(3) for sign in (-1, 1)]
        moved = [p + bend_at(p, sample.size, bend) for p in ends]
        jacobian = np.stack([(b - a) / (2 * eps) for a, b in zip(moved[::2], moved[1::2], strict=True)], -1)
        assert np.linalg.det(jacobian).min() > 0


def test_a_patch_larger_than_the_case_is_padded(tmp_path):
    np.save(tmp_path / "image.npy", np.ones((1, 5, 6, 7), np.float32))
    image = np.load(tmp_path / "image.npy", mmap_mode="r")
    sample = Sample("small", image, {"a": np.ones((5, 6, 7), np.uint8)}, (12, 12, 12), pose_at((2, 3, 3), (12, 12, 12)), (1.0, 1.0, 1.0))
    render(sample, label_fill=IGNORE)
    assert sample.patch["image"].sum() == 5 * 6 * 7
    assert (sample.patch["label:a"] == 1).sum() == 5 * 6 * 7
    assert (sample.patch["label:a"] == IGNORE).sum() == 12**3 - 5 * 6 * 7
    bent = draw(sample, np.random.default_rng(0), strength={**SPATIAL, "bend": 0.1})
    assert 0 < render(bent, fill=-2.0).patch["image"].max() <= 1 + 1e-6 and bent.patch["image"].min() == -2


@pytest.mark.parametrize(("d", "axis", "swapped"), [(3, 0, True), (3, 1, False), (2, 1, True), (2, 0, False)])
def test_sides_are_exchanged_when_mirrored_left_right(d, axis, swapped):
    label = np.zeros((44, 48, 52)[-d:], np.int16)
    label[:20], label[20:30], label[30:] = 1, 2, IGNORE
    sample = replace(blob_sample(d), labels={"reference": label})
    plan = plan_for(d, mirror_axes=(axis,), mirror_pairs=((1, 2),), augmentation={"mirror_p": 1.0})
    got = augment.default(sample, np.random.default_rng(0), plan).patch["label:reference"]
    plain = render(replace(sample, patch={})).patch["label:reference"]
    want = np.flip(plain, axis)
    assert np.array_equal(got, np.select([want == 1, want == 2], [2, 1], want) if swapped else want)
    assert (got == IGNORE).any()


def test_swap_pairs_is_its_own_inverse():
    label = np.random.default_rng(0).integers(-1, 6, (9, 9)).astype(np.int8)
    once = swap_pairs(label, ((1, 4), (2, 3)))
    assert once.dtype == label.dtype and np.array_equal(once == -1, label == -1) and np.array_equal(once == 4, label == 1)
    assert np.array_equal(swap_pairs(once, ((1, 4), (2, 3))), label)
    assert swap_pairs(np.array([0, 7], np.uint8), ((1, 2),)).tolist() == [0, 7]


# ---------------------------------------------------------------------------------------------------------------------------- intensity
def patch(d: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, 15, 21, 22)[: d + 1]).astype(np.float32)


@pytest.mark.parametrize("d", [2, 3])
def test_same_seed_same_bits(d):
    plan = plan_for(d, augmentation=ALWAYS, mirror_axes=(0,))
    one, two, other = (augment.default(blob_sample(d), np.random.default_rng(s), plan) for s in (3, 3, 4))
    assert all(np.array_equal(one.patch[k], two.patch[k]) for k in one.patch)
    assert np.array_equal(one.moved["centre"], two.moved["centre"]) and np.array_equal(one.pose, two.pose)
    assert not np.array_equal(one.patch["image"], other.patch["image"])
    assert np.isfinite(one.patch["image"]).all()


def test_frozen_channels_keep_their_values():
    image = patch()
    before = image.copy()
    intensity(image, np.random.default_rng(0), strength=ALWAYS, frozen=(1,))
    assert np.array_equal(image[1], before[1]) and not np.allclose(image[0], before[0])


def test_nothing_drawn_changes_nothing():
    image = patch()
    intensity(image, np.random.default_rng(0), strength=PRESETS["none"])
    assert np.array_equal(image, patch())


@pytest.mark.parametrize("d", [2, 3])
def test_blur_is_a_gaussian(d):
    image = patch(d)
    intensity(image, np.random.default_rng(0), strength={"blur_p": 1.0, "blur_low": 0.8, "blur_high": 0.8})
    want = np.stack([ndimage.gaussian_filter(x.astype(float), 0.8, mode="nearest", radius=3) for x in patch(d)])
    assert np.abs(image - want).max() < 1e-5


@pytest.mark.parametrize("d", [2, 3])
def test_low_resolution_equals_torch(d):
    torch = pytest.importorskip("torch")
    image = patch(d)[:1]
    rng = np.random.default_rng(0)
    intensity(image, rng, strength={"lowres_p": 1.0, "lowres": 0.6})
    twin = np.random.default_rng(0)
    twin.random(), twin.random()  # the blur's and the low resolution's toss
    zoom = twin.uniform(0.6, 1)
    x = torch.as_tensor(patch(d)[None, :1])
    few = [max(1, round(n * zoom)) for n in x.shape[2:]]
    low = torch.nn.functional.interpolate(x, few, mode="nearest-exact")
    want = torch.nn.functional.interpolate(low, x.shape[2:], mode="trilinear" if d == 3 else "bilinear")[0].numpy()
    assert np.abs(image - want).max() < 1e-5


def test_brightness_shifts_by_the_same_share_of_the_sd():
    image = patch() * 100 + 1000
    before = image.copy()
    intensity(image, np.random.default_rng(1), strength={"brightness_p": 1.0, "brightness": 0.5})
    for c in range(2):
        step = image[c] - before[c]
        assert np.ptp(step) < 1e-2 and 0 < abs(step.mean()) <= 0.5 * before[c].std()


def test_contrast_keeps_mean_and_range():
    for factor in (0.5, 1.5):
        image = patch()
        before = image.copy()
        intensity(image, np.random.default_rng(1), strength={"contrast_p": 1.0, "contrast_low": factor, "contrast_high": factor})
        for c in range(2):
            mean = before[c].mean(dtype=float)
            want = np.clip(mean + factor * (before[c] - mean), before[c].min(), before[c].max())
            assert np.abs(image[c] - want).max() < 1e-5


@pytest.mark.parametrize("invert", [0.0, 1.0])
@pytest.mark.parametrize("gamma", [0.7, 1.5])
def test_gamma_on_negative_values_equals_the_formula(gamma, invert):
    image = patch()
    before = image.astype(float)
    intensity(image, np.random.default_rng(1), strength={"gamma_p": 1.0, "gamma_low": gamma, "gamma_high": gamma, "gamma_invert_p": invert})
    for c in range(2):
        x, sign = before[c], -1 if invert else 1
        u = (sign * x - (sign * x).min()) / np.ptp(x)
        v = sign * u**gamma
        want = (v - v.mean()) / v.std() * x.std() + x.mean()
        assert np.abs(image[c] - want).max() < 2e-5


def test_gamma_works_after_brightness_and_contrast():
    """Together they equal brightness, contrast and gamma one after the other."""
    strength = {"gamma_p": 1.0, "gamma_low": 1.4, "gamma_high": 1.4, "contrast_p": 1.0, "contrast_low": 0.7, "contrast_high": 0.7}
    image = patch()[:1]
    x = image[0].astype(float)
    y = x.mean() + 0.7 * (x - x.mean())
    u = ((y - y.min()) / np.ptp(y)) ** 1.4
    want = (u - u.mean()) / u.std() * y.std() + y.mean()
    intensity(image, np.random.default_rng(1), strength=strength)
    assert np.abs(image[0] - want).max() < 2e-5


def test_noise_is_standard_normal():
    """Moments to fourth order, the Kolmogorov distance and neighbour correlation of 2^20 + 1 values; odd sizes end well."""
    from scipy import stats

    x = np.zeros(2**20 + 1, np.float32)
    augment._finish(x, 1.0, 0.0, -np.inf, np.inf, 1.0, np.uint64(12345))
    n = len(x)
    for power, want, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x.astype(float) ** power).mean() - want) < 4.5 * np.sqrt(spread / n)
    assert stats.kstest(x[::8], "norm").pvalue > 1e-3
    for lag in (1, 2, n // 2, n // 2 + 1):
        assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < 4.5 / np.sqrt(n - lag)
    assert len(np.unique(x)) > 0.9 * n


def test_noise_is_scaled_by_the_patch():
    image = patch() * 50
    before = image.copy()
    intensity(image, np.random.default_rng(3), strength={"noise_p": 1.0, "noise": 0.25})
    share = (image - before).std() / before.std()
    assert 0.02 < share < 0.5


def test_constant_patches_stay_finite():
    for value in (0.0, 5.0):
        image = np.full((1, 8, 8, 8), value, np.float32)
        intensity(image, np.random.default_rng(0), strength=ALWAYS)
        assert np.allclose(image, value)


# ------------------------------------------------------------------------------------------------------------------------------- errors
def test_presets_are_valid_and_ordered():
    for preset in PRESETS.values():
        assert augment.checked(preset) == preset
    assert not any(value for key, value in PRESETS["none"].items() if key.endswith("_p"))


def test_mistakes_are_explained():
    sample, rng = blob_sample(3), np.random.default_rng(0)
    with pytest.raises(UsageError, match="rotation_p"):
        draw(sample, rng, strength={"rotaton_p": 1.0})
    for wrong in ({"noise_p": 1.5}, {"gamma_low": 2.0}, {"bend": 0.9}, {"noise": float("nan")}, {"lowres": 0.0}, {"bend_cells": 1.0}):
        with pytest.raises(UsageError):
            augment.checked(wrong)
    with pytest.raises(UsageError, match="spatial"):
        draw(sample, rng, strength={}, spatial="all")
    with pytest.raises(GeometryError, match="mirror"):
        draw(sample, rng, strength={}, mirror_axes=(3,))
    with pytest.raises(GeometryError):
        intensity(np.zeros((1, 4, 4, 4)), rng, strength=ALWAYS)
