"""Terms of registration: the paper's invariants (a), (b), (c) and (e), and limits with known answers."""

import pytest
import torch

from vesalius.objectives.registration import box_mean, correlation_loss, local_correlation_loss, roughness, volume_preserving
from vesalius.ops.flow import places


def scaling(shape, c) -> torch.Tensor:
    """The sampling flow that shows everything ``c`` times as large about the middle: i -> m + (i - m) / c."""
    index = places(torch.zeros(1, len(shape), *shape))
    middle = torch.tensor([(n - 1) / 2 for n in shape]).view(1, -1, *[1] * len(shape))
    return (index - middle) * (1 / c - 1)


@pytest.mark.parametrize("shape", [(12, 14), (8, 9, 10)])
def test_correlation_knows_linear_functions_and_strangers(shape):
    torch.manual_seed(0)
    x, y = torch.rand(2, 1, *shape), torch.rand(2, 1, *shape)
    assert correlation_loss(x, 3 * x - 7) == pytest.approx(0, abs=1e-4)
    assert correlation_loss(x, -x) == pytest.approx(2, abs=1e-4)
    assert abs(float(correlation_loss(x, y)) - 1) < 0.2
    expected = 1 - sum(torch.corrcoef(torch.stack([a.ravel(), b.ravel()]))[0, 1] for a, b in zip(x, y, strict=True)) / 2
    torch.testing.assert_close(correlation_loss(x, y), expected, atol=1e-4, rtol=0)


def test_a_constant_weight_is_no_weight_and_a_masked_stranger_is_forgiven():
    torch.manual_seed(0)
    x = torch.rand(2, 1, 16, 16)
    y = x.clone()
    y[..., 4:8, 4:8] = 1 - x[..., 4:8, 4:8]
    plain = correlation_loss(x, y)
    for c in (0.1, 1.0, 3.0):
        torch.testing.assert_close(correlation_loss(x, y, weight=torch.full((2, 1, 16, 16), c)), plain)
    weight = torch.ones(2, 1, 16, 16)
    weight[..., 4:8, 4:8] = 0
    assert correlation_loss(x, y, weight=weight) < 0.5 * plain


def test_local_correlation_does_not_mind_a_coil_field():
    torch.manual_seed(0)
    x = torch.rand(1, 1, 24, 24)
    field = torch.linspace(0.5, 2, 24)[:, None]
    assert local_correlation_loss(x, x * field, window=5) < 0.1 < correlation_loss(x, x * field)
    assert local_correlation_loss(x, torch.rand(1, 1, 24, 24), window=5) > 0.8
    torch.testing.assert_close(local_correlation_loss(x, x * field, weight=torch.ones(1, 1, 24, 24)), local_correlation_loss(x, x * field))


def test_roughness_is_half_the_mean_squared_slope():
    flow = torch.zeros(1, 2, 6, 7)
    assert roughness(flow + 3) == 0
    flow[:, 0] = torch.arange(6.0)[:, None] * 2  # slope 2 of one component of two along one axis
    assert roughness(flow) == pytest.approx((4 / 2) / 2)


@pytest.mark.parametrize("shape", [(12, 14), (8, 9, 10)])
def test_nothing_moves_and_nothing_is_to_pay(shape):
    mask = torch.rand(1, 1, *shape)
    assert volume_preserving(torch.zeros(1, len(shape), *shape), mask, 1.0) == pytest.approx(1)


@pytest.mark.parametrize("c", [0.8, 1.25])
@pytest.mark.parametrize("shape", [(12, 14), (8, 9, 10)])
def test_a_tumour_that_grows_like_its_organ_is_kept(shape, c):
    """(b): |J| of the sampling map is 1 / scale, so it is multiplied by the organ's scale; divided, this would be c^(2d)."""
    mask = torch.rand(1, 1, *shape)
    kept = volume_preserving(scaling(shape, c), mask, c ** len(shape))
    assert kept == pytest.approx(1, abs=1e-4)
    alone = volume_preserving(scaling(shape, c), mask, 1.0)
    assert alone == pytest.approx(max(c, 1 / c) ** len(shape), rel=1e-4)
    torch.testing.assert_close(volume_preserving(scaling(shape, 1 / c), mask, 1.0), alone, rtol=1e-4, atol=0)  # either way is a change


def test_an_empty_mask_asks_for_nothing_and_extremes_are_cut():
    flow = scaling((12, 14), 0.2)
    assert volume_preserving(flow, torch.zeros(1, 1, 12, 14), 1.0) == 0
    assert volume_preserving(flow, torch.ones(1, 1, 12, 14), 1.0) == pytest.approx(3)


def test_box_means_are_of_what_is_inside():
    x = torch.arange(5.0).view(1, 1, 5, 1).expand(1, 1, 5, 5)
    torch.testing.assert_close(box_mean(x, 3)[0, 0, :, 2], torch.tensor([0.5, 1, 2, 3, 3.5]))
