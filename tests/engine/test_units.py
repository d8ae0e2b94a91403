"""What a sample may be besides a patch: a whole case, a pair, an expression, a text; and labels that a stage makes itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vesalius.core.case import Case, Condition, Image, LabelMap, Query
from vesalius.core.errors import DataError, GeometryError, UsageError
from vesalius.core.geometry import Geometry, Grid
from vesalius.core.manifest import Manifest
from vesalius.core.method import Sampling, Stage, Stream
from vesalius.core.plan import Plan
from vesalius.core.prediction import Prediction
from vesalius.engine import api
from vesalius.engine.infer import infer
from vesalius.engine.prepare import Cache, prepare
from vesalius.engine.restore import restore
from vesalius.engine.sample import Draws
from vesalius.inferers.whole import Whole
from vesalius.methods.learned import Classifier, LandmarkMethod, LearnedMethod, ReferringSegmenter

from ..memory import in_memory

SIDE = 12


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))


def manifest(make, number=6, dims=2, **more) -> Manifest:
    """A data set in memory: ``make(i) -> Case``."""
    return in_memory((make(i) for i in range(number)), dims, name=f"memory-{make.__name__}", **more)


def grey(i, shape=(SIDE, SIDE)):
    """A bright square whose place says which case it is; a table with gaps; two expressions."""
    data = np.zeros((1, *shape), np.float32)
    data[0, i : i + 3, 2:5] = 1 + i
    grid = Geometry.of(shape)
    square = LabelMap((data[0] > 0).astype(np.int16), grid)
    other = LabelMap((data[0] == 0).astype(np.int16), grid)
    table = {"age": 40 + i if i else None, "kind": "ab"[i % 2], "malignant": i % 2}
    return Case(
        f"c{i}",
        f"c{i}",
        images={"grey": Image(data, grid)},
        labels={"reference": square},
        queries=(Query("square", "the bright square", square), Query("rest", "everything else", other)),
        table=table,
    )


def plan(**more) -> Plan:
    given = dict(dims=2, channels=("grey",), in_channels=1, patch=(16, 16), batch=3, workers=0, threads=1, normalise={}, features=(4,))
    return Plan(**{**given, **more})


def test_views_of_one_case_may_have_grids_of_their_own():
    """The label lies on one of them; the others' intensities are taken from all of their pixels."""

    def views(i):
        case = grey(i)
        return case.with_(images={"other": Image(np.full((1, 5, 7), 3.0, np.float32), Geometry.of((5, 7)))})

    data = manifest(views)
    facts = api.fingerprint(data, [c.id for c in data.cases], api.reader(data))
    assert facts.intensities["other"]["mean"] == 3 and facts.intensities["grey"]["min"] == 1


class Asks(LearnedMethod):
    """A method that only says how it wants its samples."""

    wants = Sampling()

    def __init__(self, plan, manifest, *, parts=None):
        super().__init__(plan, manifest, parts=parts)
        self.layer = nn.Conv2d(1, 2, 3, padding=1)

    def sampling(self, stage):
        return self.wants


def draws(data, wants, kind=Asks, **more) -> Draws:
    method = kind(plan(**more), data)
    method.wants = wants
    cases = [Cache(data, method.plan, method, api.reader(data))[c.id] for c in data.cases]
    return Draws(cases, method, data, Stage(), seed=0, number=0)


def test_a_whole_case_lies_in_the_middle_of_the_patch():
    batch = draws(manifest(grey), Sampling(unit="case", spatial="none"))[0]
    assert batch.image.shape == (3, 1, 16, 16)
    for image, label, case in zip(batch.image, batch.label, batch.cases, strict=True):
        native = grey(int(case[1:]))
        np.testing.assert_array_equal(image[:, 2:14, 2:14], native.images["grey"].data)
        np.testing.assert_array_equal(label[2:14, 2:14], native.labels["reference"].data)
        assert image.sum() == native.images["grey"].data.sum()


