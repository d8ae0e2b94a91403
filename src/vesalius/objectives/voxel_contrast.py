"""Voxels of one kind shall look alike to a network, and unlike the others: contrast between pairs of voxels, and labels spread by likeness.

Zhong and Wang, SimPLe: similarity-aware propagation learning for weakly-supervised breast cancer segmentation in DCE-MRI, MICCAI 2023,
https://arxiv.org/abs/2306.16714.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from ..core.case import IGNORE

_CHUNK = 1 << 16  # voxels compared at a time


def pair_contrast(positive: Tensor, negative: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Mean cross-entropy over pairs of voxels, sigmoid(cosine / ``temperature``) being the probability that a pair is of one kind: pairs of
    two of ``positive`` (P, F), each once, shall be, those of one of them and one of ``negative`` (N, F) shall not.

    What negatives are to each other does not matter (there are many kinds of background). No pair gives 0.
    """
    a, b = normalize(positive.float(), dim=1), normalize(negative.float(), dim=1)
    row, column = torch.triu_indices(len(a), len(a), 1, device=a.device)
    alike, unlike = (a[row] * a[column]).sum(1), (a @ b.T).flatten()
    logits = torch.cat([alike, unlike]) / temperature
    if not len(logits):
        return positive.sum() * 0 + negative.sum() * 0
    return binary_cross_entropy_with_logits(logits, torch.cat([torch.ones_like(alike), torch.zeros_like(unlike)]))


def voxel_contrast(features: Tensor, labels: Tensor, *, classes: int, pairs: int = 100, temperature: float = 0.1) -> Tensor:
    """``pair_contrast`` of ``pairs`` random voxels of each foreground class of ``labels`` (B, *s) with as many of the background, in
    ``features`` (B, F, *s); the mean over the classes that are there, 0 if none is. Random numbers are torch's."""
    rows = features.movedim(1, -1).flatten(0, -2)
    flat, terms = labels.flatten(), []
    background = _some(flat == 0, pairs)
    for k in range(1, classes):
        found = _some(flat == k, pairs)
        if len(found):
            terms.append(pair_contrast(rows[found], rows[background], temperature=temperature))
    return torch.stack(terms).mean() if terms else features.sum() * 0


@torch.no_grad()
def spread(features: Tensor, labels: Tensor, *, classes: int, references: int = 100, cosine: float = 0.96, votes: float = 0.96) -> Tensor:
    """(B, *s): the class to which an unlabelled voxel (``IGNORE`` in ``labels`` (B, *s)) is alike, ``IGNORE`` everywhere else.

    Of each foreground class ``references`` random voxels vote, those whose ``features`` (B, F, *s) have a cosine above ``cosine`` with the
    voxel's; it becomes of that class with more than the share ``votes``, of several classes the one with most. So no label is ever changed
    and nothing becomes background. Random numbers are torch's.
    """
    rows = normalize(features.float().movedim(1, -1).flatten(0, -2), dim=1)
    flat = labels.flatten()
    unlabelled = (flat == IGNORE).nonzero()[:, 0]
    best, out = torch.full((len(unlabelled),), votes, device=rows.device), torch.full_like(flat, IGNORE)
    winner = torch.full_like(unlabelled, IGNORE)
    for k in range(1, classes):
        voters = rows[_some(flat == k, references)]
        if not len(voters):
            continue
        share = torch.cat([(rows[part] @ voters.T > cosine).float().mean(1) for part in unlabelled.split(_CHUNK)])
        better = share > best
        best, winner = torch.where(better, share, best), torch.where(better, k, winner)
    out[unlabelled] = winner.to(out.dtype)
    return out.view_as(labels)


def _some(where: Tensor, number: int) -> Tensor:
    """At most ``number`` random ones of the places (n,) bool, as indices."""
    places = where.nonzero()[:, 0]
    return places[torch.randperm(len(places), device=places.device)[:number]]
