"""Pairs of cases: which a registration answers, what its field does to the moving side, and what that is scored against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..core.case import Case
from ..core.errors import DataError
from ..core.manifest import Manifest
from ..core.method import Method
from ..core.prediction import Prediction
from ..ops.register import Transform


def units(method: Method, manifest: Manifest, ids: Sequence[str], read: Callable[[str], Case], *, most: int | None = None) -> Units:
    """What the method answers of the cases ``ids``: each, or the pairs among them; at most ``most``, of pairs an even selection."""
    if method.unit == "case":
        return Units([(i,) for i in ids][:most], read)
    pairs = manifest.pairs_in(ids)
    if not pairs and len(ids) > 1:
        fix = "declare pairs of cases of one split in pairs.csv, or none"
        raise DataError("no pair has both of its cases here", where=manifest.name, found=f"{len(ids)} cases", fix=fix)
    chosen = range(len(pairs)) if most is None or len(pairs) <= most else np.linspace(0, len(pairs) - 1, most).round().astype(int)
    return Units([pairs[i] for i in chosen], read)


class Units:
    """Cases or pairs, read when it is their turn."""

    def __init__(self, ids: Sequence[tuple[str, ...]], read: Callable[[str], Case]):
        self.ids, self.read = ids, read

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Case]:
        for one in self.ids:
            cases = [self.read(i) for i in one]
            yield cases[0] if len(cases) == 1 else Case.pair(*cases)


def laid_over(answer: Prediction, pair: Case) -> Prediction:
    """The answer with the moving images as 'warped:<name>' and the moving label maps as labels, on the displacement's grid: images read
    linearly, labels by the nearest voxel. They are the engine's doing; the method has seen no label."""
    field = answer.displacement
    if field is None:
        return answer
    transform = Transform(field.geometry, np.eye(field.geometry.ndim + 1), field)
    _, moving = pair.sides()
    images = {f"warped:{name}": transform.apply(image) for name, image in moving.images.items()}
    labels = {name: transform.apply(label) for name, label in sorted(moving.labels.items(), key=lambda item: item[0] != "reference")}
    return answer.with_(images={**answer.images, **images}, labels={**answer.labels, **labels})


def fixed_side(pair: Case) -> Case:
    """What the answer for a pair is scored against: the fixed side's labels under their own names, and the points of both sides."""
    sides = pair.sides()
    return pair if sides is None else replace(pair, labels=dict(sides[0].labels))
