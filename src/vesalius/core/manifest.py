"""The user's dataset: paths and facts, no voxels; and its patient-wise splits."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError, UsageError, nearest

SPLITS = ("", "train", "val", "test")


@dataclass(frozen=True)
class CaseRef:
    """One row of the dataset: names and paths (relative to the manifest's root, or absolute; 'file.h5:key' names an array in a file)."""

    id: str
    patient: str
    split: str = ""
    exam: str = ""
    source: str = ""
    images: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    rois: Mapping[str, str] = field(default_factory=dict)
    points: Mapping[str, str] = field(default_factory=dict)
    boxes: Mapping[str, str] = field(default_factory=dict)
    text: Mapping[str, str] = field(default_factory=dict)
    table: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """Case ids for training, validation and test; no patient is in two of them."""

    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    name: str = "declared"

    def to_json(self) -> dict:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, record: Mapping) -> Split:
        return cls(tuple(record["train"]), tuple(record["val"]), tuple(record["test"]), record.get("name", "declared"))


@dataclass(frozen=True)
class Manifest:
    """A dataset. ``labels``: name -> value in the label files, background first; ``ignore``: the value that means 'nobody said';
    ``instances``: label files hold object ids; ``regions``: name -> values (nnU-Net's region labels); ``channels``: image names;
    ``folds``: declared (train, val) pairs; None: as a column 'fold' of the rows says; (): none, whatever the rows say. ``pairs``: which
    (fixed, moving) cases are registered; None: every case with every other one of its split."""

    name: str
    root: Path
    dims: int
    channels: tuple[str, ...]
    labels: Mapping[str, int]
    cases: tuple[CaseRef, ...]
    modality: str = ""
    licence: str = ""
    source: str = ""
    note: str = ""
    spacing_mm: tuple[float, ...] | None = None
    ignore: int | None = None
    instances: bool = False
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    targets: Mapping[str, Any] = field(default_factory=dict)
    mirror: tuple[tuple[str, str], ...] = ()
    folds: tuple[Split, ...] | None = None
    pairs: tuple[tuple[str, str], ...] | None = None
    layout: str = "vesalius"
    built_in: Any = None  # a phantom: CaseRef -> Case without files

    def __post_init__(self):
        seen: set[str] = set()
        for case in self.cases:
            if case.id in seen:
                raise DataError("two rows have the same case id", where=self.root, found=f"'{case.id}'", fix="give every case its own id")
            seen.add(case.id)
            if case.split not in SPLITS:
                allowed = "train, val, test or nothing"
                raise DataError("unknown split", where=f"{self.root}: case '{case.id}'", found=f"'{case.split}'", allowed=allowed)
        declared = any(case.split for case in self.cases)
        by_patient = defaultdict(set)
        for case in self.cases:
            if declared:
                by_patient[case.patient].add(case.split or "train")
        both = {p: s for p, s in by_patient.items() if len(s) > 1}
        if both:
            patient, splits = next(iter(both.items()))
            raise DataError(
                f"patient '{patient}' is in more than one split",
                where=self.root,
                found=", ".join(sorted(splits)) + (f" (and {len(both) - 1} more such patients)" if len(both) > 1 else ""),
                allowed="every case of a patient in one split",
                fix="correct the 'split' column: a patient in both makes test numbers too good",
            )
        for fixed, moving in self.pairs or ():
            self._check_pair(fixed, moving, declared)

    def _check_pair(self, fixed: str, moving: str, declared: bool) -> None:
        """A pair counts in the split law by both of its patients."""
        where = f"{self.root}: pair {fixed}, {moving}"
        for case in (fixed, moving):
            if case not in self._by_id:
                raise DataError(f"the pair names the unknown case '{case}'", where=where, fix=nearest(case, self._by_id))
        if fixed == moving:
            raise DataError("a case is paired with itself", where=where)
        splits = [self[c].split or "train" for c in (fixed, moving)]
        if declared and splits[0] != splits[1]:
            fix = "pair cases of one split: what was trained on one patient of a test pair makes its numbers too good"
            raise DataError("the pair's cases are in different splits", where=where, found=" and ".join(splits), fix=fix)

    # labels
    @property
    def names(self) -> tuple[str, ...]:
        """Class names by class index; index 0 is background."""
        return tuple(self.labels)

    @property
    def values(self) -> tuple[int, ...]:
        """Value in the label files by class index."""
        return tuple(self.labels.values())

    @property
    def classes(self) -> int:
        return len(self.labels)

    @property
    def regions_rule(self) -> str:
        """How overlapping regions are learnt, in one sentence; '' where there are none."""
        if not self.regions:
            return ""
        by_value = {v: n for n, v in self.labels.items()}
        rule = "; ".join(f"{name} = {' + '.join(by_value.get(v, str(v)) for v in values)}" for name, values in self.regions.items())
        return f"overlapping regions are trained and written as the exclusive classes of the label files' values ({rule})"

    # cases
    def __len__(self) -> int:
        return len(self.cases)

    @cached_property
    def _by_id(self) -> dict[str, CaseRef]:
        return {c.id: c for c in self.cases}

    def __getitem__(self, case: str) -> CaseRef:
        if case not in self._by_id:
            raise UsageError(f"unknown case '{case}'", where=self.name, fix=nearest(case, self._by_id))
        return self._by_id[case]

    def where(self, split: str) -> tuple[str, ...]:
        return tuple(c.id for c in self.cases if c.split == split)

    def partners(self, fixed: str, among: Iterable[str]) -> tuple[str, ...]:
        """The moving cases that ``fixed`` is registered with, of ``among``: those declared, else every other one of its split."""
        if self.pairs is not None:
            declared = {m for f, m in self.pairs if f == fixed}
            return tuple(m for m in among if m in declared)
        return tuple(m for m in among if m != fixed and self[m].split == self[fixed].split)

    def pairs_in(self, ids: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """The (fixed, moving) pairs of which both cases are in ``ids``: a pair that reaches out of a split is in none."""
        return tuple((fixed, moving) for fixed in ids for moving in self.partners(fixed, ids))

    def only(self, ids: Iterable[str]) -> Manifest:
        """Some of the cases, and the pairs among them; folds that were declared for all of them no longer count."""
        keep = set(ids)
        pairs = None if self.pairs is None else tuple(p for p in self.pairs if keep.issuperset(p))
        return replace(self, cases=tuple(c for c in self.cases if c.id in keep), pairs=pairs, folds=())

    def digest(self) -> str:
        """sha256 over everything that decides what is learnt: names, labels, rows. (File contents have their own digest in the cache.)"""
        record = [self.name, self.dims, list(self.channels), dict(self.labels), [asdict(c) for c in self.cases]]
        record += [[f.to_json() for f in self.folds]] if self.folds else []
        record += [{"pairs": self.pairs}] if self.pairs is not None else []
        rules = {"spacing_mm": self.spacing_mm, "ignore": self.ignore, "instances": self.instances, "regions": dict(self.regions)}
        said = {k: v for k, v in rules.items() if v not in (None, False, {})}
        record += [said] if said else []
        return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()

    # splits
    @cached_property
    def declared_folds(self) -> tuple[Split, ...]:
        """The folds somebody declared: ``folds``, or one for each value of a column 'fold' (numbers in order, then words), whose cases
        are its validation set; cases without a value train in every fold. () where there are none."""
        if self.folds is not None:
            return self.folds
        rows = [c for c in self.cases if c.split != "test"]
        values = sorted({c.table["fold"] for c in rows if c.table.get("fold") not in (None, "")}, key=lambda v: (isinstance(v, str), v))
        if len(values) < 2:
            return ()
        parts = [([c.id for c in rows if c.table.get("fold") != v], [c.id for c in rows if c.table.get("fold") == v]) for v in values]
        return tuple(Split(tuple(train), tuple(val)) for train, val in parts)

    def split(
        self,
        fold: int | None = None,
        folds: int | None = None,
        *,
        val: float = 0.1,
        test: float = 0.2,
        seed: int = 0,
        strata: Mapping | None = None,
    ) -> Split:
        """The declared split where there is one, else a patient-wise, stratified, seeded one.

        A declared 'test' is never touched; validation cases are taken from the training patients when none are declared (at least one
        patient, and only where three or more patients train). With ``fold``: fold ``fold`` of ``folds`` (default 5) over the non-test
        cases is the validation set, as in nnU-Net; where folds are declared, it is theirs, and ``folds`` is their number or None.
        ``strata`` maps case id -> any label; each patient counts as its first case's stratum.
        """
        if fold is not None and self.declared_folds:
            return self._declared_fold(fold, folds)
        folds = 5 if folds is None else folds
        if folds < 2 or max(val, test) > 0.5:
            found, allowed = f"folds {folds}, val {val}, test {test}", "two or more folds, shares up to 0.5"
            raise UsageError("the cases cannot be split so", where=self.name, found=found, allowed=allowed)
        declared = {s: self.where(s) for s in ("train", "val", "test")}
        strata = strata or {}
        rest = [c.id for c in self.cases if c.split not in ("test", "val")]
        held, valid = declared["test"], declared["val"]
        if not any(declared.values()) and fold is None:
            held = self._part(rest, 1 / test, 0, seed, strata) if test and self._patients(rest) > 2 else ()
            rest = _without(rest, held)
        if fold is not None:
            rest += list(valid)
            if not 0 <= fold < folds:
                raise UsageError("no such fold", found=fold, allowed=f"0 to {folds - 1}")
            if self._patients(rest) < folds:
                raise DataError(
                    f"{folds} folds need at least {folds} patients", where=self.name, found=self._patients(rest), fix="ask for fewer folds"
                )
            valid = self._part(rest, folds, fold, seed, strata)
        elif not valid and val and self._patients(rest) > 2:
            valid = self._part(rest, 1 / val, 0, seed, strata)
        train = tuple(_without(rest, valid))
        if not train:
            raise DataError("no case is left to train on", where=self.name, found={k: len(v) for k, v in declared.items()})
        drawn = "declared" if any(declared.values()) else f"drawn by patient (seed {seed})"
        return Split(train, tuple(valid), tuple(held), name=drawn if fold is None else f"fold {fold} of {folds}")

    def _declared_fold(self, fold: int, folds: int | None) -> Split:
        declared = self.declared_folds
        if folds not in (None, len(declared)):
            raise UsageError(
                "the dataset declares its own folds", where=self.name, found=f"{folds} folds asked for", allowed=f"its {len(declared)}"
            )
        if not 0 <= fold < len(declared):
            raise UsageError("no such fold", where=self.name, found=fold, allowed=f"0 to {len(declared) - 1}, as declared")
        chosen, where = declared[fold], self.root
        for case in (*chosen.train, *chosen.val):
            if case not in self._by_id:
                raise DataError(f"fold {fold} names the unknown case '{case}'", where=where, fix=nearest(str(case), self._by_id))
        train, val, test = ({self[c].patient for c in ids} for ids in (chosen.train, chosen.val, self.where("test")))
        for a, b, parts in ((train, val, f"both parts of fold {fold}"), (train | val, test, f"fold {fold} and the test set")):
            if a & b:
                fix = "a patient in both makes the numbers of the held-out part too good"
                raise DataError(f"patient '{min(a & b)}' is in {parts}", where=where, fix=fix)
        return replace(chosen, test=self.where("test"), name=f"fold {fold} of {len(declared)}, declared")

    def held_out(self, fold: int | None = None, folds: int | None = None, *, seed: int = 0, strata: Mapping | None = None) -> Split:
        """A split with a test part that no training decision sees: the declared or drawn test cases, or with ``fold`` that fold's cases
        (also where only a validation set is declared); validation cases are then taken from the training patients."""
        split = self.split(fold, folds, seed=seed, strata=strata)
        if fold is None and split.test:
            return split
        if not split.val:
            raise DataError("there is no case to test on", where=self.name, fix="declare test cases, or ask for --folds")
        inner = self._part(split.train, 10, 0, seed, strata or {}) if self._patients(split.train) > 2 else ()
        return Split(tuple(_without(split.train, inner)), inner, split.val, split.name)

    def _patients(self, ids: Sequence[str]) -> int:
        return len({self[i].patient for i in ids})

    def _part(self, ids: Sequence[str], parts: float, k: int, seed: int, strata: Mapping) -> tuple[str, ...]:
        """The k-th of about ``parts`` equal patient groups, each stratum dealt out in turn."""
        groups: dict[str, list[str]] = defaultdict(list)
        for i in ids:
            groups[self[i].patient].append(i)
        by_stratum: dict[str, list[str]] = defaultdict(list)
        for patient, members in groups.items():
            by_stratum[str(strata.get(members[0], self[members[0]].source))].append(patient)
        rng = np.random.default_rng([seed, 7])
        deck = []
        for stratum in sorted(by_stratum):
            patients = sorted(by_stratum[stratum])
            deck += [patients[j] for j in rng.permutation(len(patients))]
        chosen = {p for n, p in enumerate(deck) if int(n % parts) == k} or {deck[0]}
        return tuple(i for i in ids if self[i].patient in chosen)


def _without(ids: Iterable[str], some: Iterable[str]) -> list[str]:
    gone = set(some)
    return [c for c in ids if c not in gone]
