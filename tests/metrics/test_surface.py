import numpy as np
import pytest

from vesalius.core.errors import GeometryError, UsageError
from vesalius.metrics import surface
from vesalius.metrics.surface import assd, element_sizes, hd, hd95, hd_percentile, masd, nsd, surfaces

from . import judge

SPACINGS = [(1, 1, 1), (1, 1.37, 2.23), (0.5, 0.7, 3), (0.01, 5, 1)]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_derived_tables_equal_the_published_ones(spacing):
    spacing = tuple(map(float, spacing))
    np.testing.assert_allclose(element_sizes(spacing), judge.tables.create_table_neighbour_code_to_surface_area(spacing), atol=1e-12)
    flat = spacing[:2]
    np.testing.assert_allclose(element_sizes(flat), judge.tables.create_table_neighbour_code_to_contour_length(flat), atol=1e-12)


def _random_pair(rng, n):
    d = 2 if n % 3 == 0 else 3
    shape = tuple(rng.integers(1, 9, d))
    density = rng.random(2) ** rng.integers(1, 4)
    spacing = rng.choice([0.5, 1, 2, 3], d) if n % 2 else rng.uniform(0.3, 4, d)
    return rng.random(shape) < density[0], rng.random(shape) < density[1], tuple(spacing.tolist())


def test_equals_surface_distance_on_random_masks():
    rng, compared = np.random.default_rng(1), 0
    for n in range(2500):
        p, r, spacing = _random_pair(rng, n)
        s, tolerance = surfaces(p, r, spacing), float(rng.choice([0, 0.5, 1, 2.3]))
        if not (p.any() and r.any()):
            assert hd(s) is hd95(s) is assd(s) is masd(s) is nsd(s) is None
            continue
        found = {"hd": hd(s), "hd95": hd95(s), "assd": assd(s), "masd": masd(s), "nsd": nsd(s, tolerance)}
        assert found == pytest.approx(judge.surface_metrics(p, r, spacing, tolerance), abs=1e-9), (n, p.shape, spacing)
        compared += 1
    assert compared > 1500


def _ball(shape, centre, radius, spacing):
    at = np.indices(shape, float)
    return sum(((a - c) * s) ** 2 for a, c, s in zip(at, centre, spacing, strict=True)) <= radius**2


DEGENERATE = {
    "one voxel each": (np.eye(5, dtype=bool)[:1], np.eye(5, dtype=bool)[4:].copy()),
    "one voxel image": (np.ones((1, 1, 1), bool), np.ones((1, 1, 1), bool)),
    "the whole image": (np.ones((4, 5, 6), bool), np.ones((4, 5, 6), bool)),
    "one slice": (np.ones((1, 7, 8), bool), np.pad(np.ones((1, 5, 5), bool), ((0, 0), (1, 1), (1, 2)))),
    "opposite corners": (np.pad(np.ones((2, 2, 2), bool), (0, 20)), np.pad(np.ones((2, 2, 2), bool), (20, 0))),
    "touching the border": (_ball((20, 20, 20), (0, 10, 19), 8, (1, 1, 1)), _ball((20, 20, 20), (2, 9, 17), 9, (1, 1, 1))),
    "balls": (_ball((30, 28, 20), (14, 13, 9), 9, (1, 1, 2)), _ball((30, 28, 20), (16, 13, 10), 10, (1, 1, 2))),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_equals_surface_distance_on_degenerate_masks(name):
    p, r = DEGENERATE[name]
    spacing = (1.0, 0.8, 2.5)[: p.ndim]
    s = surfaces(p, r, spacing)
    found = {"hd": hd(s), "hd95": hd95(s), "assd": assd(s), "masd": masd(s), "nsd": nsd(s, 1.0)}
    assert found == pytest.approx(judge.surface_metrics(p, r, spacing, 1.0), abs=1e-9)


def test_equal_masks_and_a_known_shift():
    cube = np.pad(np.ones((6, 6, 6), bool), 5)
    same = surfaces(cube, cube, (1, 1, 2))
    assert (hd(same), hd95(same), assd(same), masd(same), nsd(same, 0.0)) == (0, 0, 0, 0, 1)
    moved = surfaces(np.roll(cube, 2, axis=2), cube, (1, 1, 2))
    assert hd(moved) == hd95(moved) == 4.0  # two voxels of 2 mm
    assert hd_percentile(moved, 100) == 4.0


def test_symmetry_scale_and_axis_order():
    p, r = DEGENERATE["balls"]
    one, swapped = surfaces(p, r, (1, 1, 2)), surfaces(r, p, (1, 1, 2))
    large = surfaces(p, r, (3, 3, 6))
    turned = surfaces(p.transpose(2, 0, 1), r.transpose(2, 0, 1), (2, 1, 1))
    for f in (hd, hd95, assd, masd):
        assert f(one) == pytest.approx(f(swapped)) == pytest.approx(f(large) / 3) == pytest.approx(f(turned))
    values = [nsd(one, t) for t in (0, 0.5, 1, 2, 4, 50)]
    assert values == sorted(values) and values[-1] == 1.0


def test_the_surface_of_a_ball_has_about_its_area():
    s = surfaces(ball := _ball((50, 50, 50), (24, 24, 24), 20, (1, 1, 1)), ball, (1, 1, 1))
    assert s.size_prediction.sum() == pytest.approx(4 * np.pi * 20**2, rel=0.1)


def test_the_distance_equals_brute_force():
    rng = np.random.default_rng(5)
    spacing = np.array([0.7, 1.9, 1.1])
    for _ in range(30):
        at, border = rng.random((2, *rng.integers(1, 12, 3))) < rng.random((2, 1, 1, 1)) ** 3
        border.flat[0] = at.flat[-1] = True
        gaps = (np.argwhere(at)[:, None] - np.argwhere(border)[None]) * spacing
        expected = np.sqrt((gaps**2).sum(-1)).min(1)
        np.testing.assert_allclose(surface._nearest(np.flatnonzero(at), border, tuple(spacing)), expected, rtol=1e-13)


def test_bad_input_is_refused():
    cube = np.ones((2, 2, 2), bool)
    for spacing in [(1, 1), (1, 1, 0), (1, 1, np.nan)]:
        with pytest.raises(GeometryError):
            surfaces(cube, cube, spacing)
    with pytest.raises(GeometryError):
        surfaces(cube[0, 0], cube[0, 0], (1,))
    with pytest.raises(UsageError):
        nsd(surfaces(cube, cube, (1, 1, 1)), -1)
    with pytest.raises(UsageError):
        hd_percentile(surfaces(cube, cube, (1, 1, 1)), 0)
