"""Generated text and filled forms: n-gram overlap, longest common subsequence, slots and fields.

``tokens`` makes words and numbers in lower case and drops punctuation, so scores compare with each other, not with those of another
tokeniser. A reference is one string, or several strings in a list or tuple. BLEU and ROUGE measure wording; a wrong side or a lost 'no'
hardly moves them, so report slots beside them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any, Literal

from ..core.errors import DataError, UsageError

Record = Mapping[str, Any]
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|\w+", re.UNICODE)
SMOOTHING = ("none", "add-one", "exponential")


def tokens(text: str) -> list[str]:
    """Words and numbers ('1.5' is one) in lower case, without punctuation. Raises DataError for anything but a string."""
    if not isinstance(text, str):
        raise DataError("a text is a string", found=type(text).__name__)
    return _TOKEN.findall(text.casefold())


def exact_match(candidate: str, reference: str) -> float:
    """1 when both have the same tokens in the same order, else 0; two empty texts match. Source: SQuAD (Rajpurkar et al. 2016)."""
    return float(tokens(candidate) == tokens(reference))


# ------------------------------------------------------------------------------------------------------------------------------- BLEU
def corpus_bleu(
    candidates: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    n: int = 4,
    smoothing: Literal["none", "add-one", "exponential"] = "none",
) -> float | None:
    """BLEU-n of a corpus: brevity penalty x geometric mean of the 1..n-gram precisions, in [0, 1], higher is better.

    Counts are clipped by the reference that has most and summed over the corpus before anything is divided; each candidate has one
    reference or several. The penalty is exp(1 - r / c) for c < r, r the sum of reference lengths
    nearest to the candidates' (of two equally near, the shorter). Smoothing of a precision without a hit: 'add-one' adds 1 to hits and
    possible ones for n > 1 (Lin and Och 2004); 'exponential' takes 1/2, 1/4, ... hits in turn (NIST mteval 13a). Undefined (None) without
    candidates or when none has n tokens. Source: Papineni et al. 2002, doi:10.3115/1073083.1073135.
    """
    if len(candidates) != len(references):
        raise DataError("each candidate has its references", found=len(references), allowed=len(candidates))
    return _bleu([(tokens(c), _several(r)) for c, r in zip(candidates, references, strict=True)], n, smoothing, effective=False)


def sentence_bleu(
    candidate: str,
    reference: str | Sequence[str],
    *,
    n: int = 4,
    smoothing: Literal["none", "add-one", "exponential"] = "add-one",
) -> float | None:
    """BLEU-n of one text, in [0, 1], higher is better; orders longer than the candidate do not enter, so a short exact copy has 1.

    Undefined (None) when candidate and reference are empty; only one empty is 0. Source: ``corpus_bleu``; Lin and Och 2004 (smoothing).
    """
    ours, theirs = tokens(candidate), _several(reference)
    if not ours:
        _checked(n, smoothing)
        return 0.0 if any(theirs) else None
    return _bleu([(ours, theirs)], n, smoothing, effective=True)


def _bleu(pairs: list[tuple[list[str], list[list[str]]]], n: int, smoothing: str, *, effective: bool) -> float | None:
    _checked(n, smoothing)
    length = sum(len(c) for c, _ in pairs)
    nearest = sum(min((abs(len(r) - len(c)), len(r)) for r in references)[1] for c, references in pairs)
    logs, halves = [], 1.0
    for order in range(1, n + 1):
        hits, possible = 0.0, 0
        for candidate, references in pairs:
            ours, most = _ngrams(candidate, order), Counter()
            for reference in references:
                most |= _ngrams(reference, order)
            hits += sum((ours & most).values())
            possible += sum(ours.values())
        if possible == 0:
            if effective and logs:
                break
            return None
        if smoothing == "add-one" and order > 1:
            hits, possible = hits + 1, possible + 1
        elif smoothing == "exponential" and hits == 0:
            halves /= 2
            hits = halves
        if hits == 0:
            return 0.0
        logs.append(log(hits / possible))
    return min(1.0, exp(1 - nearest / length)) * exp(sum(logs) / len(logs))


def _ngrams(words: list[str], n: int) -> Counter:
    return Counter(zip(*(words[k:] for k in range(n))))


def _several(reference: str | Sequence[str]) -> list[list[str]]:
    many = [reference] if isinstance(reference, str) else list(reference)
    if not many:
        raise DataError("a candidate has no reference")
    return [tokens(text) for text in many]


def _checked(n: int, smoothing: str) -> None:
    if not 1 <= n <= 9:
        raise UsageError("BLEU counts n-grams of 1 to 9 words", found=n)
    if smoothing not in SMOOTHING:
        raise UsageError("unknown smoothing of BLEU", found=smoothing, allowed=", ".join(SMOOTHING))


# ------------------------------------------------------------------------------------------------------------------------------- ROUGE-L
def rouge_l(candidate: str, reference: str | Sequence[str], *, beta: float = 1.0) -> float | None:
    """ROUGE-L: (1 + beta^2) P R / (R + beta^2 P) of the longest common subsequence, in [0, 1], higher is better.

    P and R are its length over the candidate's and the reference's; of several references the best counts. ``beta`` 1 is the F1 of common
    tools, 1.2 that of captioning. Undefined (None) when all are empty; only one side empty is 0. Source: Lin 2004, aclanthology W04-1013.
    """
    if not beta > 0:
        raise UsageError("the beta of ROUGE-L is positive", found=beta)
    ours, best = tokens(candidate), None
    for theirs in _several(reference):
        if ours or theirs:
            common = longest_common(ours, theirs)
            p, r = common / max(1, len(ours)), common / max(1, len(theirs))
            best = max(best or 0.0, (1 + beta**2) * p * r / (r + beta**2 * p) if common else 0.0)
    return best


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a machine word of rows at a time (Hyyro 2004)."""
    places: dict[str, int] = {}
    for n, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << n
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        match = row & places.get(token, 0)
        row = ((row + match) | (row - match)) & full
    return len(a) - row.bit_count()


