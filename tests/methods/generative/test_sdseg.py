"""SDSeg: both losses by hand, one call of the U-Net, an autoencoder that is left alone, and what several classes are decoded to."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from vesalius import catalog
from vesalius.core.case import IGNORE, Batch, Case, Image
from vesalius.core.errors import UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock
from vesalius.core.plan import Plan
from vesalius.methods.generative.sdseg import SDSeg, one_mask

TWO = {"background": 0, "polyp": 1}
THREE = {"background": 0, "disc": 1, "cup": 2}
SMALL = {**catalog.get("sdseg").small, "ema": 0.0}


def method(labels=TWO, channels: int = 1, **options) -> SDSeg:
    manifest = Manifest("eyes", Path("."), 2, ("image",), labels, ())
    plan = Plan(dims=2, channels=("image",), in_channels=channels, classes=manifest.names, patch=(20, 32), overlap=0.5)
    torch.manual_seed(0)
    return SDSeg(plan, manifest, **{**SMALL, **options})


def batch(classes: int = 2, channels: int = 1) -> Batch:
    g = torch.Generator().manual_seed(1)
    label = torch.zeros(4, 24, 32, dtype=torch.long)
    for k in range(1, classes):
        label[:, 4 * k : 20, 6 * k : 24] = k
    return Batch(torch.randn(4, channels, 24, 32, generator=g), {"reference": label}, torch.eye(3).repeat(4, 1, 1), list("abcd"))


def terms(m: SDSeg, b: Batch, seed: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return m.losses(b, Clock(0, 10))


def case(shape=(24, 32), channels: int = 1) -> Case:
    pixels = np.random.default_rng(2).normal(size=(channels, *shape)).astype(np.float32)
    return Case("c", images={"image": Image(pixels, Geometry(shape, np.eye(3)))})


def calls(m: SDSeg) -> list[tuple[int, torch.Tensor]]:
    """Fills with (time, input) of every call of the U-Net."""
    seen: list = []
    m.answering["unet"].register_forward_pre_hook(lambda _, given: seen.append((int(given[1][0]), given[0].clone())))
    return seen


# ------------------------------------------------------------------------------------------------------------------------------- training
def by_hand(m: SDSeg, b: Batch, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """The two losses of a binary task written out: noise, and clean latent by (z_t - s eps) / a."""
    torch.manual_seed(seed)
    mask = (b.label.float() * 2 - 1).unsqueeze(1).expand(-1, 3, -1, -1)
    z0 = m.autoencoder.network.encode(mask).latent_dist.mean
    z0 = z0 / z0.std()
    t = torch.randint(1000, (4,))
    eps = torch.randn_like(z0)
    betas = torch.linspace(0.0015**0.5, 0.0155**0.5, 1000) ** 2
    kept = torch.cumprod(1 - betas, 0)[t].view(-1, 1, 1, 1)
    zt = kept.sqrt() * z0 + (1 - kept).sqrt() * eps
    image = (b.image / 3).clamp(-1, 1).expand(-1, 3, -1, -1)
    c = m.network["encoder"](image)[:, :4] * m.gain
    said = m.network["unet"](torch.cat([zt, c], 1), t).sample
    back = (zt - (1 - kept).sqrt() * said) / kept.sqrt()
    return (said - eps).abs().mean(), (back - z0).abs().mean()


def test_the_losses_are_the_papers():
    m, b = method(latent_weight=0.5), batch()
    found, (noise, latent) = terms(m, b), by_hand(m, b)
    torch.testing.assert_close(found["noise"], noise)
    torch.testing.assert_close(found["latent"], 0.5 * latent, rtol=1e-4, atol=1e-5)


def gradients(m: SDSeg, loss: torch.Tensor) -> list[torch.Tensor]:
    m.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in m.network.parameters()]


def test_without_the_latent_loss_it_is_plain_latent_diffusion():
    m, b = method(latent_weight=0.0), batch()
    ours = gradients(m, sum(terms(m, b).values()))
    plain = gradients(m, by_hand(m, b)[0])
    both = gradients(m, sum(by_hand(m, b)))
    assert all(torch.allclose(a, p, atol=1e-6) for a, p in zip(ours, plain, strict=True))
    assert not all(torch.allclose(a, p, atol=1e-6) for a, p in zip(ours, both, strict=True))


def test_the_unet_sees_mask_and_image_latents_side_by_side():
    m = method()
    assert m.network["unet"].conv_in.in_channels == 8 and m.network["unet"].conv_out.out_channels == 4
    b, other = batch(), batch()
    other.image = -other.image
    assert float(terms(m, b)["noise"].detach()) != float(terms(m, other)["noise"].detach())


@pytest.mark.parametrize("labels", [TWO, THREE])
def test_the_image_can_be_looked_at_by_attention_instead(labels):
    m, b = method(labels, fusion="attention"), batch(len(labels))
    sum(terms(m, b).values()).backward()
    assert m.network["unet"].conv_in.in_channels == 4 and float(m.network["encoder"][0].conv_in.weight.grad.abs().sum()) > 0
    assert all(p.grad is not None for p in m.network.parameters())
    assert m.eval()(b.image).shape == (4, len(labels), 24, 32)


def test_the_autoencoder_is_left_alone_and_the_image_encoder_is_not():
    m, b = method(), batch()
    before = {k: v.clone() for k, v in m.autoencoder.state_dict().items()}
    optimizer = m.optimizers()["main"]
    sum(terms(m, b).values()).backward()
    optimizer.step()
    assert all(p.grad is None for p in m.autoencoder.parameters())
    assert all(torch.equal(v, before[k]) for k, v in m.autoencoder.state_dict().items())
    assert float(m.network["encoder"][0].conv_in.weight.grad.abs().sum()) > 0


def test_a_frozen_image_encoder_is_in_no_optimiser():
    m, b = method(image_encoder="frozen"), batch()
    sum(terms(m, b).values()).backward()
    assert all(p.grad is None for p in m.network["encoder"].parameters())
    held = {id(p) for g in m.optimizers()["main"].param_groups for p in g["params"]}
    assert held == {id(p) for p in m.network["unet"].parameters()}


def test_latents_are_scaled_by_the_first_batch_alone():
    m, b = method(), batch()
    terms(m, b)
    first = float(m.gain)
    assert float(m.autoencoder.encode(one_mask(b, 2)[0]).std()) * first == pytest.approx(1, abs=1e-4)
    b.labels = {"reference": torch.zeros_like(b.label)}
    terms(m, b)
    assert float(m.gain) == first and "gain" in m.state()[0]


class Recorded:
    """A Run that trains nothing and notes what it was asked for; 'trained' weights are other ones."""

    def __init__(self):
        self.asked: list[tuple] = []

    def train(self, method, train, val, *, name="", share=1.0):
        learning = {n for n, p in method.named_parameters() if p.requires_grad}
        self.asked.append((name, share, list(val), learning))
        with torch.no_grad():
            for p in method.parameters():
                if p.requires_grad:
                    p.add_(0.01)


def test_two_trainings_share_the_budget_and_the_encoder_starts_as_the_autoencoders():
    m, run = method(autoencoder_share=0.25), Recorded()
    m.fit(["a"], ["b"], run)
    (one, first, no_val, ae), (two, second, val, rest) = run.asked
    assert (one, two) == ("autoencoder", "diffusion") and (first, second) == (0.25, 0.75) and (no_val, val) == ([], ["b"])
    assert ae == {n for n, _ in m.autoencoder.named_parameters()}
    assert rest == {f"network.{n}" for n, _ in m.network.named_parameters()}
    learnt, started = m.autoencoder.network.encoder.conv_in.weight, m.network["encoder"][0].conv_in.weight
    torch.testing.assert_close(started, learnt + 0.01)


def test_weights_of_a_folder_take_the_first_trainings_place(tmp_path):
    given, m, run = method(), method(pretrained=str(tmp_path)), Recorded()
    with torch.no_grad():
        given.autoencoder.network.encoder.conv_in.weight.add_(1)
    given.autoencoder.network.save_pretrained(tmp_path)
    m.fit(["a"], [], run)
    assert [(name, share) for name, share, *_ in run.asked] == [("diffusion", 1.0)]
    assert torch.equal(m.autoencoder.network.encoder.conv_in.weight, given.autoencoder.network.encoder.conv_in.weight)


# ------------------------------------------------------------------------------------------------------------------------------------ masks
def test_masks_of_one_class_a_case():
    b = batch(3)
    b.label[:, 0, 0] = IGNORE
    seen = set()
    for seed in range(6):
        torch.manual_seed(seed)
        mask, ids = one_mask(b, 3)
        assert mask.shape == (4, 1, 24, 32) and set(mask.unique().tolist()) == {-1.0, 0.0, 1.0}
        for m, k, label in zip(mask[:, 0], ids.tolist(), b.label, strict=True):
            inside = label > 0 if k == 0 else label == k
            assert torch.equal(m > 0, inside) and torch.equal(m == 0, label == IGNORE)
        seen |= set(ids.tolist())
    assert seen == {0, 1, 2}
    assert one_mask(batch(2), 2)[1].tolist() == [1] * 4


@pytest.mark.parametrize("label", [None, torch.zeros(4, 2, 24, 32, dtype=torch.long)])
def test_no_labels_and_overlapping_ones_are_refused(label):
    b = batch()
    b.labels = {} if label is None else {"reference": label}
    with pytest.raises(UsageError, match="one class a voxel"):
        method().losses(b, Clock(0, 10))


# ------------------------------------------------------------------------------------------------------------------------------- prediction
@pytest.mark.parametrize(("labels", "steps", "samples"), [(TWO, 1, 1), (TWO, 50, 1), (THREE, 1, 1), (TWO, 1, 3)])
def test_one_reverse_step_is_one_call_of_the_unet(labels, steps, samples):
    m = method(labels, steps=steps, samples=samples).eval()
    seen = calls(m)
    with torch.no_grad():
        maps = m(torch.randn(2, 1, 20, 32))
    assert maps.shape == (2, samples * len(labels), 20, 32)
    assert len(seen) == steps * samples and seen[0][0] == 999
    assert len(seen[0][1]) == 2 * (1 if labels is TWO else 3)


def test_all_windows_and_classes_of_a_case_start_from_its_own_noise():
    m = method(THREE).eval()
    seen = calls(m)
    rng = np.random.default_rng
    with torch.no_grad():
        answers = [m.predict(case((40, 70)), rng=rng(s)).probability.data for s in (3, 3, 4)]
    starts = torch.cat([x[:, :4] for _, x in seen])
    third = len(starts) // 3
    assert third > 6 and torch.equal(starts[:third], starts[:1].expand(third, -1, -1, -1))
    assert not torch.equal(starts[0], starts[-1])
    assert np.array_equal(answers[0], answers[1]) and not np.array_equal(answers[0], answers[2])


def test_fifty_steps_are_the_same_weights():
    m = method().eval()
    x = torch.randn(1, 1, 24, 32)
    with torch.no_grad():
        one = m(x)
        m.sampler = replace(m.sampler, steps=50)
        many = m(x)
        m.sampler = replace(m.sampler, steps=1)
        assert torch.equal(m(x), one) and not torch.allclose(many, one, atol=1e-3)


def test_a_unet_that_tells_the_true_noise_draws_what_the_autoencoder_can():
    """Whatever the noise: the latent that is decoded is the mask's own."""
    m, b = method().eval(), batch()
    terms(m, b)
    mask, _ = one_mask(b, 2)
    clean = m.autoencoder.encode(mask) * m.gain

    def oracle(noisy, t, seen, ids):
        a, s = m.sampler.schedule.weights(t, noisy)
        return (noisy - a * clean) / s

    m.denoise = oracle
    with torch.no_grad():
        found = m(b.image)
        torch.testing.assert_close(found[:, 1], m.autoencoder.decode(clean / m.gain), atol=1e-3, rtol=1e-3)
    assert torch.equal(found[:, 0], -found[:, 1])


