from collections import Counter
from functools import cache
from math import exp, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.core.errors import DataError, UsageError
from vesalius.metrics import text

WORDS = st.lists(st.sampled_from("mass left right no".split()), max_size=9)


def bleu_by_hand(pairs, n):
    """Papineni's definition, gram by gram."""
    precisions = []
    for order in range(1, n + 1):
        hits = possible = 0
        for c, references in pairs:
            grams = [tuple(c[i : i + order]) for i in range(len(c) - order + 1)]
            possible += len(grams)
            for gram in set(grams):
                most = max(sum(tuple(r[i : i + order]) == gram for i in range(len(r))) for r in references)
                hits += min(grams.count(gram), most)
        if possible == 0:
            return None
        precisions.append(hits / possible)
    length = sum(len(c) for c, _ in pairs)
    nearest = sum(sorted((abs(len(r) - len(c)), len(r)) for r in references)[0][1] for c, references in pairs)
    return min(1, exp(1 - nearest / length)) * prod(precisions) ** (1 / n)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=4), st.integers(1, 4))
def test_corpus_bleu_by_hand(pairs, n):
    value = text.corpus_bleu([" ".join(c) for c, _ in pairs], [[" ".join(r) for r in rs] for _, rs in pairs], n=n)
    expected = bleu_by_hand(pairs, n)
    assert value == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_bleu_by_the_papers_examples():
    the = "the the the the the the the"
    two = ["The cat is on the mat.", "There is a cat on the mat."]
    assert text.sentence_bleu(the, two, n=1) == pytest.approx(2 / 7)
    a = "It is a guide to action which ensures that the military always obeys the commands of the party."
    b = "It is to insure the troops forever hearing the activity guidebook that party direct."
    references = [
        "It is a guide to action that ensures that the military will forever heed Party commands.",
        "It is the guiding principle which guarantees the military forces always being under the command of the Party.",
        "It is the practical guide for the army always to heed the directions of the party.",
    ]
    bigrams = lambda s: text.corpus_bleu([s], [references], n=2) ** 2 / text.corpus_bleu([s], [references], n=1)
    assert text.corpus_bleu([a], [references], n=1) == pytest.approx(17 / 18) and bigrams(a) == pytest.approx(10 / 17)
    brevity = exp(1 - 16 / 14)  # 14 words; the nearest reference has 16
    assert text.corpus_bleu([b], [references], n=1) == pytest.approx(brevity * 8 / 14)
    assert bigrams(b) == pytest.approx(brevity * 1 / 13)


