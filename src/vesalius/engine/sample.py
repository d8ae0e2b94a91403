"""Drawing batches from prepared cases. Every draw is a pure function of (seed, stage, step): the number of workers changes nothing and a
resumed training draws what it would have drawn."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..core.case import Batch, Sample
from ..core.errors import DataError
from ..core.manifest import Manifest
from ..core.method import Sampling, Stage, Stream
from ..methods.learned import LearnedMethod
from ..ops.augment import pose_at
from .prepare import Prepared


class Draws(Dataset):
    """``draws[i]`` is the batch of step ``start + i``, without end."""

    def __init__(
        self,
        cases: Sequence[Prepared],
        method: LearnedMethod,
        manifest: Manifest,
        stage: Stage,
        *,
        seed: int,
        number: int,
        start: int = 0,
    ):
        self.method, self.plan, self.seed, self.number, self.start = method, method.plan, seed, number, start
        self.sampling: Sampling = method.sampling(stage)
        streams = self.sampling.streams or (Stream("main", self.plan.batch, "labelled"),)
        self.streams = [(s, _chosen(s, cases, manifest)) for s in streams]
        self.size = tuple(self.sampling.size or self.plan.patch)

    def __len__(self) -> int:
        return 10**9  # the loop stops where its budget says

    @property
    def epoch_length(self) -> int:
        """Steps until every case of the first stream was drawn once."""
        stream, cases = self.streams[0]
        return max(1, len(cases) // stream.size)

    def __getitem__(self, i: int) -> Batch:
        step = self.start + i
        parts = {}
        for k, (stream, cases) in enumerate(self.streams):
            draws = []
            for b in range(stream.size):
                rng = np.random.default_rng([self.seed, self.number, step, k, b])
                case = cases[self._order(step * stream.size + b, len(cases), k)]
                draws.append(self._views(case, stream, b, rng))
            views = [collate([d[v] for d in draws]) for v in range(self.sampling.views)]
            views[0].views = tuple(views[1:])
            parts[stream.name] = views[0]
        first = next(iter(parts.values()))
        first.streams = {name: batch for name, batch in parts.items() if batch is not first}
        return first

    def _order(self, n: int, cases: int, stream: int) -> int:
        """The n-th draw of a stream: shuffled passes over its cases."""
        return int(np.random.default_rng([self.seed, self.number, stream, n // cases, 5]).permutation(cases)[n % cases])

    def _views(self, case: Prepared, stream: Stream, b: int, rng: np.random.Generator) -> list[Sample]:
        share = self.plan.foreground if self.sampling.foreground is None else self.sampling.foreground
        forced = b >= stream.size - int(round(stream.size * share))
        classes = stream.centre or (tuple(c for c in case.locations if c > 0) if forced else ())
        shape = case.image.shape[1:]
        centre = centre_of(case, shape, self.size, classes, rng)
        out, turn = [], rng.integers(2**31)
        for v in range(self.sampling.views):
            if v:
                reach = [int((1 - self.sampling.overlap) * p) for p in self.size]
                centre = _inside(centre + np.array([rng.integers(-r, r + 1) for r in reach]), shape, self.size)
            sample = Sample(
                case=case.id,
                image=case.image,
                labels=case.labels,
                size=self.size,
                pose=pose_at(centre, self.size),
                spacing=case.geometry.spacing,
                maps=case.maps,
                points=case.points(),
                table=case.facts["table"],
                channels=tuple(c for c, size, _ in case.facts["channels"] for _ in range(size)),
                frozen=_frozen(case),
            )
            own = np.random.default_rng([turn, v if self.sampling.spatial != "exact" else 0])
            out.append(self.method.augment(sample, own))
        return out


def _chosen(stream: Stream, cases: Sequence[Prepared], manifest: Manifest) -> list[Prepared]:
    """The cases a stream draws from."""
    where: str | Callable = stream.where
    if where == "all":
        keep = list(cases)
    elif where in ("labelled", "unlabelled"):
        keep = [c for c in cases if bool(c.facts["labels"]) == (where == "labelled")]
    elif callable(where):
        keep = [c for c in cases if where(manifest[c.id])]
    else:
        raise DataError(f"stream '{stream.name}' chooses its cases by an unknown rule", found=where, allowed="all, labelled, unlabelled")
    if not keep:
        raise DataError(
            f"the method draws {where} cases, the training set has none",
            where=manifest.name,
            found=f"{len(cases)} training cases",
            fix="leave some labels out with --labelled N" if where == "unlabelled" else "check the label columns of cases.csv",
        )
    return keep


def centre_of(case: Prepared, shape: Sequence[int], size: Sequence[int], classes: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Patch centre: on a voxel of a random one of ``classes`` that is present, else uniform; the patch stays inside where it fits."""
    present = [c for c in sorted(classes) if c in case.locations]
    if present:
        at = case.locations[present[rng.integers(len(present))]]
        return _inside(at[rng.integers(len(at))].astype(int), shape, size)
    return _inside(np.array([rng.integers(0, n) for n in shape]), shape, size)


def _inside(centre: np.ndarray, shape: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """The nearest centre whose patch lies in the case; along a side that is too short, the middle."""
    out = []
    for c, n, p in zip(centre, shape, size, strict=True):
        low, high = p // 2, n - (p - p // 2)
        out.append(int(np.clip(c, low, high)) if low <= high else n // 2)
    return np.asarray(out)


def _frozen(case: Prepared) -> tuple[int, ...]:
    out, start = [], 0
    for _, size, normal in case.facts["channels"]:
        if not normal:
            out += range(start, start + size)
        start += size
    return tuple(out)


def collate(samples: Sequence[Sample]) -> Batch:
    """Rendered samples -> one batch of tensors."""
    first = samples[0]

    def stack(key: str, dtype=None) -> torch.Tensor:
        return torch.from_numpy(np.stack([s.patch[key] for s in samples]).astype(dtype, copy=False))

    names = sorted({k for s in samples for k in s.patch})
    return Batch(
        image=stack("image", np.float32),
        labels={k[6:]: stack(k, np.int64) for k in names if k.startswith("label:")},
        to_case=torch.from_numpy(np.stack([s.pose for s in samples])),
        cases=[s.case for s in samples],
        spacing=torch.tensor([s.spacing for s in samples]),
        maps={k[4:]: stack(k, np.float32) for k in names if k.startswith("map:")},
        points={k: [s.moved[k] for s in samples] for k in first.moved},
        extras={k: torch.from_numpy(np.stack([s.extras[k] for s in samples])) for k in first.extras},
    )


def loader(draws: Draws, workers: int) -> DataLoader:
    """Batches in order, made ahead by worker processes."""
    return DataLoader(
        draws,
        batch_size=None,
        shuffle=False,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_settle if workers else None,
    )


def _settle(_: int) -> None:
    """A worker uses one thread, dies when told to, and leaves Ctrl-C to the process that trains."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
