"""NIfTI-1 and NIfTI-2, plain or gzipped: verified reading (length, CRC-32 and ISIZE of every gzip member) and writing.

The header is held against the file's size before anything is allocated. World coordinates are millimetres, RAS+, in both files and
Vesalius. Policies, each announced by a note when it applies: with sform and qform codes both 0, nibabel's base affine is used (spacing
from pixdim, x to the left, the origin at the volume's centre); units of metre or micron are converted to mm.
A file whose ``dim[0]`` is 2 is a two-dimensional image: its x runs along the columns, so the array is (rows, columns), and the world axes
are Vesalius' (row, column); that is also how 2D grids are written, hence a lossless trip. dim[0] >= 3 is always a volume.
Specification: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.sax.saxutils import escape

import nibabel as nib
import numpy as np
from isal import igzip_lib, isal_zlib

from ..core.errors import DataError, GeometryError, ResourceError
from ..core.geometry import Geometry
from .atomic import atomic
from .frames import check_writable, geometry_of
from .kind import checked_file
from .notes import megabytes, note

FORM_CODE = 1  # scanner coordinates: the code ITK writes too; both forms carry it, so that no reader has to choose

_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8", 128: "u1", 2304: "u1"}
_COLOURS = {128: 3, 2304: 4}  # RGB24, RGBA32
_REFUSED = {1: "1-bit", 32: "complex64", 1536: "float128", 1792: "complex128", 2048: "complex256"}
_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units & 7: unknown, metre, millimetre, micron
_CONFLICT = 1e-3  # voxels that the corners may differ between sform and qform
_CHUNK = 1 << 20
_SLACK = 1 << 16  # bytes beyond the promised ones that are tolerated, with a note
_GREATEST_RATIO = 1032  # deflate cannot compress further
_DISPLACEMENT = 1006  # NIFTI_INTENT_DISPVECT: ITK turns such vectors to its own axes when it reads them
_LABEL_TABLE = 30  # header extension code of a Caret / Workbench label table


@dataclass(frozen=True)
class Head:
    """What a header promises: ``sides`` are the file's dimensions, fastest first (``colours`` before x; 0 for a grey image)."""

    path: Path
    zipped: bool
    sides: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    inter: float
    channels: int
    colours: int
    geometry: Geometry
    code: int

    @property
    def promised(self) -> int:
        """Bytes of the (uncompressed) file."""
        return self.offset + math.prod(self.sides) * self.dtype.itemsize

    @property
    def scaled(self) -> bool:
        return (self.slope, self.inter) != (1.0, 0.0)

    @property
    def result(self) -> np.dtype:
        """dtype of the voxels after rescaling."""
        if self.scaled and self.dtype.kind != "f":
            return np.dtype(np.float32)
        return self.dtype.newbyteorder("=")


def read(path: str | Path, *, prefer: str | None = None) -> tuple[np.ndarray, Geometry]:
    """Voxels (C, *spatial) in index order, with their grid.

    Raises DataError for a file that is damaged or contradicts its header, GeometryError for an ambiguous or impossible grid.
    """
    head = peek(path, prefer=prefer)
    flat = _voxels(head).view(head.dtype)
    if not head.dtype.isnative:
        flat = flat.byteswap(inplace=True).view(head.dtype.newbyteorder("="))
    return _rescaled(_arranged(flat, head), head), head.geometry


def peek(path: str | Path, *, prefer: str | None = None) -> Head:
    """The header alone, checked against the file's size."""
    path = checked_file(path)
    if prefer not in (None, "sform", "qform"):
        raise DataError("unknown form", where=path, found=prefer, allowed="sform, qform")
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        block = _first_bytes(file, zipped, path)
    named_zipped = path.name.lower().endswith(".gz")
    if named_zipped != zipped:
        note(f"named as a {'gzipped' if named_zipped else 'plain'} file but {'gzipped' if zipped else 'plain'} inside; read as it is", path)
    header = _header(block, path)
    return _checked(header, path, zipped, prefer)


# ------------------------------------------------------------------------------------------------------------------------------ header
def _first_bytes(file: BinaryIO, zipped: bool, path: Path) -> bytes:
    if not zipped:
        return file.read(540)
    engine = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    block = b""
    try:
        while len(block) < 540 and not engine.eof:
            data = file.read(4096) if engine.needs_input else b""
            if engine.needs_input and not data:
                break
            block += engine.decompress(data, max_length=540 - len(block))
    except igzip_lib.error as error:
        raise DataError(
            "the gzip stream is damaged in its first bytes", where=path, found=str(error), fix="copy or download it again"
        ) from error
    return block