def test_whole_inference_undoes_the_sampler_s_layout():
    image = torch.from_numpy(grey(3).images["grey"].data)
    seen = []

    def forward(x):
        seen.append(x)
        return {"maps": x * 2, "answer": x.sum((1, 2, 3))[:, None]}

    maps = Whole((16, 16))(forward, image)
    assert torch.equal(maps["maps"], 2 * image) and maps["answer"].shape == (1,)
    assert torch.equal(seen[0][0, :, 2:14, 2:14], image)
    odd = torch.rand(1, 7, 12)
    assert torch.equal(Whole((16, 15))(lambda x: x, odd), odd)
    with pytest.raises(GeometryError, match="larger than what the network sees"):
        Whole((8, 8))(forward, image)


def test_a_pair_is_two_different_cases_and_every_partner_comes():
    data = manifest(grey)
    many = draws(data, Sampling(unit="pair", spatial="none"))
    pairs = set()
    for i in range(40):
        batch = many[i]
        (partner,) = batch.views
        assert partner.image.shape == batch.image.shape and partner.label is not None
        pairs |= set(zip(batch.cases, partner.cases, strict=True))
    assert all(a != b for a, b in pairs)
    assert len(pairs) == 30  # 6 x 5 ordered pairs
    with pytest.raises(DataError, match="two training cases"):
        draws(manifest(grey, number=1), Sampling(unit="pair"))


def test_the_table_becomes_tensors_with_gaps_and_lists_of_words():
    batch = draws(manifest(grey), Sampling(unit="case", spatial="none"), batch=6)[0]
    ages = dict(zip(batch.cases, batch.table["age"].tolist(), strict=True))
    assert np.isnan(ages["c0"]) and ages["c4"] == 44
    assert dict(zip(batch.cases, batch.table["kind"], strict=True))["c1"] == "b"
    assert batch.table["malignant"].dtype == torch.float64


class Tells(Asks):
    """Its condition is the length of the expression drawn."""

    def condition(self, case, rng):
        assert not case.labels and all(q.target is None for q in case.queries)
        return Condition({"length": torch.tensor([[len(q.text) for q in case.queries]])})


def test_an_expression_comes_with_its_own_target_and_condition():
    many = draws(manifest(grey), Sampling(unit="case", query=True, spatial="none"), Tells)
    seen = set()
    for i in range(8):
        batch = many[i]
        assert set(batch.labels) == {"reference", "query"}
        assert batch.condition.values["length"].shape == (3, 1)
        for length, target, label in zip(batch.condition.values["length"], batch.labels["query"], batch.label, strict=True):
            bright = int(length) == len("the bright square")
            seen.add(bright)
            inside = (slice(2, 14),) * 2
            assert torch.equal(target[inside], label[inside] if bright else 1 - label[inside])
    assert seen == {True, False}


def report(i):
    return Case(f"c{i}", f"c{i}", text={"report": "dense " * (i + 1)}, table={"birads": i})


class Reads(Classifier):
    """Counts the words of a text; one weight."""

    def __init__(self, plan, manifest, *, parts=None, target=""):
        super().__init__(plan, manifest, parts=parts, target=target)
        self.head = nn.Linear(1, self.outputs)

    def optimizers(self):
        return {"main": torch.optim.Adam(self.parameters(), lr=0.1)}

    def condition(self, case, rng):
        return Condition({"words": torch.tensor([[float(len(case.text["report"].split()))]])})

    def forward(self, image, condition=None):
        assert image is None
        return {self.target: self.head(condition.values["words"])}


def test_texts_train_and_answer_without_an_image(tmp_path):
    data = manifest(report, 8, dims=0, targets={"birads": {"kind": "real"}})
    trained = api.train(Reads, data, tmp_path / "run", iterations=400, plan_overrides={"workers": 0, "batch": 4})
    answer = infer(trained.method, report(5), trained.plan)
    assert answer.table["birads"] == pytest.approx(5, abs=1.0)
    assert answer.label is None


def test_a_text_s_batch_has_no_image():
    data = manifest(report, 4, dims=0, targets={"birads": {"kind": "real"}})
    method = Reads(Plan(0, classes=(), batch=2, workers=0), data)
    cases = [Cache(data, method.plan, method, api.reader(data))[c.id] for c in data.cases]
    batch = Draws(cases, method, data, Stage(), seed=0, number=0)[0]
    assert batch.image is None and batch.to_case is None and batch.table["birads"].shape == (2,)


