"""Whole-slide tiles: every pixel once, the same answer as the whole, glass passed over, lazily read."""

import numpy as np
import pytest
import torch

from vesalius.core.case import Image
from vesalius.core.errors import GeometryError, RunError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.lazy import Lazy
from vesalius.inferers.tiles import Tiles, stained


def picture(shape=(203, 157), seed: int = 0) -> Image:
    data = np.random.default_rng(seed).random((3, *shape), dtype=np.float32)
    return Image(data, Geometry.of(shape, 0.008))


def lazily(image: Image, asked: list | None = None) -> Image:
    """The same image, read through ``Lazy``; the sizes of what is asked for are noted."""

    def read(grid: Geometry) -> np.ndarray:
        if asked is not None:
            asked.append(grid.shape)
        return image.on(grid, antialias=True).data

    return Image(Lazy(read, image.geometry, 3, np.dtype(np.float32)), image.geometry)


def blur(x: torch.Tensor) -> torch.Tensor:
    """Sees 4 pixels around each."""
    return torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, (4, 4, 4, 4), value=1.0), 9, 1)[:, :2]


def assembled(tiles, shape, k=2) -> np.ndarray:
    out, seen = np.full((k, *shape), np.nan), np.zeros(shape, int)
    for tile in tiles:
        out[(slice(None), *tile.at)] = tile.maps["logits"]
        seen[tile.at] += 1
    assert seen.max() == 1
    return out


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("lazy", [False, True])
def test_tiles_with_context_are_the_whole(batch, lazy):
    image = picture()
    whole = blur(torch.from_numpy(image.data)[None])[0].numpy()
    got = assembled(Tiles(64, 6, multiple=8, batch=batch, fill=1.0)(blur, lazily(image) if lazy else image), image.geometry.shape)
    np.testing.assert_allclose(got, whole, atol=1e-5)


def test_an_image_that_fits_is_one_window_of_the_multiple():
    seen = []
    image = picture((50, 90))

    def forward(x):
        seen.append(tuple(x.shape))
        return {"logits": x[:, :1], "way": x[:, :2]}

    (tile,) = Tiles(512, 64, multiple=32, fill=1.0)(forward, image)
    assert seen == [(1, 3, 64, 96)] and tile.maps["way"].shape == (2, 50, 90)
    assert np.array_equal(tile.maps["logits"][0], image.data[0])


def test_memory_is_one_batch_of_windows():
    asked: list = []
    image = picture((500, 400))
    for _ in Tiles(64, 8)(blur, lazily(image, asked)):
        pass
    assert max(max(s) for s in asked) <= 64


def test_gate_passes_over_glass_and_nothing_else():
    data = np.full((3, 400, 300), 0.95, np.float32)
    data[:, 60:90, 40:75] = 0.5
    data[1, 350, 290] = 0.0  # a speck of one pixel
    image = Image(data, Geometry.of((400, 300), 0.008))
    done = []
    tiles = list(Tiles(64, 8, gate=stained)(blur, image, progress=lambda n, of: done.append((n, of))))
    looked = np.zeros((400, 300), bool)
    for tile in tiles:
        looked[tile.at] = True
    assert looked[60:90, 40:75].all() and looked[350, 290] and looked.mean() < 0.2
    assert sum(n for n, _ in done) == len(tiles) == done[0][1]
    assert list(Tiles(64, 8, gate=stained)(blur, Image(np.full((3, 99, 99), 0.9, np.float32), Geometry.of((99, 99))))) == []


def test_bad_input():
    with pytest.raises(UsageError, match="two margins"):
        Tiles(64, 32)
    with pytest.raises(GeometryError, match="2D"):
        Tiles(64, 8).places(Image(np.zeros((1, 8, 8, 8), np.float32), Geometry.of((8, 8, 8))))
    with pytest.raises(RunError, match="not as large as the window"):
        list(Tiles(64, 8)(lambda x: x[..., ::2], picture()))
