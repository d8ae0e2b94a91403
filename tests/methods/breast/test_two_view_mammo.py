"""two-view-mammo: one trunk for both views, a chain that hands it on, answers that need both views, and breasts with one view."""

import copy
import csv
import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from vesalius import catalog
from vesalius.core.case import IGNORE
from vesalius.core.errors import DataError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.engine.infer import infer
from vesalius.engine.prepare import prepare
from vesalius.io import write_image, write_labels
from vesalius.methods.breast.two_view_mammo import (
    PairClassifier,
    TwoViewMammo,
    marked_views,
    moved,
    patch_class,
    single_views,
    view_pairs,
)

ROOT = Path(__file__).resolve().parents[3]
PLAN = {"workers": 0, "threads": 1, "batch": 4, "precision": "32"}
SMALL = {"size": (64, 48), "tile": 24, "width": 0.25, "depth": 0.3, "drop_path": 0.0, "lr": 2e-3}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture(scope="module")
def data():
    return open_dataset("phantom:mammogram?cases=8,0,4")


@pytest.fixture(scope="module")
def plan(data):
    return api.plan_for(data, data.split(), overrides=PLAN)[0]


def built(plan, data, **options) -> TwoViewMammo:
    torch.manual_seed(0)
    return TwoViewMammo(plan, data, **{**SMALL, **options})


def settled(method, *names):
    """The parts with batch statistics of pictures, as after a training: untrained ones let the signal fade away."""
    images = torch.randn(8, 2, 64, 48, generator=torch.Generator().manual_seed(2))
    for name in names:
        part = method.parts[name].train()
        for m in part.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.momentum = 1.0
        with torch.no_grad():
            part(images if name == "pair" else images[:, :1])
        part.eval()
    return method


@pytest.fixture
def pair(plan, data) -> PairClassifier:
    return settled(built(plan, data), "pair").parts["pair"]


@pytest.fixture
def views() -> torch.Tensor:
    return torch.randn(3, 2, 64, 48, generator=torch.Generator().manual_seed(1))


class Lent:
    """A Run that notes what it is asked to train and changes the weights a little, as a training would."""

    def __init__(self):
        self.trunks, self.calls, self.logged = {}, [], {}

    def train(self, method, train, val, *, name="", share=1.0, unfold=None):
        state = method.trunk.state_dict()
        started = {k: v.clone() for k, v in state.items()}
        for v in state.values():
            v += 1
        self.trunks[name] = started, {k: v.clone() for k, v in state.items()}
        self.calls.append((name, tuple(train), tuple(val), share, unfold))

    def log(self, **values):
        self.logged |= values


# the two-view network ------------------------------------------------------------------------------------------------------------------
def test_both_views_go_through_one_trunk(pair, plan, data, views):
    """One parameter set, whose gradient is the sum of what each view gives it."""
    single = built(plan, data).parts["single"]
    size = lambda net: sum(p.numel() for p in net.parameters())
    assert size(pair.trunk) == size(single.trunk) == size(pair) - size(pair.head)

    def gradient(keep):
        maps = list(pair.trunk(torch.cat(views.chunk(2, 1))).chunk(2))
        joined = torch.cat([m if i in keep else m.detach() for i, m in enumerate(maps)], 1)
        return torch.autograd.grad(pair.head(joined).sum(), list(pair.trunk.parameters()))

    whole = torch.autograd.grad(pair(views)["malignant"].sum(), list(pair.trunk.parameters()))
    for total, of_cc, of_mlo in zip(whole, gradient({0}), gradient({1}), strict=True):
        torch.testing.assert_close(total, of_cc + of_mlo, atol=1e-4, rtol=1e-3)
    assert all(any(g.any() for g in gradient({i})) for i in (0, 1))


def seen_by_head(pair, image):
    seen = []
    handle = pair.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        pair(image)
    handle.remove()
    return seen[0]


def test_swapping_the_views_swaps_channels_before_the_head_and_nothing_else(pair, views):
    given, swapped = seen_by_head(pair, views), seen_by_head(pair, views.flip(1))
    n = pair.trunk.channels
    assert given.shape[1] == 2 * n
    torch.testing.assert_close(swapped, torch.cat([given[:, n:], given[:, :n]], 1))
    with torch.no_grad():
        torch.testing.assert_close(given[:, :n], pair.trunk(views[:, :1]))
        assert not torch.allclose(pair(views)["malignant"], pair(views.flip(1))["malignant"])


