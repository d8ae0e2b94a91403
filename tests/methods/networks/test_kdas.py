"""KDAS: who learns from whom, what the total is made of, and that a teacher stays as it was."""

import copy
import runpy
from pathlib import Path

import pytest
import torch

from vesalius import catalog
from vesalius.core.case import Batch
from vesalius.core.errors import UsageError
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock
from vesalius.core.plan import Plan
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.engine.progress import Progress
from vesalius.engine.record import read_json
from vesalius.methods.learned import Segmenter
from vesalius.methods.networks.kdas import KDAS
from vesalius.objectives.kdas import attention_kl, pixel_kl, symmetric_guidance
from vesalius.objectives.structure_loss import StructureLoss

PLAN = Plan(dims=2, channels=("image",), in_channels=3, patch=(64, 64), batch=2, features=(4, 8), strides=((1, 1), (2, 2)),
            kernels=((3, 3),) * 2)  # fmt: skip
SMALL = dict(catalog.get("kdas").small)
CLOCK = Clock(10, 100)


def manifest(names: tuple[str, ...] = ("background", "polyp")) -> Manifest:
    return Manifest("polyps", Path("."), 2, ("image",), {n: k for k, n in enumerate(names)}, ())


def method(plan: Plan = PLAN, parts=None, **options) -> KDAS:
    torch.manual_seed(0)
    return catalog.build("kdas", plan, manifest(plan.classes), parts, {**SMALL, "scales": (), **options})


def batch(size=(64, 64), classes: int = 2) -> Batch:
    rng = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, *size, generator=rng)
    return Batch(image, {"reference": torch.randint(0, classes, (2, *size), generator=rng)}, None, ["a", "b"])


def terms(m: KDAS, turn: str = "main", **kw) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return m.train().losses(batch(**kw), CLOCK, turn)


def test_the_total_is_the_papers():
    m = method()
    found = terms(m)
    torch.manual_seed(5)
    p1, p2 = m.network(batch().image)
    t1, t2 = m.teacher.network.eval().maps(batch().image)
    loss, label = StructureLoss(), batch().label
    expected = {
        "segmentation": 0.7 * (loss(p1, label) + loss(p2, label)),
        "attention": 0.3 * (attention_kl(p1, t1, 2.0) + attention_kl(p2, t2, 2.0)),
        "symmetry": 0.3 * symmetric_guidance(p1.sigmoid(), t1.sigmoid()),
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    published = terms(method(symmetry="logits"))["symmetry"]
    torch.testing.assert_close(published, 0.3 * symmetric_guidance(p1, t1))


def test_a_teacher_that_is_sure_does_not_drown_the_reference():
    """Gradients at the student's map, of a teacher 4 to either side a little beside the reference."""
    label = torch.zeros(2, 64, 64, dtype=torch.long)
    label[:, 20:44, 16:40] = 1
    sure = 8.0 * label.roll(4, -1).unsqueeze(1) - 4
    m = method()
    m.taught = lambda image: [sure, sure]
    m.network.forward = lambda image: maps
    data = Batch(batch().image, {"reference": label}, None, ["a", "b"])
    share = {}
    for m.symmetry in ("probabilities", "logits"):
        for name, maps in (("untrained", [torch.zeros_like(sure)] * 2), ("halfway", [sure.roll(-4, -1) / 2] * 2)):
            maps = [z.clone().requires_grad_() for z in maps]
            found = m.losses(data, CLOCK)
            pull = {k: torch.autograd.grad(v, maps[0], retain_graph=True)[0].norm() for k, v in found.items()}
            share[m.symmetry, name] = pull["symmetry"] / pull["segmentation"]
    assert all(share["probabilities", when] < 1 < 4 < share["logits", when] for when in ("untrained", "halfway"))


def test_plain_distillation_compares_pixels():
    m = method(distil="kl")
    found = terms(m)
    torch.manual_seed(5)
    p, t = m.network(batch().image), m.teacher.network.eval().maps(batch().image)
    assert set(found) == {"segmentation", "pixels"}
    torch.testing.assert_close(found["pixels"], 0.3 * (pixel_kl(p[0], t[0]) + pixel_kl(p[1], t[1])))


def test_the_teacher_takes_no_gradient_and_does_not_change():
    m = method()
    teacher, before = m.teacher, copy.deepcopy(m.teacher.state_dict())
    optimizer = m.optimizers()["main"]
    for _ in range(2):
        optimizer.zero_grad()
        sum(terms(m).values()).backward()
        optimizer.step()
    assert m.teacher is teacher and not teacher.training
    assert all(p.grad is None for p in teacher.parameters())
    after = teacher.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())  # batch norm's running means as well
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in m.parameters()} and not held & {id(p) for p in teacher.parameters()}
    assert not any("teacher" in k for k in m.state()[0])  # the student alone is saved


