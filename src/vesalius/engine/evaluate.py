"""Scores of predictions against references, on the original grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..core.case import Case, LabelMap
from ..core.errors import DataError
from ..core.manifest import Manifest
from ..core.prediction import Prediction, Score
from ..io import read_labels
from ..metrics import DEFAULT as RULES
from ..metrics import score_case


def score(prediction: Prediction, case: Case, *, metrics: Sequence[str] = RULES, patient: str = "") -> list[Score]:
    """One row per structure, metric and rater."""
    if prediction.label is None:
        raise DataError("the prediction has no label map to score", where=case.id)
    rows: list[Score] = []
    for rater, reference in case.labels.items():
        rows += score_case(
            prediction.label.semantic,
            reference.semantic,
            case_id=case.id,
            patient=patient or case.patient,
            metrics=tuple(metrics),
            rater=rater,
        )
    return rows


def mean_dsc(rows: Sequence[Score]) -> float:
    """Over structures and cases where it is defined; NaN when nowhere."""
    values = [r.value for r in rows if r.metric == "dsc" and r.value is not None]
    return float(np.mean(values)) if values else float("nan")


def score_folder(
    folder: Path,
    manifest: Manifest,
    ids: Sequence[str],
    read: Callable[[str], Case],
    *,
    metrics: Sequence[str] = RULES,
    each: Callable[[], None] = lambda: None,
) -> tuple[list[Score], list[str]]:
    """Score a folder of label files named ``<case>.*`` (whoever made them). Returns the rows and what was wrong, case by case: a missing,
    unreadable or misplaced prediction is a row with the reason and no value, and does not stop the others."""
    problems: list[str] = []
    rows: list[Score] = []
    files = _by_case(folder)
    extra = sorted(set(files) - {c.id for c in manifest.cases})
    if extra:
        problems.append(f"{len(extra)} files match no case of '{manifest.name}': {', '.join(extra[:5])}")
    for case_id in ids:
        each()
        case = read(case_id)
        if not case.labels:
            continue
        if case_id not in files:
            problems.append(f"case '{case_id}' has no prediction in {folder}")
            rows += [Score(case_id, m, None, patient=case.patient, note="no prediction") for m in metrics]
            continue
        try:
            given = read_labels(
                files[case_id],
                values=manifest.values,
                names=manifest.names,
                ignore=manifest.ignore,
                instances=manifest.instances,
                spacing=manifest.spacing_mm,
            )
            given = _on_reference(given, next(iter(case.labels.values())), files[case_id])
            rows += score(Prediction(labels={"prediction": given}), case, metrics=metrics)
        except DataError as e:
            problems.append(str(e))
            rows += [Score(case_id, m, None, patient=case.patient, note=str(e)) for m in metrics]
    return rows, problems


def _by_case(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError("the folder of predictions does not exist", where=folder)
    out = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix not in (".json", ".csv", ".html", ".txt", ".md", ".toml"):
            name = path.name.removesuffix(".gz")
            out[name[: name.rfind(".")] if "." in name else name] = path
    return out


def _on_reference(given: LabelMap, reference: LabelMap, path: Path) -> LabelMap:
    """Files without geometry (PNG, NPZ) take the reference's when the shape is the same; others must lie on its grid."""
    if given.geometry == reference.geometry or given.geometry.close(reference.geometry):
        return replace(given, geometry=reference.geometry)
    plain = path.suffix.lower() in (".png", ".bmp", ".tif", ".tiff", ".npz", ".npy")
    if plain and given.geometry.shape == reference.geometry.shape:
        return replace(given, geometry=reference.geometry)
    raise DataError(
        "the prediction does not lie on the reference's grid",
        where=path,
        found=given.geometry.describe(),
        allowed=reference.geometry.describe(),
        fix="resample the prediction to the reference's grid, or correct its header",
    )
