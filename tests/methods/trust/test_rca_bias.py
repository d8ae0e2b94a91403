"""Gaps between groups without labels: signs, permutations, and that no reference mask can get in."""

import numpy as np
import pytest

from vesalius.core.case import LabelMap
from vesalius.core.prediction import Score
from vesalius.engine.infer import infer
from vesalius.methods.trust.rca_bias import RCABias, pair_gaps

from .small import fitted, segmenter, setting


def rows(values, structure="lung", metric="rca_max", per=1):
    return [Score(f"c{n}", metric, float(v), structure, patient=f"p{n // per}") for n, v in enumerate(values)]


def halves(n):
    return {f"c{k}": "A" if k < n // 2 else "B" for k in range(n)}


def test_the_gap_is_the_difference_of_means_and_swapping_tags_flips_it_exactly():
    values = np.random.default_rng(0).normal(0.9, 0.05, 40)
    values[20:] -= 0.1
    (gap,) = pair_gaps(rows(values), halves(40), by="sex")
    assert gap.value == pytest.approx(values[:20].mean() - values[20:].mean()) and gap.metric == "gap:rca_max"
    assert gap.extra["low"] > 0 and gap.extra["p"] < 0.01 and (gap.extra["first"], gap.extra["n_first"]) == ("A", 20)
    swapped = {case: "AB"[group == "A"] for case, group in halves(40).items()}
    (other,) = pair_gaps(rows(values), swapped, by="sex")
    assert other.value == -gap.value and other.extra["high"] == pytest.approx(-gap.extra["low"], abs=0.005)


def test_the_same_images_with_permuted_tags_have_no_gap():
    rng = np.random.default_rng(1)
    values = rng.normal(0.9, 0.05, 60)
    inside = 0
    for seed in range(40):
        order = np.random.default_rng(seed).permutation(60)
        groups = {f"c{k}": "A" if n < 30 else "B" for n, k in enumerate(order)}
        (gap,) = pair_gaps(rows(values), groups, by="sex")
        inside += gap.extra["low"] <= 0 <= gap.extra["high"]
    assert inside >= 34


def test_patients_count_once_and_small_groups_and_undefined_values_are_left_out():
    values = [0.9, 0.1] * 10
    (gap,) = pair_gaps(rows(values, per=2), halves(20), by="site")
    assert gap.extra["n_first"] == 5 and gap.value == 0
    groups = {**halves(20), "c0": "C", "c1": "C", "c19": ""}
    pairs = pair_gaps(rows(values), groups, by="site")
    assert [(p.extra["first"], p.extra["second"]) for p in pairs] == [("A", "B")] and pairs[0].extra["n_second"] == 9
    assert pair_gaps([Score("c0", "rca_max", None, "lung")], halves(20), by="site") == []
    three = {f"c{k}": "ABC"[k % 3] for k in range(20)}
    assert len(pair_gaps([*rows(values), *rows(values, "heart")], three, by="site")) == 6


def test_estimates_never_read_the_audited_masks():
    manifest, split, plan, read = setting()
    wrapper = fitted(RCABias(plan, manifest, parts={"segmenter": segmenter(plan, manifest)}, references=2, bank=4), manifest, split)
    case = read(split.test[0])
    wrong = {k: LabelMap(np.zeros_like(v.data), v.geometry, v.names) for k, v in case.labels.items()}
    tables = [infer(wrapper, c, plan).table for c in (case, case.with_(labels=wrong), case.without_labels())]
    assert tables[0] == tables[1] == tables[2]
    names = {k.partition("/")[0] for k in tables[0]}
    assert {"rca_max", "rca_mean"} <= names <= {"rca_max", "rca_mean", "confidence"}
    again = RCABias(plan, manifest, parts={"segmenter": segmenter(plan, manifest)}, references=2, bank=4)
    again.load_state(*wrapper.state())
    assert infer(again, case, plan).table == tables[0]
