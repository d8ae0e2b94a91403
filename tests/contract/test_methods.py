"""The laws of cards that give label maps, on the smallest phantom of their task. What a paper breaks by design stands on its card."""

import numpy as np
import pytest
import torch

from vesalius import catalog
from vesalius.core.case import IGNORE, Case
from vesalius.core.manifest import Split
from vesalius.core.method import Clock, Stage
from vesalius.datasets import open_dataset
from vesalius.datasets.views import templated
from vesalius.engine import api
from vesalius.engine.infer import infer
from vesalius.engine.prepare import Cache
from vesalius.engine.sample import Draws
from vesalius.methods.learned import LearnedMethod

SMALL = {"features": (4, 8, 8), "batch": 2, "precision": "32", "workers": 0, "threads": 1}
SLUGS = [
    slug
    for slug, card in catalog.cards().items()
    if {"labels", "probability"} & set(card.gives) and not any(take.startswith("prompts:") for take in card.takes)
]


def phantom(card, **options) -> str:
    """The card's own phantom where it names one, else the plain shapes; semi-supervised methods get unlabelled cases too."""
    name = card.phantom or f"shapes-{card.dims[0]}d"
    if card.supervision == "semi" and "labelled" not in options and "labelled=" not in name:
        options["labelled"] = 2
    return f"phantom:{name}" + ("&" if "?" in name else "?") * bool(options) + "&".join(f"{k}={v}" for k, v in options.items())


@pytest.fixture(scope="module", params=SLUGS)
def built(request):
    """(card, manifest, plan, method) of every card."""
    card = catalog.get(request.param)
    manifest = open_dataset(phantom(card))
    return (card, *make(card, manifest))


def make(card, manifest, seed: int = 0):
    split = manifest.split()
    plan, _ = api.plan_for(manifest, split, overrides=SMALL)
    plan = api._for_card(plan.derive(patch=tuple(min(p, 24 if plan.dims == 3 else 64) for p in plan.patch)), card.slug)
    torch.manual_seed(seed)
    method = catalog.build(card.slug, plan, manifest, options=card.small)
    return manifest, method.plan, method  # cases are prepared by the method's own plan, as the engine does it


def excepted(card, law: str) -> bool:
    return law in card.test_exceptions


def batch_of(manifest, method, start: int = 0):
    split = manifest.split()
    cache = Cache(manifest, method.plan, method, api.reader(manifest))
    cases = [cache[c] for c in (split.train if method.sampling(Stage()).streams else split.train[:6])]
    return Draws(cases, method, manifest, Stage(), seed=0, number=0, start=start)


def test_predicts_on_the_original_grid(built):
    card, manifest, plan, method = built
    case = api.reader(manifest)(manifest.cases[-1].id)
    answer = infer(method, case, plan)
    assert answer.label is not None and answer.label.geometry == case.geometry
    data = np.asarray(answer.label.data)
    if answer.label.overlapping:
        assert data.dtype == bool and data.shape == (len(answer.label.names), *case.geometry.shape)
        return
    assert np.issubdtype(data.dtype, np.integer) and 0 <= data.min() and data.max() < manifest.classes


def test_same_seed_same_answer(built):
    card, manifest, plan, method = built
    case = api.reader(manifest)(manifest.cases[-1].id)
    first = infer(method, case, plan, seed=5)
    assert np.array_equal(first.label.data, infer(method, case, plan, seed=5).label.data)


def test_prediction_never_looks_at_the_labels(built):
    """Labels, points and boxes replaced by nonsense change nothing."""
    card, manifest, plan, method = built
    case = api.reader(manifest)(manifest.cases[-1].id)
    poisoned: Case = case.with_(
        labels={k: type(v)(np.full_like(np.asarray(v.data), IGNORE), v.geometry, v.names) for k, v in case.labels.items()}
    )
    poisoned = poisoned.with_(points={k: type(v)(np.asarray(v.xyz) + 1e3) for k, v in case.points.items()})
    a, b = infer(method, case, plan), infer(method, poisoned, plan)
    assert np.array_equal(a.label.data, b.label.data)


