"""Random poses, bends and intensities of training patches, drawn from one generator and rendered in one read of the case.

``draw`` changes where a sample is read from (its pose and bend, nothing is read yet), ``render`` reads image, labels, maps and points
there, ``intensity`` changes grey values. Ranges and probabilities are a flat dict of floats (``PRESETS``), so that a plan can hold and
print them. Those of 'full' follow nnU-Net v2 (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z; ``nnUNetTrainer``), with the
differences named at each key. The same generator state gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from ..core.case import Sample
from ..core.errors import GeometryError, UsageError, nearest
from .warp import MIN_CONTROL, compiled, move_points, read_patch

if TYPE_CHECKING:
    from ..core.plan import Plan

_FULL = {
    # where the patch is read; every *_p is a probability
    "rotation_p": 0.2,
    "rotation": 30.0,  # degrees, at most, about each axis, in mm space; thick slices (see THICK) turn in their plane only
    "scaling_p": 0.2,
    "scaling_low": 0.7,  # objects appear 0.7 to 1.4 times their size, log-uniform
    "scaling_high": 1.4,
    "scaling_axes": 0.05,  # further factor an axis, 1 -+ 0.05 (nnU-Net: none)
    "mirror_p": 0.5,  # each of the plan's mirror axes
    "turn_p": 0.5,  # 'exact' only: each plane of equal sides and spacing, by 1, 2 or 3 quarter turns
    "bend_p": 0.1,  # nnU-Net: 0
    "bend": 0.2,  # largest displacement, in control point distances; below 0.4 no fold is possible (Choi & Lee 2000)
    "bend_cells": 5.0,  # 2 to this many spline cells along the longest side
    # grey values, each channel on its own, in this order
    "blur_p": 0.1,  # nnU-Net: 0.2 a sample, half of its channels
    "blur_low": 0.5,  # Gaussian sd, voxels
    "blur_high": 1.0,
    "lowres_p": 0.125,  # nnU-Net: 0.25 a sample, half of its channels
    "lowres": 0.5,  # smallest zoom; nearest down, linear up
    "brightness_p": 0.15,
    "brightness": 0.25,  # shift by at most this many sd of the patch (nnU-Net: factor 0.75 to 1.25)
    "contrast_p": 0.15,
    "contrast_low": 0.75,  # factor about the mean; the range is kept
    "contrast_high": 1.25,
    "gamma_p": 0.3,
    "gamma_low": 0.7,  # exponent on the range scaled to 0..1; mean and sd are restored
    "gamma_high": 1.5,
    "gamma_invert_p": 0.25,  # of these, on the inverted image
    "noise_p": 0.1,
    "noise": 0.1,  # largest variance of Gaussian noise, in variances of the patch (nnU-Net: of z-scores)
}
_NONE = {key: 0.0 if key.endswith("_p") else value for key, value in _FULL.items()}
_LIGHT = {
    **_FULL,
    **{key: value / 2 for key, value in _FULL.items() if key.endswith("_p") and key not in ("mirror_p", "turn_p", "gamma_invert_p")},
    **{"rotation": 15.0, "scaling_low": 0.85, "scaling_high": 1.15, "bend": 0.1, "lowres": 0.7, "noise": 0.05, "brightness": 0.1},
    **{"contrast_low": 0.9, "contrast_high": 1.1, "gamma_low": 0.85, "gamma_high": 1.2, "blur_high": 0.75},
}
PRESETS: Mapping[str, Mapping[str, float]] = {"none": _NONE, "light": _LIGHT, "full": _FULL}

_MOST = {"lowres": 1.0, "scaling_axes": 0.5, "bend": 0.4}
THICK = 3.0  # a spacing this many times the finest is a slice direction: no rotation through it, no bend along it (nnU-Net's rule)
SPATIAL = ("full", "exact", "none")


# --------------------------------------------------------------------------------------------------------------------------- one sample
def default(sample: Sample, rng: np.random.Generator, plan: Plan, *, spatial: str = "full") -> Sample:
    """Draw, render and vary ``sample`` as ``plan.augmentation`` (keys of ``PRESETS['full']``; absent probabilities are 0) says.

    Classes of ``plan.mirror_pairs`` are exchanged in the labels when the patch is mirrored left-right: axis 0 in 3D (RAS+), the columns
    (axis 1) in 2D.
    """
    strength = checked(plan.augmentation)
    sample, mirrored = _drawn(sample, rng, strength, plan.mirror_axes, spatial, sample.spacing)
    sample = render(sample)
    if (0 if len(sample.size) == 3 else 1) in mirrored:
        for name in sample.labels:
            label = sample.patch[f"label:{name}"]
            swap = swap_pairs if label.ndim == len(sample.size) else partial(swap_maps, first=len(plan.classes) - len(label))
            sample.patch[f"label:{name}"] = swap(label, plan.mirror_pairs)
    intensity(sample.patch["image"], rng, strength=strength, frozen=sample.frozen)
    return sample


def checked(strength: Mapping[str, float]) -> dict[str, float]:
    """All keys, with ``PRESETS['none']`` where ``strength`` says nothing. UsageError: unknown keys and impossible values."""
    unknown = [key for key in strength if key not in _FULL]
    if unknown:
        raise UsageError(f"unknown augmentation '{unknown[0]}'", fix=nearest(unknown[0], _FULL))
    full = {**_NONE, **{key: float(value) for key, value in strength.items()}}
    for key, value in full.items():
        most = 1.0 if key.endswith("_p") else _MOST.get(key, np.finfo(float).max)
        if not 0 <= value <= most:
            raise UsageError("impossible augmentation strength", where=key, found=value, allowed=f"0 to {most:g}")
    for name in ("scaling", "contrast", "gamma", "blur"):
        low, high = full[f"{name}_low"], full[f"{name}_high"]
        if not 0 < low <= high:
            raise UsageError("an augmentation range runs from low to high, above 0", where=name, found=(low, high))
    for key, least in {"lowres": 0.01, "bend_cells": 2.0}.items():
        if full[key] < least:
            raise UsageError("impossible augmentation strength", where=key, found=full[key], allowed=f"{least:g} or more")
    return full


def pose_at(centre: Sequence[float], size: Sequence[int]) -> np.ndarray:
    """(d+1, d+1) whole-voxel shift that puts voxel ``size // 2`` of the patch on the case voxel nearest to ``centre``."""
    pose = np.eye(len(size) + 1)
    pose[:-1, -1] = np.floor(np.asarray(centre, float) + 0.5) - np.asarray(size) // 2
    return pose


