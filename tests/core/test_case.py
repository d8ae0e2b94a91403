"""Cases: hiding answers reaches everywhere; object ids become one class."""

import numpy as np

from vesalius.core.case import IGNORE, Case, Image, LabelMap, Points, Query
from vesalius.core.geometry import Geometry

GRID = Geometry.of((4, 5), 1.0)


def case() -> Case:
    label = LabelMap(np.zeros((4, 5), np.int16), GRID)
    return Case(
        "a",
        images={"US": Image(np.zeros((1, 4, 5), np.uint8), GRID)},
        labels={"reference": label},
        points={"tip": Points(np.zeros((1, 2)))},
        queries=(Query("q", "the left one", label, "yes"),),
        text={"report": "seen", "findings": "a mass"},
        table={"age": 40, "malignant": 1},
        answers=frozenset({"malignant", "text:findings"}),
        grids={"low": case_low},
        original=case_low,
    )


def case_low() -> Case:
    label = LabelMap(np.ones((4, 5), np.int16), GRID)
    return Case("a", labels={"reference": label}, table={"malignant": 1}, answers=frozenset({"malignant"}))


def test_without_labels_hides_every_answer():
    blind = case().without_labels()
    assert not blind.labels and not blind.points and blind.table == {"age": 40} and blind.text == {"report": "seen"}
    assert blind.queries[0].target is None and blind.queries[0].answer is None and blind.queries[0].text == "the left one"
    assert not blind.at("low").labels and not blind.at("low").table
    assert not blind.native.labels and not blind.native.table


def test_the_label_is_the_reference_or_the_first():
    maps = {name: LabelMap(np.zeros((4, 5), np.int16), GRID) for name in ("rater1", "reference", "rater2")}
    assert Case("a", labels=maps).label is maps["reference"]
    assert Case("a", labels={k: v for k, v in maps.items() if k != "reference"}).label is maps["rater1"]
    assert Case("a").label is None


def test_semantic_keeps_ignore():
    ids = LabelMap(np.array([[0, 7, 300, IGNORE, 2]] * 4, np.int32), GRID, instances=True)
    np.testing.assert_array_equal(ids.semantic.data[0], [0, 1, 1, IGNORE, 1])
    assert not ids.semantic.instances and ids.semantic.semantic.data is not None


def test_merging():
    changed = case().with_(labels={"second": case().labels["reference"], "reference": None})
    assert list(changed.labels) == ["second"]
