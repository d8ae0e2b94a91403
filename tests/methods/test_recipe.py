"""Recipe: papers' networks as methods, whatever the size, the classes and the channels, trained as their cards say."""

from pathlib import Path

import pytest
import torch

from vesalius import catalog
from vesalius.core.case import IGNORE, Batch
from vesalius.core.errors import UsageError
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock
from vesalius.core.plan import Plan
from vesalius.methods.recipe import Recipe
from vesalius.networks.primus import Primus
from vesalius.objectives.cldice import ClDice
from vesalius.objectives.dice_ce import DiceCE
from vesalius.objectives.structure_loss import StructureLoss
from vesalius.objectives.tversky_ce import TverskyCE

SMALL = {
    "pranet": {"depths": "1,1,1,1", "width": 8, "channels": 8},
    "primus": {"depth": 1, "heads": 2, "dim": 24},
    "meningioma-pls": {"widths": "4,8,8", "growth": 4},
}


def task(dims: int, classes: int = 2, channels: int = 1, patch: int = 20) -> tuple[Plan, Manifest]:
    names = ("background", *(f"class {k}" for k in range(1, classes)))
    manifest = Manifest("made", Path("."), dims, ("a",), {n: k for k, n in enumerate(names)}, ())
    size = tuple(patch + 3 * a for a in range(dims))
    plan = Plan(
        dims=dims, channels=("a",), in_channels=channels, classes=names, patch=size, features=(4, 8), deep_supervision=False,
        strides=((1,) * dims, (2,) * dims), kernels=((3,) * dims,) * 2,
    )  # fmt: skip
    return plan, manifest


def build(slug: str, *args, options=None, **kwargs) -> Recipe:
    torch.manual_seed(0)
    dims = catalog.get(slug).dims[0]
    return catalog.build(slug, *task(dims, *args, **kwargs), options={**SMALL[slug], **(options or {})})


def batch(method: Recipe, classes: int, n: int = 2) -> Batch:
    size = method.plan.patch
    image, label = torch.randn(n, method.in_channels, *size), torch.randint(0, classes, (n, *size))
    label[..., :3] = IGNORE
    return Batch(image=image, labels={"reference": label}, to_case=None, cases=["a"] * n)


@pytest.mark.parametrize("slug", SMALL)
@pytest.mark.parametrize("classes, channels", [(2, 1), (2, 3), (7, 1)])
def test_any_classes_channels_and_odd_sizes(slug, classes, channels):
    method = build(slug, classes, channels)
    clock, data = Clock(5, 100), batch(method, classes)
    for turn in method.turns(clock):
        terms = method.losses(data, clock, turn)
        assert all(torch.isfinite(v) for v in terms.values())
    method.eval()
    odd = torch.randn(1, channels, *(37, 23, 9)[: method.plan.dims])
    with torch.no_grad():
        logits = method(odd)
    assert logits.shape == (1, classes, *odd.shape[2:]) and torch.isfinite(logits).all()
    assert torch.allclose(method.probabilities(logits).sum(1), torch.ones(odd.shape[2:])[None], atol=1e-5)


def test_the_patch_becomes_a_multiple_of_the_networks():
    assert build("pranet", patch=40).plan.patch == (64, 64) and build("primus").plan.patch == (24, 24, 32)
    assert build("primus").network.transformer.grid == (3, 3, 4)  # positions for this window
    assert build("primus", options={"size": "32,32,32"}).network.transformer.grid == (4, 4, 4)
    plan, manifest = task(3)
    given = plan.derive(patch=(24, 24, 32))
    assert catalog.build("primus", given, manifest, options=SMALL["primus"]).plan == given


def test_a_whole_case_is_one_window():
    method = build("meningioma-pls", options={"size": "30,40,50"})
    assert method.plan.patch == method.plan.grid.size == (32, 40, 56) and method.plan.crop_to_body
    again = Recipe(method.plan, task(3)[1], network=lambda i, o, spatial_dims: Primus(i, o, spatial_dims=3, depth=1), whole=True)
    assert again.plan == method.plan  # an opened run builds the same from the plan it wrote
    assert build("meningioma-pls", options={"whole": "false"}).plan.grid == Plan(3).grid


def test_a_structure_against_a_background_of_zero_is_the_sigmoid():
    method = build("pranet", 3, patch=64).eval()
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        z, logits = method.network(x), method(x)
    assert method.out_channels == 2 and (logits[:, 0] == 0).all() and torch.equal(logits[:, 1:], z)
    best = method.probabilities(logits).argmax(1)
    assert torch.equal(best > 0, (z.sigmoid() > 0.5).any(1))
    binary = build("pranet", patch=64).eval()
    with torch.no_grad():
        torch.testing.assert_close(binary.probabilities(binary(x))[:, 1:], binary.network(x).sigmoid())


def test_every_batch_is_trained_at_each_scale():
    method = build("pranet", patch=96)
    data, seen = batch(method, 2), []
    method.network.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape[2:])))
    assert method.turns(Clock(0, 1)) == ("x0.75", "x1", "x1.25")
    for turn in method.turns(Clock(0, 1)):
        assert list(method.losses(data, Clock(0, 1), turn)) == [f"segmentation {turn}"]
    assert seen == [(64, 96), (96, 128), (128, 160)]  # whole multiples of 32; the patch of 99 became 128
    image, label = method.rescaled(data.image, data.label, 0.75)
    assert image.shape[2:] == label.shape[1:] and set(label.unique().tolist()) <= {IGNORE, 0, 1} and label.dtype == data.label.dtype


