"""LARC bounds what plain SGD would do."""

import torch
from torch import nn

from vesalius.networks.larc import larc


def test_larc_bounds_the_step_by_the_size_of_the_weights():
    w, b = nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.tensor([3.0, 4.0]))
    steps = larc(torch.optim.SGD([w, b], lr=0.1), decay=0.0)
    w.grad, b.grad = torch.tensor([1000.0, 0.0]), torch.tensor([1e-3, 0.0])
    steps.step()
    torch.testing.assert_close(w.detach(), torch.tensor([3.0 - 0.001 * 5, 4.0]))  # 0.1 x 1000 would have been far
    torch.testing.assert_close(b.detach(), torch.tensor([3.0 - 0.1 * 1e-3, 4.0]))  # small gradients step as in SGD
