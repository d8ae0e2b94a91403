"""RTSTRUCT: contours that give the mask back to the voxel in any series, areas that are the mask's, holes, headers and bad input."""

import numpy as np
import pydicom
import pytest
from skimage.draw import polygon

from vesalius.core.case import LabelMap
from vesalius.core.errors import DataError, GeometryError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.io import VesaliusNote
from vesalius.io.dicom_derived import opened
from vesalius.io.rtstruct import keyhole, read_rtstruct, write_rtstruct
from vesalius.ops.contour import signed_area
from vesalius.ops.polygons import polygons

from .made import SHARED, ct_slice
from .test_dicom_seg import AXES, NAMES, SHAPE, label_on, multiframe, series_of, thing


def contours(path) -> dict[str, list[np.ndarray]]:
    """ROI name -> contours (n, 3) LPS+ mm."""
    file = pydicom.dcmread(path)
    names = {r.ROINumber: r.ROIName for r in file.StructureSetROISequence}
    return {
        names[item.ReferencedROINumber]: [np.array(c.ContourData, float).reshape(-1, 3) for c in item.ContourSequence]
        for item in file.ROIContourSequence
        if "ContourSequence" in item
    }


@pytest.mark.parametrize("holes", ["keyhole", "xor"])
@pytest.mark.parametrize("kind", AXES)
def test_round_trip_in_any_series(tmp_path, kind, holes):
    folder = series_of(tmp_path / "s", kind)
    label = label_on(folder)
    write_rtstruct(tmp_path / "out.dcm", label, folder, holes=holes)
    back = read_rtstruct(tmp_path / "out.dcm", folder)
    assert back.names == NAMES[1:] and back.geometry == label.geometry and back.overlapping
    assert np.array_equal(back.data, np.stack([label.data == 1, label.data == 2]))


