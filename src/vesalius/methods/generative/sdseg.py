"""SDSeg: a latent diffusion model draws the mask, and needs one reverse step for it.

An autoencoder turns a mask into a small latent. A U-Net is shown that latent under noise, beside the latent of the image, and says what the
noise is. Whatever it says implies a clean latent; its distance to the true one is a second loss at every time, so that already the first
reverse step from pure noise lands on a latent that decodes to the mask.

Lin et al., Stable Diffusion Segmentation for Biomedical Images with Single-step Reverse Process, MICCAI 2024,
https://arxiv.org/abs/2406.18361, code https://github.com/lin-tianyu/Stable-Diffusion-Seg. Where we differ or had to choose:

* The paper starts from Stable Diffusion's autoencoder and a U-Net trained on photographs. Here a first share of the budget
  (``autoencoder_share``) trains a small autoencoder on the training masks and images, by squared error and a light divergence, without its
  perceptual and adversarial terms. The paper's own: ``pretrained=FOLDER features=128,256,512,512 blocks=2 width=192 multiples=1,2,2,4,4``.
* Its rate of 1e-5 times the batch is for starting from those weights; ``lr`` here is for training from scratch.
* ``predicts='noise'`` is the paper's, for weights that already tell noise well: at the last time its error is forty times as large in the
  latent. 'velocity' has the same losses in numbers that are well scaled at every time; from scratch, take that.
* Latents are the encoder's means. Images are scaled to about -1..1 as a third of the plan's normalised values.
* For several classes the paper gives the decoding, not what the background's own map is. Here class id 0 asks for anything that is not
  background; the sign of that map is flipped, and a softmax runs over the classes. With one class this is that class's own map.

Key components: ``networks.latent_diffusion`` (diffusers' autoencoder and U-Net), ``inferers.diffusion`` (schedule, sampler, seeded noise),
an image encoder that starts as the autoencoder's and is trained with the U-Net.

Good to know: probabilities are a softmax of decoded maps of -1 to 1, so that a sure voxel has about 0.88: they order voxels, they do not
say how often they are right. ``samples`` masks are drawn from as many noises, their mean is the probability. All windows of a case see the
same noise. ``steps`` changes nothing in training. Trained too short, one step answers with empty masks where many steps already draw some:
of what it cannot tell yet, the absolute error wants the median. Every class costs as much as a whole prediction of one. What no annotator
spoke for is a 0 between -1 and 1 in the mask: a latent has no voxels to leave out. How good a mask can be is bounded by the autoencoder;
its error on masks is in the run's log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from ...core.case import IGNORE, Batch, Case, Condition, Image
from ...core.errors import UsageError
from ...core.manifest import Manifest
from ...core.method import Clock, Method, Run
from ...core.plan import Plan
from ...core.prediction import Prediction
from ...inferers.diffusion import Sampler, Schedule, seeded_noise
from ...networks.blocks.padding import pad_to_multiple
from ...networks.ema import EMA
from ...networks.latent_diffusion import attending_unet, autoencoder, encoder_of, latent_unet, load_autoencoder
from ..learned import LearnedMethod


class SDSeg(LearnedMethod):
    """``latent_weight`` of the loss on the clean latent (0: plain latent diffusion); ``steps`` of prediction and ``samples`` drawn by it;
    ``fusion``: the image's latent is stacked on the mask's, or looked at by cross-attention; ``image_encoder``: trained with the U-Net or
    left as the autoencoder's; ``predicts``: what the U-Net answers with.

    Sizes: ``features`` of the autoencoder's levels, ``latent`` channels, the U-Net's ``width`` times its levels' ``multiples``, ``blocks``
    a level in both, ``dropout`` in the U-Net. ``autoencoder_share`` of the budget trains it, ``kl`` weighs its divergence;
    ``pretrained``: a local folder to take it from instead."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        latent_weight: float = 1.0,
        steps: int = 1,
        samples: int = 1,
        fusion: Literal["concat", "attention"] = "concat",
        image_encoder: Literal["trained", "frozen"] = "trained",
        predicts: Literal["noise", "signal", "velocity"] = "noise",
        features: tuple[int, ...] = (16, 32, 64, 64),
        latent: int = 4,
        width: int = 64,
        multiples: tuple[int, ...] = (1, 2, 2),
        blocks: int = 1,
        dropout: float = 0.2,
        autoencoder_share: float = 0.3,
        kl: float = 1e-6,
        pretrained: str = "",
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        ema: float = 0.99,
    ):
        _check(features=features, multiples=multiples, latent=latent, width=width, blocks=blocks, samples=samples, share=autoencoder_share)
        if latent_weight < 0:
            raise UsageError("a loss has a weight of 0 or more", where="latent_weight", found=latent_weight)
        self.multiple = 2 ** (len(features) - 1 + len(multiples) - 1)
        patch = tuple(-(-n // self.multiple) * self.multiple for n in plan.patch)
        super().__init__(plan.derive(patch=patch), manifest, parts=parts)
        self.sampler = Sampler(Schedule(), steps, predicts)
        self.latent_weight, self.samples, self.latent, self.share = latent_weight, samples, latent, autoencoder_share
        self.pretrained, self.fusion, self.lr, self.weight_decay = pretrained, fusion, lr, weight_decay
        self.classes = len(plan.classes)
        self.asked = range(self.classes) if self.classes > 2 else (1,)
        self.autoencoder = MaskAutoencoder(self.plan, manifest, features=features, latent=latent, blocks=blocks, kl=kl, lr=lr)
        self.autoencoder.requires_grad_(False)
        encoder = encoder_of(self.autoencoder.network).requires_grad_(image_encoder == "trained")
        levels = dict(features=[width * m for m in multiples], blocks=blocks, dropout=dropout, classes=self.classes * (self.classes > 2))
        stacked = fusion == "concat"
        unet = latent_unet(2 * latent, latent, **levels) if stacked else attending_unet(latent, latent, told=latent, **levels)
        self.network = nn.ModuleDict({"encoder": encoder, "unet": unet})
        self.ema = EMA(self.network, ema) if ema else None
        self.register_buffer("gain", torch.zeros(()))  # 1 / sd of the latents of the first batch's masks; 0: not seen yet

    # training ------------------------------------------------------------------------------------------------------------------------
    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> SDSeg:
        share = 0.0 if self.pretrained else self.share
        if self.pretrained:
            load_autoencoder(self.autoencoder.network, self.pretrained)
        else:
            self.learn_autoencoder(train, run, share)
        self.network["encoder"].load_state_dict(encoder_of(self.autoencoder.network).state_dict())
        run.train(self, train, val, name="diffusion", share=1 - share)
        return self

    def learn_autoencoder(self, train: Sequence[str], run: Run, share: float) -> None:
        """The first training, from masks and images; afterwards the autoencoder takes no gradient."""
        self.autoencoder.requires_grad_(True)
        run.train(self.autoencoder, train, [], name="autoencoder", share=share)
        self.autoencoder.requires_grad_(False)

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        """Absolute errors of the noise and, weighted, of the clean latent that the answer implies (means)."""
        mask, ids = one_mask(batch, self.classes)
        clean = self.autoencoder.encode(mask).float()
        if not self.gain:
            self.gain.copy_(1 / clean.detach().std().clamp_min(1e-2))
        clean = clean * self.gain
        t = torch.randint(self.sampler.schedule.times, (len(clean),), device=clean.device)
        noise = torch.randn_like(clean)
        noisy = self.sampler.schedule.noisy(clean, noise, t)
        answer = self.denoise(noisy, t, self.seen(batch.image), ids)
        signal, said = self.sampler.schedule.split(answer, noisy, t, self.sampler.predicts)
        return {"noise": l1_loss(said, noise), "latent": self.latent_weight * l1_loss(signal, clean)}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        learning = [p for p in self.network.parameters() if p.requires_grad]
        return {"main": torch.optim.AdamW(learning, lr=self.lr, weight_decay=self.weight_decay)}

    def after_step(self, clock: Clock) -> None:
        if self.ema is not None:
            self.ema.update(self.network, clock.step)

    # the networks --------------------------------------------------------------------------------------------------------------------
    @property
    def answering(self) -> nn.ModuleDict:
        """The averaged networks when evaluating, where there are such."""
        return self.network if self.training or self.ema is None else self.ema.average

    @property
    def bottleneck(self) -> nn.Module:
        return self.answering["unet"].mid_block

    def seen(self, image: Tensor) -> Tensor:
        """The latent (B, latent, *s / f) of images (B, C, *s)."""
        return self.answering["encoder"](picture(image))[:, : self.latent] * self.scale

    def denoise(self, noisy: Tensor, t: Tensor, seen: Tensor, ids: Tensor) -> Tensor:
        """The U-Net's answer to latents ``noisy`` (B, latent, ...) at times ``t`` (B,), beside those of images, for class ``ids`` (B,)."""
        with torch.autocast(noisy.device.type, enabled=False):  # noise has to be told to three digits
            unet, noisy, seen, ids = self.answering["unet"], noisy.float(), seen.float(), ids if self.classes > 2 else None
            if self.fusion == "concat":
                return unet(torch.cat([noisy, seen], 1), t, class_labels=ids).sample
            return unet(noisy, t, seen.flatten(2).transpose(1, 2), class_labels=ids).sample

    @property
    def scale(self) -> Tensor:
        return torch.where(self.gain > 0, self.gain, torch.ones_like(self.gain))

    # prediction ----------------------------------------------------------------------------------------------------------------------
    def condition(self, case: Case, rng: np.random.Generator) -> Condition:
        """The seed of the case's noise."""
        return Condition(seed=int(rng.integers(2**31)))

    def forward(self, image: Tensor, condition: Condition | None = None) -> Tensor:
        """(B, samples * K, *s) decoded maps, the background's with its sign flipped; the noise is that of the condition's seed, or 0."""
        seen = self.seen(pad_to_multiple(image, (self.multiple,) * 2))
        noises = seeded_noise((self.samples, *seen.shape[1:]), condition.seed if condition else 0, image.device)
        maps = torch.cat([self.draw(seen, noise) for noise in noises], 1)
        return maps[(..., *(slice(n) for n in image.shape[2:]))]

    def draw(self, seen: Tensor, noise: Tensor) -> Tensor:
        """One sample (B, K, *s) of each of the images ``seen`` (B, latent, ...), from ``noise`` (latent, ...): all classes side by side."""
        n = len(self.asked)
        ids = torch.tensor(self.asked, device=seen.device).repeat(len(seen))
        beside = seen.repeat_interleave(n, 0)
        clean = self.sampler(lambda x, t: self.denoise(x, t, beside, ids), noise.expand_as(beside))
        maps = self.autoencoder.decode(clean / self.scale).unflatten(0, (len(seen), n))
        return torch.cat([-maps[:, :1], maps[:, 1:] if n > 1 else maps], 1)

    def finish(self, maps: Tensor, case: Case) -> Prediction:
        drawn = maps.unflatten(0, (self.samples, self.classes)).float().softmax(1).cpu().numpy()
        samples = Image(drawn, case.geometry) if self.samples > 1 else None
        return Prediction(probability=Image(drawn.mean(0), case.geometry), samples=samples)


class MaskAutoencoder(LearnedMethod):
    """Masks and images (both about -1..1) to latents and back, learnt by squared error (the absolute one starts by calling every
    mask empty), with a divergence (nats) of weight ``kl``."""

    def __init__(self, plan: Plan, manifest: Manifest, *, features: tuple[int, ...], latent: int, blocks: int, kl: float, lr: float):
        super().__init__(plan, manifest)
        self.colours = 3 if plan.in_channels == 1 else plan.in_channels
        self.network, self.kl, self.lr = autoencoder(self.colours, features=features, latent=latent, blocks=blocks), kl, lr

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        mask, _ = one_mask(batch, len(self.plan.classes))
        image = picture(batch.image)
        both = torch.cat([mask.expand_as(image), image])
        latents = self.network.encode(both).latent_dist
        again, seen = self.network.decode(latents.sample()).sample.chunk(2)
        known = (mask != 0).float()
        divergence = latents.kl().sum() / both.numel()
        return {"masks": ((again - mask).square() * known).mean(), "images": mse_loss(seen, image), "kl": self.kl * divergence}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"main": torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.0)}

    def encode(self, mask: Tensor) -> Tensor:
        """(B, 1, *s) of -1..1 -> latents (B, latent, *s / f)."""
        return self.network.encode(mask.expand(-1, self.colours, -1, -1)).latent_dist.mean

    def decode(self, latents: Tensor) -> Tensor:
        """The way back, the mean over colours: (B, *s)."""
        return self.network.decode(latents).sample.mean(1)

    def forward(self, image: Tensor, condition: Condition | None = None) -> Tensor:
        return self.network(picture(image)).sample