def _header(block: bytes, path: Path) -> nib.Nifti1Header:
    """The raw header in its byte order, unchecked."""
    for order in "<>":
        size = int(np.frombuffer(block[:4], order + "i4")[0]) if len(block) >= 4 else 0
        for kind, length, magic_at in ((nib.Nifti1Header, 348, 344), (nib.Nifti2Header, 540, 4)):
            if size != length or len(block) < length:
                continue
            magic = block[magic_at : magic_at + 3]
            if magic in (b"ni1", b"ni2"):
                raise DataError("one half of a .hdr/.img pair", where=path, fix="convert the pair to one .nii.gz file")
            if magic not in (b"n+1", b"n+2"):
                raise DataError("not a NIfTI header", where=path, found=f"magic {magic!r}", allowed="n+1, n+2")
            return kind(block[:length], endianness=order, check=False)
    raise DataError("no NIfTI header, or a file shorter than one", where=path, found=f"{len(block)} bytes", allowed="sizeof_hdr 348 or 540")


def _checked(header: nib.Nifti1Header, path: Path, zipped: bool, prefer: str | None) -> Head:
    sides, channels = _sides(header, path)
    dtype, colours = _dtype(header, path)
    if colours:
        if channels > 1:
            raise DataError(
                "a series of colour volumes is not supported", where=path, found=f"dim {sides}", fix="write each volume on its own"
            )
        channels, sides = colours, (colours, *sides)
    slope, inter = _scaling(header, path)
    spatial = _spatial(header)
    offset = _offset(header, path)
    promised = offset + math.prod(sides) * dtype.itemsize
    _check_size(path, zipped, promised, sides)
    geometry, code = _geometry(header, spatial, path, prefer)
    return Head(path, zipped, sides, dtype, offset, slope, inter, channels, colours, geometry, code)


def _spatial(header: nib.Nifti1Header) -> tuple[int, ...]:
    return tuple(int(n) for n in header["dim"][1 : 1 + min(3, int(header["dim"][0]))])


def _sides(header: nib.Nifti1Header, path: Path) -> tuple[tuple[int, ...], int]:
    count = int(header["dim"][0])
    if not 2 <= count <= 7:
        raise DataError("the number of dimensions, dim[0], is impossible", where=path, found=count, allowed="2 to 7")
    sides = tuple(int(n) for n in header["dim"][1 : count + 1])
    if min(sides) < 1:
        raise DataError("a side in the header, dim[1..], is zero or negative", where=path, found=sides, allowed="1 and more")
    extra = [n for n in sides[3:] if n > 1]
    if len(extra) > 1:
        raise DataError(
            "more than four dimensions", where=path, found=sides, fix="choose one time point or one component and write it on its own"
        )
    return sides, (extra[0] if extra else 1)


def _dtype(header: nib.Nifti1Header, path: Path) -> tuple[np.dtype, int]:
    code, bits = int(header["datatype"]), int(header["bitpix"])
    if code in _REFUSED:
        fix = "write magnitude and phase as two float32 images" if "complex" in _REFUSED[code] else "convert it to float32 or uint8"
        raise DataError(f"voxels of type {_REFUSED[code]} are not supported", where=path, found=f"datatype {code}", fix=fix)
    if code not in _TYPES:
        raise DataError("unknown voxel type in the header", where=path, found=f"datatype {code}", allowed=sorted(_TYPES))
    dtype, colours = np.dtype(header.endianness + _TYPES[code]), _COLOURS.get(code, 0)
    expected = 8 * dtype.itemsize * max(1, colours)
    if bits != expected:
        raise DataError(
            "datatype and bitpix contradict each other", where=path, found=f"datatype {code}, bitpix {bits}", allowed=f"bitpix {expected}"
        )
    return dtype, colours


def _scaling(header: nib.Nifti1Header, path: Path) -> tuple[float, float]:
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if int(header["datatype"]) in _COLOURS or slope == 0:
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(inter)):
        if not (math.isnan(slope) and math.isnan(inter)):  # both NaN is how nibabel writes 'none'
            note(f"scl_slope {slope} and scl_inter {inter} are no numbers and were ignored", path)
        return 1.0, 0.0
    return slope, inter


def _offset(header: nib.Nifti1Header, path: Path) -> int:
    offset, least = float(header["vox_offset"]), int(header["sizeof_hdr"])
    if offset == 0:
        return least + 4
    if not (math.isfinite(offset) and offset >= least and offset == int(offset)):
        raise DataError("vox_offset is impossible", where=path, found=offset, allowed=f"a whole number from {least + 4}")
    return int(offset)


