"""Jobs: a model's own answer, exports that other programs read, measures, the next case, training in another process."""

import asyncio
import gzip
import io as text_io
import json
import threading
import time
import zipfile

import nibabel as nib
import numpy as np
import pydicom
import pytest

from tests.engine.test_answers import LPS, series
from tests.engine.test_interact import Copy
from tests.io.test_dicom_seg import decoded
from tests.methods.test_sam_checkpoint import of_sam2_video
from tests.serve.desk import VOLUME, client_of, finished, project_of, put, relabel
from tests.serve.test_store import block
from vesalius import io
from vesalius.core.case import Case, Image, LabelMap
from vesalius.core.errors import DataError, RunError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import Manifest
from vesalius.core.plan import Plan
from vesalius.core.prediction import Prediction
from vesalius.datasets import open_dataset, read_case
from vesalius.methods.sam_video import SamVideo
from vesalius.serve import active, measure, work
from vesalius.serve.events import Hub
from vesalius.serve.export import file_names, how_made, run_lengths
from vesalius.serve.jobs import Cancelled, Job, Jobs, train_apart
from vesalius.serve.models import Loaded, Model, Models, checkpoint_of
from vesalius.serve.records import Entry, Version
from vesalius.serve.sources import manifest_of
from vesalius.serve.store import Project


@pytest.fixture
def client(tmp_path):
    return client_of(project_of(tmp_path, count=3))


class Bright:
    """Answers where the image is bright; no prompts, nothing learnt."""

    parts, unit = {}, "case"

    def __init__(self, plan):
        self.plan = plan
        self.manifest = Manifest("m", "", plan.dims, plan.channels, {"background": 0, "foreground": 1}, ())

    def grids(self):
        return {"main": self.plan.grid}

    def derive(self, case, rng, *, training):
        return case

    def predict(self, case, prompts=(), *, rng):
        label = (case.stack()[0] > 100).astype(np.uint8)
        return Prediction(labels={"prediction": LabelMap(label, case.geometry)})


def bright(case, dims):
    plan = Plan(dims=dims, channels=tuple(case.images), normalise={c: "none" for c in case.images})
    return Loaded(Bright(plan), plan, False)


@pytest.fixture
def with_model(client, monkeypatch):
    monkeypatch.setitem(client.app.state.desk.models.built, "bright", (Model("bright", "Bright", (), (2, 3)), bright))
    return client


def test_a_model_is_the_start_of_a_case(with_model):
    client = with_model
    job = finished(client, client.post("/api/cases/c1/run", json={"model": "bright"}))
    assert job["state"] == "done", job
    case = client.get("/api/cases/c1").json()
    assert case["latest"] == job["result"]["version"] and case["status"] == "draft"
    assert case["versions"][0]["origin"] == {"kind": "model", "model": "bright"}
    assert client.post("/api/cases/c1/run", json={"model": "ball"}).status_code == 400, "one that wants prompts"
    assert client.post("/api/cases/c1/run", json={"model": "gone"}).status_code == 404


def test_a_job_that_fails_says_why_and_others_go_on(client):
    jobs = Jobs()

    def wrong(job):
        raise DataError("the case is odd", where="/home/someone/file")

    failed, broken, fine = jobs.start("a", wrong), jobs.start("b", lambda job: 1 / 0), jobs.start("c", lambda job: 7)
    jobs.pool.shutdown(wait=True)
    assert failed.state == "failed" and failed.text == "the case is odd." and fine.result == 7
    assert broken.state == "failed" and "ZeroDivisionError" in broken.text
    assert client.get("/api/jobs/none").status_code == 404 and client.get("/api/jobs").json() == []


def test_a_waiting_job_can_be_stopped():
    import threading

    jobs, go = Jobs(), threading.Event()
    first = jobs.start("a", lambda job: go.wait(10))
    second = jobs.start("b", lambda job: 1)
    jobs.cancel(second.id)
    go.set()
    jobs.pool.shutdown(wait=True)
    assert first.state == "done" and second.state == "cancelled"


def archive_of(client, **asked):
    job = finished(client, client.post("/api/export", json=asked))
    assert job["state"] == "done" and job["file"], job["text"]
    return zipfile.ZipFile(text_io.BytesIO(client.get(f"/api/jobs/{job['id']}/file").content))