def test_the_background_is_the_flipped_map_of_anything():
    m = method(THREE).eval()
    maps = torch.tensor([[1.0, 1.0, -1.0], [1.0, -1.0, -0.8], [-1.0, 1.0, -0.9]])  # class id by place: anything, disc, cup
    m.sampler = lambda network, start: maps.view(3, 1, 1, 3).expand(-1, 4, 6, -1)
    m.autoencoder.decode = lambda z: z.mean(1)
    found = m.draw(torch.zeros(1, 4, 6, 3), torch.zeros(4, 6, 3))
    assert found.argmax(1)[0, 0].tolist() == [1, 2, 0]
    assert found[0, 0, 0].tolist() == [-1, -1, 1]


def test_samples_are_kept_and_their_mean_is_the_probability():
    m = method(samples=3).eval()
    with torch.no_grad():
        drawn = m.predict(case(), rng=np.random.default_rng(0))
    assert drawn.samples.source.shape == (3, 2, 24, 32)
    np.testing.assert_allclose(drawn.probability.data, drawn.samples.source.mean(0), atol=1e-6)
    assert not np.array_equal(drawn.samples.source[0], drawn.samples.source[1])
    assert method().eval().finish(torch.zeros(2, 24, 32), case()).samples is None


def test_colours_are_taken_as_they_are_and_grey_three_times():
    for channels in (1, 3, 4):
        m, b = method(channels=channels), batch(channels=channels)
        assert m.autoencoder.colours == max(3, channels)
        assert all(torch.isfinite(v) for v in (*terms(m, b).values(), *m.autoencoder.losses(b, Clock(0, 10)).values()))


def test_the_patch_fits_the_networks():
    m = method()
    assert m.plan.patch == (24, 32) and m.multiple == 8


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 0}, "steps"),
        ({"samples": 0}, "samples"),
        ({"latent_weight": -1.0}, "latent_weight"),
        ({"autoencoder_share": 1.0}, "autoencoder_share"),
        ({"features": ()}, "features"),
        ({"multiples": (0, 1)}, "multiples"),
        ({"width": 0}, "width"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(UsageError, match=says):
        method(**options)


def test_a_missing_folder_of_weights_is_refused_before_training():
    with pytest.raises(UsageError, match="config.json"):
        method(pretrained="/nowhere").fit(["a"], [], Recorded())


def test_the_proof_is_a_study():
    path = Path(__file__).resolve().parents[3] / "proofs" / "generative" / "sdseg.py"
    study = runpy.run_path(str(path))["study"]()
    names = [arm.name for arm in study.arms]
    assert study.slug == "sdseg" and study.baseline in names
    assert all(e.arm in names and (e.against or study.baseline) in names and e.metric in study.metrics for e in study.expects)
