"""DICOM SEG: geometry as the series', read back by highdicom and by a decoder of our own; codes, colours, names, PHI and bad input."""

import builtins
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr._concepts_dict import concepts
from pydicom.uid import DigitalXRayImageStorageForPresentation, EnhancedCTImageStorage
from scipy.spatial import cKDTree

from vesalius.core.case import LabelMap
from vesalius.core.errors import DataError, GeometryError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.io import VesaliusNote, dicom_derived, read_image
from vesalius.io.dicom_derived import ANATOMY, TISSUE, Coding, coding, opened
from vesalius.io.dicom_seg import write_dicom_seg

from .made import SHARED, ct_slice

SHAPE = (12, 10, 6)  # columns, rows, slices
AXES = {
    "axial": ((1, 0, 0, 0, 1, 0), (0, 0, 2.5)),
    "descending": ((1, 0, 0, 0, 1, 0), (0, 0, -2.5)),
    "mirrored": ((-1, 0, 0, 0, 1, 0), (0, 0, 2.5)),
    "sagittal": ((0, 1, 0, 0, 0, -1), (3.0, 0, 0)),
    "coronal": ((1, 0, 0, 0, 0, -1), (0, -1.7, 0)),
    "oblique": ((0.8, 0.6, 0, -0.48, 0.64, 0.6), (0.72, -0.96, 1.6)),
    "gantry": ((1, 0, 0, 0, 1, 0), (0, 0.9, 2.5)),
}
NAMES = ("background", "left kidney", "unheard of")


def series_of(folder: Path, kind: str = "axial", shape=SHAPE, **attributes) -> Path:
    """A series of slices along a direction, pixel spacing 0.8 (rows) x 0.6 mm, names in no order of place."""
    folder.mkdir()
    axes, step = AXES[kind]
    about = {"StudyInstanceUID": "1.2.3.4", "FrameOfReferenceUID": "1.2.3.9", "PatientID": "CANARY-7", "OtherPatientNames": "ZZ^SECRET"}
    for k in range(shape[2]):
        at = np.array([-11.0, 7.0, 30.0]) + k * np.array(step)
        ct_slice(
            folder / f"{(k * 7) % 11:02d}.dcm", np.full(shape[1::-1], k, np.int16), at, axes, series="1.2.5", **{**about, **attributes}
        )
    return folder


def thing(shape=SHAPE) -> np.ndarray:
    """Without any symmetry, with a hole, a touching corner and a single voxel; two structures."""
    data = np.zeros(shape, np.uint8)
    data[1:9, 2:8, 1:5] = 1
    data[3:5, 4:6, 2:4] = 0
    data[9, 8, 3], data[10, 1, 5], data[1, 2, 1] = 1, 1, 0
    data[8:11, 5:7, 0:2] = 2
    return data


def label_on(folder: Path, data=None, names=NAMES, **fields) -> LabelMap:
    return LabelMap(thing() if data is None else data, opened(folder).geometry, names=names, **fields)


def decoded(path: Path) -> dict[int, np.ndarray]:
    """Segment number -> world points (n, 3), LPS+ mm, of its voxels' centres, from the frames' own attributes alone."""
    seg, out = pydicom.dcmread(path), {}
    pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    shared = seg.SharedFunctionalGroupsSequence[0]
    for k, group in enumerate(seg.PerFrameFunctionalGroupsSequence):
        axes = np.array(
            (group if "PlaneOrientationSequence" in group else shared).PlaneOrientationSequence[0].ImageOrientationPatient, float
        )
        spacing = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
        at = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        row, column = np.nonzero(pixels[k])
        points = at + column[:, None] * axes[:3] * spacing[1] + row[:, None] * axes[3:] * spacing[0]
        number = (group if "SegmentIdentificationSequence" in group else shared).SegmentIdentificationSequence[0].ReferencedSegmentNumber
        out.setdefault(int(number), []).append(points)
    return {number: np.concatenate(points) for number, points in out.items()}


