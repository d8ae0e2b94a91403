"""Views of a data set: votes as raters, masks as images, one structure; the base stays as it is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vesalius.core.case import IGNORE, Case, Image, LabelMap
from vesalius.core.errors import DataError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import CaseRef, Manifest
from vesalius.datasets import open_dataset, read_case
from vesalius.datasets.views import View, open_view, rendered, structure, voted

GRID = Geometry.of((12, 10))
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def base(classes=("0", "1", "2", "3"), images: bool = True) -> Manifest:
    names = ("reference", "cup_votes")

    def read(ref: CaseRef) -> Case:
        rng = np.random.default_rng(int(ref.id))
        data = rng.integers(0, len(classes), GRID.shape).astype(np.int16)
        data[0] = IGNORE if ref.id == "2" else data[0]
        picture = {"grey": Image(rng.standard_normal((1, *GRID.shape)).astype(np.float32), GRID)} if images else {}
        return Case(ref.id, ref.patient, images=picture, labels={n: LabelMap(data, GRID, classes) for n in ref.labels})

    refs = tuple(CaseRef(str(i), str(i), images={"grey": "x"} if images else {}, labels=dict.fromkeys(names, "x")) for i in range(3))
    labels = {c: k for k, c in enumerate(classes)}
    return Manifest("made", Path("."), 2, ("grey",) if images else (), labels, refs, built_in=read)


def test_votes_become_raters_whose_sum_they_are():
    plain = base()
    view = voted(plain, "cup_votes")
    assert view.names == ("background", "cup") and tuple(view.cases[0].labels) == ("rater1", "rater2", "rater3")
    case = read_case(view, "0")
    assert np.array_equal(sum(m.data for m in case.labels.values()), read_case(plain, "0").labels["cup_votes"].data)
    assert all(m.names == view.names for m in case.labels.values()) and set(plain.cases[0].labels) == {"reference", "cup_votes"}


def test_one_structure_keeps_silence():
    view = structure(base(), "2", label="cup_votes")
    assert view.names == ("0", "2") and set(view.cases[0].labels) == {"reference"}
    for name in "02":
        data, full = read_case(view, name).labels["reference"].data, read_case(base(), name).labels["reference"].data
        assert np.array_equal(data == 1, full == 2) and np.array_equal(data == IGNORE, full == IGNORE)


def test_rendered_images_show_what_raters_drew_and_nothing_of_chance():
    view = rendered(base(("background", "nodule"), images=False))
    assert view.channels == ("CT",) and view.cases[0].images
    case, again, other = read_case(view, "0"), read_case(view, "0"), read_case(view, "1")
    image = case.images["CT"].data
    assert image.shape == (1, 12, 10) and np.array_equal(image, again.images["CT"].data)
    assert not np.array_equal(image, other.images["CT"].data)
    inside = np.asarray(case.labels["reference"].data) > 0
    assert image[0][inside].mean() > image[0][~inside].mean() + 100
    with pytest.raises(DataError, match="without an image"):
        rendered(base())


def test_addresses():
    opened = []
    open_ = lambda path: (opened.append(path), base())[1]
    assert open_view("a/b?votes=cup_votes", open_).names == ("background", "cup") and opened == [Path("a/b")]
    assert open_view("a/b?structure=1&label=cup_votes", open_).names == ("0", "1")
    for wrong in (
        "a?votes=x&structure=1",
        "a?render=mr",
        "a?colour=red",
        "a?votes=disc_votes",
        "a?structure=liver",
        "a?structure=1&label=x",
    ):
        with pytest.raises(UsageError):
            open_view(wrong, open_)


def test_caches_tell_views_apart():
    views = [voted(base(), "cup_votes"), structure(base(), "1"), structure(base(), "2")]
    assert all(isinstance(v.built_in, View) for v in views) and len({repr(v.built_in) for v in views}) == 3
    changed = replace(base(), name="other")
    assert repr(structure(changed, "1").built_in) == repr(structure(changed, "1").built_in)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not on this machine")
@pytest.mark.parametrize(
    ("address", "labels", "channel"),
    [
        ("2d/drishti_disc_cup?votes=disc_votes", ["rater1", "rater2", "rater3", "rater4"], "RGB"),
        ("2d/lidc_multirater?render=ct", [f"raters[{i}]" for i in range(4)], "CT"),
        ("3d/acdc_scribble?structure=left ventricle", ["reference"], "cine"),
    ],
)
def test_real_data(address, labels, channel):
    view = open_view(str(SHARED / address), open_dataset)
    case = read_case(view, view.cases[0].id)
    assert sorted(case.labels) == labels and set(case.images) == {channel}
    assert all(set(np.unique(m.data)) <= {0, 1} and m.data.any() for m in case.labels.values())
