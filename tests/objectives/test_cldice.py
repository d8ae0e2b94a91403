"""clDice: known answers of the soft centre line, gaps that Dice hardly sees, and classes of blocks."""

import pytest
import torch

from vesalius.core.case import IGNORE
from vesalius.core.errors import UsageError
from vesalius.objectives.cldice import ClDice, block_classes, skeleton, soft_cldice

SURE = 20.0


def tube(side: int = 32, dims: int = 2) -> torch.Tensor:
    """(1, 1, side, ...): a straight tube of five voxels across, that ends before the borders."""
    x = torch.zeros(1, 1, *(side,) * dims)
    x[(..., slice(3, -3), *(slice(12, 17),) * (dims - 1))] = 1
    return x


def logits(label: torch.Tensor, classes: int = 2) -> torch.Tensor:
    one = torch.nn.functional.one_hot(label, classes).movedim(-1, 1)
    return SURE * (2 * one.float() - 1)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_line_is_in_the_middle(dims):
    line = skeleton(tube(dims=dims), 5)[0, 0]
    middle = torch.zeros_like(line, dtype=torch.bool)
    middle[(slice(5, -5), *(14,) * (dims - 1))] = True
    assert line[middle].eq(1).all() and line[5:-5][~middle[5:-5]].eq(0).all()


def test_a_mask_agrees_with_itself():
    x = tube()
    assert soft_cldice(x, x, 5).item() == pytest.approx(1)
    assert soft_cldice(x * 0, x * 0, 5).item() == pytest.approx(1)


def test_a_gap_costs_more_than_its_pixels():
    """Erasing as many pixels along the rim changes the clDice less than a gap, the Dice as much."""
    x = tube()
    gap, rim = x.clone(), x.clone()
    gap[..., 14:17, :] = 0
    rim[..., 5:20, 12] = 0
    assert gap.sum() == rim.sum()
    dice = (2 * (gap * x).sum() / (gap.sum() + x.sum())).item()
    of_gap, of_rim = (soft_cldice(y, x, 5).item() for y in (gap, rim))
    assert of_gap < dice < 1 and of_gap < of_rim


def test_alpha_mixes_the_two():
    torch.manual_seed(0)
    target, maps = (tube()[:, 0] > 0).long(), torch.randn(1, 2, 32, 32)
    of = {a: ClDice(alpha=a)(maps, target).item() for a in (0.0, 0.25, 1.0)}
    assert of[0.25] == pytest.approx(0.75 * of[0.0] + 0.25 * of[1.0], abs=1e-6)
    assert of[1.0] == pytest.approx(1 - soft_cldice(maps.softmax(1)[:, 1:], target[None].float(), 5).item(), abs=1e-6)
    assert ClDice(ce_weight=1.0)(logits(target), target).item() == pytest.approx(0, abs=1e-3)
    ce = torch.nn.functional.cross_entropy(maps, target).item()
    assert ClDice(alpha=0.25, ce_weight=2.0)(maps, target).item() == pytest.approx(of[0.25] + 2 * ce, abs=1e-5)


def test_it_can_be_minimised():
    """A gap in an answer closes."""
    target = (tube()[:, 0] > 0).long()
    broken = target.clone()
    broken[:, 14:17] = 0
    maps = (logits(broken) / SURE).requires_grad_()
    before, objective = ClDice()(maps, target).item(), ClDice()
    optimizer = torch.optim.Adam([maps], lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        loss = objective(maps, target)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * before and (maps.argmax(1)[0, 14:17, 12:17] == 1).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_ignored_voxels_count_nowhere(dims):
    torch.manual_seed(0)
    target = (tube(16, dims)[:, 0] > 0).long().expand(2, *(16,) * dims).clone()
    target[:, :4] = IGNORE
    maps = torch.randn(2, 3, *target.shape[1:])
    other = maps.clone()
    other[:, :, :4] += torch.randn_like(other[:, :, :4])
    poisoned = ClDice()(other, target, ignore_index=IGNORE)
    assert torch.allclose(ClDice()(maps, target, ignore_index=IGNORE), poisoned)
    weight = (target != IGNORE).float()
    assert torch.allclose(ClDice()(other, target.clamp_min(0), weight=weight), poisoned)
    assert torch.isfinite(ClDice()(maps, torch.full_like(target, IGNORE), ignore_index=IGNORE))


def test_classes_of_blocks():
    target = torch.tensor([[[0, 0, 1, 1], [0, 1, 1, 1], [2, 0, IGNORE, IGNORE], [2, 1, IGNORE, IGNORE]]])
    count = (target != IGNORE).float()
    any_, seen = block_classes(target, count, 3, (2, 2), "any")
    assert any_.tolist() == [[[1, 1], [2, 0]]] and seen.tolist() == [[[1, 1], [1, 0]]]
    assert block_classes(target, count, 3, (2, 2), "majority")[0].tolist() == [[[0, 1], [2, 0]]]


def test_coarse_logits_are_compared_with_blocks():
    target = (tube()[:, 0] > 0).long()
    blocks = block_classes(target, torch.ones_like(target).float(), 2, (8, 8), "any")[0]
    assert ClDice()(logits(blocks), target).item() == pytest.approx(ClDice()(logits(blocks), blocks).item())
    assert ClDice()(logits(blocks), target) < 0.01 < ClDice(nodes="majority")(logits(blocks), target)


def test_what_is_no_loss_is_refused():
    for options in ({"alpha": 1.5}, {"ce_weight": -1.0}, {"iterations": 0}, {"nodes": "most"}):
        with pytest.raises(UsageError):
            ClDice(**options)