@pytest.mark.parametrize("geometry", ["ras", "lps", "oblique", "anisotropic"])
@pytest.mark.parametrize("slug", SLUGS)
def test_any_geometry(slug, geometry):
    card = catalog.get(slug)
    dims = card.dims[0]
    if dims == 2 and geometry != "ras":
        pytest.skip("2D images have no patient frame")
    options = {"geometry": geometry} | ({"labelled": 2} if card.supervision == "semi" else {})
    manifest = open_dataset(f"phantom:shapes-{dims}d?" + "&".join(f"{k}={v}" for k, v in options.items()))
    manifest, plan, method = make(card, templated(manifest) if "queries" in card.takes else manifest)
    case = api.reader(manifest)(manifest.cases[-1].id)
    assert infer(method, case, plan).label.geometry == case.geometry


class TestLearned:
    """Laws of what is trained."""

    @pytest.fixture(autouse=True)
    def learned(self, built):
        if not isinstance(built[3], LearnedMethod):
            pytest.skip("nothing is learned")

    def test_losses_are_finite_and_reach_every_parameter(self, built):
        card, manifest, plan, method = built
        method.train()
        method.zero_grad()
        draws = batch_of(manifest, method)
        for turn in method.turns(Clock(50, 100)):
            terms = method.losses(draws[0], Clock(50, 100), turn)
            assert terms and all(torch.isfinite(v) and v.ndim == 0 for v in terms.values()), terms
            sum(terms.values()).backward()
        if not excepted(card, "gradients"):
            silent = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
            assert not silent, silent

    def test_logits(self, built):
        card, manifest, plan, method = built
        method.eval()
        image = torch.randn(2, method.in_channels, *plan.patch)
        with torch.no_grad():
            both = method(image)
            if not isinstance(both, torch.Tensor):
                if "logits" not in both:  # points, answers: other laws than those of voxels
                    assert all(torch.isfinite(v).all() for v in both.values())
                    return
                both = both["logits"]
            one = torch.cat([m if isinstance(m, torch.Tensor) else m["logits"] for m in (method(image[:1]), method(image[1:]))])
        assert both.dtype == torch.float32 and both.shape[0] == 2 and both.shape[2:] == image.shape[2:] and torch.isfinite(both).all()
        if not excepted(card, "batch"):
            torch.testing.assert_close(both, one, atol=1e-4, rtol=1e-4)

    def test_overfits(self, built):
        """Thirty steps on the same few cases make the loss clearly smaller."""
        card, manifest, plan, method = built
        if excepted(card, "overfit"):
            pytest.skip(card.test_exceptions["overfit"])
        method.train()
        optimizers = method.optimizers()
        draws = batch_of(manifest, method)
        losses = []
        for step in range(30):
            torch.manual_seed(step)
            batch = draws[step % 2]
            for turn in method.turns(Clock(step, 100)):
                for o in optimizers.values():
                    o.zero_grad()
                loss = sum(method.losses(batch, Clock(0, 100), turn).values())
                loss.backward()
                optimizers.get(turn, optimizers["main"]).step()
            method.after_step(Clock(step, 100))
            losses.append(float(loss.detach()))
        assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4]), losses

    def test_an_empty_foreground_is_survived(self, built):
        card, manifest, plan, method = built
        batch = batch_of(manifest, method)[0]
        for b in (batch, *batch.streams.values()):
            b.labels = {k: torch.zeros_like(v) for k, v in b.labels.items()}
        method.train()
        assert all(torch.isfinite(v) for v in method.losses(batch, Clock(0, 100), method.turns(Clock(0, 100))[0]).values())


@pytest.mark.parametrize("slug", SLUGS)
def test_train_save_open_predict(slug, tmp_path):
    """The user's path, ten iterations: a run folder, opened again, predicts the same."""
    card = catalog.get(slug)
    manifest = open_dataset(phantom(card))
    split = manifest.split()
    few = Split(split.train[:8] if card.supervision != "semi" else split.train, (), split.test[:1])
    done = api.train(slug, manifest, tmp_path / "run", options=dict(card.small), iterations=3, plan_overrides={**SMALL}, split=few)
    case = api.reader(manifest)(few.test[0])
    again = api.open_run(tmp_path / "run")
    assert np.array_equal(infer(done.method, case, done.plan).label.data, infer(again.method, case, again.plan).label.data)
