"""LandmarkRecipe: a landmark network as a method, trained on points that come with the cases or are sampled along their labels' contours.

A landmark network is one file in ``networks/`` and a card whose ``recipe`` names this base and the network; it subclasses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..core.case import Batch, Case, Condition, LabelMap, Points, Sample
from ..core.errors import DataError, UsageError, nearest
from ..core.geometry import Grid
from ..core.manifest import CaseRef, Manifest
from ..core.method import Clock, Method, Sampling, Stage, Stream
from ..core.plan import Plan
from ..core.prediction import Prediction
from ..ops import augment
from ..ops.contour import landmarks, side_by_side
from ..ops.raster import fill
from .learned import LandmarkMethod

NODES = {"right lung": 44, "left lung": 50, "heart": 26, "right clavicle": 23, "left clavicle": 23}  # of the landmarks of JSRT
OTHERS = 40  # points of a structure not named above
PAIRED = ("lung", "lungs")  # one class, two contours
MULTIPLE = 32  # sides of the network's input are multiples, twice this at least


@dataclass(frozen=True)
class Structure:
    """A closed contour of ``nodes`` points. ``paints``: the class of the label map it fills ('' none). ``pieces``: of that class, side by
    side, it is piece ``piece``; 0 where its points come with the cases."""

    name: str
    nodes: int
    paints: str
    piece: int = 0
    pieces: int = 0


class LandmarkRecipe(LandmarkMethod):
    """``network(in_channels, nodes, size)`` (nodes: points of each structure; size: its input) trained as the options say.

    Structures. ``structures``: names of the cases' points, or classes, whose contour is then sampled; 'class*2': its two largest parts,
    from left to right. Empty: all points the data set has, or all classes, those called lung or lungs twice. Later ones are drawn over
    earlier ones. ``nodes``: points of each, or of all (empty: those of JSRT's landmarks, 40 of other structures). A structure that a case
    has not teaches nothing there.
    Input. Every case is resized to one size: the plan's patch rounded up to 32, or ``size`` (voxels).
    Training. Squared error of the points as fractions of the sides, of every set of points the network gives, plus ``kl`` times the
    divergence of its code from a normal; Adam at ``lr``, which falls by ``decay`` ``decays`` times over the budget.
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        network: Callable[..., nn.Module],
        structures: tuple[str, ...] = (),
        nodes: tuple[int, ...] = (),
        size: tuple[int, ...] = (),
        kl: float = 1e-5,
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
        decay: float = 0.9,
        decays: int = 50,
    ):
        if plan.dims != 2:
            raise UsageError("outlines are those of 2D images", where=manifest.name, found=f"{plan.dims}D")
        if size and (len(size) != 2 or min(size) < 1):
            raise UsageError("the input has two positive sides", where="size", found=tuple(size))
        sides = tuple(max(2 * MULTIPLE, -(-n // MULTIPLE) * MULTIPLE) for n in (size or plan.patch))
        super().__init__(plan.derive(grid=Grid(size=sides), patch=sides), manifest, parts=parts)
        self.kl, self.lr, self.weight_decay, self.decay, self.decays = kl, lr, weight_decay, decay, decays
        self.make = network
        self.settle(_structures(manifest, structures, nodes))

    def settle(self, structures: Sequence[Structure]) -> None:
        """The structures, and a network for them."""
        self.structures = tuple(structures)
        self.organs = {s.name: s.nodes for s in structures}
        self.network = self.make(self.in_channels, tuple(self.organs.values()), self.plan.patch)

    # what is learnt --------------------------------------------------------------------------------------------------------------------
    @property
    def preparation(self) -> str:
        return repr(self.structures)

    def derive(self, case: Case, rng: np.random.Generator, *, training: bool) -> Case:
        """In training, the points of every structure, world mm; none of one that the case lacks. Raises DataError for points outside the
        image and for another number than the network gives."""
        if not training:
            return case
        return case.with_(points={s.name: Points(self.marked(case, s)) for s in self.structures})

    def marked(self, case: Case, s: Structure) -> np.ndarray:
        """(nodes, 2) world mm of a structure, or (0, 2)."""
        none = np.zeros((0, 2))
        if not s.pieces:
            given = case.points.get(s.name)
            return none if given is None or not len(given.xyz) else _checked(np.asarray(given.xyz, float), s, case)
        mask = _mask(case, s.paints)
        if mask is None or not mask.any():
            return none
        return landmarks(side_by_side(mask, case.geometry, s.pieces)[s.piece], case.geometry, s.nodes)

    def sampling(self, stage: Stage) -> Sampling:
        return Sampling(unit="case", streams=(Stream("main", self.plan.batch, self.teaches),))

    def teaches(self, ref: CaseRef) -> bool:
        """Whether a case has what the points are taken from."""
        return any(bool(ref.labels) if s.pieces else s.name in ref.points for s in self.structures)

    def augment(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The plan's, without mirroring: a mirrored right lung is no left lung, and goes round the other way."""
        return augment.default(sample, rng, self.plan.derive(mirror_axes=()), spatial=self.sampling(self.stage).spatial)

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        maps, truth = self.network(batch.image), self.fractions(batch)
        known = ~truth.isnan().any(-1)
        truth = truth.nan_to_num()
        coarse = self.network.pool @ truth
        coarse_known = (self.network.pool @ known.float().unsqueeze(-1)).squeeze(-1) > 0.5  # a structure is known as a whole
        terms = {}
        for name, points in maps.items():
            if name.startswith("points"):
                full = points.shape[1] == truth.shape[1]
                terms[name] = squared_error(points.float(), truth if full else coarse, known if full else coarse_known)
        return {**terms, "kl": self.kl * divergence(maps["mu"], maps["logvar"])}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"main": torch.optim.Adam(self.network.parameters(), lr=self.lr, weight_decay=self.weight_decay)}

    def learning_rate(self, clock: Clock) -> float:
        return self.decay ** int(self.decays * clock.fraction)

    # what is given ---------------------------------------------------------------------------------------------------------------------
    def forward(self, image: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        return self.network(image)

    def finish(self, maps: Mapping[str, Tensor], case: Case) -> Prediction:
        """Points and outlines of every structure, and the classes they fill, drawn on the original grid."""
        prediction, grid, classes = super().finish(maps, case), case.native.geometry, self.plan.classes
        label = np.zeros(grid.shape, np.int16)
        for s in self.structures:
            if s.paints:
                label[fill(prediction.outlines[s.name], grid)] = classes.index(s.paints)
        return prediction.with_(labels={"prediction": LabelMap(label, grid, classes)})

    # state -----------------------------------------------------------------------------------------------------------------------------
    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        tensors, facts = super().state()
        return tensors, {**facts, "structures": [asdict(s) for s in self.structures]}

    def load_state(self, tensors: Mapping[str, np.ndarray], facts: Mapping) -> None:
        """The structures are those it was trained with: where a run is opened, the data set may not be at hand."""
        trained = tuple(Structure(**s) for s in facts["structures"])
        if trained != self.structures:
            self.settle(trained)
        super().load_state(tensors, facts)


def squared_error(points: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Mean over coordinates of the ``known`` (B, N) of ``points`` (B, N, 2); 0 where none is."""
    error = ((points - truth) ** 2).mean(-1) * known
    return error.sum() / known.sum().clamp(min=1)


def divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """Kullback-Leibler divergence of N(mu, exp(logvar)) from N(0, 1), the mean over code and batch (B, latent)."""
    return -0.5 * (1 + logvar - mu**2 - logvar.exp()).mean()


def _structures(manifest: Manifest, asked: Sequence[str], nodes: Sequence[int]) -> list[Structure]:
    """What ``structures`` and ``nodes`` ask for, of what the data set has."""
    points = tuple(dict.fromkeys(name for case in manifest.cases for name in case.points))
    classes = manifest.names[1:]
    asked = tuple(asked) or points or tuple(f"{c}*2" if c.lower() in PAIRED else c for c in classes)
    found: list[Structure] = []
    for text in asked:
        name, _, number = text.partition("*")
        pieces = int(number) if number.isdigit() else 1
        if name in classes and (number or name not in points) and pieces:
            each = [f"{name} {k + 1}" for k in range(pieces)] if pieces > 1 else [name]
            found += [Structure(n, _nodes(n), name, k, pieces) for k, n in enumerate(each)]
        elif text in points or not manifest.cases:  # a run opened without its data: the structures come with its state
            found.append(Structure(text, _nodes(text), _painted(text, classes)))
        else:
            raise UsageError(f"no points and no class are called '{text}'", where="structures", fix=nearest(name, {*points, *classes}))
    if nodes and len(nodes) not in (1, len(found)) or any(n < 3 for n in nodes):
        fix = "one number for all, or one for each of " + ", ".join(s.name for s in found)
        raise UsageError("a contour has three points or more", where="nodes", found=tuple(nodes), fix=fix)
    if len({s.name for s in found}) < len(found):
        raise UsageError("a structure is named twice", where="structures", found=", ".join(asked))
    if not found:
        raise UsageError("there is neither a class nor a structure of points to learn", where=manifest.name)
    many = tuple(nodes) * len(found) if len(nodes) == 1 else tuple(nodes) or tuple(s.nodes for s in found)
    return [Structure(s.name, n, s.paints, s.piece, s.pieces) for s, n in zip(found, many, strict=True)]


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").replace("-", " ")


def _nodes(name: str) -> int:
    return NODES.get(_plain(name), OTHERS)


def _painted(name: str, classes: Sequence[str]) -> str:
    """The class that a structure of points belongs to: of its name ('right_lung', 'right lung'), or its name's last word ('lung')."""
    by_name = {_plain(c): c for c in classes}
    return by_name.get(_plain(name)) or by_name.get(_plain(name).split()[-1], "")


def _mask(case: Case, name: str) -> np.ndarray | None:
    """(*s) bool of a class in the reference (else the first label map); None where nobody looked for it."""
    if case.label is None:
        return None
    label = case.label.semantic
    if name not in label.names or (label.annotated is not None and name not in label.annotated):
        return None
    data, k = np.asarray(label.data), label.names.index(name)
    return data[k] > 0 if label.overlapping else data == k


def _checked(xyz: np.ndarray, s: Structure, case: Case) -> np.ndarray:
    where = f"case {case.id}, points '{s.name}'"
    if xyz.shape != (s.nodes, 2):
        fix = "give every case the same points in the same order, and say how many with --set nodes=..."
        raise DataError("a structure has another number of points", where=where, found=xyz.shape, allowed=(s.nodes, 2), fix=fix)
    index = case.geometry.to_index(xyz)
    outside = ~((index >= -1) & (index <= case.geometry.shape)).all(1)  # on the border is inside, by up to a pixel
    if outside.any():
        worst = int(outside.argmax())
        low, high = (case.geometry.to_world(np.array([c], float))[0].round(1).tolist() for c in ((0, 0), np.array(case.geometry.shape) - 1))
        raise DataError(
            f"{int(outside.sum())} of {len(xyz)} landmarks lie outside the image",
            where=where,
            found=f"point {worst} at {xyz[worst].round(1).tolist()} mm",
            allowed=f"from {low} to {high} mm",
            fix='points are (row, column) in mm; voxel indices need "space": "index"',
        )
    return xyz
