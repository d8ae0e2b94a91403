"""PRISM's parts: the grid, prompt tokens, relative positions, and a corrective network that changes a mask by its residual alone."""

import numpy as np
import pytest
import torch

from vesalius.core.errors import GeometryError, UsageError
from vesalius.core.prompt import Asked
from vesalius.networks.blocks.refiner import Refiner, click_maps, halved, resized
from vesalius.networks.prism import Block, PrismNet

SIZE = (16, 24, 16)


def net(**options) -> PrismNet:
    torch.manual_seed(0)
    return PrismNet(1, size=SIZE, **{"features": (4, 8, 16, 16), "dim": 12, "depth": 3, "heads": 2, **options}).eval()


def asked(n=3, boxes=None, seed=0) -> Asked:
    g = torch.Generator().manual_seed(seed)
    return Asked(torch.rand(1, n, 3, generator=g) * 15, torch.randint(0, 2, (1, n), generator=g), boxes)


@pytest.fixture(scope="module")
def encoded():
    return net().embed(torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(1)))


@torch.no_grad()
def test_three_scored_masks_at_full_size_and_one_image_for_many_objects(encoded):
    both = Asked(torch.cat([asked().points, asked(seed=5).points]), torch.cat([asked().signs, asked(seed=5).signs]))
    answer, one = net().decode(encoded, both), net().decode(encoded, asked(seed=5))
    assert answer.logits.shape == (2, 3, *SIZE) and answer.quality.shape == (2, 3) and ((0 < answer.quality) & (answer.quality < 1)).all()
    assert torch.allclose(answer.logits[1:], one.logits, atol=1e-4) and torch.allclose(answer.quality[1:], one.quality, atol=1e-5)


@torch.no_grad()
def test_the_order_of_points_changes_nothing_and_their_place_and_sign_do(encoded):
    first = net().decode(encoded, asked(4))
    a = asked(4)
    turned = net().decode(encoded, Asked(a.points[:, [2, 0, 3, 1]], a.signs[:, [2, 0, 3, 1]]))
    assert torch.allclose(first.logits, turned.logits, atol=1e-4) and torch.allclose(first.quality, turned.quality, atol=1e-5)
    for other in (Asked(a.points + 4, a.signs), Asked(a.points, 1 - a.signs)):
        assert (net().decode(encoded, other).logits - first.logits).abs().max() > 1e-3


@torch.no_grad()
def test_an_object_without_a_box_among_boxed_ones_is_finite_and_the_box_counts(encoded):
    box = torch.tensor([[[2.0, 3.0, 4.0], [9.0, 12.0, 11.0]]])
    two = Asked(asked().points.expand(2, -1, -1), asked().signs.expand(2, -1), torch.cat([box, torch.full_like(box, np.nan)]))
    answer = net().decode(encoded, two)
    assert torch.isfinite(answer.logits).all() and (answer.logits[0] - answer.logits[1]).abs().max() > 1e-3
    assert torch.allclose(answer.logits[:1], net().decode(encoded, asked(boxes=box)).logits, atol=1e-4)


@torch.no_grad()
def test_the_answer_before_is_a_prompt(encoded):
    before = torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(2))
    assert (net().decode(encoded, asked(), before).logits - net().decode(encoded, asked()).logits).abs().max() > 1e-3


def test_published_widths_have_tokens_of_16_voxels_and_join_after_blocks_3_6_9():
    with torch.device("meta"):
        full = PrismNet(1, size=(128, 128, 128))
    assert full.multiple == (16, 16, 16) and full.after == [3, 6, 9] and [len(j) // 6 for j in full.joins] == [3, 2, 1]
    assert 1.1e8 < sum(p.numel() for p in full.parameters()) < 1.3e8


def test_what_cannot_be_built_or_divided_is_refused():
    with pytest.raises(UsageError, match="cannot be built"):
        net(features=(8, 20))
    with pytest.raises(GeometryError, match="cannot divide"):
        net().embed(torch.zeros(1, 1, 17, 24, 16))


def test_relative_positions_are_the_query_times_the_code_of_the_distance():
    torch.manual_seed(0)
    block, grid = Block(8, 2, (2, 3, 2)), (2, 3, 2)
    for table in block.relative:
        torch.nn.init.normal_(table)
    q = torch.randn(1, 2, 12, 4)
    bias, at = block._bias(q), np.array(list(np.ndindex(grid)))
    for i, j in ((0, 11), (7, 2), (5, 5)):
        codes = sum(table[at[i][a] - at[j][a] + grid[a] - 1] for a, table in enumerate(block.relative))
        assert torch.allclose(bias[0, :, i, j], (q[0, :, i] * codes).sum(-1), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------- the corrective network
def refiner(**options) -> Refiner:
    torch.manual_seed(0)
    return Refiner(1, dims=3, **options).eval()


def inputs(size=(17, 24, 16)):
    g = torch.Generator().manual_seed(3)
    return torch.randn(1, 1, *size, generator=g), 3 * torch.randn(1, 1, *size, generator=g), torch.zeros(1, 2, *size)


@pytest.mark.parametrize("head", ["error", "correction"])
@torch.no_grad()
def test_with_a_head_at_zero_the_mask_passes_as_it_was(head):
    image, logits, clicks = inputs()
    r = refiner()
    assert (r(image, logits, clicks) - resized(halved(logits), logits.shape[2:])).abs().max() > 1e-3
    for p in getattr(r, head).parameters():
        p.zero_()
    assert torch.equal(r(image, logits, clicks), resized(halved(logits), logits.shape[2:]))
    lifted = refiner(lift=True)
    for p in getattr(lifted, head).parameters():
        p.zero_()
    more = lifted(image, logits, clicks) - resized(halved(logits), logits.shape[2:])
    assert more.min() >= -1e-5, "the lift only adds: foreground stays foreground"


def test_what_is_learnt_here_teaches_nobody_else():
    image, logits, clicks = inputs()
    logits.requires_grad_()
    r = refiner(lift=True)
    r(image, logits, clicks).sum().backward()
    assert logits.grad is None and all(p.grad is not None for p in r.parameters())


@torch.no_grad()
def test_a_click_is_felt_ten_voxels_around_it_and_beyond_only_through_the_norms():
    image, logits, clicks = inputs((40, 40, 40))
    marked = clicks.clone()
    marked[0, 0, 20, 20, 20] = 1
    away = np.abs(np.indices((40, 40, 40)) - 20).max(0)
    for r, far in ((refiner(), 0.2), (_without_norms(refiner()), 1e-5)):
        change = (r(image, logits, marked) - r(image, logits, clicks))[0, 0].abs().numpy()
        assert change[away <= 2].max() > 1e-3 and change[away > 12].max() <= far * change.max()


def _without_norms(r: Refiner) -> Refiner:
    for module in r.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.InstanceNorm3d):
                setattr(module, name, torch.nn.Identity())
    return r


def test_the_lite_network_has_a_tenth_of_a_million_parameters():
    assert 100_000 < sum(p.numel() for p in refiner(lift=True).parameters()) < 140_000


def test_clicks_of_all_turns_are_marked_by_sign_and_padding_is_not():
    first = Asked(torch.tensor([[[1.0, 2, 3], [0, 0, 0]]]), torch.tensor([[1, -1]]))
    second = Asked(torch.tensor([[[4.4, 4.6, 99]]]), torch.tensor([[0]]))
    maps = click_maps([first, second], (6, 6, 6))
    assert maps.sum() == 2 and maps[0, 0, 1, 2, 3] == 1 and maps[0, 1, 4, 5, 5] == 1
