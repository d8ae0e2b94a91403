"""Polygons from label tiles: areas, tilings, holes and corners."""

import numpy as np
import pytest
from scipy import ndimage

from vesalius.core.errors import DataError
from vesalius.core.geometry import Geometry
from vesalius.ops.polygons import annotations, polygons
from vesalius.ops.raster import fill

MM2 = 2.0 * 3.0


def blobs(seed: int = 0, shape=(61, 47)) -> np.ndarray:
    x = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return (x > 0.04).astype(int) + (x > 0.12)


def tiles(labels: np.ndarray, side: int):
    for i in range(0, labels.shape[0], side):
        for j in range(0, labels.shape[1], side):
            yield (i, j), labels[i : i + side, j : j + side]


def key(found):
    """Polygons as sets of corners, whatever their first corner."""
    return sorted((p.label, tuple(sorted(tuple(sorted(map(tuple, np.round(r, 6)))) for r in p.rings))) for p in found)


@pytest.mark.parametrize("side", [7, 16, 100])
def test_areas_regions_and_tilings(side):
    labels = blobs()
    grid = Geometry.of(labels.shape, (2.0, 3.0))
    found = polygons(tiles(labels, side), grid)
    for k in (1, 2):
        mine = [p for p in found if p.label == k]
        assert sum(p.area for p in mine) == pytest.approx((labels == k).sum() * MM2)
        assert len(mine) == ndimage.label(labels == k)[1]
    assert key(found) == key(polygons([((0, 0), labels)], grid))


def test_filled_rings_are_the_regions():
    """Outline minus holes, rasterised by another routine, is the label again."""
    labels = blobs(3)
    grid = Geometry.of(labels.shape, (2.0, 3.0), origin=(-5, 4))
    for k in (1, 2):
        mask = np.zeros(labels.shape, bool)
        for p in (p for p in polygons(tiles(labels, 13), grid) if p.label == k):
            outline, *holes = (fill(r, grid) for r in p.rings)
            mask |= outline & ~np.logical_or.reduce([np.zeros_like(mask), *holes])
        assert np.array_equal(mask, labels == k)


def test_hole_belongs_to_the_innermost_outline():
    labels = np.zeros((15, 15), int)
    labels[1:14, 1:14] = 1
    labels[3:12, 3:12] = 0
    labels[5:10, 5:10] = 1
    labels[7, 7] = 0
    found = polygons(tiles(labels, 4), Geometry.of((15, 15)))
    assert sorted((len(p.rings), p.area) for p in found) == [(2, 24.0), (2, 169.0 - 81.0)]


def test_regions_touching_at_a_corner_stay_apart():
    found = polygons(tiles(np.eye(4, dtype=int), 2), Geometry.of((4, 4)))
    assert [p.area for p in found] == [1.0] * 4 and all(len(p.rings) == 1 and len(p.rings[0]) == 4 for p in found)


def test_nothing_and_beyond():
    grid = Geometry.of((8, 8))
    assert polygons([], grid) == [] and polygons([((0, 0), np.zeros((8, 8), int))], grid) == []
    with pytest.raises(DataError, match="does not lie in the image"):
        polygons([((4, 4), np.ones((8, 8), int))], grid)


def test_annotations_name_objects_and_classes():
    label = np.array([[1, 1, 0, 2], [0, 0, 0, 2], [1, 1, 0, 0]])
    ids = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
    grid = Geometry.of(label.shape)
    found, names = annotations(label, grid, ("background", "tissue", "pen"), ids)
    assert sorted((names[p.label], p.area) for p in found) == [("pen", 2.0), ("tissue/tissue 1", 2.0), ("tissue/tissue 1", 2.0)]
    found, names = annotations(label, grid, ("background", "tissue", "pen"))
    assert sorted({names[p.label] for p in found}) == ["pen", "tissue"]
