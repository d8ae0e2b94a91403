"""Cross-modality prior: CycleGAN without the tumour terms, which reach one generator alone; masks stay; pseudo MR comes home."""

import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius import catalog
from vesalius.core.case import Case, Image, LabelMap
from vesalius.core.errors import DataError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import CaseRef, Manifest
from vesalius.core.method import Clock
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.engine.infer import answer, infer
from vesalius.engine.prepare import Cache, prepare
from vesalius.methods.guided.cross_modality_prior import PART, CrossModalityPrior, TumourAware, histogram_divergence
from vesalius.methods.translation import Translator

from ..test_translation import MANIFEST, PLAN, SMALL, batch

TINY = {"filters": 2, "blocks": 1, "layers": 1, "pool": 3, "slices": 2}
PROOF = Path(__file__).resolve().parents[3] / "proofs" / "guided" / "cross_modality_prior.py"
GRID = Geometry.of((20, 18), (2.0, 1.0), origin=(5.0, -3.0))


def aware(**options) -> TumourAware:
    torch.manual_seed(0)
    return TumourAware(PLAN, MANIFEST, **{**SMALL, "shape": 5.0, "location": 1.0, **options})


def method(**options) -> CrossModalityPrior:
    torch.manual_seed(0)
    return CrossModalityPrior(PLAN, MANIFEST, **{**TINY, **options})


# ------------------------------------------------------------------------------------------------------------------------ stage one's loss
def test_without_tumour_terms_it_is_cyclegan():
    plain, cycle_gan = aware(shape=0.0, location=0.0), Translator(PLAN, MANIFEST, **SMALL)
    cycle_gan.load_state_dict(plain.state_dict())
    for turn in ("generators", "judges"):
        torch.manual_seed(3)
        mine = plain.losses(batch(), Clock(0, 10), turn)
        torch.manual_seed(3)
        theirs = cycle_gan.losses(batch(), Clock(0, 10), turn)
        assert {k: float(v.detach()) for k, v in mine.items()} == {k: float(v.detach()) for k, v in theirs.items()}