def test_the_distilled_part_reaches_all_of_the_student_that_makes_maps():
    m = method()
    found = terms(m)
    (found["attention"] + found["symmetry"]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in m.network.heads[0].parameters() if p.ndim > 1)


def test_without_weight_it_is_plain_training_exactly(tmp_path):
    """alpha=0, and no distillation at all: the same weights after the same steps."""
    runs = []
    for k, options in enumerate(({"alpha": 0.0}, {"distil": "none"})):
        done = train(tmp_path / str(k), {**SMALL, **options, "scales": ()}, iterations=4)
        runs.append(done)
        assert [f for f in done.record["facts"] if f.startswith("budget.")] == ["budget.student"]
    assert all(torch.equal(a, b) for a, b in zip(*(r.method.state_dict().values() for r in runs), strict=True))
    plain = method(alpha=0.0)
    torch.manual_seed(5)
    p1, p2 = plain.train().network(batch().image)
    torch.testing.assert_close(terms(plain)["segmentation"], StructureLoss()(p1, batch().label) + StructureLoss()(p2, batch().label))


RUN = dict(validations=1, plan_overrides={"patch": (32, 32), "batch": 2, "features": (4, 8), "precision": "32", "workers": 0, "threads": 1})
DATA = "phantom:polyp?cases=6"


def train(out: Path, options: dict, iterations: int, parts=None):
    return api.train("kdas", DATA, out, options=options, parts=parts, iterations=iterations, **RUN)


def test_half_of_the_steps_train_the_teacher_and_a_resumed_run_has_it(tmp_path):
    done = train(tmp_path / "a", {**SMALL, "scales": (), "share": 0.25}, iterations=4)
    facts = done.record["facts"]
    assert facts["budget.main"]["iterations"] == 1 and facts["budget.student"]["iterations"] == 3
    students = sum(p.numel() for p in done.method.network.parameters())
    assert done.record["parameters"] < 1.1 * students + 200  # batch norm's statistics; no teacher
    again = api.open_run(tmp_path / "a")
    assert all(torch.equal(a, b) for a, b in zip(again.method.state_dict().values(), done.method.state_dict().values(), strict=True))


def test_any_segmenter_teaches(tmp_path):
    done = train(tmp_path / "a", {**SMALL, "scales": ()}, iterations=4, parts={"teacher": "unet"})
    log = (tmp_path / "a" / "log.csv").read_text()
    assert done.record["status"] == "finished" and "student,main,2,attention" in log


def test_a_teacher_with_one_answer_teaches_both_maps():
    teacher = Segmenter(PLAN.derive(deep_supervision=False), manifest(), ema=0)
    m = method(parts={"teacher": teacher})
    first, second = m.taught(batch().image)
    p = teacher.eval()(batch().image).softmax(1)[:, 1:]
    assert torch.equal(first, second) and torch.allclose(first.sigmoid(), p, atol=1e-5)


def test_a_finished_run_teaches_and_leaves_the_student_the_whole_budget():
    class Lent:  # what the engine lends, as far as this method asks
        def __init__(self):
            self.asked = []

        def open(self, folder):
            self.asked.append(("open", folder))
            return teacher

        def fit(self, *_, **__):
            raise AssertionError("a finished teacher is not trained")

        def train(self, method, train, val, *, name, share):
            self.asked.append((name, share))

    teacher, run = Segmenter(PLAN.derive(deep_supervision=False), manifest(), ema=0), Lent()
    m = method(teacher="runs/unet").fit([], [], run)
    assert run.asked == [("open", "runs/unet"), ("student", 1.0)] and m.teacher is teacher
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_run_of_another_method_teaches(tmp_path):
    api.train("unet", DATA, tmp_path / "teacher", iterations=2, **RUN)
    done = train(tmp_path / "student", {**SMALL, "scales": (), "teacher": str(tmp_path / "teacher")}, iterations=2)
    facts = done.record["facts"]
    assert facts["budget.student"]["iterations"] == 2 and "budget.main" not in facts
    (tmp_path / "teacher").rename(tmp_path / "gone")  # what was learnt needs no teacher
    assert api.open_run(tmp_path / "student").method.run_folder