def _check_size(path: Path, zipped: bool, promised: int, sides: tuple[int, ...]) -> None:
    size = path.stat().st_size
    most = size * _GREATEST_RATIO if zipped else size
    if promised > most:
        found = f"dimensions {' x '.join(map(str, sides))}: {megabytes(promised)} promised, {megabytes(size)} found"
        held = f" (which can hold {megabytes(most)} at most)" if zipped else ""
        raise DataError("the file is truncated or its header is wrong", where=path, found=found + held, fix="copy or download it again")
    if not zipped and size > promised:
        note(f"{megabytes(size - promised)} after the last voxel were ignored", path)


# ---------------------------------------------------------------------------------------------------------------------------- geometry
def _geometry(header: nib.Nifti1Header, spatial: tuple[int, ...], path: Path, prefer: str | None) -> tuple[Geometry, int]:
    """The grid in mm and the form code it came with."""
    unit = int(header["xyzt_units"]) & 7
    if unit not in _MM:
        raise DataError(
            "unknown unit of length in the header", where=path, found=f"xyzt_units {unit}", allowed="0 unknown, 1 m, 2 mm, 3 micron"
        )
    if _MM[unit] != 1.0:
        note(f"lengths are in {'metre' if unit == 1 else 'micron'} and were converted to mm", path)
    scale = np.diag([_MM[unit]] * 3 + [1.0])
    volume = (*spatial, 1)[:3]
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if prefer == "sform" and sform <= 0 or prefer == "qform" and qform <= 0:
        raise GeometryError(f"{prefer} is preferred but not set", where=path, found=f"sform_code {sform}, qform_code {qform}")
    if sform > 0 and (prefer == "sform" or qform <= 0):
        affine, code = header.get_sform(), sform
    elif qform > 0 and (prefer == "qform" or sform <= 0):
        affine, code = _qform(header, len(spatial), path), qform
    elif sform > 0:
        affine, code = _agreed(header, volume, path), sform
    else:
        _check_pixdim(header, len(spatial), path)
        note("sform and qform are both unset: spacing from pixdim, x to the left, origin at the centre (as nibabel does)", path)
        affine, code = header.get_base_affine(), 0
    affine = scale @ affine
    if len(spatial) == 2:
        return _flat(affine, spatial, path), code
    return geometry_of(spatial, affine, path), code


def _check_pixdim(header: nib.Nifti1Header, count: int, path: Path) -> None:
    pixdim = np.asarray(header["pixdim"][1 : 1 + count], float)
    if not np.isfinite(pixdim).all() or (pixdim <= 0).any():
        fix = "correct the header, or read with prefer='sform'" if int(header["sform_code"]) > 0 else "correct pixdim in the header"
        found = "pixdim " + " x ".join(f"{p:g}" for p in pixdim)
        raise GeometryError("the spacing is zero, negative or not a number", where=path, found=found, fix=fix)


def _qform(header: nib.Nifti1Header, count: int, path: Path) -> np.ndarray:
    _check_pixdim(header, count, path)
    if count == 2:
        header = header.copy()
        header["pixdim"][3] = 1.0
    try:
        return header.get_qform(coded=False)
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        raise GeometryError(
            "the qform is no rotation", where=path, found=str(error), fix="correct the header, or read with prefer='sform'"
        ) from error


def _agreed(header: nib.Nifti1Header, volume: tuple[int, ...], path: Path) -> np.ndarray:
    """The sform, if the qform says the same; the two are compared at the volume's corners."""
    sform, qform = header.get_sform(), _qform(header, len(_spatial(header)), path)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in volume], indexing="ij")).reshape(3, -1)
    apart = np.linalg.norm((sform - qform)[:3, :3] @ corners + (sform - qform)[:3, 3:], axis=0).max()
    voxels = apart / np.linalg.norm(qform[:3, :3], axis=0)[: len(_spatial(header))].min()
    if not voxels <= _CONFLICT:
        show = f"sform {np.round(sform[:3], 4).tolist()}, qform {np.round(qform[:3], 4).tolist()}"
        raise GeometryError(
            f"sform and qform disagree by {voxels:.3g} voxels",
            where=path,
            found=show,
            allowed=f"{_CONFLICT:g} voxels",
            fix="read with prefer='sform' or prefer='qform' once you know which is right",
        )
    return sform


