"""What a generator and its discriminator want of each other, and the pool of earlier images a discriminator is also shown.

Least squares: Mao et al., ICCV 2017, https://arxiv.org/abs/1611.04076. Cross-entropy: Goodfellow et al., NeurIPS 2014 (the generator's
non-saturating form), https://arxiv.org/abs/1406.2661. Pool: Shrivastava et al., CVPR 2017, https://arxiv.org/abs/1612.07828, section 2.3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

KINDS = {"least-squares": mse_loss, "cross-entropy": binary_cross_entropy_with_logits}


class Adversarial:
    """``kind`` least-squares | cross-entropy, of a discriminator's logits of any shape against 1 (real) and 0 (made)."""

    def __init__(self, kind: str = "least-squares"):
        if kind not in KINDS:
            raise ValueError(f"an adversarial loss is one of {', '.join(KINDS)}, not {kind}")
        self.mismatch = KINDS[kind]

    def fool(self, made: Tensor) -> Tensor:
        """The generator's: 0 when what it made is taken for real."""
        return self.mismatch(made.float(), torch.ones_like(made, dtype=torch.float32))

    def judge(self, real: Tensor, made: Tensor) -> Tensor:
        """The discriminator's: the mean of its error on real and on made images."""
        return (self.fool(real) + self.mismatch(made.float(), torch.zeros_like(made, dtype=torch.float32))) / 2


class ImagePool(nn.Module):
    """The last ``size`` images (C, *s) made, as a discriminator sees them: half of what it sees is older than the generator's last step.

    ``forward`` (B, C, *s) -> (B, C, *s): until the pool is full each image is stored and shown; then an image is shown with probability
    1/2, else exchanged for a stored one. ``shape`` is (C, *s). Random numbers are torch's, and the images are part of the state, so that a
    training that was resumed goes on as it would have. ``size`` 0: nothing is kept.
    """

    def __init__(self, size: int, shape: tuple[int, ...]):
        super().__init__()
        self.size = size
        if size:
            self.register_buffer("images", torch.zeros(size, *shape))
            self.register_buffer("stored", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def forward(self, made: Tensor) -> Tensor:
        if not self.size:
            return made.detach()
        shown = made.detach().clone()
        for i, image in enumerate(made):
            if self.stored < self.size:
                self.images[self.stored] = image
                self.stored += 1
            elif torch.rand(()) < 0.5:
                k = int(torch.randint(self.size, ()))
                shown[i] = self.images[k]
                self.images[k] = image
        return shown
