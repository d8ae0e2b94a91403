"""What there is to predict: files, folders and datasets as jobs, each with the grid it will be answered on, read from headers alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from ..core.case import Case, pair_id
from ..core.errors import DataError, UsageError, nearest
from ..core.geometry import Geometry
from ..core.manifest import CaseRef, Manifest
from ..core.plan import Plan
from ..datasets import open_dataset
from ..datasets.cases import file_of, header_of, spacing_of
from ..datasets.nnunet import NUMBERED
from ..datasets.pairs import read_pairs
from ..datasets.stems import ending, stem
from ..io import sniff
from ..io.arrays import split_address
from ..io.wsi import is_slide
from ..ops.sections import REPORT
from .progress import Progress

_ODD = re.compile(r"[^\w.+-]+")


@dataclass
class Job:
    """One case to predict: the ``name`` its answer is written under, where it comes from, how it is read, the kind of file it is written
    as, its files, and its grid (None where only reading the case tells: phantoms, damaged files)."""

    name: str
    where: str
    read: Callable[[], Case]
    ending: str
    files: tuple[Path, ...] = ()
    geometry: Geometry | None = None
    partners: Callable[[], tuple[str, ...]] | None = None  # names of the moving cases that a dataset pairs this one with; None: any


def jobs_of(
    inputs: str | Path | Manifest | Iterable[str | Path],
    plan: Plan,
    like: Manifest,
    read: Callable[[Manifest], Callable[[str], Case]],
    *,
    split: str | None = None,
    progress: Progress | None = None,
) -> list[Job]:
    """The jobs of image files, array addresses, folders and datasets (a folder, a CSV, 'phantom:NAME', a Manifest).

    A folder holds one case a file; or cases of several channels as '<case>_0000', '<case>_0001', ... (nnU-Net's names); for a 3D model a
    folder of DICOM files is one series, also as one of several such folders. Hidden files, and files that are no images, are left out
    and counted. A model without images takes text files, one report each (UTF-8), and folders of them. ``like`` is the manifest of the
    training; ``split`` chooses cases of a dataset.
    """
    if isinstance(inputs, Manifest):
        return list(_of_manifest(inputs, plan, read, split))
    given = [str(p) for p in ([inputs] if isinstance(inputs, (str, Path)) else inputs)]
    out: list[Job] = []
    for text in given:
        path = Path(text)
        if text.startswith("phantom:") or _is_dataset(path):
            out += _of_manifest(open_dataset(text), plan, read, split)
            continue
        if split is not None:
            raise UsageError("--split chooses cases of a dataset, and this is none", where=text, fix="leave --split out")
        if not plan.channels and path.exists():
            out += [
                replace(j, where=str(f), files=(f,)) for f in _texts(path) for j in _of_manifest(_report(f, plan, like), plan, read, None)
            ]
            continue
        if path.is_dir():
            images = _images_in(path, plan.dims, progress or Progress(quiet=True))
            groups = _grouped(images, plan.channels, path)
        elif path.exists() or Path(split_address(text)[0]).is_file():
            groups = {_name(text): [text]}
            _same_number(groups, plan.channels, text)
        else:
            raise DataError("there is no such file or folder", where=path)
        for name, files in groups.items():
            one = _manifest(name, files, plan, like)
            out += _of_manifest(one, plan, read, None)
    return out


def _of_manifest(manifest: Manifest, plan: Plan, read: Callable, split: str | None) -> Iterator[Job]:
    if split is not None and not manifest.where(split):
        have = sorted({c.split for c in manifest.cases} - {""})
        raise UsageError(f"no case is in split '{split}'", where=manifest.name, allowed=", ".join(have) or "the dataset declares no split")
    reader = read(manifest)
    chosen = [c.id for c in manifest.cases if split is None or c.split == split]
    wanted = set(chosen)
    for ref in manifest.cases:
        if ref.id in wanted:
            files = tuple(Path(file_of(manifest, a)[0]) for a in ref.images.values()) if manifest.built_in is None else ()
            first = str(files[0]) if files else ""
            where = first if manifest.layout == "files" else ref.id
            kind = _ending(split_address(first)[0], plan.dims) if first else ".png" if plan.dims == 2 else ".nii.gz"
            moving = None if manifest.layout == "files" else lambda i=ref.id: tuple(_named(m) for m in manifest.partners(i, chosen))
            yield Job(_named(ref.id), where, lambda i=ref.id: reader(i), kind, files, _geometry(manifest, ref, plan), moving)


def _named(case: str) -> str:
    return case.replace("/", "_")


def paired(
    inputs: str | Path | Manifest | Iterable[str | Path],
    pairs: str | Path | None,
    plan: Plan,
    like: Manifest,
    read: Callable[[Manifest], Callable[[str], Case]],
    *,
    split: str | None = None,
    progress: Progress | None = None,
) -> list[Job]:
    """One job a (fixed, moving) pair of what ``jobs_of`` finds in ``inputs``: those of the table ``pairs`` (columns fixed and moving, names
    of inputs or, where there are none, of image files beside it), else those that a dataset declares, else the first with the second of
    two files, else every input with every other."""
    table = None if pairs is None else read_pairs(Path(pairs))
    if table is not None and not isinstance(inputs, Manifest) and not inputs:
        folder = Path(pairs).parent
        inputs = list(dict.fromkeys(str(folder / name) for pair in table for name in pair))
        table = [(_name(str(folder / a)), _name(str(folder / b))) for a, b in table]
    singles = jobs_of(inputs, plan, like, read, split=split, progress=progress)
    by_name = {job.name: job for job in singles}
    if len(by_name) < len(singles):
        twice = next(job for k, job in enumerate(singles) if job.name in {j.name for j in singles[:k]})
        raise DataError("two inputs have the same name", where=twice.where, found=twice.name, fix="register them apart")
    if table is not None:
        unknown = next((name for pair in table for name in pair if _named(name) not in by_name), None)
        if unknown is not None:
            raise DataError(f"the pairs name the unknown input '{unknown}'", where=pairs, fix=nearest(unknown, by_name))
        wanted = [(_named(a), _named(b)) for a, b in table]
    elif len(singles) == 2 and not isinstance(inputs, (str, Path, Manifest)) and all(job.partners is None for job in singles):
        wanted = [(singles[0].name, singles[1].name)]
    else:
        wanted = [(a, b) for a, job in by_name.items() for b in (by_name if job.partners is None else job.partners()) if a != b]
    if not wanted:
        fix = "give a fixed and a moving image, or a dataset with pairs"
        raise UsageError("registration needs pairs of images", found=f"{len(singles)} inputs and no pair of them", fix=fix)
    return [_pair_job(by_name[a], by_name[b]) for a, b in wanted]


def _pair_job(fixed: Job, moving: Job) -> Job:
    where, files = f"{fixed.where} and {moving.where}", (*fixed.files, *moving.files)
    return Job(pair_id(fixed.name, moving.name), where, lambda: Case.pair(fixed.read(), moving.read()), ".nii.gz", files, fixed.geometry)


def _geometry(manifest: Manifest, ref: CaseRef, plan: Plan) -> Geometry | None:
    """The grid of a case's first image of the plan's, by its header."""
    address = next((ref.images[c] for c in plan.channels if c in ref.images), None)
    if manifest.built_in is not None or address is None:
        return None
    try:
        file = file_of(manifest, address)[0]
        geometry = header_of(file, spacing_of(manifest, ref))[1]
    except DataError:  # reading says what is wrong
        return None
    if is_slide(file):
        return plan.grid.of(geometry)  # predicted there, never whole
    return geometry if geometry.ndim == plan.dims else None


def _manifest(name: str, files: Sequence[str | Path], plan: Plan, like: Manifest) -> Manifest:
    """A dataset of one case, so that files are read by the same rules as in training."""
    images = {c: str(Path(f).absolute()) for c, f in zip(plan.channels, files, strict=True)}
    case = CaseRef(name, name, images=images)
    return Manifest("files", Path("/"), plan.dims, plan.channels, like.labels, (case,), spacing_mm=like.spacing_mm, layout="files")


def _texts(path: Path) -> list[Path]:
    """A text file, or those of a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix == ".txt" and not p.name.startswith("."))
    if not files or files[0].suffix != ".txt":
        found = path.suffix if path.is_file() else "a folder without text files"
        raise DataError("this model reads texts and tables", where=path, found=found, allowed=".txt files, a dataset folder or a CSV")
    return files


