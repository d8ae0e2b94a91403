import csv
import json
from importlib.util import find_spec

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


def test_every_test_of_a_quality_metric_is_in_one_holm_family():
    found = tables.pairs(rows(("a", "b", "c"), structures=("kidney", "tumour")))
    by = [(t["metric"], t["structure"], t["a"], t["b"]) for t in found]
    everyone = [("b", "a"), ("c", "a"), ("c", "b")]
    assert by == [
        (m, s, *p) for m in ("dsc", "hd95") for s in (tables.ALL, "kidney", "tumour") for p in everyone if s == tables.ALL or p[1] == "a"
    ]
    smallest = min(t["p"] for t in found)
    assert [t["p_holm"] for t in found if t["p"] == smallest][0] == pytest.approx(min(1.0, len(found) * smallest))
    assert all(t["p_holm"] >= t["p"] and t["p_permutation_holm"] >= t["p_permutation"] for t in found)
    summary = tables.summarise(rows(("a", "b", "c"), structures=("kidney", "tumour")))
    assert _pick(summary, metric="dsc", structure="kidney", method="c")["p_holm"] == found[by.index(("dsc", "kidney", "c", "a"))]["p_holm"]


def test_costs_do_not_make_quality_tests_harder():
    data = rows()
    cost = [
        {"case": r["case"], "metric": "seconds", "value": 1.0, "kind": "cost", "method": r["method"]} for r in data if r["metric"] == "dsc"
    ]
    with_costs, without = (_pick(tables.summarise(d), metric="dsc", method="sdl")["p_holm"] for d in (data + cost, data))
    assert with_costs == without


def test_a_margin_says_who_is_not_inferior():
    found = tables.pairs(rows(), margin={"dsc": 0.01})
    assert [t.get("noninferior") for t in found] == [True, None] and tables.pairs(rows(gain=-0.05), margin={"dsc": 0.01})[0][
        "noninferior"
    ] is False
    with pytest.raises(UsageError, match="dcs"):
        tables.pairs(rows(), margin={"dcs": 0.01})


# subgroups
def test_subgroups_by_a_column_by_hand():
    data = rows()
    site = {f"case{n:03d}": "AB"[n < 6] for n in range(12)}
    found = tables.subgroups(data, {"site": site})
    mine = _pick(found, level="A", method="unet")
    values = [r["value"] for r in data if r["metric"] == "dsc" and r["method"] == "unet" and site[r["case"]] == "A"]
    assert mine["mean"] == pytest.approx(np.mean(values)) and mine["patients"] == 3 and {r["level"] for r in found} == {"A", "B"}


def test_numbers_are_cut_into_thirds_and_names_left_out():
    cases = [f"case{n:03d}" for n in range(12)]
    columns = {
        "age": {c: n for n, c in enumerate(cases)},
        "note": {c: f"text {c}" for c in cases},
        "one": dict.fromkeys(cases, 1),
    }
    found = tables.subgroups(rows(), columns | {"few": {cases[0]: "yes"}})
    assert [r["level"] for r in found if r["subgroup"] == "age" and r["method"] == "unet"] == list(tables.THIRDS)
    assert {r["subgroup"] for r in found} == {"age", "few"}  # neither a text a case nor one level make a subgroup
    assert [r["level"] for r in found if r["subgroup"] == "few" and r["method"] == "unet"] == ["yes", "unknown"]


def test_the_size_of_the_structure_is_cut_within_each_structure():
    data = rows(structures=("kidney", "tumour"))
    for r in data:
        r["reference_ml"] = float(r["case"][4:]) * (100 if r["structure"] == "kidney" else 1)
        r["predicted_ml"] = 1.0
    found = [r for r in tables.subgroups(data) if r["method"] == "unet"]
    assert [r["level"] for r in found] == [*tables.THIRDS, "absent"] and tables.Scores(data).volume_unit == "ml"
    biggest = [r["value"] for r in data if r["metric"] == "dsc" and r["method"] == "unet" and int(r["case"][4:]) >= 8]
    assert _pick(found, level="largest third")["mean"] == pytest.approx(np.mean(biggest))


def test_rows_that_only_carry_evidence_are_no_values():
    data = rows() + [{"case": "case000", "method": "unet", "metric": "auroc", "value": None, "evidence": {"p": 0.1}}]
    data += [{"case": "case001", "method": "unet", "metric": "auroc", "value": None, "note": "no prediction"}]
    scores = tables.Scores(data)
    assert scores.metrics == ["dsc", "hd95"] and scores.undefined == 1


def test_a_row_without_patient_does_not_change_the_patient():
    data = [*rows(), {"case": "case000", "metric": "seconds", "value": 1.0, "kind": "cost", "method": "unet"}]
    assert tables.Scores(data).patient["case000"] == "p000"


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
    found = tables.write_tables(tmp_path, data, baseline="sdl", problems=[{"what": "extra prediction"}])
    summary, record = found.summary, json.loads((tmp_path / "summary.json").read_text())
    assert record["rows"] == summary and record["pairs"] == found.pairs and record["problems"] == [{"what": "extra prediction"}]
    assert [r["scheme"] for r in record["ranking"]] == ["mean rank", "mean", "significance"]
    assert sorted(record["files"]) == sorted(p.name for p in tmp_path.iterdir())
    assert ("scores.parquet" in record["files"]) == (find_spec("pyarrow") is not None)
    assert json.loads((tmp_path / "scores.json").read_text()) == data
    with open(tmp_path / "scores.csv") as f:
        back = list(csv.DictReader(f))
    assert len(back) == len(data) and back[0]["note"] == "'=cmd()" and float(back[0]["value"]) == data[0]["value"]
    assert {r["value"] for r in back if r["case"] == "case003" and r["method"] == "unet" and r["metric"] == "hd95"} == {""}


def test_shown_as_text():
    record = next(r for r in tables.summarise(rows()) if r["metric"] == "hd95")
    shown = tables.cells(record)
    assert len(shown) == len(tables.HEADER) and shown[0] == "HD95 (mm)" and "[" in shown[3]
    assert (tables.number(-0.5), tables.number(None), tables.p_text(1e-5)) == ("−0.500", "–", "< 0.001")
