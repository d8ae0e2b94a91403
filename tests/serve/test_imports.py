"""What comes in as files: label maps of other programs, films, folders of DICOM series, images too large to show."""

import io as files
import tarfile
import warnings
import zipfile

import numpy as np
import psutil
import pytest
from PIL import Image as Pillow

from tests.io.made import ct_slice
from tests.serve.desk import PICTURE, VOLUME, client_of, finished, image_files, project_of, put, relabel
from tests.serve.test_store import block
from tests.serve.test_work import archive_of
from vesalius import io
from vesalius.core.errors import DataError
from vesalius.core.geometry import Geometry
from vesalius.datasets import open_dataset, read_case
from vesalius.serve import sources, wire
from vesalius.serve.sources import manifest_of
from vesalius.serve.store import Project


def bring(client, content, name="mask.nii.gz", parent="none", case="c1"):
    return client.post(f"/api/cases/{case}/mask-file", params={"name": name, "parent": parent}, content=content)


def file_of(tmp_path, data, geometry, name="mask.nii.gz"):
    io.write_image(tmp_path / name, data[None], geometry)
    return (tmp_path / name).read_bytes()


def test_a_mask_file_lands_on_the_images_grid(tmp_path):
    client = client_of(project_of(tmp_path))
    project = client.app.state.desk.project
    same = bring(client, file_of(tmp_path, block(), VOLUME), "my mask.nii.gz")
    assert same.status_code == 201 and np.array_equal(project.mask("c1"), block())
    (version,) = client.get("/api/cases/c1").json()["versions"]
    assert version["note"] == "from file my mask.nii.gz" and version["origin"] == {"kind": "file", "file": "my mask.nii.gz"}
    turned = VOLUME.canonical()
    other = io.read_image(tmp_path / "mask.nii.gz").on(turned, "nearest").data[0]
    second = bring(client, file_of(tmp_path, other, turned, "t.nii"), "t.nii", same.json()["version"])
    assert second.status_code == 201 and np.array_equal(project.mask("c1"), block()), "turned, and without gzip"
    part = VOLUME.cropped((2, 2, 2), (12, 12, 12))
    third = bring(client, file_of(tmp_path, block()[2:12, 2:12, 2:12], part), parent=second.json()["version"])
    assert third.status_code == 201 and np.array_equal(project.mask("c1"), block()), "a part of the image"
    conflict = bring(client, file_of(tmp_path, 0 * block(), VOLUME), parent="none")
    assert conflict.status_code == 409 and conflict.json()["yours"], "as any other mask"
    assert not list((tmp_path / "project" / "uploads").glob("*"))


def test_files_that_are_no_mask_of_this_image_are_refused_in_a_sentence(tmp_path, monkeypatch):
    client = client_of(project_of(tmp_path))
    away = Geometry(VOLUME.shape, VOLUME.affine + np.array([[0, 0, 0, 500.0], [0] * 4, [0] * 4, [0] * 4]))
    beside = VOLUME.cropped((-40, 0, 0), (5, 16, 12))
    spot = np.zeros(beside.shape, np.uint8)
    spot[:4] = 1
    whole = file_of(tmp_path, block(), VOLUME)
    for content, name, says in (
        (file_of(tmp_path, block(), away), "a.nii.gz", "does not overlap the image"),
        (file_of(tmp_path, 0 * block(), away), "a.nii.gz", "does not overlap the image"),
        (file_of(tmp_path, spot, beside), "a.nii.gz", "does not overlap the image"),
        (file_of(tmp_path, block() * np.float32(0.5), VOLUME), "a.nii.gz", "whole numbers"),
        (file_of(tmp_path, block(7), VOLUME), "a.nii.gz", "found 7"),
        (whole[:-30], "a.nii.gz", "truncated"),
        (b"", "a.nii.gz", "empty"),
        (b"ObjectType = Image\nNDims = 3\nElementDataFile = /etc/passwd\n", "a.nii", "not what its name says"),
        (whole, "a.jpg", "NIfTI or PNG"),
        (whole, "a", "NIfTI or PNG"),
    ):
        answer = bring(client, content, name)
        assert answer.status_code == 400 and says in answer.json()["error"] and str(tmp_path) not in answer.text, (says, answer.text)
    assert client.get("/api/cases/c1").json()["versions"] == []
    assert bring(client, whole, case="c9").status_code == 404
    monkeypatch.setattr(wire, "MOST_SHOWN", 1000)
    assert "larger than a browser" in bring(client, whole).json()["error"], "by its header"


def archives():
    """A zip and a tar with a name that leads outside, as they are sent."""
    zipped, tarred = files.BytesIO(), files.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("../../slipped.nii", b"x" * 1000)
    with tarfile.open(fileobj=tarred, mode="w:gz") as archive:
        entry = tarfile.TarInfo("/etc/slipped.nii")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    return zipped.getvalue(), tarred.getvalue()


