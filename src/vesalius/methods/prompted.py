"""PromptableMethod: ``embed`` an image once, ``decode`` a mask at every prompt; what a session, a simulated user and training share.

A person's prompts are in world coordinates and name the object they mean; a model sees them as voxels of its own grid. The turning of one
into the other is here, once, with its refusals. The session that keeps the history is ``engine.interact``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..core.case import Case, Condition, Image, LabelMap
from ..core.errors import GeometryError, UsageError
from ..core.geometry import Geometry, coarsest, resample
from ..core.prediction import Prediction
from ..core.prompt import Asked, Box, Candidates, Lasso, Mask, Point, Prompt, Scribble, Turn
from ..ops import prompts as users
from ..ops.raster import fill
from .learned import LearnedMethod

KINDS = {Point: "point", Scribble: "scribble", Lasso: "lasso", Box: "box", Mask: "mask"}
_CARRY = "outline a slice or more and ask in a SequenceSession (engine.interact)"
AS_POINTS = 32  # points that a scribble becomes, at most


class PromptableMethod(LearnedMethod):
    """``kinds``: the prompts it understands, of 'point', 'scribble', 'lasso', 'box', 'mask'. One object is one mask: its prompts carry its
    name, and objects are answered apart."""

    kinds: frozenset[str] = frozenset({"point", "scribble"})
    boxes_by_slice = False  # whether an object may have several boxes a turn; ``Asked.boxes`` is then (n, 2, d), in the slices of a volume
    usual = "3clicks"  # the simulated user (``ops.prompts.user``) who asks it where nobody says how
    readout = "sigmoid"

    @property
    def axis(self) -> int:
        """The one that a person, or a model of two dimensions, sees slices across: the coarsest of the plan's grid (by its spacing, or else
        the one that the plan first looks along with a kernel of 1), of equals the last."""
        spacing = self.plan.grid.spacing or tuple(1 / k for k in next(iter(self.plan.kernels), (1,) * self.plan.dims))
        return coarsest(spacing)

    def embed(self, image: Tensor, condition: Condition | None = None) -> Any:
        """What is kept of images (B, C, *s) for all their prompts; a session calls it once."""
        raise NotImplementedError

    def decode(self, embedding: Any, history: Sequence[Turn]) -> Candidates:
        """Masks for the turns so far, the newest last."""
        raise NotImplementedError

    def reply(self, embedding: Any, history: Sequence[Turn]) -> Tensor:
        """(B, 1, *s) logits shown to the person."""
        return self.decode(embedding, history).best()

    def predict(self, case: Case, prompts: Sequence[Prompt] = (), *, rng: np.random.Generator) -> Prediction:
        """All prompts at once, in one turn; ``names`` of the probability maps are the objects'."""
        if not prompts:
            raise UsageError("a promptable method answers to prompts", fix=f"give it one of: {', '.join(sorted(self.kinds))}")
        embedding, objects = self.embed(self.tensor(case)), objects_of(prompts)
        logits = [self.reply(embedding, [Turn(self.asked(of, case.geometry))])[0, 0] for of in objects.values()]
        return self.masks(torch.stack(logits), tuple(objects), case.geometry)

    def masks(self, logits: Tensor, names: Sequence[str], geometry: Geometry) -> Prediction:
        """(K, *s) logits of K objects on the prepared grid -> a Prediction; an object without a name is the foreground."""
        names = tuple(n or self.plan.classes[-1] for n in names)
        return Prediction(probability=Image(logits.float().sigmoid().cpu().numpy(), geometry), names=names, threshold=0.5)

    def tensor(self, case: Case) -> Tensor:
        """(1, C, *s): the whole prepared case, on this method's device."""
        device = next(self.parameters()).device
        return torch.from_numpy(np.ascontiguousarray(case.stack(self.channels)))[None].to(device)

    def asked(self, prompts: Sequence[Prompt], geometry: Geometry) -> Asked:
        """One object's prompts as tensors in voxels of ``geometry``, the prepared grid. A lasso is its filled mask, or for a model that
        takes none its box, or else a click on its deepest point; a scribble is points along it. Raises UsageError for a kind the method
        does not understand, GeometryError for a prompt outside the image."""
        prompts = [self._understood(p, geometry) for p in prompts]
        clicks = [_voxels(p, geometry) for p in prompts if isinstance(p, (Point, Scribble))]
        boxes = [_corners(p, geometry) for p in prompts if isinstance(p, Box)]
        masks = [_on(p.mask, geometry) for p in prompts if isinstance(p, Mask)]
        if len(boxes) > 1 and not self.boxes_by_slice or len(masks) > 1:
            raise UsageError("an object takes one box and one mask a turn", found=f"{len(boxes)} boxes, {len(masks)} masks")
        index = np.concatenate([i for i, _ in clicks]) if clicks else np.zeros((0, geometry.ndim))
        sign = np.concatenate([s for _, s in clicks]) if clicks else np.zeros(0, bool)
        device = next(self.parameters()).device
        turn = clicked([(index, sign)], device)
        box = torch.tensor(np.stack(boxes), dtype=torch.float32, device=device) if boxes else None
        mask = torch.from_numpy(np.stack(masks)).to(device)[:, None] if masks else None
        return Asked(turn.points, turn.signs, box, mask)

    def _understood(self, prompt: Prompt, geometry: Geometry) -> Prompt:
        """The prompt, or what a lasso is to this method."""
        if isinstance(prompt, Lasso):
            inside = fill(prompt.xyz, geometry)
            if not inside.any():
                raise GeometryError("the lasso holds no pixel of the image", found=np.asarray(prompt.xyz).tolist())
            if "mask" in self.kinds:
                return Mask(LabelMap(inside.astype(np.uint8), geometry), prompt.object, prompt.frame)
            if "box" in self.kinds:
                low, high = geometry.world_bounds(*users.box(inside))
                return Box(tuple(low), tuple(high), prompt.object, prompt.frame)
            deepest, _ = users.clicks(inside, None, np.random.default_rng(0))
            return Point(tuple(geometry.to_world(deepest[0])), True, prompt.object, prompt.frame)
        kind = KINDS.get(type(prompt), type(prompt).__name__.lower())
        if kind not in self.kinds:
            raise UsageError(
                "this method does not understand the prompt", where=type(self).__name__, found=kind, allowed=sorted(self.kinds)
            )
        return prompt


