"""``vesalius annotate`` as a user meets it: a process, one link, a token, Ctrl-C, and one sentence for what cannot be."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from tests.io.made import ct_slice
from tests.serve.desk import client_of, image_files, project_of, put
from tests.serve.test_store import block
from vesalius import cli
from vesalius.core.errors import DataError, ResourceError, RunError, UsageError
from vesalius.serve import command
from vesalius.serve.command import serve
from vesalius.serve.models import checked_model
from vesalius.serve.sources import manifest_of
from vesalius.serve.store import Project

BIN = Path(sys.executable).with_name("vesalius")


def answered(url, token=""):
    """(status, body) of a GET."""
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end(tmp_path, way):
    files = image_files(tmp_path, 2, dims=2)
    line = [BIN, "annotate", *files, "--port", "0", "--project", tmp_path / "p", "--model", "lite-medsam"]
    env = {k: v for k, v in os.environ.items() if k != "VESALIUS_TOKEN"}
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            said = process.stdout.readline()
            at, token = re.search(r"Open (http://127\.0\.0\.1:\d+)/open\?token=([\w-]{40,})", said).groups()
            assert "2 cases" in said
            assert answered(f"{at}/api/project")[0] == 401
            status, body = answered(f"{at}/api/project", token)
            assert status == 200 and json.loads(body)["models"][0]["id"] == "lite-medsam"
            with urllib.request.urlopen(urllib.request.Request(f"{at}/api/events", headers={"authorization": f"Bearer {token}"})) as page:
                assert b"presence" in page.readline(), "a page that is open does not keep the server up"
                process.send_signal(way)
                out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0 and "Traceback" not in err and token not in out + err, err
    assert f"what was saved is in {tmp_path / 'p'}" in out
    left = {p.name for p in (tmp_path / "p").rglob("*") if p.is_file()}
    assert left == {"project.sqlite"}, "no lock, no half-written file"
    assert [c.name for c in Project(tmp_path / "p", manifest_of(files)).entries()] == ["case 0", "case 1"]


def test_what_cannot_be_is_said_before_a_project_is_made(tmp_path):
    files = image_files(tmp_path, 1, dims=2)
    project = tmp_path / "p"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port: the port is in use; found {port}.*0 takes any free one"):
            serve(files, project=project, port=port)
    with pytest.raises(UsageError, match="no address of this machine"):
        serve(files, project=project, port=0, host="192.0.2.1")
    with pytest.raises(UsageError, match="Did you mean 'lite-medsam'"):
        serve(files, project=project, port=0, model="lite-medsan")
    with pytest.raises(UsageError, match="only after a training.*vesalius train unet"):
        serve(files, project=project, port=0, model="unet")
    (tmp_path / "runs" / "good-run").mkdir(parents=True)
    (tmp_path / "runs" / "good-run" / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="Did you mean '.*good-run'"):
        checked_model(str(tmp_path / "runs" / "god-run"))
    with pytest.raises(RunError, match="cannot be read"):
        serve(files, project=project, port=0, model=str(tmp_path / "runs" / "good-run"))
    with pytest.raises(UsageError, match="no such model; found nobody/nothing.*hub id needs a network"):
        serve(files, project=project, port=0, model="nobody/nothing")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "sam_hq"}')
    (other / "model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="other/config.json: this is no SAM model; found sam_hq"):
        serve(files, project=project, port=0, model=str(other))
    with pytest.raises(DataError, match="no such file"):
        serve([tmp_path / "none.png"], project=project, port=0)
    assert not project.exists()
    with pytest.raises(ResourceError, match="cannot be written"):
        serve(files, project=files[0], port=0)


def test_one_annotator_a_project_and_one_data_set(tmp_path):
    files = image_files(tmp_path, 2, dims=2)
    folder = tmp_path / "p"
    with command._held(folder), pytest.raises(RunError, match=r"another annotator has this project open; found process \d+.*--project"):
        (folder / ".lock").write_text(json.dumps({"pid": os.getppid(), "host": socket.gethostname()}))
        serve(files, project=folder, port=0)
    (folder / ".lock").unlink(missing_ok=True)
    Project(folder, manifest_of(files[:1])).close()
    with pytest.raises(UsageError, match="made for other data; found case 0"):
        Project(folder, manifest_of(files[1:]))
    assert [e.name for e in Project(folder, manifest_of(files)).entries()] == ["case 0", "case 1"], "more of the same is taken in"


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "vesalius.serve.command")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UsageError, match=r"found no uvicorn. Run: pip install 'vesalius\[serve\]'"):
        cli.annotate([str(tmp_path)])


def test_the_token_is_on_no_command_line(tmp_path, monkeypatch):
    import webbrowser

    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    with command._shown("http://127.0.0.1:1/open?token=SECRET&x", tmp_path):
        way = tmp_path / "open.html"
        assert "token=SECRET&amp;x" in way.read_text() and stat.S_IMODE(way.stat().st_mode) == 0o600
    assert not way.exists() and "SECRET" not in str(opened)
    with command._listening("127.0.0.1", 0) as listener:
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "small answers do not wait"
    assert command._hosts("127.0.0.1") == ["127.0.0.1"] and command._hosts("0.0.0.0")[0] == socket.gethostname().lower()


@pytest.mark.parametrize("ending", ["", ".dcm"])
def test_dicom_series_are_one_case_each(tmp_path, ending):
    for name, uids in (("one", ["1.2.5"]), ("two", ["1.2.6", "1.2.7"])):
        (tmp_path / name).mkdir()
        for uid in uids:
            for k in range(3):
                ct_slice(tmp_path / name / f"{uid}-{k}{ending}", np.full((5, 4), k, np.int16), (0, 0, 2.5 * k), series=uid)
    (tmp_path / "one" / "notes.txt").write_text("no image")
    alone = manifest_of(tmp_path / "one")
    assert [c.id for c in alone.cases] == ["one"] and alone.dims == 3
    assert [c.id for c in manifest_of(tmp_path).cases] == ["one", "two", "two (2)"], "names tell no UID"
    client = client_of(Project(tmp_path / "p", manifest_of(tmp_path)))
    assert client.get("/api/cases").json()[2]["shape"] == [4, 5, 3] and client.get("/api/cases/c3/image/image").status_code == 200


def test_a_server_that_starts_anew_has_all_that_was_saved(tmp_path):
    before = client_of(project_of(tmp_path))
    version = put(before, "c1", block()).json()["version"]
    session = before.post("/api/sessions", json={"case": "c1", "model": "ball"}).json()["session"]
    before.app.state.desk.project.close()
    after = client_of(project_of(tmp_path))
    gone = after.get(f"/api/sessions/{session}")
    assert gone.status_code == 404 and "nothing that was saved is lost" in gone.json()["fix"]
    assert after.get("/api/cases/c1").json()["latest"] == version
    assert put(after, "c1", block(), parent=version).status_code == 201, "a page that stayed open goes on from its version"
