import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.core.errors import DataError, UsageError
from vesalius.core.prediction import Score
from vesalius.metrics import interaction as act

A, B, C = [0.5, 0.8, 0.9], [0.9, 0.6], [0.1, None, 0.2]


def test_noc_by_hand():
    assert [act.noc(c, 0.8, cap=20) for c in (A, B, C)] == [2, 1, 20]
    assert act.noc_at([A, B, C], 0.8) == pytest.approx(23 / 3)
    assert act.noc(A, 0.9, cap=2) == 2 and act.success_rate([A], 0.9, budget=2) == 0 and act.success_rate([A], 0.9, budget=3) == 1
    assert act.success_rate([A, B, C], 0.8) == pytest.approx(2 / 3)
    assert act.noc(A, 0.5, first=0) == 0  # good before any interaction
    assert act.noc([9.0, 3.0], 4.0, better="lower") == 2
    assert act.noc_at([], 0.8) is None is act.success_rate([], 0.8)
    assert act.noc([], 0.8) == 20 and act.noc([None, np.nan], 0.8) == 20


def test_effort_by_hand():
    e = act.effort([A, B, C])
    assert e.steps.tolist() == [1, 2, 3] and e.defined.tolist() == [3, 2, 3]
    assert e.mean == pytest.approx([0.5, 0.7, (0.9 + 0.6 + 0.2) / 3])  # B stops after two and keeps 0.6
    assert act.effort_area([A]) == pytest.approx((0.65 + 0.85) / 2)
    assert act.effort_area([A], budget=2) == pytest.approx(0.65)
    assert act.effort_area([A], budget=5) == pytest.approx((0.65 + 0.85 + 0.9 + 0.9) / 4)
    assert act.effort_area([[0.7] * 6], first=0) == pytest.approx(0.7)
    assert act.effort_area([[0.7]]) is None is act.effort_area([]) and act.effort_area([[None, 0.5]]) is None
    assert act.effort([], budget=3).defined.tolist() == [0, 0, 0] and np.isnan(act.effort([], budget=3).mean).all()
    assert act.effort([A], budget=0).steps.size == 0


@settings(deadline=None, derandomize=True)
@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=7), min_size=1, max_size=5), st.floats(0, 1), st.integers(1, 8))
def test_laws(curves, q, cap):
    n, rate = act.noc_at(curves, q, cap=cap), act.success_rate(curves, q, budget=cap)
    assert 1 <= n <= cap and 0 <= rate <= 1 and n >= cap * (1 - rate)
    assert act.noc_at(curves, q / 2, cap=cap) <= n <= act.noc_at(curves, q, cap=cap + 1)
    assert act.success_rate(curves, q, budget=cap + 1) >= rate
    mirrored = [[-v for v in c] for c in curves]
    assert act.noc_at(mirrored, -q, cap=cap, better="lower") == n
    e = act.effort(curves)
    if e.steps.size > 1:
        assert e.mean.min() - 1e-12 <= act.effort_area(curves) <= e.mean.max() + 1e-12


def test_curves_from_rows():
    rows = [Score("a", "dsc", v, "tumour", step=n) for n, v in ((2, 0.7), (1, 0.5), (4, 0.9))]
    rows += [Score("b", "dsc", 0.4, "tumour", step=1), Score("b", "dsc", None, "tumour", step=2)]
    rows += [Score("a", "hd95", 3.0, "tumour", step=1), Score("a", "dsc", 0.9, "tumour")]
    curves, first = act.curves_of(rows, "dsc")
    assert first == 1 and curves == {("a", "tumour", "", ""): [0.5, 0.7, None, 0.9], ("b", "tumour", "", ""): [0.4, None]}
    assert act.noc_at(curves.values(), 0.9, cap=10, first=first) == 7
    assert act.curves_of([], "dsc") == ({}, 1)
    with pytest.raises(DataError, match="two rows of one step.*step 1"):
        act.curves_of([*rows, rows[1]], "dsc")


def test_bad_options():
    for options in ({"cap": 0}, {"better": "more"}):
        with pytest.raises(UsageError):
            act.noc(A, 0.5, **options)
    with pytest.raises(UsageError, match="finite quality"):
        act.noc(A, np.nan)
    with pytest.raises(DataError, match="infinite"):
        act.effort([[np.inf]])
