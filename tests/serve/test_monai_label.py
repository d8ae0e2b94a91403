"""The shapes that MONAI Label's client, and its plugins for 3D Slicer and OHIF, send and take apart (version 0.8.5)."""

import gzip
import json
from email import message_from_bytes
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from fastapi.testclient import TestClient

from tests.engine.test_answers import series
from tests.serve.desk import BUILT, TOKEN, VOLUME, client_of, project_of
from tests.serve.test_store import block
from vesalius.core.case import LabelMap
from vesalius.core.geometry import Geometry
from vesalius.serve import monai_answer, wire
from vesalius.serve.models import Model, Models
from vesalius.serve.sources import manifest_of
from vesalius.serve.store import Project


@pytest.fixture
def client(tmp_path):
    return client_of(project_of(tmp_path))


def image_of(content):
    return nib.Nifti1Image.from_bytes(gzip.decompress(content))


def infer(client, model, params, image="c1", **more):
    files = {"params": (None, json.dumps(params))}
    return client.post(f"/infer/{model}", params={"image": image, **more}, files=files)


def save(client, mask, image="c1", geometry=VOLUME, **params):
    files = {"params": (None, json.dumps(params)), "label": ("x.nii.gz", wire.encode(mask[None], geometry))}
    return client.put("/datastore/label", params={"image": image, "tag": "final"}, files=files)


def upload(client, name, mask, user="me"):
    files = {"file": ("x.nii.gz", wire.encode(mask[None], VOLUME)), "params": (None, json.dumps({"client_id": user}))}
    return client.put("/datastore/", params={"image": name}, files=files).json()


def parts_of(answer):
    message = message_from_bytes(f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode() + answer.content)
    return {p.get_param("name", header="content-disposition"): p.get_payload(decode=True) for p in message.get_payload()}


def test_signing_in_with_the_token_as_password(tmp_path):
    stranger = client_of(project_of(tmp_path), signed_in=False)
    assert stranger.get("/auth/").json()["enabled"] is True and stranger.get("/info/").status_code == 401
    assert stranger.post("/auth/token", data={"username": "a", "password": "wrong"}).status_code == 401
    given = stranger.post("/auth/token", data={"username": "a", "password": TOKEN, "grant_type": "password"}).json()
    headers = {"authorization": f"{given['token_type']} {given['access_token']}"}
    assert stranger.get("/info/", headers=headers).status_code == stranger.get("/auth/token/valid", headers=headers).status_code == 200


def test_info_and_datastore(client):
    info = client.get("/info/").json()
    assert info["labels"] == ["foreground"] and "uncertainty" in info["strategies"]
    assert (info["models"]["ball"]["type"], info["models"]["ball"]["labels"]) == ("deepgrow", [])  # else Slicer sends no negative clicks
    assert client.get("/datastore/").json()["total"] == 2
    listed = client.get("/datastore/", params={"output": "all"}).json()["objects"]
    assert list(listed) == ["c1", "c2"] and listed["c1"]["labels"] == {}
    assert np.allclose(image_of(client.get("/datastore/image", params={"image": "c1"}).content).affine, VOLUME.affine)
    assert client.get("/datastore/image", params={"image": "../c1"}).status_code == 404


def test_a_label_is_saved_on_top_and_the_one_before_stays(client):
    for _ in range(2):
        saved = save(client, block())
        assert saved.status_code == 200 and saved.json()["image"] == saved.json()["label"] == "c1", saved.text
    entry = client.get("/api/cases/c1").json()
    assert len(entry["versions"]) == 2 and entry["latest"] == saved.json()["version"]
    assert np.array_equal(np.asarray(image_of(client.get("/datastore/label?label=c1&tag=final").content).dataobj), block())
    assert client.get("/datastore/", params={"output": "train"}).json() == [{"image": "c1", "label": "c1"}]
    listed = client.get("/datastore/", params={"output": "all"}).json()["objects"]["c1"]["labels"]
    assert listed == {"final": {"ext": ".nii.gz", "info": {"version": entry["latest"]}}}
    assert client.put("/datastore/label", params={"image": "c1"}, files={"params": (None, "{}")}).status_code == 400


