"""Several people, several pages, answers that got lost: labels, versions, presence, and what a version says of where it came from."""

import asyncio
import time

import numpy as np
import pytest

from tests.serve.desk import VOLUME, client_of, finished, project_of, put, relabel
from tests.serve.test_sessions import ask, click, session_of
from tests.serve.test_store import block
from vesalius.serve import sessions as sessions_module
from vesalius.serve.events import Hub


@pytest.fixture
def client(tmp_path):
    return client_of(project_of(tmp_path))


def told_by(client, monkeypatch):
    told = []
    monkeypatch.setattr(client.app.state.hub, "publish", lambda event, **data: told.append((event, data)))
    return told


def test_nobody_overwrites_the_labels_of_another(client, monkeypatch):
    told = told_by(client, monkeypatch)
    first = client.get("/api/project").json()
    mine, theirs = ([*first["labels"], {"name": name, "value": 2, "color": "#00ff00"}] for name in ("liver", "spleen"))
    saved = relabel(client, mine, first["labels_version"])
    assert saved.status_code == 200 and saved.json()["labels"] == mine and saved.json()["labels_version"] != first["labels_version"]
    assert told == [("labels", {"labels_version": saved.json()["labels_version"]})]
    late = relabel(client, theirs, first["labels_version"])
    assert late.status_code == 409 and late.json()["labels"] == mine and late.json()["error"].count(".") == 1
    assert late.json()["labels_version"] == saved.json()["labels_version"]
    again = relabel(client, mine, first["labels_version"])
    assert again.status_code == 200, "the same table sent again, as its answer was lost"
    assert relabel(client, theirs, late.json()["labels_version"]).status_code == 200
    assert client.put("/api/labels", json=mine).status_code == 428


def test_a_project_has_an_id_of_its_own(tmp_path, client):
    (tmp_path / "other").mkdir()
    id = client.get("/api/project").json()["id"]
    assert len(id) >= 16 and client_of(project_of(tmp_path)).get("/api/project").json()["id"] == id
    assert client_of(project_of(tmp_path / "other")).get("/api/project").json()["id"] != id


def test_a_mask_sent_again_is_no_conflict(client):
    """The answer was lost on its way, and the page sent the same once more."""
    base = put(client, "c1", block()).json()["version"]
    assert put(client, "c1", block()).json()["version"] == base
    smaller = block()
    smaller[4] = 0
    sent = [put(client, "c1", smaller, parent=base, **{"x-user": "ann"}) for _ in range(2)]
    assert [a.status_code for a in sent] == [201, 201] and len({a.json()["version"] for a in sent}) == 1
    assert put(client, "c1", smaller, parent=base, **{"x-user": "bob"}).status_code == 409, "another person's is another version"
    assert put(client, "c1", block(), parent=base, **{"x-user": "ann"}).status_code == 409, "another mask too"
    case = client.get("/api/cases/c1").json()
    kept = {p.name.removesuffix(".nii.gz") for p in (client.app.state.desk.project.folder / "masks" / "c1").iterdir()}
    assert case["latest"] == sent[0].json()["version"] and kept == {v["id"] for v in case["versions"]} and len(kept) == 4


@pytest.mark.parametrize("status", ["done", "reviewed"])
def test_what_is_changed_is_no_longer_done(client, status):
    version = put(client, "c1", block()).json()["version"]
    client.put("/api/cases/c1/status", json={"status": status})
    version = put(client, "c1", block(), parent=version).json()["version"]
    assert client.get("/api/cases/c1").json()["status"] == status, "the same mask once more"
    assert put(client, "c1", np.zeros_like(block()), parent="none", **{"x-user": "bob"}).status_code == 409
    assert client.get("/api/cases/c1").json()["status"] == status, "another version beside it"
    put(client, "c1", np.zeros_like(block()), parent=version)
    assert client.get("/api/cases/c1").json()["status"] == "draft"


