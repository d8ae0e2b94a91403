"""LandmarkRecipe: where points come from, what a case lacks, and the way home to the original grid."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vesalius.core.case import Batch, Case, Image, LabelMap, Points
from vesalius.core.errors import DataError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import CaseRef, Manifest
from vesalius.core.method import Clock, Stage
from vesalius.core.plan import Plan
from vesalius.datasets import open_dataset, read_case
from vesalius.engine import api
from vesalius.engine.infer import infer
from vesalius.engine.prepare import Cache
from vesalius.engine.sample import Draws
from vesalius.methods.landmarks import LandmarkRecipe, divergence, squared_error
from vesalius.networks.blocks.graph import pooling
from vesalius.networks.hybridgnet import HybridGNet
from vesalius.ops.raster import fill

SHAPE = (80, 120)
GRID = Geometry(SHAPE, np.array([[0.5, 0, 3], [0, 2.0, -7], [0, 0, 1]]))


def disc(centre, radius) -> np.ndarray:
    return np.hypot(*(np.indices(SHAPE) - np.reshape(centre, (2, 1, 1)))) <= radius


LUNGS = disc((40, 30), 20), disc((42, 90), 22)


class Still(nn.Module):
    """Answers every image with the same circles; one weight."""

    def __init__(self, in_channels, nodes, size):
        super().__init__()
        turn = [torch.linspace(0, 2 * torch.pi, n + 1)[:-1] for n in nodes]
        middle = [(0.5, (k + 0.5) / len(nodes)) for k in range(len(nodes))]
        circles = [torch.stack([y - 0.2 * torch.cos(t), x + 0.1 * torch.sin(t)], 1) for t, (y, x) in zip(turn, middle, strict=True)]
        self.points = nn.Parameter(torch.cat(circles))
        self.register_buffer("pool", pooling(nodes), persistent=False)

    def forward(self, image):
        points = self.points.expand(len(image), -1, -1)
        code = image.new_zeros(len(image), 4)
        return {"points": points, "points before 2": self.pool @ points, "mu": code, "logvar": code}


def manifest(classes=("lung",), points=(), cases=1, labelled=True) -> Manifest:
    labels = {"background": 0, **{c: k + 1 for k, c in enumerate(classes)}}
    rows = tuple(
        CaseRef(f"c{i}", f"c{i}", labels={"reference": ""} if labelled else {}, points=dict.fromkeys(points, "")) for i in range(cases)
    )
    return Manifest("made", Path("."), 2, ("XR",), labels, rows)


def plan(classes=("lung",), **more) -> Plan:
    names = ("background", *classes)
    return Plan(**{**dict(dims=2, channels=("XR",), in_channels=1, classes=names, patch=(70, 90), batch=2, workers=0, threads=1), **more})


def recipe(classes=("lung",), points=(), network=Still, **options) -> LandmarkRecipe:
    torch.manual_seed(0)
    return LandmarkRecipe(plan(classes), manifest(classes, points), network=network, **options)


def case(label=LUNGS[0] | LUNGS[1], names=("background", "lung"), points=None, **more) -> Case:
    image = Image(np.random.default_rng(0).random((1, *SHAPE), np.float32), GRID)
    reference = LabelMap(label.astype(np.int16), GRID, names, **more)
    return Case("c0", images={"XR": image}, labels={"reference": reference}, points=points or {})


RNG = np.random.default_rng(0)


# ------------------------------------------------------------------------------------------------------------------------- structures
def facts(method) -> list[tuple]:
    return [(s.name, s.nodes, s.paints) for s in method.structures]


def test_what_the_data_set_has_decides_the_structures():
    assert facts(recipe()) == [("lung 1", 40, "lung"), ("lung 2", 40, "lung")]
    assert facts(recipe(("liver", "spleen"), nodes=(12, 13))) == [("liver", 12, "liver"), ("spleen", 13, "spleen")]
    points = ("right_lung", "left_lung", "heart")
    assert facts(recipe(points=points)) == [("right_lung", 44, "lung"), ("left_lung", 50, "lung"), ("heart", 26, "")]
    whole = recipe(("right lung", "left lung", "heart"), points)
    assert [s.paints for s in whole.structures] == ["right lung", "left lung", "heart"]
    assert facts(recipe(points=points, structures=("heart", "lung*2"), nodes=(9,))) == [
        ("heart", 9, ""), ("lung 1", 9, "lung"), ("lung 2", 9, "lung"),
    ]  # fmt: skip


def test_the_input_is_of_one_size_that_can_be_halved():
    assert recipe().plan.patch == (96, 96) and recipe().plan.grid.size == (96, 96)
    assert recipe(size=(30, 129)).plan.patch == (64, 160)


@pytest.mark.parametrize(
    "options, what",
    [
        ({"structures": ("kidney",)}, "called 'kidney'"),
        ({"structures": ("lung", "lung")}, "named twice"),
        ({"nodes": (40, 40, 40)}, "three points"),
        ({"nodes": (2,)}, "three points"),
        ({"size": (64,)}, "two positive sides"),
    ],
)
def test_impossible_options_are_refused(options, what):
    with pytest.raises(UsageError, match=what):
        recipe(**options)


def test_volumes_have_no_outline():
    with pytest.raises(UsageError, match="3D"):
        LandmarkRecipe(plan().derive(dims=3, patch=(64, 64, 64)), manifest(), network=Still)


# ------------------------------------------------------------------------------------------------------------------------------ points
def test_points_are_sampled_along_each_lung_in_world_mm():
    found = recipe(nodes=(24,)).derive(case(), RNG, training=True).points
    for name, centre, radius in (("lung 1", (40, 30), 20), ("lung 2", (42, 90), 22)):
        index = GRID.to_index(found[name].xyz)
        assert index.shape == (24, 2) and np.abs(np.hypot(*(index - centre).T) - radius).max() < 0.7
        assert index[0, 0] == index[:, 0].min()  # the apex


def test_prediction_derives_nothing():
    given = case()
    assert recipe().derive(given, RNG, training=False) is given


def test_what_a_case_lacks_has_no_points():
    one = recipe().derive(case(LUNGS[1]), RNG, training=True).points
    assert len(one["lung 1"].xyz) == 0 and len(one["lung 2"].xyz) == 40
    unsaid = case(annotated=frozenset({"heart"}))
    for given in (case().without_labels(), case(np.zeros(SHAPE)), unsaid, case(names=("background", "liver"))):
        assert all(len(p.xyz) == 0 for p in recipe().derive(given, RNG, training=True).points.values())
    points = recipe(points=("heart",)).derive(case(), RNG, training=True).points
    assert points["heart"].xyz.shape == (0, 2)


def test_overlapping_maps_are_read_by_name():
    label = LabelMap(np.stack([LUNGS[0], LUNGS[0] | LUNGS[1]]), GRID, ("heart", "lung"), overlapping=True)
    given = replace(case(), labels={"reference": label})
    found = recipe(("heart", "lung")).derive(given, RNG, training=True).points
    assert [len(found[k].xyz) for k in ("heart", "lung 1", "lung 2")] == [26, 40, 40]


def test_bad_points_are_refused_with_case_and_remedy():
    method = recipe(points=("heart",), nodes=(5,))
    inside = GRID.to_world(np.array([[10, 10], [10, 50], [30, 60], [50, 50], [50.0, 10]]))
    assert np.array_equal(method.derive(case(points={"heart": Points(inside)}), RNG, training=True).points["heart"].xyz, inside)
    for wrong, what in (
        (inside[:4], r"case c0, points 'heart'.*another number.*nodes="),
        (inside + [0, 500], r"5 of 5 landmarks lie outside.*\"space\": \"index\""),
        (np.where([[True], [False], [False], [False], [False]], np.nan, inside), "1 of 5 landmarks lie outside"),
    ):
        with pytest.raises(DataError, match=what):
            method.derive(case(points={"heart": Points(wrong)}), RNG, training=True)


# ---------------------------------------------------------------------------------------------------------------------------- learning
def batch(method, missing=()) -> Batch:
    rows = {o: [np.full((n, 2), 20.0 + i) for i in range(2)] for o, n in method.organs.items()}
    for organ, i in missing:
        rows[organ][i] = np.zeros((0, 2))
    return Batch(torch.zeros(2, 1, 96, 96), {}, None, ["a", "b"], points=rows)


def test_missing_structures_teach_nothing():
    method = recipe(nodes=(8,))
    whole = method.losses(batch(method), Clock(0, 10))
    assert set(whole) == {"points", "points before 2", "kl"}
    part = method.losses(batch(method, missing=[("lung 1", 1)]), Clock(0, 10))
    sum(part.values()).backward()
    assert not torch.isnan(method.network.points.grad).any()
    only = recipe(nodes=(8,))
    terms = only.losses(batch(only, missing=[("lung 1", 0), ("lung 1", 1)]), Clock(0, 10))
    sum(terms.values()).backward()
    assert not only.network.points.grad[:8].any() and only.network.points.grad[8:].all()
    none = method.losses(batch(method, missing=[(o, i) for o in method.organs for i in range(2)]), Clock(0, 10))
    assert float(none["points"].detach()) == float(none["points before 2"].detach()) == 0


def test_squared_error_and_divergence_by_hand():
    points = torch.zeros(1, 3, 2)
    truth = torch.tensor([[[1.0, 1], [3, 1], [9, 9]]])
    assert float(squared_error(points, truth, torch.tensor([[True, True, False]]))) == (1 + 5) / 2
    zero = torch.zeros(2, 5)
    assert float(divergence(zero, zero)) == 0
    assert float(divergence(zero + 2, zero)) == pytest.approx(2.0)
    normal = torch.distributions
    exact = normal.kl_divergence(normal.Normal(torch.tensor(0.3), torch.tensor(1.7)), normal.Normal(0.0, 1.0))
    assert float(divergence(zero + 0.3, zero + 2 * np.log(1.7))) == pytest.approx(float(exact), rel=1e-5)


def test_the_rate_falls_by_a_tenth_fifty_times_whatever_the_budget():
    method = recipe()
    for total in (100, 5000):
        rates = [method.learning_rate(Clock(i, total)) for i in range(total)]
        assert rates[0] == 1 and rates[-1] == pytest.approx(0.9**49) and len(set(rates)) == 50


def test_points_move_with_the_image_and_are_never_mirrored(tmp_path, monkeypatch):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path))
    data = open_dataset("phantom:chest-radiograph?structures=organs&cases=6&nodules=0")
    plans, _ = api.plan_for(data, data.split(), overrides={"batch": 2, "workers": 0, "threads": 1})
    method = LandmarkRecipe(plans.derive(patch=(64, 64)), data, network=Still)
    assert plans.mirror_axes and plans.augmentation
    cases = [Cache(data, method.plan, method, api.reader(data))[c] for c in data.split().train[:2]]
    draws = Draws(cases, method, data, Stage(), seed=0, number=0)
    moved = set()
    for i in range(12):
        drawn = draws[i]
        at = method.fractions(drawn)
        assert at.shape == (2, 120, 2) and not at.isnan().any()
        right, left = at[:, :44].mean(1), at[:, 44:94].mean(1)
        assert (right[:, 1] < left[:, 1]).all()
        apart = torch.stack([drawn.labels["reference"][b][tuple((at[b, 10:40] * 64).long().clamp(0, 63).T)] for b in range(2)])
        assert (apart > 0).float().mean() > 0.3  # points lie on the border of what the label shows
        moved |= set(right[:, 0].tolist())
    assert len(moved) > 2


# ----------------------------------------------------------------------------------------------------------------------- the way home
def test_outlines_are_filled_on_the_original_grid():
    method = recipe(nodes=(60,))
    answer = infer(method, case(), method.plan)
    label = answer.label
    assert label.geometry == GRID and label.data.shape == SHAPE and label.names == ("background", "lung")
    y, x = (np.indices(SHAPE) + 0.5) / np.reshape(SHAPE, (2, 1, 1))
    inside = [((y - 0.5) / 0.2) ** 2 + ((x - c) / 0.1) ** 2 for c in (0.25, 0.75)]
    assert ((np.minimum(*inside) < 0.93) <= (label.data == 1)).all() and ((np.minimum(*inside) > 1.07) <= (label.data == 0)).all()
    index = GRID.to_index(answer.points["lung 2"].xyz)
    np.testing.assert_allclose((index[0] + 0.5) / SHAPE, [0.3, 0.75], atol=1e-6)
    assert list(answer.outlines) == ["lung 1", "lung 2"]


def test_later_structures_lie_over_earlier_ones_and_some_paint_nothing():
    method = recipe(("a", "b"), structures=("a", "b"), nodes=(40,))
    painted = infer(method, case(), method.plan)
    assert set(np.unique(painted.label.data)) == {0, 1, 2}
    points = recipe(("liver",), points=("heart",))
    assert not infer(points, case(), points.plan).label.data.any()


def test_a_run_opened_without_its_data_knows_its_structures():
    method = recipe(points=("right_lung", "heart"), nodes=(7, 9))
    nn.init.normal_(method.network.points)
    tensors, state = method.state()
    bare = LandmarkRecipe(plan(), replace(manifest(), cases=()), network=Still)
    assert bare.organs != method.organs
    bare.load_state(tensors, state)
    assert bare.structures == method.structures and torch.equal(bare.network.points, method.network.points)
    asked = LandmarkRecipe(plan(), replace(manifest(), cases=()), network=Still, structures=("right_lung", "heart"), nodes=(7, 9))
    asked.load_state(tensors, state)
    assert asked.structures == method.structures


def test_landmarks_of_real_lungs_give_the_masks_back(shared):
    data = open_dataset(shared / "2d" / "cxr_lungs")
    method = LandmarkRecipe(plan().derive(channels=data.channels), data, network=Still)
    assert list(method.organs) == ["lung 1", "lung 2"]
    for ref in data.cases[::17]:
        given = read_case(data, ref.id)
        points = method.derive(given, RNG, training=True).points
        truth = np.asarray(given.labels["reference"].data) == 1
        drawn = [fill(points[k].xyz, given.geometry) for k in method.organs]
        assert not (drawn[0] & drawn[1]).any()
        found = drawn[0] | drawn[1]
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.985
        assert points["lung 1"].xyz[:, 1].mean() < points["lung 2"].xyz[:, 1].mean()


def test_a_few_cases_can_be_learnt_by_heart():
    method = recipe(network=small, nodes=(10,), lr=1e-2)
    turn = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    circle = np.stack([-np.cos(turn), np.sin(turn)], 1)
    shown = [{"lung 1": (30 + 10 * i) + 12 * circle, "lung 2": (60 - 5 * i) + 9 * circle} for i in range(2)]
    image = torch.zeros(2, 1, 96, 96)
    image[0, 0, 20:40, 20:40] = image[1, 0, 30:60, 30:60] = 1
    data = Batch(image, {}, None, ["a", "b"], points={o: [s[o] for s in shown] for o in method.organs})
    (adam,) = method.optimizers().values()
    values = []
    for step in range(40):
        torch.manual_seed(step)
        loss = sum(method.losses(data, Clock(step, 40)).values())
        adam.zero_grad()
        loss.backward()
        adam.step()
        values.append(float(loss.detach()))
    assert np.mean(values[-5:]) < 0.2 * np.mean(values[:5])


def test_the_proof_hides_the_same_part_of_test_images_alone():
    made = runpy.run_path(str(Path(__file__).parents[2] / "proofs" / "shape" / "hybridgnet.py"))
    arms = {a.name: a for a in made["study"]().arms}
    given = case()
    dark = []
    for name in ("unet, part hidden", "hybridgnet, part hidden"):
        method = arms[name].method(plan(patch=(64, 64)), manifest())
        native = given.images["XR"].data
        assert np.array_equal(method.derive(given, RNG, training=True).images["XR"].data, native)
        hidden = method.derive(given, RNG, training=False).images["XR"].data
        dark.append(hidden != native)
        assert (hidden[dark[-1]] == native.min()).all() and dark[-1].mean() == pytest.approx(made["BOX"] ** 2, abs=0.01)
    assert np.array_equal(*dark)


def small(in_channels, nodes, size):
    return HybridGNet(in_channels, nodes, size, channels=(4, 8, 8, 16, 16, 16), latent=8, order=3)
