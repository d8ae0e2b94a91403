"""Contrast between voxels by brute force; labels spread only where they were open, and the less the stricter the rule."""

import numpy as np
import pytest
import torch

from vesalius.core.case import IGNORE
from vesalius.objectives.voxel_contrast import pair_contrast, spread, voxel_contrast


def rows(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def test_contrast_by_brute_force():
    a, b = rows(4, 0), rows(3, 1)
    total, number = 0.0, 0
    for i in range(4):
        for other, target in [*((a[j], 1) for j in range(i + 1, 4)), *((b[j], 0) for j in range(3))]:
            p = torch.sigmoid(torch.cosine_similarity(a[i], other, dim=0) / 0.1)
            total, number = total - float(torch.log(p if target else 1 - p)), number + 1
    assert float(pair_contrast(a, b)) == pytest.approx(total / number, rel=1e-4)


def test_pairs_of_negatives_do_not_count():
    a, b = rows(3, 0), rows(1, 1)
    spun = torch.cat([b, b])
    assert float(pair_contrast(a, spun)) == pytest.approx(float(pair_contrast(a, torch.cat([b, 7 * b]))), rel=1e-5)
    b = rows(2, 2).requires_grad_(True)
    one = torch.autograd.grad(pair_contrast(a, b), b)[0][0]
    other = torch.cat([b.detach()[:1], rows(1, 9)]).requires_grad_(True)
    assert torch.allclose(torch.autograd.grad(pair_contrast(a, other), other)[0][0], one)  # the second negative is nothing to the first


def test_no_pair_no_loss():
    assert float(pair_contrast(rows(1, 0), rows(0, 1))) == 0 and float(pair_contrast(rows(0, 0), rows(4, 1))) == 0
    features = torch.randn(1, 5, 4, 4, requires_grad=True)
    value = voxel_contrast(features, torch.zeros(1, 4, 4, dtype=torch.long), classes=2)
    value.backward()
    assert float(value.detach()) == 0 and not features.grad.any()


def test_alike_objects_unlike_background_cost_little():
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[:, :4], labels[:, 4, :4] = 1, IGNORE
    good = torch.zeros(1, 2, 8, 8)
    good[:, 0], good[:, 1] = labels == 1, labels != 1
    good[:, 1] -= 2.0 * (labels != 1)  # objects at (1, 0), the rest at (0, -1): cosine 0
    opposite = torch.where(labels == 1, 1.0, -1.0).unsqueeze(1)
    assert float(voxel_contrast(opposite, labels, classes=2)) < 1e-3
    assert float(voxel_contrast(good, labels, classes=2)) < float(voxel_contrast(torch.ones(1, 2, 8, 8), labels, classes=2))


def scene(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features in three bundles and labels of which a third is open."""
    g = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, 3, (2, 12, 12), generator=g)
    features = torch.eye(3)[kind].movedim(-1, 1) + 0.12 * torch.randn(2, 3, 12, 12, generator=g)
    return features, torch.where(torch.rand(kind.shape, generator=g) < 0.35, IGNORE, kind)


def spreading(**rule) -> torch.Tensor:
    torch.manual_seed(3)
    features, labels = scene()
    return spread(features, labels, classes=3, **rule)


def test_only_open_voxels_get_a_label_and_never_background():
    (_, labels), new = scene(), spreading(cosine=0.9, votes=0.5)
    assert (new[labels != IGNORE] == IGNORE).all() and set(new.unique().tolist()) == {IGNORE, 1, 2}


@pytest.mark.parametrize("rule", ["cosine", "votes"])
def test_stricter_rules_give_subsets(rule):
    last = None
    for value in (0.5, 0.8, 0.9, 0.96):
        new = spreading(**{"cosine": 0.9, "votes": 0.5, rule: value}) != IGNORE
        assert last is None or not (new & ~last).any()
        last = new


def test_spreading_finds_the_right_class():
    g = torch.Generator().manual_seed(0)
    kind = torch.randint(0, 3, (2, 12, 12), generator=g)
    new = spreading(cosine=0.9, votes=0.5)
    hit = new != IGNORE
    assert hit.any() and np.mean((new == kind)[hit].numpy()) > 0.98


def test_without_voters_or_open_voxels_nothing_spreads():
    features, labels = scene()
    nobody = torch.where(labels > 0, 0, labels)
    assert (spread(features, nobody, classes=3) == IGNORE).all()
    assert (spread(features, labels.clamp_min(0), classes=3) == IGNORE).all()
