"""The CURVAS baseline: what several raters teach it, and a temperature that changes confidence and no decision."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius.core.case import IGNORE, Batch, Case, Image, LabelMap
from vesalius.core.errors import DataError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock
from vesalius.core.plan import Plan
from vesalius.core.prediction import Prediction
from vesalius.methods.raters.curvas import CurvasUNet, shares
from vesalius.ops.opinions import opinions

MANIFEST = Manifest("organs", Path("."), 3, ("CT",), {"background": 0, "liver": 1, "kidney": 2}, ())
PLAN = Plan(
    dims=3, channels=("CT",), classes=MANIFEST.names, patch=(8, 8, 8), features=(4, 8), strides=((1, 1, 1), (2, 2, 2)),
    kernels=((3, 3, 3), (3, 3, 3)),
)  # fmt: skip
GRID = Geometry.of((8, 8, 8))


def method(**options) -> CurvasUNet:
    torch.manual_seed(0)
    return CurvasUNet(PLAN, MANIFEST, **options)


def batch(maps: int = 3) -> Batch:
    torch.manual_seed(1)
    labels = {f"rater{r + 1}": torch.randint(0, 3, (2, 8, 8, 8)) for r in range(maps)}
    return Batch(torch.randn(2, 1, 8, 8, 8), labels, torch.eye(4).repeat(2, 1, 1), ["a", "b"])


def test_shares_are_the_frequency_among_those_who_spoke():
    maps = torch.tensor([[[1, 0, IGNORE, IGNORE]], [[1, 1, 2, IGNORE]], [[1, 2, 0, IGNORE]]])
    target, weight = shares(maps, 3)
    assert target.shape == (1, 3, 4)
    assert torch.allclose(target[0].T, torch.tensor([[0, 1, 0], [1 / 3, 1 / 3, 1 / 3], [1 / 2, 0, 1 / 2], [0, 0, 0]]))
    assert weight.tolist() == [[1, 1, 1, 0]]
    assert shares(maps[..., :2], 3)[1] is None


@pytest.mark.parametrize("learn", ["mean", "random", "consensus"])
def test_every_way_of_learning_reaches_every_parameter(learn):
    m = method(learn=learn).train()
    loss = sum(m.losses(batch(), Clock(0, 10)).values())
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is not None for p in m.network.parameters())


def test_the_ways_are_one_for_raters_who_agree():
    same = batch(1)
    same.labels = {f"rater{r}": same.labels["rater1"] for r in (1, 2, 3)}
    of = lambda learn: method(learn=learn).train().losses(same, Clock(0, 10))["segmentation"].detach()
    assert float(of("mean")) == pytest.approx(float(of("random")), rel=1e-5) and of("random") == of("consensus")


def test_reference_is_no_opinion_beside_raters():
    assert opinions({"reference": 0, "rater1": 0, "rater2": 0}) == ("rater1", "rater2")
    assert opinions({"reference": 0}) == ("reference",)
    with pytest.raises(DataError, match="no rater"):
        opinions({})


def test_a_temperature_changes_confidence_and_no_decision():
    logits = 3 * torch.randn(1, 3, 5, 5, 5)
    plain, soft, sharp = (method(temperature=t).probabilities(logits) for t in (1.0, 3.0, 0.25))
    assert torch.equal(plain.argmax(1), soft.argmax(1)) and torch.equal(plain.argmax(1), sharp.argmax(1))
    assert (soft.amax(1) <= plain.amax(1) + 1e-6).all() and (sharp.amax(1) >= plain.amax(1) - 1e-6).all()
    with pytest.raises(UsageError, match="positive"):
        method(temperature=0.0)


class FakeRun:
    """Two raters who follow the true probabilities, and a method that says them ``times`` too sharply."""

    def __init__(self, times: float):
        self.times, self.logged, self.trained = times, {}, []

    def train(self, method, train, val, **_):
        self.trained.append((tuple(train), tuple(val)))

    def infer(self, method, cases):
        for k, name in enumerate(cases):
            rng = np.random.default_rng(k)
            logits = 1.5 * rng.standard_normal((3, *GRID.shape))
            true = np.exp(logits) / np.exp(logits).sum(0)
            said = np.exp(self.times * logits)
            labels = {}
            for r in (1, 2):
                draw = (true.cumsum(0) < rng.uniform(size=GRID.shape)).sum(0).clip(0, 2)
                labels[f"rater{r}"] = LabelMap(draw.astype(np.int16), GRID, MANIFEST.names)
            case = Case(name, images={"CT": Image(np.zeros((1, *GRID.shape), np.float32), GRID)}, labels=labels)
            yield case, Prediction(probability=Image((said / said.sum(0)).astype(np.float32), GRID))

    def log(self, **values):
        self.logged |= values


@pytest.mark.parametrize("times", [0.5, 1.0, 4.0])
def test_fitting_finds_how_overconfident_the_network_was(times):
    run, m = FakeRun(times), method()
    m.fit(("t1", "t2"), tuple("abcdefgh"), run)
    assert float(m.temperature) == pytest.approx(times, rel=0.15) and run.logged["temperature"] == float(m.temperature)
    assert run.trained == [(("t1", "t2"), tuple("abcdefgh"))]


def test_without_validation_cases_the_training_cases_serve_and_a_fixed_temperature_stays():
    run = FakeRun(4.0)
    assert float(method().fit(tuple("abcdefgh"), (), run).temperature) == pytest.approx(4, rel=0.15)
    fixed = method(temperature=0.5).fit(("a",), ("b",), run)
    assert float(fixed.temperature) == 0.5


def test_the_temperature_is_part_of_the_state():
    m = method().fit((), tuple("abcd"), FakeRun(3.0))
    tensors, facts = m.state()
    again = method()
    again.load_state(tensors, facts)
    assert torch.equal(again.temperature, m.temperature)
    assert "temperature" not in dict(m.named_parameters())
