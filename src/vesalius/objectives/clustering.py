"""Learning without labels by agreeing on clusters: two views of one thing shall belong to the same cluster of all things.

Caron et al., Unsupervised learning of visual features by contrasting cluster assignments, NeurIPS 2020, https://arxiv.org/abs/2006.09882:
'kmeans' is its DeepCluster-v2 (prototypes are the centres of remembered embeddings), 'sinkhorn' its SwAV (prototypes are learnt, each view
predicts the balanced codes of the other).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize


@torch.no_grad()
def sinkhorn_codes(scores: Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """(..., B, K) soft assignments of ``scores`` (..., B, K), cosines: every row sums to 1, and the columns to nearly the same."""
    codes = scores.float() / epsilon
    for _ in range(iterations):
        codes = codes - codes.logsumexp(-2, keepdim=True)
        codes = codes - codes.logsumexp(-1, keepdim=True)
    return codes.exp()


@torch.no_grad()
def spherical_kmeans(x: Tensor, clusters: int, *, iterations: int = 10) -> tuple[Tensor, Tensor]:
    """Centres (K, D) of length 1 and the id (N,) of the nearest one by cosine, for the directions of ``x`` (N, D), N > 0.

    It starts at random rows; a cluster that loses its last member starts again at a random row. Random numbers are torch's.
    """
    x = normalize(x.float(), dim=1)
    start = torch.randperm(len(x), device=x.device)
    centres = x[start[torch.arange(clusters, device=x.device) % len(x)]]
    for _ in range(iterations):
        ids = (x @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, ids, x)
        empty = torch.bincount(ids, minlength=clusters) == 0
        sums[empty] = x[torch.randint(len(x), (int(empty.sum()),), device=x.device)]
        centres = normalize(sums, dim=1)
    return centres, (x @ centres.T).argmax(1)


def agreement(scores: Sequence[Tensor], ids: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Mean cross-entropy of every view's ``scores`` (H, B, K) with the cluster ``ids`` (H, B) that all views of a thing share."""
    return torch.stack([cross_entropy((s / temperature).flatten(0, 1), ids.flatten()) for s in scores]).mean()


def swapped(scores: Sequence[Tensor], codes: Sequence[Tensor], *, temperature: float = 0.1) -> Tensor:
    """Mean cross-entropy of each view's ``scores`` (H, B, K) with the ``codes`` (H, B, K) of every other view."""
    said = [-(s / temperature).log_softmax(-1) for s in scores]
    pairs = [(c * s).sum(-1).mean() for i, c in enumerate(codes) for j, s in enumerate(said) if i != j]
    return torch.stack(pairs).mean()


class MemoryBank(nn.Module):
    """The last row (``dim``,) of each of up to ``size`` things, told apart by keys (whole numbers from 0). Who came first leaves first."""

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("keys", torch.full((size,), -1))
        self.register_buffer("rows", torch.zeros(size, dim))
        self.register_buffer("turn", torch.zeros((), dtype=torch.long))

    @property
    def known(self) -> Tensor:
        """(n, dim) rows of all things remembered."""
        return self.rows[self.keys >= 0]

    def recall(self, keys: Tensor, otherwise: Tensor) -> Tensor:
        """(B, dim): what is remembered under ``keys`` (B,), the row of ``otherwise`` (B, dim) where nothing is."""
        same = keys[:, None] == self.keys[None]
        return torch.where(same.any(1)[:, None], self.rows[same.int().argmax(1)], otherwise)

    @torch.no_grad()
    def remember(self, keys: Tensor, rows: Tensor) -> None:
        for key, row in zip(keys, rows, strict=True):
            same = (self.keys == key).nonzero()[:, 0]
            at = same[0] if len(same) else self.turn.clone()
            self.keys[at], self.rows[at] = key, row
            if not len(same):
                self.turn.copy_((self.turn + 1) % len(self.keys))


class ClusterAgreement(nn.Module):
    """The loss of several views (B, ``inp``) of the same things, and what it needs: a projection to the unit sphere, ``heads`` sets of
    ``clusters`` prototypes, and a bank of past embeddings.

    'kmeans': the id of a thing is the centre nearest to its remembered embedding (to its first view's, the first time), and ``settle`` puts
    the prototypes on the centres of the bank once a round. 'sinkhorn': codes are balanced over the batch and the bank.
    """

    def __init__(
        self,
        inp: int,
        *,
        clusters: int,
        heads: int = 3,
        dim: int = 128,
        bank: int = 1024,
        rule: Literal["kmeans", "sinkhorn"] = "kmeans",
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
    ):
        super().__init__()
        self.rule, self.temperature, self.sinkhorn = rule, temperature, dict(epsilon=epsilon, iterations=iterations)
        self.project = nn.Sequential(nn.Linear(inp, inp), nn.ReLU(), nn.Linear(inp, dim))
        start = normalize(torch.randn(heads, clusters, dim), dim=2)
        self.prototypes = nn.Parameter(start, requires_grad=rule == "sinkhorn")
        self.bank = MemoryBank(bank, dim)
        self.register_buffer("round", torch.zeros((), dtype=torch.long))
        self._seen: tuple[Tensor, Tensor] | None = None

    def forward(self, views: Sequence[Tensor], keys: Tensor, *, frozen: bool = False) -> Tensor:
        """``keys`` (B,) say which thing each row is; ``frozen``: the prototypes get no gradient."""
        z = [normalize(self.project(v).float(), dim=1) for v in views]
        self._seen = keys, z[0].detach()
        scores = [self.scores(v, frozen) for v in z]
        if self.rule == "kmeans":
            return agreement(scores, self.ids(keys, z[0].detach()), temperature=self.temperature)
        return swapped(scores, [self.codes(v.detach()) for v in z], temperature=self.temperature)

    def scores(self, z: Tensor, frozen: bool = False) -> Tensor:
        """(H, B, K) cosines of embeddings (B, dim) with the prototypes."""
        p = normalize(self.prototypes.detach() if frozen else self.prototypes, dim=2)
        return torch.einsum("bd,hkd->hbk", z, p)

    @torch.no_grad()
    def ids(self, keys: Tensor, z: Tensor) -> Tensor:
        """(H, B) the cluster of each thing, one for all its views."""
        return self.scores(self.bank.recall(keys, z)).argmax(2)

    @torch.no_grad()
    def codes(self, z: Tensor) -> Tensor:
        """(H, B, K) of a batch, balanced together with what the bank remembers."""
        return sinkhorn_codes(self.scores(torch.cat([z, self.bank.known])), **self.sinkhorn)[:, : len(z)]

    @torch.no_grad()
    def settle(self, number: int) -> None:
        """After a step: remember its embeddings; when the round's ``number`` is another one, find the centres anew."""
        if self._seen is None:
            return
        self.bank.remember(*self._seen)
        self._seen = None
        if number != int(self.round) and self.rule == "kmeans":
            found = [spherical_kmeans(self.bank.known, self.prototypes.shape[1])[0] for _ in self.prototypes]
            self.prototypes.copy_(torch.stack(found))
        self.round.fill_(number)
