"""Predictions as DICOM objects: on the series they were made on, whichever way it lies; refused where there is none."""

import numpy as np
import pytest

from tests.engine.test_api import CUBE, SMALL, Says, volume
from tests.io.made import ct_slice
from tests.io.test_dicom_seg import AXES, decoded
from vesalius import io
from vesalius.core.case import LabelMap
from vesalius.core.errors import UsageError
from vesalius.core.prediction import Prediction
from vesalius.engine import api
from vesalius.engine import predict as predicting
from vesalius.engine.answers import Fields, Masks, Values
from vesalius.io import read_rtstruct

SHAPE = (20, 18, 8)
LPS = np.array([-1, -1, 1])


def thing() -> np.ndarray:
    """Without any symmetry, bright on dark."""
    data = np.full(SHAPE, -200, np.int16)
    data[3:12, 2:8, 1:6] = 400
    data[3:6, 2:15, 4:6] = 400
    return data


def series(folder, kind="axial", data=None, uid="1.2.5"):
    """``data`` (columns, rows, slices) as a DICOM series that lies as ``kind`` says."""
    folder.mkdir(parents=True, exist_ok=True)
    data, (axes, step) = thing() if data is None else data, AXES[kind]
    about = {"StudyInstanceUID": "1.2.3.4", "FrameOfReferenceUID": "1.2.3.9"}
    for k in range(data.shape[2]):
        ct_slice(
            folder / f"{uid}-{k}.dcm", data[..., k].T.copy(), np.array([-11.0, 7.0, 30.0]) + k * np.array(step), axes, series=uid, **about
        )
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return api.train("unet", "phantom:shapes-3d", tmp_path_factory.mktemp("run") / "run", iterations=1, plan_overrides=CUBE)


@pytest.fixture
def bright(monkeypatch):
    """What the model answers: foreground where the image is bright."""

    def infer(method, case, plan, **_):
        label = (next(iter(case.images.values())).data[0] > 100).astype(np.uint8)
        return Prediction(labels={"prediction": LabelMap(label, case.geometry, plan.classes)})

    monkeypatch.setattr(predicting, "infer", infer)


@pytest.mark.parametrize("kind", ["axial", "descending", "mirrored", "coronal", "oblique"])
def test_an_object_lies_where_it_was_seen(trained, bright, tmp_path, kind):
    folder = series(tmp_path / "patient", kind)
    image = io.read_image(folder)
    world = np.sort(image.geometry.to_world(np.argwhere(image.data[0] > 100)) * LPS, 0)
    (seg,) = api.predict(trained, folder, tmp_path / "out", format="dicomseg")
    (contours,) = api.predict(trained, folder, tmp_path / "out", format="rtstruct")
    assert (seg.name, contours.name) == ("patient.seg.dcm", "patient.rtstruct.dcm")
    (found,) = decoded(seg).values()
    assert np.allclose(np.sort(found, 0), world, atol=1e-3)
    back = read_rtstruct(contours, folder)
    assert np.array_equal(back.data[0], image.data[0] > 100) and back.geometry.close(image.geometry)


def test_nothing_found_is_said_and_writes_nothing(trained, bright, tmp_path):
    series(tmp_path / "in" / "full", uid="1.2.5")
    series(tmp_path / "in" / "none", data=np.full(SHAPE, -5, np.int16), uid="1.2.6")
    said = Says()
    written = api.predict(trained, tmp_path / "in", tmp_path / "out", format="dicomseg", progress=said)
    assert [p.name for p in written] == [p.name for p in (tmp_path / "out").iterdir()] == ["full.seg.dcm"]
    assert any("none: nothing was found" in s for s in said.said)
    series(tmp_path / "in" / "full", data=np.full(SHAPE, -5, np.int16), uid="1.2.5")
    assert api.predict(trained, tmp_path / "in", tmp_path / "out", format="dicomseg", overwrite=True) == []
    assert not list((tmp_path / "out").iterdir()), "an earlier answer does not stay"


def test_what_is_no_series_or_no_label_map_is_refused(trained, tmp_path):
    volume(tmp_path / "in" / "a.nii.gz")
    series(tmp_path / "in" / "b")
    for format in ("dicomseg", "rtstruct"):
        with pytest.raises(UsageError, match=f"a.nii.gz: a {format} refers to a DICOM series, and this input is none"):
            api.predict(trained, tmp_path / "in", tmp_path / "out", format=format)
    assert not list((tmp_path / "out").iterdir()), "nothing is predicted then"
    flat = api.train("unet", "phantom:shapes-2d", tmp_path / "flat", iterations=1, plan_overrides=SMALL)
    with pytest.raises(UsageError, match="--format.*found rtstruct.*allowed: .*dicomseg"):
        api.predict(flat, tmp_path / "in" / "b", tmp_path / "out", format="rtstruct")
    for kind in (Fields, Masks, Values):
        assert not {"dicomseg", "rtstruct"} & set(kind(trained.manifest, None).formats(3))
