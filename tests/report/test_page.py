import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from vesalius.core.errors import DataError, GeometryError
from vesalius.report import figures
from vesalius.report.page import CasePicture, headline, write_report
from vesalius.report.tables import Scores, summarise

from .test_tables import rows

FACTS = {"seconds": 61.0, "peak memory GiB": 1.4, "parameters": 1_200_000, "iterations": 500, "deviations": ["asks for 2.5D patches"]}


def pictures(cases=3, methods=("unet", "sdl"), shape=(48, 40, 12)):
    rng, out = np.random.default_rng(0), []
    at = np.indices(shape, float)
    for n in range(cases):

        def ball(r, shift=0.0):
            centre = [s / 2 + shift for s in shape]
            return sum(((a - c) / (s * r)) ** 2 for a, c, s in zip(at, centre, shape, strict=True)) < 1

        r = 0.2 + 0.02 * n
        image = (60 * ball(0.42) + 50 * ball(r) + rng.normal(0, 9, shape)).astype(np.float32)[None]
        answers = {m: ball(r * 1.1, 0.8 - k * 0.6).astype(np.int16) for k, m in enumerate(methods)}
        spacing = (1.0, 1.5, 3.0)[: len(shape)]
        out.append(CasePicture(f"case{n:03d}", image, spacing, ball(r).astype(np.int16), answers, ("background", "kidney")))
    return out


def write(folder, data, **facts):
    methods = {m: FACTS for m in dict.fromkeys(r["method"] for r in data)}
    data_facts, plan = {"name": "phantom", "licence": "CC0"}, {"command": "vesalius compare"}
    return write_report(folder, **{"title": "A to B", "methods": methods, "manifest": data_facts, "plan": plan, "rows": data, **facts})