def test_archives_are_not_taken(tmp_path):
    client = client_of(project_of(tmp_path))
    before = {p for p in tmp_path.rglob("*") if "sqlite" not in p.name}
    for content in archives():
        for name in ("a.nii", "a.nii.gz", "a.zip", "a.tar.gz"):
            answer = bring(client, content, name)
            assert answer.status_code == 400 and len(answer.json()["error"]) < 300, answer.text
        assert client.put("/api/cases/c1/label", content=content, params={"parent": "none"}).status_code == 400
        for path in ("/datastore/", "/session/"):
            assert client.put(path, params={"image": "a"}, files={"file": ("a.nii", content)}).status_code == 400
    assert {p for p in tmp_path.rglob("*") if p.is_file() and "sqlite" not in p.name} <= before, "nothing is unpacked or left"
    assert len(client.get("/api/cases").json()) == 2


def test_a_mask_file_of_a_picture_has_its_size(tmp_path):
    client = client_of(project_of(tmp_path, dims=2))
    project, mask = client.app.state.desk.project, block(shape=PICTURE.shape)
    first = bring(client, file_of(tmp_path, mask, PICTURE, "m.png"), "m.png")
    assert first.status_code == 201 and np.array_equal(project.mask("c1"), mask)
    palette = Pillow.fromarray(mask).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "p.png")
    second = bring(client, (tmp_path / "p.png").read_bytes(), "p.png", first.json()["version"])
    assert second.status_code == 201 and np.array_equal(project.mask("c1"), mask)
    sent = client.get("/api/cases/c1/label").content
    assert bring(client, sent, "m.nii.gz", second.json()["version"]).status_code == 201 and np.array_equal(project.mask("c1"), mask)
    other = bring(client, file_of(tmp_path, mask[:-1], Geometry.of((23, 40)), "m.png"), "m.png")
    assert other.status_code == 400 and "another size" in other.json()["error"]
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (24, 40, 3), np.uint8)).save(tmp_path / "c.png")
    assert "cannot be a label map" in bring(client, (tmp_path / "c.png").read_bytes(), "c.png").json()["error"]


def film(tmp_path, frames=3):
    """A data set of one film: frame k is k everywhere, and its label holds k voxels."""
    images = np.stack([np.full(VOLUME.shape, 10 * k, np.int16) for k in range(frames)])
    labels = np.zeros((frames, *VOLUME.shape), np.uint8)
    for k in range(frames):
        labels[k].ravel()[:k] = 1
    folder = tmp_path / "film"
    folder.mkdir()
    io.write_image(folder / "f.nii.gz", images, VOLUME)
    io.write_image(folder / "l.nii.gz", labels, VOLUME)
    facts = 'name = "film"\nmodality = "US"\ndims = 4\nlicence = "x"\nsource = "x"\n'
    (folder / "dataset.toml").write_text(facts + "[labels]\nbackground = 0\nvalve = 1\n")
    (folder / "cases.csv").write_text("case,patient,split,image:cine,label:reference\nf,p,train,f.nii.gz,l.nii.gz\n")
    return folder


def test_a_film_is_a_case_a_frame(tmp_path):
    client = client_of(Project(tmp_path / "p", manifest_of(film(tmp_path))))
    project = client.app.state.desk.project
    listed = client.get("/api/cases").json()
    assert [c["name"] for c in listed] == ["f frame 01", "f frame 02", "f frame 03"] and listed[0]["channels"] == ["cine"]
    for k, case in enumerate(("c1", "c2", "c3")):
        image = project.read(case)
        assert image.images["cine"].data.shape == (1, *VOLUME.shape) and (image.images["cine"].data == 10 * k).all() and not image.labels
        assert image.geometry.close(VOLUME) and (np.asarray(project.reference(case).data) > 0).sum() == k
        shown = client.get(f"/api/cases/{case}").json()
        assert shown["shape"] == list(VOLUME.shape) and shown["reference"] is True
        assert client.get(f"/api/cases/{case}/image/cine").status_code == 200
    put(client, "c2", block())
    put(client, "c3", 0 * block())
    with archive_of(client, format="nifti") as archive:
        assert sorted(archive.namelist()) == ["f_frame_02.nii.gz", "f_frame_03.nii.gz", "labels.json"]
    with archive_of(client, format="dataset") as archive:
        archive.extractall(tmp_path / "out")
    manifest = open_dataset(tmp_path / "out" / "dataset")
    assert manifest.dims == 3 and [(c.id, c.patient, c.split) for c in manifest.cases] == [(f"f_frame_0{k}", "p", "train") for k in (2, 3)]
    back = read_case(manifest, "f_frame_02")
    assert (back.images["cine"].data == 10).all() and np.array_equal(back.label.data, block())