@pytest.mark.parametrize(
    ("kind", "levels", "values", "expected"),
    [
        ("binary", ("0", "1"), torch.tensor([1.0, float("nan"), 0.0]), ([1, 0, 0], [True, False, True])),
        ("nominal", ("a", "b", "c"), ["c", None, "a"], ([2, 0, 0], [True, False, True])),
        ("real", (), torch.tensor([2.5, float("nan")]), ([2.5, 0], [True, False])),
    ],
)
def test_levels_are_encoded_and_gaps_teach_nothing(kind, levels, values, expected):
    data = manifest(grey, targets={"t": {"kind": kind, "levels": levels} if levels else {"kind": kind}})
    method = Classifier(plan(), data)
    truth, known = method.encode(values)
    assert truth.tolist() == expected[0] and known.tolist() == expected[1]
    answer = torch.zeros(len(values), method.outputs, requires_grad=True)
    method.mismatch(answer, values).backward()
    assert [bool(row.any()) for row in answer.grad] == known.tolist()


def test_unknown_targets_and_levels_are_refused():
    data = manifest(grey, targets={"kind": {"kind": "nominal", "levels": ["a", "b"]}, "age": {"kind": "real"}})
    with pytest.raises(UsageError, match="which column"):
        Classifier(plan(), data)
    with pytest.raises(UsageError, match="no target"):
        Classifier(plan(), data, target="ages")
    with pytest.raises(UsageError, match="outside the target's levels"):
        Classifier(plan(), data, target="kind").encode(["z"])


class Square(LandmarkMethod):
    organs = {"foreground": 4}

    def forward(self, image, condition=None):
        """The corners of rows 3..7, columns 5..9 of a 12 x 12 case in the middle of 16 x 16."""
        index = torch.tensor([[3.0, 5.0], [7.0, 5.0], [7.0, 9.0], [3.0, 9.0]]) + 2
        return {"points": ((index + 0.5) / 16)[None].expand(len(image), -1, -1)}


@pytest.mark.parametrize("affine", [np.diag([1.0, 1, 1]), np.array([[0.5, 0, 3], [0, 2.0, -7], [0, 0, 1]])])
def test_points_go_home_in_world_mm_and_fill_the_original_grid(affine):
    case = grey(0)
    grid = Geometry(case.geometry.shape, affine)
    case = replace(case, images={"grey": Image(case.images["grey"].data, grid)}, labels={}, queries=())
    method = Square(plan(), manifest(grey))
    answer = infer(method, case, method.plan)
    np.testing.assert_allclose(grid.to_index(answer.points["foreground"].xyz), [[3, 5], [7, 5], [7, 9], [3, 9]], atol=1e-4)
    filled = np.asarray(answer.label.data)
    assert filled.shape == grid.shape and filled[4:7, 6:9].all() and not filled[:3].any() and not filled[:, 10:].any()


def test_fractions_and_finish_are_inverse():
    method = Square(plan(), manifest(grey))
    batch = draws(manifest(grey), Sampling(unit="case", spatial="none"))[0]
    batch.points = {"foreground": [np.array([[5.0, 7], [9, 7], [9, 11], [5, 11]])] * 3}
    assert torch.allclose(method.fractions(batch), method(batch.image)["points"])


class Refers(ReferringSegmenter):
    """Finds bright pixels, or dark ones when told to look for the rest."""

    def __init__(self, plan, manifest, *, parts=None):
        super().__init__(plan, manifest, parts=parts)
        self.gain = nn.Parameter(torch.ones(1))

    def condition(self, case, rng):
        (query,) = case.queries
        return Condition({"sign": torch.tensor([1.0 if "bright" in query.text else -1.0])})

    def forward(self, image, condition=None):
        return self.gain * (image - 0.5) * condition.values["sign"][:, None, None, None]


def test_every_expression_gets_a_mask_of_its_own():
    method = Refers(plan(), manifest(grey))
    answer = infer(method, grey(2), method.plan)
    assert answer.label.overlapping and answer.label.names == ("square", "rest")
    truth = np.asarray(grey(2).labels["reference"].data) > 0
    np.testing.assert_array_equal(answer.label.data[0], truth)
    np.testing.assert_array_equal(answer.label.data[1], ~truth)
    with pytest.raises(DataError, match="no expression"):
        infer(method, replace(grey(2), queries=()), method.plan)