def test_a_teacher_of_other_images_is_refused():
    for change, word in (({"classes": ("background", "a", "b")}, "classes"), ({"normalise": {"image": "unit"}}, "normalise")):
        other = Segmenter(PLAN.derive(deep_supervision=False, **change), manifest(), ema=0)
        with pytest.raises(UsageError, match=word):
            _ = method(parts={"teacher": other}).teacher


@pytest.mark.parametrize("scale, size", [("x0.75", (96, 96)), ("x1.25", (128, 128))])
def test_maps_keep_their_size_at_other_scales(scale, size):
    m = method(PLAN.derive(patch=(128, 128) if scale == "x0.75" else (96, 96)), scales=(0.75, 1.0, 1.25))
    seen = []
    m.network.register_forward_hook(lambda _, given, out: seen.append((given[0].shape, [o.shape for o in out])))
    found = terms(m, scale, size=m.plan.patch)
    (image, maps), = seen  # fmt: skip
    assert tuple(image[2:]) == size and all(o[2:] == image[2:] for o in maps)
    assert set(found) == {f"{t} {scale}" for t in ("segmentation", "attention", "symmetry")}
    assert all(torch.isfinite(v) for v in found.values())


def test_six_structures_in_images_that_are_not_square():
    names = ("background", *"abcdef")
    m = method(PLAN.derive(patch=(50, 70), classes=names))
    assert m.plan.patch == (64, 96)
    found = terms(m, size=(64, 96), classes=7)
    assert all(torch.isfinite(v) for v in found.values())
    assert m.eval()(torch.randn(2, 3, 50, 70)).shape == (2, 7, 50, 70)


@pytest.mark.parametrize(
    "options, word",
    [
        ({"alpha": 1.0}, "share"),
        ({"share": -0.1}, "share"),
        ({"share": 0.0}, "needs a share"),
        ({"temperature": 0.0}, "comparison"),
        ({"pool": -1}, "comparison"),
        ({"distil": "features"}, "wrong type"),
        ({"symmetry": "labels"}, "wrong type"),
    ],
)
def test_bad_options_in_one_sentence(options, word):
    with pytest.raises(UsageError, match=word):
        method(**options)


def test_bad_teachers_in_one_sentence():
    part = Segmenter(PLAN, manifest(), ema=0)
    with pytest.raises(UsageError, match="one part"):
        method(parts={"student": part})
    with pytest.raises(UsageError, match="two teachers"):
        method(parts={"teacher": part}, teacher="runs/a")


def proof():
    return runpy.run_path(str(Path(__file__).resolve().parents[3] / "proofs/networks/kdas.py"))["study"]()


def test_the_proof_says_what_it_means():
    study = proof()
    arms = {a.name: catalog.coerce(a.method, a.options) for a in study.arms}
    assert study.slug == "kdas" and {e.arm for e in study.expects} | {study.baseline} <= set(arms)
    same = lambda options, *but: {k: v for k, v in options.items() if k not in ("distil", "share", *but)}
    assert all(same(a) == same(arms["kdas"]) for name, a in arms.items() if name != "teacher")
    assert same(arms["teacher"], "width", "depths") == same(arms["kdas"], "width", "depths")
    plan = PLAN.derive(patch=study.plan["patch"])
    size = lambda name: sum(p.numel() for p in catalog.build("kdas", plan, manifest(), options=arms[name]).network.parameters())
    assert 0.12 < size("kdas") / size("teacher") < 0.18


def test_the_proofs_teacher_is_trained_once_a_seed_and_lent(tmp_path):
    study = proof()
    study.measure.__globals__["STEPS"] = {"teacher": 2}
    plan = {**RUN["plan_overrides"], "precision": "32"}
    rows = study.measure(study, open_dataset(DATA), tmp_path, seeds=1, iterations=1, plan=plan, progress=Progress(quiet=True))
    assert {r["method"] for r in rows} == {a.name for a in study.arms} and {r["metric"] for r in rows} == set(study.metrics)
    lent = str(tmp_path / "teacher" / "seed_0")
    for arm in study.arms:
        record = read_json(tmp_path / arm.name / "seed_0" / "run.json")
        assert record["facts"]["budget.student"]["iterations"] == (2 if arm.name == "teacher" else 1)
        assert record["options"].get("teacher") == (lent if arm.name in ("kdas", "plain distillation") else None)
        assert "budget.main" not in record["facts"]  # no teacher of its own
