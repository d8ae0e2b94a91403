"""Whole-slide images: tiled TIFF pyramids (Aperio .svs, generic, OME), read region by region; pyramids written tile by tile; GeoJSON.

Only the tiles that a region touches are read. JPEG tiles are decoded by Pillow, others by tifffile. What lies outside the slide, and tiles
that a scanner left out, are white. Pixel sizes come from Aperio's MPP, OME's PhysicalSize or the resolution tags; a resolution that no
microscope has (72 dpi) is not believed. World axes are (row, column) in mm, as of every picture here.
"""

from __future__ import annotations

import io
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ..core.case import Image
from ..core.errors import DataError, UsageError
from ..core.geometry import Geometry, resample
from ..core.lazy import Lazy
from ..ops.polygons import Polygon
from .arrays import spaced
from .atomic import atomic, atomic_write_json
from .kind import checked_file, sniff
from .notes import note, quiet

_JPEG = (7, 33007)
_NUMBER = r"([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)"
_MICRON = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3}
_PLAUSIBLE = (0.02, 50.0)  # micrometres a pixel
_BAND = 1 << 25  # samples of a level that are held at once while a region is reduced


class Slide:
    """An open pyramid. ``levels``: the grids of its levels, finest first, over one field of view; ``mpp``: micrometres a pixel of the
    finest (rows, columns), None where the file does not say and ``spacing`` (mm) was not given.

    Raises DataError for files that are no picture of tiles or strips with 1, 3 or 4 interleaved samples of 8 or 16 bits.
    """

    def __init__(self, path: str | Path, *, spacing: Sequence[float] | None = None):
        import tifffile

        self.path = checked_file(path)
        try:
            with quiet("tifffile"):
                self._tiff = tifffile.TiffFile(self.path)
                series = self._tiff.series[0]
                self._pages = [level.keyframe for level in series.levels]
        except Exception as error:  # tifffile raises many kinds on damaged directories
            raise DataError("the slide's directory is damaged", where=self.path, found=str(error), fix="copy or export it again") from error
        self._lock = threading.Lock()
        for k, page in enumerate(self._pages):
            self._check(k, page, series.axes)
        first = self._pages[0]
        self.dtype, self.channels = np.dtype(first.dtype).newbyteorder("="), min(3, first.samplesperpixel)
        mpp = self._mpp(first)
        self.mpp = mpp or (tuple(1000 * s for s in spacing) if spacing is not None else None)
        base = spaced(_sides(first), None if self.mpp is None else tuple(m / 1000 for m in self.mpp), self.path)
        self.levels: tuple[Geometry, ...] = tuple(base.resized(_sides(page)) for page in self._pages)

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._tiff.close()

    @property
    def geometry(self) -> Geometry:
        """The finest level's grid."""
        return self.levels[0]

    @cached_property
    def white(self) -> int:
        return int(np.iinfo(self.dtype).max)

    def image(self) -> Image:
        """The slide as a lazily read image on its finest grid; nothing is read."""
        source = Lazy(self.on, self.geometry, self.channels, self.dtype, str(self.path))
        return Image(source, self.geometry, name=str(self.path))

    # reading ---------------------------------------------------------------------------------------------------------------------------
    def read(self, low: Sequence[int], high: Sequence[int], level: int = 0) -> np.ndarray:
        """(C, rows, columns) of the pixels ``low`` (inclusive) to ``high`` (exclusive) of a level; white outside the slide.

        Raises UsageError for a level that is not there and DataError, naming level and tile, for one that cannot be decoded.
        """
        if not 0 <= level < len(self.levels):
            raise UsageError(f"the slide has no level {level}", where=self.path, allowed=f"0 to {len(self.levels) - 1}")
        page, (tall, wide) = self._pages[level], _tile(self._pages[level])
        sides = self.levels[level].shape
        out = np.full((self.channels, *(max(0, h - a) for a, h in zip(low, high, strict=True))), self.white, self.dtype)
        (top, left), (bottom, right) = (max(0, a) for a in low), (min(n, h) for n, h in zip(sides, high, strict=True))
        across = -(-sides[1] // wide)
        for i in range(top // tall, -(-bottom // tall) if bottom > top and right > left else 0):
            for j in range(left // wide, -(-right // wide)):
                tile = self._decoded(level, page, i * across + j)
                if tile is None:
                    continue
                r0, r1 = max(top, i * tall), min(bottom, i * tall + tile.shape[0])
                c0, c1 = max(left, j * wide), min(right, j * wide + tile.shape[1])
                part = tile[r0 - i * tall : r1 - i * tall, c0 - j * wide : c1 - j * wide, : self.channels]
                out[:, r0 - low[0] : r1 - low[0], c0 - low[1] : c1 - low[1]] = np.moveaxis(part, -1, 0)
        return out

    def on(self, grid: Geometry) -> np.ndarray:
        """(C, *grid.shape) on any grid along the slide's axes, from the coarsest level that is at least as fine, in bands of bounded
        memory: the mean over whole pixels, then linear interpolation where a rest remains."""
        level = self.level_for(grid.spacing)
        source = self.levels[level]
        ratio = np.asarray(grid.spacing) / np.asarray(source.spacing)
        margin = np.ceil(2 * ratio).astype(int)
        first = source.to_index(grid.to_world(np.zeros(2)))
        rows = max(1, int(_BAND / (self.channels * ratio[0] * (grid.shape[1] * ratio[1] + 2 * margin[1]))))
        out = np.empty((self.channels, *grid.shape), self.dtype)
        for start in range(0, grid.shape[0], rows):
            stop = min(grid.shape[0], start + rows)
            band = grid.cropped((start, 0), (stop, grid.shape[1]))
            low = np.floor(first + ratio * (start, 0)).astype(int) - margin
            high = np.ceil(first + ratio * (stop, grid.shape[1])).astype(int) + margin
            out[:, start:stop] = self._band(source, level, low, high, np.maximum(1, np.floor(ratio + 1e-6)).astype(int), band)
        return out

    def level_for(self, spacing: Sequence[float]) -> int:
        """The coarsest level whose pixels (mm) are no larger than ``spacing``; the finest where none is (to a hundredth)."""
        fine = [k for k, g in enumerate(self.levels) if all(a <= 1.01 * b for a, b in zip(g.spacing, spacing, strict=True))]
        return fine[-1] if fine else 0

    def _band(self, source: Geometry, level: int, low: np.ndarray, high: np.ndarray, whole: np.ndarray, grid: Geometry) -> np.ndarray:
        """One band: ``whole`` pixels of the level become one by their mean, in step with ``grid``, then the rest is interpolated."""
        corner = source.to_index(grid.to_world(np.zeros(2) - 0.5)) + 0.5  # the grid's outer edge, so that blocks fall onto its pixels
        low = np.rint(corner).astype(int) - whole * -(-(np.rint(corner).astype(int) - low) // whole)
        high = low + whole * -(-(high - low) // whole)
        data = self.read(low, high, level)
        place = source.cropped(low, high)
        if (whole > 1).any():
            h, w = ((high - low) // whole).tolist()
            data = data.reshape(self.channels, h, whole[0], w, whole[1]).mean((2, 4), dtype=np.float32)
            place = place.resized((h, w))
        moved = resample(data, place, grid, "linear", fill=self.white)
        return moved if moved.dtype == self.dtype else np.clip(np.rint(moved), 0, self.white).astype(self.dtype)

    def _decoded(self, level: int, page, index: int) -> np.ndarray | None:
        """(rows, columns, samples) of a tile; None for one that the file leaves out."""
        where = f"{self.path}, level {level}, tile {index}"
        try:
            offset, size = page.dataoffsets[index], page.databytecounts[index]
        except IndexError:
            raise _corrupt(where, "the list of tiles ends before it") from None
        if not size:
            return None
        with self._lock:
            handle = self._tiff.filehandle
            handle.seek(offset)
            raw = handle.read(size)
        if len(raw) < size:
            raise _corrupt(where, f"{len(raw)} of {size} bytes")
        try:
            if int(page.compression) in _JPEG:
                return _from_jpeg(raw, page.jpegtables, page.photometric.name == "RGB")
            with quiet("tifffile"):
                data = page.decode(raw, index, jpegtables=page.jpegtables)[0]
        except Exception as error:
            if "imagecodecs" in str(error):
                name = page.compression.name
                raise DataError(f"slides compressed by {name} need imagecodecs", where=self.path, fix="pip install imagecodecs") from error
            raise _corrupt(where, str(error) or type(error).__name__) from error
        if data is None:
            return None
        return data[0].astype(self.dtype, copy=False)

    # facts -----------------------------------------------------------------------------------------------------------------------------
    def _check(self, level: int, page, axes: str) -> None:
        where = f"{self.path}, level {level}"
        fix = "export it as a tiled RGB TIFF (bioformats2raw, vips tiffsave --tile --pyramid)"
        if page.dtype not in (np.uint8, np.uint16) or page.samplesperpixel not in (1, 3, 4) or axes not in ("YX", "YXS"):
            found = f"{page.dtype}, {page.samplesperpixel} samples, axes {axes}"
            raise DataError("this TIFF is no slide", where=where, found=found, allowed="8 or 16 bits, 1, 3 or 4 samples", fix=fix)
        if not all(_sides(page)) or not all(_tile(page)):
            raise DataError("a level of the slide is empty", where=where, found=f"{_sides(page)} pixels, tiles {_tile(page)}", fix=fix)

    def _mpp(self, page) -> tuple[float, float] | None:
        text = page.description or ""
        found: tuple[float, float] | None = None
        if hit := re.search(rf"\bMPP\s*=\s*{_NUMBER}", text):
            found = (float(hit[1]),) * 2
        elif self._tiff.ome_metadata:
            sides = []
            for axis in "YX":
                size = re.search(rf'PhysicalSize{axis}="{_NUMBER}"', self._tiff.ome_metadata)
                unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', self._tiff.ome_metadata)
                sides += [float(size[1]) * _MICRON.get(unit[1] if unit else "µm", math.nan)] if size else []
            found = tuple(sides) if len(sides) == 2 else None
        elif "XResolution" in page.tags and page.resolutionunit in (2, 3):
            micron = 25400.0 if page.resolutionunit == 2 else 10000.0
            across, down = page.resolution
            found = (micron / down, micron / across) if across and down else None
        if found is None:
            return None
        if not all(_PLAUSIBLE[0] <= m <= _PLAUSIBLE[1] for m in found):
            note(f"a pixel size of {found[0]:g} x {found[1]:g} micrometres is not believed", self.path)
            return None
        return found


def is_slide(path: str | Path) -> bool:
    """Whether a file is a slide: an Aperio file, or a tiled TIFF with further levels. What is no file or no TIFF is none."""
    import tifffile

    try:
        if sniff(path) != "tiff":
            return False
        with quiet("tifffile"), tifffile.TiffFile(path) as tiff:
            series = tiff.series[0]
            return tiff.is_svs or len(series.levels) > 1 and series.keyframe.is_tiled
    except Exception:  # too damaged to tell: its reader says what is wrong
        return False


def _sides(page) -> tuple[int, int]:
    return page.imagelength, page.imagewidth


def _tile(page) -> tuple[int, int]:
    """Rows and columns of a tile, or of a strip."""
    return (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)


def _corrupt(where: str, found: str) -> DataError:
    return DataError("this part of the slide is damaged", where=where, found=found, fix="copy or export the slide again")


def _from_jpeg(raw: bytes, tables: bytes | None, rgb: bool) -> np.ndarray:
    """An abbreviated JPEG stream with the tables of its directory; an Adobe marker says whether the samples are RGB or YCbCr."""
    from PIL import Image as Picture

    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + (b"\x00" if rgb else b"\x01")
    whole = b"\xff\xd8" + adobe + (tables[2:-2] if tables else b"") + raw[2:]
    with Picture.open(io.BytesIO(whole), formats=["JPEG"]) as picture:
        pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels


# ----------------------------------------------------------------------------------------------------------------------------- writing
def write_pyramid(
    path: str | Path,
    paint: Callable[[Geometry], np.ndarray],
    geometry: Geometry,
    *,
    factors: Sequence[int] = (1, 4, 16),
    tile: int = 512,
    effort: int = 1,
    progress: Callable[[int], object] | None = None,
) -> None:
    """A tiled, deflated (lossless) pyramid, written tile by tile: memory is one tile's whatever the size.

    ``paint(grid)`` gives (3, *grid.shape) uint8 of any grid of ``geometry``'s world (mm; the finest level); ``factors``: how much coarser
    each level is than the finest; ``effort`` of the compression, 1 to 9; ``progress(n)``: n more tiles are written. Raises UsageError for
    a side that is no multiple of 16.
    """
    import tifffile

    if tile < 16 or tile % 16 or not 1 <= effort <= 9:
        raise UsageError("a tile's side is a multiple of 16, the effort 1 to 9", where="write_pyramid", found=(tile, effort))
    micron = np.asarray(geometry.spacing) * 1000
    with atomic(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True) as file:
        for k, factor in enumerate(factors):
            level = geometry.resized([max(1, n // factor) for n in geometry.shape])
            down, across = 10 / np.asarray(level.spacing)  # pixels a centimetre
            file.write(
                _painted(paint, level, tile, progress),
                shape=(*level.shape, 3),
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="rgb",
                compression="deflate",
                compressionargs={"level": effort},
                maxworkers=1,
                resolution=(across, down),
                resolutionunit="CENTIMETER",
                description=f"Vesalius pyramid|MPP = {micron[0]:.6g}" if k == 0 and micron[0] == micron[1] else None,
                subfiletype=1 if k else 0,
                metadata=None,
                software=False,
            )


def _painted(paint: Callable, level: Geometry, tile: int, progress: Callable | None) -> Iterator[np.ndarray]:
    """(tile, tile, 3) of a level, row by row."""
    for top in range(0, level.shape[0], tile):
        for left in range(0, level.shape[1], tile):
            pixels = np.asarray(paint(level.cropped((top, left), (top + tile, left + tile))), np.uint8)
            if progress is not None:
                progress(1)
            yield np.ascontiguousarray(np.moveaxis(pixels, 0, -1))


def write_geojson(
    path: str | Path,
    polygons: Sequence[Polygon],
    geometry: Geometry,
    names: Mapping[int, str],
    *,
    colours: Mapping[str, tuple[int, int, int]] | None = None,
) -> None:
    """Annotations as QuPath reads them: one feature per label of ``polygons`` (corners in world mm), in pixels (x, y) of ``geometry``, the
    slide's finest level, where the first pixel reaches from 0 to 1. ``names``: label -> 'class' or 'class/name of the object'."""
    missing = sorted({p.label for p in polygons} - set(names))
    if missing:
        raise UsageError("a polygon's label has no name", where=path, found=missing, allowed=sorted(names))
    features = []
    for label in dict.fromkeys(p.label for p in polygons):
        parts = [[_ring(r, geometry) for r in p.rings] for p in polygons if p.label == label]
        kind, _, name = names[label].partition("/")
        shape = {"type": "Polygon", "coordinates": parts[0]} if len(parts) == 1 else {"type": "MultiPolygon", "coordinates": parts}
        classification = {"name": kind, **({"color": list(colours[kind])} if colours and kind in colours else {})}
        properties = {"objectType": "annotation", "classification": classification, **({"name": name} if name else {})}
        features.append({"type": "Feature", "geometry": shape, "properties": properties})
    atomic_write_json(path, {"type": "FeatureCollection", "features": features}, indent=None)


def _ring(ring: np.ndarray, geometry: Geometry) -> list[list[float]]:
    """World mm -> closed [x, y] ring of the slide's pixels."""
    index = np.round(geometry.to_index(ring) + 0.5, 3)
    return [[float(c), float(r)] for r, c in [*index, index[0]]]
