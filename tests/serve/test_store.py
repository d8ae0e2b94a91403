"""Cases, masks and versions: nothing is lost, nobody overwrites anybody, and uploads are checked as files are."""

import errno
import gzip
import sys
import threading

import nibabel as nib
import numpy as np
import pytest

from tests.serve.desk import PICTURE, VOLUME, client_of, image_files, project_of, put, relabel
from vesalius import io
from vesalius.core.errors import DataError, ResourceError
from vesalius.core.geometry import Geometry
from vesalius.serve import database, wire
from vesalius.serve.labels import values_of
from vesalius.serve.records import Conflict
from vesalius.serve.sources import manifest_of
from vesalius.serve.store import Project


@pytest.fixture
def project(tmp_path):
    opened = project_of(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def client(project):
    return client_of(project)


def block(value=1, shape=VOLUME.shape, dtype=np.uint8):
    mask = np.zeros(shape, dtype)
    mask[(slice(4, 10),) * len(shape)] = value
    return mask


def test_cases_and_images_come_on_their_own_grid(client, project):
    listed = client.get("/api/cases").json()
    assert [c["id"] for c in listed] == ["c1", "c2"] and listed[0]["name"] == "case 0" and listed[0]["shape"] == list(VOLUME.shape)
    facts = client.get("/api/project").json()
    assert (
        facts["cases"] == 2 and facts["counts"]["todo"] == 2 and facts["labels"] == [{"name": "foreground", "value": 1, "color": "#e6194b"}]
    )
    answer = client.get("/api/cases/c1/image/image")
    sent = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    assert np.allclose(sent.affine, VOLUME.affine) and np.array_equal(np.asarray(sent.dataobj), project.read("c1").images["image"].data[0])
    again = client.get("/api/cases/c1/image/image", headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304 and not again.content
    assert client.get("/api/cases/c9").status_code == client.get("/api/cases/c1/image/other").status_code == 404


@pytest.mark.parametrize("dims", [2, 3])
def test_a_coarse_image_is_every_nth_voxel_where_it_was(dims, tmp_path, monkeypatch):
    """Also of a grid that is turned, and the whole one that is asked for next is not read again."""
    monkeypatch.setattr("vesalius.serve.images.MOST_COARSE", 7)
    project = project_of(tmp_path, dims)
    client, read = client_of(project), project.read("c1")
    data, geometry = read.images["image"].data[0], read.images["image"].geometry
    every = (3, 3, 2) if dims == 3 else (4, 6)
    reads = []
    monkeypatch.setattr(project, "read", lambda case: reads.append(case) or read)
    answer = client.get("/api/cases/c1/image/image/coarse")
    sent = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    assert answer.headers["x-every"] == ",".join(map(str, every))
    if dims == 3:
        assert np.array_equal(np.asarray(sent.dataobj), data[::3, ::3, ::2])
        assert np.allclose(sent.affine @ [2, 3, 4, 1], [*geometry.to_world((6, 9, 8)), 1])
    else:
        assert np.array_equal(np.asarray(sent.dataobj)[..., 0].T, data[::4, ::6]) and np.allclose(sent.affine @ [1, 1, 0, 1], [6, -4, 0, 1])
    whole = client.get("/api/cases/c1/image/image")
    assert whole.status_code == 200 and reads == ["c1"]
    assert client.get("/api/cases/c1/image/image/coarse").content == answer.content and reads == ["c1"]
    client.get("/api/cases/c2/image/image"), client.get("/api/cases/c2/image/image/coarse"), client.get("/api/cases/c1/image/image/coarse")
    assert reads == ["c1", "c2", "c2"]
    assert client.get("/api/cases/c1/image/other/coarse").status_code == 404


def test_a_saved_mask_comes_back_and_has_a_history(client):
    assert client.get("/api/cases/c1/label").status_code == 404
    first = put(
        client, "c1", block(), **{"x-user": "Ren%C3%A9e", "x-origin-kind": "model", "x-origin-model": "ball", "x-origin-prompts": "3"}
    )
    assert first.status_code == 201
    smaller = block()
    smaller[4:6] = 0
    second = put(client, "c1", smaller, parent=first.json()["version"])
    case = client.get("/api/cases/c1").json()
    assert case["status"] == "draft" and case["latest"] == second.json()["version"]
    old, new = case["versions"]
    assert old["user"] == "Renée" and old["origin"] == {"kind": "model", "model": "ball", "prompts": 3} and new["parent"] == old["id"]
    for version, mask in ((None, smaller), (old["id"], block())):
        sent = client.get("/api/cases/c1/label", params={"version": version} if version else {})
        found = nib.Nifti1Image.from_bytes(gzip.decompress(sent.content))
        assert np.array_equal(np.asarray(found.dataobj), mask) and np.allclose(found.affine, VOLUME.affine)


def test_the_second_of_two_gets_a_conflict_and_both_versions_stay(client):
    base = put(client, "c1", block()).json()["version"]
    mine = put(client, "c1", block(), parent=base).json()["version"]
    theirs = put(client, "c1", np.zeros_like(block()), parent=base)
    assert theirs.status_code == 409 and theirs.json()["version"] == mine and theirs.json()["fix"]
    assert client.get("/api/cases/c1").json()["latest"] == mine
    assert client.get("/api/cases/c1/label", params={"version": theirs.json()["yours"]}).status_code == 200
    assert put(client, "c1", block(), parent=mine).status_code == 201
    assert put(client, "c2", block(), parent=mine).status_code == 404, "a version of another case is no parent"


def test_ten_people_at_once_lose_nothing(project):
    base = project.save("c1", block(), None, user="a").id
    outcome = []

    def save(k):
        mask = block()
        mask[0, 0, k] = 1
        try:
            outcome.append(("head", project.save("c1", mask, base, user=str(k)).id))
        except Conflict as beside:
            outcome.append(("beside", beside.yours))

    threads = [threading.Thread(target=save, args=(k,)) for k in range(10)]
    [t.start() for t in threads], [t.join() for t in threads]
    heads = [v for what, v in outcome if what == "head"]
    entry = project.entry("c1")
    assert len(outcome) == 10 and len(heads) == 1 and entry.head == heads[0] and len(entry.versions) == 11
    assert {int(np.flatnonzero(project.mask("c1", v)[0, 0])[0]) for _, v in outcome} == set(range(10))


def test_a_crash_between_mask_and_row_loses_nothing(tmp_path, monkeypatch):
    project = project_of(tmp_path)
    base = project.save("c1", block(), None, user="a").id

    class Killed(BaseException):
        pass

    def killed():
        raise Killed

    monkeypatch.setattr(project.database, "writing", killed)
    with pytest.raises(Killed):
        project.save("c1", np.zeros_like(block()), base, user="a")
    (project.folder / "masks" / "c1" / ".tmp-1-half.nii.gz").write_bytes(b"half")
    (project.folder / "masks" / "c1" / "notes.nii.gz").write_bytes(b"not ours")
    project.close()
    again = project_of(tmp_path)
    entry = again.entry("c1")
    assert entry.head == base and [v.origin["kind"] for v in entry.versions if v.id != base] == ["recovered"]
    recovered = next(v for v in entry.versions if v.id != base)
    assert not again.mask("c1", recovered.id).any() and again.mask("c1").any()
    assert not list((again.folder / "masks").glob("*/.tmp-*"))
    assert len(project_of(tmp_path).entry("c1").versions) == 2, "recovered once"


def test_a_full_disk_hides_no_image(client, monkeypatch):
    """An image that cannot be kept for the next time is said, not half-sent; when there is space again it is there."""

    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(sys.modules["vesalius.io.atomic"], "_flush", no_space)
        answer = client.get("/api/cases/c1/image/image")
        assert answer.status_code == 507 and "full" in answer.json()["error"], answer.text
    assert client.get("/api/cases/c1/image/image").status_code == 200


@pytest.mark.parametrize("where", ["mask", "database"])
def test_a_full_disk_is_said_and_what_was_there_stays(project, client, monkeypatch, where):
    base = put(client, "c1", block()).json()["version"]
    with monkeypatch.context() as full:
        if where == "mask":

            def no_space(*_):
                raise OSError(errno.ENOSPC, "No space left on device")

            full.setattr(sys.modules["vesalius.io.atomic"], "_flush", no_space)
        else:
            project.database.engine.dispose()
            real = database._prepare

            def tiny(connection, record):
                real(connection, record)
                pages = connection.execute("PRAGMA page_count").fetchone()[0]
                connection.execute(f"PRAGMA max_page_count={pages}")

            database.sql.event.listen(project.database.engine, "connect", tiny)
        masks = [block(shape=VOLUME.shape) * (np.arange(VOLUME.shape[0]) > k % 9).reshape(-1, 1, 1) for k in range(60)]
        sent = masks[:1] if where == "mask" else masks
        answers = [put(client, "c1", mask.astype(np.uint8), parent=base, **{"x-user": "u" * 60}) for mask in sent]
    answer = next(a for a in answers if a.status_code != 201 and a.status_code != 409)
    assert answer.status_code == 507 and "full" in answer.json()["error"]
    known = {v.id for v in project.entry("c1").versions}
    kept = {p.name.removesuffix(".nii.gz") for p in (project.folder / "masks" / "c1").iterdir()}
    assert base in known and kept == known, "no file without a row, no row without a file"


def test_uploads_are_checked_as_files_are(client, tmp_path):
    good = wire.encode(np.random.default_rng(0).integers(0, 2, (1, *VOLUME.shape)).astype(np.uint8), VOLUME)
    ask = {"params": {"parent": "none"}}
    assert client.put("/api/cases/c1/label", content=good, **ask).status_code == 201
    other = Geometry(VOLUME.shape, VOLUME.affine + np.diag([0, 0, 1.0, 0]))
    floats = tmp_path / "f.nii.gz"
    io.write_image(floats, block()[None] * np.float32(0.4), VOLUME)
    for body, says in (
        (good[: len(good) // 2], "truncated"),
        (b"", None),
        (b"\x1f\x8b" + b"x" * 100, None),
        (wire.encode(block()[None], other), "another grid"),
        (wire.encode(block()[None][..., :-1], Geometry((20, 16, 11), VOLUME.affine)), "another size"),
        (wire.encode(block(7)[None], VOLUME), "no label"),
        (floats.read_bytes(), "whole numbers"),
    ):
        answer = client.put("/api/cases/c1/label", content=body, **ask)
        assert answer.status_code == 400 and "Traceback" not in answer.text and str(tmp_path) not in answer.text, answer.text
        assert says is None or says in answer.json()["error"], answer.text
    assert len(client.get("/api/cases/c1").json()["versions"]) == 1
    assert not list((tmp_path / "project" / "uploads").glob("*")), "uploads leave nothing behind"


def test_arrays_of_another_size_or_that_unfold_to_more_are_refused(client):
    whole = put(client, "c1", block())
    assert whole.status_code == 201
    assert put(client, "c1", block()[:-1]).status_code == 400
    assert put(client, "c1", block().astype(np.float32)).status_code == 400
    longer = gzip.compress(bytes(10**7))
    sides = {"x-shape": "20,16,12", "x-dtype": "uint8"}
    assert "too long" in client.put("/api/cases/c1/label?parent=none", content=longer, headers=sides).json()["error"]
    assert client.put("/api/cases/c1/label?parent=none", content=b"no gzip", headers=sides).status_code == 400


def test_a_picture_travels_as_one_slice_and_back(tmp_path):
    project = project_of(tmp_path, dims=2)
    client = client_of(project)
    data = project.read("c1").images["image"].data[0]
    sent = nib.Nifti1Image.from_bytes(gzip.decompress(client.get("/api/cases/c1/image/image").content))
    assert sent.shape == (*data.T.shape, 1) and np.array_equal(np.asarray(sent.dataobj)[..., 0].T, data)
    assert np.allclose(sent.affine @ [5, 7, 0, 1], [5, -7, 0, 1]), "x is the column, y minus the row"
    mask = block(shape=PICTURE.shape)
    version = client.put("/api/cases/c1/label?parent=none", content=wire.encode(mask[None], PICTURE))
    assert version.status_code == 201 and np.array_equal(project.mask("c1"), mask)
    back = client.get("/api/cases/c1/label").content
    assert client.put(f"/api/cases/c1/label?parent={version.json()['version']}", content=back).status_code == 201
    assert np.array_equal(project.mask("c1"), mask)
    colour = np.arange(3 * 6 * 4, dtype=np.uint8).reshape(3, 6, 4)
    rgb = nib.Nifti1Image.from_bytes(gzip.decompress(wire.encode(colour, Geometry.of((6, 4)))))
    assert rgb.get_data_dtype().names == ("R", "G", "B") and np.asarray(rgb.dataobj)["G"][2, 3, 0] == colour[1, 3, 2]


def test_labels_are_text_and_nothing_else(client):
    odd = [{"name": "<script>alert(1)</script>", "value": 1, "color": "#00FF00"}, {"name": "=cmd|' /C calc'!A0", "value": 300}]
    listed = relabel(client, odd)
    assert listed.status_code == 200 and listed.headers["content-type"] == "application/json"
    assert listed.json()["labels"][0]["name"] == odd[0]["name"]
    assert put(client, "c1", block(300, dtype=np.uint16)).status_code == 201
    for wrong in ([], [{"name": "", "value": 1}], [{"name": "a", "value": 0}], [{"name": "a", "value": 1, "color": "red;}"}]):
        assert relabel(client, wrong).status_code == 400
    assert relabel(client, [{"name": "a", "value": 1}, {"name": "a", "value": 2}]).status_code == 400
    assert "cannot be removed" in relabel(client, [{"name": "a", "value": 1}]).json()["error"]
    assert "<script>" not in client.get("/docs").text


def test_status_comments_and_bodies_that_are_not_understood(client):
    assert client.put("/api/cases/c1/status", json={"status": "done"}).status_code == 200
    assert client.get("/api/project").json()["counts"]["done"] == 1
    assert client.put("/api/cases/c1/status", json={"status": "perfect"}).status_code == 400
    assert client.put("/api/cases/c9/status", json={"status": "done"}).status_code == 404
    assert client.post("/api/cases/c1/comments", json={"text": "<b>look</b>"}).json()[0]["text"] == "<b>look</b>"
    assert client.post("/api/cases/c1/comments", json={"text": "x" * 5000}).status_code == 400
    for body in (b"{", b"[]", b'{"status": "done", "more": 1}', b'{"status": NaN}', b"\xff\xfe"):
        answer = client.put("/api/cases/c1/status", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and set(answer.json()) == {"error", "fix"}, answer.text


def test_what_can_be_opened(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        manifest_of([tmp_path / "none.nii.gz"])
    with pytest.raises(DataError, match="empty"):
        (tmp_path / "empty").mkdir()
        manifest_of(tmp_path / "empty")
    for folder, dims in (("a", 2), ("b", 3)):
        (tmp_path / folder).mkdir()
        image_files(tmp_path / folder, 2, dims)
    loose = manifest_of(tmp_path / "a")
    assert [c.id for c in loose.cases] == ["case 0", "case 1"] and loose.dims == 2
    twice = manifest_of([tmp_path / "a" / "case 0.png", tmp_path / "a" / "case 0.png"])
    assert len({c.id for c in twice.cases}) == 2
    with pytest.raises(DataError, match="pictures and volumes"):
        manifest_of([tmp_path / "a", tmp_path / "b"])
    phantom = Project(tmp_path / "p", manifest_of("phantom:polyp?cases=3"))
    sent = client_of(phantom).get("/api/cases/c1/image/RGB")
    assert sent.status_code == 200 and phantom.originals.brings_label(phantom.entry("c1")), "made, not read from a file"
    label = phantom.reference("c1")
    assert label is not None and np.array_equal(values_of(label, phantom.labels), label.data)
    with pytest.raises(ResourceError):
        (tmp_path / "file").write_text("")
        Project(tmp_path / "file", loose)
