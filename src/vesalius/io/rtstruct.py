"""Label maps as DICOM structure sets (RTSTRUCT) and back: closed planar contours on the slices of the series they were drawn on.

A contour runs along the pixels' edges (ops/polygons.py), so that its area is the mask's and filling it at pixel centres gives the mask back
to the voxel. A hole is cut by a keyhole: the outline runs through a channel of no width, which lies on pixel edges, round the hole and
back; or, asked for, inner and outer contours are combined by exclusive or. Files are implicit VR: a contour may be longer than the 64 kB
of an explicit DS value. Source: DICOM PS3.3 A.19, C.8.8.5 (structure set), C.8.8.6 (ROI contour) and C.8.8.8 (ROI observations).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydicom import Sequence as Items
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage

from ..core.case import LabelMap
from ..core.errors import DataError, GeometryError, UsageError
from ..core.geometry import Geometry
from ..ops.polygons import polygons
from ..ops.raster import fill
from . import dicom
from .atomic import atomic
from .dicom_derived import Coding, Source, Structure, checked_text, code_item, new_object, opened, structures_on
from .kind import checked_file
from .notes import note

HOLES = {"keyhole": "CLOSED_PLANAR", "xor": "CLOSEDPLANAR_XOR"}
KINDS = ("automatic", "semiautomatic", "manual")
_STUDY = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management: what a structure set's study is referred to as
_DATA = Tag("ContourData")
_OFF = 0.1  # of the slice distance that a contour may lie off its slice
_DIGITS = 4  # decimals of a millimetre


def write_rtstruct(
    path: str | Path,
    label: LabelMap,
    series: str | Path | Sequence[str | Path],
    *,
    names: Mapping[str, str] | None = None,
    colours: Mapping[str, tuple[int, int, int]] | None = None,
    codes: Mapping[str, Coding] | None = None,
    algorithm: str = "Vesalius",
    how: str = "automatic",
    description: str = "Structure set",
    holes: str = "keyhole",
    patient: str | None = None,
) -> None:
    """Write ``label`` as an RTSTRUCT that refers to ``series`` (its folder, 'folder#SeriesInstanceUID', or its files), atomically.

    The map may lie on any grid: it is brought onto the series'. Only structures that occur are written, numbered from 1 in the map's order;
    ``names``, ``colours`` (RGB 0-255) and ``codes`` are by the map's own names (``dicom_derived.structures_on``). ``algorithm``: what made
    it, and ``how``: automatic | semiautomatic | manual. ``holes``: keyhole (readers of all ages) | xor. ``patient``: the PatientID that the
    series must have. Raises UsageError, DataError and GeometryError (also for pictures without a position in space).
    """
    for what, value, known in (("how", how, KINDS), ("holes", holes, HOLES)):
        if value not in known:
            raise UsageError("no such choice", where=what, found=value, allowed=", ".join(known))
    algorithm, description = checked_text(algorithm, "the algorithm's name", path), checked_text(description, "the description", path)
    source = opened(series, patient=patient)
    if source.geometry.ndim == 2:
        fix = "write a SEG or a picture instead"
        raise GeometryError("contours need a position in space, and this picture has none", where=source.where, fix=fix)
    found, voxels = structures_on(source, label, path, names=names, colours=colours, codes=codes)
    out = new_object(source, RTStructureSetStorage, "RTSTRUCT", ImplicitVRLittleEndian)
    out.SeriesDescription, out.StructureSetLabel, out.StructureSetName = description, "VESALIUS", description
    out.StructureSetDate, out.StructureSetTime = out.SeriesDate, out.SeriesTime
    frame = str(source.head.FrameOfReferenceUID)
    out.FrameOfReferenceUID, out.PositionReferenceIndicator = frame, ""
    out.ReferencedFrameOfReferenceSequence = Items([_referred(source, frame)])
    out.StructureSetROISequence = Items([_roi(s, frame, algorithm, how) for s in found])
    out.ROIContourSequence = Items(_contours(source, found, voxels, holes))
    out.RTROIObservationsSequence = Items([_observed(s) for s in found])
    with atomic(path) as temporary:
        out.save_as(temporary, enforce_file_format=True)


# ----------------------------------------------------------------------------------------------------------------------------- sequences
def _item(**values: object) -> Dataset:
    out = Dataset()
    for name, value in values.items():
        setattr(out, name, value)
    return out


def _referred(source: Source, frame: str) -> Dataset:
    images = Items([_image(source, plane) for plane in dict((p.path, p) for p in source.planes).values()])
    series = _item(SeriesInstanceUID=str(source.head.SeriesInstanceUID), ContourImageSequence=images)
    uid = str(source.head.StudyInstanceUID)
    study = _item(ReferencedSOPClassUID=_STUDY, ReferencedSOPInstanceUID=uid, RTReferencedSeriesSequence=Items([series]))
    return _item(FrameOfReferenceUID=frame, RTReferencedStudySequence=Items([study]))


def _image(source: Source, plane: dicom.Plane) -> Dataset:
    return _item(ReferencedSOPClassUID=source.uid(plane, "SOPClassUID"), ReferencedSOPInstanceUID=source.uid(plane))


def _roi(structure: Structure, frame: str, algorithm: str, how: str) -> Dataset:
    return _item(
        ROINumber=structure.number,
        ReferencedFrameOfReferenceUID=frame,
        ROIName=structure.name,
        ROIGenerationAlgorithm=how.upper(),
        ROIGenerationDescription=algorithm,
    )


def _observed(structure: Structure) -> Dataset:
    code = code_item(structure.coding.type, structure.coding.side)
    return _item(
        ObservationNumber=structure.number,
        ReferencedROINumber=structure.number,
        RTROIInterpretedType="",
        ROIInterpreter="",
        RTROIIdentificationCodeSequence=Items([code]),
    )


def _contours(source: Source, found: Sequence[Structure], voxels: np.ndarray, holes: str) -> list[Dataset]:
    """One item of ROIContourSequence a structure."""
    several = len(source.planes) > len(source.heads)
    drawn: dict[int, list[Dataset]] = {s.number: [] for s in found}
    for k, plane in enumerate(source.planes):
        image = _image(source, plane)
        if several:
            image.ReferencedFrameNumber = plane.frame + 1
        for number, ring in _rings(voxels[..., k], holes):
            world = source.geometry.to_world(np.column_stack([ring, np.full(len(ring), k)])) * [-1, -1, 1]
            contour = _item(
                ContourImageSequence=Items([image]),
                ContourGeometricType=HOLES[holes],
                NumberOfContourPoints=len(ring),
                ContourNumber=len(drawn[number]) + 1,
            )
            contour.ContourData = [f"{x:.{_DIGITS}f}" for x in (world.round(_DIGITS) + 0.0).ravel().tolist()]
            drawn[number].append(contour)
    return [_item(ROIDisplayColor=list(s.colour), ContourSequence=Items(drawn[s.number]), ReferencedROINumber=s.number) for s in found]


def _rings(slice_: np.ndarray, holes: str) -> Iterator[tuple[int, np.ndarray]]:
    """(number, contour (n, 2) in indices) of a slice (columns, rows) of numbers or (n, columns, rows) of masks."""
    layers = [slice_] if slice_.ndim == 2 else [mask * np.uint16(number) for number, mask in enumerate(slice_, 1)]
    for layer in layers:
        at = np.argwhere(layer)
        if not len(at):
            continue
        low, high = at.min(0), at.max(0) + 1
        grid = Geometry.of(layer.shape)  # world is index
        for polygon in polygons([((int(low[0]), int(low[1])), layer[low[0] : high[0], low[1] : high[1]])], grid):
            for ring in [keyhole(polygon.rings)] if holes == "keyhole" else polygon.rings:
                yield polygon.label, ring


def keyhole(rings: Sequence[np.ndarray]) -> np.ndarray:
    """One contour (n, 2) of an outline and its holes, all along pixel edges: from the end of each hole in the second axis a channel runs
    along that axis to the nearest edge across it, of the outline or of a hole that is joined already."""
    joined, *inner = rings
    for hole in sorted(inner, key=lambda h: -h[:, 1].max()):
        start = int(hole[:, 1].argmax())
        end, following = hole[start], np.roll(joined, -1, 0)
        low, high = np.minimum(joined[:, 0], following[:, 0]), np.maximum(joined[:, 0], following[:, 0])
        across = (joined[:, 1] == following[:, 1]) & (joined[:, 1] >= end[1]) & (low <= end[0]) & (end[0] <= high)
        i = int(np.where(across, joined[:, 1], np.inf).argmin())
        gate = np.array([[end[0], joined[i, 1]]])
        joined = np.concatenate([joined[: i + 1], gate, hole[start:], hole[: start + 1], gate, joined[i + 1 :]])
    return joined


# ------------------------------------------------------------------------------------------------------------------------------- reading
def read_rtstruct(path: str | Path, series: str | Path | Sequence[str | Path]) -> LabelMap:
    """The structures of an RTSTRUCT as overlapping masks (K, *shape) bool on the grid of ``series``, by their ROI names.

    A voxel belongs to a structure when its centre lies within an odd number of the structure's closed contours on its slice: what keyholes,
    exclusive or and files that list holes as contours of their own all mean. Contours off the series' slices, points and open contours are
    left out with a note. Raises DataError for other or damaged files, GeometryError where nothing lies on the series.
    """
    head, source = dicom._head(checked_file(path)), opened(series)
    if str(head.get("Modality", "")) != "RTSTRUCT":
        raise DataError("this DICOM object is no structure set", where=path, found=dicom._shown(head.get("Modality"), dicom._CODE))
    if source.geometry.ndim == 2:
        raise GeometryError("contours need a position in space, and this picture has none", where=source.where)
    frame = str(source.head.FrameOfReferenceUID)
    rois = {str(roi.get("ROINumber")): roi for roi in head.get("StructureSetROISequence") or []}
    masks: dict[str, np.ndarray] = {}
    off = open_ = elsewhere = 0
    plane = Geometry.of(source.geometry.shape[:2])
    for item in head.get("ROIContourSequence") or []:
        roi = rois.get(str(item.get("ReferencedROINumber")))
        contours = item.get("ContourSequence") or []
        if roi is None or not contours:
            continue
        if str(roi.get("ReferencedFrameOfReferenceUID", frame)) != frame:
            elsewhere += 1
            continue
        mask = np.zeros(source.geometry.shape, bool)
        for contour in contours:
            if str(contour.get("ContourGeometricType")) not in HOLES.values():
                open_ += 1
                continue
            index = source.geometry.to_index(_points(contour, path))
            k = int(np.round(index[:, 2].mean()))
            if not 0 <= k < mask.shape[2] or np.abs(index[:, 2] - k).max() > _OFF:
                off += 1
                continue
            mask[:, :, k] ^= fill(index[:, :2], plane)
        if mask.any():
            name = str(roi.get("ROIName") or f"ROI {len(masks) + 1}")
            masks[name if name not in masks else f"{name} ({item.ReferencedROINumber})"] = mask
    if not masks:
        found = f"{elsewhere} structures of another frame of reference, {off} contours off its slices, {open_} open"
        raise GeometryError("no structure lies on this series", where=path, found=found, fix="name the series it was drawn on")
    left = [f"{n} {what}" for n, what in ((off, "contours off the slices"), (open_, "points or open contours")) if n]
    left += [f"{elsewhere} structures of another frame of reference"] if elsewhere else []
    if left:
        note(f"{' and '.join(left)} were left out", path)
    return LabelMap(np.stack(list(masks.values())), source.geometry, names=tuple(masks), overlapping=True)


def _points(contour: Dataset, path: str | Path) -> np.ndarray:
    """(n, 3) world mm, RAS+."""
    try:
        element = contour.get_item(_DATA)  # unread: a Python object a number takes many times as long
        raw = element.value.decode("ascii").split("\\") if isinstance(element.value, bytes) else element.value
        values = np.asarray(raw, float).reshape(-1, 3)
        if not len(values) or not np.isfinite(values).all():
            raise ValueError
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError("a contour is no list of points in space", where=path, fix="export it again") from error
    return values * [-1, -1, 1]