def test_the_same_picture_twice_is_a_valid_input(pair, views):
    twice = views[:, :1].expand(-1, 2, -1, -1)
    given = seen_by_head(pair, twice)
    torch.testing.assert_close(given[:, : pair.trunk.channels], given[:, pair.trunk.channels :])
    with torch.no_grad():
        assert torch.isfinite(pair(twice)["malignant"]).all()


def test_the_answer_depends_on_both_views(pair, views):
    with torch.no_grad():
        whole = pair(views)["malignant"]
        for view in (0, 1):
            gone = views.clone()
            gone[:, view] = 0
            assert not torch.allclose(pair(gone)["malignant"], whole)


@pytest.mark.parametrize("name", ["patch", "single", "pair"])
def test_nothing_is_frozen(name, plan, data, views):
    part = built(plan, data).parts[name].train()
    answer = part(views if name == "pair" else views[:, :1])
    next(iter(answer.values())).square().sum().backward()
    assert all(p.requires_grad and p.grad is not None and p.grad.any() for p in part.parameters())


# the chain -----------------------------------------------------------------------------------------------------------------------------
def test_each_stage_starts_with_the_trunk_of_the_last(plan, data):
    method, run = built(plan, data), Lent()
    method.fit(data.where("train"), (), run)
    assert [(c[0], round(c[3], 6), c[4]) for c in run.calls] == [
        ("patch", 0.3, marked_views),
        ("single", 0.3, single_views),
        ("pair", 0.4, view_pairs),
    ]
    for before, after in (("patch", "single"), ("single", "pair")):
        ended, started = run.trunks[before][1], run.trunks[after][0]
        assert all(torch.equal(ended[k], started[k]) for k in started)
    own = [method.parts[n].trunk.conv_stem.weight for n in ("patch", "single", "pair")]
    assert len({p.data_ptr() for p in own}) == 3  # pairs do not change what single views are answered by


def test_without_label_maps_the_chain_starts_with_views_and_keeps_the_budget(plan, data):
    bare = replace(data, cases=tuple(replace(c, labels={}) for c in data.cases))
    run = Lent()
    built(plan, bare).fit(data.where("train"), (), run)
    assert [c[0] for c in run.calls] == ["single", "pair"] and sum(c[3] for c in run.calls) == pytest.approx(1)
    assert run.logged == {"patch_cases": 0, "single_cases": 8, "pair_cases": 8}


def test_breasts_that_lack_a_view_or_an_answer_teach_what_they_can(plan, data):
    rows = list(data.cases)
    rows[0] = replace(rows[0], images={"CC": rows[0].images["CC"]})
    rows[1] = replace(rows[1], table={**rows[1].table, "malignant": None})
    method = built(plan, replace(data, cases=tuple(rows)))
    found = method.usable(data.where("train"))
    assert {k: len(v) for k, v in found.items()} == {"patch": 8, "single": 7, "pair": 6}
    assert rows[0].id not in found["pair"] and rows[1].id not in found["single"]
    alone = replace(data, cases=tuple(replace(c, images={"CC": c.images["CC"]}) for c in data.cases))
    with pytest.raises(DataError, match="both views"):
        built(plan, alone).fit(data.where("train"), (), Lent())


def test_pretrained_weights_go_into_the_first_trunk_alone(plan, data, tmp_path):
    from safetensors.torch import save_file

    given = built(plan, data).parts["single"].trunk.state_dict()
    given = {k: v + 0.5 if v.is_floating_point() else v for k, v in given.items()}
    save_file(given, tmp_path / "b.safetensors")
    run = Lent()
    built(plan, data, pretrained=str(tmp_path / "b.safetensors")).fit(data.where("train"), (), run)
    assert all(torch.equal(run.trunks["patch"][0][k], v) for k, v in given.items() if not k.endswith("num_batches_tracked"))


