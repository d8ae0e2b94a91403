"""Kvasir-SEG's native folders: grey JPEG masks, boxes by name, lists that are splits, and an inset that may go."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vesalius.core.errors import DataError, GeometryError
from vesalius.datasets import check, open_dataset
from vesalius.datasets.cases import read_case
from vesalius.datasets.kvasir_seg import binary, boxes_json, boxes_of, missing_kvasir_seg, open_kvasir_seg, without_inset

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "2d" / "kvasir_seg"


def disc(shape=(40, 48), centre=(15, 30), radius=9) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def save(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data).save(path, quality=75)


def folder(root: Path, number: int = 4, *, two: bool = True) -> dict[str, np.ndarray]:
    """A folder as it is published; returns the true masks."""
    rng, masks = np.random.default_rng(0), {}
    for k in range(number):
        name = f"cju{k:02d}"
        mask = disc(centre=(14 + k, 30)) | (disc(centre=(30, 9), radius=5) if two and k else False)
        masks[name] = mask
        save(
            root / "images" / f"{name}.jpg",
            np.where(mask[..., None], (200, 90, 80), (150, 100, 90) + rng.integers(0, 5, 3)).astype(np.uint8),
        )
        save(root / "masks" / f"{name}.jpg", np.repeat((mask * 255).astype(np.uint8)[..., None], 3, 2))
    (root / "kavsir_bboxes.json").write_text(json.dumps(boxes_json(masks)))
    return masks


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


class TestOpening:
    def test_grey_edges_of_a_jpeg_mask_are_decided(self, tmp_path):
        masks = folder(tmp_path)
        manifest = open_dataset(tmp_path)
        assert manifest.layout == "kvasir-seg" and manifest.channels == ("RGB",) and manifest.names == ("background", "polyp")
        for name, mask in masks.items():
            case = read_case(manifest, name)
            found = np.asarray(case.label.data)
            assert set(np.unique(found)) == {0, 1} and dice(found > 0, mask) >= 0.99
            assert np.asarray(case.images["RGB"].data).shape == (3, 40, 48) and case.label.geometry == case.geometry

    def test_the_threshold_is_127(self):
        assert binary(np.array([[[127, 128, 0, 255]]], np.uint8)).tolist() == [[False, True, False, True]]

    def test_boxes_are_read_around_the_pixels(self, tmp_path):
        masks = folder(tmp_path)
        boxes = read_case(open_dataset(tmp_path), "cju01").boxes["polyp"]
        assert boxes.labels == ("polyp", "polyp")
        for low, high in zip(boxes.low, boxes.high, strict=True):
            inside = [slice(int(a + 0.5), int(b + 0.5)) for a, b in zip(low, high, strict=True)]
            assert masks["cju01"][tuple(inside)].any() and (high - low >= 9).all()

    def test_lists_are_splits_and_prediction_sees_no_box(self, tmp_path):
        folder(tmp_path)
        (tmp_path / "train.txt").write_text("cju00\ncju01.jpg\n")
        (tmp_path / "val.txt").write_text("cju02\n")
        manifest = open_dataset(tmp_path)
        assert manifest.where("train") == ("cju00", "cju01") and manifest.where("val") == ("cju02",)
        blind = read_case(manifest, "cju01", labels=False)
        assert not blind.labels and not blind.boxes
        assert not [f for f in check(manifest) if f.level == "error"]

    def test_it_is_not_taken_for_another_layout_nor_another_for_it(self, tmp_path):
        assert missing_kvasir_seg(tmp_path) == "no images/, no masks/, no kavsir_bboxes.json"
        with pytest.raises(DataError, match="no Kvasir-SEG data"):
            open_kvasir_seg(tmp_path)
        folder(tmp_path)
        (tmp_path / "kavsir_bboxes.json").unlink()
        assert missing_kvasir_seg(tmp_path) == "no kavsir_bboxes.json"


class TestBadFolders:
    @pytest.mark.parametrize(
        "change, said",
        [
            (lambda r: (r / "masks" / "cju01.jpg").unlink(), "frames without a mask"),
            (lambda r: (r / "images" / "cju01.jpg").unlink(), "masks without a frame"),
            (lambda r: (r / "train.txt").write_text("cju77"), "listed frames that are not there"),
            (lambda r: [(r / f"{s}.txt").write_text("cju01") for s in ("train", "val")], "listed twice"),
            (lambda r: (r / "kavsir_bboxes.json").write_text("{"), "no JSON"),
            (lambda r: (r / "kavsir_bboxes.json").write_text("[]"), "under the names"),
            (lambda r: (r / "kavsir_bboxes.json").write_text('{"cju01": {"height": 40, "bbox": []}}'), "no entry of boxes"),
            (lambda r: (r / "kavsir_bboxes.json").write_text('{"other": {"height": 4, "width": 4, "bbox": []}}'), "boxes of frames"),
        ],
    )
    def test_one_sentence_says_what_does_not_fit(self, tmp_path, change, said):
        folder(tmp_path)
        change(tmp_path)
        with pytest.raises(DataError, match=said):
            open_dataset(tmp_path, layout="kvasir-seg")

    def test_a_box_outside_its_frame(self, tmp_path):
        folder(tmp_path)
        box = {"label": "polyp", "xmin": 3, "ymin": 2, "xmax": 49, "ymax": 10}
        (tmp_path / "kavsir_bboxes.json").write_text(json.dumps({"cju01": {"height": 40, "width": 48, "bbox": [box]}}))
        with pytest.raises(DataError, match="does not lie in its frame"):
            open_dataset(tmp_path)

    def test_a_mask_of_another_size(self, tmp_path):
        folder(tmp_path)
        save(tmp_path / "masks" / "cju02.jpg", np.zeros((40, 47), np.uint8))
        manifest = open_dataset(tmp_path)
        with pytest.raises(GeometryError, match="not as large as its frame"):
            read_case(manifest, "cju02")
        assert [f for f in check(manifest) if f.level == "error"]


class TestBoxes:
    def test_one_tight_box_a_component(self):
        mask = np.zeros((20, 30), bool)
        mask[2:5, 7:11] = mask[10:20, 0:3] = True
        expected = [
            {"label": "polyp", "xmin": 7, "ymin": 2, "xmax": 10, "ymax": 4},
            {"label": "polyp", "xmin": 0, "ymin": 10, "xmax": 2, "ymax": 19},
        ]
        assert sorted(boxes_of(mask), key=lambda b: b["ymin"]) == expected
        assert boxes_of(np.zeros((5, 5), bool)) == []
        assert boxes_json({"a": mask})["a"] | {"bbox": []} == {"height": 20, "width": 30, "bbox": []}


class TestInset:
    @staticmethod
    def frame(green: bool) -> np.ndarray:
        rgb = np.empty((3, 100, 100), np.uint8)
        rgb[:] = np.array([150, 90, 80], np.uint8)[:, None, None]
        if green:
            rgb[:, 66:96, 4:34] = np.array([20, 140, 90], np.uint8)[:, None, None]
        return rgb

    def test_a_green_rectangle_goes_and_nothing_else(self):
        shown = self.frame(True)
        out = without_inset(shown)
        assert (out[:, 66:96, 4:34] == 0).all()
        shown[:, 66:96, 4:34] = 0
        assert np.array_equal(out, shown)

    def test_green_elsewhere_or_scattered_stays(self):
        plain, above = self.frame(False), self.frame(True)[:, ::-1]
        assert np.array_equal(without_inset(plain), plain) and np.array_equal(without_inset(above), above)
        scattered = self.frame(False)
        scattered[:, 60:95:3, 5:40:3] = np.array([20, 140, 90], np.uint8)[:, None, None]
        assert np.array_equal(without_inset(scattered), scattered)

    def test_as_an_option(self, tmp_path):
        folder(tmp_path, 1)
        save(tmp_path / "images" / "cju00.jpg", np.moveaxis(self.frame(True)[:, ::1], 0, -1))
        save(tmp_path / "masks" / "cju00.jpg", np.zeros((100, 100), np.uint8))
        (tmp_path / "kavsir_bboxes.json").write_text("{}")
        kept, gone = (read_case(open_kvasir_seg(tmp_path, blank_inset=b), "cju00").images["RGB"].data for b in (False, True))
        assert kept[1, 80, 20] > 100 and gone[1, 80, 20] == 0 and np.array_equal(kept[:, :50], gone[:, :50])
        a, b = (repr(open_kvasir_seg(tmp_path, blank_inset=b).built_in) for b in (False, True))
        assert a != b  # prepared cases are cached by it

    @pytest.mark.skipif(not SHARED.exists(), reason="the real frames are not on this machine")
    def test_real_insets(self):
        def area(name: str) -> float:
            rgb = np.moveaxis(np.asarray(Image.open(SHARED / "images" / f"{name}.jpg").convert("RGB")), -1, 0)
            return float((without_inset(rgb) != rgb).any(0).mean())

        assert all(0.06 < area(n) < 0.12 for n in ("test_33", "train_323", "train_494"))
        assert all(
            area(n) == 0 for n in ("train_674", "validation_21", "train_138", "train_30") if (SHARED / "images" / f"{n}.jpg").exists()
        )
