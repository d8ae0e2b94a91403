"""Image-volume SSL: what each stage draws, what it must not see, what it moves; and that pictures and volumes teach one encoder."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius import catalog
from vesalius.core.case import Case, Image, LabelMap
from vesalius.core.errors import UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock, Stage
from vesalius.core.plan import Plan
from vesalius.engine import api
from vesalius.engine.infer import infer
from vesalius.engine.prepare import Cache, prepare
from vesalius.engine.sample import Draws
from vesalius.methods.anatomy import image_volume_ssl
from vesalius.methods.anatomy.image_volume_ssl import (
    UNTAUGHT,
    ImageVolumeSSL,
    SliceClustering,
    VolumeClustering,
    places,
    unlabelled_volumes,
)
from vesalius.objectives.clustering import ClusterAgreement

from ...memory import in_memory

CLASSES = ("background", "foreground")
SMALL = dict(catalog.get("image-volume-ssl").small)
PLAN = {"workers": 0, "batch": 2, "patch": (16, 16, 8), "features": (4, 8), "precision": "32", "threads": 1, "test_mirror": ()}


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)


def case(i: int, shape: tuple[int, ...], labelled: bool) -> Case:
    rng, grid = np.random.default_rng(i), Geometry.of(shape)
    label = np.zeros(shape, np.int16)
    label[4 : 8 + i % 3, 5:11] = 1
    image = (label + 0.3 * rng.standard_normal(shape)).astype(np.float32)[None]
    labels = {"reference": LabelMap(label, grid, CLASSES)} if labelled else {}
    return Case(f"c{i}", f"c{i}", images={"MR": Image(image, grid)}, labels=labels)


def dataset(volumes: int = 3, pictures: int = 3, labelled: tuple[int, ...] = (0,), dims: int = 3) -> Manifest:
    """Volumes, and pictures as volumes of one slice (or, in 2D, as what they are); in memory."""
    flat = (16, 16) if dims == 2 else (16, 16, 1)
    cases = [case(i, (16, 16, 8) if i < volumes else flat, i in labelled) for i in range(volumes + pictures)]
    return in_memory(cases, dims, CLASSES, split="train")


def plan(dims: int = 3, **more) -> Plan:
    sides = {2: (16, 16), 3: (16, 16, 8)}[dims]
    given = dict(classes=CLASSES, patch=sides, batch=2, workers=0, features=(4, 8), augmentation={}, mirror_axes=())
    return Plan(dims, ("MR",), **{**given, **more})


def method(dims: int = 3, **options) -> ImageVolumeSSL:
    return ImageVolumeSSL(plan(dims), dataset(dims=dims, volumes=3 if dims == 3 else 0), **{**SMALL, **options})


def volume_stage(m: ImageVolumeSSL, joint: float = 0.0) -> VolumeClustering:
    of_slices, of_volumes = ClusterAgreement(m.network.described, clusters=3, dim=4), ClusterAgreement(16, clusters=2, dim=4)
    own = dict(steps=("masked", "volumes"), hide=0.25, joint=joint)
    return VolumeClustering(m.plan, m.manifest, m.network, m.schedule, of_slices, of_volumes, **own)


def slice_stage(m: ImageVolumeSSL) -> SliceClustering:
    of_slices = ClusterAgreement(m.network.described, clusters=3, dim=4)
    return SliceClustering(m.plan, m.manifest, m.network, m.schedule, of_slices, batch=6)


def draws(stage, data: Manifest, which: Stage = Stage(), unfold=None) -> Draws:
    cache = Cache(data, stage.plan, stage, api.reader(data), unfold)
    return Draws([p for c in data.cases for p in cache.all(c.id)], stage, data, which, seed=0, number=0)


# ----------------------------------------------------------------------------------------------------------------- what the stages draw
def test_stage_1_draws_single_slices_of_volumes_and_pictures_without_labels():
    data = dataset()
    many = draws(slice_stage(method()), data)
    seen = set()
    for i in range(3):
        batch = many[i]
        assert batch.image.shape == (6, 1, 16, 16, 1) and not batch.labels and len(batch.views) == 1
        seen |= set(batch.cases)
        at = places(batch, 2)
        assert all(0 <= z <= 7 and z == z.round() for z in at)
        for image, name, z in zip(batch.image, batch.cases, at):
            assert torch.equal(image[0, ..., 0], torch.from_numpy(data.built_in(data[name]).images["MR"].data[0][..., int(z)]))
        assert torch.equal(places(batch.views[0], 2), at)  # two views of the same slice
    assert seen == {f"c{i}" for i in range(6)}


def test_volume_stages_draw_volumes_only_and_without_labels():
    many = draws(volume_stage(method()), dataset(), Stage("volumes"), unlabelled_volumes)
    batch = many[0]
    assert {c for i in range(3) for c in many[i].cases} == {"c0", "c1", "c2"}
    assert batch.image.shape == (2, 1, 16, 16, 8) and not batch.labels and len(batch.views) == 1
    assert not draws(volume_stage(method()), dataset(), Stage("masked"), unlabelled_volumes)[0].views


def test_slices_turn_in_their_plane_only():
    m = ImageVolumeSSL(plan(augmentation={"rotation_p": 1.0, "rotation": 30.0, "bend_p": 1.0, "bend": 0.3}), dataset(), **SMALL)
    poses = draws(slice_stage(m), dataset())[0].to_case
    assert (poses[:, 0, 1].abs() > 1e-3).any()
    assert not poses[:, 2, :2].any() and not poses[:, :2, 2].any()


# ----------------------------------------------------------------------------------------------------------------- the paper's mathematics
def test_hidden_slices_do_not_enter_their_guess():
    m = method().eval()
    stage, x = volume_stage(m).eval(), torch.randn(2, 1, 16, 16, 8)
    torch.nn.init.normal_(stage.token)
    hidden = torch.zeros(2, 8, dtype=torch.bool)
    hidden[:, [2, 5]] = True
    other = x.clone()
    other[..., [2, 5]] = 3 * torch.randn(2, 1, 16, 16, 2)
    with torch.no_grad():
        a, b = m.network.sequence(x), m.network.sequence(other)
        assert not torch.allclose(a[hidden], b[hidden]) and torch.equal(stage.guess(a, hidden), stage.guess(b, hidden))
        seen = x.clone()
        seen[..., 3] += torch.randn(2, 1, 16, 16)
        assert not torch.allclose(stage.guess(a, hidden), stage.guess(m.network.sequence(seen), hidden))


def test_masked_prediction_moves_the_transformer_and_not_the_slices():
    m = method()
    stage = volume_stage(m)
    stage.masked(torch.randn(2, 1, 16, 16, 8)).backward()
    assert m.network.embed.weight.grad is None and all(p.grad is None for p in m.network.unet.parameters())
    assert m.network.transformer.position.grad.abs().sum() > 0 and stage.token.grad.abs().sum() > 0


def test_the_volume_loss_moves_the_encoder_of_slices():
    m = method()
    stage = volume_stage(m)
    batch = draws(stage, dataset(), Stage("volumes"), unlabelled_volumes)[0]
    stage.losses(batch, Clock(0, 10, stage="volumes"))["volumes"].backward()
    assert m.network.unet.down[0][0][0].weight.grad.abs().sum() > 0


def test_both_views_of_a_volume_are_one_thing(monkeypatch):
    stage, asked = volume_stage(method()), []
    forward = ClusterAgreement.forward
    monkeypatch.setattr(ClusterAgreement, "forward", lambda s, v, k, **o: (asked.append((len(v), k.tolist())), forward(s, v, k, **o))[1])
    batch = draws(stage, dataset(), Stage("volumes"), unlabelled_volumes)[0]
    stage.losses(batch, Clock(0, 10, stage="volumes"))
    ((views, keys),) = asked
    assert views == 2 and len(set(keys)) == len(set(batch.cases)) == 2


def test_joint_training_pairs_slices_of_one_place():
    """The second view is the first, mirrored along the slices: slice i meets slice 7 - i, whose descriptions are equal."""
    stage = volume_stage(method(), joint=0.5)
    batch = draws(stage, dataset(), Stage("volumes"), unlabelled_volumes)[0]
    (second,) = batch.views
    second.image = batch.image.flip(4)
    mirror = torch.eye(4, dtype=torch.float64)
    mirror[2, 2], mirror[2, 3] = -1, 7
    second.to_case = torch.as_tensor(batch.to_case).double() @ mirror
    told = []
    stage.of_slices.forward = lambda views, keys, **_: (told.append(views), views[0].sum())[1]
    assert set(stage.losses(batch, Clock(0, 10, stage="volumes"))) == {"volumes", "slices"}
    torch.testing.assert_close(*told[0])


@pytest.mark.parametrize("rule", ["kmeans", "sinkhorn"])
@pytest.mark.parametrize("optimizer", ["larc", "adamw"])
def test_both_rules_learn_to_agree(rule, optimizer):
    m = method(rule=rule, optimizer=optimizer, rate=0.5 if optimizer == "larc" else 0.01)
    stage = SliceClustering(m.plan, m.manifest, m.network, m.schedule, ClusterAgreement(12, clusters=3, dim=4, rule=rule), batch=12)
    batch, optimiser, losses = draws(stage, dataset())[0], stage.optimizers()["main"], []
    batch.views[0].image = batch.views[0].image + 0.2 * torch.randn(12, 1, 16, 16, 1)
    for step in range(12):
        loss = stage.losses(batch, Clock(step, 12))["slices"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        stage.of_slices.settle(0)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]


# ----------------------------------------------------------------------------------------------------------------------------- training
def watch(monkeypatch) -> dict[str, set]:
    seen: dict[str, set] = {}
    for kind in (SliceClustering, VolumeClustering, ImageVolumeSSL):

        def losses(self, batch, clock, turn="main", real=kind.losses, name=kind.__name__):
            assert name == "ImageVolumeSSL" or not any(b.labels for b in (batch, *batch.views))
            seen.setdefault(f"{name} {clock.stage}", set()).update(batch.cases)
            return real(self, batch, clock, turn)

        monkeypatch.setattr(kind, "losses", losses)
    return seen


def test_four_stages_on_mixed_data(tmp_path, monkeypatch):
    seen, data = watch(monkeypatch), dataset(labelled=(0, 4))
    run = api.train(
        "image-volume-ssl", data, tmp_path / "run", iterations=40, plan_overrides=PLAN, options=SMALL, split=data.split(val=0, test=0)
    )
    every, deep = {f"c{i}" for i in range(6)}, {"c0", "c1", "c2"}
    assert seen == {
        "SliceClustering main": every,
        "VolumeClustering masked": deep,
        "VolumeClustering volumes": deep,
        "ImageVolumeSSL main": {"c0", "c4"},
    }
    for i in (1, 5):  # a volume and a picture
        native = api.reader(data)(f"c{i}")
        answer = infer(run.method, native, run.plan)
        assert answer.label.geometry == native.geometry and not answer.notes
        again = api.open_run(tmp_path / "run")
        assert np.array_equal(answer.label.data, infer(again.method, native, again.plan).label.data)
    assert run.method.embedding(prepare(api.reader(data)("c1"), run.plan)).shape == (16,)


def test_without_labels_the_run_is_a_pretraining_that_other_runs_start_from(tmp_path, monkeypatch):
    """Of pictures, for volumes: the encoder is handed over as it was learnt, and only the asked stages move it."""
    seen = watch(monkeypatch)
    flat = dataset(volumes=0, pictures=4, labelled=(), dims=2)
    options = {**SMALL, "optimizer": "adamw"}
    over = {**PLAN, "patch": (16, 16), "strides": ((1, 1), (2, 2)), "kernels": ((3, 3), (3, 3))}
    first = api.train(
        "image-volume-ssl", flat, tmp_path / "2d", iterations=6, plan_overrides=over, options=options, split=flat.split(val=0, test=0)
    )
    assert set(seen) == {"SliceClustering main"}
    assert UNTAUGHT in infer(first.method, api.reader(flat)("c0"), first.plan).notes
    deep = dataset(labelled=())
    options |= {"pretrained": str(tmp_path / "2d"), "pretext": "masked"}
    over = {**PLAN, "strides": ((1, 1, 1), (2, 2, 2)), "kernels": ((3, 3, 3), (3, 3, 3))}
    second = api.train(
        "image-volume-ssl", deep, tmp_path / "3d", iterations=6, plan_overrides=over, options=options, split=deep.split(val=0, test=0)
    )
    learnt, kept = first.method.network.unet.down.state_dict(), second.method.network.unet.down.state_dict()
    assert all(torch.equal(kept[k], v) for k, v in learnt.items())
    assert all(p.requires_grad for p in second.method.network.parameters())
    fresh = api.build("image-volume-ssl", second.plan, deep, {}, SMALL).network.unet.down.state_dict()
    assert any(not torch.equal(fresh[k], v) for k, v in learnt.items())


def test_a_pretraining_that_is_switched_off_leaves_its_budget_unspent(tmp_path, monkeypatch):
    seen, steps = watch(monkeypatch), []
    real = ImageVolumeSSL.after_step
    monkeypatch.setattr(ImageVolumeSSL, "after_step", lambda s, clock: (steps.append(clock.total), real(s, clock))[1])
    data = dataset()
    options = {**SMALL, "pretext": (), "pretrain": 0.5}
    api.train(
        "image-volume-ssl", data, tmp_path / "run", iterations=6, plan_overrides=PLAN, options=options, split=data.split(val=0, test=0)
    )
    assert set(seen) == {"ImageVolumeSSL main"} and steps == [3] * 3


@pytest.mark.parametrize(
    "options",
    [
        {"pretext": ("images", "videos")},
        {"pretext": ("images", "images")},
        {"pretrain": 1.0},
        {"hide": 0.0},
        {"clusters": 0},
        {"temperature": 0.0},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UsageError):
        method(**options)


def test_a_plan_of_single_slices_is_mended_or_refused():
    thin = plan(patch=(16, 16, 1))
    with pytest.raises(UsageError, match="slices=32"):
        ImageVolumeSSL(thin, dataset(), **SMALL)
    assert ImageVolumeSSL(thin, dataset(), **SMALL, slices=6).plan.patch == (16, 16, 6)
    assert ImageVolumeSSL(thin, dataset(), **SMALL, slices=6, axis=0).plan.patch == (6, 16, 1)
    assert ImageVolumeSSL(thin, dataset(), **SMALL, pretext=("images",)).plan.patch == (16, 16, 1)


def test_arms_of_the_proof_are_one_network():
    study = runpy.run_path(str(Path(__file__).resolve().parents[3] / "proofs" / "anatomy" / "image_volume_ssl.py"))["study"]()
    names = {a.name for a in study.arms}
    assert study.baseline in names and all({e.arm, e.against or study.baseline} <= names for e in study.expects)
    built = [catalog.build(a.method, plan(), dataset(), options=a.options).network for a in study.arms]
    assert len({sum(p.numel() for p in n.parameters()) for n in built}) == 1
    assert image_volume_ssl.PRETEXT == ("images", "masked", "volumes")
