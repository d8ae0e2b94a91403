"""GF-Screen: a glance at every sub-volume says where a lesion may be, and only there the focus network segments.

A lesion is a thousandth of a CT. A small classifier (glance) looks at every window, the segmenter (focus) at the chosen ones; the rest is
background, which saves time and false alarms. Whether looking paid is known only after segmenting, and choosing has no gradient: so the
glance learns by reinforcement. A crop whose segmentation meets the lesion earns 1, any other 0, and what counts is the reward relative to
the group of crops of the step (``objectives/group_advantage.py``), beside a cross-entropy on which crops hold a lesion.

Wu, Zhuang and Chen, Glance and Focus Reinforcement for Pan-cancer Screening, ICLR 2026, https://arxiv.org/abs/2601.19103; their code
https://github.com/Luffy03/GF-Screen was read. Where we differ or had to choose:

* The focus is the plan's U-Net with the plan's optimiser, averaging, patch and overlap (SwinUNETR, 96 x 96 x 64 and 0.75), so that a
  comparison with ``unet`` shows the screening alone. Any ``network`` may be given from Python.
* A group is 4 crops for each volume of the plan's batch, half of them centred on a lesion, half beside one; the crops come from as many
  volumes as there are (theirs: 4 crops of each of 4), and an epoch is as many steps as show each volume 4 crops.
* The focus learns from ``segmented`` of the group's crops (theirs: from all), by default as many as ``unet`` learns from.
* Both optimisers step on the same crops, the glance first, so that rewards are those of the weights before the step, as in one backward.
* The glance is a ResNet-18 as wide as the plan's network (theirs: 64) without max pooling, which would lose lesions of a voxel or two.
* Windows are blended as everywhere (Gaussian weights on logits; theirs: the plain mean of softmaxes), over the chosen windows alone.

Key components: ``Glance`` (the policy), ``objectives.group_advantage`` (what a look earned against its group, clipped, near the policy of
the epoch before), ``inferers.screened.Screened`` (the sliding window that skips), ``GFScreen.rewards``.

Good to know: the focus never notices the glance, so whatever threshold is set, a lesion that the focus would miss stays missed, and
``least`` trades windows against recall without training anew: choose it on validation cases, for a short training is not calibrated to the
published 0.9. ``least=0`` is the plain sliding window. A step costs a forward of the whole group beside the U-Net's step: fewer ``crops``
make it cheaper. Lesions of a voxel or two vanish at the coarse levels of deep supervision. An empty answer says so, and every prediction
carries the share of windows kept and their boxes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...core.case import IGNORE, Batch, Boxes, Case, Image
from ...core.errors import UsageError
from ...core.geometry import Geometry
from ...core.manifest import Manifest
from ...core.method import Clock, Method, Run, Sampling, Stage, Stream
from ...core.plan import Plan
from ...core.prediction import Prediction
from ...inferers.screened import Screened
from ...networks.blocks.conv import ConvNormAct, ResidualBlock
from ...objectives.dice_ce import deep
from ...objectives.group_advantage import group_policy
from ..learned import Segmenter

NOTHING = "no window was worth a look: everything is background"


class Glance(nn.Module):
    """A residual classifier of windows (B, C, *s) -> logits (B, 2) of skip and look: a strided stem and four stages of ``blocks`` residual
    blocks (2: ResNet-18, 1: ResNet-10), ``width`` channels in the first, doubled and halved in size at each."""

    def __init__(self, in_channels: int, *, spatial_dims: int, width: int = 64, blocks: int = 2):
        super().__init__()
        layers: list[nn.Module] = [ConvNormAct(spatial_dims, in_channels, width, 3, 2, "batch")]
        inp = width
        for stage in range(4):
            for block in range(blocks):
                out, stride = width * 2**stage, 2 if stage and not block else 1
                layers.append(ResidualBlock(spatial_dims, inp, out, 3, stride, "batch"))
                inp = out
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(inp, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).flatten(2).mean(2))


class GFScreen(Segmenter):
    """``least``: p(look) from which a window is segmented (0.9 at test in the paper, 0.5 in its validations; 0: every window, the plain
    sliding window). ``glance_weight`` and ``policy_weight`` weigh the cross-entropy and the reinforcement (0: 'glance by cross-entropy
    only'), ``kl`` is the latter's pull to the policy of the epoch before. ``reward``: 'detection', or 'dice' as the paper's ablation.
    ``crops`` per volume; ``segmented``: crops of a group that teach the focus (0: the plan's batch). ``width`` of the glance (0: the
    plan's first features; 64 in the paper) and ``blocks`` a stage; ``glance_lr``. ``lr``, ``weight_decay`` and ``ema`` are the focus's."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        network: Callable[..., nn.Module] | None = None,
        least: float = 0.9,
        glance_weight: float = 0.1,
        policy_weight: float = 1.0,
        kl: float = 0.01,
        reward: Literal["detection", "dice"] = "detection",
        crops: int = 4,
        segmented: int = 0,
        width: int = 0,
        blocks: int = 2,
        glance_lr: float = 3e-4,
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        ema: float = 0.99,
    ):
        super().__init__(plan, manifest, parts=parts, network=network, lr=lr, weight_decay=weight_decay, ema=ema)
        _check(least=least, glance_weight=glance_weight, policy_weight=policy_weight, kl=kl)
        _check(crops=crops, segmented=segmented, width=width, blocks=blocks)
        self.least, self.glance_weight, self.policy_weight, self.kl, self.reward = least, glance_weight, policy_weight, kl, reward
        self.group, self.segmented, self.glance_lr = plan.batch * crops, segmented or plan.batch, glance_lr
        self.glance = Glance(self.in_channels, spatial_dims=plan.dims, width=width or plan.features[0], blocks=blocks)
        self.old = copy.deepcopy(self.glance).requires_grad_(False)  # the policy of the epoch before
        self.epoch = 1  # steps

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> GFScreen:
        self.epoch = max(1, len(train) // self.plan.batch)
        return super().fit(train, val, run)

    # training ------------------------------------------------------------------------------------------------------------------------
    def sampling(self, stage: Stage) -> Sampling:
        lesion, half = tuple(range(1, len(self.plan.classes))), self.group // 2
        return Sampling(streams=(Stream("lesion", half, centre=lesion), Stream("beside", self.group - half, centre=(0,))))

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {**super().optimizers(), "glance": torch.optim.AdamW(self.glance.parameters(), lr=self.glance_lr, weight_decay=1e-5)}

    def turns(self, clock: Clock) -> Sequence[str]:
        return ("glance", "main")

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        """'glance': the balanced cross-entropy and the policy's two terms; 'main': the focus's segmentation of some of the crops."""
        if batch.label is None:
            raise UsageError("this method learns from labels", where=type(self).__name__, found="cases without a reference label")
        image, label = (torch.cat(both) for both in zip(*((b.image, b.label) for b in (batch, batch["beside"])), strict=True))
        if turn == "main":
            some = torch.randperm(len(image))[: self.segmented].to(image.device)
            return {"segmentation": deep(self.objective, self.network(image[some]), label[some], ignore_index=IGNORE)}
        lesion = label > 0
        log_p = self.glance(image).float().log_softmax(1)
        terms = {"glance": self.glance_weight * balanced_cross_entropy(log_p, lesion.flatten(1).any(1))}
        if self.policy_weight:
            with torch.no_grad():
                log_old, earned = self.old(image).float().log_softmax(1), self.rewards(image, lesion)
            step = group_policy(log_p[:, 1], log_old[:, 1], earned, kl=self.kl)
            terms |= {name: self.policy_weight * value for name, value in step.items()}
        return terms

    @torch.no_grad()
    def rewards(self, image: Tensor, lesion: Tensor) -> Tensor:
        """(B,) what looking at each crop earned: 1 where the focus's foreground meets the lesion (B, *s) in a voxel, else 0; or their Dice
        (0 where neither is there: the paper's code gives such a crop 1, and so would reward looking at nothing)."""
        maps = self.network(image)
        found = (maps if isinstance(maps, Tensor) else maps[0]).argmax(1) > 0
        both, each = (found & lesion).flatten(1).sum(1), found.flatten(1).sum(1) + lesion.flatten(1).sum(1)
        return (both > 0).float() if self.reward == "detection" else 2 * both / each.clamp_min(1)

    def after_step(self, clock: Clock) -> None:
        super().after_step(clock)
        if (clock.step + 1) % self.epoch == 0:
            self.old.load_state_dict(self.glance.state_dict())

    # prediction ----------------------------------------------------------------------------------------------------------------------
    def inferer(self) -> Screened:
        p = self.plan
        return Screened(p.patch, overlap=p.overlap, batch=4, mirror_axes=p.test_mirror, glance=self.look, least=self.least)

    def look(self, windows: Tensor) -> Tensor:
        """(B,) the probability that a window (B, C, *patch) is worth segmenting."""
        return self.glance(windows).float().softmax(1)[:, 1]

    def finish(self, maps: Mapping[str, Tensor], case: Case) -> Prediction:
        """The focus's probabilities where a window was looked at, background elsewhere; table['kept_share'], the windows segmented of all;
        boxes['looked'], those windows with their p(look)."""
        looked, chance = maps["looked"], maps["chance"]
        nothing = looked.new_zeros((len(self.plan.classes), *looked.shape[1:]), dtype=torch.float32)
        nothing[0] = 1
        probability = torch.where(looked, self.probabilities(maps["logits"][None])[0], nothing) if "logits" in maps else nothing
        kept = chance >= self.least
        said = f"{int(kept.sum())} of {len(kept)} windows were looked at" if kept.any() else NOTHING
        low, high = world_boxes(maps["corner"][kept].cpu().numpy(), self.plan.patch, case.geometry)
        return Prediction(
            probability=Image(probability.cpu().numpy(), case.geometry),
            table={"kept_share": float(kept.float().mean())},
            boxes={"looked": Boxes(low, high, scores=chance[kept].numpy())},
            notes=() if kept.all() else (said,),
        )


def balanced_cross_entropy(log_p: Tensor, holds: Tensor) -> Tensor:
    """-mean log p(look) of the crops that hold a lesion, -mean log p(skip) of the others: ``log_p`` (B, 2), ``holds`` (B,) bool. A kind
    that is not there adds 0."""
    return -sum(log_p[kind, action].sum() / kind.sum().clamp_min(1) for action, kind in ((1, holds), (0, ~holds)))


def world_boxes(corner: np.ndarray, patch: Sequence[int], grid: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Low and high (n, d), world mm, of the windows whose first voxels are ``corner`` (n, d), cut at the image's outer faces; on an oblique
    grid the boxes around them."""
    return grid.world_bounds(np.clip(corner, 0, None) - 0.5, np.minimum(corner + np.asarray(patch), grid.shape) - 0.5)


def _check(**options: float) -> None:
    for name, value in options.items():
        least, most = {"least": (0, 1), "crops": (2, np.inf), "blocks": (1, np.inf)}.get(name, (0, np.inf))
        if not least <= value <= most:
            allowed = f"{least} to {most}" if np.isfinite(most) else f"{least} or more"
            raise UsageError("this option cannot have this value", where=f"gf-screen {name}", found=value, allowed=allowed)
