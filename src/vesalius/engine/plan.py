"""From facts to decisions, by rules one can read (after nnU-Net's, with budgets for the machine at hand)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.geometry import Grid
from ..core.machine import cores
from ..core.manifest import Manifest
from ..core.plan import Fingerprint, Plan
from ..ops.augment import PRESETS

# voxels of a patch, channels of the first stage, largest channel count, iterations without a stated budget
_CPU = {2: (192 * 192, 16, 192, 1500), 3: (56 * 64 * 56, 16, 256, 1500)}
_GPU = {2: (512 * 512, 32, 512, 25000), 3: (128 * 128 * 128, 32, 320, 25000)}
_TEXTS = 16  # cases of a batch that have no image
_KEPT = 0.95  # DSC that labels must keep in pictures made smaller
_STEPS, _PIXELS, _SMALLEST = 800, 18e6, 96  # steps that a short training wants; pixels a core trains on in a minute; px of a longest side
_EITHER_WAY_UP = ("endoscop", "dermos", "microscop", "histolog", "fundus", "retina", "fluorescence", "h&e")


def make_plan(manifest: Manifest, facts: Fingerprint, *, device: str = "auto", minutes: float | None = None, **overrides) -> Plan:
    """The plan all methods of a comparison share. ``minutes``: of a training, where somebody said; few of them on a CPU go farther with
    smaller pictures. ``overrides`` replace fields of the result."""
    dims, reasons = manifest.dims, {}
    if not dims:
        few = dict(workers=_workers(), threads=cores(), precision="32")
        return Plan(0, classes=(), batch=_TEXTS, iterations=_CPU[2][3], **few).derive(**overrides)
    gpu = device == "cuda" or (device == "auto" and _has_gpu())
    voxels, base, widest, iterations = (_GPU if gpu else _CPU)[dims]
    spacing, why = _spacing(facts)
    reasons["grid"] = why
    median = np.median([np.multiply(s, m) for s, m in zip(facts.shapes, facts.spacings, strict=True)], axis=0) / spacing
    if dims == 2:
        longest = int(np.ceil(median.max()))
        limit, reasons["grid"] = _side(facts, longest, int(np.sqrt(voxels)), None if gpu else minutes)
        grid = Grid(longest=limit) if longest > limit else Grid()
        voxels = min(voxels, limit**2) if grid.longest else voxels
        median = median * (min(1.0, limit / longest))
        spacing = spacing / min(1.0, limit / longest)
    else:
        same = all(np.allclose(s, spacing, rtol=1e-3) for s in facts.spacings)
        grid = Grid() if same else Grid(spacing=tuple(float(s) for s in spacing))
    patch, strides, kernels = _topology(median, np.asarray(spacing), voxels)
    reasons["patch"] = f"median prepared case is {' x '.join(str(int(round(m))) for m in median)} voxels; at most {voxels} voxels a patch"
    features = tuple(min(widest, base * 2**i) for i in range(len(strides)))
    patch_voxels = int(np.prod(patch))
    batch = int(np.clip(voxels // patch_voxels, 2, 8)) if dims == 3 else int(np.clip(8 * voxels // patch_voxels, 8, 16))
    normalise = {name: _normalise(manifest, facts, name) for name in facts.intensities}
    modality = manifest.modality.lower()
    if dims == 3:
        mirror = (0,)
        reasons["mirror"] = "left-right only: anatomy is not symmetric front to back"
    elif any(word in modality for word in _EITHER_WAY_UP):
        mirror = (0, 1)
        reasons["mirror"] = "this modality has no up and down"
    else:
        mirror = (1,)
        reasons["mirror"] = "left-right only"
    index = {n: i for i, n in enumerate(manifest.names)}
    plan = Plan(
        dims=dims,
        channels=tuple(facts.channel_sizes),
        in_channels=sum(facts.channel_sizes.values()),
        classes=manifest.names,
        grid=grid,
        patch=tuple(int(p) for p in patch),
        batch=batch,
        normalise=normalise,
        intensities={k: dict(v) for k, v in facts.intensities.items()},
        crop_to_body=dims == 3 and all(v["zero_share"] > 0.4 for v in facts.intensities.values()),
        iterations=iterations,
        features=features,
        strides=strides,
        kernels=kernels,
        deep_supervision=len(strides) > 2,
        foreground=0.5,
        mirror_axes=mirror,
        test_mirror=() if manifest.mirror else mirror,
        mirror_pairs=tuple((index[a], index[b]) for a, b in manifest.mirror if a in index and b in index),
        augmentation=dict(PRESETS["full"]),
        precision="auto",
        workers=_workers(),
        threads=cores(),
        reasons=reasons,
    )
    plan = plan.derive(**overrides)
    depth = min(len(plan.features), len(plan.strides))
    return plan.derive(features=plan.features[:depth], strides=plan.strides[:depth], kernels=plan.kernels[:depth])


def _side(facts: Fingerprint, longest: int, most: int, minutes: float | None) -> tuple[int, str]:
    """Longest side (px) of prepared pictures, and why: at most ``most`` or what ``minutes`` on this CPU allow, unless labels are too fine
    for that. Where it exceeds a patch, training sees parts of a picture."""
    limit, why = most, "so that a picture is a patch"
    if minutes is not None:
        affordable = np.sqrt(minutes * cores() * _PIXELS / (_STEPS * 8))
        limit = int(np.clip(32 * (affordable // 32), _SMALLEST, most))
        why = f"{minutes:g} minutes are for {_STEPS} steps of small pictures rather than fewer of large ones" if limit < most else why
    if longest <= limit:
        return longest, "images as they are"
    if facts.kept.get(limit, 1.0) >= _KEPT:
        return limit, f"longest side {limit} px, {why}"
    fine = next((side for side, kept in sorted(facts.kept.items()) if limit < side < longest and kept >= _KEPT), longest)
    said = f"at {limit} px labels would keep a DSC of {facts.kept[limit]:.2f}, with fine structures lost"
    return fine, f"longest side {fine} px: {said}" if fine < longest else f"images as they are: {said}"


def _workers() -> int:
    """Processes that load: a core is left for the training itself, and four suffice."""
    return min(4, max(1, cores() - 1))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _spacing(facts: Fingerprint) -> tuple[np.ndarray, str]:
    """The median spacing; along a much coarser axis with few slices its 10th percentile, so that fewer slices are invented (nnU-Net)."""
    spacings, shapes = np.asarray(facts.spacings, float), np.asarray(facts.shapes, float)
    target = np.median(spacings, axis=0)
    worst = int(np.argmax(target))
    others = [a for a in range(len(target)) if a != worst]
    if (
        len(target) == 3
        and target[worst] > 3 * max(target[a] for a in others)
        and np.median(shapes, 0)[worst] * 3 < min(np.median(shapes, 0)[a] for a in others)
    ):
        target[worst] = max(np.percentile(spacings[:, worst], 10), max(target[a] for a in others) + 1e-5)
        return target, "median spacing, 10th percentile along the thick-slice axis"
    return target, "median spacing of the training cases"


def _topology(size: np.ndarray, spacing: np.ndarray, voxels: int) -> tuple[tuple[int, ...], tuple, tuple]:
    """Patch, strides and kernels: shrink the median case to the voxel budget keeping its shape in mm, halve each axis while at least 4
    voxels remain and the spacing is within a factor two of the finest; kernels are 1 along an axis until its spacing is so, or it is
    halved, and 3 from there on, however thin the finest axis is (nnU-Net)."""
    d = len(size)
    patch = np.asarray(size, float)
    if patch.prod() > voxels:
        mm = patch * spacing
        edge = (voxels * np.prod(spacing)) ** (1 / d)
        for _ in range(20):  # a cube in mm, no side longer than the case
            side = np.minimum(mm, edge)
            if np.prod(side / spacing) >= voxels * 0.999 or (side >= mm - 1e-9).all():
                break
            edge *= (voxels / np.prod(side / spacing)) ** (1 / d)
        patch = np.minimum(mm, edge) / spacing
    patch = np.maximum(patch, 1)
    now, mm = patch.copy(), np.asarray(spacing, float).copy()
    strides, wide = [(1,) * d], mm <= 2 * mm.min()
    kernels = [tuple(np.where(wide, 3, 1).tolist())]
    while len(strides) < 6:
        step = [2 if n >= 8 and s <= 2 * mm[now >= 8].min() else 1 for n, s in zip(now, mm, strict=True)] if (now >= 8).any() else [1] * d
        if max(step) == 1:
            break
        now, mm = now / step, mm * step
        strides.append(tuple(step))
        wide |= (mm <= 2 * mm.min()) | (np.asarray(step) > 1)
        kernels.append(tuple(np.where(wide, 3, 1).tolist()))
    multiple = np.prod(strides, axis=0)
    return tuple(int(np.ceil(round(p) / m) * m) for p, m in zip(patch, multiple, strict=True)), tuple(strides), tuple(kernels)


def _normalise(manifest: Manifest, facts: Fingerprint, channel: str) -> str:
    """CT is clipped and z-scored by the data set's numbers; everything else is z-scored per case."""
    v = facts.intensities[channel]
    words = f"{manifest.modality} {channel}".upper().replace("-", " ").replace("/", " ").split()
    return "ct" if "CT" in words and v["min"] < -50 else "zscore"


def memory_gib(plan: Plan, shape: Sequence[int]) -> float:
    """What predicting a case of this shape takes at most, GiB: native and prepared image, class maps and label (grids of like size)."""
    return float(np.prod(shape)) * (3 * 4 * plan.in_channels + 2 * 4 * len(plan.classes) + 8) / 2**30