def _flat(affine: np.ndarray, spatial: tuple[int, ...], path: Path) -> Geometry:
    """The (row, column) grid of a file of two dimensions (x is the column)."""
    shape = (spatial[1], spatial[0])
    plane = affine[np.ix_([1, 0, 3], [1, 0, 3])].copy()
    plane[2] = [0, 0, 1]
    if np.abs(affine[2, :2]).max() > 1e-6 * np.abs(plane[:2, :2]).max():
        note("a 2D image that is oblique in space: only its spacing is kept", path)
        spacing = np.linalg.norm(affine[:3, [1, 0]], axis=0)
        plane = np.diag([*spacing, 1.0])
    return geometry_of(shape, plane, path)


# ------------------------------------------------------------------------------------------------------------------------------ voxels
def _voxels(head: Head) -> np.ndarray:
    """The voxels' bytes (uint8), verified."""
    try:
        whole = np.empty(head.promised - (0 if head.zipped else head.offset), np.uint8)
    except MemoryError as error:
        raise ResourceError("not enough memory for this image", where=head.path, found=f"{megabytes(head.promised)} needed") from error
    with open(head.path, "rb") as file:
        if head.zipped:
            inflate(file, whole, head.path)
            return whole[head.offset :]
        file.seek(head.offset)
        if file.readinto(memoryview(whole)) != len(whole):
            raise DataError("the file became shorter while it was read", where=head.path, fix="read it again when it is complete")
    return whole


def inflate(file: BinaryIO, out: np.ndarray, path: Path) -> None:
    """Fill ``out`` (uint8) with the gzip members of ``file``; each must end with its right CRC-32 and length.

    Too little, too much (beyond a small slack, so that no bomb unfolds) or damaged content is a DataError; bytes that are no gzip member
    after the last one are a note.
    """
    view, at, promised = memoryview(out), 0, len(out)
    engine, data = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP), file.read(_CHUNK)
    while True:
        try:
            piece = engine.decompress(data, max_length=_CHUNK)
        except igzip_lib.error as error:
            what = "its check sum (CRC-32) or length is wrong" if "checksum" in str(error).lower() else "the compressed data are damaged"
            found = f"{megabytes(promised)} promised, {megabytes(at)} good"
            raise DataError(what, where=path, found=found, fix="copy or download it again") from error
        room = min(len(piece), max(0, promised - at))
        view[at : at + room] = piece[:room] if room < len(piece) else piece
        at += len(piece)
        if at > promised + _SLACK:
            raise DataError(
                "the file unpacks to more than its header promises",
                where=path,
                found=f"more than {megabytes(at)}",
                allowed=megabytes(promised),
            )
        if engine.eof:
            data = engine.unused_data or file.read(_CHUNK)
            while data and not data.strip(b"\0"):  # zero padding is allowed between and after members
                data = file.read(_CHUNK)
            data = data.lstrip(b"\0") if data[:1] == b"\0" else data
            if not data.startswith(b"\x1f\x8b"):
                if data:
                    note("bytes after the gzip stream were ignored (trailing garbage)", path)
                break
            engine = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
            continue
        data = file.read(_CHUNK) if engine.needs_input else b""
        if engine.needs_input and not data:
            found = f"{megabytes(promised)} promised, {megabytes(at)} found"
            raise DataError("the file is truncated (its gzip stream has no end)", where=path, found=found, fix="copy or download it again")
    if at < promised:
        raise DataError(
            "the file is truncated",
            where=path,
            found=f"{megabytes(promised)} promised, {megabytes(at)} found",
            fix="copy or download it again",
        )
    if at > promised:
        note(f"{at - promised} bytes after the last voxel were ignored", path)


def _arranged(flat: np.ndarray, head: Head) -> np.ndarray:
    """(C, *spatial), without a copy."""
    spatial = head.geometry.shape
    if len(spatial) == 2:
        return flat.reshape((*spatial, head.colours or 1)).transpose(2, 0, 1)
    if head.colours:
        return flat.reshape((*reversed(spatial), head.colours)).transpose(3, 2, 1, 0)
    return flat.reshape((head.channels, *reversed(spatial))).transpose(0, 3, 2, 1)


def _rescaled(data: np.ndarray, head: Head) -> np.ndarray:
    if not head.scaled:
        return data
    out = data.astype(head.result, copy=False)
    try:
        with np.errstate(over="raise"):
            out *= head.result.type(head.slope)
            out += head.result.type(head.inter)
    except FloatingPointError as error:
        found = f"scl_slope {head.slope:g}, scl_inter {head.inter:g}"
        raise DataError("rescaling leaves the range of float32", where=head.path, found=found, fix="correct the header") from error
    return out


