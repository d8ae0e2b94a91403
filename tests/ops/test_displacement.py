"""Fields in world mm: from a network's voxels, onto other grids, and what two grids share."""

import numpy as np
import pytest

from vesalius.core.case import Image
from vesalius.core.geometry import Geometry
from vesalius.ops.displacement import in_world, on_grid, shared

TURNED = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, -1]])


def test_a_flow_of_nothing_is_the_way_between_the_two_grids():
    fixed, moving = Geometry.of((4, 5, 6), 2.0), Geometry.of((4, 5, 6), (2.0, 2, 2), origin=(100, -50, 7), direction=TURNED)
    u = in_world(np.zeros((3, 4, 5, 6)), fixed, moving)
    index = np.array([3.0, 1, 2])
    np.testing.assert_allclose(fixed.to_world(index) + u.data[:, 3, 1, 2], moving.to_world(index), atol=1e-4)
    assert not in_world(np.zeros((3, 4, 5, 6)), fixed, fixed).data.any()


@pytest.mark.parametrize("direction", [np.eye(3), np.diag([-1.0, -1, 1]), TURNED])
def test_a_voxel_to_the_right_in_the_array_goes_where_that_axis_points(direction):
    grid = Geometry.of((4, 4, 4), (1.0, 2.0, 3.0), direction=direction)
    flow = np.zeros((3, 4, 4, 4))
    flow[1] = 1
    u = in_world(flow, grid, grid)
    np.testing.assert_allclose(u.data[:, 2, 2, 2], 2.0 * direction[:, 1], atol=1e-6)


def test_a_field_keeps_its_millimetres_on_another_grid_and_goes_on_beyond_its_own():
    small = Geometry.of((5, 6, 4), 2.0, origin=(10, 20, 30))
    large = Geometry.of((9, 9, 9), 2.0, origin=(2, 14, 24), direction=np.eye(3))
    ramp = np.moveaxis(small.to_world(np.moveaxis(np.indices(small.shape), 0, -1)), -1, 0) * 0.1 + 5
    moved = on_grid(Image(ramp.astype(np.float32), small), large)
    inside = large.to_index(small.to_world([2, 3, 1])).round().astype(int)
    np.testing.assert_allclose(moved.data[(slice(None), *inside)], ramp[:, 2, 3, 1], atol=1e-4)
    np.testing.assert_allclose(moved.data[:, 0, 0, 0], ramp[:, 0, 0, 0], atol=1e-4)  # the corner's, not 0
    assert on_grid(Image(ramp, small), small).data is ramp


def test_what_two_grids_share():
    grid = Geometry.of((10, 10, 10), 1.0)
    assert shared(grid, grid) == 1.0
    assert shared(grid, Geometry.of((10, 10, 10), 1.0, origin=(20, 0, 0))) == 0.0
    assert shared(grid, Geometry.of((10, 10, 10), 1.0, origin=(5, 0, 0))) == pytest.approx(0.5)
    assert shared(grid, Geometry.of((10, 10, 10), 1.0, origin=(9, 9, 0), direction=TURNED)) > 0
