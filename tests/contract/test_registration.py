"""The laws of cards that answer a pair with a displacement, on the smallest phantom of their task."""

import numpy as np
import pytest
import torch

from vesalius import catalog
from vesalius.core.case import IGNORE, Case
from vesalius.core.manifest import Split
from vesalius.core.method import Clock
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.engine.infer import infer
from vesalius.engine.prepare import Cache
from vesalius.engine.sample import Draws

SMALL = {"features": (4, 8, 8), "batch": 2, "precision": "32", "workers": 0, "threads": 1}
SLUGS = [slug for slug, card in catalog.cards().items() if "displacement" in card.gives]


def make(slug: str, where: str):
    """(manifest, plan, method) of a card on a phantom, small."""
    card, manifest = catalog.get(slug), open_dataset(f"phantom:{where}")
    plan, _ = api.plan_for(manifest, manifest.split(), overrides=SMALL)
    plan = plan.derive(patch=tuple(min(p, 16 if plan.dims == 3 else 32) for p in plan.patch))
    torch.manual_seed(0)
    return manifest, plan, catalog.build(slug, plan, manifest, options=card.small)


def a_pair(manifest) -> Case:
    read = api.reader(manifest)
    fixed, moving = manifest.pairs_in(manifest.split().test)[0]
    return Case.pair(read(fixed), read(moving))


@pytest.fixture(scope="module", params=SLUGS)
def built(request):
    return (catalog.get(request.param), *make(request.param, catalog.get(request.param).phantom))


@pytest.mark.parametrize("slug", SLUGS)
@pytest.mark.parametrize("geometry", ["ras", "lps", "oblique", "anisotropic"])
def test_the_field_lies_on_the_fixed_grid_in_world_mm(slug, geometry):
    for dims in catalog.get(slug).dims:
        manifest, _, method = make(slug, f"shapes-{dims}d?geometry={geometry}")
        pair = a_pair(manifest)
        answer = infer(method, pair, method.plan)
        u = answer.displacement
        assert u.geometry == pair.geometry == answer.label.geometry and u.data.shape == (dims, *pair.geometry.shape)
        assert np.isfinite(u.data).all() and "warped:image" in answer.images


def test_same_seed_same_field_and_labels_are_never_seen(built):
    card, manifest, _, method = built
    pair = a_pair(manifest)
    poisoned = pair.with_(
        labels={k: type(v)(np.full_like(np.asarray(v.data), IGNORE), v.geometry, v.names) for k, v in pair.labels.items()},
        points={k: type(v)(np.asarray(v.xyz) + 1e3) for k, v in pair.points.items()},
    )
    one, two = (infer(method, p, method.plan, seed=3).displacement.data for p in (pair, poisoned))
    assert np.array_equal(one, two)


def draws_of(manifest, method, stage, number):
    cache = Cache(manifest, method.plan, method, api.reader(manifest))
    return Draws([cache[c] for c in manifest.split().train[:6]], method, manifest, stage, seed=0, number=number)


def test_losses_are_finite_and_reach_every_parameter_in_some_stage(built):
    card, manifest, _, method = built
    method.train()
    method.zero_grad()
    for number, stage in enumerate(method.stages()):
        batch = draws_of(manifest, method, stage, number)[0]
        for turn in method.turns(Clock(50, 100, stage=stage.name)):
            terms = method.losses(batch, Clock(50, 100, stage=stage.name), turn)
            assert terms and all(torch.isfinite(v) and v.ndim == 0 for v in terms.values()), terms
            sum(terms.values()).backward()
    silent = [n for n, p in method.named_parameters() if p.grad is None]
    assert not silent or "gradients" in card.test_exceptions, silent


def test_it_learns_to_make_two_images_alike(built):
    card, manifest, _, method = built
    method.train()
    stage = method.stages()[0]
    optimizer, batch, losses = method.optimizers()["main"], draws_of(manifest, method, stage, 0)[0], []
    for step in range(30):
        optimizer.zero_grad()
        loss = sum(method.losses(batch, Clock(step, 30, stage=stage.name)).values())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4]), losses


@pytest.mark.parametrize("slug", SLUGS)
def test_train_save_open_predict(slug, tmp_path):
    """The user's path: a run folder, opened again, answers the same."""
    card = catalog.get(slug)
    manifest = open_dataset(f"phantom:{card.phantom}")
    split = manifest.split()
    few = Split(split.train[:4], (), split.test)
    done = api.train(
        slug,
        manifest,
        tmp_path / "run",
        options=dict(card.small),
        iterations=4,
        plan_overrides={**SMALL, "patch": (32,) * manifest.dims},
        split=few,
    )
    again, pair = api.open_run(tmp_path / "run"), a_pair(manifest)
    one, two = (infer(r.method, pair, r.plan).displacement.data for r in (done, again))
    assert np.array_equal(one, two)
