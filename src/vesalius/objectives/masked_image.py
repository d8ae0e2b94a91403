"""Masked images: what a network guesses of the blocks of an image, and of the bands of its spectrum, that it was not shown.

Jiao et al., USFM, Medical Image Analysis 2024, doi:10.1016/j.media.2024.103202, code https://github.com/openmedlab/USFM: random blocks of
the image are hidden, random rings of its centred spectrum are set to zero, and the lowest frequencies are always kept. The weights and
what exactly is compared in the spectrum are not stated there; the hidden pixels' absolute error is that of SimMIM (Xie et al. 2022,
https://arxiv.org/abs/2111.09886).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fft import fft2, fftfreq, ifft2

from ..core.errors import UsageError


class MaskedImage:
    """Draws what is hidden, with torch's generator, and compares the guess with the image.

    ``hide``: share of the blocks of ``block`` pixels that are hidden, rounded up; one stays where there are two. ``rings`` rings, whose
    widths grow by one ratio, part the frequencies from ``protect`` cycles a pixel to the corner of the spectrum; the share ``drop`` of
    them, at least one, is removed.
    """

    def __init__(self, *, hide: float = 0.6, block: int = 32, rings: int = 8, drop: float = 0.4, protect: float = 0.05):
        for name, value, low, high in (("hide", hide, 0.01, 0.99), ("drop", drop, 0.01, 1), ("protect", protect, 0.001, 0.5)):
            if not low <= value <= high:
                raise UsageError(f"'{name}' is out of range", where=name, found=value, allowed=f"{low} to {high}")
        if block < 1 or rings < 1:
            raise UsageError("blocks have pixels, and there are rings", where="block, rings", found=(block, rings), allowed="1 or more")
        self.hide, self.block, self.rings, self.drop, self.protect = hide, block, rings, drop, protect

    def blocks(self, image: Tensor, patch: int) -> Tensor:
        """(B, H / patch, W / patch) bool: tokens of ``patch`` pixels hidden in each image (B, C, H, W), whole blocks of them."""
        size = [n // patch for n in image.shape[2:]]
        side = max(1, self.block // patch)
        rows, columns = (-(-n // side) for n in size)
        count = max(1, min(math.ceil(self.hide * rows * columns - 1e-9), rows * columns - 1))
        hidden = _chosen(len(image), rows * columns, count, image.device).view(-1, rows, columns)
        return hidden.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, : size[0], : size[1]]

    def bands(self, image: Tensor) -> Tensor:
        """(B, H, W) bool: frequencies removed from each image (B, C, H, W), in the order of ``torch.fft.fft2``."""
        ring = self.ring(image.shape[-2:], image.device)
        gone = _chosen(len(image), self.rings, max(1, round(self.drop * self.rings)), image.device)
        return gone[:, ring.clamp_min(0)] & (ring >= 0)

    def ring(self, size: tuple[int, ...], device: torch.device | None = None) -> Tensor:
        """(H, W) which ring each frequency is in, -1 within the protected centre."""
        f = torch.stack(torch.meshgrid(*(fftfreq(n, device=device) for n in size), indexing="ij")).square().sum(0).sqrt()
        grown = torch.log(f.clamp_min(1e-9) / self.protect) / torch.log(torch.tensor(0.5**0.5 / self.protect))
        return torch.where(f < self.protect, -1, (grown * self.rings).long().clamp(0, self.rings - 1))

    def __call__(self, guess: Tensor, image: Tensor, hidden: Tensor | None, removed: Tensor | None) -> dict[str, Tensor]:
        """Terms of a ``guess`` at ``image``, both (B, C, H, W): 'blocks', the mean absolute error of the pixels of ``hidden`` tokens; and
        'bands', that of the ``removed`` frequencies, as absolute values of complex numbers. What is None is not asked."""
        error, terms = guess.float() - image.float(), {}
        if hidden is not None:
            side = image.shape[2] // hidden.shape[1]
            pixels = hidden.repeat_interleave(side, 1).repeat_interleave(side, 2).unsqueeze(1).expand_as(error)
            terms["blocks"] = error.abs()[pixels].mean()
        if removed is not None:
            waves = fft2(error, norm="ortho")[removed.unsqueeze(1).expand_as(error)].abs()
            terms["bands"] = waves.sum() / max(1, waves.numel())  # of many rings in a small image some are empty
        return terms


def without(image: Tensor, removed: Tensor) -> Tensor:
    """Images (B, C, H, W) without the frequencies ``removed`` (B, H, W), which are as symmetric as rings are."""
    return ifft2(fft2(image.float()) * ~removed.unsqueeze(1)).real.to(image.dtype)


def _chosen(n: int, of: int, count: int, device: torch.device) -> Tensor:
    """(n, of) bool, ``count`` of each row."""
    at = torch.rand(n, of, device=device).topk(count).indices
    return torch.zeros(n, of, dtype=torch.bool, device=device).scatter(1, at, True)
