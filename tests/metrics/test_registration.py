import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.core.errors import GeometryError
from vesalius.core.geometry import Geometry
from vesalius.metrics import registration as reg

from ..ops.test_jacobian import affine_field, oblique, world


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 3000), st.sampled_from([2, 3]))
def test_affine_maps_on_oblique_grids(seed, d):
    rng = np.random.default_rng(seed)
    g = oblique(seed, d)
    m, shift = np.eye(d) + rng.normal(0, 0.05, (d, d)), rng.normal(0, 1, d)
    u, size = affine_field(g, m, shift), np.linalg.det(m)
    structure = rng.random(g.shape) < 0.3
    structure.flat[0] = True
    assert reg.volume_change(u, g, structure) == pytest.approx(size - 1, abs=1e-9)
    assert reg.log_jacobian_sd(u, g) == pytest.approx(0, abs=1e-9) and reg.folding(u, g) == 0
    points = g.to_world(rng.uniform(0, 1, (5, d)) * (np.array(g.shape) - 1))
    assert reg.tre(reg.moved(points, u, g), points @ m.T + shift) == pytest.approx(0, abs=1e-8)
    # the inverse affine map, on another oblique grid that holds everything
    wide = Geometry.of([25] * d, 4.0, g.to_world(np.array(g.shape) / 2) - 48, np.eye(d))
    back = affine_field(wide, np.linalg.inv(m), -np.linalg.inv(m) @ shift)
    assert reg.inverse_consistency(u, g, back, wide) == pytest.approx(0, abs=1e-7)
    assert reg.inverse_consistency(u, g, np.zeros_like(back), wide) == pytest.approx(np.linalg.norm(u, axis=0).mean())


def test_folding_by_hand():
    g = Geometry.of((6, 5), (2.0, 1.0))
    u = np.zeros((2, 6, 5))
    u[0, 3:] = -6.0  # the rows from 3 on jump back over three rows: slope -6/(2*2) at rows 2 and 3
    share = 2 / 6
    assert reg.folding(u, g) == pytest.approx(share)
    roi = np.zeros(g.shape, bool)
    roi[2] = True
    assert reg.folding(u, g, roi=roi) == 1 and reg.log_jacobian_sd(u, g, roi=roi) is None
    assert reg.log_jacobian_sd(u, g) == 0  # folded voxels have no logarithm
    empty = np.zeros(g.shape, bool)
    assert reg.folding(u, g, roi=empty) is None is reg.volume_change(u, g, empty)
    assert (
        reg.folding(-2 * world(g), g) == 0 and reg.folding(np.stack([-2 * world(g)[0], u[1]]), g) == 1
    )  # a mirror folds, a half turn does not


def test_log_jacobian_sd_by_hand():
    g = Geometry.of((9, 4), 1.0)
    x = world(g)[0]
    u = np.stack([np.where(x < 4, 0, x - 4), 0 * x])  # |J|: 1, 1.5 at the kink, 2
    j = np.repeat([1.0] * 4 + [1.5] + [2.0] * 4, 4)
    assert reg.log_jacobian_sd(u, g) == pytest.approx(np.log(j).std())
    assert reg.volume_change(u, g, x > 4) == pytest.approx(1.0)


def test_the_volume_change_is_that_of_the_moving_structure():
    """A ball scaled about its centre: counted voxels of the moving mask agree with the Jacobian."""
    g = Geometry.of((40, 40, 40), (1.0, 0.9, 1.1), origin=(-20, -18, -22))
    r = np.sqrt((world(g) ** 2).sum(0))
    u = 0.2 * world(g)
    counted = np.count_nonzero(r < 10 * 1.2) / np.count_nonzero(r < 10) - 1
    assert reg.volume_change(u, g, r < 10) == pytest.approx(1.2**3 - 1)
    assert reg.volume_change(u, g, r < 10) == pytest.approx(counted, abs=0.02)


def test_tre():
    fixed, target = np.array([[0.0, 0], [3, 4]]), np.array([[0.0, 1], [3, 7]])
    assert reg.tre(fixed, target) == 2
    g = Geometry.of((5, 5), 1.0)
    u = np.zeros((2, 5, 5))
    u[1] = 1
    assert reg.tre(reg.moved(fixed, u, g), target) == 1
    assert reg.tre(reg.moved(np.array([[9.0, 0], [3, 4]]), u, g), target) == 2  # the first point lies outside the field
    assert reg.tre(reg.moved(np.array([[9.0, 0]]), u, g), target[:1]) is None


def test_inverse_error_outside_and_bad_input():
    g = Geometry.of((4, 4), 1.0)
    away = np.full((2, 4, 4), 50.0)
    assert np.isnan(reg.inverse_error(away, g, 0 * away, g)).all() and reg.inverse_consistency(away, g, 0 * away, g) is None
    u = np.zeros((2, 4, 4))
    u[0] = 2.0
    e = reg.inverse_error(u, g, 0 * u, g)
    assert np.isnan(e[2:]).all() and (e[:2] == 2).all()
    with pytest.raises(GeometryError, match="boolean mask"):
        reg.folding(u, g, roi=np.ones((4, 4)))
    with pytest.raises(GeometryError, match="boolean mask"):
        reg.volume_change(u, g, np.ones((3, 4), bool))
    with pytest.raises(GeometryError, match="dimension"):
        reg.inverse_error(u, g, np.zeros((3, 4, 4, 4)), Geometry.of((4, 4, 4)))