def _report(file: Path, plan: Plan, like: Manifest) -> Manifest:
    """A dataset of one report."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("this text cannot be read", where=file, found=str(error), allowed="a readable file in UTF-8") from error
    case = CaseRef(file.stem, file.stem, text={REPORT: text})
    return Manifest("files", Path("/"), plan.dims, (), like.labels, (case,), layout="files")


def _is_dataset(path: Path) -> bool:
    """A CSV of cases, or a folder with a dataset's description or with images/ instead of files of its own."""
    if path.is_file():
        return path.suffix.lower() == ".csv"
    return any((path / name).exists() for name in ("dataset.toml", "dataset.json", "cases.csv", "images"))


def _images_in(folder: Path, dims: int, progress: Progress) -> list[Path]:
    """The images of a folder; a DICOM series as its folder where volumes are wanted."""
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    kinds = {p: _kind(p) for p in inside if p.is_file()}
    images = [p for p, kind in kinds.items() if kind or ending(p)]
    if dims > 2:
        slices = [p for p in images if kinds[p] == "dicom"]
        series = [folder] if slices else []
        series += [p for p in inside if p.is_dir() and any(_kind(f) == "dicom" for f in sorted(p.iterdir())[:8])]
        images = [p for p in images if kinds.get(p) != "dicom"] + series
    left = [p.name for p in kinds if not kinds[p] and not ending(p)]
    if left:
        progress.say(
            f"{folder}: {len(left)} files are no images and were left out ({', '.join(left[:3])}{', ...' if len(left) > 3 else ''})"
        )
    if not images:
        raise DataError("no image is in this folder", where=folder, found=f"{len(inside)} other files and folders")
    return images


