"""DICOM images: a series folder, a multi-frame file or a single picture -> one array in index order (column, row, slice), RAS+ mm.

Slices are sorted by position along the normal, never by name or InstanceNumber. What would make a wrong volume is refused with the slices
named: several series in one folder, mixed orientations, missing, doubled or unevenly spaced slices, gantry tilt. Images without
position or orientation are two-dimensional: (rows, columns). Rescale slope and intercept are applied a slice; MONOCHROME1 is inverted.
Only geometry and pixel attributes are looked at; UIDs and names are never used as paths.
Source: DICOM PS3.3 C.7.6.2 (image plane), C.7.6.16 (functional groups), C.11.1 (modality LUT).
"""

from __future__ import annotations

import math
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut

from ..core.errors import DataError, GeometryError, ResourceError
from ..core.geometry import Geometry
from .arrays import spaced
from .frames import LITTLE, LPS, check_spacing, geometry_of, shear, without_shear
from .kind import checked_file, sniff
from .notes import megabytes, note

_NOT_IMAGES = ("SEG", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "REG", "DOC", "RTDOSE", "RWV", "ANN")
_ALONG, _TURNED = 0.05, 1e-3  # of the slice distance that a slice may be off its place | difference of direction cosines in one series
_ROUNDED = 1e-4  # cosine between axes that decimal strings explain; taken out without a note
_GREATEST_RATIO = 2000  # of compressed pixel data
_DEFLATED, _MOST_UNPACKED = b"1.2.840.10008.1.2.1.99", 1 << 30
_CODE, _NUMBERS = re.compile(r"[A-Z]{2,4}|RT[A-Z]{2,8}|None"), re.compile(r"[-+.\d\\eE, \[\]]{1,64}|None")
_PALETTE = "PALETTE COLOR"


@dataclass(frozen=True)
class Plane:
    """One slice: a file or one frame of a file. ``position`` and ``axes`` (row then column direction) are LPS+; None where unknown."""

    path: Path
    frame: int
    rows: int
    columns: int
    position: np.ndarray | None
    axes: np.ndarray | None
    spacing: tuple[float, float] | None
    thickness: float | None
    slope: float
    inter: float

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.axes[:3], self.axes[3:])

    @property
    def label(self) -> str:
        return self.path.name if self.frame == 0 else f"{self.path.name} frame {self.frame + 1}"


def read(where: str | Path, *, spacing: tuple[float, ...] | None = None) -> tuple[np.ndarray, Geometry]:
    """Voxels (C, columns, rows, slices), or (C, rows, columns) for images without a place in space, with their grid.

    ``where``: a file, a folder of one series, or 'folder#SeriesInstanceUID'. ``spacing`` (rows, columns) serves pictures without one.
    """
    planes, flat, geometry, heads = _described(str(where), spacing)
    first = next(iter(heads.values()))
    colours = _colours(first)
    dtype = _result(planes, first)
    try:
        stack = np.empty((len(planes), planes[0].rows, planes[0].columns, colours), dtype)
    except MemoryError as error:
        raise ResourceError("not enough memory for this series", where=where) from error
    place = {(p.path, p.frame): k for k, p in enumerate(planes)}
    for path in heads:
        pixels, rescaled = _pixels(path)
        for plane in (p for p in planes if p.path == path):
            values = pixels[plane.frame]
            if values.shape != stack.shape[1:]:
                raise DataError(
                    "the decoded picture has another size than its header says", where=path, found=values.shape, allowed=stack.shape[1:]
                )
            if not rescaled and (plane.slope, plane.inter) != (1.0, 0.0):
                values = values.astype(np.float32) * np.float32(plane.slope) + np.float32(plane.inter)
            stack[place[path, plane.frame]] = values
    return (stack[0].transpose(2, 0, 1) if flat else stack.transpose(3, 2, 1, 0)), geometry


