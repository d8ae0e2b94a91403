"""Sessions: one embedding, answers on the original grid, undo; and the simulated user who measures them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius.core.case import Case, Image, LabelMap
from vesalius.core.errors import DataError, GeometryError, UsageError
from vesalius.core.geometry import Geometry, Grid
from vesalius.core.manifest import Manifest
from vesalius.core.plan import Plan
from vesalius.core.prompt import Asked, Box, Candidates, Lasso, Mask, Point, Scribble, Turn
from vesalius.engine.interact import SequenceSession, Session, respond, session, simulate, structures
from vesalius.methods.prompted import PromptableMethod, SequenceMethod

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


def test_the_simulated_hand_is_unsteady_in_another_way_in_every_case_and_alike_for_every_method():
    method, plan = ball_of()

    def outline(name, seed=0):
        (answer,) = simulate(method, replace(case_of(), id=name), plan, "box20", seed=seed)
        return np.argwhere(mask_of(answer, "spleen")).tolist()

    assert outline("a") == outline("a") and len({str(outline(name)) for name in "abcdef"}) > 3
    assert any(outline(name) != outline(name, seed=1) for name in "abc")


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


class Several(Ball):
    """Three balls for every click, of which it thinks the smallest best, however good they are."""

    radii, ranks = (2.0, 4.0, 7.0), (0.95, 0.93, 0.9)

    def decode(self, embedding, history):
        rows = []
        for b in range(len(history[0].prompts.points)):
            one, answers = [Turn(Asked(t.prompts.points[b : b + 1], t.prompts.signs[b : b + 1])) for t in history], []
            for radius in self.radii:
                self.radius = radius
                answers.append(super().decode(embedding, one).logits[:, 1:])
            rows.append(torch.cat(answers, 1))
        return Candidates(torch.cat(rows), torch.tensor([self.ranks]).expand(len(rows), -1))


def disc_case() -> Case:
    geometry, at = Geometry.of((40, 40), 1.0), np.indices((40, 40))
    label = (np.hypot(at[0] - 12, at[1] - 12) <= 7).astype(np.uint8) + 2 * (np.hypot(at[0] - 30, at[1] - 28) <= 4).astype(np.uint8)
    image = np.random.default_rng(0).standard_normal((1, 40, 40)).astype(np.float32)
    return Case("d", images={"CT": Image(image, geometry)}, labels={"reference": LabelMap(label, geometry, NAMES)})


def several() -> tuple[Several, Plan]:
    plan = Plan(dims=2, channels=("CT",), classes=NAMES, patch=(16, 16))
    return Several(plan, Manifest("m", Path("."), 2, ("CT",), dict(zip(NAMES, range(3), strict=True)), ())), plan


def overlap(answer, truths):
    return {n: 2 * (mask_of(answer, n) & t).sum() / (mask_of(answer, n).sum() + t.sum()) for n, t in truths.items()}


def test_an_oracle_picks_the_best_of_the_masks_and_is_never_worse_than_the_models_own_choice():
    method, plan = several()
    case = disc_case()
    truths = structures(case, NAMES)
    own, picked = (overlap(a, truths) for a in simulate(method, case, plan, "1click+pick", seed=1))
    assert all(picked[n] >= own[n] for n in truths) and picked["liver"] == 1 and picked["spleen"] == 1 and own["liver"] < 0.4
    one = Session(method, case, plan)
    with pytest.raises(UsageError, match="nothing was asked about"):
        one.candidates("liver")
    one.ask([Point((12.0, 12.0), object="liver")])
    masks = one.candidates("liver")
    assert masks.shape == (3, 40, 40)
    assert mask_of(one.choose({"liver": masks[2]}), "liver").sum() == truths["liver"].sum()
    assert mask_of(one.undo(), "liver").sum() < 20 and method.embedded == 2


def test_everything_is_found_without_a_word_and_an_oracle_names_it():
    method, plan = several()
    case = disc_case()
    (answer,) = simulate(method, case, plan, "everything10")
    assert min(overlap(answer, structures(case, NAMES)).values()) > 0.6
    poisoned = Several(plan, method.manifest)
    poisoned.ranks = (0.5, 0.5, 0.5)
    (nothing,) = simulate(poisoned, case, plan, "everything10")
    assert not mask_of(nothing, "liver").any(), "no mask is thought good enough"
    volume, plan = ball_of()
    with pytest.raises(UsageError, match="2D image"):
        Session(volume, case_of(), plan).everything(4)


@pytest.mark.parametrize("kind", ["ras", "lps", "oblique"])
def test_prompts_in_every_slice_lie_in_the_slices_that_show_the_structure(kind):
    method, plan = ball_of()
    case, seen = case_of(kind), []
    method.boxes_by_slice = True
    method.asked = lambda prompts, geometry: seen.append(prompts) or PromptableMethod.asked(method, prompts, geometry)
    list(simulate(method, case, plan, "each-1click"))
    list(simulate(method, case, plan, "each-box"))
    for points, extent in zip(seen[:2], (range(5, 9), range(9, 12)), strict=True):
        index = case.geometry.to_index(np.array([p.xyz for p in points]))
        assert np.allclose(index[:, 2], list(extent)) and [p.frame for p in points] == list(extent)
    if kind != "oblique":
        low, high = (case.geometry.to_index(np.array([getattr(b, e) for b in seen[2]])) for e in ("low", "high"))
        assert np.allclose(low[:, 2], high[:, 2]) and np.allclose(np.sort([low[0, :2], high[0, :2]], 0), [[3.5, 2.5], [9.5, 7.5]])


class Copy(SequenceMethod):
    """Carries the newest mask on unchanged, where the image is bright."""

    every = 10**6

    def __init__(self, plan, manifest):
        super().__init__(plan, manifest)
        self.here, self.embedded = torch.nn.Parameter(torch.zeros(1)), []

    def embed(self, image, condition=None):
        self.embedded.append(float(image.sum()))
        return image

    def memory(self):
        return None

    def remember(self, frame, masks, memory, *, given, at):
        return masks

    def carry(self, frame, memory):
        return memory * (frame[0, 0] > 0), memory


def sequence_of(kind: str, spacing: float | None = None) -> tuple[Copy, Plan, Case]:
    """Both structures are columns through all slices; the image is bright but in slice 12."""
    geometry, label, image = Geometry(SHAPE, affine(kind)), np.zeros(SHAPE, np.uint8), np.ones((1, *SHAPE), np.float32)
    label[4:10, 3:8], label[14:20, 10:16] = 1, 2
    image[..., 12] = -1
    case = Case("c", images={"CT": Image(image, geometry)}, labels={"reference": LabelMap(label, geometry, NAMES)})
    plan = Plan(dims=3, channels=("CT",), classes=NAMES, patch=(16,) * 3, grid=Grid(spacing=(spacing,) * 3 if spacing else None))
    return Copy(plan, Manifest("m", Path("."), 3, ("CT",), dict(zip(NAMES, range(3), strict=True)), ())), plan, case


@pytest.mark.parametrize("spacing", [None, 1.3])
@pytest.mark.parametrize("kind", ["ras", "lps", "oblique"])
def test_masks_of_one_slice_are_carried_to_all_others_on_the_original_grid(kind, spacing):
    method, plan, case = sequence_of(kind, spacing)
    (answer,) = simulate(method, case, plan, "1slice")
    for name, truth in structures(case, NAMES).items():
        found = mask_of(answer, name)
        seen = [k for k in range(16) if k != 12]
        assert dice_of(found[..., seen], truth[..., seen]) > (0.99 if spacing is None else 0.9)
        if spacing is None:
            assert not found[..., 12].any()
    label = respond(method, case, plan, prompts="1slice").label
    assert label.geometry == case.geometry and label.data[5, 5, 3] == 1 and label.data[16, 12, 3] == 2
    assert isinstance(session(method, case, plan), SequenceSession) and method.usual == "1slice"


def dice_of(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_what_was_drawn_stays_and_corrections_are_carried_too():
    method, plan, case = sequence_of("lps")
    one = SequenceSession(method, case, plan)
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[0:3, 0:3, 12] = 1  # dark, as the method sees it
    with_label = [Mask(LabelMap(drawn, case.geometry), "liver")]
    answer = one.ask(with_label)
    assert np.array_equal(mask_of(answer, "liver")[..., 12], drawn[..., 12] > 0) and mask_of(answer, "liver").sum() == 9 * 16
    empty = Mask(LabelMap(np.zeros_like(drawn), case.geometry), "liver", frame=3)
    corrected = mask_of(one.ask([empty]), "liver")
    assert not corrected[..., :4].any() and corrected[0, 0, 8:].all(), "slices below the empty one are empty, those near the other are not"
    assert one.at == 2 and len(method.embedded) == 16, "every slice is embedded once"
    assert mask_of(one.undo(), "liver").sum() == 9 * 16
    both = one.ask([Mask(LabelMap((case.labels["reference"].data == 2).astype(np.uint8), case.geometry), "spleen", frame=5)])
    assert both.names == ("liver", "spleen") and mask_of(both, "liver").sum() == 9 * 16 and mask_of(both, "spleen")[15, 12, 0]
    assert both.label.overlapping and both.label.geometry == case.geometry


def test_another_axis_can_be_asked_for_and_what_makes_no_sense_is_refused():
    method, plan, case = sequence_of("lps")
    one = SequenceSession(method, case, plan, axis=0)
    drawn = LabelMap((case.labels["reference"].data == 1).astype(np.uint8), case.geometry)
    found = mask_of(one.ask([Mask(drawn, "liver", frame=6)]), "liver")
    assert len(one.frames.held) == 24 and found[0, 5, 5] and not found[0, 5, 12]
    for prompt, match in (
        (Point((0.0, 0.0, 0.0)), "does not understand"),
        (Mask(drawn, frame=24), "no slice"),
        (Mask(drawn, frame=-1), "no slice"),
    ):
        with pytest.raises((UsageError, GeometryError), match=match):
            one.ask([prompt])
    with pytest.raises(GeometryError, match="no slice"):
        one.ask([Mask(LabelMap(np.zeros(SHAPE, np.uint8), case.geometry))])
    assert one.at == 1
    with pytest.raises(UsageError, match="volume"):
        SequenceSession(method, case, plan, axis=3)
    with pytest.raises(UsageError, match="SequenceSession"):
        method.predict(case, rng=np.random.default_rng(0))


def test_further_slices_are_outlined_where_the_answer_is_wrong():
    method, plan, case = sequence_of("ras")
    answers = list(simulate(method, case, plan, "1slice+1slice+1slice"))
    assert mask_of(answers[1], "liver")[..., 12].any(), "the dark slice is the only one that is wrong"
    assert answers[2] is answers[1]
