"""Simulated users: what a person who knows the answer would point at next. They see the reference; the model never does.

Everything is in voxel indices of one grid, so that training (patches) and measuring (whole images) share it; ``engine.interact`` turns
what comes out into prompts in world coordinates. Clicks, scribbles: on voxel centres. Boxes: on voxel faces (a one-voxel object has a box
of one voxel). Randomness is the ``rng`` given and nothing else.

Sources: the exponential of the distance as a click's weight, and the side with more of it, Sakinis et al. (interactive-fcn), 2019; the
deepest voxel of the largest error, as robots of interactive segmentation click since Xu et al., CVPR 2016; uniform clicks in the
error, SAM-Med2D and PRISM; the error's centre line as a scribble, Wong et al., ScribblePrompt, 2023.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ..core.errors import DataError, UsageError
from .components import bounding_box, components

Policy = Literal["centre", "uniform", "distance"]
MODES = "box, box20, 1click, 5clicks, 3random, scribble, 2slices, everything, each-box, each-1click; after a turn: pick"


@dataclass(frozen=True)
class Ask:
    """What the user gives in one turn: a 'box', whose sides are each off by up to ``jitter`` of their length; ``count`` 'click's chosen
    by ``policy``; a 'scribble'; or the outlines of all structures in ``count`` 'slice's of a volume. ``each``: once for every slice that
    shows the structure. Or the user chooses: 'pick', of the masks that the method had for the last turn the best one; 'everything', of
    the masks that a grid of ``count`` clicks a side finds, without a word of what is wanted."""

    kind: Literal["box", "click", "scribble", "slice", "pick", "everything"]
    count: int = 1
    policy: Policy = "centre"
    jitter: float = 0.0
    each: bool = False


def user(mode: str) -> tuple[Ask, ...]:
    """Turns of a user written in one word: 'box', 'box20' (off by up to 20 %), '1click', '5clicks' (one a turn, each where the answer is
    most wrong), '3random' (uniform in the error), 'scribble', '2slices' (outlined at once), 'pick' (the best of the masks it had, as an
    oracle chooses), 'everything' (32 x 32 clicks and an oracle; 'everything8': 8 x 8); 'each-box', 'each-1click' (a prompt in every slice
    that shows the structure: it tells where the structure ends); and several joined by '+': 'box20+2clicks'. Raises UsageError."""
    turns: list[Ask] = []
    for word in mode.split("+"):
        if box := re.fullmatch(r"(each-)?box(\d{0,2})", word):
            turns.append(Ask("box", jitter=int(box[2] or 0) / 100, each=bool(box[1])))
        elif clicks := re.fullmatch(r"(each-)?([1-9]\d?)(clicks?|random)", word):
            policy: Policy = "uniform" if clicks[3] == "random" else "centre"
            turns += [Ask("click", policy=policy, each=bool(clicks[1]))] * int(clicks[2])
        elif slices := re.fullmatch(r"([1-9]\d?)slices?", word):
            turns.append(Ask("slice", count=int(slices[1])))
        elif everything := re.fullmatch(r"everything(\d{0,2})", word):
            turns.append(Ask("everything", count=int(everything[1] or 32)))
        elif word == "scribble" or (word == "pick" and turns):
            turns.append(Ask(word))
        else:
            raise UsageError("a prompt mode is not understood", found=mode, allowed=f"{MODES}; joined by '+'")
    return tuple(turns)


def structure(label: np.ndarray, rng: np.random.Generator) -> int:
    """One of the classes that a patch of class indices (*s) shows, by chance; 0: it shows none."""
    present = [int(k) for k in np.unique(label) if k > 0]
    return int(rng.choice(present)) if present else 0


def meant(label: np.ndarray, rng: np.random.Generator, *, piece: bool = False) -> np.ndarray:
    """(*s) bool: what the user means in a patch of class indices (*s): one of the structures that it shows, by chance, or one connected
    ``piece`` of it; empty where it shows none."""
    chosen = structure(label, rng)
    mask = label == chosen if chosen else np.zeros(label.shape, bool)
    if piece and chosen:
        pieces, sizes = components(mask)
        mask = pieces == 1 + rng.integers(len(sizes))
    return mask


def clicks(
    truth: np.ndarray,
    answer: np.ndarray | None,
    rng: np.random.Generator,
    *,
    count: int = 1,
    policy: Policy = "centre",
    spacing: Sequence[float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(index (n, d) int, positive (n,) bool): clicks where ``answer`` (*s) bool (None: nothing yet) differs from ``truth`` (*s) bool, fewer
    than ``count`` (none) where the error has fewer places. Positive where something is missing.

    'centre': the voxel farthest (mm) from the border in each of the ``count`` largest pieces of the error, misses and false alarms apart;
    'uniform': any voxels of the error, none twice; 'distance': the side, misses or false alarms, with the greater sum of distances to its
    border, one voxel with probability in proportion to exp(distance in voxels) - 1, ``count`` times.
    """
    truth = np.asarray(truth, bool)
    answer = np.zeros_like(truth) if answer is None else np.asarray(answer, bool)
    if truth.shape != answer.shape:
        raise DataError("the answer is on another grid than the reference", found=answer.shape, allowed=truth.shape)
    if policy not in get_args(Policy):
        raise UsageError("no such policy of clicking", found=policy, allowed=get_args(Policy))
    missed, false = truth & ~answer, answer & ~truth
    if policy == "uniform":
        places = np.argwhere(missed | false)
        chosen = places[rng.permutation(len(places))[:count]]
    elif policy == "distance":
        chosen = _weighted(missed, false, rng, count)
    else:
        chosen = _deepest(missed, false, count, spacing)
    return chosen, truth[tuple(chosen.T)]


