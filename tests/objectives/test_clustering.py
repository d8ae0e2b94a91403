"""Clusters as labels: balanced codes, k-means on the sphere, a bank that remembers, one id for all views of a thing."""

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from vesalius.objectives.clustering import ClusterAgreement, MemoryBank, sinkhorn_codes, spherical_kmeans, swapped


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_codes_are_shares_and_balanced():
    scores = 0.3 * torch.randn(3, 40, 5)
    scores[..., 0] += 0.5  # softmax would give nearly all to the first
    codes = sinkhorn_codes(scores)
    torch.testing.assert_close(codes.sum(-1), torch.ones(3, 40))
    uneven = lambda c: float((c.sum(-2) - 8).abs().max())
    assert uneven(codes) < 0.35 * uneven((scores / 0.05).softmax(-1))
    torch.testing.assert_close(sinkhorn_codes(scores, iterations=500).sum(-2), torch.full((3, 5), 8.0), atol=1e-2, rtol=0)


def test_codes_are_those_of_a_plain_alternation():
    scores = torch.randn(7, 3)
    q = (scores.double() / 0.5).exp()
    for _ in range(3):
        q = q / q.sum(0)
        q = q / q.sum(1, keepdim=True)
    torch.testing.assert_close(sinkhorn_codes(scores, epsilon=0.5).double(), q, atol=1e-6, rtol=1e-5)


def test_kmeans_finds_directions_whatever_their_length():
    truth = torch.arange(4).repeat_interleave(25)
    directions = torch.eye(4)[truth] + 0.1 * torch.randn(100, 4)
    best = None
    for _ in range(5):  # random starts may share a cluster
        centres, ids = spherical_kmeans(directions * torch.rand(100, 1).add(0.1), 4)
        torch.testing.assert_close(centres.norm(dim=1), torch.ones(4))
        found = {(int(a), int(b)) for a, b in zip(truth, ids)}
        best = min(best or 99, len(found))
    assert best == 4


def test_kmeans_survives_fewer_things_than_clusters():
    centres, ids = spherical_kmeans(torch.randn(2, 3), 5)
    assert centres.shape == (5, 3) and torch.isfinite(centres).all() and ids.shape == (2,)


def test_the_bank_remembers_the_last_row_and_drops_the_oldest():
    bank, rows = MemoryBank(3, 2), torch.arange(8.0).view(4, 2)
    assert len(bank.known) == 0
    bank.remember(torch.tensor([7, 8]), rows[:2])
    bank.remember(torch.tensor([7]), rows[2:3])
    nothing = torch.full((2, 2), -1.0)
    assert torch.equal(bank.recall(torch.tensor([7, 9]), nothing), torch.stack([rows[2], nothing[0]])) and len(bank.known) == 2
    bank.remember(torch.tensor([9, 10]), rows[:2])
    kept = {int(k) for k in bank.keys}
    assert kept == {8, 9, 10}


def test_all_views_share_the_cluster_of_the_thing_s_remembered_embedding():
    head = ClusterAgreement(6, clusters=4, heads=2, dim=3)
    keys, views = torch.arange(12), [torch.randn(12, 6) for _ in range(2)]
    stored = normalize(torch.randn(10, 3), dim=1)
    head.bank.remember(keys[:10], stored)
    loss = head(views, keys)
    z = [normalize(head.project(v), dim=1) for v in views]
    known = torch.cat([stored, z[0][10:]])  # the last two things are new: their first view decides
    ids = torch.einsum("bd,hkd->hbk", known, head.prototypes).argmax(2)
    each = [cross_entropy(torch.einsum("bd,kd->bk", v, p) / 0.1, i) for v in z for p, i in zip(head.prototypes, ids)]
    torch.testing.assert_close(loss, torch.stack(each).mean())


def test_settling_moves_prototypes_to_the_bank_s_centres_once_a_round():
    head = ClusterAgreement(4, clusters=2, heads=1, dim=2)
    before = head.prototypes.clone()
    head([torch.randn(6, 4)] * 2, torch.arange(6))
    head.settle(0)
    assert len(head.bank.known) == 6 and torch.equal(head.prototypes, before) and not head.prototypes.requires_grad
    head([torch.randn(6, 4)] * 2, torch.arange(6))
    head.settle(1)
    near = (head.bank.known @ head.prototypes[0].T).argmax(1)
    for k in range(2):
        if (near == k).any():
            torch.testing.assert_close(head.prototypes[0, k].detach(), normalize(head.bank.known[near == k].sum(0), dim=0))
    again = head.prototypes.clone()
    head.settle(2)  # nothing seen since
    assert torch.equal(head.prototypes, again)


def test_swapped_prediction_asks_each_view_for_the_other_s_code():
    a, b = torch.randn(1, 5, 3), torch.randn(1, 5, 3)
    ca, cb = sinkhorn_codes(a), sinkhorn_codes(b)
    expected = (-(cb * (a / 0.1).log_softmax(-1)).sum(-1).mean() - (ca * (b / 0.1).log_softmax(-1)).sum(-1).mean()) / 2
    torch.testing.assert_close(swapped([a, b], [ca, cb]), expected)


def test_learnt_prototypes_rest_when_frozen():
    head = ClusterAgreement(4, clusters=3, rule="sinkhorn", dim=2)
    views = [torch.randn(5, 4) for _ in range(2)]
    head(views, torch.arange(5), frozen=True).backward()
    assert head.prototypes.grad is None and head.project[0].weight.grad is not None
    head(views, torch.arange(5)).backward()
    assert head.prototypes.grad.abs().sum() > 0