def reached(m: TumourAware, term: str) -> set[str]:
    """The submodules that a term's gradient reaches."""
    m.zero_grad()
    m.losses(batch(), Clock(0, 10), "generators")[term].backward()
    return {n.split(".")[0] for n, p in m.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_tumour_terms_reach_the_generator_of_mr_alone():
    m = aware()
    assert reached(m, "shape") == reached(m, "location") == {"to_target", "finder"}
    assert reached(m, "guide") == {"guide"} and reached(m, "real") == set()  # no MR of this batch has labels


def test_the_location_term_is_the_mean_over_the_tumour():
    m, b = aware(location=2.0), batch()
    b.labels["reference"][:] = 0
    assert float(m.losses(b, Clock(0, 10))["location"].detach()) == 0
    b.labels["reference"][1, 3:5, 6:9] = 1
    with torch.no_grad():
        ct = m.scaled(b.image[:, :1])
        apart = m.finder.tapped(m.to_target(ct).tanh())[1] - m.guide.tapped(ct)[1]
        expected = 2 * apart[1, :, 3:5, 6:9].square().mean()
    torch.testing.assert_close(m.losses(b, Clock(0, 10))["location"].detach(), expected)


def test_labelled_mr_teaches_the_segmenter_of_mr():
    m, b = aware(), batch()
    assert float(m.losses(b, Clock(0, 10))["real"].detach()) == 0
    b["MR"].labels["reference"] = torch.randint(0, 2, (2, 16, 16))
    assert float(m.losses(b, Clock(0, 10))["real"].detach()) > 1


def test_a_ct_without_labels_is_not_drawn():
    rows = [CaseRef("a", "a", images={"CT": "x"}, labels=labels) for labels in ({}, {"reference": "y"})]
    assert [aware().is_source(r) for r in rows] == [False, True]


# ------------------------------------------------------------------------------------------------------------------------------- stage two
def native(name: str, i: int, labelled: bool = True) -> Case:
    """CT: a bright square on dark; MR: the reverse; both in noise."""
    g, data, mask = np.random.default_rng([i, name == "CT"]), np.zeros(GRID.shape), np.zeros(GRID.shape, np.int16)
    mask[4 + i : 10 + i, 5:12] = 1
    data = (80.0 if name == "CT" else -60.0) * mask + (0 if name == "CT" else 300) + 5 * g.standard_normal(GRID.shape)
    labels = {"reference": LabelMap(mask, GRID, MANIFEST.names)} if labelled else {}
    return Case(f"{name}{i}", f"{name}{i}", images={name: Image(data[None].astype(np.float32), GRID, name=name)}, labels=labels)


def made_of(cases: list[Case], splits: dict[str, str] | None = None) -> Manifest:
    rows = tuple(
        CaseRef(c.id, c.patient, (splits or {}).get(c.id, ""), images=dict.fromkeys(c.images, ""), labels=dict.fromkeys(c.labels, ""))
        for c in cases
    )
    by_id = {c.id: c for c in cases}
    return replace(MANIFEST, name="memory-prior", cases=rows, built_in=lambda row: by_id[row.id])


CASES = [*(native("CT", i) for i in range(3)), native("MR", 0), *(native("MR", i, False) for i in (1, 2)), native("MR", 3)]


class Lent:
    """A run that trains nothing and notes what it was asked."""

    def __init__(self):
        self.calls = []

    def fit(self, part, train, val, *, share=1.0):
        self.calls.append(("fit", train, val, share))

    def train(self, method, train, val, *, name="", share=1.0, unfold=None):
        self.calls.append(("train", train, val, share))
        self.unfold = unfold

    def infer(self, method, cases):
        for case in cases:
            yield prepare(case, method.plan, method), answer(method, case, method.plan)[1]


def fitted(**options) -> tuple[CrossModalityPrior, Lent]:
    m, run = CrossModalityPrior(PLAN, made_of(CASES), **{**TINY, **options}), Lent()
    m.fit([c.id for c in CASES[:-1]], ["MR3", "CT2"], run)
    return m, run


def test_who_is_trained_on_what():
    _, run = fitted(share=0.7)
    stages = [("fit", ["CT0", "CT1", "CT2", "MR0", "MR1", "MR2"], (), 0.7), ("train", ["CT0", "CT1", "CT2", "MR0"], ["MR3"])]
    assert run.calls[0] == stages[0] and run.calls[1][:3] == stages[1] and run.calls[1][3] == pytest.approx(0.3)
    _, alone = fitted(translate=False)
    assert alone.calls == [("train", ["MR0"], ["MR3"], 1.0)] and alone.unfold is None


def masks_of(case: Case) -> Case:
    """A CT and what the second stage gets of it."""
    m, run = fitted()
    (drawn,) = run.unfold(case)
    assert drawn.id == f"{case.id}/pseudo" and drawn.patient == case.patient and list(drawn.images) == ["MR"]
    return m, drawn


def test_masks_stay_where_they_are():
    for case in CASES[:3]:
        m, drawn = masks_of(case)
        known = case.labels["reference"].on(GRID.canonical())
        assert drawn.labels["reference"].geometry == known.geometry == drawn.images["MR"].geometry
        np.testing.assert_array_equal(drawn.labels["reference"].data, known.data)
        again = prepare(drawn, m.plan, m, training=True)
        np.testing.assert_array_equal(again.labels["reference"].data, known.data)


def test_what_is_drawn_is_what_the_translator_says():
    m, drawn = masks_of(CASES[0])
    expected = answer(m.parts[PART], CASES[0], m.parts[PART].plan)[1].images["MR"].data
    np.testing.assert_array_equal(drawn.images["MR"].data, expected)
    assert np.abs(expected - CASES[0].images["CT"].data).mean() > 50  # in units of MR
    _, run = fitted()
    (same,) = run.unfold(CASES[3])
    assert same.images["MR"] is CASES[3].images["MR"] and not list(run.unfold(CASES[4]))  # real MR as it is, unlabelled MR not at all


def test_a_subject_with_both_contrasts_teaches_twice():
    both = replace(CASES[0], id="both", images={**CASES[0].images, **CASES[3].images})
    m, run = CrossModalityPrior(PLAN, made_of([both]), **TINY), Lent()
    m.fit(["both"], [], run)
    pseudo, real = run.unfold(both)
    assert pseudo.id == "both/pseudo" and real.id == "both" and real.images["MR"] is both.images["MR"] and list(real.images) == ["MR"]


def test_prepared_pseudo_images_are_cached_by_the_weights_that_drew_them():
    m, data = method(), made_of(CASES)
    where = lambda: Cache(data, m.plan, m, api.reader(data)).root
    first = where()
    assert where() == first
    with torch.no_grad():
        next(m.parts[PART].to_target.parameters()).add_(1e-3)
    assert where() != first


@pytest.mark.parametrize("left_out", ["CT", "MR"])
def test_a_contrast_that_nobody_has_is_said(left_out):
    cases = [c for c in CASES if left_out not in c.images]
    with pytest.raises(DataError, match="too little to learn from"):
        CrossModalityPrior(PLAN, made_of(cases), **TINY).fit([c.id for c in cases], [], Lent())


def test_one_contrast_is_no_two():
    one = PLAN.derive(channels=("MR",), in_channels=1)
    with pytest.raises(DataError, match="0 training cases with MR and labels"):
        CrossModalityPrior(one, made_of(CASES[3:]), **TINY).fit([c.id for c in CASES[3:]], [], Lent())
    run = Lent()
    CrossModalityPrior(one, made_of(CASES[3:]), **TINY, translate=False).fit([c.id for c in CASES[3:]], [], run)
    assert run.calls == [("train", ["MR0", "MR3"], [], 1.0)]


# ------------------------------------------------------------------------------------------------------------------------------ prediction
def test_the_answer_holds_the_pseudo_image_on_the_original_grid():
    m, both = method(), replace(CASES[0], images={**CASES[0].images, **CASES[3].images})
    found = infer(m, both, m.plan)
    assert found.images["pseudo MR"].geometry == both.geometry == found.label.geometry
    drawn = answer(m.parts[PART], CASES[0], m.parts[PART].plan)[1].images["MR"].on(both.geometry)
    np.testing.assert_allclose(found.images["pseudo MR"].data, drawn.data, rtol=1e-5)
    assert not infer(m, CASES[3], m.plan).images
    assert not infer(method(translate=False), CASES[3], m.plan).images


def test_a_ct_alone_is_segmented_in_its_pseudo_image():
    m, ct = method(), CASES[0].without_labels()
    part = m.parts[PART].eval()
    with torch.no_grad():
        derived = m.derive(replace(ct, grids={PART: partial(prepare, ct, part.plan, part)}), np.random.default_rng(0), training=False)
    np.testing.assert_array_equal(derived.images["MR"].data, answer(part, ct, part.plan)[1].images["MR"].data)
    found = infer(m, CASES[0], m.plan)
    assert found.label.geometry == ct.geometry and found.images["pseudo MR"].geometry == ct.geometry


def test_trained_in_the_engine_saved_and_opened_it_answers_the_same(tmp_path):
    data = made_of(CASES, {c.id: "train" for c in CASES} | {"MR3": "test"})
    few = {"patch": (16, 16), "batch": 2, "features": (4, 8), "workers": 0, "threads": 1, "precision": "32"}
    done = api.train("cross-modality-prior", data, tmp_path / "run", options=TINY, iterations=8, plan_overrides=few)
    budgets = {k: v["iterations"] for k, v in done.record["facts"].items() if k.startswith("budget")}
    assert budgets == {"budget.translation": 4, "budget.segmentation": 4}
    again, case = api.open_run(tmp_path / "run"), replace(CASES[0], images={**CASES[0].images, **CASES[6].images})
    for field in ("label", "images"):
        a, b = (getattr(infer(r.method, case, r.plan), field) for r in (done, again))
        a, b = (x["pseudo MR"] if field == "images" else x for x in (a, b))
        np.testing.assert_array_equal(a.data, b.data)


def test_volumes_are_drawn_and_segmented_slice_by_slice():
    plan = PLAN.derive(dims=3, patch=(16, 16, 8), strides=((1, 1, 1), (2, 2, 2)), kernels=((3, 3, 3), (3, 3, 3)))
    m = CrossModalityPrior(plan, replace(MANIFEST, dims=3), **TINY).eval()
    assert m.plan.patch == (16, 16, 2) == m.parts[PART].plan.patch
    x = torch.randn(1, 2, 16, 16, 3)
    with torch.no_grad():
        for net, seen in ((m, x[:, :1]), (m.parts[PART], x)):
            whole = net(seen)
            torch.testing.assert_close(whole[..., 1:2], net(seen[..., 1:2]), atol=1e-5, rtol=1e-4)


# --------------------------------------------------------------------------------------------------------------------- the paper's measure
def test_divergence_of_histograms():
    g = np.random.default_rng(0)
    a, b, far = g.normal(0, 1, 5000), g.normal(0.5, 1, 5000), g.normal(3, 1, 5000)
    assert histogram_divergence(a, a[::-1]) == 0
    assert 0 < histogram_divergence(b, a) < histogram_divergence(far, a)
    p, q = np.array([10.5, 30.5]) / 41, np.array([20.5, 20.5]) / 41
    by_hand = float((p * np.log(p / q)).sum())
    assert histogram_divergence([0] * 10 + [1] * 30, [0] * 20 + [1] * 20, bins=2) == pytest.approx(by_hand)
    with pytest.raises(DataError, match="needs intensities"):
        histogram_divergence([], a)


def test_names_and_options_that_cannot_be_are_refused():
    for options in (
        {"source": "T1"},
        {"target": "FLAIR"},
        {"source": "MR"},
        {"share": 1.0},
        {"share": 0.0},
        {"slices": 0},
        {"shape": -1.0},
    ):
        with pytest.raises(UsageError):
            method(**options)
    with pytest.raises(UsageError, match="no option 'cycles'"):
        catalog.build("cross-modality-prior", PLAN, MANIFEST, options={"cycles": 1})


# ------------------------------------------------------------------------------------------------------------------------------- the proof
def test_the_proof_compares_equal_networks_on_disjoint_patients():
    made = runpy.run_path(str(PROOF))
    study, data = made["study"](), made["unpaired"](open_dataset("phantom:torso-mr?cases=24"))
    arms = {a.name: a for a in study.arms}
    assert study.baseline in arms and {e.arm for e in study.expects} | {e.against or study.baseline for e in study.expects} <= set(arms)
    assert {e.metric for e in study.expects} <= set(study.metrics)
    nets = [catalog.build(a.method, PLAN.derive(patch=(24, 24)), MANIFEST, options=a.options).network for a in arms.values()]
    assert len({sum(p.numel() for p in n.parameters()) for n in nets}) == 1
    split = data.held_out()
    labelled = lambda name: sum(name in data[c].images and bool(data[c].labels) for c in split.train)
    assert labelled("CT") == made["PRIOR"] and labelled("MR") == made["FEW"]
    assert all(list(data[c].images) == ["MR"] and data[c].labels for c in (*split.val, *split.test))
    case = data.built_in(data["MR_train-005"])
    assert list(case.images) == ["MR"] and not case.labels and case.id == "MR_train-005"
    assert repr(data.built_in) == repr(made["unpaired"](open_dataset("phantom:torso-mr?cases=24")).built_in)
