"""What a student's prediction map is compared with in KDAS: the teacher's map attended to by itself, and both maps made symmetric.

Trinh et al., KDAS: Knowledge distillation via attention supervision framework for polyp segmentation (2023),
https://arxiv.org/abs/2312.08555, code https://github.com/huyquoctrinh/KDAS. A map (B, K, H, W) holds logits unless said otherwise; each
class's map is a matrix of H rows, and a row is a token of W numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, binary_cross_entropy_with_logits, logsigmoid, mse_loss


def self_attended(maps: Tensor) -> Tensor:
    """A(T) = softmax(T T^t / sqrt(W)) T of every map of (B, K, H, W): each row becomes a mean of the rows that are like it."""
    return (maps @ maps.transpose(-1, -2) / math.sqrt(maps.shape[-1])).softmax(-1) @ maps


def attention_kl(student: Tensor, teacher: Tensor, temperature: float = 2.0, *, raw: bool = False) -> Tensor:
    """tau^2 KL(softmax(A(T) / tau) || softmax(S / tau)) with distributions over the W places of a row, averaged over rows; maps
    (B, K, H, W). 0 exactly where S is A(T) up to a constant a row.

    ``raw``: as the published code has it, tau^2 times the mean over pixels of a (log a - s) with a = A(T) / tau and s = softmax(S) / tau
    over the classes: no logarithm where one is meant, and of one class s is the constant 1 / tau, so that nothing is taught. As in the
    torch of that time, places of a <= 0 add nothing.
    """
    target = self_attended(teacher) / temperature
    if raw:
        positive = target.clamp_min(torch.finfo(target.dtype).tiny)
        terms = positive * (positive.log() - student.softmax(1) / temperature)
        return temperature**2 * torch.where(target > 0, terms, 0.0).mean()
    log_p, log_q = (student / temperature).log_softmax(-1), target.log_softmax(-1)
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum(-1).mean()


def symmetric(maps: Tensor, side: int = 0) -> Tensor:
    """M(P) = P + P^t, averaged over a grid of ``side`` x ``side`` (0: the shorter side of the map, which leaves a square map as it is).
    A map that is not square is averaged first; for a square one the order makes no difference."""
    pooled = adaptive_avg_pool2d(maps, side or min(maps.shape[-2:]))
    return pooled + pooled.transpose(-1, -2)


def symmetric_guidance(student: Tensor, teacher: Tensor, side: int = 0) -> Tensor:
    """L_SGM: the mean squared difference of both maps' symmetric forms. Of probabilities it is 4 at most; of logits, as published, it
    grows with the square of how sure both are."""
    return mse_loss(symmetric(student, side), symmetric(teacher, side))


def pixel_kl(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Plain distillation (Hinton et al. 2015): tau^2 KL of what both say of each pixel, present or not, softened; averaged over pixels."""
    z, q = student / temperature, (teacher / temperature).sigmoid()
    entropy = q * logsigmoid(teacher / temperature) + (1 - q) * logsigmoid(-teacher / temperature)
    return temperature**2 * (entropy + binary_cross_entropy_with_logits(z, q, reduction="none")).mean()
