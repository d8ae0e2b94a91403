"""LearnedMethod: a method the engine's one loop optimises; every hook has a default. And Segmenter, the base of most papers.

A paper that changes the network passes another network, one that changes the loss another objective, one that changes the training
overrides ``losses`` (and ``after_step``, ``sampling``); nobody writes a loop, a sliding window or a Dice metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..core.case import IGNORE, Batch, Case, Condition, Image, Points, Sample
from ..core.errors import DataError, UsageError, nearest
from ..core.manifest import Manifest
from ..core.method import Clock, Derived, Method, Run, Sampling, Stage, Stream
from ..core.plan import Plan
from ..core.prediction import Prediction
from ..core.prompt import Prompt
from ..inferers.sliding import SlidingWindow
from ..inferers.whole import Whole
from ..networks.ema import EMA
from ..networks.unet import UNet
from ..objectives.dice_ce import DiceCE, deep
from ..objectives.ramps import cosine_decay
from ..ops import augment
from ..ops.tabular import level


class LearnedMethod(Method, nn.Module):
    """A method with parameters. ``readout`` says how logits become probabilities: 'softmax' | 'sigmoid' | 'tanh' ((1 + tanh) / 2)."""

    readout = "softmax"
    clip = 12.0  # gradient norm
    stage = Stage()  # the one being trained; the loop sets it

    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> LearnedMethod:
        run.train(self, train, val)
        return self

    # training ------------------------------------------------------------------------------------------------------------------------
    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        """Named terms; the loop adds, logs and backpropagates them."""
        raise NotImplementedError

    def forward(self, image: Tensor, condition: Condition | None = None) -> Tensor | dict[str, Tensor]:
        """Logits (B, K, *s), never softmaxed, or several named maps of which 'logits' is read out by default."""
        raise NotImplementedError

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By name; each turn steps the optimiser of its name, or 'main'."""
        return {"main": torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=1e-4)}

    def learning_rate(self, clock: Clock) -> float:
        """Factor on every optimiser's initial rate: a short warm-up, then half a cosine."""
        warm = min(1.0, (clock.step + 1) / max(1, min(50, clock.total // 20)))
        return warm * cosine_decay(clock.fraction, floor=0.01)

    def turns(self, clock: Clock) -> Sequence[str]:
        """Updates of one iteration, in order: one optimiser step each (adversarial and alternating training)."""
        return ("main",)

    def after_step(self, clock: Clock) -> None:
        """After each iteration: moving averages, queues, prototypes."""

    def sampling(self, stage: Stage) -> Sampling:
        return Sampling()

    def stages(self) -> Sequence[Stage]:
        return (Stage(),)

    def augment(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Read the patch with random pose and intensities; moves images, labels, maps and points alike and records ``sample.pose``."""
        return augment.default(sample, rng, self.plan, spatial=self.sampling(self.stage).spatial)

    def targets(self, case: Case) -> Mapping[str, Derived]:
        """Label transforms of the whole prepared case (distance maps, projections), computed once, cached and cropped with it."""
        return {}

    # prediction ----------------------------------------------------------------------------------------------------------------------
    @property
    def channels(self) -> tuple[str, ...]:
        """Images stacked into the network's input: the plan's, then those the method derives."""
        return (*self.plan.channels, *self.derived)

    @property
    def in_channels(self) -> int:
        return self.plan.in_channels + len(self.derived)

    def condition(self, case: Case, rng: np.random.Generator) -> Condition | None:
        """Text, table, support set, latent, noise: once per case, the same for all windows."""
        return None

    def inferer(self) -> Callable:
        p = self.plan
        return SlidingWindow(p.patch, overlap=p.overlap, batch=2, mirror_axes=p.test_mirror)  # torch's fast CPU convolutions start at two

    def predict(self, case: Case, prompts: Sequence[Prompt] = (), *, rng: np.random.Generator) -> Prediction:
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        image = torch.from_numpy(np.ascontiguousarray(case.stack(self.channels))).to(device) if case.images else None
        condition = self.condition(case, rng)
        maps = self.inferer()(self.fast_forward, image, condition=condition and condition.to(device))
        return self.finish(maps, case)

    fast: Callable | None = None  # the engine may lend an accelerated forward (same numbers, checked)

    def fast_forward(self, image: Tensor | None, condition: Condition | None = None) -> Tensor | dict[str, Tensor]:
        if self.fast is not None and condition is None and not self.training:
            return self.fast(image)
        return self(image) if condition is None else self(image, condition)

    @property
    def bottleneck(self) -> nn.Module:
        """The submodule whose output stands for the input as a whole: what the first network that names one calls so."""
        return _bottleneck(self, type(self).__name__)

    @contextmanager
    def tap(self, layer: str = "bottleneck") -> Iterator[list[Tensor]]:
        """Inside, every forward adds what the submodule ``layer`` gave, (windows, C, *s) on the CPU; an accelerated forward is set aside.
        ``layer`` is a submodule's dotted name, or 'bottleneck'. Raises UsageError."""
        if layer == "bottleneck":
            module = self.bottleneck
        else:
            modules = dict(self.named_modules())
            if layer not in modules:
                raise UsageError(f"no submodule '{layer}'", where=type(self).__name__, fix=nearest(layer, [n for n in modules if n]))
            module = modules[layer]
        seen: list[Tensor] = []

        def keep(_: nn.Module, __: tuple, out: Tensor) -> None:
            if not isinstance(out, Tensor):
                raise UsageError(f"layer '{layer}' gives no tensor", where=type(self).__name__, found=type(out).__name__)
            seen.append(out.detach().float().cpu())

        handle = module.register_forward_hook(keep)
        fast, self.fast = self.fast, None
        try:
            yield seen
        finally:
            handle.remove()
            self.fast = fast

    def finish(self, maps: Tensor | Mapping[str, Tensor], case: Case) -> Prediction:
        """Maps of the whole case -> Prediction on the prepared grid; the default reads 'logits' out."""
        logits = maps if isinstance(maps, Tensor) else maps["logits"]
        return Prediction(probability=Image(self.probabilities(logits[None])[0].cpu().numpy(), case.geometry))

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, K, *s) logits -> probabilities of all classes, background included."""
        if self.readout == "softmax" and logits.shape[1] > 1:
            return logits.float().softmax(1)
        p = logits.float().sigmoid() if self.readout != "tanh" else 0.5 * (1 + logits.float().tanh())
        if p.shape[1] == len(self.plan.classes):
            return p
        return torch.cat([1 - p.amax(1, keepdim=True), p], 1)

    # state ---------------------------------------------------------------------------------------------------------------------------
    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        tensors, facts = super().state()
        return {**tensors, **{k: v.detach().cpu().numpy() for k, v in self.state_dict().items()}}, facts

    def load_state(self, tensors: Mapping[str, np.ndarray], facts: Mapping) -> None:
        super().load_state(tensors, facts)
        self.load_state_dict({k: torch.as_tensor(np.asarray(v)) for k, v in tensors.items() if not k.startswith("parts.")})


class Classifier(LearnedMethod):
    """Answers a column of the table from the whole case. Subclasses give ``forward``: {target: (B, outputs)} and an optimiser.

    ``target``: the column (empty: the data set's only one), declared in ``manifest.targets`` as binary, nominal, ordinal or real.
    Cases whose value is missing teach nothing.
    """

    def __init__(self, plan: Plan, manifest: Manifest, *, parts: Mapping[str, Method] | None = None, target: str = ""):
        super().__init__(plan, manifest, parts=parts)
        known = manifest.targets
        target = target or (next(iter(known)) if len(known) == 1 else "")
        if target not in known:
            raise UsageError(
                "which column of the table is to be answered?" if not target else f"'{target}' is no target of the data set",
                where=manifest.name,
                found=", ".join(known) or "no [targets] in dataset.toml",
                fix="name it with --set target=COLUMN" if known else "declare the column under [targets]",
            )
        self.target, self.kind, self.levels = target, known[target]["kind"], tuple(known[target].get("levels", ()))

    @property
    def outputs(self) -> int:
        """Numbers that ``forward`` gives for the target: one, or one a level where there are more than two."""
        return 1 if self.kind in ("binary", "real") else len(self.levels)

    def sampling(self, stage: Stage) -> Sampling:
        return Sampling(unit="case", streams=(Stream("main", self.plan.batch, "all"),))

    def inferer(self) -> Callable:
        return Whole(self.plan.patch)

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        return {self.target: self.mismatch(self(batch.image, batch.condition)[self.target], batch.table[self.target])}

    def mismatch(self, answer: Tensor, values: Tensor | Sequence) -> Tensor:
        """Cross-entropy, or squared error of a real target, over the known values; 0 where none is known."""
        truth, known = (x.to(answer.device) for x in self.encode(values))
        if not known.any():
            return answer.sum() * 0
        answer, truth = answer.float()[known], truth[known]
        if self.kind == "real":
            return functional.mse_loss(answer[:, 0], truth)
        if self.kind == "binary":
            return functional.binary_cross_entropy_with_logits(answer[:, 0], truth)
        return functional.cross_entropy(answer, truth.long())

    def encode(self, values: Tensor | Sequence) -> tuple[Tensor, Tensor]:
        """Column values -> (level index or number as float, whether it is known), both (B,)."""
        raw = values.tolist() if isinstance(values, Tensor) else list(values)
        known = [v is not None and v != "" and v == v for v in raw]
        if self.kind == "real":
            return torch.tensor([float(v) if k else 0.0 for v, k in zip(raw, known, strict=True)]), torch.tensor(known)
        index = {name: float(i) for i, name in enumerate(self.levels)}
        return torch.tensor([index[self._level(v)] if k else 0.0 for v, k in zip(raw, known, strict=True)]), torch.tensor(known)

    def _level(self, value: object) -> str:
        text = level(value)
        if text not in self.levels:
            raise UsageError("a value outside the target's levels", where=self.target, found=text, allowed=", ".join(self.levels))
        return text

    def finish(self, maps: Mapping[str, Tensor], case: Case) -> Prediction:
        answer = maps[self.target].float()
        if self.kind == "real":
            return Prediction(table={self.target: float(answer[0])})
        if self.kind == "binary":
            return Prediction(table={self.target: float(answer[0].sigmoid())})
        return Prediction(table={self.target: dict(zip(self.levels, answer.softmax(0).tolist(), strict=True))})


class LandmarkMethod(LearnedMethod):
    """Gives ordered points instead of voxels. ``forward``: {"points": (B, N, d)} as fractions of the patch, 0 at the border of the first
    voxel and 1 at that of the last; ``organs``: structure -> how many of the N points are its own, in order, later ones lying over
    earlier ones."""

    organs: Mapping[str, int]

    def sampling(self, stage: Stage) -> Sampling:
        return Sampling(unit="case")

    def inferer(self) -> Callable:
        return Whole(self.plan.patch)

    def fractions(self, batch: Batch) -> Tensor:
        """(B, N, d): the batch's points of all organs as ``forward`` gives them; NaN for those of an organ that a case lacks."""
        size = torch.tensor(self.plan.patch, dtype=torch.float32)
        lacking = {o: np.full((n, len(size)), np.nan) for o, n in self.organs.items()}
        found = {o: batch.points.get(o, [()] * len(batch)) for o in self.organs}
        rows = [np.concatenate([found[o][b] if len(found[o][b]) else lacking[o] for o in self.organs]) for b in range(len(batch))]
        rows = [torch.as_tensor(row, dtype=torch.float32) for row in rows]
        return ((torch.stack(rows) + 0.5) / size).to(batch.image.device)

    def finish(self, maps: Mapping[str, Tensor], case: Case) -> Prediction:
        shape, size = np.asarray(case.geometry.shape), np.asarray(self.plan.patch)
        index = maps["points"].float().cpu().numpy() * size - 0.5 - (size // 2 - shape // 2)
        ends = np.cumsum(list(self.organs.values()))[:-1]
        world = dict(zip(self.organs, np.split(case.geometry.to_world(index), ends), strict=True))
        flat = case.geometry.ndim == 2
        return Prediction(points={k: Points(v) for k, v in world.items()}, outlines=world if flat else {})


class ReferringSegmenter(LearnedMethod):
    """An expression chooses the object. ``forward``: (B, 1, *s) logits under the condition that ``condition`` makes of the case's one
    query; prediction runs once per query and names the channels by query id."""

    def sampling(self, stage: Stage) -> Sampling:
        return Sampling(unit="case", query=True, spatial="none")  # mirroring would make 'left' wrong

    def inferer(self) -> Callable:
        return Whole(self.plan.patch)

    def predict(self, case: Case, prompts: Sequence[Prompt] = (), *, rng: np.random.Generator) -> Prediction:
        if not case.queries:
            raise DataError("there is no expression to look for", where=f"case {case.id}", fix="give the case a text that names an object")
        found = [super(ReferringSegmenter, self).predict(case.with_(queries=(q,)), rng=rng) for q in case.queries]
        maps = np.concatenate([f.probability.data for f in found])
        names = tuple(q.id for q in case.queries)
        return Prediction(probability=Image(maps, case.geometry), names=names, threshold=0.5, notes=sum((f.notes for f in found), ()))

    def finish(self, maps: Tensor, case: Case) -> Prediction:
        return Prediction(probability=Image(maps.float().sigmoid().cpu().numpy(), case.geometry))


class Segmenter(LearnedMethod):
    """One network, one objective, one optimiser: the planned U-Net with deep supervision, Dice + cross-entropy, AdamW and an averaged
    model, unless told otherwise.

    ``network`` and ``objective`` are factories: ``network(in_channels, out_channels, spatial_dims=...)`` and ``objective()``.
    Subclasses pass theirs and override hooks.
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        network: Callable[..., nn.Module] | None = None,
        objective: Callable[[], Callable] = DiceCE,
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        ema: float = 0.99,
    ):
        super().__init__(plan, manifest, parts=parts)
        self.lr, self.weight_decay = lr, weight_decay
        self.network = self.build(network)
        self.objective = objective()
        self.ema = EMA(self.network, ema) if ema else None

    @property
    def out_channels(self) -> int:
        return len(self.plan.classes)

    def build(self, network: Callable[..., nn.Module] | None = None, **options) -> nn.Module:
        """A network of this task's channels; by default the planned U-Net, ``options`` over the plan's decisions."""
        if network is not None:
            return network(self.in_channels, self.out_channels, spatial_dims=self.plan.dims, **options)
        p = self.plan
        planned = dict(features=p.features, strides=p.strides, kernels=p.kernels, deep_supervision=p.deep_supervision)
        return UNet(self.in_channels, self.out_channels, spatial_dims=p.dims, **{**planned, **options})

    def forward(self, image: Tensor, condition: Condition | None = None) -> Tensor:
        """Logits (B, K, *s) of the averaged network when evaluating, of the trained one (a list when deeply supervised) in training."""
        if self.training or self.ema is None:
            return self.network(image)
        return self.ema(image)

    @property
    def bottleneck(self) -> nn.Module:
        """That of the network that predicts: the averaged one where there is one."""
        return _bottleneck(self.network if self.ema is None else self.ema.average, type(self).__name__)

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        if batch.label is None:
            raise UsageError("this method learns from labels", where=type(self).__name__, found="cases without a reference label")
        return {"segmentation": deep(self.objective, self.network(batch.image), batch.label, ignore_index=IGNORE)}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"main": torch.optim.AdamW(self.network.parameters(), lr=self.lr, weight_decay=self.weight_decay)}

    def after_step(self, clock: Clock) -> None:
        if self.ema is not None:
            self.ema.update(self.network, clock.step, clock.total)


def _bottleneck(network: nn.Module, where: str) -> nn.Module:
    for module in network.modules():
        if not isinstance(module, LearnedMethod) and isinstance(getattr(module, "bottleneck", None), nn.Module):
            return module.bottleneck
    raise UsageError("no network of this method names a bottleneck", where=where, fix="name one of its layers")
