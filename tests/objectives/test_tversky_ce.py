"""The hybrid loss of MPU-Net: known answers, what it weighs, and what counts nowhere."""

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from vesalius.core.errors import UsageError
from vesalius.objectives.dice_ce import DiceCE
from vesalius.objectives.tversky_ce import TverskyCE


def made(classes: int = 3):
    torch.manual_seed(0)
    return torch.randn(2, classes, 4, 5, 3), torch.randint(0, classes, (2, 4, 5, 3))


def test_with_equal_weights_it_is_dice():
    logits, label = made()
    tversky = TverskyCE(fp=0.5, fn=0.5, smooth=0.0, ce_weight=0.0)
    dice = DiceCE(ce_weight=0.0, include_background=True, eps=0.0)
    torch.testing.assert_close(tversky(logits, label), dice(logits, label))


def test_of_two_classes_the_rest_is_cross_entropy():
    logits, label = made(2)
    alone = TverskyCE(ce_weight=0.0)(logits, label)
    torch.testing.assert_close(TverskyCE()(logits, label) - alone, cross_entropy(logits, label), atol=1e-5, rtol=1e-5)


def test_a_miss_costs_more_than_a_false_alarm():
    label = torch.zeros(1, 10, 10, dtype=torch.long)
    label[:, 3:7, 3:7] = 1
    small, large = torch.zeros_like(label), torch.zeros_like(label)
    small[:, 4:7, 3:7], large[:, 2:7, 3:7] = 1, 1  # four pixels too few, four too many
    sure = lambda x: 40 * one_hot(x, 2).movedim(-1, 1).float()
    loss = lambda x: float(TverskyCE(ce_weight=0.0)(sure(x), label))  # of both classes: what the object misses, its surroundings gain
    assert loss(small) == pytest.approx(1 - (12 / (12 + 0.7 * 4 + 1) + 84 / (84 + 0.3 * 4 + 1)) / 2)
    assert loss(large) == pytest.approx(1 - (16 / (16 + 0.3 * 4 + 1) + 80 / (80 + 0.7 * 4 + 1)) / 2)
    assert loss(small) > loss(large)


def test_an_absent_class_is_defined():
    logits, _ = made()
    nothing = torch.zeros(2, 4, 5, 3, dtype=torch.long)
    for smooth in (0.0, 1.0):
        leaf = logits.clone().requires_grad_()
        loss = TverskyCE(smooth=smooth)(leaf, nothing)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(leaf.grad).all()
    assert torch.isfinite(TverskyCE()(100 * logits, nothing))


def test_soft_targets_and_what_counts_nowhere():
    logits, label = made()
    loss = TverskyCE()
    torch.testing.assert_close(loss(logits, label), loss(logits, one_hot(label, 3).movedim(-1, 1).float()))
    ignored, other = label.clone(), logits.clone()
    ignored[:, 1], other[:, :, 1] = -1, 7.0
    torch.testing.assert_close(loss(logits, ignored, ignore_index=-1), loss(other, ignored, ignore_index=-1))
    torch.testing.assert_close(loss(logits, ignored, ignore_index=-1), loss(logits, label, weight=(ignored >= 0).float()))
    assert loss(logits, torch.full_like(label, -1), ignore_index=-1) == 1


def test_the_published_squash_leaves_a_floor():
    label = torch.randint(0, 2, (1, 6, 6, 6))
    right = 60 * one_hot(label, 2).movedim(-1, 1).float()
    assert TverskyCE(smooth=0.0)(right, label) < 1e-4
    floor = (torch.tensor(1.0).sigmoid().log() + torch.tensor(0.5).log()) / -2  # of a one and of a nought
    torch.testing.assert_close(TverskyCE(smooth=0.0, squashed=True)(right, label), floor, atol=1e-4, rtol=1e-4)
    with pytest.raises(UsageError, match="not negative"):
        TverskyCE(fn=-1)
