"""imos: the loss's parts, invariances of propagation, and that a memory follows an object farther than a copy or the last frame."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from vesalius.core.case import IGNORE, Batch, Case, Image, LabelMap
from vesalius.core.errors import DataError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.method import Clock, Stage
from vesalius.core.plan import Plan
from vesalius.core.prompt import Mask
from vesalius.datasets import open_dataset
from vesalius.engine.interact import SequenceSession
from vesalius.inferers.propagation import both_ways
from vesalius.methods.promptable.imos import IMOS, bootstrapped, hard_share, lost

SHAPE = (24, 24, 16)
NAMES = ("background", "bright", "dark")


def method(**options) -> IMOS:
    manifest = open_dataset("phantom:shapes-3d")
    plan = Plan(dims=3, channels=("image",), classes=manifest.names, patch=SHAPE, features=(8, 16))
    torch.manual_seed(0)
    return IMOS(plan, manifest, **{"key": 8, "value": 16, "hidden": 8, "every": 2, "frames": 8, **options})


def sequence(rng, objects: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Discs that wander and grow, and distractors alike that the label knows nothing of; (24, 24, 16) image and label."""
    label, image, at = np.zeros(SHAPE, np.int64), 0.3 * rng.standard_normal(SHAPE), np.indices(SHAPE[:2])
    rows = rng.permutation([5, 18])
    for k in range(2):
        start, drift = rng.uniform(6, 17), rng.choice([-1, 1]) * rng.uniform(0.3, 0.5)
        radius = rng.uniform(3, 4) + 1.2 * np.sin(np.arange(SHAPE[2]) / 4 + rng.uniform(0, 6))
        for t in range(SHAPE[2]):
            centre = rows[k], np.clip(start + drift * (t - SHAPE[2] / 2), 4, 19)
            disc = np.hypot(at[0] - centre[0], at[1] - centre[1]) <= radius[t]
            image[disc, t] += 2.0
            label[disc, t] = k + 1 if k < objects else 0
    return image, label


def batch_of(rng, n: int = 4, frames: int = 8, objects: int = 1) -> Batch:
    drawn = [(*sequence(rng, objects), int(rng.integers(SHAPE[2] - frames + 1))) for _ in range(n)]
    image = torch.from_numpy(np.stack([i[..., s : s + frames] for i, _, s in drawn])).float()[:, None]
    return Batch(image, {"reference": torch.from_numpy(np.stack([x[..., s : s + frames] for _, x, s in drawn]))}, None, ["c"] * n)


@pytest.fixture(scope="module")
def trained() -> IMOS:
    net, rng = method(lr=4e-3), np.random.default_rng(0)
    optimizer = net.optimizers()["main"]
    for step in range(50):
        torch.manual_seed(step)
        loss = sum(net.losses(batch_of(rng), Clock(step, 50)).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), net.clip)
        optimizer.step()
    return net.eval()


@torch.no_grad()
def carried(net: IMOS, image: np.ndarray, given: dict[int, np.ndarray]) -> torch.Tensor:
    """(T, K, h, w) for an image (h, w, T) and masks (K, h, w)."""
    frames = torch.from_numpy(image).float().movedim(-1, 0)[:, None]
    looks = [net.embed(f[None]) for f in frames]
    references = {t: torch.from_numpy(m).float() for t, m in given.items()}
    return both_ways(net, looks.__getitem__, len(frames), references, every=net.every)


def dice(a, b) -> float:
    return 2 * (a & b).sum() / max(1, a.sum() + b.sum())


def test_the_hard_share_of_the_pixels_counts():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    assert torch.isclose(bootstrapped(logits, target, 1.0), cross_entropy(logits, target))
    each = cross_entropy(logits, target, reduction="none").flatten(1).sort(1, descending=True).values
    assert torch.isclose(bootstrapped(logits, target, 0.25), each[:, :5].mean())
    target[0, :2] = IGNORE
    known = cross_entropy(logits[:1], target[:1], reduction="none", ignore_index=IGNORE).flatten().sort(descending=True).values
    assert torch.isclose(bootstrapped(logits[:1], target[:1], 0.5), known[:5].mean())
    assert torch.isfinite(bootstrapped(logits, torch.full_like(target, IGNORE), 0.5))
    assert [hard_share(f, 0.15) for f in (0, 0.2, 0.7, 1)] == pytest.approx([1, 1, 0.15, 0.15])
    assert hard_share(0.45, 0.15) == pytest.approx(0.575) and hard_share(1, 1.0) == 1


def test_dice_is_of_shown_objects_in_the_whole_clip():
    found, truth = torch.zeros(1, 2, 3, 4, 4), torch.zeros(1, 2, 3, 4, 4)
    found[0, 0, 0], truth[0, 0, :2], found[0, 1] = 1, 1, 1
    shown = torch.tensor([[True, False]])
    assert torch.isclose(lost(found, truth, shown), torch.tensor(1 - 33 / 49)) and lost(truth, truth, shown) == 0
    assert lost(found, truth, ~shown & False) == 0


def test_a_clip_follows_what_its_reference_frame_shows():
    net, rng = method(objects=2), np.random.default_rng(0)
    label = torch.zeros(2, 4, 8, 8, dtype=torch.long)
    label[0, 1:, :2], label[0, 2:, 4:], label[1, 1] = 1, 2, IGNORE
    assert {net._reference(label, rng) for _ in range(30)} == {1, 2, 3}
    target = net._chosen(label, 1, rng)
    assert set(target[0].unique().tolist()) == {0, 1} and torch.equal(target[0] == 1, label[0] == 1), "the second was not there yet"
    assert torch.equal(target[1], label[1])
    both = {tuple(net._chosen(label, 2, rng)[0, 3, [0, 7], 0].tolist()) for _ in range(20)}
    assert both == {(1, 2), (2, 1)}, "objects have no names"