def peek(where: str | Path, *, spacing: tuple[float, ...] | None = None) -> tuple[tuple[int, ...], Geometry, np.dtype]:
    """Shape (C, *spatial), grid and dtype from the headers."""
    planes, _, geometry, heads = _described(str(where), spacing)
    first = next(iter(heads.values()))
    return (_colours(first), *geometry.shape), geometry, _result(planes, first)


def series(folder: str | Path) -> dict[str, int]:
    """SeriesInstanceUID -> number of image files in a folder."""
    return dict(Counter(str(head.get("SeriesInstanceUID", "")) for head in _heads_of(Path(folder)).values()))


# ----------------------------------------------------------------------------------------------------------------------------- headers
def _described(where: str, spacing: tuple[float, ...] | None) -> tuple[list[Plane], bool, Geometry, dict[Path, pydicom.Dataset]]:
    """The planes in order, whether they are one flat picture, their grid, and the headers by file."""
    heads = _chosen(where)
    planes = [plane for path, head in heads.items() for plane in _planes(path, head)]
    _check_alike(planes, heads, where)
    placed = [p for p in planes if p.position is not None and p.axes is not None]
    if not placed:
        if len(planes) > 1:
            fix = "a film or an ultrasound clip is read frame by frame; a volume needs ImagePositionPatient in each slice"
            raise GeometryError(
                "several pictures without a position in space are no volume", where=where, found=f"{len(planes)} frames", fix=fix
            )
        return planes, True, _flat(planes[0], spacing, where), heads
    if len(placed) < len(planes):
        odd = [p.label for p in planes if p.position is None or p.axes is None]
        raise GeometryError("some slices have no position", where=where, found=_some(odd), fix="remove them from the folder")
    planes = _sorted(planes, where)
    return planes, False, _volume(planes, where), heads


def _chosen(where: str) -> dict[Path, pydicom.Dataset]:
    """Headers of the files of one series."""
    if Path(where).is_file():
        path = checked_file(where)
        head = _head(path)
        if not _is_image(head):
            raise DataError("this DICOM object is no image", where=path, found=f"Modality {_shown(head.get('Modality'), _CODE)}")
        return {path: head}
    folder, uid = (where, None) if Path(where).is_dir() else where.rsplit("#", 1)
    heads = _heads_of(Path(folder))
    counts = Counter(str(head.get("SeriesInstanceUID", "")) for head in heads.values())
    listed = ", ".join(f"{_shown(u, _NUMBERS)} ({n} files)" for u, n in counts.most_common(8))
    if uid is not None:
        if uid not in counts:
            raise DataError("no such series in this folder", where=folder, found=uid, allowed=listed)
        return {p: h for p, h in heads.items() if str(h.get("SeriesInstanceUID", "")) == uid}
    if len(counts) > 1:
        raise DataError(f"{len(counts)} series in one folder", where=folder, found=listed, fix="choose one: 'folder#SeriesInstanceUID'")
    return heads


def _heads_of(folder: Path) -> dict[Path, pydicom.Dataset]:
    try:
        files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and p.name.upper() != "DICOMDIR")
    except PermissionError as error:
        raise DataError("you may not read this folder", where=folder, fix="change its permissions (chmod u+rx)") from error
    heads, others = {}, 0
    for path in files:
        try:
            if sniff(path) != "dicom":
                continue
        except DataError:
            continue
        head = _head(path)
        if _is_image(head):
            heads[path] = head
        else:
            others += 1
    if not heads:
        raise DataError("no DICOM image in this folder", where=folder, found=f"{len(files)} files", fix="name the folder of one series")
    if others:
        note(f"{others} DICOM files that are no images were left out", folder)
    return heads