def test_views_become_cases_of_the_same_patient(data):
    case = data.built_in(data["train-000"])
    ones, marked = list(single_views(case)), list(marked_views(case))
    assert [c.id for c in ones] == ["train-000/CC", "train-000/MLO"] == [c.id for c in marked]
    assert all(c.patient == case.patient and not c.labels and set(c.images) == {"view"} for c in ones)
    for view, one in zip(("CC", "MLO"), marked, strict=True):
        assert one.images["view"] is case.images[view] and one.labels == {"reference": case.labels[view]}
    assert [c.id for c in marked_views(case.with_(labels={"CC": None}))] == ["train-000/MLO"]


def test_a_batch_of_pairs_holds_as_many_pictures(plan, data):
    method = built(plan, data)
    assert method.parts["single"].sampling(None).streams[0].size == 4 and method.parts["pair"].sampling(None).streams[0].size == 2
    large = built(plan, data, size=(512, 384))
    assert large.parts["single"].plan.batch == 2 and large.parts["patch"].plan.batch == 4


def test_the_class_of_a_patch_is_the_commonest_lesion_of_its_middle():
    label = torch.zeros(5, 16, 16, dtype=torch.long)
    label[0, 6:9, 6:9] = 2
    label[1, :3, :3] = 1  # outside of the middle
    label[2, 5:11, 5:11], label[2, 5:7, 5:11] = 1, 2
    label[3] = IGNORE
    label[4] = IGNORE
    label[4, 8, 8] = 0
    assert patch_class(label, 3).tolist() == [2, 0, 1, IGNORE, 0]
    assert patch_class(pad(label, (3, 3, 3, 3)), 3)[0] == 2


# answers -------------------------------------------------------------------------------------------------------------------------------
def answer(method, case, plan=None):
    plan = method.plan if plan is None else plan
    return infer(method, case, plan)


def one_view(case, view):
    other = {"CC": "MLO", "MLO": "CC"}[view]
    return case.with_(images={other: None})


def test_a_missing_view_is_answered_by_the_single_view_part_and_said(plan, data):
    method, case = settled(built(plan, data), "single", "pair"), data.built_in(data["test-000"])
    for view in ("CC", "MLO"):
        given = answer(method, one_view(case, view), method.plan.derive(channels=(view,)))
        (alone,) = (c for c in single_views(case) if c.id.endswith(view))
        single = method.parts["single"]
        assert given.table["malignant"] == pytest.approx(answer(single, alone, single.plan).table["malignant"], abs=1e-6)
        assert len(given.notes) == 1 and f"answered from {view}" in given.notes[0]
    assert not answer(method, case).notes
    with pytest.raises(DataError, match="single views were not learnt"):
        answer(built(plan, data, shares=(0, 0, 1)), one_view(case, "CC"), method.plan.derive(channels=("CC",)))
    with pytest.raises(DataError, match="no view"):
        method.predict(case.with_(images={"CC": None, "MLO": None}), rng=np.random.default_rng(0))


