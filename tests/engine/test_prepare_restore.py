"""prepare and restore: the law, the grids, the normalisations."""

import itertools

import numpy as np
import pytest

from vesalius.core.case import Case, Image, LabelMap, Points
from vesalius.core.errors import DataError
from vesalius.core.geometry import Geometry, Grid
from vesalius.core.plan import Plan
from vesalius.core.prediction import Prediction
from vesalius.engine.prepare import normalise, prepare, target_geometry
from vesalius.engine.restore import restore

ORIENTATIONS = [(perm, sign) for perm in itertools.permutations(range(3)) for sign in itertools.product((1, -1), repeat=3)]  # all 48


def asymmetric(shape=(9, 11, 13)) -> np.ndarray:
    """An L-shaped object with three arms of different length: no symmetry maps it to itself."""
    label = np.zeros(shape, np.int16)
    label[2, 3, 2:10] = 1
    label[2, 3:8, 2] = 2
    label[2:5, 3, 2] = 1
    return label


def case_on(geometry: Geometry, label: np.ndarray) -> Case:
    image = Image(label[None].astype(np.float32) * 100 + 7, geometry, name="MR")
    return Case("a", "p", images={"MR": image}, labels={"reference": LabelMap(label, geometry, ("background", "one", "two"))})


def plan(**changes) -> Plan:
    return Plan(3, channels=("MR",), classes=("background", "one", "two"), normalise={"MR": "none"}, patch=(8, 8, 8), **changes)


def onehot(label: np.ndarray, k: int = 3) -> np.ndarray:
    return np.stack([(label == c).astype(np.float32) for c in range(k)])


@pytest.mark.parametrize("perm, sign", ORIENTATIONS)
def test_law_in_every_orientation(perm, sign):
    """restore(prepare(label)) == label, and every labelled voxel keeps its world position."""
    direction = np.zeros((3, 3))
    for a, (w, s) in enumerate(zip(perm, sign, strict=True)):
        direction[w, a] = s
    geometry = Geometry.of((9, 11, 13), (1.0, 2.0, 3.0), (5, -7, 11), direction)
    label = asymmetric()
    prepared = prepare(case_on(geometry, label), plan())
    assert prepared.geometry.orientation == "RAS"
    there = prepared.labels["reference"].data
    before = np.sort(geometry.to_world(np.argwhere(label == 2)), axis=0)
    after = np.sort(prepared.geometry.to_world(np.argwhere(there == 2)), axis=0)
    np.testing.assert_allclose(before, after, atol=1e-9)
    prediction = Prediction(probability=Image(onehot(there), prepared.geometry))
    back = restore(prediction, prepared.geometry, geometry, ("background", "one", "two"))
    assert back.label.geometry == geometry
    np.testing.assert_array_equal(back.label.data, label)


def test_law_on_an_oblique_grid():
    from scipy.spatial.transform import Rotation

    direction = Rotation.from_euler("xyz", [13, -21, 8], degrees=True).as_matrix()
    geometry = Geometry.of((9, 11, 13), (0.7, 0.9, 2.5), (50, -70, 11), direction)
    label = asymmetric()
    prepared = prepare(case_on(geometry, label), plan())
    there = prepared.labels["reference"].data
    back = restore(
        Prediction(probability=Image(onehot(there), prepared.geometry)), prepared.geometry, geometry, ("background", "one", "two")
    )
    np.testing.assert_array_equal(back.label.data, label)


def test_restore_after_resampling_is_close():
    zz = np.indices((24, 24, 24))
    ball = (((zz - 12) ** 2).sum(0) < 60).astype(np.int16)
    geometry = Geometry.of((24, 24, 24), (1.0, 1.0, 2.0))
    prepared = prepare(case_on(geometry, ball), plan(grid=Grid(spacing=(1.5, 1.5, 1.5))))
    there = prepared.labels["reference"].data
    back = restore(
        Prediction(probability=Image(onehot(there), prepared.geometry)), prepared.geometry, geometry, ("background", "one", "two")
    )
    overlap = 2 * (back.label.data & ball).sum() / (back.label.data.sum() + ball.sum())
    assert overlap > 0.93


def test_outside_the_prepared_grid_is_background():
    geometry = Geometry.of((10, 10, 10), 1.0)
    data = np.zeros((10, 10, 10), np.int16)
    data[4:7, 4:7, 4:7] = 1
    prepared = prepare(case_on(geometry, data), plan(crop_to_body=True))
    assert prepared.geometry.shape == (3, 3, 3)
    back = restore(
        Prediction(probability=Image(onehot(prepared.labels["reference"].data), prepared.geometry)),
        prepared.geometry,
        geometry,
        ("background", "one", "two"),
    )
    np.testing.assert_array_equal(back.label.data, data)


def test_grid_inside_a_roi():
    geometry = Geometry.of((20, 20, 20), 2.0)
    roi = np.zeros((20, 20, 20), np.uint8)
    roi[5:10, 6:9, 7:12] = 1
    case = case_on(geometry, asymmetric((20, 20, 20))).with_(rois={"organ": LabelMap(roi, geometry)})
    assert target_geometry(case, Grid(inside="organ", margin=2.0), False).shape == (7, 5, 7)
    with pytest.raises(DataError, match="ROI 'liver' is missing"):
        target_geometry(case, Grid(inside="liver"), False)


def test_prediction_sees_no_label():
    geometry = Geometry.of((9, 11, 13), 1.0)
    case = case_on(geometry, asymmetric()).with_(points={"tip": Points(np.zeros((1, 3)))})
    blind = prepare(case, plan()).without_labels()
    assert not blind.labels and not blind.points and not blind.native.labels and not blind.native.points


def test_missing_channel_names_the_case():
    geometry = Geometry.of((9, 11, 13), 1.0)
    with pytest.raises(DataError, match="image 'T2' is missing"):
        prepare(case_on(geometry, asymmetric()), plan().derive(channels=("MR", "T2")))


def test_normalisations():
    data = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4) - 4
    z = normalise(data, "zscore", {})
    assert abs(z.mean()) < 1e-6 and abs(z.std() - 1) < 1e-5
    assert normalise(np.full((1, 4, 4), 7.0), "zscore", {}).any() == False  # noqa: E712 - a constant image gives zeros, not NaN
    ct = normalise(data, "ct", {"p005": 0.0, "p995": 10.0, "mean": 5.0, "sd": 2.0})
    assert ct.min() == -2.5 and ct.max() == 2.5
    native = np.array([[[0, 255]]], np.uint8)
    np.testing.assert_allclose(normalise(native.astype(np.float32), "unit", {}, native), [[[0, 1]]])
    np.testing.assert_allclose(normalise(native.astype(np.float32), "byte", {}, native), [[[0, 255]]])


def test_a_probability_that_is_asked_for_is_read_once_on_the_original_grid(monkeypatch):
    """The mask is that probability, cut at the threshold."""
    own, prepared = Geometry.of((12, 10), (1.0, 1.0)), Geometry.of((6, 5), (2.0, 2.0))
    p = Image(np.random.default_rng(0).random((1, 6, 5)).astype(np.float32), prepared)
    reads, on = [], Image.on
    monkeypatch.setattr(Image, "on", lambda self, grid, *how, **more: reads.append(grid) or on(self, grid, *how, **more))
    found = restore(Prediction(probability=p, names=("a",), threshold=0.5), prepared, own, ("background", "a"), probability=True)
    assert reads == [own] and found.probability.data.shape == (1, 12, 10)
    (label,) = found.labels.values()
    assert np.array_equal(np.asarray(label.data).reshape(12, 10) > 0, found.probability.data[0] >= 0.5)
