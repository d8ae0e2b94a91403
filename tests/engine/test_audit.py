"""The audit: what it says of new data, what it stores with the run, and what it refuses or leaves out by name."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from vesalius.core.case import Image
from vesalius.core.errors import DataError, UsageError
from vesalius.core.geometry import Geometry, LongestSide
from vesalius.core.plan import Plan
from vesalius.datasets import open_dataset
from vesalius.datasets.phantoms.corruption import KINDS
from vesalius.engine import api
from vesalius.engine.audit import SEVERITIES, as_seen, audit, damage
from vesalius.report.audit_page import write_audit

DATA = "phantom:shapes-2d?cases=24"
QUICK = {"chexmask": {"references": "1", "kind": "affine", "bank": "4", "longest": "48"}}
SMALL = {"features": (4, 8), "patch": (64, 64), "batch": 2, "precision": "32", "threads": 1, "workers": 0, "overlap": 0.25}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return api.train("unet", DATA, tmp_path_factory.mktemp("audit") / "run", iterations=30, validations=1, plan_overrides=SMALL)


@pytest.fixture(scope="module")
def done(run, tmp_path_factory):
    """New cases, every third of which the model was not made for."""
    data = open_dataset("phantom:shapes-2d?seed=1&cases=12&corruption=inversion&severity=5")
    return audit(run.folder, data, tmp_path_factory.mktemp("out"), trained_on=DATA, bench=1, by=("kind",), options=QUICK)


def by(rows, metric):
    return [r for r in rows if r.metric == metric]


def test_every_case_has_its_rows_and_the_cohort_its_own(done):
    cases = {r.case for r in done.rows if r.case}
    assert len(cases) == 12 and len(by(done.rows, "ood")) == 12 and len(by(done.rows, "rca_flag")) == 12
    for metric in ("rca_max", "dsc"):
        assert {r.structure for r in by(done.rows, metric)} == {"bright", "dark"}
    mean = {(r.case, r.structure): r.value for r in by(done.rows, "rca_mean")}
    assert all(r.value >= mean[r.case, r.structure] for r in by(done.rows, "rca_max"))
    (ece,) = by(done.rows, "ece")
    assert 0 <= ece.value <= 1 and ece.case == ""
    assert done.notes == []


def test_strange_cases_are_farther(done):
    inverted = {r.case: r for r in by(done.rows, "ood")}
    strange = [r.value for c, r in inverted.items() if c.startswith("test")]
    normal = [r.value for c, r in inverted.items() if not c.startswith("test")]
    assert np.median(strange) > np.median(normal)
    assert all(r.extra["flagged"] == (r.value > r.extra["threshold"]) for r in inverted.values())


def test_the_bench_has_every_damage_at_every_severity(done):
    for kind in KINDS:
        rows = [r for r in by(done.rows, f"dsc:{kind}") if r.structure == "bright"]
        assert [r.step for r in rows] == [0, *SEVERITIES]
        assert len(by(done.rows, f"ood:{kind}")) == 6


class _Outside(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.pictures = [], 0

    def handle_starttag(self, tag, attrs):
        self.pictures += tag == "img"
        self.links += [v for k, v in attrs if k in ("src", "href") and not v.startswith("data:")]


def test_the_page_is_self_contained_and_the_files_hold_all_rows(done):
    page, parser = done.page.read_text(), _Outside()
    parser.feed(page)
    assert parser.links == [] and parser.pictures >= 4
    for words in ("What the model was trained on", "predicted Dice", "Reliability", "damaged", "Case by case", "How to reproduce"):
        assert words.lower() in page.lower()
    record = json.loads((done.page.parent / "audit.json").read_text())
    assert len(record["rows"]) == len(done.rows) and record["verdict"] == done.verdict and "12 cases lie farther" in done.verdict
    assert (done.page.parent / "audit.csv").exists()


def test_what_was_fitted_is_stored_and_the_next_audit_needs_no_training_data(run, done, tmp_path):
    assert sorted(p.name for p in (run.folder / "audit").glob("*.safetensors")) == ["chexmask.safetensors", "ood-knn.safetensors"]
    new = open_dataset("phantom:shapes-2d?seed=1&cases=12&corruption=inversion&severity=5")
    again = audit(run.folder, new.only(new.where("test")), tmp_path, bench=0, options=QUICK)
    assert again.notes == []  # the run's own folder was enough
    first = {(r.case, r.metric, r.structure): r.value for r in done.rows}
    for r in [*by(again.rows, "ood"), *by(again.rows, "dsc")]:
        assert first[r.case, r.metric, r.structure] == pytest.approx(r.value, rel=1e-6)


def test_a_run_that_was_shown_few_labels_is_audited_on_its_test_cases_too(tmp_path):
    few = api.train("unet", DATA, tmp_path / "run", iterations=2, validations=1, labelled=6, plan_overrides=SMALL)
    found = audit(few.folder, DATA, tmp_path / "out", bench=0, options=QUICK)
    assert {r.case for r in found.rows if r.case} == set(few.split.test)
    assert found.notes == [] and by(found.rows, "rca_max")  # the judges were fitted on the cases it was trained on


def test_without_labels_nothing_true_is_said(run, tmp_path):
    data = open_dataset(DATA.replace("24", "12") + "&seed=2&labelled=0")
    unlabelled = data.only(data.where("train")[:5])
    found = audit(run.folder, unlabelled, tmp_path, trained_on=DATA, bench=1, options=QUICK)
    metrics = {r.metric for r in found.rows}
    assert not metrics & {"dsc", "brier", "ece", "dsc:noise"} and {"ood", "rca_max", "agreement:noise"} <= metrics
    assert by(found.rows, "agreement:noise")[0].value == 1.0
    assert "true Dice" not in found.verdict


def test_missing_training_data_leave_the_judges_out_by_name(run, tmp_path):
    data = open_dataset("phantom:shapes-2d?seed=3&cases=6")
    other = audit(run.folder, data, tmp_path, bench=0, options={"ood-knn": {"k": "2"}, "chexmask": {"references": "2"}})
    assert len(other.notes) == 2 and all("--trained-on" in n for n in other.notes)
    assert {r.metric for r in other.rows} >= {"dsc", "brier"} and "was left out" in other.page.read_text()


def test_the_same_data_are_audited_on_their_test_cases(run, tmp_path):
    found = audit(run, DATA, tmp_path, bench=0, options=QUICK)
    assert {r.case for r in found.rows if r.case} == set(run.split.test)


def test_one_bad_case_is_named_and_does_not_stop_the_others(run, tmp_path):
    data = open_dataset("phantom:shapes-2d?seed=4&cases=6")

    def half(ref):
        case = data.built_in(ref)
        return replace(case, images={"other": case.images["image"]}) if ref.id == "train-000" else case

    found = audit(run, replace(data, built_in=half), tmp_path, bench=0, trained_on=DATA, options=QUICK)
    assert len({r.case for r in found.rows if r.case}) == 5 and len(found.notes) == 1 and "train-000" in found.notes[0]


def test_it_refuses_what_it_cannot_do(run, tmp_path):
    with pytest.raises(UsageError, match="2D"):
        audit(run.folder, "phantom:shapes-3d", tmp_path)
    with pytest.raises(UsageError, match="no such column"):
        audit(run, DATA, tmp_path, by=("age",), bench=0, options=QUICK)
    with pytest.raises(UsageError, match="split"):
        audit(run, DATA, tmp_path, split="holdout")
    with pytest.raises(UsageError, match="ood-knn"):
        audit(run, DATA, tmp_path, options={"ood": {"k": "2"}})
    with pytest.raises(UsageError, match="has no option"):
        audit(run, DATA, tmp_path, options={"chexmask": {"atlas": "2"}}, bench=0)
    data = open_dataset("phantom:shapes-2d?seed=1&cases=12")
    with pytest.raises(DataError, match="no case to audit"):
        audit(run.folder, data.only(data.where("test")), tmp_path, split="val")


def test_damage_is_done_on_the_grid_the_model_sees_and_keeps_the_dtype():
    case = api.reader(open_dataset(DATA))("test-000")
    image = case.images["image"]
    case = case.with_(images={"image": Image(np.round(image.data).astype(np.int16), Geometry.of((64, 64), 0.5))})
    small = as_seen(case, Plan(dims=2, grid=LongestSide(32)))
    assert small.geometry.shape == (32, 32) and small.images["image"].data.dtype == np.int16
    assert small.labels["reference"].data.shape == (32, 32)
    assert as_seen(case, Plan(dims=2, grid=LongestSide(128))) is case
    one, five = (damage(small, "noise", s, [0, 0]) for s in (1, 5))
    assert one.images["image"].data.dtype == np.int16
    assert np.std(five.images["image"].data - small.images["image"].data) > np.std(one.images["image"].data - small.images["image"].data)


def test_a_page_without_any_row_says_so(tmp_path):
    page = write_audit(tmp_path, title="x < y", rows=[], notes=["ood-knn was left out: <why>"], facts={"command": "vesalius audit"})
    text = page.read_text()
    assert "Nothing could be measured" in text and "x &lt; y" in text and "&lt;why&gt;" in text and "<figure>" not in text
