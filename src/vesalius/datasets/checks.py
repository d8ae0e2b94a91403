"""What is wrong with a dataset, found before hours of training. Every file is read once (``quick``: headers alone)."""

from __future__ import annotations

import hashlib
import multiprocessing
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from .. import io
from ..core.case import Case
from ..core.errors import ResourceError, VesaliusError
from ..core.geometry import Geometry
from ..core.manifest import CaseRef, Manifest
from . import sides
from .cases import channels_by_name, file_of, header_of, is_view, read_case, spacing_of

LEVELS = ("error", "warning", "note")
FEW_TEST_PATIENTS = 10  # fewer say little about a method
SPACING_RATIO = 2.5  # a spacing further than this factor from the dataset's median is an outlier


@dataclass(frozen=True)
class Finding:
    """One thing found: ``level`` is error (it will fail or mislead) | warning (look at it) | note; ``where``: the case, file or dataset."""

    level: str
    where: str
    text: str


@dataclass
class Facts:
    """What one case says: findings, and the facts that are compared between cases."""

    case: str
    findings: list[Finding] = field(default_factory=list)
    grids: dict[str, Geometry] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    voxels: dict[str, dict[int, int]] = field(default_factory=dict)  # label -> class index -> count
    centres: dict[str, dict[str, float]] = field(default_factory=dict)  # label -> structure -> how far right, mm
    float_labels: tuple[str, ...] = ()
    ignored: bool = False


def check(manifest: Manifest, *, quick: bool = False, workers: int = 0) -> list[Finding]:
    """All findings, errors first. A case that cannot be read is a finding and does not stop the others.

    ``quick`` reads headers only: no voxel is looked at, so label values, duplicates and NaN stay unseen. ``workers``: processes (0: this
    one). Raises ResourceError when a worker process dies, and nothing for bad data.
    """
    look = partial(_look, manifest, quick)
    facts = _parallel(look, [c.id for c in manifest.cases], workers) if workers > 0 else [look(c.id) for c in manifest.cases]
    found = _gathered([f for one in facts for f in one.findings], manifest.name)
    for rule in (_rows, _duplicates, _grids, _channel_counts, _foreground, _sides):
        found += rule(manifest, facts)
    return sorted(dict.fromkeys(found), key=lambda f: LEVELS.index(f.level))


def _gathered(findings: Sequence[Finding], name: str) -> list[Finding]:
    """The same words about many cases become one finding."""
    cases: dict[tuple[str, str], list[str]] = defaultdict(list)
    for f in findings:
        cases[f.level, f.text].append(f.where)
    out = []
    for (level, text), where in cases.items():
        among = [w.removeprefix("case ") for w in where]
        out.append(
            Finding(level, where[0], text) if len(where) == 1 else Finding(level, name, f"{text} ({len(where)} cases: {_some(among)})")
        )
    return out


