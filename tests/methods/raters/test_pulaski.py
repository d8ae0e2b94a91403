"""PULASki: the loss looks at sets, the prior is taught by the divergence alone, and a sample is one mask over all windows."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius import catalog
from vesalius.core.case import IGNORE, Batch, Case, Image
from vesalius.core.errors import UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock
from vesalius.core.plan import Plan
from vesalius.engine.restore import restore
from vesalius.methods.raters.pulaski import PULASki

MANIFEST = Manifest("lesions", Path("."), 2, ("MR",), {"background": 0, "lesion": 1}, ())
PLAN = Plan(
    dims=2, channels=("MR",), classes=MANIFEST.names, patch=(16, 16), features=(4, 8), strides=((1, 1), (2, 2)), kernels=((3, 3), (3, 3))
)


def method(**options) -> PULASki:
    torch.manual_seed(0)
    return PULASki(PLAN, MANIFEST, **{"samples": 4, **options})


def batch(raters: int = 3) -> Batch:
    g = torch.Generator().manual_seed(1)
    labels = {f"rater{r + 1}": torch.randint(0, 2, (2, 16, 16), generator=g) for r in range(raters)}
    return Batch(torch.randn(2, 1, 16, 16, generator=g), labels, torch.eye(3).repeat(2, 1, 1), ["a", "b"])


def terms(m: PULASki, b: Batch, seed: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return m.losses(b, Clock(0, 10))


def shuffled(b: Batch) -> Batch:
    names = list(b.labels)
    return Batch(b.image, {n: b.labels[o] for n, o in zip(names, [names[-1], *names[:-1]])}, b.to_case, b.cases)


@pytest.mark.parametrize("distance", ["energy", "sinkhorn"])
def test_samples_that_are_the_raters_cost_nothing_in_any_order(distance):
    m, maps = method(distance=distance), torch.stack(list(batch().labels.values()), 1)
    sure = torch.stack([m.hot(x) for x in maps[:, [2, 0, 1]].unbind(1)], 1) * 200 - 100
    assert float(m.mismatch(sure, maps, maps[:, 0])) == pytest.approx(0, abs=1e-3)
    same = sure[:, :1].expand_as(sure)
    assert float(m.mismatch(same, maps, maps[:, 0])) > 1


@pytest.mark.parametrize("distance", ["energy", "sinkhorn"])
def test_order_of_raters_is_nothing_to_the_distance_but_something_to_cross_entropy(distance):
    b = batch()
    one = lambda **o: float(terms(method(draw="prior", **o), b)["reconstruction"].detach())
    other = lambda **o: float(terms(method(draw="prior", **o), shuffled(b))["reconstruction"].detach())
    assert one(distance=distance) == pytest.approx(other(distance=distance), rel=1e-4)
    ce = [float(terms(method(distance="ce"), x)["reconstruction"].detach()) for x in (b, shuffled(b))]
    assert abs(ce[0] - ce[1]) > 1e-3


def test_divergence_is_zero_where_prior_and_posterior_are_one(monkeypatch):
    m = method()
    monkeypatch.setattr(m.network, "posterior", lambda image, answer: m.network.prior(image))
    assert float(terms(m, batch())["kl"].detach()) == 0


def gradient_of(m: PULASki, term: str, part: torch.nn.Module) -> float:
    m.zero_grad()
    terms(m, batch())[term].backward()
    return float(sum(p.grad.abs().sum() for p in part.parameters() if p.grad is not None))


def test_the_prior_is_taught_by_the_divergence_alone_unless_it_draws():
    m = method()
    assert gradient_of(m, "reconstruction", m.network.priors) == 0 and gradient_of(m, "kl", m.network.priors) > 0
    assert gradient_of(m, "reconstruction", m.network.posteriors) > 0
    m = method(draw="prior")
    assert gradient_of(m, "reconstruction", m.network.priors) > 0 and gradient_of(m, "reconstruction", m.network.posteriors) == 0


@pytest.mark.parametrize("options", [{}, {"seen": "each"}, {"draws": 5}, {"draws": 5, "seen": "each"}, {"distance": "ce"}, {"ema": 0.9}])
def test_every_way_of_learning_reaches_every_parameter(options):
    m = method(**options).train()
    sum(terms(m, batch()).values()).backward()
    assert all(p.grad is not None for p in m.network.parameters())


def test_voxels_where_a_rater_is_silent_do_not_count():
    silent, m = batch(), method()
    silent.labels["rater2"][:, :8] = IGNORE
    changed = Batch(silent.image, {k: v.clone() for k, v in silent.labels.items()}, silent.to_case, silent.cases)
    changed.labels["rater1"][:, :8] = 1 - changed.labels["rater1"][:, :8]
    logits = torch.randn(2, 3, 2, 16, 16)
    value = lambda b: m.mismatch(logits, torch.stack(list(b.labels.values()), 1), b.labels["rater3"])
    assert torch.equal(value(silent), value(changed)) and torch.isfinite(value(silent))
    assert all(torch.isfinite(v) for v in terms(m, silent).values())
    assert m.hot(silent.labels["rater2"])[:, :, :8].sum() == 0


def case(side: int) -> Case:
    grid = Geometry.of((side, side))
    image = np.random.default_rng(0).standard_normal((1, side, side)).astype(np.float32)
    return Case("c", images={"MR": Image(image, grid)})


def test_prediction_is_samples_their_mean_and_its_entropy():
    m = method().eval()
    with torch.no_grad():
        answer = m.predict(case(40), rng=np.random.default_rng(0))
    drawn = answer.samples.source
    assert drawn.shape == (4, 2, 40, 40) and np.allclose(drawn.sum(1), 1, atol=1e-5)
    assert np.allclose(answer.probability.data, drawn.mean(0), atol=1e-6)
    p = drawn.mean(0)
    assert np.allclose(answer.uncertainty.data[0], -(p * np.log(p)).sum(0), atol=1e-4)
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-4


def test_same_seed_same_samples_and_another_seed_others():
    m = method().eval()
    with torch.no_grad():
        a, b, c = (m.predict(case(24), rng=np.random.default_rng(s)).samples.source for s in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


@pytest.mark.parametrize("latent_of", ["case", "window"])
def test_one_latent_for_all_windows_of_a_case(latent_of, monkeypatch):
    """What the decoder gets in the windows of a case: the same numbers ('case'), or each window's own under the same noise."""
    m = method(latent_of=latent_of).eval()
    seen, forward = [], m.network.forward
    monkeypatch.setattr(m.network, "forward", lambda image, z=None: (seen.extend(z), forward(image, z))[1])
    with torch.no_grad():
        m.predict(case(40), rng=np.random.default_rng(0))
    assert len(seen) > 4
    assert all(torch.equal(z, seen[0]) for z in seen) == (latent_of == "case")


