"""SimPLe: points stand for the reference from the first moment, the stages do what the paper says, and open voxels teach nothing."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius import catalog
from vesalius.core.case import IGNORE, Batch, Case, Image, LabelMap, Points
from vesalius.core.errors import DataError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock
from vesalius.core.plan import Plan
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.methods.fewer_labels.simple_dcemri import SimPLe, known_ce, points_of

CLASSES = ("background", "bright", "dark")
GRID = Geometry.of((16, 18, 20), (2.0, 1.0, 1.0), origin=(5.0, -3.0, 1.0))


def method(classes=CLASSES, **options) -> SimPLe:
    manifest = Manifest("blobs", Path("."), 3, ("MR",), {c: k for k, c in enumerate(classes)}, ())
    plan = Plan(3, ("MR",), classes=classes, patch=(8, 8, 8), features=(4, 8), strides=((1, 1, 1), (2, 2, 2)), kernels=((3, 3, 3),) * 2)
    torch.manual_seed(0)
    return SimPLe(plan, manifest, **options)


def made() -> Case:
    """Two bright blobs and a dark one, with their reference and a second rater."""
    label, index = np.zeros(GRID.shape, np.int16), np.indices(GRID.shape)
    for k, centre, radii in (
        (1, (3.5, 4, 4.5), (2, 2.6, 3.1)),
        (1, (11.5, 12.5, 5.5), (2.6, 3.1, 2.6)),
        (2, (6.5, 11.5, 14.5), (3.1, 3.1, 3.1)),
    ):
        label[sum(((x - c) / r) ** 2 for x, c, r in zip(index, centre, radii)) < 1] = k
    image = np.array([0.0, 2.0, -2.0])[label] + 0.8 * np.random.default_rng(0).standard_normal(GRID.shape)
    labels = {name: LabelMap(label, GRID, CLASSES) for name in ("reference", "scribble")}
    return Case("c", "p", images={"MR": Image(image[None].astype(np.float32), GRID)}, labels=labels)


def derived(case: Case, **options) -> Case:
    return method(**options).derive(case, np.random.default_rng(0), training=True)


def test_six_points_an_object():
    points = points_of(made().labels["reference"])
    assert points.names == ("bright",) * 12 + ("dark",) * 6 and points.instance.tolist() == [1] * 6 + [2] * 6 + [1] * 6
    voxels = GRID.to_index(points.xyz)
    assert np.allclose(voxels, voxels.round()) and voxels[:6].min(0).tolist() == [2, 2, 2] and voxels[:6].max(0).tolist() == [5, 6, 7]


def test_the_reference_is_gone_before_preparation():
    case, truth = derived(made()), made().labels["reference"].data
    assert set(case.labels) == {"reference"} and set(case.points) == {"extreme"}
    mask = np.asarray(case.labels["reference"].data)
    assert not np.array_equal(mask, truth) and set(np.unique(mask)) == {IGNORE, 0, 1, 2}
    assert np.mean(truth[mask > 0] == mask[mask > 0]) > 0.6 and (truth[mask == 0] == 0).all()


def test_what_the_mask_is_depends_on_the_points_alone():
    """Another reference with the same extreme points, or the points themselves, give the same mask: nothing else of it is seen."""
    case = made()
    hollow = np.asarray(case.labels["reference"].data).copy()
    hollow[11, 12, 5] = 0  # inside an object
    other = case.with_(labels={"reference": LabelMap(hollow, GRID, CLASSES), "scribble": None})
    given = case.with_(labels={"reference": None, "scribble": None}, points={"extreme": points_of(case.labels["reference"])})
    first = derived(case).labels["reference"].data
    assert np.array_equal(first, derived(other).labels["reference"].data)
    assert np.array_equal(first, derived(given).labels["reference"].data)


def test_predicted_cases_are_left_alone_and_cases_without_anything_stay_unlabelled():
    case = made()
    assert method().derive(case, np.random.default_rng(0), training=False) is case
    assert not derived(case.with_(labels={"reference": None, "scribble": None})).labels
    assert not derived(case, simulate=False).labels


def test_empty_references_are_background():
    empty = LabelMap(np.zeros(GRID.shape, np.int16), GRID, CLASSES)
    mask = derived(made().with_(labels={"reference": empty})).labels["reference"].data
    assert not np.asarray(mask).any()


def test_names_of_points():
    case, points = made(), points_of(made().labels["reference"])
    bare = Points(points.xyz[:6])
    assert derived(case.with_(points={"extreme": bare}), classes=CLASSES[:2]).labels["reference"].data.max() == 1
    for wrong in (bare, Points(bare.xyz, ("kidney",) * 6), Points(bare.xyz, ("bright",) * 5)):
        with pytest.raises(DataError, match="class"):
            derived(case.with_(points={"extreme": wrong}))


def test_where_two_classes_are_sure_nobody_is():
    m, points = method(), points_of(made().labels["reference"])
    both = Points(np.concatenate([points.xyz[:6]] * 2), ("bright",) * 6 + ("dark",) * 6)
    mask = m.first_mask(made().images["MR"].data[0], GRID, both, "c")
    assert (mask[2:6, 2:7, 2:8] == IGNORE).all() and (np.delete(mask, range(2, 6), 0) == 0).all()


def batch(label: torch.Tensor) -> Batch:
    g = torch.Generator().manual_seed(2)
    make = lambda y: Batch(torch.randn(1, 1, 8, 8, 8, generator=g), {"reference": y}, torch.eye(4)[None], ["c"])
    whole = make(label)
    whole.streams = {"around": make(torch.zeros_like(label))}
    return whole


def labels() -> torch.Tensor:
    y = torch.zeros(1, 8, 8, 8, dtype=torch.long)
    y[:, 2:6], y[:, 3:5, 3:5] = IGNORE, 1
    return y


def test_open_voxels_have_no_gradient_and_no_voxel_no_loss():
    logits = torch.randn(1, 3, 8, 8, 8, requires_grad=True)
    y = labels()
    known_ce(logits, y).backward()
    assert not logits.grad[:, :, y[0] == IGNORE].any() and logits.grad[:, :, y[0] == 1].all()
    assert float(known_ce(logits.detach(), torch.full_like(y, IGNORE))) == 0


@pytest.mark.parametrize(
    ("stage", "more"), [("contrast", {"contrast"}), ("propagate", {"propagation"}), ("retrain", set()), ("main", {"contrast"})]
)
def test_terms_of_the_stages(stage, more):
    m = method(cosine=0.1, votes=0.1).train()
    terms = m.losses(batch(labels()), Clock(0, 10, stage=stage))
    assert set(terms) == {"object", "around"} | more and all(torch.isfinite(v) for v in terms.values())
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in m.network.parameters())
    assert "contrast" not in method(contrast=0.0).losses(batch(labels()), Clock(0, 10, stage=stage))


def test_stages_add_up_and_the_last_starts_afresh():
    assert [s.name for s in method(until="contrast").stages()] == ["contrast"]
    for until in ("contrast", "propagate", "retrain"):
        assert sum(s.share for s in method(until=until).stages()) == pytest.approx(1)
    first, fine, last = method(ema=0.9).stages()
    assert fine.share == 0.02 and last.reinit == ("network", "ema") and last.relabel and not first.relabel and not fine.relabel


@pytest.mark.parametrize("options", [{"votes": 1.0}, {"cosine": 0.0}, {"finetune": 1.0}, {"pairs": 0}, {"ring_mm": 20.0}, {"walks": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UsageError):
        method(**options)


def test_three_stages_run_and_no_loss_sees_the_reference(tmp_path, monkeypatch):
    seen: dict[str, list] = {"contrast": [], "propagate": [], "retrain": []}
    losses = SimPLe.losses

    def watched(self, batch, clock, turn="main"):
        if clock.stage in seen:
            seen[clock.stage].append(bool((batch.label == IGNORE).any()))
            assert set(batch.labels) == {"reference"}
        return losses(self, batch, clock, turn)

    monkeypatch.setattr(SimPLe, "losses", watched)
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))
    plan = {"workers": 0, "batch": 2, "patch": (16, 16, 16), "features": (4, 8), "precision": "32", "threads": 1}
    manifest = open_dataset("phantom:shapes-3d?cases=6")
    api.train("simple-dcemri", manifest, tmp_path / "run", iterations=6, plan_overrides=plan, options={"finetune": 0.2, "walks": 2})
    assert any(seen["contrast"]) and seen["propagate"] and seen["retrain"] and not any(seen["retrain"])


def test_arms_of_the_proof_are_known_and_one_network():
    study = runpy.run_path(str(Path(__file__).resolve().parents[3] / "proofs" / "fewer_labels" / "simple_dcemri.py"))["study"]()
    names = {a.name for a in study.arms}
    assert study.baseline in names and all({e.arm, e.against or study.baseline} <= names for e in study.expects)
    m = method()
    sizes = {
        sum(p.numel() for p in catalog.build(a.method, m.plan, m.manifest, options=a.options).network.parameters()) for a in study.arms
    }
    assert max(sizes) < 1.05 * min(sizes)  # the full U-Net has deep supervision's heads besides