# ----------------------------------------------------------------------------------------------------------------------------- writing
def write(
    path: str | Path,
    data: np.ndarray,
    geometry: Geometry,
    *,
    code: int = FORM_CODE,
    table: Mapping[int, str] | None = None,
    displacement: bool = False,
) -> None:
    """Write (C, *spatial) voxels as NIfTI (gzipped when the name ends in .gz); sform and qform say the same, both with ``code``.

    Several channels become the fourth dimension; a 2D grid holds one channel. A ``displacement`` (d, *spatial), world mm, becomes a vector
    image: components in the file's order of axes along the fifth dimension, intent 1006 (NIFTI_INTENT_DISPVECT). ``table`` (file value ->
    name) is stored as a Workbench label table.
    NIfTI-2 is written when a side exceeds 32767 or the affine needs more than float32. Nothing else is put in the header.
    """
    path = Path(path)
    check_writable(geometry, path)
    if geometry.ndim == 2 and len(data) != 1 and not displacement:
        raise DataError("a 2D NIfTI holds one channel", where=path, found=f"{len(data)} channels", fix="write it as .tif, .png or .npz")
    if data.dtype == bool:
        data = data.astype(np.uint8)
    if data.dtype == np.float16:
        data = data.astype(np.float32)
    header, voxels = _new_header(data, geometry, code, path, displacement)
    extension = _label_extension(table) if table else b""
    header["vox_offset"] = int(header["sizeof_hdr"]) + 4 + len(extension)
    head = header.binaryblock + (b"\1\0\0\0" if extension else b"\0\0\0\0") + extension
    zipped = path.name.lower().endswith(".gz")
    with atomic(path, size=None if zipped else len(head) + voxels.nbytes) as temporary, open(temporary, "wb") as file:
        if zipped:
            _deflate(file, [head, memoryview(voxels.reshape(-1)).cast("B")])
        else:
            file.write(head)
            file.write(memoryview(voxels.reshape(-1)).cast("B"))


def _new_header(
    data: np.ndarray, geometry: Geometry, code: int, path: Path, displacement: bool = False
) -> tuple[nib.Nifti1Header, np.ndarray]:
    """The header and the voxels as a C-contiguous array whose last axis is x."""
    affine = geometry.affine
    if geometry.ndim == 2:
        affine = np.eye(4)
        affine[np.ix_([1, 0, 3], [1, 0, 3])] = geometry.affine
        affine[2, 2] = np.sign(np.linalg.det(geometry.affine[:2, :2]))  # a rotation in space, so that the qform can say the same
        shape, voxels = data.shape[:0:-1], data[::-1] if displacement else data[0]  # the file's x is our column
    else:
        shape = data.shape[1:] if len(data) == 1 else (*data.shape[1:], len(data))
        voxels = data.transpose(0, 3, 2, 1)
    if displacement:
        shape = (*(*shape, 1)[:3], 1, len(data))
    large = max(shape) > 32767 or not np.allclose(affine.astype(np.float32), affine, rtol=0, atol=1e-4)
    header = nib.Nifti2Header(endianness="<") if large else nib.Nifti1Header(endianness="<")
    try:
        header.set_data_dtype(data.dtype)
    except nib.spatialimages.HeaderDataError as error:
        raise DataError("NIfTI has no such voxel type", where=path, found=data.dtype) from error
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code)
    header.set_qform(affine, code)
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    if displacement:
        header["intent_code"] = _DISPLACEMENT
    return header, np.ascontiguousarray(voxels, dtype=data.dtype.newbyteorder("<"))


def _label_extension(table: Mapping[int, str]) -> bytes:
    """A header extension with the names of the label values, as Connectome Workbench and TotalSegmentator write it."""
    rows = "".join(f'<Label Key="{int(k)}" Red="1" Green="1" Blue="1" Alpha="1">{escape(name)}</Label>' for k, name in table.items())
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><CaretExtension><VolumeInformation Index="0"><LabelTable>'
        f"{rows}</LabelTable><StudyMetaDataLinkSet/><VolumeType>Label</VolumeType></VolumeInformation></CaretExtension>"
    ).encode()
    size = 8 + len(xml) + (-(8 + len(xml))) % 16
    return np.array([size, _LABEL_TABLE], "<i4").tobytes() + xml.ljust(size - 8, b"\0")


def _deflate(file: BinaryIO, parts: list) -> None:
    """One gzip member without a name or time stamp in its header."""
    engine = isal_zlib.compressobj(level=2, wbits=31)
    for part in parts:
        part = memoryview(part)
        for start in range(0, len(part), _CHUNK):
            file.write(engine.compress(part[start : start + _CHUNK]))
    file.write(engine.flush())