def test_samples_keep_their_shape_on_another_grid():
    m = method().eval()
    with torch.no_grad():
        prediction = m.predict(case(24), rng=np.random.default_rng(0))
    finer = Geometry.of((48, 48), 0.5, origin=(-0.25, -0.25))
    moved = restore(prediction, prediction.samples.geometry, finer, ("background", "foreground")).samples.source
    assert moved.shape == (4, 2, 48, 48)
    assert np.allclose(moved.reshape(4, 2, 24, 2, 24, 2).mean((3, 5)), prediction.samples.source, atol=0.05)


def test_options_that_contradict_are_refused():
    for options in ({"distance": "ce", "draws": 3}, {"distance": "ce", "seen": "each"}, {"samples": 0}, {"latent": 0}, {"beta": -1.0}):
        with pytest.raises(UsageError):
            method(**options)


def test_the_state_goes_round():
    m = method(ema=0.9)
    again = method(ema=0.9, distance="ce")
    again.load_state(*m.state())
    assert all(torch.equal(a, b) for a, b in zip(m.state_dict().values(), again.state_dict().values()))


def test_the_proof_compares_distances_of_one_network():
    study = runpy.run_path(str(Path(__file__).resolve().parents[3] / "proofs" / "raters" / "pulaski.py"))["study"]()
    assert {study.baseline, *(e.arm for e in study.expects)} <= {a.name for a in study.arms}
    assert {e.metric for e in study.expects} <= set(study.metrics)
    sizes = {sum(p.numel() for p in catalog.build("pulaski", PLAN, MANIFEST, options=a.options).parameters()) for a in study.arms}
    assert len(sizes) == 1