def _kind(path: Path) -> str:
    try:
        return sniff(path)
    except DataError:
        return ""


def _grouped(images: Sequence[Path], channels: Sequence[str], folder: Path) -> dict[str, list[Path]]:
    """Case -> its files in channel order: by nnU-Net's numbers where all names have them, else one file a case."""
    hits = [NUMBERED.match(_name(str(p))) for p in images]
    groups: dict[str, list[Path]] = {}
    if all(hits) and (len(channels) > 1 or all(int(h["channel"]) == 0 for h in hits)):
        for hit, path in sorted(zip(hits, images, strict=True), key=lambda pair: pair[0][0]):
            groups.setdefault(hit["case"], []).append(path)
        odd = next(
            (c for c, g in groups.items() if [int(NUMBERED.match(_name(str(p)))["channel"]) for p in g] != [*range(len(channels))]), None
        )
        if odd:
            allowed = ", ".join(f"{odd}_{k:04d} ({c})" for k, c in enumerate(channels))
            raise DataError(f"case '{odd}' has not the images this model takes", where=folder, found=_names(groups[odd]), allowed=allowed)
        return groups
    for path in images:
        name = _name(str(path))
        if name in groups:
            fix = "predict them into different folders"
            raise DataError("two inputs have the same name", where=folder, found=_names([*groups[name], path]), fix=fix)
        groups[name] = [path]
    _same_number(groups, channels, str(folder))
    return groups


def _same_number(groups: dict, channels: Sequence[str], where: str) -> None:
    if len(channels) > 1:
        rule = ", ".join(f"<case>_{k:04d} ({c})" for k, c in enumerate(channels))
        fix = f"name the files {rule}, or give a dataset folder with these columns"
        raise UsageError(f"this model takes {len(channels)} images a case ({', '.join(channels)})", where=where, fix=fix)


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(p.name for p in paths)


def _name(text: str) -> str:
    """What an input is called: its file name without the ending, its folder's name, or file and key of an array."""
    path = Path(text)
    if path.is_dir():
        return path.resolve().name
    if path.exists():
        return stem(path)
    file, key, index = split_address(text)
    return _ODD.sub("_", "_".join(str(p) for p in chain([stem(file)], (p for p in (key, index) if p is not None))))


def _ending(file: str, dims: int) -> str:
    """The kind of file a prediction is written as: the input's where that is lossless and holds geometry."""
    kind = ending(file)
    if dims == 2:
        return ".tif" if kind in (".tif", ".tiff") else ".png"
    return kind if kind in (".nii.gz", ".nii", ".mha", ".nrrd") else ".nii.gz"
