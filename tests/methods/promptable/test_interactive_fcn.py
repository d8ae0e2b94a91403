"""interactive-fcn: bumps, the simulated interaction, and that the click alone says which object is meant."""

import numpy as np
import pytest
import torch

from vesalius.core.case import Batch
from vesalius.core.plan import Plan
from vesalius.core.prompt import Turn
from vesalius.datasets import open_dataset
from vesalius.methods.promptable.interactive_fcn import InteractiveFCN, bumps
from vesalius.methods.prompted import clicked

SIZE = (32, 32)


def method(**options) -> InteractiveFCN:
    manifest = open_dataset("phantom:shapes-2d")
    plan = Plan(dims=2, channels=("image",), classes=manifest.names, patch=SIZE, features=(8, 16), strides=((1, 1), (2, 2)))
    torch.manual_seed(0)
    return InteractiveFCN(plan, manifest, **options)


def two_discs(rng) -> tuple[np.ndarray, np.ndarray]:
    """An image of two discs alike, and their labels 1 and 2, which nothing but chance tells apart."""
    label, at = np.zeros(SIZE, np.int64), np.indices(SIZE)
    centres = np.array([[8, rng.integers(7, 25)], [24, rng.integers(7, 25)]])
    for k, centre in enumerate(rng.permutation(centres)):
        label[sum((x - c) ** 2 for x, c in zip(at, centre, strict=True)) <= 25] = k + 1
    return (label > 0) * 2.0 + 0.3 * rng.standard_normal(SIZE), label


def batch_of(rng, n=8) -> Batch:
    images, labels = zip(*[two_discs(rng) for _ in range(n)], strict=True)
    image = torch.from_numpy(np.stack(images)).float()[:, None]
    return Batch(image, {"reference": torch.from_numpy(np.stack(labels))}, None, ["c"] * n)


@pytest.fixture(scope="module")
def trained() -> InteractiveFCN:
    fcn, rng = method(interactions=4, lr=5e-3), np.random.default_rng(0)
    optimizer = fcn.optimizers()["main"]
    for _ in range(70):
        loss = fcn.losses(batch_of(rng), None)["dice"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return fcn.eval()


@pytest.mark.parametrize("d", [2, 3])
def test_bumps_peak_at_one_and_end_at_four_sigma(d):
    points = torch.tensor([[[10.0] * d, [20.0] * d, [5.0] * d]])
    out = bumps(points, torch.tensor([[True, True, False]]), (32,) * d, 2.0)[0, 0]
    assert out.max() == 1 and out[(10,) * d] == 1 and out[(20,) * d] == 1
    away = torch.stack(torch.meshgrid(*[torch.arange(32.0)] * d, indexing="ij"), -1)
    near = [(away - c).abs().amax(-1) for c in (10.0, 20.0)]
    assert (out[(near[0] > 8) & (near[1] > 8)] == 0).all() and (out[near[0] <= 8] > 0).all()
    assert torch.allclose(out[(10, *(12,) * (d - 1))], torch.tensor(np.exp(-0.5 * (d - 1)), dtype=torch.float32), atol=1e-4)
    assert bumps(points, torch.zeros(1, 3, dtype=torch.bool), (32,) * d, 2.0).abs().max() == 0


def test_only_the_last_answer_of_a_step_learns_and_stopped_users_click_no_more():
    fcn, rng = method(interactions=6), np.random.default_rng(3)
    batch = batch_of(rng)
    truth = (batch.label == 1).numpy()
    history = fcn.interact(batch.image, truth, rng)
    assert len(history) > 2 and all(not t.logits.requires_grad for t in history[1:]) and history[0].logits is None
    clicks = torch.stack([(t.prompts.signs >= 0).sum(1) for t in history])
    assert (clicks[0] == 1).all() and (clicks.diff(dim=0) <= 0).all(), "at most one a turn, none after stopping"
    for turn in history[1:]:
        for b, t in enumerate(truth):
            shown = (turn.logits[b, 0] > 0).numpy()
            for at, sign in zip(turn.prompts.points[b].long(), turn.prompts.signs[b], strict=True):
                if sign >= 0:
                    assert t[tuple(at)] != shown[tuple(at)] and bool(sign) == t[tuple(at)]
    assert len(method(corrections=False).interact(batch.image, truth, rng)) == 1


def test_an_empty_patch_gets_a_click_beside_and_teaches_an_empty_mask():
    fcn, rng = method(), np.random.default_rng(0)
    history = fcn.interact(torch.zeros(1, 1, *SIZE), np.zeros((1, *SIZE), bool), rng)
    assert history[0].prompts.signs.tolist() == [[0]]
    batch = batch_of(rng, 2)
    empty = Batch(batch.image, {"reference": torch.zeros_like(batch.label)}, None, ["c"] * 2)
    assert torch.isfinite(fcn.losses(empty, None)["dice"])


def ask(fcn, image, index, positive, history=()):
    turn = Turn(clicked([(np.array([index]), np.array([positive]))]))
    with torch.no_grad():
        return fcn.reply(image, (*history, turn))[0, 0].numpy(), (*history, turn)


def iou(a, b):
    return (a & b).sum() / max(1, (a | b).sum())


def test_moving_the_click_moves_the_mask_and_a_negative_click_takes_away(trained):
    rng = np.random.default_rng(99)
    right = wrong = 0.0
    for _ in range(10):
        image, label = two_discs(rng)
        tensor = torch.from_numpy(image).float()[None, None]
        centre = {k: np.argwhere(label == k).mean(0).round().astype(int) for k in (1, 2)}
        for k in (1, 2):
            logits, history = ask(trained, tensor, centre[k], True)
            right += iou(logits > 0, label == k) / 20
            wrong += iou(logits > 0, label == 3 - k) / 20
            lower, _ = ask(trained, tensor, centre[k], False, history)
            around = np.hypot(*(np.indices(SIZE) - centre[k].reshape(2, 1, 1))) < 3
            assert lower[around].mean() < logits[around].mean()
    assert right > 0.8 and wrong < 0.1, (right, wrong)


def test_without_guidance_nothing_says_which_object_is_meant(trained):
    rng = np.random.default_rng(5)
    image, label = two_discs(rng)
    tensor = torch.from_numpy(image).float()[None, None]
    trained.guided = False
    try:
        answers = [ask(trained, tensor, np.argwhere(label == k).mean(0).round().astype(int), True)[0] for k in (1, 2)]
    finally:
        trained.guided = True
    assert np.array_equal(*answers)
