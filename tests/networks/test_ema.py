"""The averaged weights: by hand over a few steps, bounded by the decay, by the start and by the length of the training."""

import pytest
import torch
from torch import nn

from vesalius.networks.ema import EMA


def averaged(decay: float, steps: list[float], total: float | None = None) -> float:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    ema = EMA(layer, decay)
    for step, value in enumerate(steps):
        nn.init.constant_(layer.weight, value)
        ema.update(layer, step, *(() if total is None else (total,)))
    return ema.average.weight.item()


def test_the_first_steps_count_more():
    first = 0.9 * 1.0  # 1 - 1/10
    assert averaged(0.99, [1.0]) == pytest.approx(first)
    assert averaged(0.99, [1.0, 0.0]) == pytest.approx(first * 2 / 11)
    assert averaged(0.05, [1.0]) == pytest.approx(0.95)


def test_a_short_training_forgets_sooner():
    long, short = averaged(0.99, [1.0] + [0.0] * 99, 1e6), averaged(0.99, [1.0] + [0.0] * 99, 100)
    assert 0 < short < long
    assert averaged(0.99, [1.0, 0.5], 20) == pytest.approx(0.5)


def test_the_average_takes_no_gradient():
    ema = EMA(nn.Linear(2, 1))
    assert not any(p.requires_grad for p in ema.average.parameters()) and not ema(torch.zeros(1, 2)).requires_grad
