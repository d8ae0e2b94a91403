"""Moving objects through any medical sequence: outline a few slices or frames, and a memory carries the masks both ways.

The slices of a volume are frames of a film. What was seen is kept as keys (where to look) and values (what was there); a further frame asks
the memory with its own key, and a decoder turns what it reads into masks. From every outlined frame one walk leads forward and one back.

Yan et al., A foundation model for general moving object segmentation in medical images (iMOS, 2023), https://arxiv.org/abs/2309.17264,
built on XMem (Cheng and Schwing, ECCV 2022, https://arxiv.org/abs/2207.07115). Where we differ or had to choose:

* XMem's weights are not to be had here, so it learns from scratch, on the data set at hand, at a small size (published: ResNet-50 and
  ResNet-18 to stride 16, keys 64, values 512, 10 to 100 thousand iterations from pretrained weights). ``pretrained`` takes those of a run.
* A key also says where it lies (``reach``), so that a short training starts from a blurred copy of what was outlined and learns how it
  differs; published keys are of appearance alone (``reach=0``), which takes a long training.
* The adapters' place is not in the text at hand: a bottleneck after each encoder stage, zero at first; with ``tune='adapters'`` they alone
  learn.
* A training clip is a patch of the volume, its reference a random one of its frames, both directions learnt at once; the loss's hard
  share falls at the same fractions of the training as published (20k and 70k of 100k iterations). Dice is of an object in the whole clip.

Key components: ``networks.mask_memory`` (the network), ``networks.blocks.memory`` (reading, working and long-term memory, soft
aggregation), ``inferers.propagation`` (both ways, several references), ``engine.interact.SequenceSession``.

Good to know: it understands masks on slices and nothing else; clicks and boxes come from a method that answers in one slice. An object that
no outlined slice shows is not found. Slices follow each other along the coarsest axis of the plan's grid, of equals the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...core.case import IGNORE, Batch
from ...core.errors import DataError, UsageError
from ...core.manifest import Manifest
from ...core.method import Clock, Method, Sampling, Stage
from ...core.plan import Plan
from ...networks.blocks.memory import MemoryBank, affinity, aggregate, readout, similarity
from ...networks.blocks.padding import pad_to_multiple
from ...networks.blocks.pretrained import read_tensors
from ...networks.mask_memory import Look, MaskMemoryNet
from ..prompted import SequenceMethod

DEEP = 0.2  # share of training frames after which the sensory memory is updated from the mask
WARM, HARD = 0.2, 0.7  # where the share of pixels that count starts to fall, and where it has fallen


@dataclass(frozen=True)
class Frame:
    """A slice as it is kept: the padded image (1, C, h, w), what was seen of it, and its own ``size``."""

    image: Tensor
    look: Look
    size: tuple[int, int]


@dataclass(frozen=True)
class Memory:
    """``bank``: what was seen; ``sensory`` (1, K, H, *g): the state that walks along (None before the first frame)."""

    bank: MemoryBank
    sensory: Tensor | None = None


class IMOS(SequenceMethod):
    """``key``, ``value``, ``hidden``: channels; ``reach``: see ``MaskMemoryNet``; ``stride``: of the memory's grid, at most; ``frames``:
    length of a training clip, of which at most ``references`` are remembered at a time; ``objects``: structures of a clip, at most.
    ``top``: elements that a place reads; ``every``: frames between two that are remembered; ``working``, ``prototypes``, ``capacity``:
    frames held as they are, elements that they become beyond, and of these at most. ``recall='last'``: the newest frame is all there is to
    remember (the baseline). ``hard``: the share of pixels that count in the cross-entropy at the end of the training (1: all)."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        key: int = 32,
        value: int = 64,
        hidden: int = 16,
        reach: float = 8.0,
        stride: int = 16,
        frames: int = 8,
        references: int = 3,
        objects: int = 3,
        top: int = 30,
        every: int = 5,
        working: int = 10,
        prototypes: int = 128,
        capacity: int = 10_000,
        recall: Literal["all", "last"] = "all",
        adapters: bool = False,
        tune: Literal["all", "adapters"] = "all",
        pretrained: str = "",
        hard: float = 0.15,
        lr: float = 2e-3,
        weight_decay: float = 0.05,
    ):
        super().__init__(plan, manifest, parts=parts)
        if frames < 2 or min(references, objects, top, every) < 1 or working < 2 or not 0 < prototypes <= capacity:
            found = (frames, references, objects, top, every, working, prototypes, capacity)
            raise UsageError(
                "no such memory", where="imos", found=found, allowed="2 frames or more; the others from 1; prototypes <= capacity"
            )
        if tune == "adapters" and not adapters:
            raise UsageError("there are no adapters to tune", fix="set adapters=true, and pretrained=RUN")
        self.frames, self.references, self.recall = frames, references, recall
        self.objects, self.top, self.every = min(objects, len(plan.classes) - 1), top, 1 if recall == "last" else every
        self.working, self.prototypes, self.capacity = working, prototypes, capacity
        self.hard, self.lr, self.weight_decay = hard, lr, weight_decay
        stages = plan.features[: int(np.log2(stride)) + 1]
        self.network = MaskMemoryNet(self.in_channels, features=stages, key=key, value=value, hidden=hidden, reach=reach, adapters=adapters)
        if pretrained:
            _fill(self.network, Path(pretrained))
        if tune == "adapters":
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_("adapters." in name)

    # training ------------------------------------------------------------------------------------------------------------------------
    def sampling(self, stage: Stage) -> Sampling:
        size = tuple(min(p, self.frames) if a == self.axis else p for a, p in enumerate(self.plan.patch))
        return Sampling(size=size, foreground=1.0)

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        rng = np.random.default_rng(torch.randint(2**31, (1,)).item())  # the loop seeds torch at every step
        image, label = batch.image.movedim(self.axis + 2, 1), batch.label.movedim(self.axis + 1, 1)  # (B, T, C, h, w), (B, T, h, w)
        start = self._reference(label, rng)
        target = self._chosen(label, start, rng)
        truth = torch.stack([target == k for k in range(1, self.objects + 1)], 2).float()  # (B, T, K, h, w)
        image, padded = (pad_to_multiple(x.flatten(0, 1), self.network.multiple).unflatten(0, x.shape[:2]) for x in (image, truth))
        look, count = self.network.look(image.flatten(0, 1)), image.shape[1]
        looks = [look.at(torch.arange(len(image)) * count + t) for t in range(count)]
        ce, found, seen, (h, w) = [], [], [], label.shape[2:]
        for walk in (range(start + 1, count), range(start - 1, -1, -1)):
            for t, logits in self._walk(image, looks, padded[:, start], start, walk, rng):
                ce.append(bootstrapped(logits[..., :h, :w], target[:, t], hard_share(clock.fraction, self.hard)))
                found.append(logits.softmax(1)[:, 1:, :h, :w] * (target[:, t] != IGNORE)[:, None])
                seen.append(truth[:, t])
        shown = truth[:, start].flatten(2).any(2)
        return {"ce": torch.stack(ce).mean(), "dice": lost(torch.stack(found, 2), torch.stack(seen, 2), shown)}

    def _walk(self, image: Tensor, looks: list[Look], given: Tensor, start: int, walk: range, rng: np.random.Generator):
        """Yields (t, logits (B, K + 1, h, w)) along a clip, as a walk of ``inferers.propagation`` does, in a batch and with gradients."""
        net, sensory = self.network, self.network.blank(looks[start], given.shape[1])
        value, sensory = net.write(image[:, start], looks[start], sensory, given)
        memory = [(looks[start], value)]
        for t in walk:
            heard = memory[-1:] if self.recall == "last" else _some(memory, self.references, rng)
            key, shrinkage = (torch.cat([getattr(k, f).flatten(2) for k, _ in heard], 2) for f in ("key", "shrinkage"))
            look = looks[t]
            weights = affinity(similarity(key, shrinkage, look.key.flatten(2), look.selection.flatten(2)), self.top)
            read = readout(weights, torch.cat([v.flatten(3) for _, v in heard], 3)).unflatten(3, look.key.shape[2:])
            own, sensory = net.answer(look, sensory, read)
            logits = aggregate(own.sigmoid())
            yield t, logits
            if t != walk[-1]:
                value, felt = net.write(image[:, t], look, sensory, logits.softmax(1)[:, 1:])
                memory.append((look, value))
                sensory = felt if rng.random() < DEEP else sensory

    def _reference(self, label: Tensor, rng: np.random.Generator) -> int:
        """A frame, in proportion to how many of the clips show something in it."""
        shown = (label > 0).flatten(2).any(2).sum(0).double().cpu().numpy()
        return int(rng.choice(len(shown), p=shown / shown.sum())) if shown.any() else int(rng.integers(len(shown)))

    def _chosen(self, label: Tensor, start: int, rng: np.random.Generator) -> Tensor:
        """(B, T, h, w): up to ``objects`` of the structures that a clip's reference frame shows as 1, 2, ..; all others are background."""
        out = torch.where(label == IGNORE, IGNORE, 0)
        for b, clip in enumerate(label):
            present = [int(k) for k in clip[start].unique() if k > 0]
            for k, name in enumerate(rng.permutation(present)[: self.objects], 1):
                out[b][clip == int(name)] = k
        return out

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        learning = [p for p in self.parameters() if p.requires_grad]
        return {"main": torch.optim.AdamW(learning, lr=self.lr, weight_decay=self.weight_decay)}

    # propagation ---------------------------------------------------------------------------------------------------------------------
    def embed(self, image: Tensor, condition: object = None) -> Frame:
        padded = pad_to_multiple(image, self.network.multiple)
        return Frame(padded, self.network.look(padded), tuple(image.shape[2:]))

    def memory(self) -> Memory:
        return Memory(
            MemoryBank(top=self.top, least=max(1, self.working // 2), most=self.working, prototypes=self.prototypes, capacity=self.capacity)
        )

    def remember(self, frame: Frame, masks: Tensor, memory: Memory, *, given: bool, at: int) -> Memory:
        before = self.network.blank(frame.look, len(masks)) if given or memory.sensory is None else memory.sensory
        value, sensory = self.network.write(frame.image, frame.look, before, pad_to_multiple(masks[None].float(), self.network.multiple))
        elements = frame.look.elements(value[0])
        if self.recall == "last":
            memory = self.memory()
        memory.bank.add(elements, keep=given)
        return replace(memory, sensory=sensory)

    def carry(self, frame: Frame, memory: Memory) -> tuple[Tensor, Memory]:
        look = frame.look
        read = memory.bank.read(look.key[0].flatten(1), look.selection[0].flatten(1)).unflatten(2, look.key.shape[2:])
        own, sensory = self.network.answer(look, memory.sensory, read[None])
        h, w = frame.size
        return aggregate(own.sigmoid()).softmax(1)[0, 1:, :h, :w], replace(memory, sensory=sensory)


def bootstrapped(logits: Tensor, target: Tensor, share: float) -> Tensor:
    """Cross-entropy of (B, K, h, w) against (B, h, w) over the ``share`` of each image's pixels on which it is largest; IGNORE counts
    nowhere."""
    each = cross_entropy(logits, target, reduction="none", ignore_index=IGNORE).flatten(1)
    known = (target != IGNORE).flatten(1).sum(1)
    count = (known * share).ceil().clamp_min(1).long()
    ranked = each.sort(1, descending=True).values
    taken = torch.arange(each.shape[1], device=each.device) < count[:, None]
    return ((ranked * taken).sum(1) / count).mean()


def lost(found: Tensor, truth: Tensor, shown: Tensor) -> Tensor:
    """1 - Dice of probabilities and masks (B, K, T, h, w) over all frames of a clip, averaged over the objects that are ``shown`` (B,
    K)."""
    both, each = (found * truth).flatten(2).sum(2), (found + truth).flatten(2).sum(2)
    return ((1 - (2 * both + 1) / (each + 1)) * shown).sum() / shown.sum().clamp_min(1)


def hard_share(fraction: float, least: float) -> float:
    """1, then falling in a line to ``least``."""
    return 1 - (1 - least) * float(np.clip((fraction - WARM) / (HARD - WARM), 0, 1))


def _some(memory: list, most: int, rng: np.random.Generator) -> list:
    """The reference and random ones of the frames after it, in order; ``most`` in all."""
    later = np.sort(rng.permutation(len(memory) - 1)[: most - 1]) + 1
    return [memory[0], *(memory[i] for i in later)]


def _fill(network: MaskMemoryNet, run: Path) -> None:
    """The weights of a run (its folder, or its method.safetensors); adapters that it has not stay as they are, at zero."""
    path = run / "method.safetensors" if run.is_dir() else run
    if not path.is_file():
        raise UsageError("there is no such run", where=path, fix="give the folder of a finished run of imos, or leave 'pretrained' empty")
    found = {k.removeprefix("network."): v for k, v in read_tensors(path).items()}
    own = network.state_dict()
    other = [k for k, v in own.items() if "adapters." not in k and (k not in found or found[k].shape != v.shape)]
    if other:
        raise DataError(f"{len(other)} tensors of the network are not in the run, or of another shape", where=path, found=other[0])
    network.load_state_dict({k: found.get(k, v) for k, v in own.items()})
