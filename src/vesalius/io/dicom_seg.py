"""Label maps as DICOM segmentations (SEG): one binary segment a structure, on the slices of the series they were drawn on.

Each frame lies where its source slice lies (oblique, descending, with gantry tilt) and names it; frames without a voxel are left out.
Writing is highdicom's (``pip install 'vesalius[dicom]'``).
Source: DICOM PS3.3 A.51 and C.8.20 (segmentation), PS3.16 CID 7150, 7151 and 7162.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from .. import __version__
from ..core.case import LabelMap
from ..core.errors import DataError, UsageError
from .atomic import atomic
from .dicom_derived import UTF8, Coding, Source, Structure, carried, checked_text, code_item, opened, series_number, structures_on
from .notes import quiet

KINDS = ("automatic", "semiautomatic", "manual")
_IMAGE = (  # what a frame takes over from its slice
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "FrameOfReferenceUID", "PositionReferenceIndicator"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "Rows", "Columns"),
    *("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("DimensionOrganizationSequence", "DimensionIndexSequence", "ImageType"),
)


def write_dicom_seg(
    path: str | Path,
    label: LabelMap,
    series: str | Path | Sequence[str | Path],
    *,
    names: Mapping[str, str] | None = None,
    colours: Mapping[str, tuple[int, int, int]] | None = None,
    codes: Mapping[str, Coding] | None = None,
    algorithm: str = "Vesalius",
    version: str = __version__,
    how: str = "automatic",
    description: str = "Segmentation",
    patient: str | None = None,
) -> None:
    """Write ``label`` as a binary DICOM SEG that refers to ``series`` (its folder, 'folder#SeriesInstanceUID', or its files), atomically.

    The map may lie on any grid: it is brought onto the series'. Only structures that occur are written, numbered from 1 in the map's order;
    ``names``, ``colours`` (RGB 0-255) and ``codes`` are by the map's own names (``dicom_derived.structures_on``). ``algorithm`` and its
    ``version`` say what made it, and ``how``: automatic | semiautomatic | manual. ``description``: of the new series. ``patient``: the
    PatientID that the series must have. Raises UsageError (highdicom is missing, unknown names), DataError and GeometryError.
    """
    if how not in KINDS:
        raise UsageError("no way a segmentation is made", where="how", found=how, allowed=", ".join(KINDS))
    try:
        import highdicom
    except ImportError as error:
        raise UsageError("DICOM SEG is written by highdicom", found=str(error), fix="run: pip install 'vesalius[dicom]'") from error
    algorithm, version = checked_text(algorithm, "the algorithm's name", path), checked_text(version, "the algorithm's version", path)
    description = checked_text(description, "the series' description", path)
    source = opened(series, patient=patient)
    found, voxels = structures_on(source, label, path, names=names, colours=colours, codes=codes)
    with warnings.catch_warnings(), quiet("highdicom.base"):
        warnings.simplefilter("ignore")  # unusual values of the source's header
        try:
            seg = highdicom.seg.Segmentation(
                source_images=_images(source),
                pixel_array=_frames(source, voxels, len(found)),
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=[_described(s, algorithm, version, how) for s in found],
                series_instance_uid=generate_uid(prefix=None),
                series_number=series_number(source),
                sop_instance_uid=generate_uid(prefix=None),
                instance_number=1,
                manufacturer="Vesalius",
                manufacturer_model_name="Vesalius",
                software_versions=__version__,
                device_serial_number="0",
                series_description=description,
                content_label="SEGMENTATION",
                content_description=description,
                specific_character_set=UTF8,
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(
                "the series' headers do not allow a SEG", where=source.where, found=type(error).__name__, fix="export the series again"
            ) from error
        with atomic(path) as temporary:
            seg.save_as(temporary)


def _images(source: Source) -> list[Dataset]:
    """The headers that highdicom takes over: one a slice, or the one of a multi-frame file; nothing that the SEG should not carry."""
    if len(source.heads) > 1 and len(source.planes) > len(source.heads):
        raise DataError("the series has several multi-frame files", where=source.where, allowed="one, or a file a slice")
    patient, paths = carried(source), dict.fromkeys(plane.path for plane in source.planes)
    multiframe = len(source.planes) > len(paths)
    out: list[Dataset] = []
    for path in paths:
        image = Dataset()
        image.update(patient)
        for name in _IMAGE:
            if name in source.heads[path] and source.heads[path].get(name) not in (None, ""):
                image[name] = source.heads[path][name]
        image.PatientSex = image.PatientSex if image.PatientSex in ("M", "F", "O") else ""
        image.Modality = image.get("Modality", "OT")
        if source.geometry.ndim == 3 and not multiframe:
            image.SliceThickness = image.get("SliceThickness") or f"{source.geometry.spacing[2]:.8g}"
            if out:  # the slices' orientations may differ in the last digits
                for name in ("ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
                    image[name] = out[0][name]
        out.append(image)
    return out


def _frames(source: Source, voxels: np.ndarray, count: int) -> np.ndarray:
    """(frames, rows, columns) of numbers or (frames, rows, columns, structures) of 0 and 1, in the order of ``_images``."""
    flat = source.geometry.ndim == 2
    if voxels.ndim > source.geometry.ndim:
        stack = np.moveaxis(voxels.view(np.uint8), 0, -1)
        stack = stack[None] if flat else stack.transpose(2, 1, 0, 3)
    else:
        stack = voxels[None] if flat else voxels.transpose(2, 1, 0)
    if len(source.heads) == 1 and len(source.planes) > 1:  # a multi-frame file: its own order
        stack = stack[np.argsort([plane.frame for plane in source.planes])]
    return stack


def _described(structure: Structure, algorithm: str, version: str, how: str) -> Dataset:
    import highdicom
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes as known

    by = None
    if how != "manual":
        by = highdicom.AlgorithmIdentificationSequence(algorithm, known.cid7162.ArtificialIntelligence, version)
    out = highdicom.seg.SegmentDescription(
        segment_number=structure.number,
        segment_label=structure.name,
        segmented_property_category=CodedConcept(*structure.coding.category),
        segmented_property_type=CodedConcept(*structure.coding.type),
        algorithm_type=how.upper(),
        algorithm_identification=by,
        tracking_uid=generate_uid(prefix=None),
        tracking_id=structure.name,
        display_color=highdicom.color.CIELabColor.from_rgb(*structure.colour),
    )
    if structure.coding.side:
        modifier = code_item(structure.coding.type, structure.coding.side).SegmentedPropertyTypeModifierCodeSequence
        out.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = modifier
    return out
