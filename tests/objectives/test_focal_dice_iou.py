"""focal-dice-iou: hand-made values, pixels nobody spoke for, and what takes a gradient."""

import pytest
import torch

from vesalius.objectives.focal_dice_iou import focal_dice_iou


def test_known_answers():
    """p = 1/2 everywhere, a quarter of the pixels foreground."""
    truth = torch.zeros(1, 2, 2, dtype=torch.bool)
    truth[0, 0, 0] = True
    terms = focal_dice_iou(torch.zeros(1, 2, 2), torch.tensor([0.5]), truth, torch.ones_like(truth))
    ln2 = torch.tensor(2.0).log().item()
    assert terms["focal"].item() == pytest.approx(20 * ln2 * 0.25 * (0.25 * 1 + 0.75 * 3) / 4, rel=1e-5)
    assert terms["dice"].item() == pytest.approx(1 - (2 * 0.5 + 1) / (2 + 1 + 1))
    assert terms["quality"].item() == pytest.approx((0.5 - 0.5 / 2.5) ** 2, rel=1e-4)


def test_a_sure_right_answer_costs_next_to_nothing_and_a_sure_wrong_one_much():
    truth = torch.zeros(2, 8, 8, dtype=torch.bool)
    truth[:, 2:6, 2:6] = True
    known, sure = torch.ones_like(truth), 40.0 * (truth.float() - 0.5)
    right = focal_dice_iou(sure, torch.ones(2), truth, known)
    wrong = focal_dice_iou(-sure, torch.ones(2), truth, known)
    assert all(v < 1e-6 for v in right.values())
    assert wrong["focal"] > 100 and wrong["dice"] > 0.9 and wrong["quality"] > 0.99


def test_unknown_pixels_change_nothing_and_the_estimate_alone_learns_from_its_error():
    torch.manual_seed(0)
    logits, quality = torch.randn(2, 8, 8, requires_grad=True), torch.rand(2, requires_grad=True)
    truth, known = torch.rand(2, 8, 8) > 0.5, torch.rand(2, 8, 8) > 0.3
    terms = focal_dice_iou(logits, quality, truth, known)
    sum(terms.values()).backward()
    assert (logits.grad[~known] == 0).all() and (logits.grad[known] != 0).all() and (quality.grad != 0).all()
    other = focal_dice_iou(torch.where(known, logits, 9.0), quality, truth ^ ~known, known)
    assert all(torch.allclose(terms[k], other[k]) for k in terms)
    logits.grad = None
    focal_dice_iou(logits, quality, truth, known)["quality"].backward()
    assert logits.grad is None
