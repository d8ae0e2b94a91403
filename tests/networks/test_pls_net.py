"""PLS-Net: its size, how far it sees, the re-injected input, and checkpointing that changes nothing."""

import pytest
import torch

from vesalius.core.errors import GeometryError, UsageError
from vesalius.networks.pls_net import DenseBlock, PLSNet


def net(inp: int = 1, out: int = 2, dims: int = 3, **options) -> PLSNet:
    torch.manual_seed(0)
    return PLSNet(inp, out, spatial_dims=dims, **options)


def test_a_quarter_million_parameters():
    """Lee et al. report 0.25 M."""
    assert sum(p.numel() for p in net().parameters()) == 250_150
    assert sum(p.numel() for p in net(4, 8).parameters()) < 1_000_000


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("inp, out", [(1, 2), (1, 1), (3, 7)])
def test_answers_at_full_resolution(inp, out, dims):
    size = (24, 16, 8)[:dims]
    logits = net(inp, out, dims)(torch.randn(1, inp, *size))
    assert logits.shape == (1, out, *size)


@pytest.mark.parametrize("norm", [False, True])
def test_checkpointing_gives_identical_gradients(norm):
    x, grads = torch.randn(2, 1, 16, 16, 16), []
    for checkpointing in (True, False):
        model = net(norm=norm, checkpointing=checkpointing)
        model(x).square().mean().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(a is not None and torch.equal(a, b) for a, b in zip(*grads, strict=True))


def reach(function, x: torch.Tensor, at: int) -> int:
    """How many voxels along the first axis a change at index ``at`` is felt."""
    moved = x.clone()
    moved[:, :, at] += 1
    with torch.no_grad():
        changed = (function(moved) - function(x)).abs().amax((0, 1, *range(3, x.ndim))) > 0
    where = changed.nonzero().flatten()
    return int((where - at).abs().max())


def test_dilations_let_a_dense_block_see_ten_voxels_instead_of_four():
    torch.manual_seed(0)
    x = torch.rand(1, 5, 41, 3, 3, dtype=torch.float64)
    assert reach(DenseBlock(3, 5, 12, (1, 2, 3, 4)).double(), x, 20) == 10
    assert reach(DenseBlock(3, 5, 12, (1, 1, 1, 1)).double(), x, 20) == 4


def test_the_network_sees_more_than_thirty_voxels_away():
    x = torch.rand(1, 1, 128, 8, 8, dtype=torch.float64)
    assert reach(net().double().eval(), x, 8) > 30


def test_the_input_returns_at_every_resolution():
    model, x = net().eval(), torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        whole = model(x)
        for level, width in enumerate((16, 64, 128)):
            blind = net().eval()
            blind.load_state_dict(model.state_dict())
            for block in blind.dense[level]:  # the channel behind the level's own, which is the image
                for conv in block.convs:
                    conv[0].weight[width] = 0
                block.join.weight[:, width] = 0
            assert not torch.allclose(blind(x), whole)


def test_what_does_not_fit_is_refused():
    with pytest.raises(GeometryError, match="multiples of"):
        net()(torch.zeros(1, 1, 16, 20, 16))
    with pytest.raises(UsageError, match="as many repeats"):
        net(widths=(16, 64))