def test_it_follows_farther_than_a_copy_and_finds_the_one_of_two_alike(trained):
    """Against a copy of the nearest mask; from the middle, from the first frame and from three."""
    rng = np.random.default_rng(77)
    scores = {k: [] for k in ("middle", "first", "three", "copy", "far", "far copy")}
    for _ in range(8):
        image, label = sequence(rng)
        truth = np.moveaxis(label == 1, -1, 0)[:, None]
        answers = {
            "middle": carried(trained, image, {8: truth[8]}),
            "first": carried(trained, image, {0: truth[0]}),
            "three": carried(trained, image, {t: truth[t] for t in (2, 8, 13)}),
        }
        for name, p in answers.items():
            scores[name].append(np.mean([dice(p[t, 0].numpy() >= 0.5, truth[t, 0]) for t in range(16) if t not in (0, 2, 8, 13)]))
        scores["copy"].append(np.mean([dice(truth[8, 0], truth[t, 0]) for t in range(16) if t not in (0, 2, 8, 13)]))
        scores["far"].append(np.mean([dice(answers["middle"][t, 0].numpy() >= 0.5, truth[t, 0]) for t in (1, 15)]))
        scores["far copy"].append(np.mean([dice(truth[8, 0], truth[t, 0]) for t in (1, 15)]))
    mean = {k: float(np.mean(v)) for k, v in scores.items()}
    assert mean["middle"] > mean["copy"] + 0.15 and mean["far"] > mean["far copy"] + 0.25, mean
    assert mean["three"] >= mean["middle"] - 0.01 and mean["middle"] >= mean["first"] - 0.01 and mean["middle"] > 0.85, mean


def test_turned_round_it_answers_turned_round(trained):
    image, label = sequence(np.random.default_rng(5), 2)
    masks = np.stack([label == 1, label == 2], 1)  # (h, 2, w, T)
    given = {4: masks[..., 4].swapaxes(0, 1), 11: masks[..., 11].swapaxes(0, 1)}
    there = carried(trained, image, given)
    back = carried(trained, image[..., ::-1].copy(), {15 - t: m for t, m in given.items()})
    assert torch.equal(there, back.flip(0))
    assert all(torch.equal(there[t], torch.from_numpy(m).float()) for t, m in given.items())
    assert there.sum(1).max() <= 1 + 1e-5, "two objects share a pixel's probability with the background"


def test_a_session_keeps_what_was_drawn_and_carries_it_on_the_cases_own_grid(trained):
    """In an LPS case whose slices follow each other along its first axis of the method's last."""
    image, label = sequence(np.random.default_rng(9))
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])[:, [2, 0, 1, 3]]  # index axes: S, L, P
    geometry = Geometry((16, 24, 24), affine)
    case = Case("c", images={"image": Image(np.moveaxis(image, -1, 0)[None].astype(np.float32), geometry)})
    truth = np.moveaxis(label == 1, -1, 0)
    session = SequenceSession(trained, case, trained.plan)
    assert session.axis == 0 and session.along == 2
    drawn = LabelMap((truth & (np.arange(16) == 8)[:, None, None]).astype(np.uint8), geometry)
    answer = session.ask([Mask(drawn, "bright")])
    found = np.asarray(answer.probability.data)[0] >= 0.5
    assert answer.probability.geometry == geometry and np.array_equal(found[8], truth[8])
    assert np.mean([dice(found[t], truth[t]) for t in (5, 6, 10, 11)]) > 0.75
    with torch.no_grad():
        assert len(session.frames.held) == 16 and session.frame(3) is session.frames.held[3]


def test_adapters_alone_learn_from_the_weights_of_a_run(tmp_path):
    from vesalius.engine import checkpoint

    base = method()
    tensors, facts = base.state()
    checkpoint.write(tmp_path / "method.safetensors", tensors, {"facts": facts})
    tuned = method(adapters=True, tune="adapters", pretrained=str(tmp_path))
    image, label = sequence(np.random.default_rng(1))
    given = {8: (label[..., 8] == 1)[None]}
    assert torch.equal(carried(base.eval(), image, given), carried(tuned.eval(), image, given))
    learning = [n for n, p in tuned.named_parameters() if p.requires_grad]
    assert learning and all("adapters." in n for n in learning)
    sum(tuned.train().losses(batch_of(np.random.default_rng(0), 2), Clock(0, 10)).values()).backward()
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)
    with pytest.raises(UsageError, match="no adapters"):
        method(tune="adapters")
    with pytest.raises(UsageError, match="no such run"):
        method(pretrained=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="another shape"):
        method(pretrained=str(tmp_path), key=16)
    with pytest.raises(UsageError, match="no such memory"):
        method(frames=1)


def test_a_clip_has_few_frames_along_the_coarsest_axis():
    net = method()
    assert net.axis == 2 and net.sampling(Stage()).size == (24, 24, 8)
    flat = IMOS(net.plan.derive(kernels=((1, 3, 3), (3, 3, 3))), net.manifest)
    assert flat.axis == 0 and flat.sampling(Stage()).size == (8, 24, 16)


def test_the_baseline_remembers_the_last_frame_alone():
    net = method(recall="last").eval()
    assert net.every == 1
    image, label = sequence(np.random.default_rng(1))
    memory = net.memory()
    for t in (3, 7):
        with torch.no_grad():
            frame = net.embed(torch.from_numpy(image[None, None, :, :, t]).float())
            memory = net.remember(frame, torch.ones(1, 24, 24), memory, given=True, at=0)
    assert len(memory.bank) == 12 * 12