class _Outside(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href") and not v.startswith("data:")]


def test_the_page_is_self_contained_and_complete(tmp_path):
    cost = {"metric": "seconds", "value": 1.0, "kind": "cost"}
    data = rows() + [{"case": f"case{n:03d}", "method": m, **cost} for n in range(12) for m in ("unet", "sdl")]
    data = [{**r, "reference_ml": 3.0, "predicted_ml": 3.1} if r["metric"] == "dsc" else r for r in data]
    path = write(tmp_path, data, cases=pictures(), note="A phantom.")
    page, parser = path.read_text(), _Outside()
    parser.feed(page)
    assert parser.links == [] and parser.tags.count("img") == 1 + 3 + 3 + 1  # stability; plots; pictures; costs
    for words in (
        "Results",
        "Ranking",
        "Worst case 2",
        "Bland-Altman",
        "asks for 2.5D",
        "Undefined",
        "CC0",
        "A phantom.",
        "false negative",
    ):
        assert words in page
    tables = ["pairs.csv", "report.html", "scores.csv", "scores.json", "summary.csv", "summary.json"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".parquet") == tables


def test_names_are_escaped(tmp_path):
    bad = "<script>alert(1)</script>$x_1$"
    data = [{**r, "method": bad if r["method"] == "sdl" else "unet", "case": r["case"] + "<b>"} for r in rows(structures=("<i>k",))]
    page = write(tmp_path, data, title=bad, note=bad, manifest={bad: bad}, methods={bad: {"notes": [bad]}}).read_text()
    parser = _Outside()
    parser.feed(page)
    assert parser.tags.count("script") == 1 and "b" not in parser.tags and "i" not in parser.tags


@pytest.mark.parametrize("methods", [("unet",), ("a", "b", "c", "d", "e")])
def test_one_and_five_methods(tmp_path, methods):
    shots = pictures(1, methods, shape=(30, 40))
    page = write(tmp_path, rows(methods, structures=("kidney", "tumour")), cases=shots).read_text()
    assert ("Ranking" in page) == (len(methods) > 1)


def test_five_methods_and_200_cases_in_ten_seconds(tmp_path):
    start = time.process_time()
    path = write(tmp_path, rows(("a", "b", "c", "d", "e"), 200, ("kidney", "tumour")), cases=pictures(5, tuple("abcde")))
    assert time.process_time() - start < 10 and path.stat().st_size < 15e6


def test_problems_subgroups_pooled_values_and_margins_are_shown(tmp_path):
    wrong = {"what": "other grid", "case": "<i>case_7</i>", "level": "error", "where": "a.nii.gz", "details": "found 3 x 3"}
    pooled = [{"metric": "auroc", "label": "AUROC", "method": "unet", "value": 0.912, "cases": 12, "undefined": 1}]
    site = {"site": {f"case{n:03d}": "AB"[n % 2] for n in range(12)}}
    page = write(tmp_path, rows(), problems=[wrong], pooled=pooled, columns=site, margin={"dsc": 0.01}).read_text()
    for words in (
        "Problems with the predictions",
        "other grid",
        "&lt;i&gt;case_7",
        "AUROC",
        "0.912",
        "Results by subgroup",
        "not inferior",
    ):
        assert words in page, words
    assert page.index("Problems with the predictions") < page.index("Results</h2>")


def test_pictures_are_asked_for_only_when_they_are_shown(tmp_path):
    class Lazy(dict):
        asked = []

        def get(self, case, default=None):
            self.asked.append(case)
            return super().get(case, default)

    lazy = Lazy({p.case: p for p in pictures(12)})
    page = write(tmp_path, rows(), cases=lazy).read_text()
    assert page.count("Worst case") >= 3 and "Median case" in page and "Best case" in page and len(set(lazy.asked)) <= 6


def test_error_maps_by_hand():
    reference = np.array([[0, 1, 1, 2, -1]])
    given = np.array([[1, 0, 1, 1, 1]])
    found = [tuple(v) for v in figures._error_map(given, reference)[0]]
    colours = [(*to_rgb(c), 0.85) for c in (figures.FALSE_POSITIVE, figures.FALSE_NEGATIVE, figures.OTHER_CLASS)]
    assert found == [colours[0], colours[1], (0, 0, 0, 0), colours[2], (0, 0, 0, 0)]


def test_only_pooled_metrics(tmp_path):
    data = [{"case": f"c{n}", "method": "unet", "metric": "auroc", "value": None, "evidence": {"p": n}} for n in range(3)]
    page = write(tmp_path, data, pooled=[{"metric": "auroc", "method": "unet", "value": 0.75, "cases": 3}]).read_text()
    assert "0.750" in page and "No metric was computed case by case" in page


def _headline(data):
    scores = Scores(data)
    return headline(summarise(scores), scores, "dsc", "sdl" if "sdl" in scores.methods else None)


def test_the_headline_says_what_was_shown():
    assert _headline(rows(cases=40)).startswith("sdl has a higher DSC (kidney) than unet: ")
    assert "p < 0.001 after Holm correction, 20 patients." in _headline(rows(cases=40))
    assert _headline(rows(gain=0.0)).startswith("No difference in DSC (kidney) between sdl and unet was shown")
    assert _headline(rows(("unet",))).startswith("unet: mean DSC (kidney) 0.8")


def test_all_undefined_is_reported_not_crashed(tmp_path):
    data = [{**r, "value": None, "note": "empty prediction"} for r in rows()]
    assert "empty prediction" in write(tmp_path, data, cases=pictures()).read_text()


def test_bad_input(tmp_path):
    with pytest.raises(DataError, match="no scores"):
        write(tmp_path, [])
    with pytest.raises(GeometryError):
        CasePicture("c", np.zeros((1, 4, 4)), (1.0, 1.0), np.zeros((4, 5), int))


def test_the_report_needs_no_torch():
    code = "import sys, vesalius.report.page; print([m for m in ('torch', 'matplotlib', 'scipy', 'vesalius.engine') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_one_method_has_no_baseline_columns(tmp_path):
    page = write(tmp_path, rows(("unet",))).read_text()
    assert "p (Holm)" not in page and "baseline" not in page and "Undefined" in page
