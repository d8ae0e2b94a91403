"""MHA and NRRD through SimpleITK, with their LPS+ world turned into RAS+ on the way in and back on the way out.

The header is read as text first: sides, element size and the data file are held against the file before ITK allocates anything (ITK
fills missing voxels with zeros without a word), and detached data are only followed inside the header's own folder.
"""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path

import numpy as np

from ..core.errors import DataError, GeometryError, ResourceError
from ..core.geometry import Geometry
from .atomic import atomic
from .frames import LPS, check_spacing, check_writable, geometry_of
from .kind import checked_file, sniff
from .notes import megabytes, note

_GREATEST_RATIO = 1032
_MET = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4", "ULONG": "u4"}
_MET |= {"LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8"}  # LONG is 4 bytes in MetaIO, on every platform
_NRRD_BYTES = {
    1: ("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"),
    2: ("short", "short int", "signed short", "int16", "int16_t", "ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    4: ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"),
    8: ("longlong", "long long", "long long int", "int64", "int64_t", "ulonglong", "unsigned long long", "uint64", "uint64_t", "double"),
}


def read(path: str | Path) -> tuple[np.ndarray, Geometry]:
    """Voxels (C, *spatial) and grid; DataError for damaged or truncated files, GeometryError for impossible grids."""
    import SimpleITK as sitk

    path = checked_file(path)
    if sniff(path) == "mha":
        return _mha(path)
    _verified(path)
    reader = _reader(path)
    try:
        image = reader.Execute()
    except MemoryError as error:
        raise ResourceError("not enough memory for this image", where=path) from error
    except RuntimeError as error:
        raise DataError("the image cannot be read", where=path, found=_reason(error), fix="copy or export it again") from error
    array = sitk.GetArrayFromImage(image)
    count = image.GetNumberOfComponentsPerPixel()
    data = array[None] if count == 1 else np.moveaxis(array, -1, 0)
    geometry = _grid(reader, path)
    if geometry.ndim == 3:
        data = data.transpose(0, 3, 2, 1)
    return _squeezed(data, geometry), geometry


def _mha(path: Path) -> tuple[np.ndarray, Geometry]:
    """The header by ITK, the voxels here: where the stated compressed size is wrong or absent, ITK returns zeros or noise."""
    source, skip, promised, encoding, _ = _verified_promise(path)
    reader = _reader(path)
    geometry = _grid(reader, path)
    try:
        whole = np.empty(promised, np.uint8)
    except MemoryError as error:
        raise ResourceError("not enough memory for this image", where=path, found=f"{megabytes(promised)} needed") from error
    if encoding == "raw":
        with open(source, "rb") as file:
            file.seek(skip)
            file.readinto(memoryview(whole))
    else:
        _unpack(path, source, skip, promised, encoding, whole)
    dtype = _mha_type(path)
    voxels = whole.view(dtype).astype(dtype.newbyteorder("="), copy=False)
    shape = geometry.shape if geometry.ndim == 2 else geometry.shape[::-1]
    data = np.moveaxis(voxels.reshape((*shape, -1)), -1, 0)
    return (data if geometry.ndim == 2 else data.transpose(0, 3, 2, 1)), geometry


def _mha_type(path: Path) -> np.dtype:
    """Type and byte order of the voxels in the file."""
    fields, _ = _fields(path, "=")
    order = fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", "False")).strip().lower()
    kind = fields["elementtype"].removeprefix("MET_").removesuffix("_ARRAY")
    return np.dtype((">" if order in ("true", "1") else "<") + _MET[kind])


def peek(path: str | Path) -> tuple[tuple[int, ...], Geometry, np.dtype]:
    """Shape (C, *spatial), grid and dtype from the header."""
    import SimpleITK as sitk

    path = _verified(path, unpack=False)
    reader = _reader(path)
    geometry = _grid(reader, path)
    sample = sitk.GetArrayViewFromImage(sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents()))
    return (reader.GetNumberOfComponents(), *geometry.shape), geometry, sample.dtype


def _squeezed(data: np.ndarray, geometry: Geometry) -> np.ndarray:
    return data.reshape((len(data), *geometry.shape)) if data.ndim != geometry.ndim + 1 else data


def _reader(path: Path):
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("MetaImageIO" if sniff(path) == "mha" else "NrrdImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError("the header cannot be read", where=path, found=_reason(error), fix="copy or export it again") from error
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()).lower():
        raise DataError("complex voxels are not supported", where=path, fix="write magnitude and phase as two float32 images")
    return reader


def _grid(reader, path: Path) -> Geometry:
    size, d = reader.GetSize(), reader.GetDimension()
    if d == 4 and size[3] == 1:
        d = 3
    if d not in (2, 3):
        raise DataError(
            "an image of two or three axes is expected", where=path, found=f"sides {size}", fix="write each time point on its own"
        )
    full = reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(full, full)[:d, :d]
    spacing, origin = np.array(reader.GetSpacing()[:d]), np.array(reader.GetOrigin()[:d])
    check_spacing(spacing, path)
    affine = np.eye(d + 1)
    affine[:d, :d], affine[:d, d] = direction * spacing, origin
    if d == 2:  # x is the column; two-dimensional images have no patient frame
        return geometry_of((size[1], size[0]), affine[np.ix_([1, 0, 2], [1, 0, 2])], path)
    return geometry_of(size[:3], LPS @ affine, path)