def test_without_pairs_the_two_single_view_scores_are_averaged(plan, data):
    method, case = settled(built(plan, data, shares=(0.3, 0.7, 0)), "single"), data.built_in(data["test-000"])
    assert set(method.parts) == {"patch", "single"}
    single = method.parts["single"]
    scores = [answer(single, c, single.plan).table["malignant"] for c in single_views(case)]
    assert answer(method, case).table["malignant"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert scores[0] != scores[1] and not answer(method, case).notes


def test_a_view_is_prepared_alike_alone_and_beside_the_other(plan, data):
    method, case = built(plan, data), data.built_in(data["test-001"])
    both = prepare(case, method.plan)
    for view, one in zip(("CC", "MLO"), single_views(case), strict=True):
        alone = prepare(one, method.parts["single"].plan).images["view"]
        np.testing.assert_array_equal(alone.data, both.images[view].data)


def test_views_of_unlike_sizes_meet_on_the_grid(plan, data):
    case = data.built_in(data["test-000"])
    small = case.images["MLO"].on(Geometry.of((50, 41), 2.0))
    method = built(plan, data)
    assert 0 < answer(method, case.with_(images={"MLO": small}, labels={"CC": None, "MLO": None})).table["malignant"] < 1


@torch.no_grad()
def test_the_mean_over_moved_copies(plan, data):
    method, case = settled(built(plan, data, shift=3), "pair"), data.built_in(data["test-000"])
    prepared = prepare(case.without_labels(), method.plan)
    there = moved(prepared, (3, -2)).images["CC"].data
    np.testing.assert_array_equal(there[:, 3:, :-2], prepared.images["CC"].data[:, :-3, 2:])
    assert not there[:, :3].any() and not there[:, :, -2:].any()
    part = copy.copy(method.parts["pair"].eval())
    part.shift, rng = 0, np.random.default_rng(0)
    scores = [part.predict(moved(prepared, (i, j)), rng=rng).table["malignant"] for i in (-3, 0, 3) for j in (-3, 0, 3)]
    assert method.parts["pair"].predict(prepared, rng=rng).table["malignant"] == pytest.approx(np.mean(scores), abs=1e-6)


# a user's folder -----------------------------------------------------------------------------------------------------------------------
def write_folder(folder: Path, data, sides=("CC", "MLO")) -> Path:
    """Breasts as 16-bit pictures of unlike sizes; the last one lacks its MLO view."""
    (folder / "files").mkdir(parents=True)
    rows = []
    for n, ref in enumerate(data.cases):
        case, row = data.built_in(ref), {"case": ref.id, "patient": ref.patient, "split": ref.split, "malignant": ref.table["malignant"]}
        for view in sides:
            picture, label = case.images[view], case.labels[view]
            if n == len(data) - 1 and view == "MLO":
                continue
            row |= {f"image:{view}": f"files/{ref.id}_{view}.png", f"label:{view}": f"files/{ref.id}_{view}_mask.png"}
            write_image(folder / row[f"image:{view}"], picture.data, picture.geometry)
            write_labels(folder / row[f"label:{view}"], label.data, label.geometry, values=(0, 1, 2))
        rows.append(row)
    with (folder / "cases.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)
    (folder / "dataset.toml").write_text(
        'name = "breasts"\nmodality = "mammography"\ndims = 2\nlicence = "own"\nsource = "made"\n'
        '[labels]\nbackground = 0\n"benign mass" = 1\n"malignant mass" = 2\n'
        '[targets]\nmalignant = { kind = "binary", levels = ["0", "1"] }\n'
    )
    return folder


def test_a_folder_is_trained_on_and_answered_as_json(tmp_path, data):
    folder = write_folder(tmp_path / "data", data)
    run = api.train("two-view-mammo", folder, tmp_path / "run", options=SMALL, iterations=6, plan_overrides=PLAN)
    budgets = {k: v["iterations"] for k, v in run.record["facts"].items() if k.startswith("budget.")}
    assert budgets == {"budget.patch": 2, "budget.single": 2, "budget.pair": 2}
    both = open_dataset(folder).only(data.where("test")[:-1])
    made = api.predict(tmp_path / "run", both, tmp_path / "out")
    said = [json.loads(p.read_text()) for p in made]
    assert len(said) == 3 and all(0 < s["table"]["malignant"] < 1 and not s["notes"] for s in said)


# bad input -----------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"size": (64,)}, "no such pictures"),
        ({"tile": 50}, "no such pictures"),
        ({"shift": 48}, "no such pictures"),
        ({"shares": (1, 0, 0)}, "no such stages"),
        ({"shares": (1, 1)}, "no such stages"),
        ({"target": "malign"}, "no target"),
        ({"width": -1.0}, "no such EfficientNet"),
    ],
)
def test_impossible_options_are_refused(options, match, plan, data):
    with pytest.raises(UsageError, match=match):
        built(plan, data, **options)


def test_data_of_another_number_of_views_are_refused(plan, data):
    with pytest.raises(UsageError, match="two views of a breast"):
        built(plan.derive(channels=("L_CC", "L_MLO", "R_CC", "R_MLO"), in_channels=4), data)


def test_the_proof_s_arms_differ_in_their_stages_alone():
    study = runpy.run_path(str(ROOT / "proofs/breast/two_view_mammo.py"))["study"]()
    assert study.slug == "two-view-mammo" and {a.method for a in study.arms} == {study.slug}
    rest = [{k: v for k, v in catalog.coerce(a.method, a.options).items() if k != "shares"} for a in study.arms]
    assert rest[0] == rest[1] == rest[2] and all(sum(a.options["shares"]) == pytest.approx(1) for a in study.arms)


def test_a_missing_view_is_answered_end_to_end(plan, data):
    method = settled(built(plan, data), "single")
    said = answer(method, one_view(data.built_in(data["test-000"]), "CC"))
    assert "MLO is missing" in said.notes[0]
