"""Image corruptions of graded severity, pure functions of (image, severity, random stream).

Images are (C, *spatial); the answer has the same shape and dtype. Severity 1..5 raises one physical parameter; the random numbers do not
depend on the severity, so the same stream gives the same pattern, stronger. The intensity scale s is half the 1-99 percentile range.
Anisotropic volumes are treated in voxels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from ...core.errors import UsageError
from .forms import field


def noise(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """White Gaussian noise of sd (0.05, 0.1, 0.2, 0.35, 0.6) s."""
    return x + (0.05, 0.1, 0.2, 0.35, 0.6)[severity - 1] * _scale(x) * rng.standard_normal(x.shape, dtype=np.float32)


def blur(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian point spread of sd (0.7, 1.2, 1.8, 2.6, 3.6) voxels."""
    return ndimage.gaussian_filter(x, (0, *[(0.7, 1.2, 1.8, 2.6, 3.6)[severity - 1]] * (x.ndim - 1)))


def bias(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth gain exp(a f) above the darkest value, a = (0.1, 0.2, 0.35, 0.55, 0.8), f of sd 1 over a third of the side."""
    f = field(rng, x.shape[1:], max(x.shape[1:]) / 3)
    low = float(x.min())
    return low + (x - low) * np.exp((0.1, 0.2, 0.35, 0.55, 0.8)[severity - 1] * f)


def motion(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Ghosting: (8, 16, 28, 42, 60) % of the k-space lines along the first axis, drawn at random, were read after a shift of 3.3 voxels."""
    share, n = (0.08, 0.16, 0.28, 0.42, 0.6)[severity - 1], x.shape[1]
    pairs = n // 2  # lines +k and -k move together, so the answer is real
    moved = rng.permutation(pairs) < np.ceil(share * pairs)
    line = np.abs(np.round(np.fft.fftfreq(n) * n)).astype(int)
    late = np.append(np.insert(moved, 0, False), False)[line] & (line < n / 2)
    phase = np.where(late, np.exp(-2j * np.pi * np.fft.fftfreq(n) * 3.3), 1)
    return np.fft.ifft(np.fft.fft(x, axis=1) * phase.reshape(1, -1, *[1] * (x.ndim - 2)), axis=1).real


def resolution(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Averaged over and read back from voxels (1.5, 2, 3, 4, 6) times larger."""
    factor = (1.5, 2.0, 3.0, 4.0, 6.0)[severity - 1]
    soft = ndimage.gaussian_filter(x, (0, *[factor / 2.355] * (x.ndim - 1)))
    for a in range(1, x.ndim):
        n = x.shape[a]
        m = max(1, round(n / factor))
        pick = np.clip(np.round((np.arange(m) + 0.5) * n / m - 0.5).astype(int), 0, n - 1)
        soft = np.take(soft, pick[np.minimum(np.arange(n) * m // n, m - 1)], axis=a)
    return soft


def inversion(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Grey scale turned towards its negative: (1 - w) x + w (min + max - x), w = (0.2, 0.4, 0.6, 0.8, 1)."""
    w = severity / 5
    low, high = np.percentile(x, (0.5, 99.5))
    return (1 - w) * x + w * (low + high - x)


KINDS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "noise": noise, "blur": blur, "bias": bias, "motion": motion, "resolution": resolution, "inversion": inversion,
}  # fmt: skip


def corrupt(image: np.ndarray, kind: str, severity: int, rng: np.random.Generator) -> np.ndarray:
    """``image`` (C, *s) damaged by ``kind`` at ``severity`` 1..5, rounded and clipped to its dtype (integers keep their range's ends)."""
    if kind not in KINDS or severity not in (1, 2, 3, 4, 5):
        raise UsageError("no such corruption", found=f"{kind!r} at severity {severity}", allowed=f"{', '.join(KINDS)}; severity 1 to 5")
    out = KINDS[kind](image.astype(np.float32), severity, rng)
    if np.issubdtype(image.dtype, np.integer):
        info = np.iinfo(image.dtype)
        out = np.clip(np.round(out), info.min, info.max)
    return out.astype(image.dtype)


def _scale(x: np.ndarray) -> float:
    low, high = np.percentile(x, (1, 99))
    return max(float(high - low) / 2, 1e-6)
