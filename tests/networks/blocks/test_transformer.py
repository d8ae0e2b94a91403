"""Transformer blocks: rotary positions are relative, and without positions nothing has a place."""

import pytest
import torch

from vesalius.networks.blocks.drop_path import kept
from vesalius.networks.blocks.transformer import EvaBlock, Transformer, coordinates, rotate, rotation


@pytest.mark.parametrize("grid", [(4, 5), (3, 4, 2)])
def test_rotary_attention_depends_on_distance_alone(grid):
    torch.manual_seed(0)
    d, bands = len(grid), 3
    at = coordinates(grid, grid)
    q, k = (torch.randn(1, 2, len(at), 2 * d * bands, dtype=torch.float64) for _ in range(2))

    def logits(shift: float) -> torch.Tensor:
        turn = tuple(t.double() for t in rotation((at + shift * torch.arange(1, d + 1)).double(), bands))
        return rotate(q, turn) @ rotate(k, turn).transpose(-1, -2)

    torch.testing.assert_close(logits(0.0), logits(7.0), atol=1e-5, rtol=1e-5)
    turn = tuple(t.double() for t in rotation(at, bands))
    torch.testing.assert_close(rotate(q, turn).norm(dim=-1), q.norm(dim=-1), atol=1e-6, rtol=1e-6)
    same = q[:, :, :1].expand_as(q)  # one vector everywhere: the product of two places is a function of their offset
    products = (rotate(same, turn) @ rotate(same, turn).transpose(-1, -2))[0, 0]
    found = {}
    for i in range(len(at)):
        for j in range(len(at)):
            found.setdefault(tuple((at[i] - at[j]).tolist()), []).append(float(products[i, j]))
    assert all(max(v) - min(v) < 1e-4 for v in found.values()) and len({round(v[0], 3) for v in found.values()}) > len(at) / 2


def test_coordinates_run_row_by_row_over_the_reference():
    assert coordinates((2, 2), (2, 2)).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert coordinates((4,), (2,)).flatten().tolist() == [0, 0.5, 1, 1.5]


@pytest.mark.parametrize("rotary", [False, True])
def test_without_positions_tokens_may_change_places(rotary):
    torch.manual_seed(0)
    net = Transformer(24, 2, 2, (2, 3, 2), rotary=rotary, absolute=False, layer_scale=1.0).eval()
    x, order = torch.randn(1, 24, 12), torch.randperm(12)
    run = lambda tokens: net(tokens.reshape(1, 24, 2, 3, 2)).flatten(2)
    assert torch.allclose(run(x[:, :, order]), run(x)[:, :, order], atol=1e-5) is not rotary


def test_another_grid_scales_the_positions():
    net = Transformer(24, 1, 2, (2, 4, 2)).eval()
    assert net(torch.randn(1, 24, 4, 4, 3)).shape == (1, 24, 4, 4, 3)


def test_stochastic_depth_in_training_only_keeps_the_mean():
    torch.manual_seed(0)
    block, x = EvaBlock(12, 2, 16, drop_path=0.5, layer_scale=1.0), torch.randn(1, 5, 12).expand(600, -1, -1)
    block.eval()
    whole = block(x)[0]
    assert torch.equal(block(x)[1], whole)
    block.train()
    branch = kept(torch.ones(4000, 1, 1), block.drop_path, block.training)
    assert set(branch.unique().tolist()) == {0.0, 2.0} and branch.mean() == pytest.approx(1, abs=0.05)
    assert len({tuple(row.flatten().tolist()) for row in block(x)}) == 4  # each of the two branches kept or not


def test_later_layers_start_smaller():
    torch.manual_seed(0)
    first, tenth = EvaBlock(48, 2, 64, layer=1), EvaBlock(48, 2, 64, layer=10)
    for end in ("attention", "mlp"):
        ratio = getattr(first, end).out.weight.std() / getattr(tenth, end).out.weight.std()
        assert ratio.item() == pytest.approx(10**0.5, rel=0.1)