# ---------------------------------------------------------------------------------------------------------- header before allocation
def _verified(path: str | Path, *, unpack: bool = True) -> Path:
    """The path, once its header's promise is held against the bytes there are; ``unpack``: those of compressed data too."""
    path = checked_file(path)
    source, skip, promised, encoding, stored = _verified_promise(path)
    if unpack and encoding != "raw":
        consumed = _unpack(path, source, skip, promised, encoding)
        if stored is not None and stored != str(consumed):
            raise DataError("CompressedDataSize is wrong", where=path, found=stored, allowed=consumed, fix="copy or export it again")
    return path


def _verified_promise(path: Path) -> tuple[Path, int, int, str, str | None]:
    source, skip, promised, encoding, stored = (_mha_promise if sniff(path) == "mha" else _nrrd_promise)(path)
    _verify_size(path, source, skip, promised, encoding)
    return source, skip, promised, encoding, stored


def _mha_promise(path: Path) -> tuple[Path, int, int, str, str | None]:
    """Where the voxels are, from which byte, how many bytes they are, their encoding, and their compressed size if stated."""
    fields, start = _fields(path, "=")
    kind = fields.get("elementtype", "").removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in _MET:
        raise DataError("unknown element type", where=path, found=fields.get("elementtype"), allowed=", ".join(_MET))
    sides = _sides(fields.get("dimsize", ""), path)
    if fields.get("ndims", "").strip() != str(len(sides)):
        raise DataError("NDims and DimSize contradict each other", where=path, found=f"{fields.get('ndims')} and {sides}")
    channels = fields.get("elementnumberofchannels", "1").strip()
    promised = math.prod(sides) * int(_MET[kind][1]) * (int(channels) if channels.isdigit() else 1)
    name = fields.get("elementdatafile", "")
    if fields.get("headersize", "0").strip() != "0":
        raise DataError("skipping bytes (HeaderSize) is not supported", where=path, fix="write it as one .mha file")
    if fields.get("binarydata", "true").strip().lower() == "false":
        raise DataError("voxels written as text are not supported", where=path, fix="write it as binary .mha")
    zipped = fields.get("compresseddata", "").strip().lower() == "true"
    if name.upper().startswith("LIST") or "%" in name:
        raise DataError("an image spread over several files is not supported", where=path, found=name, fix="write it as one .mha file")
    _check_numbers(fields, ("elementspacing", "elementsize", "offset", "position", "origin", "transformmatrix", "orientation"), path)
    source, skip = (path, start) if name.upper() == "LOCAL" else (_beside(path, name), 0)
    return source, skip, promised, "zlib" if zipped else "raw", fields.get("compresseddatasize")


def _nrrd_promise(path: Path) -> tuple[Path, int, int, str, str | None]:
    fields, start = _fields(path, ":")
    kind = fields.get("type", "").strip().lower()
    size = next((n for n, names in _NRRD_BYTES.items() if kind in names), None)
    if size is None:
        raise DataError("unknown element type", where=path, found=kind, allowed="integers of 8 to 64 bits, float, double")
    sides = _sides(fields.get("sizes", ""), path)
    encoding = fields.get("encoding", "").strip().lower()
    known = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}
    if encoding not in known:
        raise DataError("this encoding is not supported", where=path, found=encoding, allowed="raw, gzip")
    name = fields.get("data file", fields.get("datafile"))
    if name is not None and (name.upper().startswith("LIST") or "%" in name):
        raise DataError("an image spread over several files is not supported", where=path, found=name, fix="write it as one .nrrd file")
    if fields.get("line skip", "0") not in ("0", "") or fields.get("byte skip", "0") not in ("0", "", "-1"):
        raise DataError("skipping lines or bytes is not supported", where=path, fix="write it as one .nrrd file")
    _check_numbers(fields, ("space directions", "space origin"), path)
    if "kinds" not in fields:  # else an axis of components has the spacing nan
        _check_numbers(fields, ("spacings",), path)
    source, skip = (path, start) if name is None else (_beside(path, name), 0)
    return source, skip, math.prod(sides) * size, known[encoding], None


def _check_numbers(fields: dict[str, str], names: tuple[str, ...], path: Path) -> None:
    """ITK replaces what is no finite number in these fields by 1 without a word."""
    for name in names:
        words = re.findall(r"[^\s(),]+", fields.get(name, "").replace("none", ""))
        if any(not _is_finite(w) for w in words):
            raise GeometryError(f"'{name}' holds no finite numbers", where=path, found=fields[name], fix="correct the header")


