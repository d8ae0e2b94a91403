"""reports: breast imaging reports written from templates, with their sections and the fields they were written from. No image.

Eight sections in the order a reader dictates them, some left out; the sentences of each are drawn from paraphrases. Two things make them
hard. Some sentences stand in several sections ('No previous surgery.' is history or finding), so that only their surroundings tell. And
other sections mention the field's value of a *prior* examination ('The breasts were almost entirely fatty then.'), so that a reader of the
whole report finds two values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...core.case import Case
from ...core.errors import UsageError
from ...core.manifest import CaseRef, Manifest
from .phantom import SPLITS, _counts

VERSION = 1
SECTIONS = ("title", "hx", "procedure", "prim", "findings", "impression", "ethics", "dx")
FIELDS = {  # column -> (levels, the section it is written in)
    "modality": (("mammogram", "ultrasound", "mri"), "title"),
    "purpose": (("screening", "diagnostic", "follow-up"), "hx"),
    "previous_cancer": (("no", "yes"), "hx"),
    "menopause": (("pre", "post"), "hx"),
    "density": (("a", "b", "c", "d"), "findings"),
    "bpe": (("minimal", "mild", "moderate", "marked"), "findings"),
}
_DENSITY = {
    "a": "almost entirely fatty",
    "b": "composed of scattered fibroglandular densities",
    "c": "heterogeneously dense",
    "d": "extremely dense",
}
_NAMES = {"mammogram": "mammogram", "ultrasound": "breast ultrasound", "mri": "breast MRI"}
_MONTHS = ("January", "March", "April", "June", "September", "November")
AMBIGUOUS = (
    "No previous surgery.",
    "Stable since the last examination.",
    "There are no clips.",
    "Left breast only.",
    "As described above.",
)
_HOMES = (("hx", "findings"), ("findings", "impression"), ("procedure", "findings"), ("title", "procedure"), ("impression", "dx"))


def write(rng: np.random.Generator, hard: float = 0.7) -> tuple[dict[str, list[str]], dict[str, str]]:
    """One report: section -> sentences (absent sections left out), and the fields. ``hard``: how often an ambiguous sentence and a value
    of a prior examination stand in it."""
    pick = lambda *options: str(options[rng.integers(len(options))])
    now, then = ({k: str(rng.choice(levels)) for k, (levels, _) in FIELDS.items()} for _ in range(2))
    year, name, month = int(rng.integers(2008, 2021)), _NAMES[now["modality"]], pick(*_MONTHS)
    parts: dict[str, list[str]] = {
        "title": [pick(f"Bilateral {name}.", f"{name[0].upper()}{name[1:]} of both breasts.", f"Examination: {name}.")],
        "hx": [
            {
                "screening": pick("Routine screening.", "Average risk screening.", "Annual screening examination."),
                "diagnostic": pick("Palpable lump.", "Nipple discharge for two weeks.", "Work-up of a new symptom."),
                "follow-up": pick("Short interval follow-up.", "Six month follow-up.", "Follow-up of a probably benign finding."),
            }[now["purpose"]],
            pick("Prior breast cancer treated by lumpectomy.", "Personal history of breast cancer.")
            if now["previous_cancer"] == "yes"
            else pick("No personal history of breast cancer.", "No prior breast cancer."),
            pick("Postmenopausal.", "Last period years ago.") if now["menopause"] == "post" else pick("Premenopausal.", "Cycle day 10."),
        ],
        "procedure": [pick("Standard views were obtained.", "Images were acquired in two planes.", "Technique as per protocol.")],
        "prim": [pick(f"Compared with {month} {year}.", f"Comparison: {month} {year}.", f"Prior study of {month} {year} was reviewed.")],
        "findings": [
            pick(f"The breasts are {_DENSITY[now['density']]}.", f"Breast tissue is {_DENSITY[now['density']]}."),
            pick(f"Background parenchymal enhancement is {now['bpe']}.", f"There is {now['bpe']} background enhancement."),
            pick("No suspicious mass is seen.", "A circumscribed mass of 8 mm is seen.", "Benign calcifications are present."),
        ],
        "impression": [pick("BI-RADS 1: negative.", "BI-RADS 2: benign.", "BI-RADS 3: probably benign.", "BI-RADS 4: suspicious.")],
        "ethics": [pick("I have reviewed the images and agree.", "This report is confidential.", "Electronically signed.")],
        "dx": [pick("Benign breast tissue.", "Invasive ductal carcinoma.", "Fibroadenoma."), pick("See pathology.", "Routine recall.")],
    }
    if rng.random() < hard:
        parts["prim"] += [
            pick(f"The breasts were {_DENSITY[then['density']]} then.", f"Breast tissue was described as {_DENSITY[then['density']]}."),
            pick(f"Background enhancement was {then['bpe']} then.", f"The last {_NAMES[then['modality']]} was a {then['purpose']} study."),
        ]
        parts["impression"].append(pick("Postmenopausal women are recalled yearly.", "Premenopausal women return on cycle day 10."))
    for section in ("procedure", "prim", "impression", "ethics", "dx"):
        if rng.random() < (0.3 if section in ("procedure", "ethics", "dx") else 0.1):
            del parts[section]
    for line, homes in zip(AMBIGUOUS, _HOMES, strict=True):
        home = pick(*homes)
        if home in parts and rng.random() < hard:
            parts[home].insert(int(rng.integers(len(parts[home]) + 1)), line)
    return parts, now


@dataclass(frozen=True, repr=False)
class Writer:
    """CaseRef -> Case, the same words in any order and process. The sections and the fields are answers: prediction sees the report."""

    seed: int
    hard: float

    def __repr__(self) -> str:
        return f"Writer(reports, seed {self.seed}, hard {self.hard}, version {VERSION})"

    def draw(self, split: str, place: int) -> tuple[dict[str, list[str]], dict[str, str]]:
        return write(np.random.default_rng([self.seed, SPLITS.index(split), place, 31]), self.hard)

    def __call__(self, ref: CaseRef) -> Case:
        answers = {f"text:{k}" for k in ref.text if k != "report"} | set(ref.table)
        return Case(ref.id, ref.patient, text=dict(ref.text), table=dict(ref.table), answers=frozenset(answers))


def open_reports(*, cases: int | Sequence[int] | None = None, seed: int = 0, hard: float = 0.7) -> Manifest:
    """The manifest of the phantom 'reports': texts 'report' and those of its sections, and the columns of ``FIELDS``.

    ``cases``: a total or (train, val, test), by default 160, 20 and 120; ``hard``: share of ambiguous sentences and of distractors.
    """
    if not 0 <= hard <= 1:
        raise UsageError("a share of hard sentences", where="reports", found=hard, allowed="0 to 1")
    writer, rows = Writer(seed, float(hard)), []
    for split, n in zip(SPLITS, _counts(cases, (160, 20, 120), "reports"), strict=True):
        for place in range(n):
            parts, table = writer.draw(split, place)
            text = {"report": " ".join(line for lines in parts.values() for line in lines)} | {k: " ".join(v) for k, v in parts.items()}
            rows.append(CaseRef(f"{split}-{place:03d}", f"{split}-patient-{place:03d}", split, text=text, table=table))
    return Manifest(
        name="reports",
        root=Path("built-in-reports"),
        dims=0,
        channels=(),
        labels={},
        cases=tuple(rows),
        modality="text",
        licence="built in",
        source="written by vesalius.datasets.phantoms.report",
        targets={k: {"kind": "nominal", "levels": list(levels)} for k, (levels, _) in FIELDS.items()},
        built_in=writer,
    )