# ------------------------------------------------------------------------------------------------------------------------ slots and fields
@dataclass(frozen=True)
class Slots:
    """Filled slots of records: ``tp`` right, ``fp`` filled in vain or wrongly, ``fn`` missed or filled wrongly."""

    tp: int
    fp: int
    fn: int

    @property
    def precision(self) -> float | None:
        """TP / (TP + FP), higher is better; None when nothing was predicted."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else None

    @property
    def recall(self) -> float | None:
        """TP / (TP + FN), higher is better; None when the reference fills nothing."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else None

    @property
    def f1(self) -> float | None:
        """2 TP / (2 TP + FP + FN), higher is better; None when neither fills anything."""
        return 2 * self.tp / (2 * self.tp + self.fp + self.fn) if self.tp + self.fp + self.fn else None


def slots(predicted: Record | Iterable[Record], reference: Record | Iterable[Record]) -> Slots:
    """The counts of one record or, pooled (micro), of equally many: a slot's values are compared as text, words in lower case.

    None and empty text fill nothing; a list, tuple or set fills its slot several times; numbers are equal as numbers (2 and 2.0).
    """
    tp = fp = fn = 0
    for ours, theirs in _records(predicted, reference):
        p, r = _filled(ours), _filled(theirs)
        tp, fp, fn = tp + len(p & r), fp + len(p - r), fn + len(r - p)
    return Slots(tp, fp, fn)


def field_accuracy(predicted: Record | Iterable[Record], reference: Record | Iterable[Record]) -> float | None:
    """The share of the reference's fields whose value is right, in [0, 1], higher is better; None there must be None (or absent) here.

    Fields only the prediction has do not enter (``slots`` counts them). Undefined (None) when the reference has no field.
    """
    right = [_values(ours.get(f)) == _values(v) for ours, theirs in _records(predicted, reference) for f, v in theirs.items()]
    return sum(right) / len(right) if right else None


def invented_rate(predicted: Record | Iterable[Record], reference: Record | Iterable[Record]) -> float | None:
    """The share of the reference's empty fields that the prediction fills, in [0, 1], lower is better (hallucinated fields).

    Undefined (None) when the reference leaves no field empty.
    """
    empty = [bool(_values(ours.get(f))) for ours, theirs in _records(predicted, reference) for f, v in theirs.items() if not _values(v)]
    return sum(empty) / len(empty) if empty else None


def _records(predicted: Record | Iterable[Record], reference: Record | Iterable[Record]) -> list[tuple[Record, Record]]:
    ours, theirs = ([r] if isinstance(r, Mapping) else list(r) for r in (predicted, reference))
    if len(ours) != len(theirs):
        raise DataError("prediction and reference have different numbers of records", found=len(ours), allowed=len(theirs))
    return list(zip(ours, theirs, strict=True))


def _filled(record: Record) -> set[tuple[str, Any]]:
    return {(slot, value) for slot, values in record.items() for value in _values(values)}


def _values(value: Any) -> frozenset:
    """What a slot holds, comparable: nothing, one value or several."""
    if isinstance(value, list | tuple | set | frozenset):
        return frozenset().union(*map(_values, value))
    if isinstance(value, str):
        value = " ".join(value.casefold().split())
    if value is None or value == "" or value != value:  # NaN is how tables say None
        return frozenset()
    return frozenset([str(value).casefold() if isinstance(value, bool) else value])