def draw(
    sample: Sample,
    rng: np.random.Generator,
    *,
    strength: Mapping[str, float],
    mirror_axes: Sequence[int] = (),
    spatial: str = "full",
    spacing: Sequence[float] | None = None,
) -> Sample:
    """``sample`` with its pose composed with a random one about the patch centre, and maybe a bend; nothing is read.

    ``spatial``: 'full' rotates, scales, mirrors and bends; 'exact' mirrors and turns by quarters, so that no voxel is interpolated;
    'none' changes nothing. ``spacing`` (mm, default the sample's) makes rotations true ones on anisotropic grids.
    """
    spacing = sample.spacing if spacing is None else spacing
    return _drawn(sample, rng, checked(strength), mirror_axes, spatial, spacing)[0]


def render(sample: Sample, *, fill: float | Sequence[float] = 0.0, label_fill: int = 0) -> Sample:
    """Read ``sample`` where its pose and bend say; fills and returns it.

    ``patch``: 'image' (C, *size) float32, 'label:<name>' (*size) or overlapping (K, *size) integers, 'map:<name>' (K, *size) float32.
    ``moved``: points (n, d) in patch voxels. Outside the case images hold ``fill`` (one value or one a channel), maps their
    ``outside``, labels ``label_fill`` (0, or IGNORE).
    """
    at = (sample.size, sample.pose, sample.bend)
    sample.patch = {"image": read_patch(sample.image, *at, fill=fill)}
    for name, label in sample.labels.items():
        many = label.ndim > len(sample.size)
        read = read_patch(np.asarray(label) if many else np.asarray(label)[None], *at, order=0, fill=label_fill)
        sample.patch[f"label:{name}"] = read if many else read[0]
    for name, values in sample.maps.items():
        sample.patch[f"map:{name}"] = read_patch(values, *at, fill=sample.outside.get(name, 0.0))
    sample.moved = {name: move_points(xyz, sample.pose, sample.bend, size=sample.size) for name, xyz in sample.points.items()}
    return sample