def test_exports_of_volumes(client, tmp_path):
    put(client, "c1", block())
    put(client, "c2", block())
    with archive_of(client, format="nifti", cases=["c1"]) as archive:
        assert sorted(archive.namelist()) == ["case_0.nii.gz", "labels.json"]
        archive.extractall(tmp_path / "out")
    image = io.read_image(tmp_path / "out" / "case_0.nii.gz")
    assert np.array_equal(image.data[0], block()) and image.geometry.close(VOLUME)
    with archive_of(client, format="dataset") as archive:
        archive.extractall(tmp_path / "set")
    manifest = open_dataset(tmp_path / "set" / "dataset")
    case = read_case(manifest, "case_1")
    assert len(manifest) == 2 and np.array_equal(case.label.data, block()) and case.geometry.close(VOLUME)
    with archive_of(client, format="png", cases=["c1"]) as archive:
        assert len([n for n in archive.namelist() if n.endswith(".png")]) == VOLUME.shape[2]
    for format in ("dicomseg", "rtstruct"):
        refused = finished(client, client.post("/api/export", json={"format": format}))
        assert refused["state"] == "failed" and f"case 'case 0' was not read from a DICOM series, which a {format}" in refused["text"]
    assert client.post("/api/export", json={"format": "../../x"}).status_code == 400
    assert finished(client, client.post("/api/export", json={"format": "nifti", "status": "reviewed"}))["state"] == "failed"
    assert "volumes" in finished(client, client.post("/api/export", json={"format": "coco"}))["text"]


@pytest.mark.parametrize("kind", ["axial", "mirrored", "oblique"])
def test_dicom_objects_lie_on_their_series(tmp_path, kind):
    """An object without symmetry, drawn on a series, read back by the frames' and contours' own coordinates."""
    folder = series(tmp_path / "patient", kind)
    client = client_of(Project(tmp_path / "p", manifest_of(folder)))
    image = io.read_image(folder)
    mask = (image.data[0] > 100).astype(np.uint8)
    relabel(client, [{"name": "left kidney", "value": 1, "color": "#ff0080"}])
    saved = put(client, "c1", mask, **{"x-origin-kind": "prompts"})
    assert saved.status_code == 201, saved.text
    for format in ("dicomseg", "rtstruct"):
        with archive_of(client, format=format) as archive:
            assert archive.namelist() == ["patient.dcm"]
            archive.extractall(tmp_path / format)
    seg = pydicom.dcmread(tmp_path / "dicomseg" / "patient.dcm")
    (segment,) = seg.SegmentSequence
    assert segment.SegmentLabel == "left kidney" and segment.SegmentAlgorithmType == "SEMIAUTOMATIC"
    (found,) = decoded(tmp_path / "dicomseg" / "patient.dcm").values()
    assert np.allclose(np.sort(found, 0), np.sort(image.geometry.to_world(np.argwhere(mask)) * LPS, 0), atol=1e-3)
    contours = tmp_path / "rtstruct" / "patient.dcm"
    back = io.read_rtstruct(contours, folder)
    assert back.names == ("left kidney",) and np.array_equal(back.data[0], mask)
    assert list(pydicom.dcmread(contours).ROIContourSequence[0].ROIDisplayColor) == [255, 0, 128]
    put(client, "c1", np.zeros_like(mask), parent=client.get("/api/cases/c1").json()["latest"])
    assert "empty" in finished(client, client.post("/api/export", json={"format": "dicomseg"}))["text"]


def test_how_a_mask_was_made():
    def made(*kinds):
        versions = [Version(str(k), str(k - 1) if k else None, "", 0.0, {"kind": kind}) for k, kind in enumerate(kinds)]
        return how_made(Entry("c1", "a", "done", str(len(kinds) - 1), None, None, tuple(versions)))

    assert made("manual", "manual") == "manual" and made("manual", "model") == "automatic"
    assert made("model", "manual") == made("prompts") == made("manual", "interpolated") == "semiautomatic"


def test_coco_holds_every_pixel(tmp_path):
    client = client_of(project_of(tmp_path, dims=2))
    mask = np.random.default_rng(1).random((24, 40)) > 0.6
    put(client, "c1", mask.astype(np.uint8))
    with archive_of(client, format="coco") as archive:
        record = json.loads(archive.read("coco.json"))
    found = np.zeros(mask.shape, int)
    for annotation in record["annotations"]:
        counts = annotation["segmentation"]["counts"]
        piece = np.repeat(np.arange(len(counts)) % 2, counts).reshape(mask.shape[::-1]).T
        x, y, w, h = annotation["bbox"]
        assert piece.sum() == annotation["area"] == piece[y : y + h, x : x + w].sum()
        found += piece
    assert np.array_equal(found, mask)
    assert run_lengths(np.array([[1, 0], [1, 1]])) == [0, 2, 1, 1]


