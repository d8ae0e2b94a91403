"""The client class that MONAI Label publishes, against a server with a socket. ``pip install --no-deps monailabel==0.8.5`` brings it: what
it depends on would break this environment, and the class needs ``requests`` alone."""

import socket
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import uvicorn

from tests.serve.desk import BUILT, TOKEN, project_of
from vesalius.serve.app import create_app
from vesalius.serve.models import Models
from vesalius.serve.security import Guard

published = pytest.importorskip("monailabel.client.client", reason="not here: pip install --no-deps monailabel==0.8.5")


@pytest.fixture
def served(tmp_path):
    """(a project, the address it is served at)."""
    project, listener = project_of(tmp_path), socket.create_server(("127.0.0.1", 0))
    app = create_app(project, guard=Guard(TOKEN), models=Models(project, BUILT), page=tmp_path / "no page")
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield project, f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    project.close()


def client_of(url, folder, name):
    folder.mkdir()
    client = published.MONAILabelClient(url, str(folder), name)
    assert client.auth_enabled()
    client.update_auth(client.auth_token(name, TOKEN))
    return client


def test_one_client_does_it_all(served, tmp_path):
    """In one object, which keeps the headers of each request for the next."""
    project, url = served
    client = client_of(url, tmp_path / "me", "me")
    assert client.auth_valid_token() and client.info()["models"]["ball"]["type"] == "deepgrow"
    sample = client.next_sample("order", {})
    assert sample["name"] == "c1.nii.gz" and np.array_equal(nib.load(sample["path"]).shape, (20, 16, 12))
    clicks = {"label": "foreground", "foreground": [[6, 8, 5]], "background": []}
    file, facts = client.infer("ball", sample["id"], dict(clicks))
    mask = np.asarray(nib.load(file).dataobj)
    assert mask[6, 8, 5] == 1 and facts == {"label_names": {"foreground": 1}}
    assert client.infer("ball", sample["id"], clicks | {"result_extension": ".nrrd"})[0].endswith("c1.nrrd")
    saved = client.save_label(sample["id"], file, tag="final", params={"label_info": [{"name": "foreground", "idx": 1}]})
    assert np.array_equal(np.asarray(nib.load(client.download_label(saved["label"], saved["tag"])).dataobj), mask)
    assert client.datastore()["objects"]["c1"]["labels"]["final"]["info"]["version"] == saved["version"]

    image = str(next((tmp_path / "images").glob("*.nii.gz")))
    session = client.create_session(image)["session_id"]
    assert client.get_session(session) and client.infer("ball", "", dict(clicks), session_id=session)[1] == facts
    client.remove_session(session)
    assert [e.name for e in project.entries()] == ["case 0", "case 1"]
    first, again = client.upload_image(image, "MRHead"), client.upload_image(image, "MRHead")
    assert first == again and client.save_label("MRHead", file)["label"] == first["image"]

    assert client.train_status() == {} and not client.train_status(check_if_running=True)
    assert client.train_start(None, {"unet": {"minutes": 1}})["id"] == client.train_status()["id"]
    assert isinstance(client.train_stop(), dict)


def test_the_second_client_is_told(served, tmp_path):
    project, url = served
    ann, bob = (client_of(url, tmp_path / name, name) for name in ("ann", "bob"))
    files = [c.infer("ball", "c1", {"foreground": [[6, 8, z]]})[0] for c, z in ((ann, 5), (bob, 7))]
    ann.save_label("c1", files[0])
    with pytest.raises(published.MONAILabelClientException) as told:
        bob.save_label("c1", files[1])
    assert "both are kept" in told.value.msg and [v.user for v in project.entry("c1").versions] == ["ann", "bob"]
    assert Path(files[1]).exists() and bob.save_label("c1", files[1])["version"] == project.entry("c1").head
