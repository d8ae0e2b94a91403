"""What phrases mean: known scenes, three-valued judgement, and the law that every kept phrase means what it says."""

import numpy as np
import pytest

from vesalius.core.case import Image, LabelMap
from vesalius.core.errors import GeometryError
from vesalius.core.geometry import Geometry
from vesalius.datasets import open_dataset, read_case
from vesalius.ops.wording import KINDS, Thing, choose, expressions, things

NAMES = ("disc", "square")
NONE = np.zeros((2, 2), bool)


def scene(*objects) -> list[Thing]:
    """(name, size, (row, column) in 0..1, grey) each."""
    return [Thing(name, NONE, size, at, grey) for name, size, at, grey in objects]


def meant(found) -> dict[str, int | None]:
    return {e.text: e.of for e in expressions(found, NAMES, 2)}


TWO_DISCS = scene(("disc", 50, (0.5, 0.2), 2), ("disc", 200, (0.5, 0.8), -2), ("square", 60, (0.1, 0.5), 2))


def test_known_phrases_of_a_known_scene():
    said = meant(TWO_DISCS)
    assert said["the square"] == 2
    assert said["the large disc"] == 1 and said["the bright disc"] == 0 and said["the small bright disc"] == 0
    assert said["the disc on the left"] == 0 and said["the leftmost disc"] == 0 and said["the rightmost object"] == 1
    assert said["the largest object"] == 1 and said["the uppermost object"] == 2
    assert said["the left disc, not the right one"] == 0 and said["the right disc, not the left one"] == 1
    assert said["not the dark disc but the bright one"] == 0
    assert said["the disc right of the square"] == 1 and said["the square at the top"] == 2
    assert said["the dark square"] is None and said["the small dark disc"] is None and said["the square at the bottom"] is None


def test_what_a_person_could_doubt_is_not_said():
    said = meant(TWO_DISCS)
    assert "the disc" not in said and "the object" not in said  # several
    assert "the disc at the top" not in said  # both in the middle: cannot say, so neither true nor nothing
    assert "the square on the left" not in said
    assert "the smallest object" not in said  # 50 against 60
    assert "the disc below the square" not in said  # both are


def test_an_empty_scene_has_nothing_and_says_so():
    found = expressions([], NAMES, 2)
    assert found and all(e.of is None and e.kind == "nothing" for e in found)
    assert {"the disc", "the object", "the square at the upper left"} <= {e.text for e in found}


def test_contrasts_come_in_pairs_of_the_same_words():
    found = [e for e in expressions(TWO_DISCS, NAMES, 2) if e.kind == "contrast"]
    groups = {}
    for e in found:
        groups.setdefault(tuple(sorted(e.text.replace(",", "").split())), set()).add(e.of)
    assert groups and all(len(of) == 2 for of in groups.values())


def test_choose_takes_kinds_in_turn_and_some_that_mean_nothing():
    found = expressions(TWO_DISCS, NAMES, 2)
    chosen = choose(found, np.random.default_rng(0), 10, 0.2)
    assert len(chosen) == 10 and len({e.text for e in chosen}) == 10
    assert sum(e.of is None for e in chosen) == 2 and len({e.kind for e in chosen}) == len(KINDS)
    assert chosen == choose(found, np.random.default_rng(0), 10, 0.2) != choose(found, np.random.default_rng(1), 10, 0.2)
    assert not any(e.of is None for e in choose(found, np.random.default_rng(0), 10, 0.0))


def test_things_of_a_label_map():
    data = np.zeros((20, 10), np.int16)
    data[2:6, 1:5], data[12:18, 5:9], data[0, 9], data[15:18, 1:3] = 1, 1, 1, 2
    image = np.where(data == 1, 5.0, 0.0)[None]
    grid = Geometry.of(data.shape, (2.0, 1.0))
    first, second, square = things(LabelMap(data, grid, ("background", *NAMES)), Image(image, grid))
    assert (first.name, second.name, square.name) == ("disc", "disc", "square")  # the speck of one pixel is none
    assert first.size == 32 and first.at == pytest.approx((4 / 20, 3 / 10)) and first.grey > 1 and abs(square.grey) < 0.1
    assert len(things(LabelMap(np.where(data, 7, 0), grid, ("background", "cell"), instances=True))) == 1
    layers = np.stack([data == 1, data == 2])
    assert len(things(LabelMap(layers, grid, ("background", *NAMES), overlapping=True))) == 3
    with pytest.raises(GeometryError, match="different grids"):
        things(LabelMap(data, grid), Image(image[:, :9], Geometry.of((9, 10))))


def test_sides_are_the_patient_s_in_3d():
    data = np.zeros((10, 10, 10), np.int16)
    data[1:3, 1:3, 7:9] = 1
    affine = np.diag([-1.0, 1, 1, 1])  # the first index runs to the patient's left
    one = things(LabelMap(data, Geometry(data.shape, affine), ("background", "disc")))
    said = {e.text: e.of for e in expressions(one, ("disc",), 3)}
    assert said["the disc on the right"] == 0 and said["the disc at the back"] == 0 and said["the disc at the top"] == 0
    assert said["the disc on the left"] is None


def test_the_phantom_s_expressions_mean_what_they_say():
    """Against the scene the renderer drew, not against the label map that the phrases were made from."""
    data = open_dataset("phantom:referring?cases=12")
    shapes, checked = {"disc": 1, "square": 2, "cross": 3}, 0
    for ref in data.cases:
        case, scene_ = read_case(data, ref.id), data.built_in.base.built_in
        who = scene_.who(*(ref.split, int(ref.id.rpartition("-")[2])))
        placed = scene_.phantom.sketch(who).parts["placed"]
        kinds = {q.id.partition("-")[0] for q in case.queries}
        assert "nothing" in kinds and len(kinds) >= 3
        for q in case.queries:
            mask, words = np.asarray(q.target.data) > 0, q.text.split()
            if q.id.startswith("nothing"):
                assert not mask.any()
                continue
            centre = np.argwhere(mask).mean(0) - 31.5
            shape, _, bright, _ = min(placed, key=lambda p: np.hypot(*(p[3] - centre)))
            noun = next((w for w in words if w.strip(",") in (*shapes, "object")), "object").strip(",")
            assert noun == "object" or shapes[noun] == shape
            if q.id.startswith("attribute"):
                assert ("bright" not in words or bright) and ("dark" not in words or not bright)
            if q.id.startswith("place"):
                row, column = centre
                assert not {"right", "left"} & set(words) or ("right" in words) == (column > 0)
                assert not {"top", "upper", "bottom", "lower"} & set(words) or bool({"bottom", "lower"} & set(words)) == (row > 0)
            checked += 1
    assert checked > 60