def same_points(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and cKDTree(a).query(b)[0].max() < 0.02 and cKDTree(b).query(a)[0].max() < 0.02


@pytest.mark.parametrize("kind", AXES)
def test_voxels_are_where_they_were(tmp_path, kind):
    folder = series_of(tmp_path / "s", kind)
    label = label_on(folder)
    write_dicom_seg(tmp_path / "out.dcm", label, folder)
    found = decoded(tmp_path / "out.dcm")
    for number in (1, 2):
        world = label.geometry.to_world(np.argwhere(label.data == number)) * [-1, -1, 1]
        assert same_points(found[number], world)


@pytest.mark.parametrize("kind", [k for k in AXES if k != "gantry"])
def test_highdicom_and_simpleitk_agree(tmp_path, kind):
    folder = series_of(tmp_path / "s", kind)
    label = LabelMap(thing(), read_image(folder).geometry, names=NAMES)
    write_dicom_seg(tmp_path / "out.dcm", label, folder)
    volume = highdicom.seg.segread(tmp_path / "out.dcm").get_volume(combine_segments=True)
    slice_, row, column = np.nonzero(volume.array == 1)  # LPS+ mm of (slice, row, column)
    points = np.column_stack([slice_, row, column]) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    assert same_points(points, label.geometry.to_world(np.argwhere(label.data == 1)) * [-1, -1, 1])
    image = sitk.ReadImage(str(folder / "00.dcm"))  # the first slice, as ITK places it
    world = np.array(
        [image.TransformIndexToPhysicalPoint((c, r, 0)) for c, r in np.argwhere(label.data[..., _slice(label, image)] == 1).tolist()]
    )
    assert all(np.abs(points - p).sum(1).min() < 0.02 for p in world.reshape(-1, 3))


def _slice(label: LabelMap, image: sitk.Image) -> int:
    return int(round(label.geometry.to_index(np.array(image.GetOrigin()) * [-1, -1, 1])[2]))


def test_another_grid_is_brought_onto_the_series(tmp_path):
    folder = series_of(tmp_path / "s")
    label = label_on(folder)
    flipped = LabelMap(label.data[::-1, :, ::-1], _flipped(label.geometry, (0, 2)), names=NAMES)
    write_dicom_seg(tmp_path / "a.dcm", label, folder)
    write_dicom_seg(tmp_path / "b.dcm", flipped, folder)
    a, b = decoded(tmp_path / "a.dcm"), decoded(tmp_path / "b.dcm")
    assert all(np.array_equal(a[n], b[n]) for n in (1, 2))


def _flipped(geometry: Geometry, axes) -> Geometry:
    affine = geometry.affine.copy()
    for a in axes:
        affine[:3, 3] += affine[:3, a] * (geometry.shape[a] - 1)
        affine[:3, a] *= -1
    return Geometry(geometry.shape, affine)


def test_outside_partly_outside_and_empty(tmp_path):
    folder, out = series_of(tmp_path / "s"), tmp_path / "out.dcm"
    label = label_on(folder)
    shifted = label.geometry.cropped((4, 0, 0), (16, 10, 6))
    with pytest.warns(VesaliusNote, match="lie outside the series"), pytest.warns(VesaliusNote, match="'unheard of' has no voxel"):
        write_dicom_seg(out, LabelMap(label.data, shifted, names=NAMES), folder)
    with pytest.raises(GeometryError, match="lies outside the series.*another patient"):
        write_dicom_seg(tmp_path / "no.dcm", LabelMap(label.data, label.geometry.cropped((400, 0, 0), (412, 10, 6)), names=NAMES), folder)
    with pytest.raises(DataError, match="empty on the series' grid"):
        write_dicom_seg(tmp_path / "no.dcm", LabelMap(label.data * 0, label.geometry, names=NAMES), folder)
    with pytest.raises(DataError, match="nobody spoke for"):
        write_dicom_seg(tmp_path / "no.dcm", LabelMap(label.data.astype(np.int16) - 1, label.geometry, names=NAMES), folder)
    with pytest.raises(GeometryError, match="not of one dimension"):
        write_dicom_seg(tmp_path / "no.dcm", LabelMap(np.ones((4, 4), np.uint8), Geometry.of((4, 4))), folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.dcm", "s"]


def test_what_the_header_says(tmp_path):
    folder = series_of(tmp_path / "s", PatientName="Müller^Änne", SpecificCharacterSet="ISO_IR 100", SeriesNumber=4, PatientSex="X")
    names, colours = {"unheard of": "Läsion 病变"}, {"left kidney": (255, 0, 0)}
    write_dicom_seg(tmp_path / "out.dcm", label_on(folder), folder, names=names, colours=colours, algorithm="unet", version="7")
    seg = pydicom.dcmread(tmp_path / "out.dcm")
    kidney, other = seg.SegmentSequence
    assert (kidney.SegmentNumber, kidney.SegmentLabel, other.SegmentLabel) == (1, "left kidney", "Läsion 病变")
    assert str(seg.PatientName) == "Müller^Änne" and seg.SpecificCharacterSet == "ISO_IR 192" and seg.PatientID == "CANARY-7"
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == ("64033007", "Left")
    assert other.SegmentedPropertyTypeCodeSequence[0].CodeValue == TISSUE[0]
    assert kidney.SegmentAlgorithmName == "unet" and kidney.SegmentAlgorithmType == "AUTOMATIC"
    lightness = 53.2 / 100 * 65535  # CIE L* of pure red
    assert kidney.RecommendedDisplayCIELabValue[0] == pytest.approx(lightness, rel=0.01)
    assert seg.FrameOfReferenceUID == "1.2.3.9" and seg.StudyInstanceUID == "1.2.3.4" and seg.SeriesInstanceUID != "1.2.5"
    referred = {i.ReferencedSOPInstanceUID for i in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referred == {pydicom.dcmread(p).SOPInstanceUID for p in folder.iterdir()} and seg.SegmentationType == "BINARY"
    write_dicom_seg(tmp_path / "again.dcm", label_on(folder), folder, how="manual")
    again = pydicom.dcmread(tmp_path / "again.dcm")
    assert again.SOPInstanceUID != seg.SOPInstanceUID and again.SeriesInstanceUID != seg.SeriesInstanceUID
    assert again.SegmentSequence[0].SegmentAlgorithmType == "MANUAL" and "SegmentAlgorithmName" not in again.SegmentSequence[0]


def test_only_what_a_reference_needs_of_the_patient(tmp_path):
    folder = series_of(tmp_path / "s", PatientComments="ZZCOMMENT", InstitutionName="ZZHOSPITAL", PatientAddress="ZZSTREET")
    write_dicom_seg(tmp_path / "out.dcm", label_on(folder), folder)
    content = (tmp_path / "out.dcm").read_bytes()
    assert b"CANARY-7" in content and b"ZZPHI" in content
    assert not any(word in content for word in (b"ZZ^SECRET", b"ZZCOMMENT", b"ZZHOSPITAL", b"ZZSTREET"))


def multiframe(path: Path) -> Path:
    """An enhanced CT of the axial series, its frames in another order."""
    order = [3, 0, 5, 1, 2, 4]
    shared, groups = Dataset(), []
    measures, plane = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.6], 2.5
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    for k in order:
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = [-11, 7, 30 + 2.5 * k]
        group.PlanePositionSequence = Sequence([position])
        groups.append(group)
    about = {"StudyInstanceUID": "1.2.3.4", "FrameOfReferenceUID": "1.2.3.9", "PixelSpacing": None, "NumberOfFrames": 6}
    about |= {"SharedFunctionalGroupsSequence": Sequence([shared]), "PerFrameFunctionalGroupsSequence": Sequence(groups)}
    return ct_slice(path, np.zeros((6, *SHAPE[1::-1]), np.int16), None, None, SOPClassUID=EnhancedCTImageStorage, **about)


def test_a_multiframe_series(tmp_path):
    path = multiframe(tmp_path / "ct.dcm")
    label = LabelMap(thing(), read_image(path).geometry, names=NAMES)
    write_dicom_seg(tmp_path / "out.dcm", label, path)
    world = label.geometry.to_world(np.argwhere(label.data == 1)) * [-1, -1, 1]
    assert same_points(decoded(tmp_path / "out.dcm")[1], world)


def test_a_picture_without_a_place(tmp_path):
    """A radiograph: rows and columns, no frame of reference."""
    about = {"StudyInstanceUID": "1.2.3.4", "SOPClassUID": DigitalXRayImageStorageForPresentation, "Modality": "DX"}
    path = ct_slice(tmp_path / "a.dcm", np.zeros((7, 9), np.int16), None, None, **about)
    mask = np.zeros((7, 9), np.uint8)
    mask[1:3, 4:8] = 1
    write_dicom_seg(tmp_path / "out.dcm", LabelMap(mask, read_image(path).geometry), path)
    assert np.array_equal(pydicom.dcmread(tmp_path / "out.dcm").pixel_array, mask)


def test_no_slice_thickness_and_many_slices(tmp_path):
    folder = series_of(tmp_path / "s", shape=(3, 4, 11), SliceThickness=None)
    data = np.ones((3, 4, 11), np.uint8)
    write_dicom_seg(tmp_path / "out.dcm", label_on(folder, data), folder)
    assert len(decoded(tmp_path / "out.dcm")[1]) == data.size


def test_objects_and_overlapping_structures(tmp_path):
    folder = series_of(tmp_path / "s")
    data = thing().astype(np.int32) * 3
    write_dicom_seg(tmp_path / "a.dcm", label_on(folder, data, ("background", "nodule"), instances=True), folder)
    assert [s.SegmentLabel for s in pydicom.dcmread(tmp_path / "a.dcm").SegmentSequence] == ["nodule 3", "nodule 6"]
    masks = np.stack([thing() > 0, thing() == 1, thing() > 9])
    write_dicom_seg(tmp_path / "b.dcm", label_on(folder, masks, ("breast", "lesion", "absent"), overlapping=True), folder)
    seg, found = pydicom.dcmread(tmp_path / "b.dcm"), decoded(tmp_path / "b.dcm")
    assert seg.SegmentsOverlap == "YES" and [len(found[n]) for n in (1, 2)] == [masks[0].sum(), masks[1].sum()]
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["breast", "lesion"]


@pytest.mark.parametrize(
    "name, message",
    [("x" * 65, "longer than DICOM allows.*65 characters"), ("a\\b", "backslash"), (" ", "empty"), ("left kidney", "one name")],
)
def test_names_that_dicom_cannot_hold(tmp_path, name, message):
    folder = series_of(tmp_path / "s")
    with pytest.raises(DataError, match=message):
        write_dicom_seg(tmp_path / "out.dcm", label_on(folder), folder, names={"unheard of": name})
    assert not (tmp_path / "out.dcm").exists()


def test_bad_requests(tmp_path):
    folder, out = series_of(tmp_path / "s"), tmp_path / "out.dcm"
    label = label_on(folder)
    for options in ({"names": {"liver": "x"}}, {"colours": {"left kidney": (0, 0, 256)}}, {"how": "by magic"}):
        with pytest.raises(UsageError):
            write_dicom_seg(out, label, folder, **options)
    with pytest.raises(DataError, match="another patient") as error:
        write_dicom_seg(out, label, folder, patient="someone else")
    assert "CANARY" not in str(error.value)
    write_dicom_seg(out, label, folder, patient="CANARY-7", codes={"unheard of": Coding(("1", "99VES", "Made up"), ANATOMY)})
    assert pydicom.dcmread(out).SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99VES"


def test_bad_series(tmp_path):
    folder, out = series_of(tmp_path / "s"), tmp_path / "out.dcm"
    label, files = label_on(folder), sorted(folder.iterdir())
    write_dicom_seg(out, label, files)
    with pytest.raises(DataError, match="no source series"):
        write_dicom_seg(out, label, [])
    with pytest.raises(DataError, match="no such file or folder"):
        write_dicom_seg(out, label, tmp_path / "nothing")
    with pytest.raises(DataError, match="is a DICOM series"):
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        write_dicom_seg(out, label, tmp_path / "a.png")
    other = series_of(tmp_path / "t", PatientID="CANARY-8")
    with pytest.raises(DataError, match="not of one series: PatientID differs") as error:
        write_dicom_seg(out, label, [*files, *other.iterdir()])
    assert "CANARY" not in str(error.value)
    with pytest.raises(DataError, match="no FrameOfReferenceUID"):
        write_dicom_seg(out, label, series_of(tmp_path / "u", FrameOfReferenceUID=""))
    with pytest.raises(DataError, match="no StudyInstanceUID"):
        write_dicom_seg(out, label, series_of(tmp_path / "v", StudyInstanceUID=""))


def test_without_highdicom(tmp_path, monkeypatch):
    folder, real = series_of(tmp_path / "s"), builtins.__import__

    def without(name, *rest, **options):
        if name == "highdicom":
            raise ImportError("No module named 'highdicom'")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'vesalius\[dicom\]'"):
        write_dicom_seg(tmp_path / "out.dcm", label_on(folder), folder)


def test_codes_are_those_of_the_dictionary():
    """Against pydicom's copy of PS3.16; it lacks the myocardium as a whole."""
    known = {value for entries in concepts["SCT"].values() for value in entries}
    tables = {**dicom_derived._ANATOMICAL, **dicom_derived._MORPHOLOGICAL}
    assert {code for code, _ in tables.values()} - known == {"74281007"}
    assert all(same in tables for same in dicom_derived._SAME.values()) and not set(dicom_derived._SAME) & set(tables)
    assert coding("kidney_left") == coding("Left Kidney") and coding("kidney_left").side == "left"
    assert coding("Left ventricle").side == "" and coding("Tumour").type == coding("tumor").type and coding("valve 1").type == TISSUE


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data here")
def test_a_real_series(tmp_path):
    """dcmqi's SEG of the prostate, by way of a label map: the same voxels at the same places."""
    root = SHARED / "data/3d/dicom_samples/qin_prostate"
    grid = read_image(root / "ADC").geometry
    theirs = decoded(root / "seg.dcm")[4]
    data = np.zeros(grid.shape, np.uint8)
    data[tuple(np.rint(grid.to_index(theirs * [-1, -1, 1])).astype(int).T)] = 1
    write_dicom_seg(tmp_path / "out.dcm", LabelMap(data, grid, names=("background", "prostate")), root / "ADC")
    assert same_points(decoded(tmp_path / "out.dcm")[1], theirs)
    assert pydicom.dcmread(tmp_path / "out.dcm").SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue == "41216001"
