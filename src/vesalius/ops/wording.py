"""Mask attributes <-> phrases: what can truly be said of the objects of a label map, and which of them each phrase means.

Every phrase is judged on every object with yes, no or cannot say (a 'left' one in the middle, a size between large and small). A phrase is
kept when one object is meant for sure, or for sure none ('nothing'); it is dropped where a person could disagree. Sides are those of the
picture in 2D (top, left) and the patient's in 3D (RAS+ axes).

Kinds: 'name' (the disc), 'attribute' (the small bright disc), 'place' (the disc at the upper left), 'extreme' (the largest disc),
'relation' (the disc left of the square), 'contrast' (the left disc, not the right one: the same words in another order mean the other
one) and 'nothing'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from ..core.case import Image, LabelMap
from ..core.errors import GeometryError
from .components import components

KINDS = ("name", "attribute", "place", "extreme", "relation", "contrast", "nothing")
ANY = "object"  # the noun for whatever it is, where there are several classes
LEAST = 0.05  # components below this share of the largest of their class are specks, not objects
MIDDLE, APART, RATIO, CONTRAST = 0.07, 0.1, 1.6, 0.25  # share of the field of view, the same, of areas, sd of the image


@dataclass(frozen=True)
class Thing:
    """One object: its class ``name``, ``mask`` (*spatial) bool, ``size`` (mm^d), centre ``at`` (0..1 along the canonical axes), ``grey``:
    its mean minus that of the background in sd of the image (0 without an image)."""

    name: str
    mask: np.ndarray
    size: float
    at: tuple[float, ...]
    grey: float = 0.0


@dataclass(frozen=True)
class Expression:
    """``text`` means the object ``of`` (index; None: nothing)."""

    text: str
    kind: str
    of: int | None


@dataclass(frozen=True)
class _Side:
    """How the two ends of an axis are called, low then high."""

    where: tuple[str, str]
    adjective: tuple[str, str]
    most: tuple[str, str]
    relation: tuple[str, str]


_X = _Side(("on the left", "on the right"), ("left", "right"), ("leftmost", "rightmost"), ("left of", "right of"))
_UP = _Side(("at the top", "at the bottom"), ("upper", "lower"), ("uppermost", "lowest"), ("above", "below"))
_DOWN = _Side(*(pair[::-1] for pair in (_UP.where, _UP.adjective, _UP.most, _UP.relation)))
_Y = _Side(("at the back", "in front"), ("back", "front"), ("hindmost", "foremost"), ("behind", "in front of"))
SIDES = {2: (_UP, _X), 3: (_X, _Y, _DOWN)}


def things(label: LabelMap, image: Image | None = None) -> list[Thing]:
    """The objects of a label map: its instances, or the components of each class, specks left out; by class, then in scan order.

    Raises GeometryError when the image lies on another grid.
    """
    if image is not None and image.geometry.shape != label.geometry.shape:
        raise GeometryError("image and label map have different grids", found=image.geometry.shape, allowed=label.geometry.shape)
    grey = None if image is None else np.asarray(image.data, np.float32).mean(0)
    found = list(_masks(label))
    outside = ~np.any([m for _, m in found], 0) if found else None
    base, sd = (0.0, 1.0) if grey is None or outside is None or not outside.any() else (float(grey[outside].mean()), float(grey.std()))
    canonical = label.geometry.canonical()
    out = []
    for name, mask in found:
        centre = canonical.to_index(label.geometry.to_world(np.argwhere(mask).mean(0)[None]))[0]
        at = tuple(float(x) for x in (centre + 0.5) / canonical.shape)
        tone = 0.0 if grey is None else (float(grey[mask].mean()) - base) / max(sd, 1e-8)
        out.append(Thing(name, mask, float(mask.sum() * label.geometry.voxel_volume), at, tone))
    return out


def _masks(label: LabelMap) -> Iterator[tuple[str, np.ndarray]]:
    data, first = np.asarray(label.data), len(label.names) - len(label.data) if label.overlapping else 1
    if label.instances:
        yield from ((label.names[-1], data == i) for i in np.unique(data[data > 0]))
        return
    for k, name in enumerate(label.names[first:]):
        parts, sizes = components(data[k] if label.overlapping else data == k + first)
        yield from ((name, parts == i + 1) for i, n in enumerate(sizes) if n >= LEAST * sizes.max())


# ------------------------------------------------------------------------------------------------------------------------------ judging
_Verdict = tuple[bool | None, ...]  # of every object: yes, no, cannot say


def expressions(found: Sequence[Thing], names: Sequence[str], dims: int) -> list[Expression]:
    """All expressions that mean one object of ``found`` for sure, or none; ``names``: the classes, present or not. Each text once."""
    kinds = list(names) + ([ANY] if len(names) > 1 else [])
    nouns = {n: tuple(n in (ANY, t.name) for t in found) for n in kinds}
    said: dict[str, Expression] = {}
    for text, kind, verdict in _phrases(found, nouns, dims):
        meant = [i for i, v in enumerate(verdict) if v]
        if None not in verdict and len(meant) < 2 and text not in said:
            said[text] = Expression(text, kind if meant else "nothing", meant[0] if meant else None)
    return list(said.values())


def choose(
    found: Sequence[Expression], rng: np.random.Generator, number: int, nothing: float = 0.2, kinds: Sequence[str] = KINDS
) -> list[Expression]:
    """About ``number`` of them, ``kinds`` in turn, of which a share ``nothing`` (at least one, where there are such) means no object."""
    by_kind = {k: [e for e in found if e.kind == k] for k in (*kinds, "nothing")}
    for group in by_kind.values():
        rng.shuffle(group)
    absent = by_kind.pop("nothing")[: max(1, round(number * nothing)) if nothing else 0]
    out: list[Expression] = []
    while len(out) < number - len(absent) and any(by_kind.values()):
        for k in rng.permutation([k for k, group in by_kind.items() if group]):
            if len(out) < number - len(absent):
                out.append(by_kind[str(k)].pop())
    return out + absent


def _phrases(found: Sequence[Thing], nouns: dict[str, _Verdict], dims: int) -> Iterator[tuple[str, str, _Verdict]]:
    sides = SIDES[dims]
    sizes, greys = _large(found), tuple(None if abs(t.grey) < CONTRAST else t.grey > 0 for t in found)
    halves = [tuple(None if abs(t.at[a] - 0.5) < MIDDLE else t.at[a] > 0.5 for t in found) for a in range(dims)]
    size = {"small": _not(sizes), "large": sizes}
    grey = {"dark": _not(greys), "bright": greys}
    where = [dict(zip(s.where, (_not(h), h), strict=True)) for s, h in zip(sides, halves, strict=True)]
    corner = {}
    if dims == 2:
        for (v, h), (i, j) in zip(product(_UP.adjective, _X.adjective), product((0, 1), repeat=2), strict=True):
            corner[f"at the {v} {h}"] = _and(*(halves[a] if e else _not(halves[a]) for a, e in ((0, i), (1, j))))
    place = {k: v for d in (*where, corner) for k, v in d.items()}
    for noun, is_it in nouns.items():
        yield f"the {noun}", "name", is_it
        for word, v in (size | grey).items():
            yield f"the {word} {noun}", "attribute", _and(is_it, v)
        for (a, u), (b, v) in product(size.items(), grey.items()):
            yield f"the {a} {b} {noun}", "attribute", _and(is_it, u, v)
        for spot, v in place.items():
            yield f"the {noun} {spot}", "place", _and(is_it, v)
        for (word, u), (spot, v) in product((size | grey).items(), place.items()):
            yield f"the {word} {noun} {spot}", "place", _and(is_it, u, v)
        pairs = [tuple(size.items()), tuple(grey.items())]
        pairs += [tuple(zip(s.adjective, d.values(), strict=True)) for s, d in zip(sides, where, strict=True)]
        yield from _contrasts(noun, is_it, pairs)
        if sum(map(bool, is_it)) > 1:
            yield from _extremes(noun, found, is_it, sides)
    yield from _relations(found, nouns, sides)


def _contrasts(noun: str, is_it: _Verdict, pairs: Sequence[tuple]) -> Iterator[tuple[str, str, _Verdict]]:
    """Of two opposite words one object each: which of them is meant hangs on the order of the words alone."""
    for pair in pairs:
        for (a, u), (b, v) in (pair, pair[::-1]):
            mine, other = _and(is_it, u), _and(is_it, v)
            if None not in mine + other and sum(mine) == sum(other) == 1:
                yield f"the {a} {noun}, not the {b} one", "contrast", mine
                yield f"not the {b} {noun} but the {a} one", "contrast", mine


def _extremes(noun: str, found: Sequence[Thing], is_it: _Verdict, sides: Sequence[_Side]) -> Iterator[tuple[str, str, _Verdict]]:
    scales = [("smallest", "largest", [np.log(t.size) for t in found], np.log(RATIO) / 2)]
    scales.append(("darkest", "brightest", [t.grey for t in found], CONTRAST))
    scales += [(*s.most, [t.at[a] for t in found], MIDDLE) for a, s in enumerate(sides)]
    for low, high, values, gap in scales:
        order = sorted((i for i, is_one in enumerate(is_it) if is_one), key=values.__getitem__)
        for word, first, second in ((low, order[0], order[1]), (high, order[-1], order[-2])):
            if abs(values[first] - values[second]) >= gap:
                yield f"the {word} {noun}", "extreme", tuple(i == first for i in range(len(found)))


def _relations(found: Sequence[Thing], nouns: dict[str, _Verdict], sides: Sequence[_Side]) -> Iterator[tuple[str, str, _Verdict]]:
    """'the A left of the B', where there is one B and it is of another class."""
    for (a, is_a), (b, is_b) in product(nouns.items(), repeat=2):
        if a == b or ANY in (a, b) or sum(is_b) != 1:
            continue
        anchor = found[is_b.index(True)]
        for axis, s in enumerate(sides):
            ahead = tuple(None if abs(d) < APART else d > 0 for d in (t.at[axis] - anchor.at[axis] for t in found))
            for words, v in zip(s.relation, (_not(ahead), ahead), strict=True):
                yield f"the {a} {words} the {b}", "relation", _and(is_a, v)


def _large(found: Sequence[Thing]) -> _Verdict:
    """Which are large: nearer (in log size) to the largest than to the smallest, where these differ clearly."""
    logs = np.log([t.size for t in found]) if found else np.zeros(0)
    if len(logs) < 2 or np.ptp(logs) < np.log(RATIO):
        return (None,) * len(logs)
    middle = (logs.max() + logs.min()) / 2
    return tuple(None if abs(x - middle) < 0.2 * np.ptp(logs) else bool(x > middle) for x in logs)


def _not(v: _Verdict) -> _Verdict:
    return tuple(None if x is None else not x for x in v)


def _and(*verdicts: _Verdict) -> _Verdict:
    """No where one says no, else cannot say where one cannot, else yes."""
    return tuple(False if False in x else None if None in x else True for x in zip(*verdicts, strict=True))