def box(truth: np.ndarray, rng: np.random.Generator | None = None, *, jitter: float = 0.0) -> np.ndarray:
    """(2, d) float: low and high corner around a mask (*s) bool, each side moved by a uniform share, up to ``jitter``, of its length, and
    at least half a voxel long. Raises DataError for an empty mask."""
    tight = bounding_box(np.asarray(truth, bool))
    if tight is None:
        raise DataError("there is nothing to draw a box around")
    ends = np.array([[s.start - 0.5 for s in tight], [s.stop - 0.5 for s in tight]])
    if jitter and rng is not None:
        ends = ends + rng.uniform(-jitter, jitter, ends.shape) * (ends[1] - ends[0])
        ends[1] = np.maximum(ends[1], ends[0] + 0.5)
    return ends


def scribble(truth: np.ndarray, answer: np.ndarray | None, *, plane: int | None = None) -> tuple[np.ndarray, bool]:
    """(line (n, d) int, positive): the longest way along the centre line of the error's largest piece, from end to end, voxels in order.
    ``plane``: an axis; the line stays in the one plane across it that shows most of the piece. An answer without error gives (0, d)."""
    truth = np.asarray(truth, bool)
    answer = np.zeros_like(truth) if answer is None else np.asarray(answer, bool)
    pieces = [(m, positive) for m, positive in ((_largest(truth & ~answer), True), (_largest(answer & ~truth), False))]
    piece, positive = max(pieces, key=lambda one: np.count_nonzero(one[0]))
    if not piece.any():
        return np.zeros((0, truth.ndim), int), True
    if plane is not None:
        at = int(piece.sum(tuple(a for a in range(piece.ndim) if a != plane)).argmax())
        line = _centre_line(_largest(np.take(piece, at, plane)))
        return np.insert(line, plane, at, axis=1), positive
    return _centre_line(piece), positive


def slices(truth: np.ndarray, answer: np.ndarray | None, *, axis: int, count: int) -> list[int]:
    """Up to ``count`` slices across ``axis`` in which K structures (K, *s) bool are worth outlining: their extent cut into as many equal
    parts, and of each the slice that shows most of them (of what is wrong with ``answer``), each structure measured by its largest
    slice."""
    truth = np.asarray(truth, bool)
    wrong = truth if answer is None else truth != np.asarray(answer, bool)
    areas = np.moveaxis(wrong, axis + 1, 1).sum((2, 3)).astype(float)
    worth = (areas / np.maximum(areas.max(1, keepdims=True), 1)).sum(0)
    shown = np.flatnonzero(worth)
    if not len(shown):
        return []
    parts = np.array_split(np.arange(shown[0], shown[-1] + 1), count)
    return [int(part[worth[part].argmax()]) for part in parts if len(part) and worth[part].any()]


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, sizes = components(mask)
    return labels == 1 + int(sizes.argmax()) if len(sizes) else mask


def _deepest(missed: np.ndarray, false: np.ndarray, count: int, spacing: Sequence[float] | None) -> np.ndarray:
    pieces = [(size, labels, k) for labels, sizes in map(components, (missed, false)) for k, size in enumerate(sizes, 1)]
    best = sorted(pieces, key=lambda piece: -piece[0])[:count]  # a stable sort: misses first among equals
    deepest = [np.unravel_index(int(_depth(labels == k, spacing).argmax()), missed.shape) for _, labels, k in best]
    return np.array(deepest, int).reshape(-1, missed.ndim)


def _weighted(missed: np.ndarray, false: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    depths = _depth(missed, None), _depth(false, None)
    depth = max(depths, key=lambda d: float(d.sum()))  # the first of equals: misses
    places = np.argwhere(depth > 0)
    if not len(places):
        return places
    deep = depth[tuple(places.T)].astype(np.float64)
    weight = np.exp(deep - deep.max()) - np.exp(-deep.max())  # exp(d) - 1, scaled so that it cannot overflow
    return places[rng.choice(len(places), size=count, p=weight / weight.sum())]


def _depth(mask: np.ndarray, spacing: Sequence[float] | None) -> np.ndarray:
    """Distance to the nearest voxel outside, the image's border being outside; mm, or voxels."""
    from edt import edt

    size = tuple(spacing) if spacing is not None else (1.0,) * mask.ndim
    return edt(np.ascontiguousarray(mask, np.uint8), anisotropy=size, black_border=True)


def _centre_line(mask: np.ndarray) -> np.ndarray:
    """(n, d): the longest of the shortest ways along the skeleton, found by walking to the far end twice."""
    from scipy.sparse.csgraph import dijkstra
    from scipy.spatial import cKDTree
    from skimage.morphology import skeletonize

    nodes = np.argwhere(skeletonize(mask))
    if not len(nodes):  # thinner than the thinning leaves
        nodes = np.argwhere(mask)
    near = cKDTree(nodes)
    links = near.sparse_distance_matrix(near, 1.01 * mask.ndim**0.5, output_type="coo_matrix").tocsr()
    start = int(_far(dijkstra(links, indices=0)))
    lengths, before = dijkstra(links, indices=start, return_predecessors=True)
    way = [int(_far(lengths))]
    while way[-1] != start:
        way.append(int(before[way[-1]]))
    return nodes[way]


def _far(lengths: np.ndarray) -> int:
    return int(np.where(np.isfinite(lengths), lengths, -1).argmax())
