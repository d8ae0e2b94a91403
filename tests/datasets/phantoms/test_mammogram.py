"""The mammogram phantom: both views show the same breast, a star in one view is no proof, answers are true."""

from dataclasses import replace

import numpy as np
import pytest

from vesalius.core.errors import UsageError
from vesalius.datasets.phantoms import open_phantom
from vesalius.datasets.phantoms.mammogram import Clouds, chord, spicules, thickness, tissue
from vesalius.metrics.classification import auroc


@pytest.fixture(scope="module")
def manifest():
    return open_phantom("mammogram", cases=(40, 1, 1))


def drawn(manifest, **wanted):
    """The first training case whose answers are these, its Who and its Scene."""
    for place, ref in enumerate(r for r in manifest.cases if r.split == "train"):
        if all(ref.table[k] == v for k, v in wanted.items()):
            who = manifest.built_in.who("train", place)
            return manifest.built_in(ref), who, manifest.built_in.phantom.sketch(who)
    raise AssertionError(f"no case with {wanted}")


@pytest.mark.parametrize("angle", [0.0, 30.0, 47.3, 90.0])
def test_a_projection_holds_all_tissue_whatever_the_angle(angle):
    rng = np.random.default_rng(0)
    at = rng.uniform(-12, 12, (20, 3)) + [45, 0, 0]
    clouds = Clouds(at, rng.normal(0, 4, (20, 3)), rng.uniform(0.4, 5, 20), rng.uniform(10, 500, 20))
    assert thickness(clouds, angle).sum() == pytest.approx(clouds.volume.sum(), rel=2e-3)
    centre, radii = np.array([40.0, 8, -5]), np.array([6.0, 8, 9])
    assert chord(centre, radii, angle).sum() == pytest.approx(4 / 3 * np.pi * radii.prod(), rel=0.01)
    ball = chord(centre, np.full(3, 7.0), angle)
    assert ball.max() == pytest.approx(14, abs=0.2)


def test_a_strand_has_the_thickness_of_its_rod():
    rod = Clouds.strands(np.array([[30.0, -10, 0]]), np.array([[60.0, -10, 0]]), np.array([1.5]))
    assert thickness(rod, 0.0)[:, 45].max() == pytest.approx(3.0, rel=0.15)


def test_a_mass_is_as_far_from_the_chest_wall_in_both_views(manifest):
    for ref in manifest.cases[:12]:
        case = manifest.built_in(ref)
        masks = {v: case.labels[v].data for v in ("CC", "MLO")}
        if ref.table["mass"] == "none":
            assert not any(m.any() for m in masks.values())
            continue
        columns = [np.flatnonzero((m > 0).any(0)) for m in masks.values()]
        assert abs(columns[0].mean() - columns[1].mean()) < 1 and abs(len(columns[0]) - len(columns[1])) <= 1
        assert all(set(np.unique(m)) == {0, 1 + ref.table["malignant"]} for m in masks.values())


def test_a_decoy_is_a_star_in_its_own_view_and_falls_apart_in_the_other(manifest):
    case, who, scene = drawn(manifest, mass="round", decoy="CC")
    star = replace(scene, table={**scene.table, "mass": "spiculated", "decoy": "none"})
    bare = replace(scene, table={**scene.table, "mass": "round", "decoy": "none"})
    angles = {"CC": 0.0, "MLO": scene.table["angle"]}
    shown = {
        name: {v: thickness(tissue(who, s), a) - thickness(tissue(who, bare), a) for v, a in angles.items()}
        for name, s in (("decoy", scene), ("star", star))
    }
    np.testing.assert_allclose(shown["decoy"]["CC"], shown["star"]["CC"], atol=1e-3)
    apart = np.abs(shown["decoy"]["MLO"] - shown["star"]["MLO"]).sum() / shown["star"]["MLO"].sum()
    assert apart > 1.2  # of 2: little in common


def test_spicules_start_at_the_rim_and_leave_it():
    start, end, radius = spicules(np.random.default_rng(1), np.array([6.0, 7, 8]))
    assert (((start / [6, 7, 8]) ** 2).sum(1) < 1).all() and (((end / [6, 7, 8]) ** 2).sum(1) > 1).all() and (radius > 0).all()


def test_neither_size_nor_clutter_nor_a_star_in_one_view_tells_cancer():
    rows = [r.table for r in open_phantom("mammogram", cases=(600, 1, 1), normal=0.0).cases]
    sick = np.array([r["malignant"] for r in rows])
    assert 0.44 < sick.mean() < 0.56
    assert 0.44 < auroc(np.array([r["mass_mm3"] for r in rows]), sick) < 0.56
    hidden = np.array([r["clutter"] != "none" for r in rows])
    assert hidden[sick == 1].mean() == pytest.approx(hidden[sick == 0].mean(), abs=0.08)
    decoys = np.array([r["decoy"] != "none" for r in rows])
    assert not decoys[sick == 1].any() and decoys[sick == 0].mean() == pytest.approx(0.45, abs=0.08)


def test_no_case_is_confused_in_both_views_and_options_turn_it_off():
    assert all("none" in (r.table["decoy"], r.table["clutter"]) for r in open_phantom("mammogram").cases)
    plain = open_phantom("mammogram", decoys=0.0, clutter=0.0, normal=0.0)
    assert all(r.table["decoy"] == r.table["clutter"] == "none" != r.table["mass"] for r in plain.cases)


def test_label_maps_are_those_of_the_views_and_answers_are_hidden(manifest):
    case, _, _ = drawn(manifest, malignant=1)
    assert set(case.labels) == {"CC", "MLO"} == set(manifest["train-000"].labels)
    assert case.images["CC"].data.dtype == np.uint16 and not case.without_labels().table and not case.without_labels().labels
    few = open_phantom("mammogram", cases=(3, 1, 1), labelled=1)
    assert [bool(r.labels) for r in few.cases] == [True, False, False, True, True] and few["train-002"].table["malignant"] is None
    with pytest.raises(UsageError, match="no further raters"):
        open_phantom("mammogram", raters=2)
