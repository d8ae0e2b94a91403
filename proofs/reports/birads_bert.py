"""BI-RADS BERT's two claims: what stands around a sentence tells its section, and a field is read better from its section alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from vesalius.core.case import Case
from vesalius.core.manifest import Manifest
from vesalius.datasets.phantoms.report import AMBIGUOUS, FIELDS
from vesalius.engine import api
from vesalius.engine.infer import infer
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.networks.text import sentences

REAL = {"normal": "impression"}  # of IU X-ray: 'is there any finding', asked of the impression
CASES = 300


def reports(manifest: Manifest) -> tuple[Manifest, Mapping[str, str]]:
    """(the data set, field -> its section); of the X-ray reports some, with 'normal' (no MeSH heading) as their field."""
    if manifest.built_in is not None:
        return manifest, {k: section for k, (_, section) in FIELDS.items()}
    train, test = manifest.where("train")[:CASES], manifest.where("test")[: CASES // 3]
    some = manifest.only((*train, *test))
    rows = tuple(replace(c, table={"normal": "yes" if str(c.table["mesh"]).lower() == "normal" else "no"}) for c in some.cases)
    return replace(some, cases=rows), REAL


def whole(case: Case) -> tuple[Case, list[str]]:
    """(the report as one text and nothing else, each sentence's section)."""
    known = {k: t for k, t in case.text.items() if k != "report"}
    report = case.text.get("report") or "\n".join(known.values())
    return replace(case, text={"report": report}), [k for k, t in known.items() for _ in sentences(t)]


def rows_of(trained: api.Trained, case: Case) -> Iterator[tuple[str, float | None]]:
    """Shares of right sections (of all sentences, of the ambiguous ones) and of right fields; a field without an answer is wrong."""
    report, truth = whole(case)
    lines = sentences(report.text["report"])
    right = [own == there for (own, _), there in zip(trained.method.cut(lines), truth, strict=True)]
    hard = [r for r, line in zip(right, lines, strict=True) if line in AMBIGUOUS]
    yield "section accuracy", sum(right) / len(right)
    yield "ambiguous accuracy", sum(hard) / len(hard) if hard else None
    answer = infer(trained.method, report, trained.plan).table
    said = {k: max(p, key=p.get) for k, p in answer.items()}
    asked = list(trained.method.targets)
    yield "field accuracy", sum(said.get(k) == case.table[k] for k in asked) / len(asked)


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """Per test report and arm the three shares; the arms' models are trained on the same cases."""
    manifest, where = reports(manifest)
    read, out = api.reader(manifest), []
    for seed in range(seeds):
        for arm in study.arms:
            fields = tuple(where) if arm.name == "whole report" else tuple(f"{k}:{s}" for k, s in where.items())
            trained = api.train(
                arm.method, manifest, folder / f"{arm.name.replace(' ', '-')}_{seed}", seed=seed, iterations=iterations,
                options={**arm.options, "fields": fields}, plan_overrides=plan, resume=True, progress=progress,
            )  # fmt: skip
            for i in manifest.where("test"):
                row = {"method": arm.name, "case": i, "patient": manifest[i].patient, "seed": seed, "better": "higher"}
                out += [{**row, "metric": metric, "value": value} for metric, value in rows_of(trained, read(i))]
    return out


def study() -> Study:
    return Study(
        slug="birads-bert",
        claim="what stands around a sentence tells its section, and a field is read better from its section than from the whole report",
        arms=(
            Arm("no surroundings", "birads-bert", {"aux": False}),
            Arm("whole report", "birads-bert"),
            Arm("birads-bert", "birads-bert"),
        ),
        data=(
            Data("phantom:reports"),
            Data("../shared/data/2d/iu_xray_reports", iterations=800, metrics=("section accuracy", "field accuracy")),
        ),
        baseline="no surroundings",
        expects=(
            Expect("birads-bert", "section accuracy", "higher"),
            Expect("birads-bert", "field accuracy", "higher", against="whole report"),
        ),
        metrics=("section accuracy", "ambiguous accuracy", "field accuracy"),
        iterations=1500,
        plan={"workers": 0},
        measure=measure,
    )