def _is_finite(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _fields(path: Path, mark: str) -> tuple[dict[str, str], int]:
    """The header's fields (lower-case names) and where the data begin."""
    fields: dict[str, str] = {}
    with open(path, "rb") as file:
        for _ in range(4096):
            line = file.readline(1 << 16)
            text = line.decode("utf-8", "replace").strip()
            if mark == ":" and not text:
                return fields, file.tell()
            if not line:
                break
            if mark == ":" and (text.startswith(("#", "NRRD")) or ":=" in text) or mark not in text:
                continue
            name, value = text.split(mark, 1)
            fields[name.strip().lower()] = value.strip()
            if mark == "=" and name.strip().lower() == "elementdatafile":
                return fields, file.tell()
    if mark == "=" or not fields:
        raise DataError("the header has no end", where=path, fix="copy or export it again")
    return fields, path.stat().st_size


def _sides(text: str, path: Path) -> list[int]:
    try:
        sides = [int(t) for t in text.split()]
    except ValueError:
        sides = []
    if not 2 <= len(sides) <= 4 or min(sides) < 1:
        raise DataError("the sides in the header are impossible", where=path, found=text or "none", allowed="2 to 4 sides of 1 and more")
    return sides


def _beside(path: Path, name: str) -> Path:
    folder = path.parent.resolve()
    target = (folder / name).resolve()
    if not target.is_relative_to(folder):
        raise DataError(
            "the voxels lie outside the header's folder, which is not followed", where=path, found=name, fix="write it as one file"
        )
    return checked_file(target)


def _verify_size(path: Path, source: Path, skip: int, promised: int, encoding: str) -> None:
    size = source.stat().st_size - skip
    if promised > size * (1 if encoding == "raw" else _GREATEST_RATIO):
        found = f"{megabytes(promised)} promised, {megabytes(max(0, size))} found"
        raise DataError("the file is truncated or its header is wrong", where=path, found=found, fix="copy or export it again")
    if encoding == "raw" and size > promised:
        note(f"{megabytes(size - promised)} after the last voxel were ignored", path)


def _unpack(path: Path, source: Path, skip: int, promised: int, encoding: str, out: np.ndarray | None = None) -> int:
    """Unpack compressed data in small pieces, into ``out`` (uint8) if given, check sums included; returns their compressed size."""
    from isal import igzip_lib

    fix = "copy or export it again"
    engine = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP if encoding == "gzip" else igzip_lib.DECOMP_ZLIB)
    count = consumed = 0
    with open(source, "rb") as file:
        file.seek(skip)
        while not engine.eof and count <= promised:
            data = file.read(1 << 20) if engine.needs_input else b""
            consumed += len(data)
            if engine.needs_input and not data:
                raise DataError(
                    "the file is truncated", where=path, found=f"{megabytes(promised)} promised, {megabytes(count)} found", fix=fix
                )
            try:
                piece = engine.decompress(data, max_length=1 << 20)
            except (igzip_lib.error, zlib.error) as error:
                raise DataError("the compressed data or their check sum are damaged", where=path, found=str(error), fix=fix) from error
            if out is not None:
                room = min(len(piece), promised - count)
                memoryview(out)[count : count + room] = piece[:room]
            count += len(piece)
    if count != promised:
        found = f"{megabytes(promised)} promised, {'more than ' if count > promised else ''}{megabytes(count)} found"
        raise DataError("the header and the data contradict each other", where=path, found=found, fix=fix)
    return consumed - len(engine.unused_data)


def _reason(error: Exception) -> str:
    """The last sentence of an ITK exception, which is the one that tells."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else "unknown"


# ----------------------------------------------------------------------------------------------------------------------------- writing
def write(path: str | Path, data: np.ndarray, geometry: Geometry, *, names: dict[int, str] | None = None) -> None:
    """(C, *spatial) as .mha or .nrrd, compressed; several channels become components. ``names`` of label values go to the header."""
    import SimpleITK as sitk

    path = Path(path)
    check_writable(geometry, path)
    data = data.astype(np.uint8) if data.dtype == bool else data
    if data.dtype == np.float16:
        data = data.astype(np.float32)
    affine = geometry.affine
    if geometry.ndim == 2:
        affine, array = affine[np.ix_([1, 0, 2], [1, 0, 2])], data
        spatial_last = (1, 2, 0)
    else:
        affine, array = LPS @ affine, data.transpose(0, 3, 2, 1)
        spatial_last = (1, 2, 3, 0)
    image = (
        sitk.GetImageFromArray(array[0])
        if len(data) == 1
        else sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(spatial_last)), isVector=True)
    )
    spacing = np.linalg.norm(affine[:-1, :-1], axis=0)
    try:
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(affine[:-1, -1].tolist())
        image.SetDirection((affine[:-1, :-1] / spacing).ravel().tolist())
    except RuntimeError as error:
        raise GeometryError("the grid cannot be written", where=path, found=_reason(error)) from error
    for value, name in (names or {}).items():
        image.SetMetaData(f"label_{value}", name)
    with atomic(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
            _verified(temporary)  # ITK does not look whether the last block reached the disk
        except (RuntimeError, DataError) as error:
            reason = _reason(error).replace(str(temporary), path.name)
            raise ResourceError(
                "the image could not be written", where=path, found=reason, fix="check the free space on the disk"
            ) from error
