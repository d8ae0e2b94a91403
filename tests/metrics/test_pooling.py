import numpy as np
import pytest

from vesalius.core.case import Case
from vesalius.core.errors import DataError, UsageError
from vesalius.core.prediction import Prediction, Score
from vesalius.metrics import METRICS, as_score, carrier, columns, effort, gaps, pool, score_prediction

TARGETS = {
    "malignant": {"kind": "binary", "levels": ["benign", "malignant"]},
    "grade": {"kind": "ordinal", "levels": ["1", "2", "3"]},
    "age": {"kind": "real"},
}
POOLED = tuple(n for n, m in METRICS.items() if m.needs == "column")


def _case(n, malignant, grade, age, chance, grades, guess):
    table = {"malignant": malignant, "grade": grade, "age": age}
    case = Case(f"c{n}", f"p{n}", table=table, answers=frozenset(TARGETS))
    prediction = Prediction(table={"malignant": chance, "grade": dict(zip("123", grades, strict=True)), "age": guess})
    return score_prediction(prediction, case, metrics=POOLED, targets=TARGETS)


def _rows():
    return [
        *_case(1, "benign", 1, 40.0, 0.1, (0.8, 0.1, 0.1), 42.0),
        *_case(2, "malignant", 3.0, 60.0, 0.9, (0.1, 0.1, 0.8), 55.0),
        *_case(3, "benign", "2", 50.0, 0.6, (0.3, 0.4, 0.3), 50.0),
        *_case(4, "malignant", 2, 70.0, 0.4, (0.1, 0.3, 0.6), 71.0),
    ]


def test_columns_over_cases():
    pooled = {(s.metric, s.structure): s.value for s in pool(_rows())}
    assert pooled["auroc", "malignant"] == 0.75 and pooled["column_accuracy", "malignant"] == 0.5
    assert pooled["column_accuracy", "grade"] == 0.75 and pooled["quadratic_kappa", "grade"] > 0.6
    assert pooled["column_mae", "age"] == 2.0 and pooled["kendall_tau", "age"] == 1.0
    assert pooled["auroc", "age"] is None and pooled["column_accuracy", "age"] is None
    assert pooled["auroc", "grade"] == 1  # every level ranks its own cases first


def test_records_from_disk_pool_like_scores():
    import json

    rows = _rows()
    stored = json.loads(json.dumps([r.to_json() for r in rows]))
    assert [as_score(r) for r in stored] == rows and all(map(carrier, stored))
    assert pool(stored) == pool(rows)


def _scores(values, sites):
    return [
        Score(f"c{n}", "dsc", v, "liver", extra={"better": "higher", "site": s}) for n, (v, s) in enumerate(zip(values, sites, strict=True))
    ]


def test_means_count_what_is_undefined():
    row = pool(_scores([0.5, None, 1.0], "aab"))[0]
    assert (row.value, row.case, row.extra["cases"], row.extra["undefined"]) == (0.75, "", 3, 1)
    nothing = pool(_scores([None, None], "aa"))[0]
    assert nothing.value is None and nothing.note == "no case has a value"
    assert pool([]) == []


def test_groups_and_gaps():
    rows = _scores([0.5, 0.7, 0.9, None], "aabc")
    by_key = {s.extra["group"]: s.value for s in pool(rows, by="site")}
    assert by_key == {"a": pytest.approx(0.6), "b": 0.9, "c": None}
    gap = gaps(rows, by="site")[0]
    assert gap.metric == "dsc gap" and gap.value == pytest.approx(0.3) and (gap.extra["highest"], gap.extra["lowest"]) == ("b", "a")
    by_case = gaps(rows, by={"c0": "x", "c1": "y", "c2": "y"})[0]
    assert by_case.value == pytest.approx(0.3) and set(by_case.extra["values"]) == {"x", "y"}
    assert gaps(rows[:2], by="site")[0].value is None
    with pytest.raises(UsageError, match="group"):
        pool(rows, by="sex")
    with pytest.raises(DataError, match="two rows"):
        pool([*rows, rows[0]])


def test_pooled_metrics_by_group():
    found = {
        s.extra["group"]: s.value
        for s in pool(_rows(), by={"c1": "a", "c2": "a", "c3": "b", "c4": "b"})
        if (s.metric, s.structure) == ("auroc", "malignant")
    }
    assert found == {"a": 1.0, "b": 0.0}
    gap = next(
        s for s in gaps(_rows(), by={"c1": "a", "c2": "a", "c3": "b", "c4": "b"}) if (s.metric, s.structure) == ("auroc gap", "malignant")
    )
    assert gap.value == 1.0


def test_effort_of_interactions():
    rows = [Score("c1", "dsc", v, "liver", step=k) for k, v in enumerate([0.4, 0.82, 0.95], 1)]
    rows += [Score("c2", "dsc", v, "liver", step=k) for k, v in enumerate([0.9, 0.91], 1)]
    found = {s.metric: s.value for s in effort([r.to_json() for r in rows], qualities=(0.8, 0.99), cap=5)}
    assert found["noc@0.8"] == 1.5 and found["noc@0.99"] == 5 and found["success@0.8"] == 1 and found["success@0.99"] == 0
    assert 0.4 < found["effort_area"] < 0.95
    with pytest.raises(UsageError):
        effort(rows, "auroc")


def test_levels_are_one_whatever_their_type():
    assert [columns.level(v) for v in (1, 1.0, True, "1", np.float64(1))] == ["1"] * 5
    inferred = columns.evidence("x", {"a": 0.2, "b": 0.8}, "b", None)
    assert inferred == {"predicted": [0.2, 0.8], "reference": 1}
    assert columns.evidence("x", 37.5, 40, None) == {"predicted": 37.5, "reference": 40.0}
    with pytest.raises(UsageError, match="levels"):
        columns.evidence("x", {"a": 1.0}, "c", None)
    with pytest.raises(UsageError, match="two levels"):
        columns.evidence("grade", 0.4, "2", TARGETS["grade"])
