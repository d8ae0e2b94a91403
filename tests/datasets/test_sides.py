"""A mirrored label, or a mirrored header, is seen by anatomy: by names, or against the other cases; an honest dataset is not accused."""

import numpy as np
import pytest

from vesalius.core.case import LabelMap
from vesalius.core.geometry import Geometry
from vesalius.datasets import check, open_dataset
from vesalius.datasets.sides import MIDDLE, centres, unlike_the_others, wrong_by_name

from .folders import volume, written

TOML = 'name = "organs"\nmodality = "CT"\ndims = 3\n\n[labels]\n"background" = 0\n"{one}" = 1\n"{two}" = 2\n'
RAS = np.diag([2.0, 3.0, 4.0, 1.0])


def affine(kind: str, shape) -> np.ndarray:
    """The same body stored as RAS or LPS, or tilted by 20 degrees."""
    if kind == "lps":
        flip = np.diag([-1.0, -1.0, 1.0, 1.0])
        flip[:2, 3] = [n - 1 for n in shape[:2]]
        return RAS @ flip
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    return RAS if kind == "ras" else np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ RAS


def organs(kind: str = "ras", shape=(20, 8, 6)) -> np.ndarray:
    """Class 1 to the patient's right and bigger, class 2 to the left."""
    data = np.zeros(shape, np.uint8)
    data[13:18, 1:5, 2:4], data[2:5, 4:7, 1:3] = 1, 2
    return data[::-1, ::-1].copy() if kind == "lps" else data


def folder(tmp_path, kinds, names=("liver", "spleen"), mirror=()):
    rows = ["case,patient,image:CT,label:reference"]
    for k, kind in enumerate(kinds):
        data, grid = organs(kind), affine(kind, (20, 8, 6))
        noise = np.random.default_rng(k).integers(0, 99, data.shape).astype(np.int16)
        if mirror and k == mirror[0]:
            data = data[::-1].copy() if mirror[1] == "label" else data
            grid = grid @ np.diag([-1.0, 1, 1, 1]) if mirror[1] == "header" else grid
        volume(tmp_path / f"i{k}.nii.gz", noise, grid)
        volume(tmp_path / f"l{k}.nii.gz", data, grid)
        rows.append(f"c{k},p{k},i{k}.nii.gz,l{k}.nii.gz")
    return open_dataset(written(tmp_path, "\n".join(rows) + "\n", TOML.format(one=names[0], two=names[1])))


def accused(manifest) -> list[str]:
    return [f"{f.where}: {f.text}" for f in check(manifest) if "mirrored" in f.text]


@pytest.mark.parametrize("kind", ["ras", "lps", "oblique"])
def test_a_centre_is_the_world_mean_of_its_voxels(kind):
    data, geometry = organs(kind), Geometry((20, 8, 6), affine(kind, (20, 8, 6)))
    at = centres(LabelMap(data, geometry), ("background", "liver", "spleen", "absent"))
    for k, name in ((1, "liver"), (2, "spleen")):
        assert at[name] == pytest.approx(geometry.to_world(np.argwhere(data == k))[:, 0].mean())
    assert at["liver"] > at[MIDDLE] > at["spleen"] and "absent" not in at
    maps = LabelMap(np.stack([data == 0, data == 1, data == 2]), geometry, overlapping=True)
    assert centres(maps, ("background", "liver", "spleen")) == pytest.approx({n: x for n, x in at.items()})


@pytest.mark.parametrize("what", ["label", "header"])
@pytest.mark.parametrize("names", [("liver", "spleen"), ("kidney_right", "kidney_left"), ("Right lung", "Left lung")])
def test_names_tell_on_which_side_an_organ_lies(tmp_path, what, names):
    found = accused(folder(tmp_path, ["ras", "lps", "oblique"], names, (1, what)))
    assert len(found) == 1 and found[0].startswith("case c1") and f"'{names[0]}' lies left of '{names[1]}'" in found[0]


def test_without_telling_names_the_other_cases_tell(tmp_path):
    kinds = ["ras", "lps", "oblique"] * 3
    (found,) = accused(folder(tmp_path / "one", kinds, ("a", "b"), (4, "label")))
    assert found.startswith("case c4") and "in 8 of 9 cases" in found
    assert accused(folder(tmp_path / "all", kinds, ("a", "b"))) == []


def test_what_lies_on_either_side_accuses_nobody():
    cases = {f"c{k}": {MIDDLE: 0.0, "tumour": 30.0 * (-1) ** k} for k in range(20)}
    assert unlike_the_others(cases) == {}
    near = {f"c{k}": {MIDDLE: 0.0, "cord": 12.0} for k in range(20)} | {"odd": {MIDDLE: 0.0, "cord": -3.0}}
    assert unlike_the_others(near) == {}, "three millimetres are nobody's side"
    few = {f"c{k}": {MIDDLE: 0.0, "a": 20.0 if k else -20.0} for k in range(5)}
    assert unlike_the_others(few) == {} and wrong_by_name({MIDDLE: 0.0, "left atrium": 40.0}) == []
