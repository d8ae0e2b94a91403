"""PNG, JPEG, TIFF, BMP and PGM pictures: their samples, turned by EXIF, with bombs and unsupported colours refused."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image as Picture

from vesalius.core.errors import DataError
from vesalius.core.geometry import Geometry
from vesalius.io import VesaliusNote, header, read_image, sniff, write_image

RNG = np.random.default_rng(0)
GREY, COLOUR = RNG.integers(0, 256, (6, 9)).astype(np.uint8), RNG.integers(0, 256, (6, 9, 3)).astype(np.uint8)


@pytest.mark.parametrize("extension, kind", [("png", "png"), ("bmp", "bmp"), ("tif", "tiff"), ("pgm", "pgm")])
def test_grey_and_colour(tmp_path, extension, kind):
    for pixels in (GREY, COLOUR):
        if extension == "pgm" and pixels.ndim == 3:
            continue
        path = tmp_path / f"a.{extension}"
        Picture.fromarray(pixels).save(path)
        image = read_image(path, spacing=(0.5, 0.25))
        assert sniff(path) == kind and image.geometry == Geometry.of((6, 9), (0.5, 0.25))
        assert np.array_equal(image.data, pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0))
        assert header(path, spacing=(0.5, 0.25)) == (image.data.shape, image.geometry, image.data.dtype)


def test_sixteen_bits(tmp_path):
    pixels = RNG.integers(0, 65536, (6, 9)).astype(np.uint16)
    Picture.fromarray(pixels).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", pixels, byteorder=">")
    for name in ("a.png", "a.tif"):
        data = read_image(tmp_path / name).data
        assert data.dtype == np.uint16 and data.dtype.isnative and np.array_equal(data[0], pixels)


def test_exif_orientation(tmp_path):
    """A JPEG held upright (orientation 6) has its rows and columns exchanged."""
    exif = Picture.Exif()
    exif[0x0112] = 6
    Picture.fromarray(GREY).save(tmp_path / "a.jpg", exif=exif, quality=100)
    image = read_image(tmp_path / "a.jpg")
    assert image.data.shape == (1, 9, 6) == header(tmp_path / "a.jpg")[0]
    assert np.abs(image.data[0].astype(int) - np.rot90(GREY, -1)).max() <= 3


def test_palette_and_transparency(tmp_path):
    picture = Picture.fromarray(GREY % 3)
    picture.putpalette([0, 0, 0, 10, 20, 30, 200, 100, 50])
    picture.save(tmp_path / "a.png", transparency=0)
    assert read_image(tmp_path / "a.png").data[:, GREY % 3 == 2][:, 0].tolist() == [200, 100, 50]
    Picture.fromarray(np.dstack([COLOUR, GREY])).save(tmp_path / "b.png")
    with pytest.warns(VesaliusNote, match="transparency"):
        assert np.array_equal(read_image(tmp_path / "b.png").data, np.moveaxis(COLOUR, -1, 0))


def test_one_bit_is_shown_as_black_and_white(tmp_path):
    Picture.fromarray(GREY > 99).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png").data[0], (GREY > 99) * 255)


def test_cmyk_and_deep_colour_are_refused(tmp_path):
    Picture.fromarray(COLOUR).convert("CMYK").save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="CMYK.*RGB"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="16 bits"):
        read_image(_png(tmp_path / "b.png", 4, 4, 16, 2, b"\0" * 4 * 25))


def _png(path, width, height, depth, colour, rows):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def test_bombs(tmp_path):
    for side in (14000, 40000):
        with pytest.raises(DataError, match="implausibly large"):
            read_image(_png(tmp_path / "a.png", side, side, 8, 0, b"\0" * 1000))
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 4), np.uint8))
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        for name in ("ImageWidth", "ImageLength"):
            at = tiff.pages[0].tags[name].valueoffset
            content[at : at + 4] = (40000).to_bytes(4, "little")
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(DataError):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "jpg"])
def test_truncated(tmp_path, extension):
    path = tmp_path / f"a.{extension}"
    Picture.fromarray(RNG.integers(0, 256, (99, 99)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=str(path)):
        read_image(path)


def test_pages_are_a_volume(tmp_path):
    pages = RNG.integers(0, 256, (5, 6, 9)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    image = read_image(tmp_path / "a.tif", spacing=(2, 1, 1))
    assert np.array_equal(image.data[0], pages) and image.geometry.spacing == (2, 1, 1)


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg"])
def test_compressions_that_need_pillow(tmp_path, compression):
    Picture.fromarray(COLOUR).save(tmp_path / "a.tif", compression=compression)
    data = read_image(tmp_path / "a.tif").data
    assert data.shape == (3, 6, 9) and (compression == "jpeg" or np.array_equal(data, np.moveaxis(COLOUR, -1, 0)))


def test_written_pictures(tmp_path):
    geometry = Geometry.of((6, 9))
    for data in (GREY[None], np.moveaxis(COLOUR, -1, 0), GREY[None].astype(np.uint16) * 200):
        for name in ("a.png", "a.tif"):
            write_image(tmp_path / name, data, geometry)
            assert np.array_equal(read_image(tmp_path / name).data, data)
    write_image(tmp_path / "f.tif", GREY[None] / np.float32(7), geometry)
    assert np.array_equal(read_image(tmp_path / "f.tif").data, GREY[None] / np.float32(7))
    with pytest.raises(DataError, match="PNG cannot hold"):
        write_image(tmp_path / "f.png", GREY[None] / np.float32(7), geometry)
    with pytest.raises(DataError, match="spacing"):
        read_image(tmp_path / "a.png", spacing=(1, 1, 1))