class SequenceMethod(PromptableMethod):
    """Carries masks of some slices of a volume, or frames of a film, to the others with a memory (a ``Carrier`` of
    ``inferers.propagation``). A frame is (1, C, h, w); they follow each other along ``axis`` of the prepared grid."""

    kinds = frozenset({"mask"})
    usual = "1slice"
    every = 5  # frames from one that is remembered to the next

    def memory(self) -> Any:
        """Of nothing yet."""
        raise NotImplementedError

    def remember(self, frame: Any, masks: Tensor, memory: Any, *, given: bool, at: int) -> Any:
        """The memory with masks (K, h, w) in [0, 1] of an embedded frame in it; ``given`` ones are a person's and stay. ``at``: how many
        frames ahead of where the walk starts."""
        raise NotImplementedError

    def carry(self, frame: Any, memory: Any) -> tuple[Tensor, Any]:
        """((K, h, w) probabilities of the objects in an embedded frame, the memory after it)."""
        raise NotImplementedError

    def decode(self, embedding: Any, history: Sequence[Turn]) -> Candidates:
        raise UsageError("masks are carried through a sequence, not answered image by image", fix=_CARRY)

    def predict(self, case: Case, prompts: Sequence[Prompt] = (), *, rng: np.random.Generator) -> Prediction:
        raise UsageError("masks of some slices are needed", where=f"case {case.id}", fix=_CARRY)


def objects_of(prompts: Sequence[Prompt]) -> dict[str, list[Prompt]]:
    """Prompts by the object they mean, in order of first mention."""
    out: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        out.setdefault(prompt.object, []).append(prompt)
    return out


def clicked(places: Sequence[tuple[np.ndarray, np.ndarray]], device: torch.device | str = "cpu") -> Asked:
    """Clicks of B simulated users, (index (n, d), positive (n,)) each, as one padded turn."""
    points = pad_sequence([torch.as_tensor(np.asarray(p, np.float32)) for p, _ in places], batch_first=True)
    signs = pad_sequence([torch.as_tensor(np.asarray(s, np.int64)) for _, s in places], batch_first=True, padding_value=-1)
    return Asked(points.to(device), signs.to(device))


def _corners(box: Box, geometry: Geometry) -> np.ndarray:
    """(2, d) voxels: the box around a world box's corners; on an oblique grid it grows."""
    d = geometry.ndim
    ends = np.array([box.low, box.high], float)
    if ends.shape != (2, d) or (ends[0] > ends[1]).any():
        raise GeometryError("a box has a low and a high corner in mm", found=ends.tolist(), allowed=f"{d} numbers each, low <= high")
    low, high = geometry.index_bounds(*ends)
    if (high < -0.5).any() or (low > np.array(geometry.shape) - 0.5).any():
        raise GeometryError("the box lies outside the image", found=ends.tolist(), allowed=geometry.describe())
    return np.clip([low, high], -0.5, np.array(geometry.shape) - 0.5)


def _voxels(prompt: Point | Scribble, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """(index (n, d), positive (n,)): a click, or as many points of a scribble as are looked at."""
    world = np.atleast_2d(np.asarray(prompt.xyz, float))
    if world.shape[1] != geometry.ndim or not np.isfinite(world).all():
        raise GeometryError("a point is given in mm, one number an axis", found=world.tolist(), allowed=f"{geometry.ndim} numbers")
    index = geometry.to_index(world[np.linspace(0, len(world) - 1, min(len(world), AS_POINTS)).round().astype(int)])
    outside = ((index < -0.5) | (index > np.array(geometry.shape) - 0.5)).any(1)
    if outside.any():
        place = geometry.to_world(index[outside][0]).round(3).tolist()
        raise GeometryError(f"a {KINDS[type(prompt)]} lies outside the image", found=place, allowed=geometry.describe())
    return index, np.full(len(index), prompt.positive)


def _on(mask: LabelMap, geometry: Geometry) -> np.ndarray:
    """(*s) float32 in [0, 1]: a drawn mask on the model's grid."""
    return resample((np.asarray(mask.data) > 0)[None].astype(np.float32), mask.geometry, geometry, "linear")[0]
