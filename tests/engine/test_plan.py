"""What a plan decides from the training cases: pictures as small as their labels bear and the minutes ask for."""

import json

import numpy as np
import pytest

from tests.datasets.folders import picture, written
from vesalius.core.geometry import LongestSide
from vesalius.core.plan import Fingerprint
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.engine import plan as planning

SIDE = 400


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.setattr(planning, "cores", lambda: 2)


def pictures(folder, label):
    rows = ["case,patient,split,image:grey,label:reference"]
    for k in range(4):
        picture(folder / f"i{k}.png", np.random.default_rng(k).integers(0, 255, label.shape).astype(np.uint8))
        picture(folder / f"l{k}.png", label)
        rows.append(f"c{k},c{k},{'test' if k == 3 else 'train'},i{k}.png,l{k}.png")
    toml = 'name = "small"\ndims = 2\n[labels]\n"background" = 0\n"thing" = 1\n'
    return open_dataset(written(folder, "\n".join(rows) + "\n", toml))


def planned(manifest, **how):
    return api.plan_for(manifest, manifest.split(), device="cpu", **how)


def disc():
    y, x = np.mgrid[:SIDE, :SIDE]
    return ((y - 150) ** 2 + (x - 220) ** 2 < 90**2).astype(np.uint8)


def lines(width):
    label = np.zeros((SIDE, SIDE), np.uint8)
    for start in range(20, SIDE - 20, 40):
        label[start : start + width, 30:-30] = 1
    return label


def test_a_large_thing_is_learnt_from_a_small_picture(tmp_path, cores):
    plan, facts = planned(pictures(tmp_path, disc()))
    assert plan.grid == LongestSide(192) and plan.patch == (192, 192)
    assert facts.kept[96] > 0.97 and facts.kept[512] == 1.0
    assert list(facts.kept.values()) == sorted(facts.kept.values())


@pytest.mark.parametrize(("width", "grid"), [(1, LongestSide(320)), (12, LongestSide(192))])
def test_fine_structures_are_seen_as_they_are_in_parts(tmp_path, cores, width, grid):
    plan, facts = planned(pictures(tmp_path, lines(width)), minutes=60)
    assert plan.grid == grid, facts.kept
    assert plan.patch == (192, 192)
    assert ("fine structures" in plan.reasons["grid"]) == (width == 1)


@pytest.mark.parametrize(("minutes", "side"), [(0.5, 96), (2, 96), (4, 128), (30, 192), (None, 192)])
def test_few_minutes_are_for_small_pictures(tmp_path, cores, minutes, side):
    plan, _ = planned(pictures(tmp_path, disc()), minutes=minutes)
    assert plan.grid == LongestSide(side) and max(plan.patch) == side
    assert planned(pictures(tmp_path, lines(1)), minutes=minutes)[0].grid == LongestSide(320)


def test_minutes_do_not_change_volumes(cores):
    manifest = open_dataset("phantom:shapes-3d?cases=8")
    assert planned(manifest, minutes=1)[0] == planned(manifest)[0]
    assert planned(manifest)[1].kept == {}


@pytest.mark.parametrize(
    ("shape", "spacing", "first"),
    [((512, 512, 7), (1, 1, 1), (3, 3, 3)), ((10, 200, 200), (10, 1.5, 1.5), (1, 3, 3)), ((300, 300, 6), (3, 3, 1), (1, 1, 3))],
    ids=["thin slab", "thick slices", "thin slab of coarse pixels"],
)
def test_an_axis_is_convolved_along_once_it_was_and_wherever_it_is_halved(shape, spacing, first):
    _, strides, kernels = planning._topology(np.array(shape), np.array(spacing), 64**3)
    assert kernels[0] == first and len(strides) == len(kernels) > 3
    for before, now, step in zip(kernels[:-1], kernels[1:], strides[1:], strict=True):
        assert all(k >= max(b, s) for b, k, s in zip(before, now, step, strict=True)), (strides, kernels)


def test_the_facts_survive_their_file(tmp_path):
    facts = planned(pictures(tmp_path, disc()))[1]
    assert Fingerprint.from_json(json.loads(json.dumps(facts.to_json()))) == facts
