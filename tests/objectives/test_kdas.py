"""KDAS's comparisons of maps: known answers, signs and symmetries."""

import math

import pytest
import torch
from torch.nn.functional import kl_div, scaled_dot_product_attention

from vesalius.objectives.kdas import attention_kl, pixel_kl, self_attended, symmetric, symmetric_guidance


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(shape or (2, 2, 6, 9), generator=torch.Generator().manual_seed(seed))


def test_a_row_becomes_a_mean_of_the_rows_like_it():
    t = maps()
    torch.testing.assert_close(self_attended(t), scaled_dot_product_attention(t, t, t))
    same = torch.ones(1, 1, 4, 5) * torch.arange(5.0)
    torch.testing.assert_close(self_attended(same), same)  # all rows alike: nothing to mix


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_the_attention_term_is_torchs_divergence_and_none_for_equal_inputs(tau):
    s, t = maps(), maps(seed=1)
    log_p, q = (s / tau).log_softmax(-1), (self_attended(t) / tau).softmax(-1)
    expected = tau**2 * kl_div(log_p, q, reduction="sum") / (2 * 2 * 6)
    torch.testing.assert_close(attention_kl(s, t, tau), expected)
    assert attention_kl(s, t, tau) > 0
    assert attention_kl(self_attended(t), t, tau).abs() < 1e-6
    assert attention_kl(self_attended(t) + maps(2, 2, 6, 1), t, tau).abs() < 1e-5  # a constant a row says nothing about places


def test_the_attention_term_teaches_the_student_alone():
    s, t = maps().requires_grad_(), maps(seed=1)
    attention_kl(s, t).backward()
    assert s.grad.abs().sum() > 0


def test_the_published_form_teaches_nothing_where_there_is_one_class():
    s, t = maps(2, 1, 6, 9).requires_grad_(), maps(2, 1, 6, 9, seed=1)
    raw = attention_kl(s, t, 2.0, raw=True)
    a = self_attended(t) / 2
    torch.testing.assert_close(raw.detach(), 4 * torch.where(a > 0, a * (a.clamp_min(1e-30).log() - 0.5), 0.0).mean())
    raw.backward()
    assert torch.isfinite(raw) and s.grad.abs().max() < 1e-7
    two = maps().requires_grad_()
    attention_kl(two, maps(seed=1), raw=True).backward()
    assert two.grad.abs().max() > 1e-4


def test_guidance_is_none_for_equal_maps_and_does_not_see_a_transposition():
    s, t = maps(2, 1, 8, 8), maps(2, 1, 8, 8, seed=1)
    assert symmetric_guidance(s, s) == 0 and symmetric_guidance(s, t) > 0
    for side in (0, 4, 3):
        both = symmetric_guidance(s.transpose(-1, -2), t.transpose(-1, -2), side)
        torch.testing.assert_close(both, symmetric_guidance(s, t, side))
        one = symmetric_guidance(s.transpose(-1, -2), t, side)  # what the term cannot see
        torch.testing.assert_close(one, symmetric_guidance(s, t, side))
    assert not torch.allclose(symmetric_guidance(s, t, 4), symmetric_guidance(s, t))


def test_symmetric_maps_are_symmetric_whatever_the_shape():
    square, wide = maps(1, 1, 6, 6), maps(1, 2, 6, 12)
    assert torch.equal(symmetric(square), square + square.mT)  # the map's own side leaves it as it is
    m = symmetric(wide)
    assert m.shape == (1, 2, 6, 6) and torch.equal(m, m.mT)
    pairs = wide.unflatten(-1, (6, 2)).mean(-1)
    torch.testing.assert_close(m, pairs + pairs.mT)


def test_pixels_are_compared_as_softened_coins():
    s, t = torch.tensor([[[[0.0]]]]), torch.tensor([[[[4.0]]]])
    q = 1 / (1 + math.exp(-2.0))
    expected = 4 * (q * math.log(q / 0.5) + (1 - q) * math.log((1 - q) / 0.5))
    assert pixel_kl(s, t, 2.0).item() == pytest.approx(expected, rel=1e-5)
    assert pixel_kl(t, t).abs() < 1e-6 and pixel_kl(maps(), maps(seed=1)) > 0