def _head(path: Path) -> pydicom.Dataset:
    _check_deflated(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of unusual values; what matters here is checked below
            return pydicom.dcmread(path, stop_before_pixels=True, force=True)
    except RecursionError as error:
        raise DataError("sequences are nested too deeply", where=path, fix="this file is damaged or hostile; do not use it") from error
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise DataError("the DICOM header is damaged", where=path, found=type(error).__name__, fix="export it again") from error


def _check_deflated(path: Path) -> None:
    """A deflated data set is unpacked whole by pydicom: count its bytes first, in small pieces."""
    with open(path, "rb") as file:
        head = file.read(1024)
        if head[128:132] != b"DICM" or _DEFLATED not in head:
            return
        file.seek(144 + int.from_bytes(head[140:144], "little"))
        engine, count = zlib.decompressobj(wbits=-15), 0
        while not engine.eof and count <= _MOST_UNPACKED:
            data = engine.unconsumed_tail or file.read(1 << 16)
            if not data:
                break
            try:
                count += len(engine.decompress(data, 1 << 20))
            except zlib.error as error:
                raise DataError("the deflated data set is damaged", where=path, found=str(error), fix="export it again") from error
    if count > _MOST_UNPACKED:
        raise DataError(
            "the deflated data set is implausibly large", where=path, allowed=megabytes(_MOST_UNPACKED), fix="export it uncompressed"
        )


def _is_image(head: pydicom.Dataset) -> bool:
    return str(head.get("Modality", "")) not in _NOT_IMAGES and "Rows" in head and "Columns" in head


def _planes(path: Path, head: pydicom.Dataset) -> list[Plane]:
    """The slices of one file, once its promised size is held against the file's."""
    rows, columns, frames = (
        _whole(head, name, path, default) for name, default in (("Rows", None), ("Columns", None), ("NumberOfFrames", 1))
    )
    bits, samples = _whole(head, "BitsAllocated", path, None), _whole(head, "SamplesPerPixel", path, 1)
    if bits not in (1, 8, 16, 32, 64) or samples not in (1, 3, 4):
        raise DataError("an impossible pixel format", where=path, found=f"BitsAllocated {bits}, SamplesPerPixel {samples}")
    promised, size = math.ceil(rows * columns * frames * samples * bits / 8), path.stat().st_size
    if promised > size * _GREATEST_RATIO or (not _compressed(head) and promised > size * _expansion(head)):
        found = f"{rows} x {columns} x {frames} frames: {megabytes(promised)} promised, {megabytes(size)} found"
        raise DataError("Rows, Columns and NumberOfFrames do not fit the file", where=path, found=found, fix="export it again")
    shared = _first(head, "SharedFunctionalGroupsSequence")
    groups = head.get("PerFrameFunctionalGroupsSequence") or []
    if groups and len(groups) != frames:
        raise DataError("NumberOfFrames and the functional groups contradict each other", where=path, found=f"{frames} and {len(groups)}")
    return [_plane(path, k, rows, columns, head, shared, groups[k] if groups else None) for k in range(frames)]


def _plane(path: Path, k: int, rows: int, columns: int, head: pydicom.Dataset, shared, own) -> Plane:
    """Attributes come from the frame's own group, else the shared group, else the file."""

    def get(sequence: str, name: str):
        for group in (own, shared):
            item = _first(group, sequence) if group is not None else None
            if item is not None and item.get(name) is not None:
                return item.get(name)
        return head.get(name)

    def numbers(sequence: str, name: str, count: int) -> np.ndarray | None:
        value = get(sequence, name)
        if value is None or value == "":
            return None
        try:
            array = np.asarray(value, float).reshape(-1)
        except (TypeError, ValueError) as error:
            raise DataError(f"{name} is no list of numbers", where=path, found=_shown(value, _NUMBERS)) from error
        if len(array) != count or not np.isfinite(array).all():
            raise DataError(f"{name} is damaged", where=path, found=array.tolist(), allowed=f"{count} numbers")
        return array

    axes = numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6)
    if axes is not None:
        _check_axes(axes, path)
    spacing = numbers("PixelMeasuresSequence", "PixelSpacing", 2)
    if spacing is None and (spacing := numbers("PixelMeasuresSequence", "ImagerPixelSpacing", 2)) is not None:
        note("no PixelSpacing: ImagerPixelSpacing is used, which is measured at the detector, not in the patient", path)
    gap = [numbers("PixelMeasuresSequence", name, 1) for name in ("SpacingBetweenSlices", "SliceThickness")]
    slope, inter = (numbers("PixelValueTransformationSequence", name, 1) for name in ("RescaleSlope", "RescaleIntercept"))
    slope = 1.0 if slope is None or slope[0] == 0 else float(slope[0])
    position = numbers("PlanePositionSequence", "ImagePositionPatient", 3)
    thickness = next((float(abs(g[0])) for g in gap if g is not None and g[0] != 0), None)
    pair = None if spacing is None else (float(spacing[0]), float(spacing[1]))
    return Plane(path, k, rows, columns, position, axes, pair, thickness, slope, 0.0 if inter is None else float(inter[0]))


