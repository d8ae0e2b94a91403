"""SegViT's loss: known answers, classes that an image lacks, pixels that nobody spoke for."""

import math

import pytest
import torch

from vesalius.core.case import IGNORE
from vesalius.objectives.attention_mask import attention_mask

LABEL = torch.tensor([[[0, 0, 1, 1]] * 4, [[0, 0, 0, 0]] * 4])  # the second image lacks class 1, both lack class 2


def perfect(sure: float = 30.0) -> tuple[torch.Tensor, torch.Tensor]:
    there = [[True, True, False], [True, False, False]]
    classes = torch.stack([torch.stack([sure * torch.eye(4)[k if row[k] else 3] for k in range(3)]) for row in there])
    masks = sure * (2 * torch.stack([LABEL == k for k in range(3)], 1).float() - 1)
    return classes, masks


def test_a_perfect_answer_costs_nothing():
    terms = attention_mask([perfect(), perfect()], LABEL, ignore_index=IGNORE)
    assert terms.keys() == {"classes", "focal", "dice"} and all(float(t) == pytest.approx(0, abs=1e-5) for t in terms.values())


def test_terms_are_sums_over_levels_of_known_numbers():
    blank = (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, 4))
    terms = attention_mask([blank, perfect()], LABEL, ignore_index=IGNORE)
    assert float(terms["classes"]) == pytest.approx(math.log(4), rel=1e-5)
    # three masks are asked: (8, 8, 16) of 16 pixels; the sigmoid is a half everywhere
    share = [0.5, 0.5, 1.0]
    focal = sum(0.25 * s * 0.25 * math.log(2) + 0.75 * (1 - s) * 0.25 * math.log(2) for s in share) / 3
    assert float(terms["focal"]) == pytest.approx(20 * focal, rel=1e-5)
    dice = sum(1 - (2 * 0.5 * 16 * s + 1) / (8 + 16 * s + 1) for s in share) / 3
    assert float(terms["dice"]) == pytest.approx(dice, rel=1e-5)


def test_masks_of_absent_classes_are_not_asked_but_their_queries_are():
    classes, masks = (x.clone() for x in perfect())
    masks[:, 2] = 30.0
    masks[1, 1] = 30.0
    assert all(float(t) == pytest.approx(0, abs=1e-5) for t in attention_mask([(classes, masks)], LABEL).values())
    classes[0, 2] = 30 * torch.eye(4)[2]  # says that class 2 is there: weighs a tenth
    found = float(attention_mask([(classes, masks)], LABEL)["classes"])
    assert found == pytest.approx(0.1 * 30 / (3 + 3 * 0.1), rel=1e-4)


def test_unknown_pixels_count_nowhere():
    label = LABEL.clone()
    label[0, 0], label[1] = IGNORE, IGNORE
    torch.manual_seed(0)
    classes, masks = torch.randn(2, 3, 4), torch.randn(2, 3, 4, 4)
    first = attention_mask([(classes, masks)], label, ignore_index=IGNORE)
    masks[0, :, 0], masks[1], classes[1] = 9.0, -9.0, 5.0
    again = attention_mask([(classes, masks)], label, ignore_index=IGNORE)
    assert all(torch.allclose(first[k], again[k]) for k in first)
    nothing = attention_mask([(classes.requires_grad_(), masks)], torch.full_like(label, IGNORE), ignore_index=IGNORE)
    assert all(float(t.detach()) == 0 for t in nothing.values())
    sum(nothing.values()).backward()
    assert not classes.grad.any()