def test_a_version_names_the_prompts_it_came_from(client):
    session = session_of(client)
    ask(client, session, click([6, 8, 5]), object="object 1", label="foreground")
    ask(client, session, click([14, 8, 5], positive=False), object="object 1", label="foreground")
    low, high = (VOLUME.to_world(np.array(at, float)).tolist() for at in ([9, 9, 9], [4, 4, 4]))
    ask(client, session, {"kind": "box", "low": low, "high": high}, object="object 2")
    headers = {"x-origin-kind": "prompts", "x-origin-model": "ball", "x-session": session}
    first = put(client, "c1", block(), **headers).json()["version"]
    client.post(f"/api/sessions/{session}/undo")
    second = put(client, "c1", np.zeros_like(block()), parent=first, **headers).json()["version"]
    client.delete(f"/api/sessions/{session}")
    third = put(client, "c1", block(), parent=second, **headers).json()["version"]
    said = {v["id"]: v["origin"]["prompts"] for v in client.get("/api/cases/c1").json()["versions"]}
    point, other, box = said[first]
    assert point == {"kind": "point", "object": "object 1", "label": "foreground", "positive": True, "xyz": click([6, 8, 5])["xyz"]}
    assert other["positive"] is False and box["kind"] == "box" and np.allclose(box["low"], np.minimum(low, high))
    assert said[second] == said[third] == [point, other], "not what was taken back; also when the session is over"
    assert "prompts" not in client.get("/api/cases/c2").text
    elsewhere = put(client, "c2", block(), **headers)
    origin = next(v["origin"] for v in client.get("/api/cases/c2").json()["versions"] if v["id"] == elsewhere.json()["version"])
    assert "prompts" not in origin, "a session about another case says nothing here"


def test_a_mask_is_carried_on_through_the_persons_window(client, monkeypatch):
    seen, real = [], sessions_module._windowed
    monkeypatch.setattr(sessions_module, "_windowed", lambda data, window: seen.append(window) or real(data, window))
    mask = np.zeros(VOLUME.shape, np.uint8)
    mask[4:10, 4:10, 5] = 1
    put(client, "c1", mask)
    session_of(client, "flat", window=[-160, 240])
    asked = {"object": "foreground", "from": 5, "axis": 2, "model": "flat"}
    assert finished(client, client.post("/api/cases/c1/propagate", json=asked))["state"] == "done"
    assert seen and set(seen) == {(-160, 240)}, "that of the newest session"
    seen.clear()
    assert finished(client, client.post("/api/cases/c1/propagate", json={**asked, "window": [0, 50]}))["state"] == "done"
    assert seen and set(seen) == {(0, 50)}
    assert client.post("/api/cases/c1/propagate", json={**asked, "window": [5, 1]}).status_code == 400


def test_presence_counts_people_and_not_tabs(client):
    async def listen():
        hub = Hub()
        pages = [hub.stream("ann", "1"), hub.stream("ann", "2"), hub.stream("bob", "3")]
        for page in pages:
            await anext(page)
        users, again = hub.users(), hub.stream("carl", "3")
        await anext(again)
        left = hub.users()
        ended = [text async for text in pages[2]]
        [await page.aclose() for page in (*pages[:2], again)]
        return users, left, ended

    users, left, ended = asyncio.run(listen())
    assert users == ["ann", "bob"] and left == ["ann", "carl"], "a tab that asks anew, under another name, was one person all along"
    assert all("presence" in text for text in ended), "and its earlier stream ends"


def test_the_stream_of_events_knows_who_listens(client, monkeypatch):
    heard = []

    async def stream(user, tab=""):
        heard.append((user, tab))
        yield ": here\n\n"

    monkeypatch.setattr(client.app.state.hub, "stream", stream)
    assert client.get("/api/events", params={"user": "Renée", "tab": "t1"}).status_code == 200
    client.get("/api/events")
    assert heard[0] == ("Renée", "t1") and heard[1][0] and heard[1][1] == ""


def test_a_training_keeps_nobody_waiting(client, monkeypatch):
    import threading

    go, desk = threading.Event(), client.app.state.desk
    monkeypatch.setattr(desk, "train", lambda job, *_: go.wait(30))
    put(client, "c1", block())
    training = client.post("/api/train", json={"method": "unet"}).json()["job"]
    try:
        job = finished(client, client.post("/api/export", json={"format": "nifti"}), 20)
        assert job["state"] == "done" and client.get(f"/api/jobs/{training}").json()["state"] == "running"
        second = client.post("/api/train", json={"method": "unet"}).json()["job"]
        time.sleep(0.1)
        assert client.get(f"/api/jobs/{second}").json()["state"] == "queued", "one training at a time"
    finally:
        go.set()