def test_the_second_person_is_told_and_the_pages_are_told_of_both(client, monkeypatch):
    told = []
    monkeypatch.setattr(client.app.state.hub, "publish", lambda event, **data: told.append((event, data)))
    for name in ("ann", "bob"):
        assert client.post("/activelearning/order", json={"client_id": name}).json()["id"] == "c1"
    first = save(client, block(), client_id="ann").json()["version"]
    infer(client, "ball", {"foreground": [[6, 8, 5]], "client_id": "bob"})  # what bob draws still began before ann saved
    refused = save(client, block()[::-1].copy(), client_id="bob")
    assert refused.status_code == 409 and refused.json()["version"] == first and "both are kept" in refused.json()["error"]
    beside = refused.json()["yours"]
    assert [(e, d["version"], d["user"]) for e, d in told] == [("version", first, "ann"), ("version", beside, "bob")]
    assert save(client, block()[::-1].copy(), client_id="bob").status_code == 200  # told of it, bob wants his
    assert save(client, block(), client_id="ann").status_code == 409
    client.get("/datastore/label?label=c1&tag=final")
    assert save(client, block(), client_id="ann").status_code == 200
    assert upload(client, "MRHead", block())["image"] == "c3" and told[-1] == ("status", {"case": "c3", "status": "todo"})


def test_values_that_count_a_clients_segments_become_the_projects(client):
    version = client.get("/api/project").json().get("labels_version", "")
    table = [{"name": "liver", "value": 5}, {"name": "foreground", "value": 1}]
    assert client.put("/api/labels", json=table, headers={"if-match": version}).status_code == 200
    segments = [{"name": "liver", "idx": 1}, {"name": "Segment_2", "idx": 2}]
    assert save(client, block(1), label_info=segments).status_code == 200
    assert set(np.unique(client.app.state.desk.project.mask("c1"))) == {0, 5}
    refused = save(client, block(2), label_info=segments)
    assert refused.status_code == 400 and "Segment_2" in refused.json()["error"]


def test_infer_answers_with_parameters_and_a_mask(client):
    answer = infer(client, "ball", {"foreground": [[6, 8, 5]], "background": [], "client_id": None})
    parts = parts_of(answer)
    assert answer.status_code == 200 and json.loads(parts["params"])["label_names"] == {"foreground": 1}
    found = image_of(parts["file"])
    assert np.abs(np.argwhere(np.asarray(found.dataobj) == 1).mean(0) - [6, 8, 5]).max() < 0.5 and np.allclose(found.affine, VOLUME.affine)
    flat = infer(client, "flat", {"foreground": [[6, 8, 5], [6, 8, 9]]}, output="image")
    assert set(np.argwhere(np.asarray(image_of(flat.content).dataobj))[:, 2]) == {5, 9}
    boxed = infer(client, "ball", {"roi": [4, 9, 4, 9, 4, 9]}, output="image")
    assert np.asarray(image_of(boxed.content).dataobj)[4:10, 4:10, 4:10].all()
    assert infer(client, "ball", {}).status_code == 400 and infer(client, "none", {}).status_code == 404
    for odd in (
        {"foreground": "here"},
        {"foreground": [[1]]},
        {"foreground": [[1, float("nan"), 1]]},
        {"roi": 5},
        {"roi": ["a"]},
        {"roi": [1]},
    ):
        assert infer(client, "ball", odd).status_code == 400, odd
    assert client.post("/infer/ball?image=c1", json={"foreground": [[6, 8, 5]]}).status_code == 200


