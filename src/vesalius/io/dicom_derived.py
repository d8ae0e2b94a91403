"""What the DICOM objects made from a series have in common (SEG: dicom_seg.py, RTSTRUCT: rtstruct.py): the series they point back to, the
label map on its grid, and its structures with names, colours and codes.

Of the patient and the study only the attributes in ``_CARRIED`` go on, as the series has them; all else in the new object is its own.
Source: DICOM PS3.3 C.7.1-C.7.4 (patient, study, frame of reference), PS3.16 CID 7150 and 7151 (categories and types of what is segmented).
"""

from __future__ import annotations

import colorsys
import datetime
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from .. import __version__
from ..core.case import IGNORE, LabelMap
from ..core.errors import DataError, GeometryError, UsageError, nearest
from ..core.geometry import Geometry
from . import dicom
from .frames import LITTLE, LPS, check_spacing, shear
from .kind import checked_file
from .notes import note

LONG_STRING = 64  # characters of a DICOM value of type LO
UTF8 = "ISO_IR 192"
_CARRIED = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize", "PatientWeight"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "LongitudinalTemporalInformationModified"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "StudyDescription"),
)
_MAY_BE_EMPTY = (  # must stand in the object even where the series says nothing (type 2)
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
_ONE = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")  # the same in all files of a series


@dataclass(frozen=True)
class Coding:
    """A concept: (code, coding scheme, meaning) of what a structure is, of its category, and its side ('left', 'right' or none)."""

    type: tuple[str, str, str]
    category: tuple[str, str, str]
    side: str = ""


@dataclass(frozen=True)
class Structure:
    """One structure to be written: its number from 1 on, name, RGB colour (0-255) and code."""

    number: int
    name: str
    colour: tuple[int, int, int]
    coding: Coding


# -------------------------------------------------------------------------------------------------------------------------- the series
@dataclass(frozen=True)
class Source:
    """A series that others refer to: its slices in the order of the grid's last axis, and the headers of their files."""

    where: str
    planes: Sequence[dicom.Plane]
    geometry: Geometry
    heads: Mapping[Path, Dataset]

    @property
    def head(self) -> Dataset:
        return next(iter(self.heads.values()))

    def uid(self, plane: dicom.Plane, name: str = "SOPInstanceUID") -> str:
        return str(self.heads[plane.path][name].value)


def opened(series: str | Path | Sequence[str | Path], *, patient: str | None = None) -> Source:
    """The series of a folder ('folder', 'folder#SeriesInstanceUID'), a file or a list of files. Slices with gantry tilt are let in: what is
    derived lies on each slice. ``patient``: the PatientID it has to be of.

    Raises DataError or GeometryError for no series, several series, files of several patients or studies, another patient's series, headers
    without the identifiers that a reference needs, and whatever makes no volume (see dicom.py).
    """
    single = isinstance(series, (str, Path))
    if not single and len(series) == 1:
        series, single = series[0], True
    where = str(series) if single else f"{len(series)} files"
    if not single and not series:
        raise DataError("no source series: DICOM SEG and RTSTRUCT refer to the images they were drawn on", fix="name its folder or files")
    if single:
        chosen = str(series)
        if not Path(chosen).exists() and not Path(chosen.rsplit("#", 1)[0]).is_dir():
            raise DataError("there is no such file or folder", where=chosen, fix="name the folder of the DICOM series")
        if Path(chosen).is_file() and dicom.sniff(chosen) != "dicom":
            raise DataError("the source of a DICOM SEG or RTSTRUCT is a DICOM series", where=chosen, found=dicom.sniff(chosen))
        heads = dicom._chosen(chosen)
    else:
        heads = {path: dicom._head(path) for path in map(checked_file, series)}
        others = [p.name for p, h in heads.items() if not dicom._is_image(h)]
        if others:
            raise DataError("these files are no images", where=where, found=dicom._some(others))
    _check_one(heads, where, patient)
    planes = [plane for path, head in heads.items() for plane in dicom._planes(path, head)]
    dicom._check_alike(planes, heads, where)
    if any(p.position is None or p.axes is None for p in planes):
        if len(planes) > 1:
            raise GeometryError("some slices have no position in space", where=where, fix="export the series again with its geometry")
        return Source(where, planes, dicom._flat(planes[0], (1.0, 1.0), where), heads)
    planes = dicom._sorted(planes, where)
    if not next(iter(heads.values())).get("FrameOfReferenceUID"):
        raise DataError("no FrameOfReferenceUID: positions in this series mean nothing to others", where=where, fix="export it again")
    return Source(where, planes, _grid(planes, where), heads)


def _check_one(heads: Mapping[Path, Dataset], where: str, patient: str | None) -> None:
    """Values of identifiers are never shown: they are the patient's."""
    for name in _ONE:
        kinds = Counter(str(head.get(name, "")) for head in heads.values())
        if len(kinds) > 1:
            raise DataError(f"the files are not of one series: {name} differs", where=where, found=f"{len(kinds)} values", allowed="1")
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        bare = [path.name for path, head in heads.items() if not head.get(name)]
        if bare:
            raise DataError(f"no {name}, so nothing can refer to this image", where=where, found=dicom._some(bare), fix="export it again")
    if patient is not None and str(next(iter(heads.values())).get("PatientID", "")) != patient:
        raise DataError("this series is of another patient", where=where, fix="name the series that the label map was made on")


def _grid(planes: Sequence[dicom.Plane], where: str) -> Geometry:
    """The series' grid as ``read_image`` has it; with gantry tilt the sheared one, on which the slices lie as they were taken."""
    first, last = planes[0], planes[-1]
    if first.spacing is None or len(planes) < 2:
        return dicom._volume(planes, where)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = first.axes[:3] * first.spacing[1], first.axes[3:] * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = (last.position - first.position) / (len(planes) - 1), first.position
    if shear(affine) <= LITTLE:
        return dicom._volume(planes, where)
    check_spacing(np.linalg.norm(affine[:3, :3], axis=0), where)
    return Geometry((first.columns, first.rows, len(planes)), LPS @ affine)


def carried(source: Source) -> Dataset:
    """The patient's and study's attributes that go on, decoded, in a data set whose texts are UTF-8."""
    out = Dataset()
    out.SpecificCharacterSet = UTF8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unusual values are the series', not ours
        for name in _CARRIED:
            value = source.head.get(name)
            if value is not None and value != "":
                setattr(out, name, str(value) if name.endswith("Name") else value)
            elif name in _MAY_BE_EMPTY:
                setattr(out, name, "")
    return out


def new_object(source: Source, sop_class: str, modality: str, syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """An object of a new series in the source's study, with fresh UIDs, made now, by Vesalius."""
    out = carried(source)
    out.SOPClassUID, out.SOPInstanceUID, out.SeriesInstanceUID = sop_class, generate_uid(prefix=None), generate_uid(prefix=None)
    out.Modality, out.SeriesNumber, out.InstanceNumber = modality, series_number(source), 1
    out.Manufacturer, out.ManufacturerModelName, out.SoftwareVersions = "Vesalius", "Vesalius", __version__
    now = datetime.datetime.now()
    out.InstanceCreationDate = out.SeriesDate = now.strftime("%Y%m%d")
    out.InstanceCreationTime = out.SeriesTime = now.strftime("%H%M%S")
    out.file_meta = FileMetaDataset()
    out.file_meta.MediaStorageSOPClassUID, out.file_meta.MediaStorageSOPInstanceUID = sop_class, out.SOPInstanceUID
    out.file_meta.TransferSyntaxUID = syntax
    return out


def series_number(source: Source) -> int:
    """1000 beyond the source's."""
    try:
        return 1000 + max(0, int(source.head.get("SeriesNumber") or 0))
    except (TypeError, ValueError):
        return 1000


# ------------------------------------------------------------------------------------------------------------------- the label map on it
def structures_on(
    source: Source,
    label: LabelMap,
    path: str | Path,
    *,
    names: Mapping[str, str] | None = None,
    colours: Mapping[str, tuple[int, int, int]] | None = None,
    codes: Mapping[str, Coding] | None = None,
) -> tuple[list[Structure], np.ndarray]:
    """The structures that occur, numbered from 1 in the label map's order, and their voxels on the source's grid: (*shape) of numbers, or
    (n, *shape) bool of a label map whose structures overlap. Every object of an instance map is a structure ('nodule 3').

    ``names`` are written instead of the label map's; ``colours`` and ``codes`` stand above the table of colours and ``coding``; all three
    are by the label map's names. A map on another grid is resampled. Raises DataError for empty maps, voxels that nobody spoke for, names
    that DICOM cannot hold, GeometryError where the map lies outside the series, UsageError for names that the map does not have.
    """
    names, colours, codes = names or {}, colours or {}, codes or {}
    for what, table in (("name", names), ("colour", colours), ("code", codes)):
        for name in table:
            if name not in label.names:
                raise UsageError(f"a {what} for a structure that the label map does not have", found=name, fix=nearest(name, label.names))
    label = _on(source, label, path)
    data = np.asarray(label.data)
    if label.overlapping:
        spoken = label.names[len(label.names) - len(data) :]
        there = [k for k in range(len(data)) if data[k].any() and spoken[k] != "background"]
        keys = [spoken[k] for k in there]
        out = data[there].astype(bool)
    else:
        ids = np.unique(data)
        there = [int(v) for v in ids if v > 0]
        if not label.instances and there and there[-1] >= len(label.names):
            raise DataError("class indices without a name", where=path, found=there[-1], allowed=f"0 to {len(label.names) - 1}")
        keys = [label.names[-1] if label.instances else label.names[v] for v in there]
        out = np.searchsorted(np.array([0, *there]), data).astype(np.uint8 if len(there) < 256 else np.uint16)
    if not there:
        fix = "a SEG or RTSTRUCT without structures is not valid; there is nothing to write"
        raise DataError("the label map is empty on the series' grid", where=path, found="no voxel of any structure", fix=fix)
    numbered = label.instances and not label.overlapping
    found = []
    for number, (value, key) in enumerate(zip(there, keys, strict=True), 1):
        name = f"{names.get(key, key)} {value}" if numbered else names.get(key, key)
        colour = _checked_colour(colours[key], key) if key in colours else palette(number - 1)
        found.append(Structure(number, checked_text(name, "the structure's name", path), colour, codes.get(key) or coding(key)))
    twice = [n for n, count in Counter(s.name for s in found).items() if count > 1]
    if twice:
        raise DataError("two structures have one name", where=path, found=twice[0], fix="give names={...} that differ")
    return found, out


def _on(source: Source, label: LabelMap, path: str | Path) -> LabelMap:
    """The label map on the source's grid; refused where no structure lies in it, noted where a part lies outside."""
    grid = source.geometry
    if label.geometry.ndim != grid.ndim:
        allowed = f"{grid.ndim}D, {grid.describe()}"
        raise GeometryError("the label map and the series are not of one dimension", where=path, found=label.geometry.ndim, allowed=allowed)
    data = np.asarray(label.data)
    if data.dtype.kind not in "biu":
        raise DataError("a label map holds integers", where=path, found=data.dtype)
    if data.shape != ((len(data),) if label.overlapping else ()) + label.geometry.shape:
        raise GeometryError("the label map does not lie on its grid", where=path, found=data.shape, allowed=label.geometry.shape)
    unknown = 0 if label.overlapping else int((data == IGNORE).sum()) if data.dtype.kind == "i" else 0
    if unknown:
        raise DataError("voxels that nobody spoke for (IGNORE) cannot be written as background", where=path, found=f"{unknown} voxels")
    if data.dtype == bool and not label.overlapping:
        label = replace(label, source=(data := data.view(np.uint8)))
    if label.geometry.close(grid):
        return label
    inside, whole = _inside(data.any(0) if label.overlapping else data > 0, label.geometry, grid)
    if whole and not inside:
        raise GeometryError(
            "the label map lies outside the series",
            where=path,
            found=label.geometry.describe(),
            allowed=grid.describe(),
            fix="name the series it was made on; one of another patient or of another frame of reference does not do",
        )
    if inside < whole:
        note(f"{whole - inside} of {whole} voxels of the label map lie outside the series and are not written", path)
    placed = label.on(grid)
    if not label.overlapping and not label.instances:
        lost = sorted(set(np.unique(data).tolist()) - set(np.unique(placed.data).tolist()) - {0})
        for value in lost:
            note(f"'{label.names[value]}' has no voxel on the series' grid and is not written", path)
    return placed


def _inside(mask: np.ndarray, src: Geometry, dst: Geometry) -> tuple[int, int]:
    """How many voxels of a mask have their centre within another grid, and how many there are; counted in slabs."""
    inside = whole = 0
    for i, slab in enumerate(mask):
        at = np.argwhere(slab)
        if len(at):
            index = dst.to_index(src.to_world(np.column_stack([np.full(len(at), i), at])))
            inside += int(((index >= -0.5) & (index <= np.array(dst.shape) - 0.5)).all(1).sum())
            whole += len(at)
    return inside, whole


# ---------------------------------------------------------------------------------------------------------------------- names and colours
def checked_text(text: str, what: str, where: str | Path) -> str:
    """A text as a DICOM LO value: stripped; DataError where it is empty, longer than 64 characters, or holds a backslash or control."""
    text = text.strip()
    if not text:
        raise DataError(f"{what} is empty", where=where)
    if len(text) > LONG_STRING:
        fix = "give a shorter one with names={...}"
        raise DataError(f"{what} is longer than DICOM allows", where=where, found=f"{len(text)} characters", allowed=LONG_STRING, fix=fix)
    if "\\" in text or not text.isprintable():
        raise DataError(f"{what} holds a backslash or a control character, which DICOM cannot hold", where=where, found=repr(text))
    return text


def palette(k: int) -> tuple[int, int, int]:
    """The k-th colour, RGB 0-255: hues a golden angle apart, so that neighbours differ however many there are."""
    return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(0.61803398875 * k % 1.0, 0.65 + 0.25 * (k // 5 % 2), 0.95))


def _checked_colour(colour: Sequence[int], name: str) -> tuple[int, int, int]:
    values = tuple(int(v) for v in colour)
    if len(values) != 3 or min(values) < 0 or max(values) > 255 or values != tuple(colour):
        raise UsageError("a colour is three whole numbers", where=name, found=tuple(colour), allowed="0 to 255 each")
    return values


# ----------------------------------------------------------------------------------------------------------------------------------- codes
ANATOMY = ("91723000", "SCT", "Anatomical Structure")
ABNORMAL = ("49755003", "SCT", "Morphologically Abnormal Structure")
TISSUE = ("85756007", "SCT", "Tissue")
_SIDES = {"left": ("7771000", "SCT", "Left"), "right": ("24028007", "SCT", "Right")}
_SAME = {
    "tumour": "tumor", "neoplasm": "tumor", "oedema": "edema", "esophagus": "oesophagus", "grey matter": "gray matter",
    "wm": "white matter", "gm": "gray matter", "adrenal": "adrenal gland", "urinary bladder": "bladder", "lungs": "lung",
    "kidneys": "kidney", "inferior vena cava": "ivc", "vessel": "blood vessel", "vessels": "blood vessel", "optic disk": "optic disc",
    "disc": "optic disc", "thyroid gland": "thyroid", "gall bladder": "gallbladder", "necrotic": "necrosis",
    "peripheral zone of the prostate": "peripheral zone",
}  # fmt: skip
_ANATOMICAL = {
    "liver": ("10200004", "Liver"), "spleen": ("78961009", "Spleen"), "kidney": ("64033007", "Kidney"),
    "pancreas": ("15776009", "Pancreas"), "gallbladder": ("28231008", "Gallbladder"),
    "stomach": ("69695003", "Stomach"), "duodenum": ("38848004", "Duodenum"),
    "oesophagus": ("32849002", "Esophagus"), "colon": ("71854001", "Colon"), "rectum": ("34402009", "Rectum"),
    "adrenal gland": ("23451007", "Adrenal gland"), "bladder": ("89837001", "Bladder"), "prostate": ("41216001", "Prostate"),
    "peripheral zone": ("279706003", "Peripheral zone of the prostate"), "uterus": ("35039007", "Uterus"), "ovary": ("15497006", "Ovary"),
    "placenta": ("78067005", "Placenta"), "breast": ("76752008", "Breast"), "lung": ("39607008", "Lung"),
    "trachea": ("44567001", "Trachea"), "heart": ("80891009", "Heart"), "left ventricle": ("87878005", "Left ventricle"),
    "right ventricle": ("53085002", "Right ventricle"),
    "left atrium": ("82471001", "Left atrium"), "right atrium": ("73829009", "Right atrium"), "myocardium": ("74281007", "Myocardium"),
    "aorta": ("15825003", "Aorta"), "ivc": ("64131007", "Inferior vena cava"), "portal vein": ("32764006", "Portal vein"),
    "blood vessel": ("59820001", "Blood Vessel"), "lymph node": ("59441001", "Lymph Node"), "thyroid": ("69748006", "Thyroid"),
    "brain": ("12738006", "Brain"), "brain stem": ("119238007", "Brain Stem"), "white matter": ("389080008", "White Matter"),
    "gray matter": ("389081007", "Gray Matter"), "hippocampus": ("5366008", "Hippocampus"), "thalamus": ("119406000", "Thalamus"),
    "putamen": ("89278009", "Putamen"), "caudate nucleus": ("11000004", "Caudate Nucleus"), "spinal cord": ("2748008", "Spinal cord"),
    "eye": ("81745001", "Eye"), "optic disc": ("81016008", "Optic disc"), "bone": ("272673000", "Bone"), "femur": ("71341001", "Femur"),
    "clavicle": ("51299004", "Clavicle"), "skin": ("39937001", "Skin"),
}  # fmt: skip
_MORPHOLOGICAL = {
    "lesion": ("52988006", "Lesion"), "tumor": ("108369006", "Neoplasm"), "mass": ("4147007", "Mass"), "nodule": ("27925004", "Nodule"),
    "cyst": ("367643001", "Cyst"), "necrosis": ("6574001", "Necrosis"), "edema": ("79654002", "Edema"),
}  # fmt: skip


def coding(name: str) -> Coding:
    """The SNOMED CT code of a structure by its name ('left kidney', 'kidney_left', 'Tumour'); 'Tissue' where the table has none."""
    words = name.lower().replace("_", " ").replace("-", " ").split()
    if found := _known(" ".join(words)):
        return found
    for side in _SIDES:
        if side in (words[:1] + words[-1:]):
            rest = words[1:] if words[0] == side else words[:-1]
            if found := _known(" ".join(rest)):
                return replace(found, side=side)
    return Coding(TISSUE, TISSUE)


def _known(name: str) -> Coding | None:
    name = _SAME.get(name, name)
    for table, category in ((_ANATOMICAL, ANATOMY), (_MORPHOLOGICAL, ABNORMAL)):
        if name in table:
            code, meaning = table[name]
            return Coding((code, "SCT", meaning), category)
    return None


def code_item(code: tuple[str, str, str], side: str = "") -> Dataset:
    """A code as a sequence item, with its side as a modifier."""
    out = Dataset()
    out.CodeValue, out.CodingSchemeDesignator, out.CodeMeaning = code
    if side:
        out.SegmentedPropertyTypeModifierCodeSequence = pydicom.Sequence([code_item(_SIDES[side])])
    return out