def _check_axes(axes: np.ndarray, path: Path) -> None:
    row, column = axes[:3], axes[3:]
    if max(abs(np.linalg.norm(row) - 1), abs(np.linalg.norm(column) - 1), abs(row @ column)) > 1e-2:
        raise GeometryError(
            "ImageOrientationPatient is no pair of unit vectors at right angles", where=path, found=axes.tolist(), fix="export it again"
        )


def _whole(head: pydicom.Dataset, name: str, path: Path, default: int | None) -> int:
    value = head.get(name, default)
    try:
        number = int(default if value is None or value == "" else value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is missing or no number", where=path, found=_shown(value, _NUMBERS)) from error
    if number < 1:
        raise DataError(f"{name} is zero or negative", where=path, found=number)
    return number


def _shown(value: object, pattern: re.Pattern) -> str:
    """The value, if it looks as it should: in a damaged header any attribute may hold the patient's name."""
    return str(value) if pattern.fullmatch(str(value)) else "an unreadable value"


def _first(group, name: str):
    items = group.get(name) if group is not None else None
    return items[0] if items else None


def _syntax(head: pydicom.Dataset):
    return getattr(head, "file_meta", pydicom.Dataset()).get("TransferSyntaxUID")


def _compressed(head: pydicom.Dataset) -> bool:
    syntax = _syntax(head)
    return syntax is not None and syntax.is_transfer_syntax and (syntax.is_compressed or syntax.is_deflated)


def _expansion(head: pydicom.Dataset) -> int:
    """How much larger than the file its raw pixels can be: YBR_FULL_422 leaves out half the colour samples."""
    return 2 if str(head.get("PhotometricInterpretation", "")).endswith("422") else 1


def _colours(head: pydicom.Dataset) -> int:
    if str(head.get("PhotometricInterpretation", "")) == _PALETTE:
        return 3
    return int(head.get("SamplesPerPixel", 1) or 1)


def _result(planes: Sequence[Plane], head: pydicom.Dataset) -> np.dtype:
    if any((p.slope, p.inter) != (1.0, 0.0) for p in planes):
        return np.dtype(np.float32)
    if str(head.get("PhotometricInterpretation", "")) == _PALETTE:
        return np.dtype(np.uint8)
    bits = max(8, int(head.get("BitsAllocated", 16)))
    return np.dtype(f"{'i' if int(head.get('PixelRepresentation', 0) or 0) else 'u'}{bits // 8}")


# ---------------------------------------------------------------------------------------------------------------------------- geometry
def _check_alike(planes: Sequence[Plane], heads: dict[Path, pydicom.Dataset], where: str) -> None:
    sizes = Counter((p.rows, p.columns) for p in planes)
    formats = Counter((_colours(h), int(h.get("BitsAllocated", 0)), int(h.get("PixelRepresentation", 0) or 0)) for h in heads.values())
    if len(sizes) > 1:
        found = ", ".join(f"{r} x {c} ({n} slices)" for (r, c), n in sizes.most_common())
        raise DataError(
            "slices of different sizes in one series", where=where, found=found, fix="remove the localizer or the reformatted slices"
        )
    if len(formats) > 1:
        raise DataError("slices of different pixel formats in one series", where=where, found=f"(colours, bits, signed) {dict(formats)}")


def _sorted(planes: list[Plane], where: str) -> list[Plane]:
    """By position along the normal; refuses mixed orientations and doubled slices."""
    first = planes[0].axes
    turned = [p.label for p in planes if np.abs(p.axes - first).max() > _TURNED]
    if turned:
        fix = "remove the localizer or the second orientation from the folder"
        raise GeometryError("slices of different orientations in one series (a localizer?)", where=where, found=_some(turned), fix=fix)
    planes = sorted(planes, key=lambda p: float(p.position @ planes[0].normal))
    at = np.array([p.position @ planes[0].normal for p in planes])
    same = np.nonzero(np.diff(at) < 1e-3)[0]
    if len(same):
        pairs = [f"{planes[i].label} = {planes[i + 1].label} at {at[i]:.2f} mm" for i in same]
        fix = "keep one of each; several time points or echoes belong in folders of their own"
        raise GeometryError(f"{len(same)} slices lie where another one lies", where=where, found=_some(pairs), fix=fix)
    if len(planes) > 2:
        _check_even(planes, at, where)
    return planes


def _check_even(planes: Sequence[Plane], at: np.ndarray, where: str) -> None:
    """Refuses missing and unevenly spaced slices, and slices that jump sideways."""
    gaps = np.diff(at)
    usual = float(np.median(gaps))
    missing = [
        f"{round(g / usual) - 1} between {planes[i].label} ({at[i]:.2f} mm) and {planes[i + 1].label} ({at[i + 1]:.2f} mm)"
        for i, g in enumerate(gaps)
        if g > 1.5 * usual and abs(g / usual - round(g / usual)) < 0.1
    ]
    if missing:
        raise GeometryError("slices are missing", where=where, found=_some(missing), fix="export the whole series, or split it at the gap")
    line = np.linspace(planes[0].position, planes[-1].position, len(planes))
    off = np.linalg.norm(np.array([p.position for p in planes]) - line, axis=1)
    if off.max() > _ALONG * usual:
        found = f"gaps of {gaps.min():.3g} to {gaps.max():.3g} mm; {planes[int(off.argmax())].label} is {off.max():.3g} mm off an even row"
        raise GeometryError(
            "the slices are not evenly spaced along a line", where=where, found=found, fix="resample the series, for example with dcm2niix"
        )
    if off.max() > 0.01 * usual:
        note(f"slices lie up to {off.max():.2g} mm off an even row; the mean spacing is used", where)


def _volume(planes: Sequence[Plane], where: str) -> Geometry:
    first, last = planes[0], planes[-1]
    if any(p.spacing is None for p in planes):
        raise GeometryError("no PixelSpacing", where=where, fix="export the series again with its spacing")
    spread = np.ptp([p.spacing for p in planes], axis=0).max()
    if spread > 1e-3 * min(first.spacing):
        raise GeometryError("PixelSpacing differs between slices", where=where, found=f"by {spread:.3g} mm")
    if len(planes) > 1:
        step = (last.position - first.position) / (len(planes) - 1)
    else:
        if first.thickness is None:
            note("a single slice without a thickness: 1 mm is assumed", where)
        step = first.normal * (first.thickness or 1.0)
    row, column = first.axes[:3] / np.linalg.norm(first.axes[:3]), first.axes[3:] / np.linalg.norm(first.axes[3:])
    check_spacing([*first.spacing, np.linalg.norm(step)], where)
    _check_tilt(step, row, column, where)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * first.spacing[1], column * first.spacing[0], step
    affine[:3, 3] = first.position
    shape = (first.columns, first.rows, len(planes))
    if shear(affine) <= _ROUNDED:
        affine = without_shear(shape, affine)
    return geometry_of(shape, LPS @ affine, where)


def _check_tilt(step: np.ndarray, row: np.ndarray, column: np.ndarray, where: str) -> None:
    unit = step / np.linalg.norm(step)
    sine = float(np.hypot(unit @ row, unit @ column))
    if sine > LITTLE:
        fix = "straighten it first: dcm2niix writes a corrected file (..._Tilt_1)"
        found = f"{math.degrees(math.asin(min(1, sine))):.2f} degrees"
        raise GeometryError("the slices are sheared against each other (gantry tilt)", where=where, found=found, fix=fix)


def _flat(plane: Plane, spacing: tuple[float, ...] | None, where: str) -> Geometry:
    return spaced((plane.rows, plane.columns), plane.spacing or spacing, where)


def _some(items: Sequence[str], most: int = 5) -> str:
    return "; ".join(items[:most]) + (f"; and {len(items) - most} more" if len(items) > most else "")


# ------------------------------------------------------------------------------------------------------------------------------ pixels
def _pixels(path: Path) -> tuple[np.ndarray, bool]:
    """(frames, rows, columns, colours) and whether the rescale is already applied (by ITK)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, force=True)
            if _syntax(dataset) is None:
                dataset.file_meta = getattr(dataset, "file_meta", None) or pydicom.dataset.FileMetaDataset()
                dataset.file_meta.TransferSyntaxUID = _guessed_syntax(dataset)
            pixels = dataset.pixel_array
            if str(dataset.get("PhotometricInterpretation", "")) == _PALETTE:
                pixels = apply_color_lut(pixels, dataset)
                pixels = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)  # 16-bit tables hold 8-bit colours
    except MemoryError as error:
        raise ResourceError("not enough memory for this picture", where=path) from error
    except (RuntimeError, NotImplementedError) as error:
        return _by_itk(path, dataset, error), True
    except Exception as error:
        raise DataError("the pixel data are damaged or truncated", where=path, found=_sentence(error), fix="export it again") from error
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    pixels = pixels.reshape((frames, int(dataset.Rows), int(dataset.Columns), -1))
    if str(dataset.get("PhotometricInterpretation", "")) == "MONOCHROME1":
        pixels = _inverted(pixels, int(dataset.BitsStored))
    return pixels, False


def _sentence(error: Exception) -> str:
    """The beginning of a library's message, on one line."""
    return " ".join(str(error).split())[:160]


def _guessed_syntax(dataset: pydicom.Dataset) -> pydicom.uid.UID:
    """Files without a meta header: what pydicom found when it parsed them."""
    implicit, little = dataset.original_encoding
    if not little:
        return pydicom.uid.ExplicitVRBigEndian
    return pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian


def _inverted(pixels: np.ndarray, stored: int) -> np.ndarray:
    """MONOCHROME1 -> MONOCHROME2: the largest storable value becomes the least."""
    if pixels.dtype.kind == "i":
        return -1 - pixels
    return (pixels.dtype.type(2**stored - 1) - pixels).astype(pixels.dtype)


def _by_itk(path: Path, dataset: pydicom.Dataset, reason: Exception) -> np.ndarray:
    """Codecs that pydicom lacks here (JPEG lossless, JPEG-LS): GDCM within SimpleITK, which also rescales and inverts."""
    import SimpleITK as sitk

    try:
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
    except RuntimeError as error:
        syntax = _syntax(dataset)
        name = syntax.name if syntax is not None and syntax.is_transfer_syntax else "unknown transfer syntax"
        raise DataError(
            "the pixel data cannot be decoded", where=path, found=f"{name}: {_sentence(reason)}", fix="export it uncompressed"
        ) from error
    return array.reshape((int(dataset.get("NumberOfFrames", 1) or 1), int(dataset.Rows), int(dataset.Columns), -1))
