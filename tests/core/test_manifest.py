"""Manifest: refusals, and splits that are declared or else patient-wise, seeded and stratified."""

from collections import Counter

import pytest

from vesalius.core.errors import DataError, UsageError
from vesalius.core.manifest import CaseRef, Manifest, Split


def manifest(*rows: tuple[str, str, str], source=lambda case: "") -> Manifest:
    """Rows are (case, patient, split)."""
    return Manifest("m", "", 3, ("CT",), {"background": 0, "x": 1}, tuple(CaseRef(c, p, s, source=source(c)) for c, p, s in rows))


def patients(count: int, exams: int = 2, split: str = "") -> list[tuple[str, str, str]]:
    return [(f"{split}c{p:03d}_{e}", f"{split}p{p:03d}", split) for p in range(count) for e in range(exams)]


def whose(m: Manifest, ids) -> set[str]:
    return {m[i].patient for i in ids}


def test_refuses_repeated_cases_and_patients_in_two_splits():
    with pytest.raises(DataError, match="same case id.*'a'"):
        manifest(("a", "p", ""), ("a", "q", ""))
    with pytest.raises(DataError, match="patient 'p' is in more than one split.*test, train"):
        manifest(("a", "p", "train"), ("b", "p", "test"))


def test_a_test_patients_undeclared_exam_may_not_train():
    with pytest.raises(DataError, match="more than one split"):
        manifest(("a", "p", "test"), ("b", "p", ""), ("c", "q", ""), ("d", "r", ""), ("e", "s", ""))


def test_declared_splits_are_honoured():
    m = manifest(*patients(4, split="train"), *patients(2, split="val"), *patients(3, split="test"))
    split = m.split(seed=5)
    assert (split.train, split.val, split.test) == (m.where("train"), m.where("val"), m.where("test")) and split.name == "declared"


def test_validation_comes_from_training_patients_and_test_is_untouched():
    m = manifest(*patients(20, split="train"), *patients(5, split="test"))
    split = m.split()
    assert split.test == m.where("test") and split.val
    assert not whose(m, split.train) & whose(m, split.val)
    assert sorted(split.train + split.val) == sorted(m.where("train"))
    assert 2 <= len(whose(m, split.val)) <= 4  # 10 % of 20


@pytest.mark.parametrize("count", [3, 4, 7, 20, 53])
def test_undeclared_splits_are_patient_wise_and_complete(count):
    m = manifest(*patients(count, exams=3))
    split = m.split(seed=1)
    parts = [whose(m, part) for part in (split.train, split.val, split.test)]
    assert sum(map(len, parts)) == count == len(set.union(*parts))
    assert sorted(split.train + split.val + split.test) == sorted(c.id for c in m.cases)
    assert len(parts[2]) == max(1, len(parts[2])) and abs(len(parts[2]) - 0.2 * count) <= 1
    assert abs(len(parts[1]) - 0.1 * (count - len(parts[2]))) <= 1


def test_seeds():
    m = manifest(*patients(30))
    assert m.split(seed=3) == m.split(seed=3) != m.split(seed=4)
    shuffled = manifest(*reversed(patients(30)))
    assert set(shuffled.split(seed=3).test) == set(m.split(seed=3).test)  # the order of rows has no part in it


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_partition_the_patients_that_are_not_tested(folds):
    m = manifest(*patients(11, split="train"), *patients(3, split="val"), *patients(4, split="test"))
    splits = [m.split(fold=k, folds=folds) for k in range(folds)]
    assert sorted(i for s in splits for i in s.val) == sorted(m.where("train") + m.where("val"))
    for s in splits:
        assert s.test == m.where("test") and not whose(m, s.train) & whose(m, s.val)
        assert sorted(s.train + s.val) == sorted(m.where("train") + m.where("val"))
    sizes = [len(whose(m, s.val)) for s in splits]
    assert max(sizes) - min(sizes) <= 1


def test_strata_are_shared_out():
    strata = {c: ("rare" if int(c[1:4]) % 5 == 0 else "common") for c, _, _ in patients(50)}
    m = manifest(*patients(50))
    for k in range(5):
        val = {m[i].patient: strata[i] for i in m.split(fold=k, strata=strata).val}
        assert Counter(val.values()) == {"rare": 2, "common": 8}
    by_source = manifest(*patients(50), source=strata.get)  # without strata the cases' source counts
    assert Counter({m[i].patient: strata[i] for i in by_source.split(fold=0).val}.values()) == {"rare": 2, "common": 8}


def test_faults():
    m = manifest(*patients(4))
    with pytest.raises(UsageError, match="no such fold"):
        m.split(fold=5)
    with pytest.raises(DataError, match="5 folds need at least 5 patients"):
        m.split(fold=0)
    with pytest.raises(DataError, match="no case is left to train on"):
        manifest(*patients(2, split="test")).split()
    one = manifest(*patients(1)).split()
    assert one.train and not one.val and not one.test
    with pytest.raises(UsageError, match="unknown case 'c000_9'"):
        m["c000_9"]


def test_records():
    m = manifest(*patients(5))
    split = m.split()
    assert Split.from_json(split.to_json()) == split
    assert m.only(split.train).split().train and len(m.only(split.train)) == len(split.train)
    assert m.digest() == manifest(*patients(5)).digest() != manifest(*patients(6)).digest()


def test_held_out_cases_decide_nothing():
    """Folds, and data with a declared validation set only: what is tested on is not what checkpoints are chosen on."""
    m = manifest(*patients(12))
    for fold in range(4):
        split = m.held_out(fold, 4)
        assert whose(m, split.test) == whose(m, m.split(fold, 4).val)
        train, val, test = (whose(m, part) for part in (split.train, split.val, split.test))
        assert val and not train & val and not (train | val) & test
    declared = manifest(*patients(6, split="train"), *patients(2, split="val"))
    split = declared.held_out()
    assert set(split.test) == set(declared.where("val")) and split.val and not set(split.val) & set(split.test)
    with pytest.raises(DataError, match="no case to test on"):
        manifest(("a", "p", "train"), ("b", "q", "train")).held_out()