def test_an_answer_in_nrrd_is_the_volume_of_the_nifti(tmp_path):
    """Slicer and OHIF ask for it; OHIF takes the bytes after the header as they are, one a voxel."""
    for dims, model in ((3, "ball"), (2, "flat")):
        (tmp_path / str(dims)).mkdir()
        client, seen = client_of(project_of(tmp_path / str(dims), dims)), []
        params = {"foreground": [[6, 8, 5][:dims]]}
        for more in ({}, {"result_extension": ".nrrd"}, {"result_extension": ".nrrd", "result_compress": False}):
            answer = infer(client, model, params | more, output="image")
            file = tmp_path / answer.headers["content-disposition"].partition('"')[2].rstrip('"')
            file.write_bytes(answer.content)
            seen.append(sitk.ReadImage(str(file)))
        nifti, *nrrds = seen
        for image in nrrds:
            assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(nifti)) and sitk.GetArrayFromImage(image).any()
            for facts in ("GetOrigin", "GetSpacing", "GetDirection"):
                assert np.allclose(getattr(image, facts)(), getattr(nifti, facts)(), atol=1e-5), (dims, facts)
        assert answer.content.endswith(sitk.GetArrayFromImage(nifti).astype(np.uint8).tobytes())


def test_structures_that_are_not_in_an_answer_are_not_named(tmp_path, monkeypatch):
    """Slicer gives the n-th value that it finds the n-th name."""
    mask = LabelMap(block(2), VOLUME, ("background", "liver", "spleen"))
    monkeypatch.setattr(monai_answer, "infer", lambda *_: SimpleNamespace(label=mask))
    auto = {"auto": (Model("auto", "Auto", (), (3,)), BUILT["ball"][1])}
    client = client_of(project_of(tmp_path), models=lambda project: Models(project, auto))
    client.app.state.desk.project.set_labels([{"name": "liver", "value": 1}, {"name": "spleen", "value": 7}])
    assert client.get("/info/").json()["models"]["auto"] | {"description": ""} == {
        "type": "segmentation",
        "labels": {"liver": 1, "spleen": 7},
        "dimension": 3,
        "description": "",
        "config": {},
    }
    assert infer(client, "auto", {}, output="json").json() == {"label_names": {"spleen": 7}}


