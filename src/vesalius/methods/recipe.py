"""Recipe: a network paper as a method. The network and the objective come from its card, and so does how the paper trains it, as data.

Splits, sampling, augmentation, inference and scoring stay the plan's. A new network paper is one file in ``networks/`` and a card whose
``recipe`` names this base, the network, the objective and the options that differ; it subclasses nothing.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..core.case import IGNORE, Batch, Condition
from ..core.errors import UsageError
from ..core.geometry import Grid
from ..core.manifest import Manifest
from ..core.method import Clock, Method, Run
from ..core.plan import Plan
from ..networks.blocks.padding import pad_to_multiple
from ..networks.blocks.pretrained import load_backbone
from ..objectives.cldice import ClDice
from ..objectives.dice_ce import DiceCE, deep
from ..objectives.ramps import cosine_decay, poly_decay
from ..objectives.tversky_ce import TverskyCE
from .learned import Segmenter

CLASSWISE = (ClDice, DiceCE, TverskyCE)  # they compare a map of every class; of a single map DiceCE makes a sigmoid


class Recipe(Segmenter):
    """``network(in_channels, out_channels, *, spatial_dims)`` (None: the planned U-Net) trained as the options say.

    Input. The plan's patch, rounded up to the network's ``multiple``; ``size``: another (voxels). ``whole``: the case, cropped to what is
    not background, is resized to that patch: one window is the whole case. A network that lays something out for its input's size (learned
    positions) takes ``window``. Windows of other sizes are zero-padded to the multiple and the answer cropped.
    Output. ``outputs``: a map per class, or 'foreground': per foreground class, against a background whose logit is 0 (for two classes the
    sigmoid). ``levels``: deeply supervised maps weigh 1, 1/2, 1/4, ... normalised, or 'equal': 1 each, all at the input's size;
    'fading': likewise, but the others than the first weigh 0.4 each, a fifth less after every twentieth of the budget.
    Training. ``optimizer`` with ``lr``, ``betas`` (SGD: Nesterov momentum betas[0]), ``weight_decay``; ``schedule`` after a linear
    ``warmup`` (share of the budget); gradients clipped to the norm ``clip`` and each value to ``clip_value`` (0: not); ``ema`` decay of the
    averaged model that predicts (0: none). ``scales``: every batch is trained at each of these sizes in turn, an update each.
    ``pretrained``: a local safetensors file for ``network.backbone``, read when training begins; what it holds is kept by a rate of
    ``backbone_rate`` * ``lr`` there (a backbone of random weights has nothing to keep and learns at ``lr`` like the rest).
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        network: Callable[..., nn.Module] | None = None,
        objective: Callable[[], Callable] = DiceCE,
        size: tuple[int, ...] = (),
        whole: bool = False,
        outputs: Literal["classes", "foreground"] = "classes",
        levels: Literal["halving", "equal", "fading"] = "halving",
        optimizer: Literal["adamw", "adam", "nadam", "sgd"] = "adamw",
        lr: float = 2e-3,
        betas: tuple[float, ...] = (0.9, 0.999),
        weight_decay: float = 1e-2,
        schedule: Literal["cosine", "poly", "constant"] = "cosine",
        warmup: float = 0.05,
        clip: float = 12.0,
        clip_value: float = 0.0,
        ema: float = 0.99,
        scales: tuple[float, ...] = (),
        pretrained: str = "",
        backbone_rate: float = 1.0,
    ):
        limits = dict(warmup=(warmup, 0.99), clip=(clip, math.inf), clip_value=(clip_value, math.inf), backbone_rate=(backbone_rate, 1.0))
        _check(plan, size=size, betas=betas, scales=scales, **limits)
        self.outputs, self.levels, self.scales, self.pretrained = outputs, levels, scales, pretrained
        self.backbone_rate = backbone_rate
        self.optimizer, self.betas, self.schedule, self.warmup = optimizer, tuple(betas), schedule, warmup
        self.clip, self.clip_value = clip or math.inf, clip_value
        plan = plan.derive(patch=tuple(size or plan.patch))
        super().__init__(plan, manifest, parts=parts, network=network, objective=objective, lr=lr, weight_decay=weight_decay, ema=ema)
        patch = tuple(-(-n // m) * m for n, m in zip(plan.patch, self.network.multiple, strict=True))
        self.plan = plan.derive(patch=patch, **(dict(grid=Grid(size=patch), crop_to_body=True) if whole else {}))
        if pretrained and not isinstance(getattr(self.network, "backbone", None), nn.Module):
            raise UsageError("this network has no backbone to fill", where="pretrained", found=type(self.network).__name__)
        sigmoid = isinstance(self.objective, DiceCE) and self.out_channels == 1
        if outputs == "foreground" and isinstance(self.objective, CLASSWISE) and not sigmoid:
            found = f"foreground: {type(self.objective).__name__}, {len(plan.classes)} classes"
            raise UsageError(
                "this loss compares a map of every class, the background's too", where="outputs", found=found, allowed="classes"
            )

    @property
    def out_channels(self) -> int:
        return len(self.plan.classes) - (self.outputs == "foreground")

    def build(self, network: Callable[..., nn.Module] | None = None, **options) -> nn.Module:
        if network is not None and "window" in inspect.signature(network).parameters:
            options["window"] = self.plan.patch
        return super().build(network, **options)

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> Recipe:
        if self.pretrained:
            load_backbone(self.network.backbone, self.pretrained)
            if self.ema is not None:
                self.ema.average.load_state_dict(self.network.state_dict())
        return super().fit(train, val, run)

    def turns(self, clock: Clock) -> Sequence[str]:
        return tuple(f"x{scale:g}" for scale in self.scales) or ("main",)

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        if batch.label is None:
            raise UsageError("this method learns from labels", where=type(self).__name__, found="cases without a reference label")
        image, label, name = batch.image, batch.label, "segmentation"
        if turn != "main":
            image, label = self.rescaled(image, label, float(turn.removeprefix("x")))
            name = f"segmentation {turn}"
        maps = self.network(image)
        if self.levels == "halving" or isinstance(maps, Tensor):
            return {name: deep(self.objective, maps, label, ignore_index=IGNORE)}
        first, *others = (self.objective(m, label, ignore_index=IGNORE) for m in maps)
        return {name: first + (1.0 if self.levels == "equal" else 0.4 * 0.8 ** int(20 * clock.fraction)) * sum(others)}

    def rescaled(self, image: Tensor, label: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Image (B, C, *s) linearly and label (B, *s) by nearest neighbour at ``scale``, to the nearest multiple of the network's."""
        size = [max(m, round(n * scale / m) * m) for n, m in zip(image.shape[2:], self.network.multiple, strict=True)]
        if size == list(image.shape[2:]):
            return image, label
        mode = "trilinear" if len(size) == 3 else "bilinear"
        moved = interpolate(label.unsqueeze(1).float(), size, mode="nearest-exact").squeeze(1).to(label.dtype)
        return interpolate(image, size, mode=mode, align_corners=False), moved

    def forward(self, image: Tensor, condition: Condition | None = None) -> Tensor:
        """Logits (B, classes, *s) of the averaged network when evaluating, the finest map where there are several."""
        maps = super().forward(pad_to_multiple(image, self.network.multiple))
        logits = maps if isinstance(maps, Tensor) else maps[0]
        logits = logits[(..., *(slice(n) for n in image.shape[2:]))]
        return torch.cat([torch.zeros_like(logits[:, :1]), logits], 1) if self.outputs == "foreground" else logits

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        weights, decay = list(self.network.parameters()), self.weight_decay
        groups = [{"params": weights}]
        if self.pretrained and self.backbone_rate < 1:
            inside = list(self.network.backbone.parameters())
            known = {id(p) for p in inside}
            groups = [{"params": [p for p in weights if id(p) not in known]}, {"params": inside, "lr": self.lr * self.backbone_rate}]
        if self.optimizer == "sgd":
            made = torch.optim.SGD(groups, lr=self.lr, momentum=self.betas[0], nesterov=self.betas[0] > 0, weight_decay=decay)
        else:
            kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "nadam": torch.optim.NAdam}[self.optimizer]
            made = kind(groups, lr=self.lr, betas=self.betas, weight_decay=decay)
        if self.clip_value:
            made.register_step_pre_hook(lambda *_: torch.nn.utils.clip_grad_value_(weights, self.clip_value))
        return {"main": made}

    def learning_rate(self, clock: Clock) -> float:
        if clock.fraction < self.warmup:
            return min(1.0, (clock.step + 1) / (self.warmup * clock.total))
        t = (clock.fraction - self.warmup) / (1 - self.warmup)
        return {"constant": lambda: 1.0, "poly": lambda: poly_decay(t), "cosine": lambda: cosine_decay(t, floor=0.01)}[self.schedule]()


def _check(plan: Plan, *, size, betas, scales, **limits: tuple[float, float]) -> None:
    if size and (len(size) != plan.dims or min(size) < 1):
        raise UsageError("a window has a positive side for each axis", where="size", found=tuple(size), allowed=f"{plan.dims} numbers")
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        raise UsageError("an optimiser has two betas", where="betas", found=tuple(betas), allowed="two numbers from 0 to below 1")
    if scales and not all(0.1 <= s <= 4 for s in scales) or len({f"{s:g}" for s in scales}) < len(scales):
        raise UsageError(
            "training scales differ and are factors", where="scales", found=tuple(scales), allowed="0.1 to 4, e.g. 0.75,1,1.25"
        )
    for name, (value, most) in limits.items():
        if not 0 <= value <= most:
            raise UsageError("this is not negative" if value < 0 else "this is too large", where=name, found=value)
