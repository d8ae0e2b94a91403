"""Geodesic distances: against Dijkstra on small grids, and the laws of a distance."""

import heapq
from itertools import product

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from vesalius.core.errors import GeometryError, UsageError
from vesalius.ops.geodesic import geodesic_distance


def dijkstra(seeds, image, spacing, weight):
    """The definition, with a heap."""
    out, d = np.full(image.shape, np.inf), image.ndim
    heap = [(0.0, tuple(i)) for i in np.argwhere(seeds)]
    for _, i in heap:
        out[i] = 0
    steps = [s for s in product((-1, 0, 1), repeat=d) if any(s)]
    while heap:
        cost, i = heapq.heappop(heap)
        if cost > out[i]:
            continue
        for s in steps:
            j = tuple(np.add(i, s))
            if all(0 <= a < n for a, n in zip(j, image.shape)):
                length = np.linalg.norm(np.multiply(s, spacing))
                new = cost + (1 - weight) * length + weight * abs(float(image[i]) - float(image[j]))
                if new < out[j]:
                    out[j] = new
                    heapq.heappush(heap, (new, j))
    return out


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "shape, spacing", [((9, 11), (1.0, 1.0)), ((8, 7), (0.5, 2.0)), ((5, 6, 7), (1.0, 1.5, 3.0)), ((1, 9), (1.0, 1.0))]
)
def test_it_is_dijkstras(shape, spacing, weight):
    rng = np.random.default_rng(sum(shape))
    for _ in range(3):
        image, seeds = 3 * rng.standard_normal(shape).astype(np.float32), rng.random(shape) < 0.05
        seeds.flat[rng.integers(seeds.size)] = True
        found = geodesic_distance(seeds, image, spacing, weight=weight)
        assert found.dtype == np.float32 and np.allclose(found, dijkstra(seeds, image, spacing, weight), atol=1e-4)


def test_a_labyrinth_needs_many_sweeps():
    """Walls of another intensity with gaps at alternating ends: the way through is long, across is dear."""
    image = np.zeros((21, 21), np.float32)
    image[1::2] = 1000
    image[1::4, -1] = image[3::4, 0] = 0
    seeds = np.zeros(image.shape, bool)
    seeds[0, 0] = True
    found = geodesic_distance(seeds, image, (1, 1))
    assert np.allclose(found, dijkstra(seeds, image, (1, 1), 0.5)) and 0.5 * 200 < found[20, 20] < 0.5 * 240


@pytest.mark.parametrize("shape, most", [((41, 41), 1.0824), ((21, 21, 21), 1.1281)])
def test_without_intensities_it_is_near_the_euclidean_distance(shape, most):
    seeds = np.zeros(shape, bool)
    seeds[tuple(n // 2 for n in shape)] = True
    image = np.random.default_rng(0).random(shape)
    found, straight = geodesic_distance(seeds, image, (1.0,) * len(shape), weight=0.0), distance_transform_edt(~seeds)
    ratio = found[~seeds] / straight[~seeds]
    assert ratio.min() > 1 - 1e-6 and ratio.max() < most


def test_a_plateau_and_a_cliff():
    """Along a line: 0.5 a step, and 0.5 x 8 more for the cliff."""
    image = np.array([[0, 0, 0, 8, 8]], np.float32)
    seeds = np.array([[1, 0, 0, 0, 0]], bool)
    assert geodesic_distance(seeds, image, (1, 1)).tolist() == [[0.0, 0.5, 1.0, 5.5, 6.0]]


def test_no_seeds_and_bad_input():
    image = np.zeros((4, 4))
    assert np.isinf(geodesic_distance(np.zeros((4, 4), bool), image, (1, 1))).all()
    with pytest.raises(GeometryError):
        geodesic_distance(np.zeros((4, 5), bool), image, (1, 1))
    with pytest.raises(GeometryError):
        geodesic_distance(np.zeros((4, 4), bool), image, (1, 1, 1))
    with pytest.raises(UsageError, match="0 to 1"):
        geodesic_distance(np.zeros((4, 4), bool), image, (1, 1), weight=1.5)
