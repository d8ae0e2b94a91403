import csv
import json

import numpy as np
import pytest
from scipy import stats

from vesalius.core.errors import DataError, UsageError
from vesalius.core.prediction import Score
from vesalius.report import tables


def rows(methods=("unet", "sdl"), cases=12, structures=("kidney",), seed=0, gain=0.03):
    """A plausible comparison: paired cases, a better second method."""
    rng, out = np.random.default_rng(seed), []
    for s in structures:
        easy = rng.uniform(0.7, 0.95, cases)
        for k, method in enumerate(methods):
            dsc = np.clip(easy + gain * k + rng.normal(0, 0.01, cases), 0, 1)
            for n in range(cases):
                common = {"case": f"case{n:03d}", "structure": s, "patient": f"p{n // 2:03d}"}
                hd95 = None if n == 3 and k == 0 else float(20 * (1 - dsc[n]) + 1)
                for score in (
                    Score(metric="dsc", value=float(dsc[n]), extra={"better": "higher", "unit": ""}, **common),
                    Score(metric="hd95", value=hd95, extra={"better": "lower", "unit": "mm"}, **common),
                ):
                    out.append({**score.to_json(), "method": method})
    return out


def _pick(summary, **facts):
    return next(r for r in summary if all(r[k] == v for k, v in facts.items()))


def test_summary_by_hand():
    data = rows()
    summary = tables.summarise(data)
    best = _pick(summary, method="sdl", metric="dsc")
    a, b = ([r["value"] for r in data if r["method"] == m and r["metric"] == "dsc"] for m in ("sdl", "unet"))
    assert best["mean"] == pytest.approx(np.mean(a)) and best["n"] == 6 and best["best"]
    d = (np.array(a) - b).reshape(6, 2).mean(axis=1)
    assert best["difference"] == pytest.approx(d.mean()) and best["p"] == pytest.approx(stats.wilcoxon(d).pvalue)
    base = _pick(summary, method="unet", metric="hd95")
    assert base["undefined"] == 1 and base["p"] is None and not base["best"]
    assert _pick(summary, method="sdl", metric="hd95")["excluded"] == 1


def test_structures_share_one_holm_family_and_an_overall_row():
    summary = tables.summarise(rows(structures=("kidney", "tumour")))
    tests = [r for r in summary if r["metric"] == "dsc" and r["p"] is not None]
    assert [r["structure"] for r in tests] == [tables.ALL, "kidney", "tumour"]
    assert all(r["p_holm"] >= r["p"] for r in tests) and tests[0]["p_holm"] == pytest.approx(3 * min(r["p"] for r in tests))


def test_seeds_are_averaged_by_case_and_do_not_add_patients():
    data = [{**r, "seed": s} for r in rows() for s in (0, 1)]
    assert tables.summarise(data) == tables.summarise(rows())


def test_costs_have_no_structure_and_are_better_low():
    data = [{"case": c, "metric": "seconds", "value": v, "kind": "cost", "method": m} for m, v in (("a", 1.0), ("b", 2.0)) for c in "xyz"]
    assert [r["best"] for r in tables.summarise(data)] == [True, False]


def test_a_method_without_a_case_is_undefined_there():
    data = [r for r in rows() if not (r["method"] == "sdl" and r["case"] == "case000")]
    assert _pick(tables.summarise(data), method="sdl", metric="dsc")["undefined"] == 1


def test_bad_rows_are_refused():
    with pytest.raises(DataError, match="twice"):
        tables.summarise(rows() + rows()[:1])
    with pytest.raises(DataError, match="finite"):
        tables.summarise([{**rows()[0], "value": float("nan")}])
    with pytest.raises(DataError, match="method"):
        tables.summarise([{"case": "a", "metric": "dsc", "value": 1}])
    with pytest.raises(UsageError, match="unet"):
        tables.summarise(rows(), baseline="unt")
    assert tables.summarise([]) == []


def test_files(tmp_path):
    data = rows()
    data[0]["note"] = "=cmd()"
    summary = tables.write_tables(tmp_path, data, baseline="sdl")
    assert json.loads((tmp_path / "summary.json").read_text())["rows"] == summary
    with open(tmp_path / "scores.csv") as f:
        back = list(csv.DictReader(f))
    assert len(back) == len(data) and back[0]["note"] == "'=cmd()" and float(back[0]["value"]) == data[0]["value"]
    assert {r["value"] for r in back if r["case"] == "case003" and r["method"] == "unet" and r["metric"] == "hd95"} == {""}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scores.csv", "summary.csv", "summary.json"]


def test_shown_as_text():
    from rich.console import Console

    summary = tables.summarise(rows())
    markdown = tables.to_markdown(summary)
    assert markdown.count("\n") == len(summary) + 2 and "HD95 (mm)" in markdown and "baseline" in markdown
    console = Console(record=True, width=200, file=open("/dev/null", "w"))
    console.print(tables.to_terminal(summary))
    assert "HD95 (mm)" in console.export_text()
    assert (tables.number(-0.5), tables.number(None), tables.p_text(1e-5)) == ("−0.500", "–", "< 0.001")
