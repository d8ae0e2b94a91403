import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest

from vesalius.core.errors import DataError, GeometryError
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
    path = write(tmp_path, data, cases=pictures(), note="A phantom.")
    page, parser = path.read_text(), _Outside()
    parser.feed(page)
    assert parser.links == [] and parser.tags.count("img") == 3 + 3 + 1
    for words in ("Results", "Ranking", "Worst case", "Median case", "Bland-Altman", "asks for 2.5D", "Undefined", "CC0", "A phantom."):
        assert words in page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "scores.csv", "summary.csv", "summary.json"]


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
    path = write(tmp_path, rows(("a", "b", "c", "d", "e"), 200, ("kidney", "tumour")))
    assert time.process_time() - start < 10 and path.stat().st_size < 15e6


def _headline(data):
    scores = Scores(data)
    return headline(summarise(scores), scores, "dsc", "sdl" if "sdl" in scores.methods else None)


def test_the_headline_says_what_was_shown():
    assert _headline(rows(cases=40)).startswith("sdl has a higher DSC (kidney) than unet: ")
    assert "p < 0.001, 20 patients." in _headline(rows(cases=40))
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