def one_mask(batch: Batch, classes: int) -> tuple[Tensor, Tensor]:
    """One class a case, drawn where there are several: (mask (B, 1, *s) of 1 inside, -1 outside and 0 unknown, class ids (B,)). Id 0 is
    everything but background."""
    label = batch.label
    if label is None or label.ndim != batch.image.ndim - 1:
        found = "cases without a reference label" if label is None else "structures that overlap"
        raise UsageError("this method learns from labels of one class a voxel", where="sdseg", found=found)
    ids = torch.randint(classes, (len(label),), device=label.device) if classes > 2 else torch.ones_like(label[:, 0, 0])
    wanted = ids.view(-1, 1, 1)
    inside = torch.where(wanted == 0, label > 0, label == wanted)
    mask = torch.where(label == IGNORE, 0.0, 2.0 * inside - 1)
    return mask.unsqueeze(1), ids


def picture(image: Tensor) -> Tensor:
    """Normalised images (B, C, *s) -> about -1..1; a grey one as three equal colours."""
    image = (image / 3).clamp(-1, 1)
    return image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image


def _check(*, features, multiples, latent, width, blocks, samples, share) -> None:
    for name, value in (("latent", latent), ("width", width), ("blocks", blocks), ("samples", samples)):
        if value < 1:
            raise UsageError("this is 1 or more", where=name, found=value)
    for name, value in (("features", features), ("multiples", multiples)):
        if not value or min(value) < 1:
            raise UsageError("a network has levels of positive width", where=name, found=value)
    if not 0 < share < 1:
        raise UsageError("this is a share of the budget", where="autoencoder_share", found=share, allowed="above 0 and below 1")