def test_contours_lie_on_their_slices_and_name_them(tmp_path):
    folder = series_of(tmp_path / "s", "oblique")
    label = label_on(folder)
    write_rtstruct(tmp_path / "out.dcm", label, folder)
    heads = {h.SOPInstanceUID: h for h in map(pydicom.dcmread, folder.iterdir())}
    file = pydicom.dcmread(tmp_path / "out.dcm")
    total = 0.0
    for contour in file.ROIContourSequence[0].ContourSequence:
        head = heads[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        axes = np.array(head.ImageOrientationPatient, float).reshape(2, 3)
        points = np.array(contour.ContourData, float).reshape(-1, 3) - np.array(head.ImagePositionPatient, float)
        assert len(points) == contour.NumberOfContourPoints and np.abs(points @ np.cross(*axes)).max() < 1e-3
        total += abs(signed_area(points @ axes.T))
    assert total == pytest.approx((label.data == 1).sum() * 0.8 * 0.6, rel=1e-4)  # areas are the mask's, the hole taken off


def test_an_own_rasteriser_finds_the_mask(tmp_path):
    """Slice by slice with scikit-image, from the file's numbers and the slices' headers alone."""
    folder = series_of(tmp_path / "s", "sagittal")
    label = label_on(folder)
    write_rtstruct(tmp_path / "out.dcm", label, folder)
    out, count = np.zeros(SHAPE, bool), 0
    for points in contours(tmp_path / "out.dcm")["left kidney"]:
        at = points - [-11, 7, 30]  # sagittal: columns run along +y, rows along -z, slices along +x
        k = SHAPE[2] - 1 - round(at[:, 0].mean() / 3.0)  # and their normal along -x
        out[..., k][polygon(at[:, 1] / 0.6, -at[:, 2] / 0.8, SHAPE[:2])] ^= True
        count += 1
    assert np.array_equal(out, label.data == 1) and count > 4


def test_keyholes_of_random_masks():
    rng = np.random.default_rng(3)
    for density in (0.3, 0.6, 0.85):
        mask = rng.random((23, 31)) < density
        filled = np.zeros(mask.shape, bool)
        for shape in polygons([((0, 0), mask.astype(int))], Geometry.of(mask.shape)):
            ring = keyhole(shape.rings)
            assert abs(signed_area(ring)) == pytest.approx(shape.area)
            filled[polygon(*ring.T, mask.shape)] ^= True
        assert np.array_equal(filled, mask)


def test_what_the_header_says(tmp_path):
    folder = series_of(tmp_path / "s", PatientName="Müller^Änne", SpecificCharacterSet="ISO_IR 100", PatientComments="ZZCOMMENT")
    names = {"unheard of": "Läsion 病变"}
    write_rtstruct(tmp_path / "out.dcm", label_on(folder), folder, names=names, colours={"left kidney": (1, 2, 3)}, algorithm="unet")
    content = (tmp_path / "out.dcm").read_bytes()
    assert not any(word in content for word in (b"ZZ^SECRET", b"ZZCOMMENT")) and b"CANARY-7" in content
    file = pydicom.dcmread(tmp_path / "out.dcm")
    assert str(file.PatientName) == "Müller^Änne" and file.SpecificCharacterSet == "ISO_IR 192" and file.Modality == "RTSTRUCT"
    first, second = file.StructureSetROISequence
    assert (first.ROIName, second.ROIName, first.ROIGenerationAlgorithm) == ("left kidney", "Läsion 病变", "AUTOMATIC")
    assert first.ReferencedFrameOfReferenceUID == "1.2.3.9" and file.StudyInstanceUID == "1.2.3.4" and file.SeriesInstanceUID != "1.2.5"
    assert list(file.ROIContourSequence[0].ROIDisplayColor) == [1, 2, 3]
    code = file.RTROIObservationsSequence[0].RTROIIdentificationCodeSequence[0]
    assert code.CodeValue == "64033007"
    images = file.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert images.SeriesInstanceUID == "1.2.5" and len(images.ContourImageSequence) == SHAPE[2]
    assert read_rtstruct(tmp_path / "out.dcm", folder).names == ("left kidney", "Läsion 病变")


def test_contours_longer_than_an_explicit_value(tmp_path):
    """A comb whose one contour takes more than 64 kB."""
    folder = series_of(tmp_path / "s", shape=(900, 20, 1))
    comb = np.zeros((900, 20, 1), np.uint8)
    comb[::2, 1:], comb[:, 0] = 1, 1
    write_rtstruct(tmp_path / "out.dcm", label_on(folder, comb), folder)
    file = pydicom.dcmread(tmp_path / "out.dcm")
    element = file.ROIContourSequence[0].ContourSequence[0].get_item("ContourData")
    assert len(element.value) > 1 << 15 and np.array_equal(read_rtstruct(tmp_path / "out.dcm", folder).data[0], comb == 1)


def test_multiframe_objects_and_overlap(tmp_path):
    path = multiframe(tmp_path / "ct.dcm")
    label = LabelMap(thing(), opened(path).geometry, names=NAMES)
    write_rtstruct(tmp_path / "out.dcm", label, path)
    assert np.array_equal(read_rtstruct(tmp_path / "out.dcm", path).data[1], label.data == 2)
    contour = pydicom.dcmread(tmp_path / "out.dcm").ROIContourSequence[1].ContourSequence[0]
    assert contour.ContourImageSequence[0].ReferencedFrameNumber == 2  # slice 0 is the second frame
    masks = np.stack([thing() > 0, thing() == 1])
    write_rtstruct(tmp_path / "b.dcm", LabelMap(masks, label.geometry, names=("breast", "lesion"), overlapping=True), path)
    assert np.array_equal(read_rtstruct(tmp_path / "b.dcm", path).data, masks)


def test_a_finer_grid_comes_back_within_half_a_pixel(tmp_path):
    folder = series_of(tmp_path / "s", "oblique", shape=(40, 36, 14))
    grid = opened(folder).geometry
    fine = grid.resized((61, 57, 23))
    ball = lambda g: np.linalg.norm(g.to_world(np.moveaxis(np.indices(g.shape), 0, -1)) - grid.to_world([20, 17, 7]), axis=-1) < 9.0
    write_rtstruct(tmp_path / "out.dcm", LabelMap(ball(fine).astype(np.uint8), fine), folder)
    back, truth = read_rtstruct(tmp_path / "out.dcm", folder).data[0], ball(grid)
    assert 2 * (back & truth).sum() / (back.sum() + truth.sum()) >= 0.98


def test_bad_input(tmp_path):
    folder, out = series_of(tmp_path / "s"), tmp_path / "out.dcm"
    label = label_on(folder)
    with pytest.raises(UsageError, match="allowed: keyhole, xor"):
        write_rtstruct(out, label, folder, holes="none")
    with pytest.raises(DataError, match="empty on the series' grid"):
        write_rtstruct(out, LabelMap(label.data * 0, label.geometry, names=NAMES), folder)
    with pytest.raises(DataError, match="longer than DICOM allows"):
        write_rtstruct(out, label, folder, names={"left kidney": "k" * 65})
    flat = ct_slice(tmp_path / "a.dcm", np.zeros((7, 9), np.int16), None, None, StudyInstanceUID="1.2.3.4")
    with pytest.raises(GeometryError, match="need a position in space"):
        write_rtstruct(out, LabelMap(np.ones((7, 9), np.uint8), Geometry.of((7, 9))), flat)
    assert not out.exists()
    with pytest.raises(DataError, match="no structure set"):
        read_rtstruct(folder / "00.dcm", folder)
    write_rtstruct(out, label, folder)
    with pytest.raises(GeometryError, match="no structure lies on this series.*2 structures of another frame"):
        read_rtstruct(out, series_of(tmp_path / "t", FrameOfReferenceUID="1.2.3.10"))
    file = pydicom.dcmread(out)
    file.ROIContourSequence[0].ContourSequence[0].ContourData = [1, 2]
    file.save_as(out)
    with pytest.raises(DataError, match="no list of points"):
        read_rtstruct(out, folder)


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data here")
def test_a_real_structure_set(tmp_path):
    """A planning system's body outline on the one slice that is here; then ours of that mask gives the mask."""
    root = SHARED / "data/3d/dicom_samples/breast_rt"
    with pytest.warns(VesaliusNote, match="contours off the slices.*were left out"):
        label = read_rtstruct(root / "rtss.dcm", root / "ct.0.dcm")
    assert label.names == ("BODY",) and 0.05 < label.data.mean() < 0.7
    drawn = [c for c in contours(root / "rtss.dcm")["BODY"] if abs(c[0, 2] - 168.559) < 0.01]
    area = abs(sum(signed_area(c[:, :2]) for c in drawn))
    assert label.data.sum() * np.prod(label.geometry.spacing[:2]) == pytest.approx(area, rel=0.01)
    write_rtstruct(tmp_path / "out.dcm", label, root / "ct.0.dcm")
    assert np.array_equal(read_rtstruct(tmp_path / "out.dcm", root / "ct.0.dcm").data, label.data)