def test_file_names_are_safe_and_stay_apart():
    names = ["a/b", "a_b", "A_B", "../x", "con", ".hidden", "x" * 300, "\u202egnp", "=cmd"]
    made = list(file_names([Entry(f"c{k}", n, "todo", None, None, None) for k, n in enumerate(names)]).values())
    assert len({m.lower() for m in made}) == len(names) and all(m[0] != "." and "/" not in m and len(m) < 100 for m in made)
    assert "con" not in made


def test_measures_of_known_shapes(client):
    version = put(client, "c1", block()).json()["version"]
    (row,) = client.get("/api/cases/c1/measure", params={"version": version}).json()
    assert row["voxels"] == 216 and row["components"] == 1 and np.isclose(row["volume_ml"], 216 * 6.75 / 1000)
    assert np.isclose(row["long_axis_mm"], 9 * np.sqrt(2)) and np.isclose(row["short_axis_mm"], 9 * np.sqrt(2))
    smaller = block()
    smaller[4:7] = 0
    second = put(client, "c1", smaller, parent=version).json()["version"]
    (row,) = client.get("/api/cases/c1/compare", params={"a": version, "b": second}).json()
    assert np.isclose(row["dsc"], 2 * 108 / (216 + 108)) and row["hd95_mm"] > 0 and row["volume_b"] * 2 == row["volume_a"]
    shown = client.get("/api/cases/c1/compare/map", params={"a": version, "b": second})
    assert shown.status_code == 200
    assert np.bincount(measure.difference(block(), smaller).ravel()).tolist()[1:] == [108, 0, 108]
    disc = np.hypot(*(np.indices((64, 64)) - 31.5)) < 20
    long, short = measure.axes(disc, Geometry.of((64, 64), 0.5))
    assert abs(long - 20) < 1 and abs(short - 20) < 1
    assert measure.axes(np.zeros((8, 8), bool), Geometry.of((8, 8))) == (0.0, 0.0)


def test_how_unsure_a_model_was_is_shown_over_the_image(client, monkeypatch):
    """The map stays with what was made from the answer, until another answer."""
    p = np.linspace(0, 1, VOLUME.shape[0], dtype=np.float32).reshape(-1, 1, 1) * np.ones(VOLUME.shape, np.float32)

    def infer(method, case, plan, **_):
        label = LabelMap((p > 0.5).astype(np.uint8), case.geometry)
        return Prediction(labels={"prediction": label}, probability=Image(np.stack([1 - p, p]), case.geometry))

    monkeypatch.setattr(work, "infer", infer)
    monkeypatch.setitem(client.app.state.desk.models.built, "bright", (Model("bright", "Bright", (), (2, 3)), bright))
    assert client.get("/api/cases/c1/uncertainty").status_code == 404
    version = finished(client, client.post("/api/cases/c1/run", json={"model": "bright"}))["result"]["version"]
    corrected = put(client, "c1", block(), parent=version).json()["version"]
    for asked in (version, corrected, None):
        sent = client.get("/api/cases/c1/uncertainty", params={"version": asked} if asked else {})
        shown = nib.Nifti1Image.from_bytes(gzip.decompress(sent.content))
        data = np.asarray(shown.dataobj)
        assert np.allclose(shown.affine, VOLUME.affine) and data[0, 0, 0] == data[-1, 0, 0] == 0 and data[9:11].min() > 99
        assert np.array_equal(data, data[::-1]), "as unsure of 0.3 as of 0.7"
    beside = put(client, "c1", block(), parent="none").json()["yours"]
    assert client.get("/api/cases/c1/uncertainty", params={"version": beside}).status_code == 404
    assert client.get("/api/cases/c1/uncertainty", params={"version": "../../x"}).status_code == 404
    p[:] = 0
    second = finished(client, client.post("/api/cases/c1/run", json={"model": "bright"}))["result"]["version"]
    sent = client.get("/api/cases/c1/uncertainty", params={"version": second})
    assert not np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(sent.content)).dataobj).any()


