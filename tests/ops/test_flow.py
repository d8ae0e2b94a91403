"""Flows of networks: warping, composing and Jacobians with known answers, and their gradients."""

import numpy as np
import pytest
import torch

from vesalius.core.geometry import Geometry
from vesalius.ops.flow import compose, determinant, places, warp
from vesalius.ops.jacobian import jacobian


def linear(shape, matrix) -> torch.Tensor:
    """The flow of i -> matrix @ i."""
    index = places(torch.zeros(1, len(shape), *shape))
    return torch.einsum("ab,nb...->na...", torch.as_tensor(matrix, dtype=torch.float32), index) - index


@pytest.mark.parametrize("shape", [(7, 9), (5, 6, 8)])
def test_no_flow_changes_nothing_and_a_whole_step_shifts(shape):
    image = torch.rand(2, 3, *shape)
    d = len(shape)
    flow = torch.zeros(2, d, *shape)
    torch.testing.assert_close(warp(image, flow), image)
    for axis in range(d):
        step = flow.clone()
        step[:, axis] = 1
        moved = warp(image, step)
        inner, shifted = [slice(None)] * (d + 2), [slice(None)] * (d + 2)
        inner[axis + 2], shifted[axis + 2] = slice(0, -1), slice(1, None)
        torch.testing.assert_close(moved[tuple(inner)], image[tuple(shifted)])  # the voxel reads its neighbour
        last = [slice(None)] * (d + 2)
        last[axis + 2] = slice(-1, None)
        torch.testing.assert_close(moved[tuple(last)], image[tuple(last)])  # beyond the array the edge goes on


def test_a_flow_of_half_precision_still_knows_every_voxel():
    image = torch.rand(1, 1, 600, 4)
    flow = torch.zeros(1, 2, 600, 4, dtype=torch.bfloat16)  # as autocast networks give it: bfloat16 has no whole numbers beyond 256
    torch.testing.assert_close(warp(image, flow), image, atol=1e-3, rtol=0)
    torch.testing.assert_close(compose(flow, flow), flow)


def test_between_voxels_reading_is_linear_and_nearest_keeps_values():
    image = torch.arange(5.0).view(1, 1, 5, 1).expand(1, 1, 5, 4).contiguous()
    flow = torch.zeros(1, 2, 5, 4)
    flow[:, 0] = 0.25
    torch.testing.assert_close(warp(image, flow)[0, 0, :4, 0], torch.arange(4.0) + 0.25)
    assert set(warp(image, flow, mode="nearest").unique().tolist()) <= set(range(5))


@pytest.mark.parametrize("matrix", [[[1.2, 0.1], [-0.3, 0.8]], [[1.1, 0.2, 0], [0, 0.7, 0.1], [-0.2, 0, 1.3]]])
def test_the_determinant_of_a_linear_map_is_its_own(matrix):
    flow = linear((6, 7, 5)[: len(matrix)], matrix)
    torch.testing.assert_close(determinant(flow), torch.full_like(flow[:, 0], float(np.linalg.det(matrix))))


@pytest.mark.parametrize("shape", [(8, 9), (6, 7, 5)])
def test_the_determinant_is_that_of_the_numpy_jacobian(shape):
    u = np.random.default_rng(0).normal(0, 0.6, (len(shape), *shape))
    found = determinant(torch.as_tensor(u)[None])[0]
    np.testing.assert_allclose(found, jacobian(u, Geometry.of(shape)), rtol=1e-6)
    assert (found <= 0).any()  # folds, too


def test_composing_goes_by_the_first_and_from_there_by_the_second():
    a, b = [[1.05, 0.02], [0.0, 0.97]], [[0.98, -0.03], [0.04, 1.02]]
    whole = compose(linear((9, 11), a), linear((9, 11), b))
    expected = linear((9, 11), np.array(b) @ np.array(a))
    torch.testing.assert_close(whole[..., 1:-2, 1:-2], expected[..., 1:-2, 1:-2], atol=1e-4, rtol=0)
    other = compose(linear((9, 11), b), linear((9, 11), a))
    assert (other - expected)[..., 1:-2, 1:-2].abs().max() > 1e-3  # the order counts


def test_gradients_reach_flow_and_image():
    image, flow = torch.rand(1, 1, 6, 6, dtype=torch.double, requires_grad=True), torch.full((1, 2, 6, 6), 0.3, dtype=torch.double)
    flow.requires_grad_()
    assert torch.autograd.gradcheck(lambda i, f: warp(i, f)[..., 1:4, 1:4], (image, flow))
    assert torch.autograd.gradcheck(determinant, (flow,))