def two_views(i):
    """A breast in two projections: other sizes, no common world."""
    one, two = Geometry.of((10, 8)), Geometry((6, 12), np.array([[2.0, 0, 100], [0, 2, 50], [0, 0, 1]]))
    images = {"CC": Image(np.full((1, 10, 8), 1.0 + i, np.float32), one), "MLO": Image(np.full((1, 6, 12), 20.0 + i, np.float32), two)}
    return Case(f"c{i}", f"c{i}", images=images, labels={"MLO": LabelMap(np.ones((6, 12), np.int16), two)})


def test_views_without_a_common_world_meet_in_voxels_and_go_home_one_by_one():
    plans = plan(channels=("CC", "MLO"), in_channels=2, grid=Grid(size=(16, 16)), views=True)
    prepared = prepare(two_views(0), plans)
    stack = prepared.stack()
    assert stack.shape == (2, 16, 16) and stack[0].min() == 1 and stack[1].min() == 20  # each view fills its own grid
    assert prepared.labels["MLO"].data.all()
    on_mlo = Prediction(images={"heat": Image(np.ones((1, 16, 16), np.float32), prepared.images["MLO"].geometry)})
    pairs = [(prepared.images[k].geometry, v.geometry) for k, v in two_views(0).images.items()]
    home = restore(on_mlo, prepared.geometry, two_views(0).geometry, plans.classes, others=pairs)
    assert home.images["heat"].geometry == two_views(0).images["MLO"].geometry
    with pytest.raises(DataError, match="one size"):
        prepare(two_views(0), replace(plans, grid=Grid()))


def each_view(case):
    for name, image in case.images.items():
        yield Case(f"{case.id}/{name}", case.patient, images={"view": image})


def test_one_case_unfolds_to_several_and_is_cached_once():
    data = manifest(two_views, 3)
    calls = []

    def read(case):
        calls.append(case)
        return api.reader(data)(case)

    plans = plan(channels=("view",), grid=Grid(size=(16, 16)))
    for _ in range(2):
        cache = Cache(data, plans, None, read, each_view)
        parts = [p for c in data.cases for p in cache.all(c.id)]
        assert [p.id for p in parts] == [f"c{i}/{v}" for i in range(3) for v in ("CC", "MLO")]
        assert {p.facts["of"] for p in parts} == {"c0", "c1", "c2"}
    assert calls == ["c0", "c1", "c2"]


class Relabels(LearnedMethod):
    """Stage one learns the reference, stage two what the network then says; each stage notes the labels it was given."""

    def __init__(self, plan, manifest, *, parts=None):
        super().__init__(plan, manifest, parts=parts)
        self.layer = nn.Conv2d(1, 2, 1)
        self.seen = {"own": [], "given": []}

    def stages(self):
        return Stage("given", 0.5), Stage("own", 0.5, relabel=self.own)

    def own(self, case, rng):
        assert not self.training and not torch.is_grad_enabled()
        everything = np.full(case.geometry.shape, 1, np.int16)
        return case.with_(labels={"reference": LabelMap(everything, case.geometry)})

    def forward(self, image, condition=None):
        return self.layer(image)

    def losses(self, batch, clock, turn="main"):
        self.seen[clock.stage].append(bool((batch.label == 1).all()))
        return {"ce": nn.functional.cross_entropy(self(batch.image), batch.label)}


def test_a_stage_makes_its_own_labels(tmp_path):
    overrides = {"workers": 0, "batch": 2, "patch": (4, 4), "features": (4,), "precision": "32"}
    trained = api.train(Relabels, manifest(grey), tmp_path / "run", iterations=8, plan_overrides=overrides)
    assert trained.method.seen["given"] and not any(trained.method.seen["given"])
    assert trained.method.seen["own"] and all(trained.method.seen["own"])


def test_streams_still_choose_cases_of_an_unfolded_set():
    data = manifest(two_views, 4)
    method = Asks(plan(channels=("view",), grid=Grid(size=(16, 16))), data)
    cache = Cache(data, method.plan, None, api.reader(data), each_view)
    parts = [p for c in data.cases for p in cache.all(c.id)]
    method.wants = Sampling(unit="case", streams=(Stream("two", 2, lambda row: row.id in ("c1", "c2")),), spatial="none")
    batch = Draws(parts, method, data, Stage(), seed=0, number=0)[0]
    assert {c.split("/")[0] for c in batch.cases} <= {"c1", "c2"}