def test_a_model_with_a_memory_carries_masks_itself(client, monkeypatch):
    def copy(case, dims):
        plan = Plan(dims=3, channels=tuple(case.images), classes=("background", "foreground"), patch=(8,) * 3)
        return Loaded(Copy(plan, Manifest("m", "", 3, plan.channels, {"background": 0, "foreground": 1}, ())), plan, False)

    monkeypatch.setitem(client.app.state.desk.models.built, "copy", (Model("copy", "Copy", ("mask",), (3,)), copy))
    assert next(m for m in client.get("/api/project").json()["models"] if m["id"] == "copy")["carries"] is True
    refused = client.post("/api/sessions", json={"case": "c1", "model": "copy"})
    assert refused.status_code == 400 and "propagate" in refused.json()["fix"]
    mask = np.zeros(VOLUME.shape, np.uint8)
    mask[4:12, 4:12, 2] = 1
    put(client, "c1", mask)
    job = finished(client, client.post("/api/cases/c1/propagate", json={"object": "foreground", "from": 2, "axis": 2, "model": "copy"}))
    assert job["state"] == "done", job
    found = client.app.state.desk.project.mask("c1")
    assert np.array_equal(found[..., 2], mask[..., 2]) and (found.sum((0, 1)) > 0).sum() > 1


def test_a_sam2_checkpoint_carries_masks_with_its_memory(tmp_path, monkeypatch):
    given, used = checkpoint_of(str(of_sam2_video(tmp_path / "my-sam2"))), []
    remember = SamVideo.remember
    monkeypatch.setattr(SamVideo, "remember", lambda self, *a, **k: used.append(k["at"]) or remember(self, *a, **k))
    client = client_of(project_of(tmp_path), models=lambda project: Models(project, given=given))
    mask = np.zeros(VOLUME.shape, np.uint8)
    mask[4:12, 4:12, 2] = 1
    put(client, "c1", mask)
    asked = {"object": "foreground", "from": 2, "axis": 2, "model": given.id}
    job = finished(client, client.post("/api/cases/c1/propagate", json=asked))
    assert job["state"] == "done", job
    found = client.app.state.desk.project.mask("c1")
    assert np.array_equal(found[..., 2], mask[..., 2]) and used == [0, 0], "one walk up and one down, from the drawn slice"


def test_slices_between_drawn_ones_are_filled(client):
    mask = np.zeros(VOLUME.shape, np.uint8)
    mask[4:12, 4:12, 2], mask[6:10, 6:10, 8] = 1, 1
    version = put(client, "c1", mask).json()["version"]
    answer = client.post("/api/cases/c1/interpolate", json={"label": "foreground", "axis": 2})
    assert answer.status_code == 201
    filled = client.app.state.desk.project.mask("c1", answer.json()["version"])
    areas = filled.sum((0, 1))
    assert (np.diff(areas[2:9].astype(int)) <= 0).all() and areas[2] == 64 and areas[8] == 16 and not areas[9:].any()
    assert 16 < areas[5] < 64
    once = np.zeros_like(mask)
    once[4, 4, 4] = 1
    with pytest.raises(DataError, match="nothing to interpolate"):
        measure.interpolate(once > 0, 2, VOLUME.spacing)
    assert client.post("/api/cases/c1/interpolate", json={"label": "none", "axis": 2}).status_code == 400
    job = finished(client, client.post("/api/cases/c1/propagate", json={"object": "foreground", "from": 2, "axis": 2, "model": "flat"}))
    assert job["state"] == "done" and version != job["result"]["version"], job


def test_the_next_case(client):
    project = client.app.state.desk.project
    assert client.get("/api/next").json() == {"case": "c1"}
    project.set_priority("c2", 0.4)
    assert client.get("/api/next?strategy=uncertainty").json() == {"case": "c2"}
    project.set_status("c1", "done")
    assert client.get("/api/next?strategy=diversity").json()["case"] in ("c2", "c3")
    assert client.get("/api/next?strategy=luck").status_code == 400
    for case in ("c2", "c3"):
        project.set_status(case, "reviewed")
    assert client.get("/api/next").json() == {"case": None}


