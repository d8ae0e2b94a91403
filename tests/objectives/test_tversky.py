"""Tversky's index: what its weights weigh, and a class that nobody sees."""

import pytest
import torch

from vesalius.objectives.tversky import tversky_index


def some():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 2, 3, 4, 4, 4, generator=generator)


def test_swapped_weights_mirror_it():
    """False alarms of p on y are misses of y on p."""
    p, y = some()
    here, there = dict(fp=0.3, fn=0.7, smooth=1.0), dict(fp=0.7, fn=0.3, smooth=1.0)
    torch.testing.assert_close(tversky_index(p, y, **here), tversky_index(y, p, **there))
    assert not torch.allclose(tversky_index(p, y, **here), tversky_index(p, y, **there))


def test_a_weight_of_nothing_is_as_if_cut_away():
    p, y = some()
    on = torch.zeros(2, 1, 4, 4, 4)
    on[..., :2] = 1
    how = dict(fp=0.3, fn=0.7, smooth=0.5)
    torch.testing.assert_close(tversky_index(p, y, weight=on, **how), tversky_index(p[..., :2], y[..., :2], **how))


@pytest.mark.parametrize(("right", "smooth", "index"), [(True, 1.0, 1.0), (False, 1.0, 0.0), (False, 0.0, 0.0)])
def test_what_nobody_sees(right, smooth, index):
    nothing = torch.zeros(1, 2, 4, 4)
    assert tversky_index(nothing, nothing, fp=0.5, fn=0.5, smooth=smooth, absent_is_right=right).tolist() == [index, index]