def test_smoothing():
    c, r = "a b c d", "a b x d"
    assert text.sentence_bleu(c, r, smoothing="none") == 0 == text.corpus_bleu([c], [r])
    assert text.sentence_bleu(c, r) == pytest.approx((3 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25)
    assert text.sentence_bleu(c, r, smoothing="exponential") == pytest.approx((3 / 4 * 1 / 3 * 0.5 / 2 * 0.25 / 1) ** 0.25)
    assert text.sentence_bleu("x", "y") == 0


def test_short_and_empty_texts():
    assert text.sentence_bleu("Left breast.", "left BREAST") == pytest.approx(1)
    assert text.corpus_bleu(["left breast"], ["left breast"]) is None  # no candidate has four tokens
    assert text.corpus_bleu(["left breast", "one two three four"], ["left breast", "one two three four"]) == pytest.approx(1)
    assert text.sentence_bleu("", "a") == 0 and text.sentence_bleu("a", "") == 0 and text.sentence_bleu("", "...") is None
    assert text.corpus_bleu([], []) is None
    assert text.exact_match("Mass, left!", "mass left") == 1 and text.exact_match("", "") == 1 and text.exact_match("a b", "b a") == 0
    assert text.tokens("A 1.5-cm mass; BI-RADS 4a") == ["a", "1.5", "cm", "mass", "bi", "rads", "4", "a"]


@settings(deadline=None, derandomize=True)
@given(WORDS, WORDS)
def test_rouge_l_by_dynamic_programming(a, b):
    @cache
    def lcs(i, j):
        if i == len(a) or j == len(b):
            return 0
        return 1 + lcs(i + 1, j + 1) if a[i] == b[j] else max(lcs(i + 1, j), lcs(i, j + 1))

    common = lcs(0, 0)
    assert text.longest_common(a, b) == common == text.longest_common(b, a)
    value = text.rouge_l(" ".join(a), " ".join(b))
    if not a and not b:
        assert value is None
    else:
        assert value == pytest.approx(2 * common / (len(a) + len(b)))


def test_rouge_l():
    assert text.rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(0.75)  # Lin 2004
    assert text.rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(0.5)
    p, r = 2 / 2, 2 / 4
    assert text.rouge_l("a b", "a x b y", beta=1.2) == pytest.approx((1 + 1.44) * p * r / (r + 1.44 * p))
    assert text.rouge_l("a b", ["c d", "a b"]) == 1 and text.rouge_l("", "a") == 0 and text.rouge_l("a", "b") == 0
    long = " ".join(str(n) for n in range(3000))
    assert text.rouge_l(long, long) == 1


# ------------------------------------------------------------------------------------------------------------------------ slots and fields
def test_slots_by_hand():
    reference = {"side": "Left", "size": 12, "shape": None, "signs": ["spiculated", "dense"], "stage": ""}
    predicted = {"side": "left ", "size": 12.0, "shape": "oval", "signs": ["dense"], "extra": None}
    s = text.slots(predicted, reference)
    assert s == text.Slots(3, 1, 1)
    assert (s.precision, s.recall, s.f1) == (0.75, 0.75, 0.75)
    assert text.field_accuracy(predicted, reference) == pytest.approx(3 / 5)  # side, size, stage
    assert text.invented_rate(predicted, reference) == 0.5


def test_slots_undefined_and_pooled():
    empty = text.slots({}, {"a": None})
    assert (empty.precision, empty.recall, empty.f1) == (None, None, None)
    missed = text.slots({}, {"a": 1})
    assert (missed.precision, missed.recall, missed.f1) == (None, 0, 0)
    assert text.field_accuracy({}, {}) is None is text.invented_rate({}, {"a": 1})
    assert text.field_accuracy({}, {"a": float("nan")}) == 1
    assert text.slots([{"a": 1}, {"a": 2}], [{"a": 1}, {"a": 3}]) == text.Slots(1, 1, 1)
    assert text.slots({"a": True}, {"a": True}).f1 == 1 and text.slots({"a": True}, {"a": 1}).f1 == 0


@settings(deadline=None, derandomize=True)
@given(*(st.dictionaries(st.sampled_from("abcd"), st.one_of(st.none(), st.integers(0, 2), st.sampled_from(["x", "y"]))),) * 2)
def test_slot_laws(p, r):
    s, t = text.slots(p, r), text.slots(r, p)
    assert (s.tp, s.fp, s.fn) == (t.tp, t.fn, t.fp)
    assert s.tp + s.fn == sum(v is not None for v in r.values()) and s.tp + s.fp == sum(v is not None for v in p.values())
    assert text.slots(p, p).fp == 0 and text.field_accuracy(p, p) in (None, 1)
    assert Counter([s.f1 is None]) == Counter([not (s.tp or s.fp or s.fn)])


def test_bad_text():
    with pytest.raises(DataError, match="string"):
        text.sentence_bleu(None, "a")
    with pytest.raises(DataError, match="string"):
        text.rouge_l("a", [["a"]])
    with pytest.raises(DataError, match="no reference"):
        text.sentence_bleu("a", [])
    with pytest.raises(DataError, match="its references"):
        text.corpus_bleu(["a"], [])
    with pytest.raises(DataError, match="numbers of records"):
        text.slots([{}], [])
    for call in (
        lambda: text.sentence_bleu("", "a", n=0),
        lambda: text.sentence_bleu("a", "a", smoothing="laplace"),
        lambda: text.rouge_l("a", "a", beta=0),
    ):
        with pytest.raises(UsageError):
            call()
