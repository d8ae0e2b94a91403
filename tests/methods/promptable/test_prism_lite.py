"""prism-lite: any mask to start from, clicks of all turns, what clicks are worth, and that a bad start is mended."""

from copy import copy

import numpy as np
import pytest
import torch

from vesalius.core.case import Batch, Case, Image, LabelMap
from vesalius.core.errors import UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.method import Method
from vesalius.core.plan import Plan
from vesalius.core.prediction import Prediction
from vesalius.core.prompt import Asked, Mask, Point, Turn
from vesalius.datasets import open_dataset
from vesalius.engine.interact import Session
from vesalius.methods.promptable.prism_lite import START, Begun, PrismLite, damaged
from vesalius.methods.unrolled import SURE

SIDE = 20
NAMES = ("background", "bright", "dark")


class Known(Method):
    """A segmenter that answers two boxes."""

    def predict(self, case, prompts=(), *, rng):
        maps = np.zeros((3, *case.geometry.shape), np.float32)
        maps[1, 2:8, 2:8, 2:8], maps[2, 12:18, 12:18, 12:18] = 0.9, 0.8
        maps[0] = 1 - maps[1:].sum(0)
        return Prediction(probability=Image(maps, case.geometry))


def method(**options) -> PrismLite:
    manifest = open_dataset("phantom:shapes-3d")
    plan = Plan(dims=3, channels=("image",), classes=manifest.names, patch=(SIDE,) * 3, features=(4, 8))
    torch.manual_seed(0)
    return PrismLite(plan, manifest, parts={"segmenter": Known(plan, manifest)}, **{"interactions": 3, "clicks": 3, **options})


def shell(rng) -> tuple[np.ndarray, np.ndarray]:
    """A speckled half shell (multiplicative Rayleigh noise), as a placenta lies in an ultrasound volume; and its mask."""
    at = np.indices((SIDE,) * 3) - np.array([10 + rng.uniform(-1, 1), 6.0, 10 + rng.uniform(-1, 1)]).reshape(3, 1, 1, 1)
    r = np.sqrt((at**2).sum(0))
    inside = (np.abs(r - rng.uniform(5.5, 7)) < 2) & (at[1] > 0)
    return (0.6 + 0.6 * inside) * rng.rayleigh(1.0, inside.shape), inside


def batch_of(rng, n=2) -> Batch:
    images, masks = zip(*[shell(rng) for _ in range(n)], strict=True)
    labels = {"reference": torch.from_numpy(np.stack(masks)).long()}
    return Batch(torch.from_numpy(np.stack(images)).float()[:, None] - 1, labels, None, ["c"] * n)


@torch.enable_grad()
def fitted() -> PrismLite:
    lite, rng = method(lr=4e-3, scribbles=0.0), np.random.default_rng(0)
    optimizer = lite.optimizers()["main"]
    for step in range(50):
        torch.manual_seed(step)
        optimizer.zero_grad()
        sum(lite.losses(batch_of(rng), None).values()).backward()
        optimizer.step()
    lite.clicks = 1
    return lite.eval()


def dice(a, b):
    return 2 * (a & b).sum() / max(1, a.sum() + b.sum())


def start(image, mask) -> tuple[Begun, torch.Tensor]:
    """An image as it is embedded, and the logits of a first mask."""
    begun = Begun(torch.from_numpy(image).float()[None, None] - 1, torch.zeros(1, 0, SIDE, SIDE, SIDE))
    return begun, SURE * (2 * torch.from_numpy(mask).float()[None, None] - 1)


def sessions(lite, spoil, n=12, turns=5) -> np.ndarray:
    """(n, turns + 1) Dice from a start made of the truth by ``spoil``, that of the start first."""
    rng, out = np.random.default_rng(7), []
    for _ in range(n):
        image, truth = shell(rng)
        begun, logits = start(image, spoil(truth))
        history, scores = [], [dice((logits[0, 0] > 0).numpy(), truth)]
        for _ in range(turns):
            history.append(Turn(lite.simulated(truth[None], (logits[:, 0] > 0).numpy(), rng), logits))
            logits = lite.reply(begun, history)
            scores.append(dice((logits[0, 0] > 0).numpy(), truth))
        out.append(scores)
    return np.array(out)


