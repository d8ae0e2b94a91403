"""The written reports: the same words every time, every sentence in its section, fields where they belong, answers hidden."""

import pickle

import pytest

from vesalius.core.errors import UsageError
from vesalius.datasets.phantoms.report import _DENSITY, AMBIGUOUS, FIELDS, SECTIONS, open_reports
from vesalius.networks.text import sentences


def test_the_sections_sentences_are_the_report_s_in_order():
    data = open_reports(cases=(30, 0, 10))
    assert [len(data.where(s)) for s in ("train", "val", "test")] == [30, 0, 10]
    for row in data.cases:
        own = {k: t for k, t in row.text.items() if k != "report"}
        assert list(own) == [s for s in SECTIONS if s in own]
        assert sentences(row.text["report"]) == [line for t in own.values() for line in sentences(t)]
        assert _DENSITY[row.table["density"]] in own["findings"]
        assert all(row.table[k] in levels and where in own for k, (levels, where) in FIELDS.items())


def test_prediction_sees_the_report_alone():
    data = open_reports(cases=3)
    case = data.built_in(data.cases[0])
    shown = case.without_labels()
    assert set(case.text) > {"report"} and set(shown.text) == {"report"} and not shown.table


def test_same_seed_same_words_and_hard_ones_only_where_asked():
    assert [c.text for c in open_reports(cases=9).cases] == [c.text for c in pickle.loads(pickle.dumps(open_reports(cases=9))).cases]
    assert open_reports(cases=9).digest() != open_reports(cases=9, seed=1).digest()
    easy = " ".join(c.text["report"] for c in open_reports(cases=20, hard=0.0).cases)
    hard = " ".join(c.text["report"] for c in open_reports(cases=20, hard=1.0).cases)
    assert not any(a in easy for a in AMBIGUOUS) and all(a in hard for a in AMBIGUOUS)
    with pytest.raises(UsageError, match="share"):
        open_reports(hard=2)