def test_after_a_training_open_cases_are_scored(client, monkeypatch):
    """The most uncertain of the open cases comes first, though nobody ran the model on it."""
    sure, asked = {"case 0": 0.5, "case 1": 0.95, "case 2": 0.6}, []

    def infer(method, case, plan, **_):
        asked.append(case.id)
        p = np.full(VOLUME.shape, sure[case.id], np.float32)
        return Prediction(probability=Image(np.stack([1 - p, p]), case.geometry))

    monkeypatch.setattr(work, "infer", infer)
    desk = client.app.state.desk
    monkeypatch.setitem(desk.models.built, "bright", (Model("bright", "Bright", (), (2, 3)), bright))
    monkeypatch.setattr(desk.project, "add_run", lambda *_: "bright")
    monkeypatch.setattr(work, "train_apart", lambda *_: {"seconds": 1.0, "val_dsc": None})
    put(client, "c1", block())
    desk.project.set_status("c1", "done")
    assert finished(client, client.post("/api/train", json={"method": "unet"}))["state"] == "done"
    jobs = client.app.state.jobs
    jobs.long.shutdown(wait=True)
    newest = jobs.list()[0]
    assert (newest.kind, newest.state, newest.result) == ("score", "done", {"cases": 2}) and asked == ["case 1", "case 2"]
    assert client.get("/api/next?strategy=uncertainty").json() == {"case": "c3"}
    assert list((desk.project.folder / "datasets").iterdir()) == [], "the training's copy of the images is gone"


def test_the_least_alike_is_found_without_reading_while_one_waits():
    """All cases count, in the end, and each is read once."""
    entries = [Entry(f"c{k}", str(k), "done" if k < 100 else "todo", None, None, None) for k in range(400)]
    read, seen, asking = [], active.Pictures(), threading.get_ident()

    def image(case):
        assert threading.get_ident() != asking, "not while somebody waits"
        read.append(case)
        if case == "c200":
            raise DataError("a damaged case")
        data = np.zeros((1, *VOLUME.shape), np.float32)
        data[0, : 10 if case == "c399" else 1] = 1
        return Case(case, images={"a": Image(data, VOLUME)})

    assert active.next_case(entries, "diversity", image, seen) == "c100", "in order, as long as nothing is known"
    for _ in range(300):
        if active.next_case(entries, "diversity", image, seen) == "c399":
            break
        time.sleep(0.05)
    else:
        raise AssertionError(f"never found: {len(seen)} pictures")
    assert len(read) == len(set(read))


def test_what_changes_is_told_to_every_page():
    async def listen():
        hub = Hub()
        pages = [hub.stream("a"), hub.stream("b")]
        firsts = await asyncio.gather(*(anext(page) for page in pages))
        hub.publish("version", case="c1")
        second = [text async for text in _until(pages[1], "version")]
        [await page.aclose() for page in pages]
        return firsts, second, hub.users()

    async def _until(page, word):
        async for text in page:
            yield text
            if word in text:
                return

    firsts, second, users = asyncio.run(listen())
    assert all(text.startswith("event: presence") for text in firsts) and second[-1] == 'event: version\ndata: {"case": "c1"}\n\n'
    assert users == []


def test_training_in_a_process_of_its_own(tmp_path):
    client = client_of(project_of(tmp_path, dims=2, count=4))
    desk = client.app.state.desk
    nothing = finished(client, client.post("/api/train", json={"method": "unet", "iterations": 2}))
    assert nothing["state"] == "failed" and "no case is done" in nothing["text"]
    for case in ("c1", "c2", "c3", "c4"):
        put(client, case, block(shape=(24, 40)))
        desk.project.set_status(case, "done")
    assert client.post("/api/train", json={"method": "nnunet9"}).status_code == 400
    assert client.post("/api/train", json={"method": "unet", "options": {"fetures": 3}}).status_code == 400
    job = finished(client, client.post("/api/train", json={"method": "unet", "iterations": 2}), 120)
    assert job["state"] == "done", job
    listed = {m["id"]: m for m in client.get("/api/project").json()["models"]}
    assert listed[job["result"]["model"]] == {
        "id": job["result"]["model"], "title": "unet, 4 cases", "kinds": [], "dims": [2], "trained": True, "carries": False
    }  # fmt: skip
    run = finished(client, client.post("/api/cases/c1/run", json={"model": job["result"]["model"]}))
    assert run["state"] == "done" and client.get("/api/cases").json()[0]["priority"] is not None, run


def test_a_training_that_fails_or_is_stopped():
    with pytest.raises(RunError, match="no such file"):
        train_apart(Job("j", "train"), {"method": "unet", "data": "/no/such/folder", "out": "/no/run", "iterations": 1})
    stopped = Job("j", "train")
    stopped.stop.set()
    with pytest.raises(Cancelled):
        train_apart(stopped, {"method": "unet", "data": "/no/such/folder", "out": "/no/run", "iterations": 1})
