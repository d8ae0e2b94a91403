"""prism: the window follows the prompts, the encoder looks once, sessions are simulated truthfully, and turns and corrections help."""

import numpy as np
import pytest
import torch

from vesalius.core.case import IGNORE, Batch
from vesalius.core.errors import UsageError
from vesalius.core.plan import Plan
from vesalius.core.prompt import Asked, Candidates, Turn
from vesalius.datasets import open_dataset
from vesalius.methods.promptable.prism import Prism, Window, edges, extent, soft_dice
from vesalius.methods.prompted import clicked
from vesalius.methods.unrolled import AXIAL, SURE

SIDE = 16
SMALL = {"features": (4, 8, 16), "dim": 12, "depth": 1, "heads": 2, "interactions": 3, "clicks": 4, "boxes": 0.0, "scribbles": 0.0}


def method(**options) -> Prism:
    manifest = open_dataset("phantom:shapes-3d")
    plan = Plan(dims=3, channels=("image",), classes=manifest.names, patch=(SIDE,) * 3)
    torch.manual_seed(0)
    return Prism(plan, manifest, **{**SMALL, **options})


def two_balls(rng) -> tuple[np.ndarray, np.ndarray]:
    """Two balls alike that touch; which is 1 and which 2 nothing but chance tells."""
    at, label = np.indices((SIDE,) * 3), np.zeros((SIDE,) * 3, np.int64)
    for k, x in zip(rng.permutation(2) + 1, (4.5, 11.0), strict=True):
        centre = np.array([x, *rng.uniform(5, 10, 2)]).reshape(3, 1, 1, 1)
        label[((at - centre) ** 2).sum(0) <= rng.uniform(3.0, 4.0) ** 2] = k
    return 2.0 * (label > 0) + 0.5 * rng.standard_normal(label.shape), label


def batch_of(rng, n=2) -> Batch:
    images, labels = zip(*[two_balls(rng) for _ in range(n)], strict=True)
    image = torch.from_numpy(np.stack(images)).float()[:, None]
    return Batch(image, {"reference": torch.from_numpy(np.stack(labels))}, None, ["c"] * n)


