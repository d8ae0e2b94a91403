"""Left and right: a label mirrored in a correct header, or an image under a mirrored one, betrays itself by anatomy alone.

Two rules, both on centres of mass along the patient's left-right axis (mm, RAS: right is larger). A name says where an organ lies
relative to another ('kidney_left' and 'kidney_right', the liver and the spleen); and where nearly all cases of a dataset agree on which
side of another structure, or of the image's middle, one lies, a case that clearly disagrees is shown. Either may be a rare anatomy
(situs inversus), so what comes of them is a warning. Two-dimensional images have no patient frame and are not judged.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from ..core.case import LabelMap

MIDDLE = "the middle of the image"
CLEAR = 8.0  # mm off to a side; nearer is nobody's side
AGREE = 0.85  # of the cases that lie clearly to a side
ENOUGH = 8  # such cases
RIGHT_OF = (("liver", "spleen"), ("liver", "stomach"), ("liver", "heart"), ("gallbladder", "spleen"), ("gallbladder", "stomach"))
_SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])")


def centres(label: LabelMap, names: Sequence[str]) -> dict[str, float]:
    """How far right each class's centre of mass lies, mm, and the image's middle; classes without a voxel are left out."""
    right, shift = label.geometry.affine[0, :3], float(label.geometry.affine[0, 3])
    total, sums = np.zeros(len(names)), np.zeros(len(names))
    for axis in np.flatnonzero(np.abs(right) > 1e-9 * np.abs(right).max()):
        profile = _profile(label, int(axis), len(names))
        total = profile.sum(0)
        sums += right[axis] * (np.arange(len(profile)) @ profile)
    out = {MIDDLE: float(label.geometry.to_world((np.array(label.geometry.shape) - 1) / 2)[0])}
    return out | {names[k]: float(sums[k] / total[k] + shift) for k in range(1, len(names)) if total[k]}


def _profile(label: LabelMap, axis: int, classes: int) -> np.ndarray:
    """(n, classes): voxels of each class in each plane across ``axis``."""
    data = np.asarray(label.data)
    if label.overlapping:
        return np.stack([mask.sum(tuple(b for b in range(3) if b != axis)) for mask in data], axis=1)
    planes = np.moveaxis(data, axis, 0)
    return np.stack([np.bincount(plane[plane >= 0].ravel(), minlength=classes) for plane in planes])


def wrong_by_name(at: Mapping[str, float]) -> list[str]:
    """Sentences about one case whose structures lie against what their names say."""
    return [
        f"'{right}' lies left of '{left}': is the label, or the header, mirrored?"
        for right, left in _ordered([n for n in at if n != MIDDLE])
        if at[left] - at[right] > CLEAR
    ]


def unlike_the_others(cases: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """A sentence for each case whose structures lie on the other side than nearly everybody's; nothing where the dataset does not agree."""
    offsets: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for case, at in cases.items():
        for name, x in at.items():
            for other in at:
                if name != MIDDLE and (other == MIDDLE or other > name) and abs(x - at[other]) > CLEAR:
                    offsets[name, other][case] = x - at[other]
    out: dict[str, str] = {}
    for (name, other), by_case in offsets.items():
        right = sum(x > 0 for x in by_case.values())
        usual, total = max(right, len(by_case) - right), len(by_case)
        if total < ENOUGH or usual < AGREE * total:
            continue
        side, other_side = ("right", "left") if 2 * right > total else ("left", "right")
        for case, x in by_case.items():
            if (x > 0) != (side == "right"):
                text = f"'{name}' lies {other_side} of {_quoted(other)}, {side} of it in {usual} of {total} cases: is it mirrored?"
                out.setdefault(case, text)
    return out


def _ordered(names: Sequence[str]) -> list[tuple[str, str]]:
    """(right, left) of the pairs whose names tell."""
    lower = {n.lower(): n for n in names}
    known = [(lower[one], lower[two]) for one, two in RIGHT_OF if one in lower and two in lower]
    sided = [(n, lower.get(_SIDE.sub(lambda m: "left" if m[1] == "right" else "right", n.lower()))) for n in names]
    return known + [(n, twin) for n, twin in sided if twin and (m := _SIDE.search(n.lower())) and m[1] == "right"]


def _quoted(name: str) -> str:
    return name if name == MIDDLE else f"'{name}'"
