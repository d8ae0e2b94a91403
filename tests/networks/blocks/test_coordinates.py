"""Eight numbers for a box and a cell: known values and laws; what is cut out of an image."""

import pytest
import torch

from vesalius.networks.blocks.coordinates import CHANNELS, box_coordinates, coordinate_map, cut


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 2)])
def test_the_map_of_cells(size):
    h, w = size
    map_ = coordinate_map(h, w)
    assert map_.shape == (CHANNELS, h, w)
    xmin, ymin, xmax, ymax, x, y, dx, dy = map_
    assert torch.allclose(xmin[0], 2 * torch.arange(w) / w - 1) and torch.allclose(ymin[:, 0], 2 * torch.arange(h) / h - 1)
    for a in (xmin, xmax, x):
        assert (a.diff(dim=1) > 0).all() and (a == a[:1]).all()
    for a in (ymin, ymax, y):
        assert (a.diff(dim=0) > 0).all() and (a == a[:, :1]).all()
    assert torch.allclose(x.sum(1), torch.zeros(h), atol=1e-6) and torch.allclose(y.sum(0), torch.zeros(w), atol=1e-6)
    assert torch.allclose(xmin.sum(1), -torch.ones(h), atol=1e-6) and torch.allclose(xmax.sum(1), torch.ones(h), atol=1e-6)
    assert torch.allclose(dx, torch.tensor(1 / w)) and torch.allclose(dy, torch.tensor(1 / h))
    assert torch.equal(xmin[:, 0], -torch.ones(h)) and torch.equal(ymax[-1], torch.ones(w))


def test_a_cell_s_numbers_are_those_of_its_box():
    map_ = coordinate_map(4, 2)
    box = torch.tensor([0.0, -0.5, 1.0, 0.0])  # row 1, column 1
    assert torch.allclose(map_[:, 1, 1], box_coordinates(box))


def test_a_box_is_cut_out():
    image = torch.arange(64.0).view(1, 1, 8, 8).repeat(2, 3, 1, 1)
    image[1] += 100
    boxes = torch.tensor([[[-1.0, -1, 1, 1], [0, -1, 1, 0]], [[-1, 0, 0, 1], [-0.5, -0.5, 0.5, 0.5]]])
    parts = cut(image, boxes, 4)
    assert parts.shape == (4, 3, 4, 4)
    assert torch.allclose(parts[0], torch.nn.functional.avg_pool2d(image[0], 2), atol=1e-4)
    assert torch.allclose(parts[1], image[0, :, :4, 4:], atol=1e-4)
    assert torch.allclose(parts[2], image[1, :, 4:, :4], atol=1e-4)
    assert torch.allclose(parts[3], image[1, :, 2:6, 2:6], atol=1e-4)
