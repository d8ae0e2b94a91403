"""Any file of voxels -> ``Image`` or ``LabelMap``, and back. The format is recognised by content when reading, by extension when writing.

An address is a file, a DICOM series folder ('folder' or 'folder#SeriesInstanceUID'), or an array: 'file.h5:key', 'file.npz:key[i]'.
Arrays are in the files' index order (i, j, k) for volumes and (rows, columns) for pictures; no file is ever turned or resampled here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..core.case import IGNORE, Image, LabelMap
from ..core.errors import DataError, GeometryError, ResourceError, VesaliusError
from ..core.geometry import Geometry
from .arrays import split_address
from .kind import sniff
from .notes import note

_RASTERS, _ITK = ("png", "jpeg", "tiff", "bmp", "pgm"), ("mha", "nrrd")
_UNKNOWN = -2
_CACHED = ("nifti.gz", "mha", "nrrd")  # kinds that have to be decoded
WRITABLE = (".nii.gz", ".nii", ".mha", ".nrrd", ".png", ".tif", ".npz", ".npy")


def read_image(
    path: str | Path, *, spacing: Sequence[float] | None = None, prefer: str | None = None, cache: str | Path | None = None
) -> Image:
    """The voxels (C, *spatial) and grid of a file, series or array.

    ``spacing``: mm in array-axis order, for files that carry none (ignored by those that do). ``prefer``: 'sform' or 'qform' where a
    NIfTI's two disagree. ``cache``: a folder for decoded voxels; the array is then a read-only memory map (as
    are arrays from .npz, .h5 and .npy read-only). Integers stay integers unless
    the file rescales them (then float32). NaN and infinite voxels become the smallest finite value, with a note saying how many.
    Raises DataError (damaged, unreadable, unsupported) or GeometryError (impossible or ambiguous grid), naming the file.
    """
    where = str(path)
    kind = _kind(where)
    if kind == "tiff" and _is_slide(where):
        from .wsi import Slide

        return Slide(where, spacing=_tuple(spacing)).image()
    if cache is None or kind not in _CACHED:
        data, geometry = _read(where, kind, spacing, prefer)
        return Image(_finite(data, where), geometry, name=where)
    from . import cache as store

    shape, geometry, dtype = header(where, spacing=spacing, prefer=prefer)
    kept = store.entry(Path(cache), Path(where))
    data = store.load(kept, shape, dtype)
    if data is None:
        data = _finite(_read(where, kind, spacing, prefer)[0], where)
        store.store(kept, data)
    return Image(data, geometry, name=where)


def header(
    path: str | Path, *, spacing: Sequence[float] | None = None, prefer: str | None = None
) -> tuple[tuple[int, ...], Geometry, np.dtype]:
    """Shape (C, *spatial), grid and dtype that ``read_image`` would give, from headers alone."""
    where = str(path)
    kind = _kind(where)
    with _parsing(where):
        return _peek(where, kind, spacing, prefer)


def read_labels(
    path: str | Path,
    *,
    values: Sequence[int],
    names: Sequence[str],
    ignore: int | None = None,
    instances: bool = False,
    spacing: Sequence[float] | None = None,
    prefer: str | None = None,
) -> LabelMap:
    """Class indices (*spatial): ``values[k]`` in the file becomes k, ``ignore`` becomes ``core.case.IGNORE``; the names are the classes'.

    A value outside the table is a DataError that lists the values and how many voxels have them; so are fractions, lossy files and
    colour masks whose channels differ. With ``instances`` the file's ids are kept (int32, 0 is background) and ``values`` may be empty.
    The result is uint8 where the classes fit, int16 or int32 otherwise and where there is an ignore value.
    """
    where = str(path)
    _check_table(values, names, ignore, instances, where)
    kind = _kind(where)
    data, geometry = _read(where, kind, spacing, prefer, label=True)
    ids = _integers(_one_channel(data, where), where)
    if kind == "png" and not instances:
        ids = _as_shown(ids, values, where)
    labels = _instances(ids, ignore, where) if instances else _classes(ids, values, ignore, where, picture=kind in _RASTERS)
    return LabelMap(labels, geometry, names=tuple(names), instances=instances)


def write_labels(
    path: str | Path,
    label: np.ndarray,
    geometry: Geometry,
    *,
    values: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    like: str | Path | None = None,
) -> None:
    """Write class indices (*spatial) on ``geometry``, atomically; the format follows the extension.

    ``values[k]`` is the file's value of class k (default k), in the smallest integer type that holds the table. ``names[k]`` is kept in
    the file where the format has a place for it. ``like`` is a file on the same grid (the image): its affine and NIfTI form code are
    copied to the letter; another grid is a GeometryError. Voxels of ``IGNORE`` and indices without a value cannot be written.
    """
    label = np.asarray(label)
    if label.dtype.kind not in "biu":
        raise DataError("a label map holds integers", where=path, found=label.dtype)
    label = label.view(np.uint8) if label.dtype == bool else label
    if label.shape != geometry.shape:
        raise GeometryError("the label map does not lie on its grid", where=path, found=label.shape, allowed=geometry.shape)
    code = None
    if like is not None:
        geometry, code = _grid_of(like, geometry, path)
    low, high = (int(label.min()), int(label.max()))
    if low == IGNORE:
        count = int((label == IGNORE).sum())
        raise DataError("voxels that nobody spoke for (IGNORE) cannot be written as a class", where=path, found=f"{count} voxels")
    if low < 0 or values is not None and high >= len(values):
        allowed = f"0 to {len(values) - 1}" if values is not None else "0 and more"
        raise DataError("class indices without a file value", where=path, found=f"{low} to {high}", allowed=allowed)
    if values is not None and names is not None and len(names) != len(values):
        raise DataError("names and values are not of one length", where=path, found=f"{len(names)} names, {len(values)} values")
    types = (np.uint8, np.uint16, np.int16, np.int32) if str(path).lower().endswith(".png") else (np.uint8, np.int16, np.uint16, np.int32)
    if values is None:
        stored = label.astype(_smallest(0, high, types))
    else:
        table = [int(v) for v in values]
        stored = np.asarray(table, _smallest(min(table), max(table), types))[label]
    named = None if names is None else dict(zip(values if values is not None else range(len(names)), names))
    _write(Path(path), stored[None], geometry, code, named, "label")


def write_image(path: str | Path, data: np.ndarray, geometry: Geometry) -> None:
    """Write voxels (C, *spatial) on ``geometry``, atomically; the format follows the extension and keeps the dtype or is refused."""
    data = np.asarray(data)
    if data.shape[1:] != geometry.shape:
        raise GeometryError("the array does not lie on its grid", where=path, found=data.shape, allowed=("C", *geometry.shape))
    _write(Path(path), data, geometry, None, None, "image")


def write_displacement(path: str | Path, data: np.ndarray, geometry: Geometry) -> None:
    """Write a displacement field (d, *spatial), world mm, as a NIfTI vector image on ``geometry``, atomically (see ``nifti.write``)."""
    data, lower = np.asarray(data, np.float32), str(path).lower()
    if data.shape != (geometry.ndim, *geometry.shape):
        allowed = (geometry.ndim, *geometry.shape)
        raise GeometryError("a displacement has one component an axis, on its grid", where=path, found=data.shape, allowed=allowed)
    if not lower.endswith((".nii.gz", ".nii")):
        raise DataError("displacement fields are NIfTI files", where=path, allowed=".nii.gz, .nii")
    from . import nifti

    nifti.write(path, data, geometry, displacement=True)


# ----------------------------------------------------------------------------------------------------------------------------- reading
def _kind(where: str) -> str:
    if Path(where).is_dir() or (not Path(where).exists() and "#" in where and Path(where.rsplit("#", 1)[0]).is_dir()):
        return "dicom"
    return sniff(where if Path(where).is_file() else split_address(where)[0])


def _tuple(spacing: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if spacing is None else tuple(float(s) for s in spacing)


def _is_slide(where: str) -> bool:
    from .wsi import is_slide

    return is_slide(where)


def _peek(where: str, kind: str, spacing: Sequence[float] | None, prefer: str | None) -> tuple[tuple[int, ...], Geometry, np.dtype]:
    if kind.startswith("nifti"):
        from . import nifti

        head = nifti.peek(where, prefer=prefer)
        return (head.colours or head.channels, *head.geometry.shape), head.geometry, head.result
    if kind in _ITK:
        from . import itk

        return itk.peek(where)
    if kind == "dicom":
        from . import dicom

        return dicom.peek(where, spacing=_tuple(spacing))
    if kind == "tiff" and _is_slide(where):
        from .wsi import Slide

        with Slide(where, spacing=_tuple(spacing)) as slide:
            return (slide.channels, *slide.geometry.shape), slide.geometry, slide.dtype
    if kind in _RASTERS:
        from . import raster

        return raster.peek(where, spacing=_tuple(spacing))
    from . import arrays

    return arrays.peek(where, spacing=_tuple(spacing))


def _read(where: str, kind: str, spacing: Sequence[float] | None, prefer: str | None, label: bool = False) -> tuple[np.ndarray, Geometry]:
    with _parsing(where):
        return _parsed(where, kind, spacing, prefer, label)


@contextmanager
def _parsing(where: str) -> Iterator[None]:
    """Whatever a format library raises on a damaged file becomes a DataError; its text is left out, since it may quote the header."""
    try:
        yield
    except VesaliusError:
        raise
    except MemoryError as error:
        raise ResourceError("not enough memory to read this", where=where) from error
    except Exception as error:
        raise DataError("the file is damaged", where=where, found=type(error).__name__, fix="copy or export it again") from error


def _parsed(where: str, kind: str, spacing: Sequence[float] | None, prefer: str | None, label: bool) -> tuple[np.ndarray, Geometry]:
    if kind.startswith("nifti"):
        from . import nifti

        return nifti.read(where, prefer=prefer)
    if kind in _ITK:
        from . import itk

        return itk.read(where)
    if kind == "dicom":
        from . import dicom

        return dicom.read(where, spacing=_tuple(spacing))
    if kind in _RASTERS:
        from . import raster

        return raster.read(where, spacing=_tuple(spacing), label=label)
    from . import arrays

    return arrays.read(where, spacing=_tuple(spacing))


def _finite(data: np.ndarray, where: str) -> np.ndarray:
    """NaN and infinity -> the smallest finite value."""
    if data.dtype.kind != "f" or np.isfinite(data.sum(dtype=np.float64)):  # the sum is finite only if every voxel is
        return data
    good = np.isfinite(data)
    count = data.size - int(good.sum())
    if count == 0:
        return data
    if count == data.size:
        raise DataError("no voxel is a finite number", where=where)
    least = data[good].min()
    note(f"{count} voxels are NaN or infinite and were set to the smallest finite value, {least:g}", where)
    return np.where(good, data, least)


# ------------------------------------------------------------------------------------------------------------------------------ labels
def _check_table(values: Sequence[int], names: Sequence[str], ignore: int | None, instances: bool, where: str) -> None:
    if instances:
        return
    if len(values) != len(names) or not len(values):
        raise DataError("the label table needs one name a value", where=where, found=f"{len(values)} values, {len(names)} names")
    if len({int(v) for v in values}) != len(values):
        raise DataError("the label table names a value twice", where=where, found=list(values))
    if ignore is not None and int(ignore) in {int(v) for v in values}:
        raise DataError("the ignore value is also a class", where=where, found=ignore)


def _one_channel(data: np.ndarray, where: str) -> np.ndarray:
    if len(data) == 1:
        return data[0]
    if len(data) == 3 and all(np.array_equal(data[0], c) for c in data[1:]):
        return data[0]
    if len(data) == 3 and data.dtype == np.uint8:
        raise DataError("a colour picture cannot be a label map", where=where, fix="save the mask with one channel (grey or palette)")
    raise DataError(
        "a label map has one channel", where=where, found=f"{len(data)} channels", fix="write each time point or structure on its own"
    )


def _integers(data: np.ndarray, where: str) -> np.ndarray:
    if data.dtype.kind == "b":
        return data.astype(np.uint8)
    if data.dtype.kind != "f":
        return data
    whole = data == np.rint(data)  # False for NaN
    if not whole.all() or not np.isfinite(data).all():
        odd = data[~whole] if not whole.all() else data[~np.isfinite(data)]
        found = f"{odd.size} voxels such as {', '.join(f'{v:g}' for v in np.unique(odd.ravel()[:100000])[:5])}"
        raise DataError(
            "a label map holds whole numbers", where=where, found=found, fix="this may be a probability map or was interpolated"
        )
    if np.abs(data).max() >= 2**31:
        raise DataError("label values are too large", where=where, found=f"{data.min():g} to {data.max():g}")
    return data.astype(np.int32)


def _as_shown(ids: np.ndarray, values: Sequence[int], where: str) -> np.ndarray:
    """Grey PNGs of few bits: white is 1 in the file and 255 in every viewer; the table may mean either."""
    from . import raster

    factor = raster.stretch(where)
    if factor == 1 or set(np.unique(ids).tolist()) <= {int(v) for v in values}:
        return ids
    return ids * np.uint8(factor)


def _classes(ids: np.ndarray, values: Sequence[int], ignore: int | None, where: str, picture: bool) -> np.ndarray:
    table = {int(v): k for k, v in enumerate(values)}
    if ignore is not None:
        table[int(ignore)] = IGNORE
    dtype = _smallest(IGNORE if ignore is not None else 0, len(values) - 1, (np.uint8, np.int16, np.int32))
    low, high = int(ids.min()), int(ids.max())
    if high - low < 1 << 22:
        lut = np.full(high - low + 1, _UNKNOWN, np.int32)
        for value, k in table.items():
            if low <= value <= high:
                lut[value - low] = k
        out = lut.astype(dtype)[ids if low == 0 else np.subtract(ids, low, dtype=np.int64)]
        if not (lut == _UNKNOWN).any():
            return out
    unknown = ~np.isin(ids, list(table))
    if unknown.any():
        raise _unknown_values(ids[unknown], values, ignore, where, picture)
    if high - low < 1 << 22:
        return out
    found = np.unique(ids)
    return np.array([table[int(v)] for v in found], dtype)[np.searchsorted(found, ids)]


def _unknown_values(odd: np.ndarray, values: Sequence[int], ignore: int | None, where: str, picture: bool) -> DataError:
    found, counts = np.unique(odd, return_counts=True)
    shown = ", ".join(f"{int(v)} ({int(n)} voxels)" for v, n in list(zip(found, counts))[:8])
    more = f" and {len(found) - 8} further values" if len(found) > 8 else ""
    smooth = picture and len(found) > 8 and len(values) == 2
    fix = (
        "the mask has soft (anti-aliased) edges: export it without smoothing, or threshold it yourself"
        if smooth
        else "add these values to the label table ([labels] in dataset.toml) or correct the file"
    )
    allowed = ", ".join(map(str, values)) + (f" and {ignore} (ignored)" if ignore is not None else "")
    return DataError("values that are not in the label table", where=where, found=shown + more, allowed=allowed, fix=fix)


def _instances(ids: np.ndarray, ignore: int | None, where: str) -> np.ndarray:
    if int(ids.max()) >= 2**31 or int(ids.min()) < -(2**31):
        raise DataError("instance ids do not fit 32 bits", where=where, found=f"{int(ids.min())} to {int(ids.max())}")
    out = ids.astype(np.int32)
    ignored = np.zeros(0, bool) if ignore is None else ids == ignore
    negative = (out < 0) & ~ignored if ignore is not None else out < 0
    if negative.any():
        raise DataError(
            "an instance id is negative", where=where, found=f"{int(negative.sum())} voxels", allowed="0 background, 1.. objects"
        )
    if ignore is not None:
        out[ignored] = IGNORE
    return out


def _smallest(low: int, high: int, types: Sequence[type]) -> np.dtype:
    for kind in types:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    raise DataError("label values do not fit 32 bits", found=f"{low} to {high}")


# ----------------------------------------------------------------------------------------------------------------------------- writing
def _grid_of(like: str | Path, geometry: Geometry, path: str | Path) -> tuple[Geometry, int | None]:
    where = str(like)
    _, grid, _ = header(where)
    if not geometry.close(grid):
        raise GeometryError(f"the grid is not that of {like}", where=path, found=geometry.describe(), allowed=grid.describe())
    if not _kind(where).startswith("nifti"):
        return grid, None
    from . import nifti

    return grid, nifti.peek(where).code or None


def _write(path: Path, data: np.ndarray, geometry: Geometry, code: int | None, names: dict[int, str] | None, name: str) -> None:
    lower = path.name.lower()
    if lower.endswith((".nii.gz", ".nii")):
        from . import nifti

        nifti.write(path, data, geometry, code=code or nifti.FORM_CODE, table=names)
    elif lower.endswith((".mha", ".nrrd")):
        from . import itk

        itk.write(path, data, geometry, names=names)
    elif lower.endswith((".png", ".tif", ".tiff")):
        from . import raster

        raster.write(path, data, geometry, names=names)
    elif lower.endswith((".npz", ".npy")):
        from . import arrays

        arrays.write(path, data, geometry, names=names, name=name)
    else:
        raise DataError("no writer for this extension", where=path, found=path.suffix or "none", allowed=", ".join(WRITABLE))
