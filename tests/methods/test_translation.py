"""CycleGAN: its loss by its formula, nothing to mend where generators change nothing, and two optimisers that share no parameter."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import l1_loss

from vesalius.core.case import IGNORE, Batch, Case, Image, LabelMap
from vesalius.core.errors import UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import CaseRef, Manifest
from vesalius.core.method import Clock
from vesalius.core.plan import Plan
from vesalius.methods.translation import Translator
from vesalius.ops.augment import PRESETS

MANIFEST = Manifest("both", Path("."), 2, ("CT", "MR"), {"background": 0, "tumour": 1}, ())
FACTS = {"CT": {"mean": 40.0, "sd": 100.0}, "MR": {"mean": 300.0, "sd": 50.0}}
PLAN = Plan(2, ("CT", "MR"), 2, MANIFEST.names, patch=(16, 16), batch=4, features=(4, 8), intensities=FACTS, augmentation=PRESETS["full"])
SMALL = {"source": "CT", "target": "MR", "filters": 2, "blocks": 1, "layers": 1, "pool": 3}


def translator(plan: Plan = PLAN, **options) -> Translator:
    torch.manual_seed(0)
    return Translator(plan, MANIFEST, **{**SMALL, **options})


def batch(dims: int = 2, same: bool = False) -> Batch:
    """Two cases of each contrast; the other channel of each is nonsense that nobody may look at."""
    g = torch.Generator().manual_seed(1)
    size = (16, 16) if dims == 2 else (16, 16, 3)
    image, other = (torch.randn(2, 2, *size, generator=g) for _ in range(2))
    if same:
        other[:, 1] = image[:, 0]
    label = torch.randint(0, 2, (2, *size), generator=g)
    theirs = Batch(other, {"reference": torch.full_like(label, IGNORE)}, None, ["c", "d"])
    return Batch(image, {"reference": label}, None, ["a", "b"], streams={"MR": theirs})


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("identity", [0.0, 5.0])
def test_the_generators_loss_is_cyclegan_s(dims, identity):
    plan = PLAN if dims == 2 else PLAN.derive(dims=3, patch=(16, 16, 3))
    m, b = translator(plan, identity=identity), batch(dims)
    slices = (lambda x: x) if dims == 2 else (lambda x: torch.cat([x[i : i + 1, ..., k] for i in range(2) for k in range(3)]))
    ct, mr = (slices(x).div(4).clamp(-1, 1) for x in (b.image[:, :1], b["MR"].image[:, 1:]))
    g, f = (lambda x: m.to_target(x).tanh()), (lambda x: m.to_source(x).tanh())
    expected = ((m.judge_target(g(ct)) - 1) ** 2).mean() + ((m.judge_source(f(mr)) - 1) ** 2).mean()
    expected = expected + 10 * (l1_loss(f(g(ct)), ct) + l1_loss(g(f(mr)), mr)) + identity * (l1_loss(g(mr), mr) + l1_loss(f(ct), ct))
    terms = m.losses(b, Clock(0, 10), "generators")
    assert set(terms) == {"adversarial", "cycle"} | ({"identity"} if identity else set())
    torch.testing.assert_close(sum(terms.values()), expected)


class Unchanged(nn.Module):
    def forward(self, x):
        return torch.atanh(x)


def test_generators_that_change_nothing_cost_nothing_on_equal_domains():
    m, b = translator(identity=5.0), batch(same=True)
    m.to_target = m.to_source = Unchanged()
    terms = m.losses(b, Clock(0, 10), "generators")
    assert float(terms["cycle"].detach()) == pytest.approx(0, abs=1e-5) and float(terms["identity"].detach()) == pytest.approx(0, abs=1e-5)
    assert float(translator().losses(b, Clock(0, 10))["cycle"].detach()) > 1


def gradients(m: Translator, turn: str) -> set[str]:
    m.zero_grad()
    sum(m.losses(batch(), Clock(0, 10), turn).values()).backward()
    return {n.split(".")[0] for n, p in m.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_each_turn_moves_its_own_and_the_optimisers_share_nothing():
    m = translator()
    assert {"to_target", "to_source"} <= gradients(m, "generators")
    assert gradients(m, "judges") == {"judge_target", "judge_source"}
    held = {k: {id(p) for g in o.param_groups for p in g["params"]} for k, o in m.optimizers().items()}
    assert set(held) == set(m.turns(Clock(0, 10))) and not held["generators"] & held["judges"]
    assert held["generators"] | held["judges"] == {id(p) for p in m.parameters()}


def test_discriminators_see_the_pool_and_generators_do_not():
    m = translator()
    m.losses(batch(), Clock(0, 10), "generators")
    assert all(int(p.stored) == 0 for p in m.pools.values())
    m.losses(batch(), Clock(0, 10), "judges")
    assert all(int(p.stored) == 2 for p in m.pools.values())


def test_the_rate_stands_for_half_of_the_training_and_then_falls_to_nothing():
    rates = [translator().learning_rate(Clock(step, 100)) for step in (0, 50, 75, 100)]
    assert rates == pytest.approx([1, 1, 0.5, 0])


def case(*names: str, labels: bool = False) -> Case:
    grid = Geometry.of((12, 12))
    images = {n: Image(np.full((1, 12, 12), 7.0, np.float32), grid) for n in names}
    label = {"rater1": LabelMap(np.ones((12, 12), np.int16), grid, MANIFEST.names)} if labels else {}
    return Case("a", images=images, labels=label)


def test_a_missing_contrast_is_zeros_and_a_missing_label_says_nothing():
    m, rng = translator(), np.random.default_rng(0)
    mr = m.derive(case("MR"), rng, training=True)
    assert mr.stack(m.channels).shape == (2, 12, 12) and not mr.images["CT"].data.any() and not mr.images["CT"].normalise
    assert (mr.labels["reference"].data == IGNORE).all()
    ct = m.derive(case("CT", labels=True), rng, training=True)
    assert list(ct.labels) == ["reference"] and (ct.labels["reference"].data == 1).all() and (ct.images["CT"].data == 7).all()
    assert m.derive(case("CT", labels=True), rng, training=False).labels.keys() == {"rater1"}
    assert m.derive(Case("b"), rng, training=True).images == {}


def test_streams_are_of_what_a_row_has():
    m = translator()
    ct, mr = CaseRef("a", "a", images={"CT": "x"}), CaseRef("b", "b", images={"MR": "y"})
    assert [m.is_source(ct), m.is_source(mr), m.is_target(ct), m.is_target(mr)] == [True, False, False, True]
    assert [s.size for s in m.sampling(m.stage).streams] == [1, 1]


def test_grey_values_are_not_augmented_and_places_are():
    plan = translator().plan.augmentation
    assert plan["gamma_p"] == plan["noise_p"] == plan["brightness_p"] == 0 < plan["rotation_p"]


def test_what_is_drawn_is_in_the_units_of_the_target():
    m = translator()
    answer = m.finish(torch.tensor([[[-50.0, 0.0, 50.0]]]), Case("a", images={"CT": Image(np.zeros((1, 1, 3)), Geometry.of((1, 3)))}))
    np.testing.assert_allclose(answer.images["MR"].data, [[[300 - 4 * 50, 300, 300 + 4 * 50]]])


def test_the_digest_is_of_what_draws():
    m = translator()
    first = m.digest
    with torch.no_grad():
        next(m.judge_target.parameters()).add_(1)
    assert m.digest == first == translator().digest
    with torch.no_grad():
        next(m.to_target.parameters()).add_(1e-3)
    assert m.digest != first != translator(reach=3.0).digest


def test_options_that_cannot_be_are_refused():
    for options in ({"reach": 0.0}, {"cycle": -1.0}, {"pool": -1}, {"layers": 3}):
        with pytest.raises(UsageError):
            translator(**options)