def _parallel(look: partial, ids: Sequence[str], workers: int) -> list[Facts]:
    how = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(how)) as pool:
            return list(pool.map(look, ids, chunksize=max(1, len(ids) // (8 * workers))))
    except BrokenProcessPool as error:
        raise ResourceError("a checking process died, most likely for want of memory", fix="use fewer workers") from error


# ------------------------------------------------------------------------------------------------------------------------------ one case
def _look(manifest: Manifest, quick: bool, case_id: str) -> Facts:
    facts = Facts(case_id)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if manifest.built_in is None:
                _headers(manifest, manifest[case_id], facts)
            if not quick and not any(f.level == "error" for f in facts.findings):
                _voxels(manifest, read_case(manifest, case_id), facts)
        except VesaliusError as error:
            facts.findings.append(Finding("error", f"case {case_id}", str(error)))
        except Exception as error:  # a reader's own bug on an odd file: said, and the other cases go on
            facts.findings.append(Finding("error", f"case {case_id}", f"{type(error).__name__}: {error}"))
    notes = [str(w.message) for w in caught if issubclass(w.category, io.VesaliusNote)]
    if len(manifest.cases) > 1:  # without the file, so that the same words about many cases can be gathered
        notes = [text.partition(": ")[2] if text.startswith(str(manifest.root)) else text for text in notes]
    for text in dict.fromkeys(notes):
        facts.findings.append(Finding("warning" if "NaN" in text else "note", f"case {case_id}", text))
    return facts


def _headers(manifest: Manifest, ref: CaseRef, facts: Facts) -> None:
    """Every file's header; one unreadable file does not hide the next."""
    spacing, floats = spacing_of(manifest, ref), []
    for kind, group in (("image", ref.images), ("label", ref.labels), ("roi", ref.rois)):
        for name, address in group.items():
            file, channel = file_of(manifest, address)
            try:
                shape, geometry, dtype = header_of(file, spacing)
            except VesaliusError as error:
                facts.findings.append(Finding("error", f"case {ref.id}", str(error)))
                continue
            if kind == "label" and dtype.kind == "f":
                floats.append(name)
            facts.grids[f"{kind}:{name}"] = geometry
            if kind == "image":
                expected = channels_by_name(name) if manifest.dims == 2 else None
                facts.channels[name] = 1 if channel is not None else expected or shape[0]
    facts.float_labels = tuple(floats)
    _compare(manifest, ref, facts)


def _compare(manifest: Manifest, ref: CaseRef, facts: Facts) -> None:
    """Headers of one case against each other, where the grids have the same number of sides."""
    names = [n for n in ref.images if f"image:{n}" in facts.grids]
    for key, geometry in facts.grids.items():
        kind, _, name = key.partition(":")
        anchor = name if name in names else next(iter(names), None)
        if anchor is None or key == f"image:{names[0]}" or (kind == "image" and all(map(is_view, names))):
            continue
        anchor = names[0] if kind == "image" else anchor
        other = facts.grids[f"image:{anchor}"]
        fits = geometry.shape == other.shape if geometry.ndim == 2 else geometry.ndim != other.ndim or geometry.close(other)
        if geometry.ndim == other.ndim and not fits:
            text = f"{kind} '{name}' is on another grid than image '{anchor}': {geometry.describe()} against {other.describe()}"
            facts.findings.append(Finding("error", f"case {ref.id}", text))


def _voxels(manifest: Manifest, case: Case, facts: Facts) -> None:
    where = f"case {case.id}"
    for name, image in case.images.items():
        data = np.ascontiguousarray(image.data)
        facts.grids[f"image:{name}"], facts.channels[name] = image.geometry, len(data)
        facts.digests[name] = hashlib.sha256(repr((data.shape, data.dtype.str)).encode() + data.data).hexdigest()
        flat = [c for c in range(len(data)) if data[c].min() == data[c].max()]
        if flat:
            which = f"image '{name}'" if len(data) == 1 else f"channel {flat[0]} of image '{name}'"
            facts.findings.append(Finding("warning", where, f"{which} is constant ({data[flat[0]].flat[0]:g} everywhere)"))
    for name, label in case.labels.items():
        data = np.asarray(label.data)
        if data.ndim - label.overlapping == 3 and not manifest.instances:
            facts.centres[name] = sides.centres(label, manifest.names)
        if label.overlapping:
            facts.voxels[name] = {k: int(m.sum()) for k, m in enumerate(data)}
            continue
        values, counts = np.unique(data > 0 if manifest.instances else data, return_counts=True)
        facts.voxels[name] = {int(v): int(n) for v, n in zip(values, counts, strict=True) if v >= 0}
        facts.ignored |= bool(values[0] < 0)


# ------------------------------------------------------------------------------------------------------------------------- between cases
def _rows(manifest: Manifest, facts: Sequence[Facts]) -> Iterator[Finding]:
    """What the table of cases says by itself."""
    if manifest.regions:
        yield Finding("warning", manifest.name, manifest.regions_rule)
    cases, total = manifest.cases, len(manifest.cases)
    for kind, names in (("image", manifest.channels), ("label", _union(c.labels for c in cases)), ("text", _union(c.text for c in cases))):
        for name in names:
            lack = [c.id for c in cases if name not in getattr(c, {"image": "images", "label": "labels", "text": "text"}[kind])]
            if lack:
                yield Finding("warning" if kind == "image" else "note", manifest.name, f"{kind} '{name}' is missing in {_of(lack, total)}")
    for column in _union(c.table for c in cases):
        lack = [c.id for c in cases if c.table.get(column) is None]
        if lack:
            yield Finding(
                "warning" if column in manifest.targets else "note", manifest.name, f"column '{column}' has no value in {_of(lack, total)}"
            )
    both = defaultdict(set)
    for c in cases:
        both[c.patient].add(c.split)
    for patient, splits in both.items():
        if len(splits) > 1:
            yield Finding(
                "error", manifest.name, f"patient '{patient}' is in more than one split: {', '.join(s or '(none)' for s in sorted(splits))}"
            )
    test = {c.patient for c in cases if c.split == "test"}
    if test and len(test) < FEW_TEST_PATIENTS:
        yield Finding(
            "warning", manifest.name, f"the test set has {_count(len(test), 'patient')}: differences between methods will hardly show"
        )
    if len({c.patient for c in cases}) < 3:
        yield Finding("warning", manifest.name, f"the dataset has {_count(len(both), 'patient')}: nothing can be held out for validation")


def _duplicates(manifest: Manifest, facts: Sequence[Facts]) -> Iterator[Finding]:
    """The same voxels under two names."""
    homes: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for one in facts:
        for name, digest in one.digests.items():
            homes[digest].append((one.case, name))
    refs = {c.id: c for c in manifest.cases}
    for same in homes.values():
        if len(same) < 2:
            continue
        ids = list(dict.fromkeys(case for case, _ in same))
        shown = ", ".join(f"{case} ({name})" for case, name in same[:4]) + (f" and {len(same) - 4} more" if len(same) > 4 else "")
        splits, patients = {refs[i].split for i in ids}, {refs[i].patient for i in ids}
        if len(splits) > 1:
            yield Finding("error", manifest.name, f"the same image is in more than one split (leak): {shown}")
        elif len(patients) > 1:
            yield Finding("warning", manifest.name, f"two patients have the same image (a split by patient would leak): {shown}")
        else:
            yield Finding("warning", manifest.name, f"the same image appears under two names: {shown}")


def _grids(manifest: Manifest, facts: Sequence[Facts]) -> Iterator[Finding]:
    grids = {
        one.case: next(g for n, g in one.grids.items() if n.startswith("image:"))
        for one in facts
        if any(n.startswith("image:") for n in one.grids)
    }
    codes = Counter(g.orientation for g in grids.values() if g.ndim == 3)
    if len(codes) > 1:
        yield Finding(
            "note",
            manifest.name,
            "the volumes have mixed orientations (" + ", ".join(f"{c}: {n}" for c, n in codes.most_common()) + "); they are read in one",
        )
    if len(grids) < 4:
        return
    for ndim in {g.ndim for g in grids.values()}:
        spacing = {case: np.array(g.canonical().spacing) for case, g in grids.items() if g.ndim == ndim}
        median = np.median(list(spacing.values()), axis=0)
        for case, mm in spacing.items():
            ratio = np.maximum(mm / median, median / mm).max()
            if ratio > SPACING_RATIO:
                text = f"its spacing {_mm(mm)} is {ratio:.1f} times off the dataset's median {_mm(median)}"
                yield Finding("warning", f"case {case}", text)


def _channel_counts(manifest: Manifest, facts: Sequence[Facts]) -> Iterator[Finding]:
    for name in _union(one.channels for one in facts):
        counts = Counter(one.channels[name] for one in facts if name in one.channels)
        if len(counts) > 1:
            rare = counts.most_common()[-1][0]
            cases = [one.case for one in facts if one.channels.get(name) == rare]
            text = (
                f"image '{name}' has "
                + ", ".join(f"{_count(c, 'channel')} in {n} cases" for c, n in counts.most_common())
                + f" ({rare}: {_some(cases)})"
            )
            yield Finding("error", manifest.name, text)


def _foreground(manifest: Manifest, facts: Sequence[Facts]) -> Iterator[Finding]:
    floats = [one.case for one in facts if one.float_labels]
    if floats:
        yield Finding("note", manifest.name, f"labels are stored as floating point in {_of(floats, len(facts))}")
    rows = [(one.case, name, count) for one in facts for name, count in one.voxels.items()]
    if not rows:
        return
    empty = list(dict.fromkeys(case for case, _, count in rows if not any(n for k, n in count.items() if k)))
    if len(empty) == len({case for case, _, _ in rows}):
        yield Finding("error", manifest.name, "no label has any foreground; check the values in the label table")
        return
    if empty:
        yield Finding("note", manifest.name, f"labels without foreground in {_of(empty, len({case for case, _, _ in rows}))}")
    for k, name in enumerate(manifest.names):
        if k and not manifest.instances and not any(count.get(k) for _, _, count in rows):
            yield Finding("warning", manifest.name, f"class '{name}' (value {manifest.values[k]}) occurs in no label")
    split = {c.id: c.split for c in manifest.cases}
    if any(split.values()):
        seen = {k for case, _, count in rows if split[case] != "test" for k, n in count.items() if n}
        for k, name in enumerate(manifest.names):
            if k and k not in seen and any(count.get(k) for _, _, count in rows):
                yield Finding("error", manifest.name, f"class '{name}' occurs in the test set but in no training case")


def _sides(manifest: Manifest, facts: Sequence[Facts]) -> Iterator[Finding]:
    """Structures on the wrong side of the body."""
    for name in _union(one.centres for one in facts):
        at = {one.case: one.centres[name] for one in facts if name in one.centres}
        told = {case: found for case, of in at.items() if (found := sides.wrong_by_name(of))}
        others = {case: [text] for case, text in sides.unlike_the_others(at).items() if case not in told}
        for case, found in {**told, **others}.items():
            for text in found:
                yield Finding("warning", f"case {case}", text)


# -------------------------------------------------------------------------------------------------------------------------------- wording
def _union(groups: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group))


def _some(cases: Sequence[str]) -> str:
    return ", ".join(cases[:5]) + (f" and {len(cases) - 5} more" if len(cases) > 5 else "")


def _of(cases: Sequence[str], total: int) -> str:
    return f"{len(cases)} of {total} cases: {_some(cases)}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _mm(spacing: np.ndarray) -> str:
    return " x ".join(f"{s:.3g}" for s in spacing) + " mm"
