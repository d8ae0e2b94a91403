"""The invariants of the paper's net: what the text state depends on, unit norms, bilinear start, boxes, stages, and empty answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, normalize

from vesalius.core.case import IGNORE, Batch, Case, Condition, Image, LabelMap, Query
from vesalius.core.errors import DataError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import Manifest, Split
from vesalius.core.method import Clock, Stage
from vesalius.core.plan import Plan
from vesalius.core.prompt import Text
from vesalius.engine import api
from vesalius.engine.infer import infer
from vesalius.methods.language.lstm_fcn_language import LSTMFCN, regions
from vesalius.networks.blocks.vgg import VGG, Upsample
from vesalius.networks.text import CLS, PAD, SEP, BagOfWords, LastState, WordPieces

from ...memory import in_memory

SIDE = 32
SMALL = dict(widths=(8, 16), convs=(1, 1), fc=16, features=16, embedding=16, hidden=16, mlp=64, lr=5e-3)
PHRASES = ("the left disc, not the right one", "the right disc, not the left one")
GRID = Geometry.of((SIDE, SIDE))


def two_discs(i: int) -> Case:
    """One disc on each side; the expressions mean one of them each, by the order of their words, or neither."""
    rng = np.random.default_rng(i)
    y, x = np.mgrid[:SIDE, :SIDE]
    image, masks = 0.1 * rng.standard_normal((SIDE, SIDE)), []
    for low in (6, 20):
        centre = rng.uniform((8, low), (24, low + 6))
        masks.append(np.hypot(y - centre[0], x - centre[1]) < 5)
        image[masks[-1]] += 1
    target = lambda m: LabelMap(m.astype(np.int16), GRID, ("background", "target"))
    queries = [Query(f"q{k}", text, target(m)) for k, (text, m) in enumerate(zip(PHRASES, masks, strict=True))]
    queries.append(Query("none", "the square", target(np.zeros((SIDE, SIDE), bool))))
    return Case(
        f"c{i}",
        f"c{i}",
        images={"grey": Image(image[None].astype(np.float32), GRID)},
        labels={"reference": target(masks[0] | masks[1])},
        queries=tuple(queries),
    )


def data(number=12, make=two_discs) -> Manifest:
    return in_memory((make(i) for i in range(number)), 2, ("background", "disc"))


def plan(**more) -> Plan:
    given = dict(dims=2, channels=("grey",), patch=(SIDE, SIDE), batch=6, workers=0, threads=1, normalise={}, precision="32")
    return Plan(**{**given, **more})


def method(**more) -> LSTMFCN:
    torch.manual_seed(0)
    made = LSTMFCN(plan(), data(1), **{**SMALL, **more})
    made.words = WordPieces.learn([*PHRASES, "the square", "the big round one"] * 2, 200)
    return made.eval()


def ids(made: LSTMFCN, *texts: str, length: int | None = None) -> torch.Tensor:
    return torch.from_numpy(np.stack([made.words.encode(t, length or made.length) for t in texts]))


# ------------------------------------------------------------------------------------------------------------------------ the text state
@pytest.mark.parametrize("reader", [LastState, BagOfWords])
def test_padding_does_not_alter_the_state(reader):
    torch.manual_seed(0)
    read = reader(20, width=8, hidden=8)
    short = torch.tensor([[CLS, 7, 9, SEP]])
    long = torch.tensor([[CLS, 7, 9, SEP] + [PAD] * 6])
    beside = torch.cat([long, torch.randint(5, 20, (1, 10))])  # a longer text in the batch
    assert torch.allclose(read(short), read(long), atol=1e-6) and torch.allclose(read(short), read(beside)[:1], atol=1e-6)


def test_the_order_of_words_matters_to_the_lstm_alone():
    made = {text: method(text=text) for text in ("lstm", "bag", "none")}
    image = torch.randn(1, 1, SIDE, SIDE).expand(2, -1, -1, -1)
    for text, m in made.items():
        with torch.no_grad():
            one, other = m(image, Condition({"ids": ids(m, *PHRASES)}))
            _, another = m(image, Condition({"ids": ids(m, "the square", "the big round one")}))
        assert torch.allclose(one, other, atol=1e-6) == (text != "lstm")
        assert torch.allclose(one, another, atol=1e-6) == (text == "none")


def test_visual_and_text_parts_have_unit_norm_in_every_cell():
    m = method()
    visual, where = torch.randn(3, 16, 4, 5) * torch.rand(3, 1, 4, 5) * 9, torch.randn(1, 8, 4, 5)
    fused = m.fuse(visual, ids(m, *PHRASES, "the square"), where)
    assert fused.shape == (3, 16 + 16 + 8, 4, 5)
    assert torch.allclose(fused[:, :16].norm(dim=1), torch.ones(3, 4, 5), atol=1e-5)
    assert torch.allclose(fused[:, 16:32].norm(dim=1), torch.ones(3, 4, 5), atol=1e-5)
    assert torch.equal(fused[:, 32:], where.expand(3, -1, -1, -1))
    assert (fused[:, 16:32] == fused[:, 16:32, :1, :1]).all()  # the same expression in every cell
    assert torch.allclose(fused[:, :16], normalize(visual, dim=1)) and method(coordinates=False).fuse(visual, None, where).shape[1] == 32


@pytest.mark.parametrize("stride", [2, 4, 32])
def test_the_deconvolution_begins_as_bilinear_interpolation(stride):
    up = Upsample(stride)
    assert up.weight.shape[-1] == 2 * stride and up.bias is None
    with torch.no_grad():
        flat, ramp = up(torch.ones(1, 1, 5, 5)), up(torch.arange(5.0).view(1, 1, 1, 5).expand(1, 1, 5, 5))
    inside = (..., slice(stride, -stride), slice(stride, -stride))
    assert flat.shape == (1, 1, 5 * stride, 5 * stride) and torch.allclose(flat[inside], torch.ones(()), atol=1e-5)
    expected = torch.nn.functional.interpolate(torch.arange(5.0).view(1, 1, 1, 5), (1, 5 * stride), mode="bilinear")
    assert torch.allclose(ramp[inside][0, 0, 0], expected[0, 0, 0, stride:-stride], atol=1e-4)


def test_the_convolutions_are_those_of_vgg_16():
    state = VGG(3).state_dict()
    assert [k for k in state if k.endswith("weight")] == [f"features.{i}.weight" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]
    assert sum(v.numel() for v in state.values()) == 14_714_688
    assert VGG(2, (4, 8), (1, 2))(torch.randn(1, 2, 16, 8)).shape == (1, 8, 4, 2)


# ---------------------------------------------------------------------------------------------------------------------------- training
def batch(*cases: int, query: int = 0, made: LSTMFCN | None = None) -> Batch:
    drawn = [two_discs(i) for i in cases]
    image = torch.from_numpy(np.stack([c.images["grey"].data for c in drawn]))
    labels = {
        "reference": torch.from_numpy(np.stack([c.labels["reference"].data for c in drawn])).long(),
        "query": torch.from_numpy(np.stack([c.queries[query].target.data for c in drawn])).long(),
    }
    told = None if made is None else Condition({"ids": ids(made, *[c.queries[query].text for c in drawn])})
    return Batch(image, labels, None, [c.id for c in drawn], condition=told)


def test_regions_are_the_object_the_others_and_chance():
    drawn = batch(0, 1, 2, query=1)
    boxes, right = regions(drawn, np.random.default_rng(0))
    assert boxes.shape == (3, 4, 4) and right.shape == (3, 4) and (boxes[..., 2:] > boxes[..., :2]).all()
    assert (right[:, 0] == 1).all() and (boxes[:, 0, 2] > 0).all()  # the disc on the right
    others = [b for b, r in zip(boxes.flatten(0, 1), right.flatten(), strict=True) if not r and b[2] < 0.3 and b[2] - b[0] < 0.8]
    assert others  # the other disc, moved a little, is a wrong box
    assert not regions(batch(0, 1, query=2), np.random.default_rng(0))[1].any()  # an expression that means nothing: all are wrong
    del drawn.labels["reference"]
    assert regions(drawn, np.random.default_rng(1))[1][:, 0].all()


@pytest.mark.parametrize("stage", ["boxes", "cells", "pixels"])
def test_every_stage_teaches_what_it_uses(stage):
    m = method().train()
    m.stage = Stage(stage)
    (loss,) = m.losses(batch(0, 1, made=m), Clock(0, 10)).values()
    loss.backward()
    silent = {n.partition(".")[0] for n, p in m.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent == ({"upsample"} if stage != "pixels" else set()) and torch.isfinite(loss)


def test_the_convolutions_rest_on_the_cells():
    stages = {s.name: s for s in method().stages()}
    assert list(stages) == ["boxes", "cells", "pixels"]
    assert stages["cells"].trainable == ("fc", "language", "head") and not stages["pixels"].trainable
    assert not method(fixed=False).stages()[1].trainable
    direct = method(shares=(0.0, 0.0, 1.0)).stages()
    assert [s.name for s in direct] == ["pixels"]
    assert not method(shares=(0.0, 0.5, 0.5)).stages()[0].trainable  # nothing was learnt before: all must learn


@pytest.mark.parametrize("stage", ["cells", "pixels"])
def test_pixels_nobody_spoke_for_count_for_nothing(stage):
    m, drawn = method(), batch(0, 1, made=method())
    m.stage = Stage(stage)
    meant = (drawn.labels["query"] > 0).float()[:, None]
    drawn.labels["query"][:, :8] = IGNORE
    with torch.no_grad():
        loss = float(m.losses(drawn, Clock(0, 10))["segmentation"])
        if stage == "cells":
            scores, meant, first = m.cells(drawn.image, drawn.condition.values["ids"]), avg_pool2d(meant, m.stride), 8 // m.stride
        else:
            scores, first = m(drawn.image, drawn.condition), 8
        expected = binary_cross_entropy_with_logits(scores[:, :, first:], meant[:, :, first:])
        assert loss == pytest.approx(float(expected), rel=1e-5)
        m.positive = 3.0
        assert float(m.losses(drawn, Clock(0, 10))["segmentation"]) > loss


def test_the_order_of_words_is_learnt(tmp_path, monkeypatch):
    """A bag of words cannot: its answers to the two expressions are equal. The run opened again answers the same."""
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))
    split = Split(tuple(f"c{i}" for i in range(10)), (), ("c10", "c11"))
    done = api.train(
        LSTMFCN, data(), tmp_path / "run", options=SMALL, iterations=240, plan=plan(), split=split, plan_overrides={"workers": 0}
    )
    right = []
    for i in (10, 11):
        case = two_discs(i)
        answer = infer(done.method, case, done.plan)
        assert answer.label.overlapping and answer.label.names == ("q0", "q1", "none")
        for k, q in enumerate(case.queries[:2]):
            truth = np.asarray(q.target.data) > 0
            mask = answer.label.data[k]
            right.append((mask & truth).sum() / max(1, (mask | truth).sum()))
        assert not answer.label.data[2].any() and answer.table["query:none"] < 0.5  # nothing, and a score that says so
        assert any("'the square' means nothing here" in n for n in answer.notes)
    assert np.mean(right) > 0.4, right


# -------------------------------------------------------------------------------------------------------------------------- prediction
def test_texts_may_come_as_prompts_and_unknown_words_are_named():
    m = method()
    case = two_discs(0)
    with torch.no_grad():
        answer = m.predict(replace(case, queries=case.queries[:1]), [Text("the square", object="sq"), Text("a stone")], rng=None)
    assert answer.names == ("q0", "sq", "text2") and set(answer.table) == {"query:q0", "query:sq", "query:text2"}
    assert any("the word 'stone'" in n for n in answer.notes) and not any("'square'" in n and "had the word" in n for n in answer.notes)
    for name, p in zip(answer.names, answer.probability.data, strict=True):
        assert answer.table[f"query:{name}"] == pytest.approx(float(p.max()))


def test_bad_input_teaches():
    m = method()
    case = two_discs(0)
    with pytest.raises(DataError, match="no expression to look for"):
        m.predict(replace(case, queries=()), rng=None)
    with pytest.raises(DataError, match="without words"):
        m.predict(replace(case, queries=(Query("q", "  "),)), rng=None)
    for wrong in ({"convs": (1,)}, {"shares": (1.0, 0.0, 0.0)}, {"shares": (1.0, 1.0)}, {"words": 2}, {"mlp": 0}):
        with pytest.raises(UsageError):
            method(**wrong)
    with pytest.raises(UsageError, match="learns from expressions"):
        m.losses(replace(batch(0), condition=None), Clock(0, 1))


def test_data_without_expressions_are_refused_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))
    mute = data(3, lambda i: replace(two_discs(i), queries=()))
    with pytest.raises(DataError, match="queries=templated"):
        api.train(LSTMFCN, mute, tmp_path / "run", options=SMALL, iterations=3, plan=plan(), split=Split(("c0", "c1"), (), ("c2",)))


def test_cases_of_other_shapes_lie_on_the_square():
    m = LSTMFCN(plan(patch=(24, 40)), data(1), **SMALL)
    assert m.plan.patch == (40, 40) and m.plan.grid.longest == 40
    assert LSTMFCN(plan(), data(1), **SMALL, size=33).plan.patch == (36, 36)
    grid = Geometry.of((20, 50))
    wide = Case("w", "w", images={"grey": Image(np.zeros((1, 20, 50), np.float32), grid)}, queries=(Query("q", "the disc"),))
    assert infer(m, wide, m.plan).label.data.shape == (20, 50)
