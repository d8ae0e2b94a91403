"""Slides: a real Aperio file, pyramids of our own, damaged ones; lazy reading; GeoJSON."""

import json
from pathlib import Path

import numpy as np
import pytest

from vesalius.core.errors import DataError, ResourceError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.io.wsi import Slide, is_slide, write_geojson, write_pyramid
from vesalius.ops.polygons import polygons

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "2d" / "wsi_cmu" / "cmu_small_region.svs"
MM = 0.0005


def paint(grid: Geometry) -> np.ndarray:
    """Smooth colours of the world's coordinates: the same picture at any level."""
    r, c = (grid.origin[a] + grid.spacing[a] * np.arange(n) for a, n in enumerate(grid.shape))
    wave = 128 + 100 * np.sin(2 * np.pi * r / 0.1)[:, None] * np.cos(2 * np.pi * c / 0.13)[None]
    return np.stack([wave, 255 - wave, np.broadcast_to(200.0, wave.shape)]).astype(np.uint8)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("wsi") / "pyramid.tif"
    done = []
    write_pyramid(path, paint, Geometry.of((900, 700), MM), factors=(1, 4), tile=256, progress=done.append)
    assert sum(done) == 4 * 3 + 1
    return path


class TestPyramid:
    def test_levels_and_spacing(self, pyramid):
        with Slide(pyramid) as slide:
            assert [g.shape for g in slide.levels] == [(900, 700), (225, 175)]
            assert slide.mpp == pytest.approx((0.5, 0.5)) and slide.geometry.spacing == pytest.approx((MM, MM))
            assert slide.levels[1].spacing == pytest.approx((4 * MM, 4 * MM))
            corners = [g.to_world(np.array([-0.5, -0.5])) for g in slide.levels]
            np.testing.assert_allclose(*corners, atol=1e-12)
        assert is_slide(pyramid)

    def test_regions(self, pyramid):
        with Slide(pyramid) as slide:
            for level, grid in enumerate(slide.levels):
                whole = slide.read((0, 0), grid.shape, level)
                assert np.abs(whole.astype(int) - paint(grid)).mean() < 3
                part = slide.read((50, 30), (190, 170), level)
                assert np.array_equal(part, whole[:, 50:190, 30:170])
            beyond = slide.read((-10, 690), (20, 720))
            assert beyond.shape == (3, 30, 30) and (beyond[:, :10] == 255).all() and (beyond[:, :, 10:] == 255).all()
            with pytest.raises(UsageError, match="no level 2"):
                slide.read((0, 0), (1, 1), 2)

    @pytest.mark.parametrize("factor", [1.0, 2.0, 3.7, 4.0, 9.0])
    def test_any_grid(self, pyramid, factor):
        """What is read on another grid is the picture painted there, its border included; level and memory bands do not show."""
        with Slide(pyramid) as slide:
            assert slide.level_for((factor * MM,) * 2) == (1 if factor >= 4 else 0)
            grid = slide.geometry.with_spacing((factor * MM,) * 2)
            inside = grid.cropped((3, 5), (60, 50))
            whole = slide.on(grid)
            assert np.abs(whole.astype(int) - paint(grid))[:, 1:-1, 1:-1].mean() < 4
            assert np.abs(slide.on(inside).astype(int) - whole[:, 3:60, 5:50]).max() <= (1 if factor in (1, 2, 4) else 40)

    def test_bands_do_not_show(self, pyramid, monkeypatch):
        import vesalius.io.wsi as wsi

        with Slide(pyramid) as slide:
            grid = slide.geometry.with_spacing((2 * MM,) * 2)
            whole = slide.on(grid)
            monkeypatch.setattr(wsi, "_BAND", 10 * 3 * 2 * 1500)
            assert np.array_equal(slide.on(grid), whole)

    def test_lazy_image(self, pyramid, monkeypatch):
        import vesalius.core.lazy as lazy

        with Slide(pyramid) as slide:
            image = slide.image()
            monkeypatch.setattr(slide, "read", lambda *a: pytest.fail("read too early"))
            coarse = image.source.on(slide.levels[1])
            monkeypatch.undo()
            assert np.array_equal(coarse(), slide.read((0, 0), slide.levels[1].shape, 1))
            assert coarse.then(lambda x: x / 255)().max() <= 1
            monkeypatch.setattr(lazy, "MOST", 1000)
            with pytest.raises(ResourceError, match="not read whole"):
                _ = image.data

    def test_corrupt_tile_is_one_clear_error(self, pyramid, tmp_path):
        with Slide(pyramid) as slide:
            offset, size = slide._pages[0].dataoffsets[4], slide._pages[0].databytecounts[4]
        raw = bytearray(pyramid.read_bytes())
        raw[offset : offset + size] = bytes(size)
        bad = tmp_path / "bad.tif"
        bad.write_bytes(raw)
        with Slide(bad) as slide:
            with pytest.raises(DataError, match=r"bad.tif, level 0, tile 4: this part of the slide is damaged"):
                slide.read((0, 0), (900, 700))
            assert slide.read((0, 0), (200, 200)).shape == (3, 200, 200)  # other tiles and levels are still there
            assert slide.read((0, 0), (225, 175), 1).std() > 10

    def test_truncated_file(self, pyramid, tmp_path):
        bad = tmp_path / "short.tif"
        bad.write_bytes(pyramid.read_bytes()[: pyramid.stat().st_size // 3])
        with pytest.raises(DataError, match=r"short.tif"), Slide(bad) as slide:
            slide.read((0, 0), slide.geometry.shape)

    def test_bad_tile_side(self, tmp_path):
        with pytest.raises(UsageError, match="multiple of 16"):
            write_pyramid(tmp_path / "x.tif", paint, Geometry.of((64, 64), MM), tile=100)
        assert not (tmp_path / "x.tif").exists()


class TestOtherTiffs:
    def test_strips_deflate_and_grey(self, tmp_path):
        import tifffile

        data = np.random.default_rng(0).integers(0, 60000, (70, 50), np.uint16)
        tifffile.imwrite(tmp_path / "grey.tif", data, compression="deflate", rowsperstrip=16)
        with Slide(tmp_path / "grey.tif", spacing=(0.001, 0.001)) as slide:
            assert np.array_equal(slide.read((0, 0), (70, 50))[0], data) and slide.mpp == pytest.approx((1, 1))
        assert not is_slide(tmp_path / "grey.tif")

    def test_resolution_of_a_screen_is_not_believed(self, tmp_path):
        import tifffile

        tifffile.imwrite(tmp_path / "dpi.tif", np.zeros((32, 32, 3), np.uint8), photometric="rgb", resolution=(72, 72), resolutionunit=2)
        with pytest.warns(UserWarning, match="not believed"), Slide(tmp_path / "dpi.tif") as slide:
            assert slide.mpp is None

    def test_what_is_no_slide(self, tmp_path):
        import tifffile

        tifffile.imwrite(tmp_path / "float.tif", np.zeros((32, 32), np.float32))
        with pytest.raises(DataError, match="no slide"):
            Slide(tmp_path / "float.tif")
        (tmp_path / "text.tif").write_text("not a TIFF at all")
        assert not is_slide(tmp_path / "text.tif")
        with pytest.raises(DataError, match="directory is damaged"):
            Slide(tmp_path / "text.tif")


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_aperio():
    """The colours are those of an independent decoder's (Pillow through libtiff)."""
    from PIL import Image

    with Slide(SHARED) as slide:
        assert slide.mpp == pytest.approx((0.499, 0.499)) and [g.shape for g in slide.levels] == [(2967, 2220)]
        part = slide.read((500, 700), (900, 1100))
    with Image.open(SHARED) as picture:
        theirs = np.moveaxis(np.asarray(picture.crop((700, 500, 1100, 900)))[..., :3], -1, 0)
    assert np.abs(part.astype(int) - theirs).max() <= 2
    assert is_slide(SHARED)


def test_geojson(tmp_path):
    labels = np.zeros((20, 30), int)
    labels[4:10, 5:15] = 1
    labels[6:8, 7:9] = 0
    labels[12:16, 5:9] = 1
    coarse = Geometry.of(labels.shape, 0.004)
    fine = coarse.resized((80, 120))
    path = tmp_path / "slide.geojson"
    write_geojson(path, polygons([((0, 0), labels)], coarse), fine, {1: "tissue/section 1"}, colours={"tissue": (200, 0, 0)})
    (feature,) = json.loads(path.read_text())["features"]
    assert feature["properties"]["classification"] == {"name": "tissue", "color": [200, 0, 0]}
    assert feature["properties"]["name"] == "section 1" and feature["geometry"]["type"] == "MultiPolygon"
    outline, hole = max(feature["geometry"]["coordinates"], key=len)
    assert outline[0] == outline[-1]
    assert np.min(outline, 0).tolist() == [20, 16] and np.max(outline, 0).tolist() == [60, 40]  # x, y of level 0: 4 pixels each
    assert np.min(hole, 0).tolist() == [28, 24]
    with pytest.raises(UsageError, match="no name"):
        write_geojson(path, polygons([((0, 0), labels)], coarse), fine, {})
