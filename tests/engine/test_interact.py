"""Sessions: one embedding, answers on the original grid, undo; and the simulated user who measures them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius.core.case import Case, Image, LabelMap
from vesalius.core.errors import DataError, GeometryError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import Manifest
from vesalius.core.plan import Plan
from vesalius.core.prompt import Box, Candidates, Lasso, Mask, Point, Scribble
from vesalius.engine.interact import Session, simulate, structures
from vesalius.methods.prompted import PromptableMethod

SHAPE, NAMES = (24, 20, 16), ("background", "liver", "spleen")


class Ball(PromptableMethod):
    """Answers a ball of ``radius`` voxels around every positive click and in every box or mask, less one around every negative click."""

    kinds = frozenset({"point", "scribble", "box", "mask"})
    radius = 3.0

    def __init__(self, plan, manifest):
        super().__init__(plan, manifest)
        self.bias, self.embedded = torch.nn.Parameter(torch.zeros(1)), 0

    def embed(self, image, condition=None):
        self.embedded += 1
        return image

    def decode(self, embedding, history):
        at = torch.stack(torch.meshgrid(*[torch.arange(n) for n in embedding.shape[2:]], indexing="ij"), -1).float()
        inside = torch.zeros(embedding.shape[2:], dtype=torch.bool)
        for turn in history:
            asked = turn.prompts
            if asked.boxes is not None:
                inside |= ((at >= asked.boxes[0, 0]) & (at <= asked.boxes[0, 1])).all(-1)
            if asked.masks is not None:
                inside |= asked.masks[0, 0] >= 0.5
            for point, sign in zip(asked.points[0], asked.signs[0], strict=True):
                ball = (at - point).norm(dim=-1) <= self.radius
                inside = inside | ball if sign else inside & ~ball
        logits = torch.where(inside, 5.0, -5.0)[None, None] + self.bias
        return Candidates(torch.cat([-logits, logits], 1), torch.tensor([[0.1, 0.9]]))


def affine(kind: str) -> np.ndarray:
    c, s = np.cos(np.radians(25)), np.sin(np.radians(25))
    turn = {"ras": np.eye(3), "lps": np.diag([-1.0, -1.0, 1.0]), "oblique": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])}[kind]
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = turn * 2.0, (10, -20, 30)
    return out


def case_of(kind: str = "ras", empty: bool = False) -> Case:
    geometry, label = Geometry(SHAPE, affine(kind)), np.zeros(SHAPE, np.uint8)
    if not empty:
        label[4:10, 3:8, 5:9], label[14:20, 10:16, 9:12] = 1, 2
    image = np.random.default_rng(0).standard_normal((1, *SHAPE)).astype(np.float32)
    return Case("c", images={"CT": Image(image, geometry)}, labels={"reference": LabelMap(label, geometry, NAMES)})


def ball_of(dims: int = 3) -> tuple[Ball, Plan]:
    plan = Plan(dims=dims, channels=("CT",), classes=NAMES, patch=(16,) * dims)
    return Ball(plan, Manifest("m", Path("."), dims, ("CT",), dict(zip(NAMES, range(3), strict=True)), ())), plan


def mask_of(answer, name):
    return np.asarray(answer.probability.data)[answer.names.index(name)] >= 0.5


@pytest.mark.parametrize("kind", ["ras", "lps", "oblique"])
def test_a_click_in_world_coordinates_answers_there_on_the_original_grid(kind):
    method, plan = ball_of()
    case = case_of(kind)
    at = np.array([5, 14, 12])
    answer = Session(method, case, plan).ask([Point(tuple(case.geometry.to_world(at)), object="liver")])
    where = np.argwhere(mask_of(answer, "liver"))
    assert answer.probability.geometry == case.geometry and np.abs(where.mean(0) - at).max() < 0.35
    low, high = (tuple(case.geometry.to_world(np.array(e))) for e in ([3.6, 2.6, 4.6], [9.4, 7.4, 8.4]))
    low, high = np.minimum(low, high), np.maximum(low, high)
    if kind != "oblique":
        boxed = mask_of(Session(method, case, plan).ask([Box(tuple(low), tuple(high), "liver")]), "liver")
        assert np.array_equal(boxed, case.labels["reference"].data == 1)


def test_one_embedding_a_session_objects_apart_undo_redo():
    method, plan = ball_of()
    case = case_of()
    session, world = Session(method, case, plan), case.geometry.to_world
    first = session.ask([Point(tuple(world(np.array([6, 5, 7]))), object="liver")])
    both = session.ask([Point(tuple(world(np.array([17, 13, 10]))), object="spleen")])
    assert both.names == ("liver", "spleen") and np.array_equal(mask_of(first, "liver"), mask_of(both, "liver"))
    assert session.undo().names == ("liver",) and session.redo().names == ("liver", "spleen")
    session.undo()
    assert session.undo().probability is None
    with pytest.raises(UsageError, match="nothing to undo"):
        session.undo()
    session.ask([Point(tuple(world(np.array([6, 5, 7]))), object="spleen")])
    with pytest.raises(UsageError, match="nothing to redo"):
        session.redo()
    assert method.embedded == 1


def test_what_is_refused_leaves_the_session_as_it_was():
    method, plan = ball_of()
    session = Session(method, case_of(), plan)
    for prompt in (
        Point((1e4, 0, 0)),
        Point((0.0, 0.0)),
        Scribble(np.full((3, 3), np.nan)),
        Box((1e4,) * 3, (2e4,) * 3),
        Box((5,) * 3, (0,) * 3),
    ):
        with pytest.raises(GeometryError):
            session.ask([prompt])
    method.kinds = frozenset({"point"})
    with pytest.raises(UsageError, match="does not understand"):
        session.ask([Box((10, -20, 30), (20, -10, 40))])
    with pytest.raises(UsageError, match="nothing was asked"):
        session.ask([])
    assert session.at == 0 and session.answer().probability is None


def test_a_lasso_is_a_mask_a_box_or_a_click_as_the_method_understands():
    method, plan = ball_of(2)
    geometry = Geometry.of((30, 30), 1.0)
    case = Case("c", images={"CT": Image(np.zeros((1, 30, 30), np.float32), geometry)})
    round_ = 15 + 8 * np.stack([f(np.linspace(0, 2 * np.pi, 40, endpoint=False)) for f in (np.sin, np.cos)], 1)
    sizes = []
    for kinds in ({"mask", "box", "point"}, {"box", "point"}, {"point"}):
        method.kinds = frozenset(kinds)
        sizes.append(int(mask_of(Session(method, case, plan).ask([Lasso(round_)]), "spleen").sum()))
    assert abs(sizes[0] - np.pi * 64) < 12 and 256 <= sizes[1] <= 17**2 and sizes[2] == 29
    with pytest.raises(GeometryError, match="lasso"):
        Session(method, case, plan).ask([Lasso(round_ + 100)])
    drawn = LabelMap(np.ones((10, 10), np.uint8), Geometry.of((10, 10), 1.0, origin=(5.0, 5.0)))
    method.kinds = frozenset({"mask"})
    assert mask_of(Session(method, case, plan).ask([Mask(drawn)]), "spleen").sum() >= 100


@pytest.mark.parametrize("kind", ["ras", "lps", "oblique"])
def test_the_simulated_user_improves_the_answer(kind):
    method, plan = ball_of()
    method.radius = 1.5
    case = case_of(kind)
    truths = structures(case, NAMES)
    scores = []
    for answer in simulate(method, case, plan, "6clicks", seed=1):
        scores.append([2 * (mask_of(answer, n) & t).sum() / (mask_of(answer, n).sum() + t.sum()) for n, t in truths.items()])
    assert len(scores) == 6 and (np.diff(np.mean(scores, 1)) > 0).all()
    if kind == "ras":
        (boxed,) = simulate(method, case, plan, "box")
        assert all(np.array_equal(mask_of(boxed, n), t) for n, t in truths.items())


def test_a_perfect_answer_is_left_alone_and_a_case_without_reference_refused():
    method, plan = ball_of()
    answers = list(simulate(method, case_of(), plan, "box+3clicks"))
    assert len(answers) == 4 and answers[3] is answers[0], "nothing was wrong any more"
    with pytest.raises(DataError, match="an empty reference"):
        list(simulate(method, case_of(empty=True), plan, "1click"))
    with pytest.raises(DataError, match="no reference"):
        list(simulate(method, case_of().without_labels(), plan, "1click"))


def test_predict_needs_a_prompt():
    method, plan = ball_of()
    with pytest.raises(UsageError, match="answers to prompts"):
        method.predict(case_of(), rng=np.random.default_rng(0))