def hole(truth):
    """A block of the mask is missing."""
    out = truth.copy()
    out[: SIDE // 2] = False
    return out


def moved(truth):
    return np.roll(truth, 1, 0)


@pytest.fixture(scope="module")
def one_thread():
    """Sums of another number of threads round otherwise, and fifty steps make much of that."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def seeing(one_thread) -> PrismLite:
    return fitted()


@torch.no_grad()
def test_a_bad_start_is_mended(seeing):
    """That it is the clicks that do it shows in longer trainings (the proof), and below in one answer."""
    bad, good = sessions(seeing, hole), sessions(seeing, moved)
    assert bad[:, 5].mean() > bad[:, 0].mean() + 0.05, bad.mean(0)
    assert good[:, 5].mean() > good[:, 0].mean()
    gap = np.abs(good - bad).mean(0)
    assert gap[5] < 0.8 * gap[0], "the gap between a good and a bad start shrinks"


@torch.no_grad()
def test_the_answer_moves_to_what_a_click_says(seeing):
    deaf = copy(seeing)
    deaf.guided = False
    rng, towards = np.random.default_rng(7), []
    for _ in range(24):
        image, truth = shell(rng)
        begun, logits = start(image, hole(truth))
        for sign in (1, 0):
            at = tuple(rng.permutation(np.argwhere(truth == sign))[0])
            asked = [turn(at, signs=[sign], logits=logits)]
            towards.append((2 * sign - 1) * float((seeing.reply(begun, asked) - deaf.reply(begun, asked))[0, 0][at]))
    assert np.mean(towards) > 0.02


def turn(*points, signs=None, logits=None, masks=None) -> Turn:
    at = torch.tensor(points, dtype=torch.float32).view(1, -1, 3)
    return Turn(Asked(at, torch.tensor([signs or [1] * len(points)]).view(1, -1), masks=masks), logits)


class Watch(torch.nn.Module):
    """Stands where the network stands, remembers what it saw, and gives the mask back."""

    def __init__(self):
        super().__init__()
        self.here = torch.nn.Parameter(torch.zeros(1))  # says on which device

    def forward(self, image, logits, clicks):
        self.image, self.logits, self.clicks = image, logits, clicks
        return logits


def test_clicks_of_all_turns_are_seen_at_every_turn_and_the_first_mask_is_the_one_clicked_on():
    lite = method()
    lite.network = Watch()
    image = torch.randn(1, 1, SIDE, SIDE, SIDE)
    starts = torch.zeros(1, 2, SIDE, SIDE, SIDE)
    starts[:, 0, :6], starts[:, 1, 12:] = 0.9, 0.7
    begun = lite.embed(torch.cat([image, starts], 1))
    assert torch.equal(begun.image, image) and torch.equal(begun.starts, starts)
    first = turn((14, 3, 3), (9, 9, 9))
    answer = lite.reply(begun, [first])
    assert torch.equal(answer > 0, starts[:, 1:] > 0.5) and set(answer.unique().tolist()) == {-SURE, SURE}
    lite.reply(begun, [first, turn((1, 1, 1), signs=[0], logits=answer), turn((2, 2, 2), signs=[0], logits=answer)])
    assert lite.network.clicks.sum((2, 3, 4)).tolist() == [[2, 2]]
    drawn = torch.zeros(1, 1, SIDE, SIDE, SIDE)
    drawn[..., 4:8] = 1
    assert torch.equal(lite.reply(begun, [first, turn((1, 1, 1), logits=answer, masks=drawn)]) > 0, drawn > 0.5)
    lite.guided = False
    lite.reply(begun, [first])
    assert not lite.network.clicks.any()
    nothing = lite.embed(image)
    assert (lite.reply(nothing, [first]) == -SURE).all(), "nobody gave a mask: an empty one is mended"


def case_of() -> Case:
    geometry = Geometry.of((SIDE,) * 3, 2.0)
    return Case("c", images={"image": Image(np.zeros((1, SIDE, SIDE, SIDE), np.float32), geometry)})


def test_a_session_starts_from_the_segmenters_mask_or_from_one_that_is_brought_along():
    lite, case = method(), case_of()
    lite.network = Watch()
    world = case.geometry.to_world
    session = Session(lite, case, lite.plan)
    answer = session.ask([Point(tuple(world(np.array([14, 14, 14]))), object="dark")])
    found = np.asarray(answer.probability.data)[0] >= 0.5
    assert found[12:18, 12:18, 12:18].all() and found.sum() == 6**3
    mine = np.zeros((SIDE,) * 3, np.uint8)
    mine[0:4] = 1
    answer = Session(lite, case, lite.plan).ask([Mask(LabelMap(mine, case.geometry))])
    assert np.array_equal(np.asarray(answer.probability.data)[0] >= 0.5, mine > 0)


def test_training_starts_from_the_segmenters_mask_of_the_case_and_damages_a_share():
    from vesalius.engine.prepare import prepare

    lite = method(damage=0.0)
    known = lite.started(prepare(case_of(), lite.plan, lite), np.random.default_rng(0)).labels[START]
    assert known.names == NAMES and set(np.unique(known.data)) == {0, 1, 2} and (known.data == 2).sum() == 6**3
    label = torch.from_numpy(np.asarray(known.data)).long()[None]
    batch = Batch(torch.zeros(1, 1, SIDE, SIDE, SIDE), {"reference": torch.zeros_like(label), START: label}, None, ["c"])
    rng = np.random.default_rng(0)
    assert torch.equal(lite.begin(batch, [2], rng)[0] > 0, label == 2)
    lite.damage = 1.0
    assert not torch.equal(lite.begin(batch, [2], rng)[0] > 0, label == 2)


def test_damage_is_of_many_kinds_and_leaves_nothing_empty_to_work_on():
    rng = np.random.default_rng(0)
    _, mask = shell(rng)
    scores = np.array([dice(damaged(mask, rng), mask) for _ in range(60)])
    assert (scores < 1).all() and (scores == 0).any() and ((scores > 0.3) & (scores < 0.95)).sum() > 15
    assert not damaged(np.zeros((5, 5, 5), bool), rng).any()


def test_no_encoder_and_not_the_segmenter_is_counted_and_bad_options_are_refused():
    manifest = open_dataset("phantom:shapes-3d")
    own = PrismLite(Plan(dims=3, channels=("image",), classes=NAMES, patch=(SIDE,) * 3), manifest)
    assert 100_000 < sum(p.numel() for p in own.parameters()) < 140_000 and type(own.parts["segmenter"]).__name__ == "PlannedUNet"
    assert not own.train().parts["segmenter"].training
    for bad in ({"damage": 2.0}, {"share": 1.0}):
        with pytest.raises(UsageError):
            method(**bad)