def swap_pairs(label: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """``label`` with the two classes of every pair exchanged; IGNORE and all others stay."""
    if not len(pairs):
        return label
    table = np.arange(-1, max(int(label.max(initial=0)), int(np.max(pairs))) + 1)
    for a, b in pairs:
        table[[a + 1, b + 1]] = b, a
    return table.astype(label.dtype)[label.astype(np.intp) + 1]


def swap_maps(maps: np.ndarray, pairs: Sequence[tuple[int, int]], *, first: int) -> np.ndarray:
    """Overlapping ``maps`` (K, *spatial), of which the first is class ``first``, with the maps of every pair exchanged."""
    order = list(range(len(maps)))
    for a, b in pairs:
        order[a - first], order[b - first] = b - first, a - first
    return maps[order]


# ------------------------------------------------------------------------------------------------------------------------------- poses
def _drawn(
    sample: Sample, rng: np.random.Generator, strength: dict[str, float], mirror_axes: Sequence[int], spatial: str, spacing: Sequence[float]
) -> tuple[Sample, set[int]]:
    """The drawn sample and the patch axes it is mirrored along."""
    d = len(sample.size)
    if spatial not in SPATIAL:
        raise UsageError("unknown spatial augmentation", found=spatial, allowed=", ".join(SPATIAL))
    if not set(mirror_axes) <= set(range(d)):
        raise GeometryError("mirror axes that the patch does not have", found=tuple(mirror_axes), allowed=tuple(range(d)))
    if spatial == "none":
        return sample, set()
    pose = np.asarray(sample.pose, float)
    mm = np.linalg.norm(np.asarray(spacing, float)[:, None] * pose[:d, :d], axis=0)  # spacing of the patch's axes
    mirrored = {int(a) for a in mirror_axes if rng.random() < strength["mirror_p"]}
    linear = np.diag([-1.0 if a in mirrored else 1.0 for a in range(d)])
    bend = sample.bend
    if spatial == "exact":
        linear = linear @ _turns(sample.size, mm, rng, strength)
    else:
        if rng.random() < strength["rotation_p"]:
            linear = linear @ (_rotation(mm, rng, strength["rotation"]) * mm / mm[:, None])
        if rng.random() < strength["scaling_p"]:
            low, high = np.log(strength["scaling_low"]), np.log(strength["scaling_high"])
            axes = 1 + strength["scaling_axes"] * rng.uniform(-1, 1, d)
            linear = linear / (np.exp(rng.uniform(low, high)) * axes)
        if rng.random() < strength["bend_p"]:
            bend = _bend(sample.size, mm, rng, strength)
    about = np.eye(d + 1)
    centre = (np.asarray(sample.size) - 1) / 2
    about[:d, :d], about[:d, d] = linear, centre - linear @ centre
    return replace(sample, pose=pose @ about, bend=bend), mirrored


def _rotation(mm: np.ndarray, rng: np.random.Generator, degrees: float) -> np.ndarray:
    """(d, d) in mm: turns by up to ``degrees`` in every plane, thick slices only in theirs."""
    matrix, d = np.eye(len(mm)), len(mm)
    for a, b in combinations(range(d), 2):
        angle = np.deg2rad(rng.uniform(-degrees, degrees))
        if max(mm[a], mm[b]) >= THICK * mm.min():
            continue
        turn = np.eye(d)
        turn[[a, b], [a, b]] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def _turns(size: Sequence[int], mm: np.ndarray, rng: np.random.Generator, strength: dict[str, float]) -> np.ndarray:
    """(d, d) whole matrix of quarter turns in the planes whose sides and spacings are equal (spacings within 1 %)."""
    matrix = np.eye(len(size))
    for a, b in combinations(range(len(size)), 2):
        if size[a] != size[b] or abs(mm[a] - mm[b]) > 0.01 * min(mm[a], mm[b]) or rng.random() >= strength["turn_p"]:
            continue
        turn = np.eye(len(size))
        turn[[a, b], [a, b]] = 0
        turn[a, b], turn[b, a] = -1, 1
        matrix = matrix @ np.linalg.matrix_power(turn, int(rng.integers(1, 4)))
    return matrix


def _bend(size: Sequence[int], mm: np.ndarray, rng: np.random.Generator, strength: dict[str, float]) -> np.ndarray:
    """(d, *coarse) spline coefficients in voxels, with cells of about equal mm; none across thick slices."""
    sides = np.maximum(np.asarray(size) - 1, 1) * mm
    cells = np.maximum(1, np.rint(rng.integers(2, int(strength["bend_cells"]) + 1) * sides / sides.max())).astype(int)
    most = strength["bend"] * (sides / cells).min() * rng.random() / mm
    most[mm >= THICK * mm.min()] = 0
    return rng.uniform(-1, 1, (len(mm), *(cells + MIN_CONTROL - 1))) * most.reshape(-1, *[1] * len(mm))


# --------------------------------------------------------------------------------------------------------------------------- intensity
def intensity(image: np.ndarray, rng: np.random.Generator, *, strength: Mapping[str, float], frozen: Sequence[int] = ()) -> np.ndarray:
    """Vary the grey values of ``image`` (C, *size) float32 in place (and return it); channels in ``frozen`` stay.

    Each channel draws for itself: Gaussian blur, low resolution, brightness, contrast, gamma, Gaussian noise. Works on any scale (negative
    z-scores, 0..1, bytes): brightness and noise are in sd of the patch's channel, gamma acts between its minimum and maximum.
    """
    s = checked(strength)
    if image.dtype != np.float32 or not image.flags.c_contiguous or not image.flags.writeable:
        raise GeometryError("intensities vary in place on a contiguous, writable float32 array", found=image.dtype)
    for c in range(len(image)):
        if c not in frozen:
            _vary(image[c], rng, s)
    return image


def _vary(x: np.ndarray, rng: np.random.Generator, s: dict[str, float]) -> None:
    """All of ``intensity`` on one channel (*size): at most two separable passes and three of single voxels."""
    if rng.random() < s["blur_p"]:
        sd = rng.uniform(s["blur_low"], s["blur_high"])
        tables = [_gaussian(n, sd) for n in x.shape]
        _separable(x, tables, reach=tables[0][0].shape[1] // 2)
    if rng.random() < s["lowres_p"]:
        zoom = rng.uniform(s["lowres"], 1)
        _separable(x, [_coarse(n, zoom) for n in x.shape])
    shift = rng.uniform(-1, 1) * s["brightness"] if rng.random() < s["brightness_p"] else 0.0
    factor = _below_or_above(rng, s["contrast_low"], s["contrast_high"]) if rng.random() < s["contrast_p"] else 1.0
    gamma = _below_or_above(rng, s["gamma_low"], s["gamma_high"]) if rng.random() < s["gamma_p"] else 1.0
    invert = gamma != 1 and rng.random() < s["gamma_invert_p"]
    noise = np.sqrt(rng.uniform(0, s["noise"])) if rng.random() < s["noise_p"] else 0.0
    if shift == 0 and factor == 1 and gamma == 1 and noise == 0:
        return
    flat = x.reshape(-1)
    low, high, mean, sd = _moments(flat)
    if sd <= 1e-6 * max(abs(low), abs(high)):  # a constant patch has no contrast to vary
        return
    shift *= sd
    low, high = low + shift, high + shift  # the range that contrast keeps
    scale, offset = factor, mean * (1 - factor) + shift
    if gamma != 1:
        bottom, top = (max(low, mean + shift + factor * (low - mean - shift)), min(high, mean + shift + factor * (high - mean - shift)))
        mean, sd, new_mean, new_sd = _gamma(flat, scale, offset, bottom, top, gamma, invert)
        scale = sd / new_sd if new_sd > 0 else 1.0
        offset, low, high = mean - scale * new_mean, -np.inf, np.inf
    _finish(flat, scale, offset, low, high, noise * sd, rng.integers(1 << 63, dtype=np.uint64) if noise else np.uint64(0))


def _below_or_above(rng: np.random.Generator, low: float, high: float) -> float:
    """A factor between low and 1 as often as between 1 and high (where 1 lies between them)."""
    if low < 1 < high:
        low, high = (low, 1.0) if rng.random() < 0.5 else (1.0, high)
    return float(rng.uniform(low, high))


def _gaussian(n: int, sd: float) -> tuple[np.ndarray, np.ndarray]:
    """Taps (n, 2r+1) and their weights of a Gaussian of ``sd`` voxels along a side of n, edges repeated; r = ceil(3.5 sd)."""
    reach = np.arange(-int(np.ceil(3.5 * sd)), int(np.ceil(3.5 * sd)) + 1)
    weights = np.exp(-0.5 * (reach / sd) ** 2)
    return np.clip(np.arange(n)[:, None] + reach, 0, n - 1), np.tile(weights / weights.sum(), (n, 1))


def _coarse(n: int, zoom: float) -> tuple[np.ndarray, np.ndarray]:
    """Taps (n, 2) and weights of: nearest reading at ``zoom`` of the resolution, then linear reading back to n voxels."""
    few = max(1, int(round(n * zoom)))
    kept = np.minimum(((np.arange(few) + 0.5) * n / few).astype(int), n - 1)
    at = np.clip((np.arange(n) + 0.5) * few / n - 0.5, 0, few - 1)
    first = np.minimum(at.astype(int), max(few - 2, 0))
    taps = np.stack([kept[first], kept[np.minimum(first + 1, few - 1)]], axis=1)
    return taps, np.stack([1 - (at - first), at - first], axis=1)


def _separable(x: np.ndarray, tables: list[tuple[np.ndarray, np.ndarray]], reach: int = 0) -> None:
    """Replace ``x`` (2 or 3 sides) by its weighted taps along every axis; ``reach``: the radius if they are one symmetric kernel."""
    if x.ndim == 2:
        tables = [(np.zeros((1, 1), np.int64), np.ones((1, 1))), *tables]
    solid = x.reshape(-1, *x.shape[-2:])
    out = np.empty_like(solid)
    (i0, w0), (i1, w1), (i2, w2) = ((taps.astype(np.uint64), weights.astype(np.float32)) for taps, weights in tables)
    _mix(solid, out, i0, w0, i1, w1, np.ascontiguousarray(i2.T), np.ascontiguousarray(w2.T), reach)
    solid[...] = out


# ---------------------------------------------------------------------------------------------------------------------------- kernels
_CHUNK = 4096  # voxels summed in float32 before they join the float64 sum


@compiled
def _taps(x, index, weight, out):
    """out[k] = sum of weight[t] * x[index[t], k]."""
    out[:] = np.float32(0)
    for t in range(index.size):
        w, row = weight[t], x[index[t]]
        for k in range(out.size):
            out[k] += w * row[k]


@compiled
def _mix(x, out, i0, w0, i1, w1, i2, w2, reach):
    """Weighted taps of ``x`` along its three axes; those of the last are i2, w2 (taps, n), or a kernel w2[:, 0] of radius ``reach``."""
    s0, s1, s2 = x.shape
    plane, padded = np.empty((s1, s2), np.float32), np.empty(s2 + 2 * reach, np.float32)
    flat, flat_plane, line = x.reshape(s0, s1 * s2), plane.reshape(s1 * s2), padded[reach : reach + s2]
    for i in range(s0):
        _taps(flat, i0[i], w0[i], flat_plane)
        for j in range(s1):
            _taps(plane, i1[j], w1[j], line)
            row = out[i, j]
            row[:] = np.float32(0)
            if reach:
                padded[:reach], padded[reach + s2 :] = line[0], line[s2 - 1]
                for t in range(w2.shape[0]):
                    w, shifted = w2[t, 0], padded[t : t + s2]
                    for k in range(s2):
                        row[k] += w * shifted[k]
            else:
                for t in range(w2.shape[0]):
                    index, weight = i2[t], w2[t]
                    for k in range(s2):
                        row[k] += weight[k] * line[index[k]]


@compiled
def _moments(x):
    """(least, greatest, mean, sd); extremes are found on the bits, as integers in the floats' order, which compiles to vector code."""
    bits, last = x.view(np.int32), np.int32(0x7FFFFFFF)
    low, high, total, square, pivot = last, -last, 0.0, 0.0, x[0]
    for start in range(0, x.size, _CHUNK):
        a, b, part, keys = np.float32(0), np.float32(0), x[start : start + _CHUNK], bits[start : start + _CHUNK]
        least, most = last, np.int32(-last)
        for k in range(part.size):
            v = part[k] - pivot
            a += v
            b += v * v
            key = np.int32(keys[k] ^ ((keys[k] >> 31) & last))
            least, most = min(least, key), max(most, key)
        total += a
        square += b
        low, high = min(low, least), max(high, most)
    ends = np.array([low ^ ((low >> 31) & last), high ^ ((high >> 31) & last)], np.int32).view(np.float32)
    mean = total / x.size
    return float(ends[0]), float(ends[1]), pivot + mean, np.sqrt(max(square / x.size - mean * mean, 0.0))


@compiled
def _log2(u):
    """log2 of a normal positive float32 to 1e-7: its exponent, and the atanh series of a mantissa in sqrt(1/2) to sqrt(2)."""
    bits = np.float32(u).view(np.int32)
    above = np.int32((bits - np.int32(0x3F3504F3)) >> 23)
    m = np.int32(bits - (above << 23)).view(np.float32)
    s = (m - np.float32(1)) / (m + np.float32(1))
    q = s * s
    series = np.float32(1) + q * (np.float32(1 / 3) + q * (np.float32(1 / 5) + q * np.float32(1 / 7)))
    return np.float32(above) + np.float32(2 / np.log(2)) * s * series


@compiled
def _power(u, exponent):
    """u ** exponent for 0 <= u <= 1, to 1e-6: exp2 of a whole number by its bits, of the rest by Taylor's series."""
    p = max(exponent * _log2(max(u, np.float32(1e-30))), np.float32(-126))
    whole = np.int32(p - np.float32(0.5))  # towards zero: the nearest, as p <= 0
    z = (p - np.float32(whole)) * np.float32(np.log(2))
    e = np.float32(1 / 24) + z * (np.float32(1 / 120) + z * np.float32(1 / 720))
    e = np.float32(1) + z * (np.float32(1) + z * (np.float32(1 / 2) + z * (np.float32(1 / 6) + z * e)))
    return e * np.int32((whole + 127) << 23).view(np.float32)


@compiled
def _gamma(x, scale, offset, low, high, gamma, invert):
    """Scale, shift, clip to low..high and gamma in place; (mean, sd) before and after the gamma."""
    scale, offset, low, high, gamma = np.float32(scale), np.float32(offset), np.float32(low), np.float32(high), np.float32(gamma)
    width = high - low
    inverse = np.float32(1) / width if width > 0 else np.float32(0)
    u0, sign = (np.float32(1), np.float32(-1)) if invert else (np.float32(0), np.float32(1))
    sums = np.zeros(4)
    for start in range(0, x.size, _CHUNK):
        a, b, c, e, part = np.float32(0), np.float32(0), np.float32(0), np.float32(0), x[start : start + _CHUNK]
        for k in range(part.size):
            u = u0 + sign * min(max((scale * part[k] + offset - low) * inverse, np.float32(0)), np.float32(1))
            v = _power(u, gamma)
            a += u
            b += u * u
            c += v
            e += v * v
            part[k] = low + width * (u0 + sign * v)
        sums[0] += a
        sums[1] += b
        sums[2] += c
        sums[3] += e
    sums /= x.size
    sd, new_sd = np.sqrt(max(sums[1] - sums[0] ** 2, 0.0)), np.sqrt(max(sums[3] - sums[2] ** 2, 0.0))
    return low + width * (u0 + sign * sums[0]), width * sd, low + width * (u0 + sign * sums[2]), width * new_sd


@compiled
def _normals(key):
    """Two independent standard normals from a 64-bit counter: SplitMix64 (Steele et al. 2014), then Box-Muller."""
    z = key * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    high, low = np.int32(z >> np.uint64(33)), np.int32(z & np.uint64(0x7FFFFFFF))
    u = (np.float32(high >> np.int32(8)) + np.float32(0.5)) * np.float32(2.0**-23)  # 23 bits, in (0, 1)
    radius = np.sqrt(max(np.float32(-2 * np.log(2)) * _log2(u), np.float32(0)))
    angle = (np.float32(low >> np.int32(8)) * np.float32(2.0**-23) - np.float32(0.5)) * np.float32(np.pi / 2)  # an eighth turn either way
    q = angle * angle
    c = np.float32(1) - q * (np.float32(1 / 2) - q * (np.float32(1 / 24) - q * (np.float32(1 / 720) - q * np.float32(1 / 40320))))
    s = angle * (np.float32(1) - q * (np.float32(1 / 6) - q * (np.float32(1 / 120) - q * np.float32(1 / 5040))))
    c = -c if low & np.int32(1) else c  # the quarter comes from bits that nothing else used
    s, c = (c, s) if low & np.int32(2) else (s, c)
    return radius * c, radius * s


@compiled
def _finish(x, scale, offset, low, high, noise, seed):
    """Scale, shift and clip in place, then add Gaussian noise of sd ``noise``."""
    scale, offset, low, high, noise = np.float32(scale), np.float32(offset), np.float32(low), np.float32(high), np.float32(noise)
    if noise == 0:
        for k in range(x.size):
            x[k] = min(max(scale * x[k] + offset, low), high)
        return
    half = (x.size + 1) // 2
    first, second = x[:half], x[half:]
    for k in range(second.size):
        a, b = _normals(seed + np.uint64(k))
        first[k] = min(max(scale * first[k] + offset, low), high) + noise * a
        second[k] = min(max(scale * second[k] + offset, low), high) + noise * b
    if first.size > second.size:
        a, _ = _normals(seed + np.uint64(half))
        first[half - 1] = min(max(scale * first[half - 1] + offset, low), high) + noise * a
