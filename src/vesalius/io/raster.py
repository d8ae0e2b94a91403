"""Two-dimensional pictures: PNG, JPEG, TIFF, BMP and PGM, as (C, rows, columns) with the samples the file holds.

Palette images are read as colours for images and as indices for labels. Grey PNGs of 1, 2 or 4 bits are stretched to 0..255 for images,
as every viewer shows them, and keep their samples for labels (``stretch`` tells the factor). EXIF orientation is applied; transparency is
left out. The files carry no spacing that could be trusted: 1 where none is given.
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np

from ..core.errors import DataError, ResourceError
from ..core.geometry import Geometry
from .arrays import spaced
from .atomic import atomic
from .kind import checked_file, sniff
from .notes import note, quiet

KINDS = ("png", "jpeg", "tiff", "bmp", "pgm")
MOST_PIXELS = 178_956_970  # 0.5 GB of RGB, Pillow's own limit of what is plausible
_STRETCH = {1: 255, 2: 85, 4: 17}
_FORMATS = {"png": "PNG", "jpeg": "JPEG", "bmp": "BMP", "pgm": "PPM"}
_LOSSY_TIFF = {6, 7, 33003, 33005, 34712, 34892, 50001, 50002, 52546}  # JPEG, JPEG 2000, WebP, lossy DNG, JPEG XL


def read(path: str | Path, *, spacing: tuple[float, ...] | None = None, label: bool = False) -> tuple[np.ndarray, Geometry]:
    """(C, rows, columns) and grid; ``label`` keeps palette indices and refuses lossy files. A TIFF of equal grey pages is a volume."""
    path = checked_file(path)
    kind = sniff(path)
    if label and kind == "jpeg":
        raise DataError(
            "a JPEG cannot be a label map: lossy compression changed its values at every edge", where=path, fix="export the mask as PNG"
        )
    pixels = _tiff(path, label) if kind == "tiff" else _pillow(path, kind, label)
    if pixels.ndim == 3 and kind == "tiff" and pixels.shape[-1] not in (3, 4):
        return pixels[None], spaced(pixels.shape, spacing, path)
    data = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    return _without_alpha(data, path), spaced(data.shape[1:], spacing, path)


def peek(path: str | Path, *, spacing: tuple[float, ...] | None = None) -> tuple[tuple[int, ...], Geometry, np.dtype]:
    """Shape (C, *spatial), grid and dtype from the header."""
    path = checked_file(path)
    kind = sniff(path)
    if kind == "tiff":
        shape, dtype = _tiff_head(path)
        shape = (1, *shape) if len(shape) == 2 or shape[-1] not in (3, 4) else (3, *shape[:2])
        return shape, spaced(shape[1:], spacing, path), dtype
    with _opened(path, kind) as image:
        columns, rows = image.size
        if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):
            rows, columns = columns, rows
        channels = 1 if image.mode in ("1", "L", "LA", "I", "I;16", "I;16B", "F") else 3
        dtype = np.dtype(np.uint16 if image.mode.startswith("I;16") else np.int32 if image.mode == "I" else np.uint8)
    return (channels, rows, columns), spaced((rows, columns), spacing, path), dtype


def _opened(path: Path, kind: str):
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=[_FORMATS[kind]])
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error)) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, struct.error) as error:
        raise DataError("the picture's header is damaged", where=path, found=str(error), fix="copy or export it again") from error
    if image.size[0] * image.size[1] > MOST_PIXELS:
        image.close()
        raise _too_large(path, f"{image.size[1]} x {image.size[0]}")
    return image


def _pillow(path: Path, kind: str, label: bool) -> np.ndarray:
    """(rows, columns) or (rows, columns, 2..4)."""
    from PIL import ImageOps

    with _opened(path, kind) as image:
        depth, colour = _png_depth(path) if kind == "png" else (8, 0)
        if depth == 16 and colour in (2, 4, 6):
            raise DataError("a PNG of 16 bits with colour or transparency", where=path, fix="export it as a 16-bit grey PNG or as TIFF")
        if image.mode in ("CMYK", "LAB", "HSV", "YCbCr"):
            raise DataError(
                f"{image.mode} colours are not supported", where=path, fix="convert the picture to RGB (ImageMagick: -colorspace sRGB)"
            )
        try:
            image = ImageOps.exif_transpose(image)
            if image.mode in ("P", "PA") and not label:
                image = image.convert("RGB")
            elif image.mode == "PA":
                image = image.getchannel(0)
            pixels = np.array(image)
        except MemoryError as error:
            raise ResourceError("not enough memory for this picture", where=path) from error
        except (OSError, SyntaxError, ValueError, struct.error) as error:
            raise DataError("the picture is damaged or truncated", where=path, found=str(error), fix="copy or export it again") from error
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * (1 if label else 255)
    elif label and kind == "png" and colour == 0 and depth in (2, 4):
        pixels = pixels // _STRETCH[depth]  # Pillow stretches them to 0..255
    return pixels if pixels.dtype.isnative else pixels.astype(pixels.dtype.newbyteorder("="))


def stretch(path: str | Path) -> int:
    """The factor between the samples of a label file and what a viewer shows: 255, 85 or 17 for grey PNGs of 1, 2 or 4 bits, else 1."""
    if sniff(path) != "png":
        return 1
    depth, colour = _png_depth(Path(path))
    return _STRETCH.get(depth, 1) if colour == 0 else 1


def _png_depth(path: Path) -> tuple[int, int]:
    """Bits a sample and colour type, from the IHDR chunk."""
    with open(path, "rb") as file:
        head = file.read(26)
    return head[24], head[25]


def _tiff_head(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    with _opened_tiff(path) as tiff:
        series = tiff.series[0]
        return tuple(series.shape), np.dtype(series.dtype).newbyteorder("=")


def _opened_tiff(path: Path):
    import tifffile

    try:
        with quiet("tifffile"):
            tiff = tifffile.TiffFile(path)
            series = tiff.series
    except Exception as error:  # tifffile raises many kinds on damaged directories
        raise DataError("the TIFF's directory is damaged", where=path, found=str(error), fix="copy or export it again") from error
    if not series or series[0].dtype is None:
        tiff.close()
        raise DataError("no picture in this TIFF", where=path)
    if series[0].size > 3 * MOST_PIXELS:
        tiff.close()
        raise _too_large(path, " x ".join(map(str, series[0].shape)))
    return tiff


def _tiff(path: Path, label: bool) -> np.ndarray:
    with _opened_tiff(path) as tiff:
        series, page = tiff.series[0], tiff.series[0].keyframe
        if label and int(page.compression) in _LOSSY_TIFF:
            raise DataError(
                "a TIFF with lossy compression cannot be a label map", where=path, found=page.compression.name, fix="export it as PNG"
            )
        if page.photometric.name in ("SEPARATED", "CIELAB"):
            raise DataError(f"{page.photometric.name} colours are not supported", where=path, fix="convert the picture to RGB")
        if series.ndim not in (2, 3):
            raise DataError(
                "a TIFF of more than three dimensions", where=path, found=f"{series.axes} {series.shape}", fix="export one channel or time"
            )
        try:
            with quiet("tifffile"):
                pixels = series.asarray()
        except MemoryError as error:
            raise ResourceError("not enough memory for this picture", where=path) from error
        except Exception as error:
            if "imagecodecs" not in str(error):
                raise DataError("the TIFF is damaged or truncated", where=path, found=str(error), fix="copy or export it again") from error
            pixels = _tiff_by_pillow(path, page)
        if series.axes in ("SYX", "CYX") and page.samplesperpixel in (3, 4):
            pixels = np.moveaxis(pixels, 0, -1)
        if page.photometric.name == "PALETTE" and not label and page.colormap is not None:
            pixels = (np.moveaxis(page.colormap, 0, -1)[pixels] >> 8).astype(np.uint8)
        if page.photometric.name == "MINISWHITE" and not label:
            pixels = (pixels.max() if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max) - pixels
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    return pixels if pixels.dtype.isnative else pixels.astype(pixels.dtype.newbyteorder("="))


def _tiff_by_pillow(path: Path, page) -> np.ndarray:
    """LZW and JPEG pages, which tifffile decodes only with imagecodecs; Pillow does for up to 8 bits, and grey of 16."""
    bits = page.bitspersample
    fix = "install imagecodecs, or export it as PNG"
    if len(page.parent.series[0].pages) != 1 or bits > 16 or bits > 8 and page.samplesperpixel > 1:
        raise DataError(f"TIFF compression {page.compression.name} is not supported here", where=path, fix=fix)
    from PIL import Image

    try:
        with Image.open(path, formats=["TIFF"]) as image:
            return np.array(image)
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise DataError("the TIFF cannot be decoded", where=path, found=str(error), fix=fix) from error


def _without_alpha(data: np.ndarray, path: Path) -> np.ndarray:
    if len(data) not in (2, 4):
        return data
    if data[-1].min() != data[-1].max():
        note("the picture's transparency was left out", path)
    return data[:-1]


def _too_large(path: Path, found: str) -> DataError:
    return DataError(
        "the picture is implausibly large",
        where=path,
        found=found,
        allowed=f"{MOST_PIXELS} pixels",
        fix="read it as a slide, or cut it into tiles",
    )


# ----------------------------------------------------------------------------------------------------------------------------- writing
def write(path: str | Path, data: np.ndarray, geometry: Geometry, *, names: dict[int, str] | None = None) -> None:
    """(C, rows, columns) as .png (uint8 with 1 or 3 channels, uint16 with 1) or .tif (any number type, any channels). No spacing."""
    path = Path(path)
    if geometry.ndim != 2:
        raise DataError(
            "a picture file holds 2D images", where=path, found=geometry.describe(), fix="write volumes as .nii.gz, .mha, .nrrd or .npz"
        )
    data = data.astype(np.uint8) if data.dtype == bool else data
    text = "; ".join(f"{value}={name}" for value, name in (names or {}).items())
    if path.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        colour = len(data) == 3 and data.dtype in (np.uint8, np.uint16)
        pixels = np.moveaxis(data, 0, -1) if colour else (data[0] if len(data) == 1 else data)
        options = {"photometric": "rgb" if colour else "minisblack", "compression": "deflate", "metadata": None, "software": False}
        with atomic(path) as temporary:
            tifffile.imwrite(temporary, np.ascontiguousarray(pixels), description=text or None, **options)
        return
    if not (data.dtype == np.uint8 and len(data) in (1, 3) or data.dtype == np.uint16 and len(data) == 1):
        found, allowed = f"{len(data)} channels of {data.dtype}", "uint8 with 1 or 3 channels, uint16 with 1"
        raise DataError("PNG cannot hold this image", where=path, found=found, allowed=allowed, fix="write it as .tif or .npz")
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if text:
        info.add_itxt("labels", text)
    with atomic(path) as temporary:
        pixels = np.ascontiguousarray(data[0] if len(data) == 1 else np.moveaxis(data, 0, -1))
        Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=info)