def test_a_film_without_a_data_set_and_volumes_beside_it(tmp_path):
    (folder := tmp_path / "images").mkdir()
    io.write_image(folder / "a.nii.gz", np.zeros((2, *VOLUME.shape), np.int16), VOLUME)
    io.write_image(folder / "b.nii.gz", np.zeros((1, *VOLUME.shape), np.int16), VOLUME)
    io.write_image(folder / "colour.nii.gz", np.zeros((3, *VOLUME.shape), np.uint8), VOLUME)
    for given in (folder, sorted(folder.iterdir())):
        manifest = manifest_of(given)
        assert [c.id for c in manifest.cases] == ["a frame 01", "a frame 02", "b", "colour"] and manifest.dims == 3
        channels = [len(read_case(manifest, c.id).images["image"].data) for c in manifest.cases]
        assert channels == [1, 1, 1, 3]
    assert manifest_of([folder / "b.nii.gz", folder / "colour.nii.gz"]).built_in is None
    (folder / "damaged.nii.gz").write_bytes(b"\x1f\x8b nothing")
    assert "damaged" in [c.id for c in manifest_of(folder).cases], "one of them does not hide the others"


def test_a_folder_without_images_beside_series_is_named_and_left_out(tmp_path, monkeypatch):
    for name, uid in (("one", "1.2.5"), ("reports", "1.2.6")):
        (tmp_path / name).mkdir()
        for k in range(3):
            modality = {"Modality": "SR"} if name == "reports" else {}
            ct_slice(tmp_path / name / f"{k}.dcm", np.full((5, 4), k, np.int16), (0, 0, 2.5 * k), series=uid, **modality)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        manifest = manifest_of(tmp_path)
    assert [c.id for c in manifest.cases] == ["one"]
    assert [str(n.message).partition(": ")[2] for n in notes if "reports" in str(n.message)] == ["left out: no DICOM image in this folder"]
    with pytest.raises(DataError):
        manifest_of(tmp_path / "reports")

    def damaged(folder):
        raise DataError("the DICOM header is damaged", where=folder)

    monkeypatch.setattr(sources, "series_in", damaged)
    with pytest.raises(DataError, match="header is damaged"):
        manifest_of(tmp_path)


def test_an_image_that_no_browser_holds_is_refused_by_its_header(tmp_path, monkeypatch):
    (path,) = image_files(tmp_path, 1)
    io.write_image(tmp_path / "huge.nii", np.zeros((1, 2, 2, 2), np.int16), Geometry.of((2, 2, 2)))
    raw = bytearray((tmp_path / "huge.nii").read_bytes()[:352])
    raw[40:48] = np.array([3, 2000, 2000, 1300], "<i2").tobytes()
    with open(tmp_path / "huge.nii", "wb") as file:
        file.write(raw)
        file.truncate(352 + 2 * 2000 * 2000 * 1300)
    client = client_of(Project(tmp_path / "p", manifest_of([tmp_path / "huge.nii", path])))
    monkeypatch.setattr(Project, "read", lambda *_: pytest.fail("it is not read"))
    answer = client.get("/api/cases/c1/image/image")
    assert answer.status_code == 400 and "10400.0 MB" in answer.json()["error"] and answer.json()["fix"]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    assert client.get("/api/cases/c2/image/image").status_code == 507


def test_coco_names_the_files_of_the_pictures(tmp_path):
    """As ``torchvision.datasets.CocoDetection`` opens them."""
    import json

    client = client_of(project_of(tmp_path, dims=2))
    put(client, "c1", block(shape=PICTURE.shape))
    with archive_of(client, format="coco") as archive:
        (image,) = json.loads(archive.read("coco.json"))["images"]
    assert image["file_name"] == "case 0.png" and (tmp_path / "images" / image["file_name"]).exists()


def test_values_without_a_label_can_be_named_first(tmp_path):
    client = client_of(project_of(tmp_path))
    content = file_of(tmp_path, block(7), VOLUME)
    refused = bring(client, content).json()
    assert "found 7" in refused["error"] and "add the labels" in refused["fix"]
    relabel(client, [{"name": "foreground", "value": 1}, {"name": "liver", "value": 7}])
    assert bring(client, content).status_code == 201


def test_exports_and_copies_do_not_pile_up(tmp_path):
    import os

    client = client_of(project_of(tmp_path))
    put(client, "c1", block())
    job = finished(client, client.post("/api/export", json={"format": "nifti"}))
    folder = client.app.state.desk.project.folder
    (archive,) = (folder / "exports").iterdir()
    (folder / "datasets" / "unet-1" / "images").mkdir(parents=True)
    (folder / "exports" / "half").mkdir()
    project_of(tmp_path).close()
    assert job["state"] == "done" and archive.exists() and not (folder / "datasets" / "unet-1").exists()
    assert list((folder / "exports").iterdir()) == [archive], "what was broken off goes at once"
    os.utime(archive, (0, 0))
    project_of(tmp_path).close()
    assert not archive.exists()
