"""EUS-USFM: what the pretext sees and moves, how layers learn at their own rates, one component a class, and the study's guards."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius import catalog
from vesalius.core.case import Batch, Case, Image, LabelMap
from vesalius.core.errors import UsageError
from vesalius.core.geometry import Geometry, LongestSide
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock, Stage
from vesalius.core.plan import Plan
from vesalius.core.prediction import Prediction
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.engine.infer import infer
from vesalius.engine.prepare import Cache, prepare
from vesalius.engine.progress import Progress
from vesalius.engine.restore import restore
from vesalius.engine.sample import Draws
from vesalius.engine.study import read_as
from vesalius.methods.networks.eus_usfm import UNTAUGHT, EusUsfm, MaskedFrames, one_component
from vesalius.metrics import overlap
from vesalius.report.statistics import mean_interval

from ...memory import in_memory

CLASSES = ("background", "lesion")
SMALL = dict(catalog.get("eus-usfm").small)
PLAN = {"workers": 0, "batch": 2, "patch": (32, 32), "precision": "32", "threads": 1, "test_mirror": ()}


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)


def case(i: int, shape: tuple[int, ...], labelled: bool, margin: int = 0) -> Case:
    """A dark blob in speckle; ``margin`` pixels of nothing around the sector."""
    rng, grid = np.random.default_rng(i), Geometry.of(shape, (0.5, 0.5))
    label = np.zeros(shape, np.int16)
    label[10 + margin : 20 + margin + i % 3, 8 + margin : 22 + margin] = 1
    image = rng.rayleigh(40, shape) * (1 - 0.7 * label) + 20
    if margin:
        inside = np.zeros(shape, bool)
        inside[margin:-margin, margin:-margin] = True
        image = np.where(inside, image, 0)
    labels = {"reference": LabelMap(label, grid, CLASSES)} if labelled else {}
    return Case(f"c{i}", f"c{i}", images={"US": Image(image.astype(np.float32)[None], grid)}, labels=labels)


def dataset(n: int = 4, labelled: tuple[int, ...] = (0, 1), shape=(40, 36), margin: int = 0) -> Manifest:
    return in_memory([case(i, shape, i in labelled, margin) for i in range(n)], 2, CLASSES, split="train")


def plan(**more) -> Plan:
    given = dict(classes=CLASSES, patch=(32, 32), batch=2, workers=0, augmentation={}, mirror_axes=(), normalise={"US": "zscore"})
    return Plan(2, ("US",), **{**given, **more})


def method(**options) -> EusUsfm:
    return catalog.build("eus-usfm", plan(), dataset(), options={**SMALL, **options})


def stage(m: EusUsfm) -> MaskedFrames:
    return MaskedFrames(m.plan, m.manifest, m.network.backbone, m.masks, m.pretext, m.rate)


def batch_of(m, data: Manifest) -> Batch:
    cache = Cache(data, m.plan, m, api.reader(data))
    return Draws([p for c in data.cases for p in cache.all(c.id)], m, data, Stage(), seed=0, number=0)[0]


# ----------------------------------------------------------------------------------------------------------------------------- the pretext
def test_the_pretext_sees_all_frames_and_no_label():
    m = method()
    data, seen = dataset(), set()
    pretext = stage(m)
    cache = Cache(data, m.plan, pretext, api.reader(data))
    many = Draws([p for c in data.cases for p in cache.all(c.id)], pretext, data, Stage(), seed=0, number=0)
    for i in range(4):
        assert not many[i].labels and many[i].image.shape == (2, 1, 32, 32)
        seen |= set(many[i].cases)
    assert seen == {"c0", "c1", "c2", "c3"}


def test_hidden_tokens_and_removed_bands_do_not_enter_the_guess():
    m = method()
    pretext, x = stage(m).eval(), torch.randn(2, 1, 32, 32)
    hidden, removed = m.masks.blocks(x, 8), m.masks.bands(x)
    pixels = hidden.repeat_interleave(8, 1).repeat_interleave(8, 2).unsqueeze(1)
    with torch.no_grad():
        guess = pretext.guess(x, hidden, None)
        assert torch.equal(guess, pretext.guess(torch.where(pixels, torch.randn_like(x), x), hidden, None))
        assert not torch.allclose(guess, pretext.guess(torch.where(pixels, x, torch.randn_like(x)), hidden, None), atol=1e-3)
        wave = torch.fft.ifft2(torch.fft.fft2(torch.randn_like(x)) * removed.unsqueeze(1)).real
        torch.testing.assert_close(pretext.guess(x, None, removed), pretext.guess(x + wave, None, removed), atol=1e-4, rtol=1e-4)
        kept = torch.fft.ifft2(torch.fft.fft2(torch.randn_like(x)) * ~removed.unsqueeze(1)).real
        assert not torch.allclose(pretext.guess(x, None, removed), pretext.guess(x + kept, None, removed), atol=1e-3)


@pytest.mark.parametrize("pretext, terms", [("both", {"blocks", "bands"}), ("blocks", {"blocks"}), ("rings", {"bands"})])
def test_each_pretext_asks_for_what_it_hides_and_moves_every_weight(pretext, terms):
    m = method(pretext=pretext)
    task = stage(m).train()
    found = task.losses(batch_of(task, dataset()), Clock(0, 10))
    assert set(found) == terms
    sum(found.values()).backward()
    assert all(p.grad is not None for p in task.parameters())
    assert all(p.grad is None for p in m.network.head.parameters())


def test_the_pretext_learns_to_guess():
    task, losses = stage(method()).train(), []
    batch, optimiser = batch_of(task, dataset()), task.optimizers()["main"]
    smooth = torch.linspace(-1, 1, 32).expand(2, 1, 32, 32) + torch.linspace(-1, 1, 32)[:, None]
    batch.image = smooth.contiguous()
    for step in range(40):
        torch.manual_seed(step % 4)
        loss = sum(task.losses(batch, Clock(step, 40)).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


# -------------------------------------------------------------------------------------------------------------------------- fine-tuning
def test_each_block_learns_at_a_share_of_the_rate_of_the_one_above():
    m = method(lr=1e-3, layer_decay=0.5, weight_decay=0.1)
    names = {id(p): n for n, p in m.network.named_parameters()}
    rates, decays = {}, {}
    for group in m.optimizers()["main"].param_groups:
        for p in group["params"]:
            rates[names[id(p)]], decays[names[id(p)]] = group["lr"], group["weight_decay"]
    assert set(rates) == set(names.values())
    assert {v for n, v in rates.items() if n.startswith("head.")} == {1e-3}
    assert {v for n, v in rates.items() if n.startswith("backbone.blocks.1.")} == {5e-4}
    assert {v for n, v in rates.items() if n.startswith("backbone.blocks.0.")} == {2.5e-4}
    assert rates["backbone.cls_token"] == rates["backbone.patch_embed.proj.weight"] == 1.25e-4
    assert decays["backbone.cls_token"] == decays["backbone.blocks.0.gamma_1"] == decays["backbone.blocks.0.mlp.fc1.bias"] == 0
    assert decays["backbone.blocks.0.mlp.fc1.weight"] == 0.1


def test_the_rate_warms_up_from_a_sixth_and_ends_at_zero():
    m = method()
    rate = [m.learning_rate(Clock(i, 400)) for i in range(400)]
    assert rate[0] == pytest.approx(1 / 6 + 5 / 6 / 20) and rate[19] == pytest.approx(1) and max(rate) <= 1 and rate[-1] < 1e-3


def test_cross_entropy_and_the_auxiliary_heads_share():
    m = method(drop_path=0.0, dropout=0.0).train()
    batch = batch_of(m, dataset(labelled=(0, 1, 2, 3)))
    terms = m.losses(batch, Clock(0, 10))
    main, auxiliary = (torch.nn.functional.cross_entropy(z, batch.label.long()) for z in m.network(batch.image))
    torch.testing.assert_close(terms["segmentation"], main, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(terms["auxiliary"], 0.4 * auxiliary, atol=1e-4, rtol=1e-4)
    assert set(method(head="segvit", width=12, head_heads=2).train().losses(batch, Clock(0, 10))) == {"classes", "focal", "dice"}


@pytest.mark.parametrize("head", ["upernet", "segvit"])
@pytest.mark.parametrize("channels, classes, size", [(1, 2, (45, 70)), (3, 7, (64, 37))])
def test_any_input(head, channels, classes, size):
    names = {"background": 0, **{f"c{k}": k for k in range(1, classes)}}
    images = tuple(f"i{k}" for k in range(channels))
    odd = Plan(2, images, channels, tuple(names), patch=size)
    manifest = Manifest("made", Path("."), 2, images, names, ())
    m = catalog.build("eus-usfm", odd, manifest, options={**SMALL, "head": head, "width": 12, "head_heads": 2})
    image, label = torch.randn(2, channels, *m.plan.patch), torch.randint(0, classes, (2, *m.plan.patch))
    batch = Batch(image, {"reference": label}, torch.eye(3).expand(2, 3, 3), ["a", "b"])
    sum(m.train().losses(batch, Clock(0, 10)).values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in m.parameters())
    sum(stage(m).losses(batch, Clock(0, 10)).values()).backward()
    with torch.no_grad():
        logits = m.eval()(torch.randn(1, channels, *size))
    assert logits.shape == (1, classes, *size) and torch.isfinite(logits).all()


# ------------------------------------------------------------------------------------------------------------------------------ training
def test_a_run_from_frames_to_masks_and_a_run_from_its_weights(tmp_path, monkeypatch):
    seen: dict[str, set] = {}
    for kind in (MaskedFrames, EusUsfm):

        def losses(self, batch, clock, turn="main", real=kind.losses, name=kind.__name__):
            assert name == "EusUsfm" or not batch.labels
            seen.setdefault(name, set()).update(batch.cases)
            return real(self, batch, clock, turn)

        monkeypatch.setattr(kind, "losses", losses)
    data = dataset(labelled=())
    common = dict(iterations=6, plan_overrides=PLAN, split=data.split(val=0, test=0))
    first = api.train("eus-usfm", data, tmp_path / "frames", options=SMALL, **common)
    assert set(seen) == {"MaskedFrames"}
    assert UNTAUGHT in infer(first.method, api.reader(data)("c0"), first.plan).notes
    fresh = api.build("eus-usfm", first.plan, data, {}, SMALL).network.backbone.state_dict()
    learnt = {k: v.clone() for k, v in first.method.network.backbone.state_dict().items()}
    assert any(not torch.equal(fresh[k], v) for k, v in learnt.items())

    kept: dict[str, torch.Tensor] = {}
    real = EusUsfm.optimizers
    start = lambda s: (kept.update({k: v.clone() for k, v in s.network.backbone.state_dict().items()}), real(s))[1]
    monkeypatch.setattr(EusUsfm, "optimizers", start)
    data = dataset(labelled=(0, 1))
    options = {**SMALL, "pretrained": str(tmp_path / "frames"), "pretext": "none", "head": "segvit", "width": 12, "head_heads": 2}
    second = api.train("eus-usfm", data, tmp_path / "masks", options=options, **{**common, "split": data.split(val=0, test=0)})
    assert all(torch.equal(kept[k], v) for k, v in learnt.items()) and seen["EusUsfm"] == {"c0", "c1"}
    native = api.reader(data)("c3")
    answer = infer(second.method, native, second.plan)
    assert answer.label.geometry == native.geometry and not answer.notes
    again = api.open_run(tmp_path / "masks")
    assert np.array_equal(answer.label.data, infer(again.method, native, again.plan).label.data)


def test_a_pretext_that_is_switched_off_leaves_its_budget_unspent(tmp_path, monkeypatch):
    totals = []
    monkeypatch.setattr(EusUsfm, "after_step", lambda s, clock: totals.append(clock.total))
    data = dataset()
    common = dict(plan_overrides=PLAN, split=data.split(val=0, test=0), iterations=6)
    api.train("eus-usfm", data, tmp_path / "a", options={**SMALL, "pretext": "none"}, **common)
    assert totals == [3] * 3
    api.train("eus-usfm", data, tmp_path / "b", options={**SMALL, "pretext": "none", "pretrain": 0.0}, **common)
    assert totals[3:] == [6] * 6


@pytest.mark.parametrize("options", [{"pretext": "jigsaw"}, {"pretrain": 1.0}, {"layer_decay": 0.0}, {"rate": -1.0}, {"hide": 2.0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UsageError):
        method(**options)


# ---------------------------------------------------------------------------------------------------------------------- the study's guards
def test_one_component_is_left_of_each_class():
    p = np.zeros((3, 8, 8), np.float32)
    p[0] = 0.4
    p[1, :3, :3], p[1, 6:, 6:] = 0.6, 0.7
    p[2, 5:7, :2], p[2, 0, 7] = 0.9, 0.9
    before, after = p.argmax(0), one_component(p).argmax(0)
    assert (after[:3, :3] == 1).all() and not after[6:, 6:].any() and after[0, 7] == 0 and (after[5:7, :2] == 2).all()
    assert np.array_equal(one_component(np.stack([p[0], *p[1:] * 0])).argmax(0), np.zeros((8, 8)))
    reference = np.zeros((8, 8), bool)
    reference[:3, :3] = True
    dsc = [overlap.dsc(x == 1, reference) for x in (before, after)]
    assert dsc[1] == 1 > dsc[0]


def test_the_largest_component_is_an_option_of_the_answer():
    logits = torch.zeros(2, 16, 16)
    logits[0], logits[1, 2:8, 2:8], logits[1, 12:14, 12:14] = 1.0, 2.0, 2.0
    found = []
    for keep in (False, True):
        m = method(keep_largest=keep)
        m.taught.fill_(True)
        answer = m.finish(logits, case(0, (16, 16), False))
        found.append(np.asarray(answer.probability.data)[1] > 0.5)
    assert found[0].sum() == 40 and found[1].sum() == 36


def test_crop_and_resize_take_the_mask_back_within_a_pixel():
    """Margins of nothing are cut off, the sector is resized to the patch, and the answer lies where the label was."""
    native = case(1, (80, 72), True, margin=20)
    m = catalog.build("eus-usfm", plan(patch=(64, 64)), dataset(shape=(80, 72), margin=20), options=SMALL)
    ready = prepare(native, m.plan, m, training=True)
    assert ready.geometry.shape == (64, 64)
    corner = ready.geometry.to_world(np.array([[0.0, 0.0], [63.0, 63.0]]))
    at = native.geometry.to_index(corner)
    assert np.abs(at - [[20, 20], [59, 51]]).max() < 1
    label = np.asarray(ready.labels["reference"].data)
    one = Prediction(probability=Image(np.stack([label != 1, label == 1]).astype(np.float32), ready.geometry))
    back = np.asarray(restore(one, ready.geometry, native.geometry, CLASSES).label.data) == 1
    wanted = np.asarray(native.labels["reference"].data) == 1
    for axis in (0, 1):
        edges = [np.flatnonzero(x.any(1 - axis))[[0, -1]] for x in (back, wanted)]
        assert np.abs(edges[0] - edges[1]).max() <= 1


def test_an_images_numbers_come_from_one_table_of_counts():
    """Accuracy is the mix of sensitivity and specificity; a DSC lies in 0..1, where no standard deviation exceeds a half; and the mean
    lies in its own bootstrap interval."""
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(20):
        reference, found = rng.random((2, 20, 20)) < rng.uniform(0.1, 0.6)
        c = overlap.counts(found, reference)
        share = reference.mean()
        accuracy = share * overlap.sensitivity(c) + (1 - share) * overlap.specificity(c)
        assert overlap.accuracy(c) == pytest.approx(accuracy)
        scores.append(overlap.dsc(c))
    assert 0 <= min(scores) and max(scores) <= 1 and np.std(scores) <= 0.5
    interval = mean_interval(scores)
    assert interval.mean == pytest.approx(np.mean(scores)) and interval.low < interval.mean < interval.high


# ------------------------------------------------------------------------------------------------------------------------------- the proof
PROOF = Path(__file__).resolve().parents[3] / "proofs" / "networks" / "eus_usfm.py"


def test_arms_of_the_proof_are_one_network():
    study = runpy.run_path(str(PROOF))["study"]()
    names = {a.name for a in study.arms}
    assert study.baseline in names and all({e.arm, e.against or study.baseline} <= names for e in study.expects)
    built = [catalog.build(a.method, plan(), dataset(), options=a.options) for a in study.arms]
    assert len({sum(p.numel() for p in m.network.parameters()) for m in built}) == 1
    assert [m.layer_decay for m in built] == [1, 1, 0.75, 0.75]
    data = open_dataset(study.data[0].where)
    centres = {s: {data[i].source for i in getattr(data.split(), s)} for s in ("train", "val", "test")}
    assert centres == {"train": {"centre A", "centre B"}, "val": {"centre A", "centre B"}, "test": {"centre C"}}
    assert len(data.split().train) >= 400


def test_the_proofs_rows(tmp_path):
    """The arm with one component is the same run read otherwise; own centres are asked apart from the third; labels stay hidden."""
    proof = runpy.run_path(str(PROOF))
    study = replace(proof["study"](), arms=tuple(a for a in proof["study"]().arms if a.name.startswith("eus-usfm")))
    tiny = {k: v for k, v in SMALL.items() if k not in ("lr", "layer_decay")}
    study = replace(study, arms=tuple(replace(a, options={**a.options, **tiny}) for a in study.arms))
    data = open_dataset("phantom:ultrasound?centre=external&cases=6,3,3")
    settings = {**PLAN, "grid": LongestSide(32)}
    rows = proof["measure"](study, data, tmp_path / "out", seeds=1, iterations=5, plan=settings, progress=Progress(quiet=True))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["eus-usfm"]
    run = api.open_run(tmp_path / "out" / "eus-usfm" / "seed_0")
    assert not run.method.keep_largest and read_as(run, study.arms[1]).keep_largest
    assert {r["metric"] for r in rows} == set(study.metrics)
    own = {r["case"].partition("&")[0] for r in rows if r["metric"] == "dsc, own centres"}
    assert own == {"phantom:ultrasound?centre=A", "phantom:ultrasound?centre=B"}
    third = {r["case"] for r in rows if r["metric"] == "dsc"}
    assert third == set(data.split().test) and all(data[i].source == "centre C" for i in third)
    assert not any(r["value"] for r in rows if r["metric"] == "several components" and r["method"].endswith("largest component"))
    log = (tmp_path / "out" / "eus-usfm" / "seed_0" / "log.csv").read_text()
    assert "\npretext," in log and "\nmain," in log
    two = np.zeros((8, 8), int)
    two[:2, :2] = two[5:, 5:] = 1
    assert proof["several"](two) and not proof["several"](two[:4]) and not proof["several"](0 * two)
