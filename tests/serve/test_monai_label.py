"""The shapes that MONAI Label's client sends and takes apart."""

import gzip
import json
from email import message_from_bytes

import nibabel as nib
import numpy as np
import pytest

from tests.serve.desk import TOKEN, VOLUME, client_of, project_of
from tests.serve.test_store import block
from vesalius.core.geometry import Geometry
from vesalius.serve import wire


@pytest.fixture
def client(tmp_path):
    return client_of(project_of(tmp_path))


def image_of(content):
    return nib.Nifti1Image.from_bytes(gzip.decompress(content))


def infer(client, model, params, image="c1", **more):
    files = {"params": (None, json.dumps(params))}
    return client.post(f"/infer/{model}", params={"image": image, **more}, files=files)


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
    assert info["models"]["ball"]["type"] == "deepedit" and info["labels"] == ["foreground"] and "uncertainty" in info["strategies"]
    assert client.get("/datastore/").json()["total"] == 2
    listed = client.get("/datastore/", params={"output": "all"}).json()["objects"]
    assert list(listed) == ["c1", "c2"] and listed["c1"]["labels"] == {}
    assert np.allclose(image_of(client.get("/datastore/image", params={"image": "c1"}).content).affine, VOLUME.affine)
    assert client.get("/datastore/image", params={"image": "../c1"}).status_code == 404


def test_a_label_is_saved_on_top_and_the_one_before_stays(client):
    files = {"params": (None, "{}"), "label": ("x.nii.gz", wire.encode(block()[None], VOLUME))}
    for _ in range(2):
        saved = client.put("/datastore/label", params={"image": "c1", "tag": "final"}, files=files)
        assert saved.status_code == 200 and saved.json()["image"] == "c1", saved.text
    entry = client.get("/api/cases/c1").json()
    assert len(entry["versions"]) == 2 and entry["latest"] == saved.json()["label"]
    assert np.array_equal(np.asarray(image_of(client.get("/datastore/label?label=c1&tag=final").content).dataobj), block())
    assert client.get("/datastore/", params={"output": "train"}).json() == [{"image": "c1", "label": "c1"}]
    assert client.put("/datastore/label", params={"image": "c1"}, files={"params": (None, "{}")}).status_code == 400


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
    assert infer(client, "ball", {"foreground": "here"}).status_code == 400
    assert infer(client, "ball", {"foreground": [[1]]}).status_code == 400
    assert client.post("/infer/ball?image=c1", json={"foreground": [[6, 8, 5]]}).status_code == 200


def test_a_session_brings_its_own_image(client):
    upload = wire.encode(np.ones((1, 8, 9, 10), np.int16), Geometry.of((8, 9, 10)))
    made = client.put("/session/", files={"files": ("../../x.nii.gz", upload)}, data={"client_id": "me"}).json()
    assert client.get(f"/session/{made['session_id']}").status_code == 200
    answer = infer(client, "ball", {"foreground": [[4, 4, 4]]}, image="", session_id=made["session_id"], output="image")
    assert image_of(answer.content).shape == (8, 9, 10)
    assert client.delete(f"/session/{made['session_id']}").status_code == 200
    assert client.get(f"/session/{made['session_id']}").status_code == 404
    assert client.put("/session/", files={"files": ("x.nii.gz", upload[:40])}).status_code == 400
    named = client.put("/datastore/", params={"image": "../odd"}, files={"file": ("x", upload)}).json()["image"]
    assert client.get(f"/api/cases/{named}").json()["name"] == "../odd"
    assert not list((client.app.state.desk.project.folder.parent).glob("*odd*"))


def test_next_sample_and_training(client):
    assert client.post("/activelearning/random", json={"client_id": None}).json()["id"] == "c1"
    assert client.get("/train/?check_if_running=true").status_code == 404 and client.get("/train/").json() == {}
    assert client.post("/train/nothing", json={}).status_code == 400
    started = client.post("/train/unet", json={"minutes": 1})
    assert started.status_code == 200 and client.get("/train/").json()["id"] == started.json()["id"]
    assert client.delete("/train/").status_code == 200