def test_ohif_names_an_image_by_its_series(tmp_path):
    for name, uid in (("left", "1.2.5"), ("right", "1.2.6")):
        series(tmp_path / "patients" / name, uid=uid)
    client = client_of(Project(tmp_path / "p", manifest_of(tmp_path / "patients")))
    sent = {"params": {"image": "1.2.6", "output": "image"}, "files": {"params": (None, '{"foreground": [[4, 4, 4]]}')}}
    answer = client.post("/infer/ball", **sent, headers={"sec-fetch-site": "same-origin"})  # as a proxy beside the viewer passes it on
    assert answer.status_code == 200 and 'filename="c2.nii.gz"' in answer.headers["content-disposition"]
    assert client.get("/datastore/image/info", params={"image": "1.2.5"}).json()["name"] == "c1"
    assert client.get("/datastore/image/info", params={"image": "1.2.7"}).status_code == 404
    assert client.post("/infer/ball", **sent, headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_a_session_brings_its_own_image(client):
    upload = wire.encode(np.ones((1, 8, 9, 10), np.int16), Geometry.of((8, 9, 10)))
    made = client.put("/session/", files={"files": ("../../x.nii.gz", upload)}, data={"client_id": "me"}).json()
    assert client.get(f"/session/{made['session_id']}").status_code == 200
    answer = infer(client, "ball", {"foreground": [[4, 4, 4]]}, image="", session_id=made["session_id"], output="image")
    assert image_of(answer.content).shape == (8, 9, 10)
    project = client.app.state.desk.project
    assert len(project.entries()) == 2 and len(list(project.folder.glob("uploads/sessions/*"))) == 1
    assert client.delete(f"/session/{made['session_id']}").status_code == 200 and not list(project.folder.glob("uploads/sessions/*"))
    assert infer(client, "ball", {"foreground": [[4, 4, 4]]}, image="", session_id=made["session_id"]).status_code == 404
    assert client.get(f"/session/{made['session_id']}").status_code == 404
    assert client.put("/session/", files={"files": ("x.nii.gz", upload[:40])}).status_code == 400
    assert not list(project.folder.glob("uploads/sessions/*"))
    named = client.put("/datastore/", params={"image": "../odd"}, files={"file": ("x", upload)}).json()["image"]
    assert client.get(f"/api/cases/{named}").json()["name"] == "../odd"
    assert not list((client.app.state.desk.project.folder.parent).glob("*odd*"))


def test_images_of_one_name(client):
    """The same image is the same case; another of that name is another case, to whoever brought it."""
    known = upload(client, "MRHead", block(3), "ann")
    assert known == {"image": "c3", "name": "MRHead"} == upload(client, "MRHead", block(3), "bob")
    assert upload(client, "MRHead", block(4), "bob") == {"image": "c4", "name": "MRHead (2)"} == upload(client, "MRHead", block(4), "bob")
    for name, case in (("ann", "c3"), ("bob", "c4")):
        save(client, block(), "MRHead", client_id=name)
        assert len(client.get(f"/api/cases/{case}").json()["versions"]) == 1
    assert not [p for p in client.app.state.desk.project.folder.glob("uploads/*") if p.is_file()][2:]


def test_a_form_whose_header_is_of_the_request_before(client):
    """The client keeps the header of an inference and sends it with the next session."""
    body = wire.encode(np.ones((1, 8, 9, 10), np.int16), Geometry.of((8, 9, 10)))
    form = b'--abc\r\nContent-Disposition: form-data; name="files"; filename="x.nii.gz"\r\n\r\n' + body + b"\r\n--abc--\r\n"
    stale = {"content-type": "multipart/form-data; boundary=----------lImIt_of_THE_fIle_eW_$"}
    assert client.put("/session/", content=form, headers=stale).status_code == 200
    for broken in (form[2:], b"", b"--abc", form[:100]):
        refused = client.put("/session/", content=broken, headers=stale)
        assert refused.status_code == 400 and refused.json()["error"], broken[:20]


def test_the_next_sample_is_a_file_that_slicer_can_open(client):
    """Slicer's plugin opens 'path' where there is such a file; what it downloads, it asks for without the token."""
    away = client.post("/activelearning/order", json={}).json()
    assert away == {"id": "c1", "name": "c1.nii.gz", "strategy": "order", "ext": ".nii.gz"}
    headers = {"authorization": f"Bearer {TOKEN}"}
    here = TestClient(client.app, base_url="http://127.0.0.1:8421", headers=headers, client=("127.0.0.1", 5000))
    path = Path(here.post("/activelearning/order", json={}).json()["path"])
    assert path.is_absolute() and path.read_bytes() == client.get("/datastore/image?image=c1").content


def test_next_sample_and_training(client, monkeypatch):
    assert client.post("/activelearning/random", json={"client_id": None}).json()["id"] == "c1"
    assert client.get("/train/?check_if_running=true").status_code == 404 and client.get("/train/").json() == {}
    assert client.post("/train/nothing", json={}).status_code == 400
    monkeypatch.setattr(client.app.state.desk, "train", lambda job, *_: job.stop.wait(20))
    started = client.post("/train/unet", json={"minutes": 1})
    assert started.status_code == 200 and client.get("/train/").json()["id"] == started.json()["id"]
    assert client.post("/train/", json={"unet": {"minutes": 1}}).status_code == 200  # all that there are
    stopped = client.delete("/train/").json()
    assert stopped["id"] == started.json()["id"] and len(stopped["details"]) == 1  # Slicer shows the last of them
    assert client.delete("/train/").json() == {}
