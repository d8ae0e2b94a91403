"""Drawing batches from prepared cases. Every draw is a pure function of (seed, stage, step): the number of workers changes nothing and a
resumed training draws what it would have drawn."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..core.case import Batch, Condition, Sample, pair_id
from ..core.errors import DataError, GeometryError
from ..core.geometry import index_map
from ..core.manifest import Manifest
from ..core.method import Sampling, Stage, Stream
from ..methods.learned import LearnedMethod
from ..ops.augment import pose_at
from ..ops.displacement import shared
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
        self.streams = [(s, _chosen(s, self.sampling, cases, manifest)) for s in streams]
        declared = self.sampling.unit == "pair" and manifest.pairs is not None
        self.partners = [_partners(chosen, manifest) if declared else None for _, chosen in self.streams]
        self.conditioned = type(method).condition is not LearnedMethod.condition
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
                partners = self.partners[k]
                at = self._order(step * stream.size + b, len(partners or cases), k)
                if self.sampling.unit == "patch":
                    draws.append(self._views(cases[at], stream, b, rng))
                elif self.sampling.unit == "case":
                    draws.append([self._whole(cases[at], rng)])
                elif partners is None:
                    draws.append(self._pair(cases[at], cases[(at + 1 + int(rng.integers(len(cases) - 1))) % len(cases)], rng))
                else:
                    first, others = partners[at]
                    draws.append(self._pair(first, others[rng.integers(len(others))], rng))
            views = [collate([d[v] for d in draws]) for v in range(len(draws[0]))]
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
            sample = self._sample(case, centre, rng)
            own = np.random.default_rng([turn, v if self.sampling.spatial != "exact" else 0])
            out.append(self.method.augment(sample, own))
        return out

    def _whole(self, case: Prepared, rng: np.random.Generator) -> Sample:
        """The whole case in the middle of the patch; a case without an image is its table, texts and condition."""
        shape = case.image.shape[1:]
        sample = self._sample(case, np.asarray(shape) // 2, rng)
        return self.method.augment(sample, rng) if shape else sample

    def _pair(self, first: Prepared, second: Prepared, rng: np.random.Generator) -> list[Sample]:
        """Two whole cases, each in the middle of its patch, or the second where the first one's voxels lie in the world."""
        if not self.sampling.world:
            return [self._whole(case, rng) for case in (first, second)]
        here, there = first.geometry, second.geometry
        if not shared(here, there):
            found = f"{here.describe()}; {there.describe()}"
            raise GeometryError("the images of this pair do not overlap in the world", where=pair_id(first.id, second.id), found=found)
        one = self._sample(first, np.asarray(here.shape) // 2, rng)
        two = self._sample(second, np.asarray(there.shape) // 2, rng)
        two.pose = index_map(there, here) @ one.pose
        return [self.method.augment(sample, rng) for sample in (one, two)]

    def _sample(self, case: Prepared, centre: np.ndarray, rng: np.random.Generator) -> Sample:
        labels = case.labels
        query = ""
        if self.sampling.query:
            ids = [i for i, _ in case.facts["queries"] if f"query:{i}" in labels]
            query = ids[rng.integers(len(ids))]
            labels["query"] = labels[f"query:{query}"]
        return Sample(
            case=case.id,
            image=case.image,
            labels={k: v for k, v in labels.items() if not k.startswith("query:")},
            size=self.size,
            pose=pose_at(centre, self.size) if len(centre) else np.eye(1),
            spacing=case.geometry.spacing if case.geometry else (),
            maps=case.maps,
            outside=case.facts["maps"],
            points=case.points(),
            table=case.facts["table"],
            query=query,
            condition=self.method.condition(case.case(query), rng) if self.conditioned else None,
            channels=tuple(c for c, size, _ in case.facts["channels"] for _ in range(size)),
            frozen=_frozen(case),
        )


def _chosen(stream: Stream, sampling: Sampling, cases: Sequence[Prepared], manifest: Manifest) -> list[Prepared]:
    """The cases a stream draws from."""
    where: str | Callable = stream.where
    if where == "all":
        keep = list(cases)
    elif where in ("labelled", "unlabelled"):
        keep = [c for c in cases if bool(c.facts["labels"]) == (where == "labelled")]
    elif callable(where):
        keep = [c for c in cases if where(manifest[c.facts["of"]])]
    else:
        raise DataError(f"stream '{stream.name}' chooses its cases by an unknown rule", found=where, allowed="all, labelled, unlabelled")
    if sampling.query:
        keep = [c for c in keep if any(f"query:{i}" in c.facts["labels"] for i, _ in c.facts["queries"])]
    if sampling.unit == "pair" and len(keep) == 1:
        raise DataError("a pair needs two training cases", where=manifest.name, found="1 training case")
    if not keep:
        raise DataError(
            f"the method draws {where} cases, the training set has none",
            where=manifest.name,
            found=f"{len(cases)} training cases",
            fix="leave some labels out with --labelled N" if where == "unlabelled" else "check the label columns of cases.csv",
        )
    return keep


def _partners(cases: Sequence[Prepared], manifest: Manifest) -> list[tuple[Prepared, list[Prepared]]]:
    """Each case that is a fixed one of declared pairs, with its moving ones."""
    by_id = {c.facts["of"]: c for c in cases}
    found = [(c, [by_id[m] for m in manifest.partners(i, by_id)]) for i, c in by_id.items()]
    out = [(c, others) for c, others in found if others]
    if not out:
        fix = "declare pairs of training cases, or remove pairs.csv"
        raise DataError("no declared pair has both of its cases in the training set", where=manifest.name, found=len(cases), fix=fix)
    return out


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
    conditioned = first.condition is not None

    def stack(key: str, dtype=None) -> torch.Tensor:
        return torch.from_numpy(np.stack([s.patch[key] for s in samples]).astype(dtype, copy=False))

    names = sorted({k for s in samples for k in s.patch})
    for s in samples:
        lacks = [k for k in names if k not in s.patch]
        if lacks:
            raise DataError(
                f"a case of this batch has no '{lacks[0].partition(':')[2] or lacks[0]}'",
                where=f"case {s.case}",
                found=f"other cases have {', '.join(names)}",
                fix="give all training cases the same label maps, or choose one rater's column",
            )
    return Batch(
        image=stack("image", np.float32) if "image" in names else None,
        labels={k[6:]: stack(k, np.int64) for k in names if k.startswith("label:")},
        to_case=torch.from_numpy(np.stack([s.pose for s in samples])) if "image" in names else None,
        cases=[s.case for s in samples],
        spacing=torch.tensor([s.spacing for s in samples]),
        maps={k[4:]: stack(k, np.float32) for k in names if k.startswith("map:")},
        points={k: [s.moved[k] for s in samples] for k in first.moved if all(k in s.moved for s in samples)},
        table=_columns(samples),
        condition=Condition.stack([s.condition for s in samples]) if conditioned else None,
        extras={k: torch.from_numpy(np.stack([s.extras[k] for s in samples])) for k in first.extras},
    )


def _columns(samples: Sequence[Sample]) -> dict[str, torch.Tensor | list]:
    """The table by column: numbers as a tensor with NaN where one is missing, anything else as it is."""
    out: dict[str, torch.Tensor | list] = {}
    for name in samples[0].table:
        values = [s.table.get(name) for s in samples]
        if all(v is None or isinstance(v, (int, float)) for v in values):
            out[name] = torch.tensor([float("nan") if v is None else float(v) for v in values], dtype=torch.float64)
        else:
            out[name] = values
    return out


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