def test_equal_levels_are_summed_and_others_halved():
    method = build("pranet", patch=64, options={"scales": ""})
    data = batch(method, 2)
    maps = method.network(data.image)
    alone = [method.objective(m.detach(), data.label, ignore_index=IGNORE) for m in maps]
    assert method.losses(data, Clock(0, 1))["segmentation"].item() == pytest.approx(float(sum(alone)), rel=1e-3)
    method.levels = "halving"
    weighed = sum(float(a) * 0.5**i for i, a in enumerate(alone)) / 1.875
    assert method.losses(data, Clock(0, 1))["segmentation"].item() == pytest.approx(weighed, rel=1e-3)


def test_gradients_are_clipped_by_value_before_the_step():
    method = build("pranet", patch=64, options={"optimizer": "sgd", "betas": "0,0.9", "lr": 1.0, "clip_value": 0.25})
    optimizer = method.optimizers()["main"]
    weight = method.network.decoder.head[-1].bias
    before = weight.detach().clone()
    weight.grad = torch.full_like(weight, 7.0)
    optimizer.step()
    assert torch.allclose(before - weight, torch.full_like(weight, 0.25))


def test_schedules():
    warm = build("primus")
    rates = [warm.learning_rate(Clock(i, 100)) for i in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and rates[5] == 1 and rates[99] == pytest.approx((1 / 95) ** 0.9)
    assert warm.clip == 1.0 and warm.ema is None and warm.optimizers()["main"].defaults["betas"] == (0.9, 0.98)
    flat = build("pranet")
    assert {flat.learning_rate(Clock(i, 10)) for i in range(11)} == {1.0} and flat.clip == float("inf") and flat.clip_value == 0.5
    assert isinstance(flat.optimizers()["main"], torch.optim.Adam)
    cosine = build("primus", options={"schedule": "cosine", "warmup": 0})
    assert cosine.learning_rate(Clock(0, 10)) == 1 and cosine.learning_rate(Clock(10, 10)) == pytest.approx(0.01)


def test_without_a_network_it_is_the_planned_unet():
    method = Recipe(*task(2, patch=16))
    assert type(method.network).__name__ == "UNet" and method.ema is not None and method.plan.patch == (16, 20)


def test_pretrained_weights_are_read_when_training_begins(tmp_path):
    from safetensors.torch import save_file

    method = build(
        "pranet", channels=3, options={"pretrained": str(tmp_path / "w.safetensors"), "ema": 0.9}
    )  # no file yet: runs open without

    class Lent:
        def train(self, method, train, val):
            self.first = method.ema.average.backbone.bn1.weight.clone()

    with pytest.raises(UsageError, match="no such file"):
        method.fit((), (), Lent())
    save_file({k: torch.full_like(v, 2) for k, v in method.network.backbone.state_dict().items()}, tmp_path / "w.safetensors")
    run = Lent()
    method.fit((), (), run)
    assert (run.first == 2).all() and (method.network.backbone.conv1[0].weight == 2).all()
    with pytest.raises(UsageError, match="no backbone"):
        build("primus", options={"pretrained": "w.safetensors"})


def test_a_pretrained_backbone_learns_more_slowly():
    options = {"pretrained": "later.safetensors", "backbone_rate": 0.1, "optimizer": "sgd", "lr": 1.0, "betas": "0,0.9"}
    method = build("pranet", patch=64, options={**options, "clip_value": 0})
    before = {k: p.detach().clone() for k, p in method.network.named_parameters()}
    for p in method.network.parameters():
        p.grad = torch.ones_like(p)
    method.optimizers()["main"].step()
    moved = {k: (before[k] - p.detach()).mean().item() for k, p in method.network.named_parameters()}
    assert all(v == pytest.approx(0.1 if k.startswith("backbone.") else 1.0, rel=1e-3) for k, v in moved.items())
    assert {k.partition(".")[0] for k in moved} > {"backbone"}
    groups = build("pranet", patch=64, options={**options, "pretrained": ""}).optimizers()["main"].param_groups
    assert len(groups) == 1 and groups[0]["lr"] == 1.0  # random weights have nothing to keep


def test_a_loss_of_all_classes_and_maps_of_the_foreground_are_refused_together():
    """With labels 0 and 1 alone in a batch it would pass, and take the first structure's map for the background's."""
    for objective in (DiceCE, ClDice, TverskyCE):
        with pytest.raises(UsageError, match="the background's too.*3 classes"):
            Recipe(*task(2, classes=3, patch=16), objective=objective, outputs="foreground")
        assert Recipe(*task(2, classes=3, patch=16), objective=objective).out_channels == 3
    assert Recipe(*task(2, patch=16), outputs="foreground").out_channels == 1  # the sigmoid of a single map
    assert Recipe(*task(2, classes=3, patch=16), objective=StructureLoss, outputs="foreground").out_channels == 2
    with pytest.raises(UsageError, match="2 classes"):
        Recipe(*task(2, patch=16), objective=TverskyCE, outputs="foreground")


@pytest.mark.parametrize(
    "option, value",
    [
        ("size", "4,4"),
        ("size", "0,8,8"),
        ("betas", "0.9"),
        ("scales", "1,1"),
        ("scales", "9"),
        ("warmup", 2),
        ("clip", -1),
        ("backbone_rate", 2),
    ],
)
def test_impossible_options_are_refused(option, value):
    with pytest.raises(UsageError):
        build("primus", options={option: value})


def test_cases_without_labels_are_refused():
    method = build("primus")
    data = batch(method, 2)
    data.labels = {}
    with pytest.raises(UsageError, match="learns from labels"):
        method.losses(data, Clock(0, 1))