def turn(points, signs=None, logits=None, **more) -> Turn:
    points = torch.tensor(points, dtype=torch.float32).reshape(1, len(points) // 3, 3)
    return Turn(Asked(points, torch.ones(1, points.shape[1], dtype=torch.long) if signs is None else torch.tensor([signs]), **more), logits)


def sessions(prism, rng, n=16, turns=5, pick=None) -> np.ndarray:
    """(n, turns) Dice of simulated sessions; ``pick(candidates)``: a logits map instead of the answer shown."""
    out = []
    for _ in range(n):
        image, label = two_balls(rng)
        truth, looked, history, logits, scores = label == 1, prism.embed(torch.from_numpy(image).float()[None, None]), [], None, []
        for _ in range(turns):
            shown = None if logits is None else (logits[:, 0] > 0).numpy()
            prism.clicks = 1
            history.append(Turn(prism.simulated(truth[None], shown, rng), logits))
            logits = prism.reply(looked, history)
            seen = logits if pick is None else pick(prism.decode(looked, history))
            found = (seen[0, 0] > 0).numpy()
            scores.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
        out.append(scores)
    return np.array(out)


@pytest.fixture(scope="module")
def trained() -> Prism:
    prism, rng = method(lr=5e-3), np.random.default_rng(0)
    optimizer = prism.optimizers()["main"]
    for step in range(60):
        torch.manual_seed(step)
        optimizer.zero_grad()
        sum(prism.losses(batch_of(rng), None).values()).backward()
        torch.nn.utils.clip_grad_norm_(prism.parameters(), prism.clip)
        optimizer.step()
    return prism.eval()


@torch.no_grad()
def test_five_turns_are_better_than_one_and_the_answer_is_a_corrected_best_mask(trained):
    scores = sessions(trained, np.random.default_rng(9))
    assert scores[:, 4].mean() > scores[:, 0].mean() + 0.05 and (np.diff(scores.mean(0)) > -0.02).all(), scores.mean(0)
    plain = sessions(trained, np.random.default_rng(9), pick=Candidates.best)
    assert scores[:, 2:].mean() > plain[:, 2:].mean(), "the corrective network is worth having"


@torch.no_grad()
def test_the_mask_is_chosen_by_its_predicted_dice():
    prism = method(refine=False).eval()
    looked, asked = prism.embed(torch.randn(1, 1, *(SIDE,) * 3)), [turn([8.0, 8, 8])]
    with torch.no_grad():
        for head in range(3):
            prism.network.score.layers[-1].bias.copy_(torch.tensor([-5.0] * 3).index_fill(0, torch.tensor([head]), 5.0))
            answer = prism.decode(looked, asked)
            assert answer.quality.argmax() == head and torch.equal(prism.reply(looked, asked), answer.logits[:, head : head + 1])


def test_the_encoder_looks_once_however_many_turns():
    prism, calls = method().eval(), []
    prism.network.stages[0].register_forward_hook(lambda *_: calls.append(1))
    rng = np.random.default_rng(0)
    prism.losses(batch_of(rng), None)
    assert len(calls) == 1
    with torch.no_grad():
        looked = prism.embed(torch.randn(1, 1, 40, 30, 16))  # larger than its input: looked at where it is asked about
        history = [turn([30.0, 10, 8])]
        for at in ([31.0, 12, 5], [27.0, 9, 9]):
            history.append(turn(at, logits=prism.reply(looked, history)))
        prism.reply(looked, history)
    assert len(calls) == 2


def test_the_corrective_networks_loss_reaches_nothing_else_and_the_others_do():
    prism, rng = method(), np.random.default_rng(1)
    terms = prism.losses(batch_of(rng), None)
    terms["refined"].backward(retain_graph=True)
    assert all(p.grad is None or not p.grad.any() for p in prism.network.parameters())
    assert any(p.grad.any() for p in prism.refiner.parameters())
    sum(v for k, v in terms.items() if k != "refined").backward()
    assert all(p.grad is not None for p in prism.network.parameters() if p is not prism.network.prompt_encoder.point_embeddings[2].weight
               and p is not prism.network.prompt_encoder.point_embeddings[3].weight)  # fmt: skip
    assert "refined" not in method(refine=False).losses(batch_of(rng), None)


def test_simulated_prompts_lie_in_the_error_with_their_sign_and_scribbles_in_one_plane():
    prism, rng = method(clicks=20, scribbles=1.0), np.random.default_rng(2)
    for _ in range(10):
        _, label = two_balls(rng)
        truth, shown = (label == 1)[None], np.roll(label == 1, 2, 1)[None]
        for seen in (None, shown):
            asked = prism.simulated(truth, seen, rng)
            for at, sign in zip(asked.points[0].long().tolist(), asked.signs[0].tolist(), strict=True):
                was = False if seen is None else seen[0][tuple(at)]
                assert truth[0][tuple(at)] == bool(sign) != was
        lone = method(clicks=1, scribbles=1.0).simulated(truth, None, rng).points[0, 1:]
        assert len(lone) and len(lone[:, AXIAL].unique()) == 1
    boxes = method(boxes=1.0)._boxes(np.stack([truth[0], np.zeros_like(truth[0])]), rng)
    where = np.argwhere(truth[0])
    assert np.allclose(boxes[0], [where.min(0) - 0.5, where.max(0) + 0.5]) and boxes[1].isnan().all()


def test_unannotated_voxels_teach_nothing_and_an_empty_patch_is_survived():
    prism, rng = method().eval(), np.random.default_rng(3)
    batch = batch_of(rng, 1)
    label = batch.labels["reference"]
    label[:, :, :, :6] = IGNORE
    other = Batch(batch.image, {"reference": label.clone()}, None, ["c"])
    looked, target = prism.embed(batch.image), torch.where(label == IGNORE, IGNORE, (label == 1).long())
    before = 3 * torch.randn(1, 1, *(SIDE,) * 3)
    answer = prism.decode(looked, [turn([8.0, 8, 8], logits=before)])
    poisoned = torch.where((label == IGNORE)[:, None], answer.logits + 9, answer.logits)
    a, b = (prism.objective(x[:, :1], target, ignore_index=IGNORE).item() for x in (answer.logits, poisoned))
    assert a == pytest.approx(b)
    other.labels["reference"].zero_()
    assert all(torch.isfinite(v) for v in prism.losses(other, None).values())


def test_edges_and_soft_dice_known_answers():
    step = torch.zeros(1, 1, 9, 9, 3)
    step[:, :, 5:] = 1
    e = edges(step)[0, 0]
    assert torch.allclose(e[:, 4, 1], torch.tensor([0, 0, 0, 0.2, 0.4, 0.4, 0.2, 0, 0]), atol=1e-6) and e[:, 4, 0].equal(e[:, 4, 2])
    p = torch.stack([step[0, 0], 0.5 * step[0, 0], 1 - step[0, 0]])[None]
    assert torch.allclose(soft_dice(p, step), torch.tensor([[1.0, 0.8, 0.0]]), atol=1e-4)


# ------------------------------------------------------------------------------------------------------------------------------ windows
def test_a_window_holds_all_prompts_moves_only_when_it_must_and_pastes_back_where_it_was():
    size, whole = (16, 16, 16), (64, 40, 12)
    first = turn([50.0, 20, 6])
    w = Window.on([first], whole, size)
    assert w.low == (43, 13, 0) and w.high == (59, 29, 12)
    assert Window.on([first, turn([55.0, 28, 3])], whole, size) == w
    wider = Window.on([first, turn([10.0, 20, 6])], whole, size)
    assert wider.low[0] == 6 and wider.high == w.high and wider.inner == (16, 16, 12)
    box = torch.tensor([[[2.0, 2, 2], [61.0, 20, 9]]])
    assert Window.on([turn([], boxes=box)], whole, size).high[0] == 64
    assert Window.on([turn([])], whole, size).high == whole, "nothing was pointed at: everything is looked at"
    x = torch.randn(1, 1, *whole)
    assert torch.equal(w.answer(w.seen(x), torch.zeros_like(x))[w.cut], x[w.cut])
    assert (w.answer(w.seen(x), torch.full_like(x, 7.0))[..., :40, :, :] == 7).all()


def test_prompts_move_with_the_window_also_where_it_shrinks():
    w = Window((6, 13, 0), (70, 29, 12), (16, 16, 16))
    image = torch.zeros(1, 1, 80, 40, 12)
    image[..., 36:44, 20:22, 5:7] = 1
    moved = w.asked(Asked(torch.tensor([[[39.5, 20.5, 5.5]]]), torch.ones(1, 1, dtype=torch.long)))
    where = (w.seen(image)[0, 0] > 0.5).nonzero().float().mean(0)
    assert torch.allclose(moved.points[0, 0], where, atol=0.3)
    assert w.answer(torch.ones(1, 3, 16, 16, 16), torch.zeros(1, 1, 80, 40, 12)).shape == (1, 3, 80, 40, 12)


def test_extent_looks_at_points_boxes_and_masks_and_not_at_padding():
    points = torch.tensor([[[5.0, 5, 5], [99, 99, 99]]])
    asked = Asked(points, torch.tensor([[0, -1]]))
    assert [e.tolist() for e in extent(asked)] == [[5, 5, 5], [5, 5, 5]]
    masks = torch.zeros(1, 1, 8, 8, 8)
    masks[..., 2:4, 1, 7] = 1
    low, high = extent(Asked(points, asked.signs, torch.full((1, 2, 3), torch.nan), masks))
    assert low.tolist() == [2, 1, 5] and high.tolist() == [5, 5, 7]
    assert extent(Asked(points, torch.full((1, 2), -1))) is None


@torch.no_grad()
def test_outside_the_window_nothing_is_found_and_a_given_mask_is_what_was_seen():
    prism = method().eval()
    looked = prism.embed(torch.randn(1, 1, 40, 20, 16))
    answer = prism.reply(looked, [turn([8.0, 10, 8])])
    assert answer.shape == (1, 1, 40, 20, 16) and (answer[:, :, 20:] == -SURE).all()
    masks = torch.zeros(1, 1, 40, 20, 16)
    masks[..., 30:36, 5:9, 4:8] = 1
    given = prism.reply(looked, [Turn(clicked([(np.array([[33, 6, 6]]), np.array([True]))])), turn([33.0, 6, 6], masks=masks)])
    assert (given[..., :10, :, :] == -SURE).all()


def test_options_that_make_no_sense_are_refused():
    for bad in ({"interactions": 0}, {"clicks": 0}, {"boxes": 1.5}, {"scribbles": -0.1}):
        with pytest.raises(UsageError):
            method(**bad)
    with pytest.raises(UsageError, match="volumes"):
        Prism(Plan(dims=2, patch=(16, 16)), open_dataset("phantom:shapes-2d"))
