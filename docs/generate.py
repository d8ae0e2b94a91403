"""Generated pages and tables, so that no number in a document is typed: ``make docs``.

- docs/methods/<slug>.md and docs/methods/index.md from the cards, the home files' docstrings, the options and proofs/results/<slug>.json
- the tables of README.md, between markers, from proofs/results and bench/results
- docs/arenas/<name>.md from bench/arenas/<name>.json
- the tables of docs/annotate.md, from bench/results/loop.json and promptable.json
- docs/img/phantoms.png, docs/img/prompts.png from promptable.json, and docs/img/demo.png from the runs of ``make demo``

``python docs/generate.py --check`` exits 1 when a page is not what it would be (a test runs it).
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path

from vesalius import catalog
from vesalius.engine.study import find
from vesalius.metrics.table import metric

ROOT = Path(__file__).resolve().parents[1]
LABELS = {"dsc": "DSC", "hd95": "HD95 (mm)", "assd": "ASSD (mm)", "iou": "IoU", "nsd": "NSD"}


def main() -> None:
    pages = {ROOT / "docs" / "methods" / f"{slug}.md": page(slug) for slug in catalog.cards()}
    pages[ROOT / "docs" / "methods" / "index.md"] = index()
    arenas = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "bench" / "arenas").glob("*.json"))}
    pages |= {ROOT / "docs" / "arenas" / f"{name}.md": arena(found) for name, found in arenas.items()}
    readme = ROOT / "README.md"
    pages[readme] = between(readme.read_text(), "proof", proof_table("sdl-seg"))
    pages[readme] = between(pages[readme], "bench", bench_table())
    pages[readme] = between(pages[readme], "arenas", arena_table(arenas))
    annotate = ROOT / "docs" / "annotate.md"
    pages[annotate] = between(annotate.read_text(), "loop", loop_table())
    pages[annotate] = between(pages[annotate], "prompts", prompts_text())
    if "--check" in sys.argv:
        stale = [str(p.relative_to(ROOT)) for p, text in pages.items() if not p.exists() or p.read_text() != text]
        if stale:
            sys.exit(f"not up to date ('make docs' writes them): {', '.join(stale)}")
        return
    for path, text in pages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    pictures()


def page(slug: str) -> str:
    """One method."""
    card = catalog.get(slug)
    lines = [f"# {card.title} (`{slug}`)", "", f"{card.paper}. <{card.url}>", "", documentation(card.homes[0]), ""]
    lines += ["## Facts", "", "| | |", "|---|---|"]
    facts = {
        "family": card.family,
        "task": card.task,
        "dimensions": " or ".join(f"{d}D" for d in card.dims),
        "supervision": card.supervision,
        "takes": ", ".join(card.takes),
        "gives": ", ".join(card.gives),
        "claim": card.claim,
        "compared with": card.baseline,
        "evidence here": card.evidence,
        "deviations from the common plan": "; ".join(card.deviations),
        "weights": card.weights,
        "home": ", ".join(f"`{h}`" for h in card.homes),
    }
    lines += [f"| {k} | {v} |" for k, v in facts.items() if v]
    lines += ["", "## Use", "", "```", f"vesalius train {slug} --data DATA --out RUN", "vesalius predict RUN INPUT... --out DIR", "```", ""]
    lines += ["## Options", "", "| `--set` | default |", "|---|---|"]
    lines += [f"| `{k}` | `{v['default']}` |" for k, v in catalog.options(slug).items()]
    lines += ["", "## Measured", "", proof_table(slug)]
    return "\n".join(lines).rstrip() + "\n"


def documentation(home: str) -> str:
    """The docstring of a home file."""
    path = ROOT / "src" / Path(*home.partition(":")[0].split(".")).with_suffix(".py")
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def index() -> str:
    rows = ["# Methods", "", "| method | family | dims | supervision | evidence | title |", "|---|---|---|---|---|---|"]
    rows += [
        f"| [{c.slug}]({c.slug}.md) | {c.family} | {', '.join(map(str, c.dims))} | {c.supervision} | {c.evidence} | {c.title} |"
        for c in catalog.cards().values()
    ]
    return "\n".join(rows) + "\n"


def proof_table(slug: str) -> str:
    """Means and paired differences of ``vesalius prove <slug>``."""
    path = ROOT / "proofs" / "results" / f"{slug}.json"
    if not path.exists():
        return "Not proven yet: `vesalius prove " + slug + "` has no result file."
    record = json.loads(path.read_text())
    budget = f"{record['iterations'] or 'the planned'} iterations"
    runs = f"{record['seeds']} seed{'s' * (record['seeds'] > 1)}"
    out = [f"Claim tested: {record['claim']}. `{record['command']}`, {runs}, {budget}, {record['date']}.", ""]
    if record["study"] != hashlib.sha256(find(slug, ROOT).read_bytes()).hexdigest():
        out += ["The study was changed since and not run again: what follows is of the earlier one.", ""]
    for where, result in record["results"].items():
        if "arms" not in result:
            out += [f"{where}: {result['skipped']}.", ""]
            continue
        own = {k: result.get(k, record[k]) for k in ("iterations", "date")}
        if own != {k: record[k] for k in own}:
            out += [f"{where}: {own['iterations']} iterations, {own['date']}.", ""]
        metrics = list(next(iter(result["arms"].values())))
        out += [f"| {where} | " + " | ".join(f"{LABELS.get(m, m)} | difference [95 % CI]" for m in metrics) + " |"]
        out += ["|---" * (1 + 2 * len(metrics)) + "|"]
        for arm, entry in result["arms"].items():
            cells = (f"{number(entry[m]['mean'])} | {difference(entry[m], arm == record['baseline'])}" for m in metrics)
            out.append(f"| {arm} | " + " | ".join(cells) + " |")
        out.append("")
        for e in result["expected"]:
            d = e["difference"]
            shown = interval(d["mean"], d["low"], d["high"]) if d else "undefined"
            verdict = "held" if e["held"] else "did not hold"
            than = f"{e['direction']} than"
            if e.get("margin"):
                than = f"at most {e['margin']:g} {'lower' if e['direction'] == 'higher' else 'higher'} than"
            what = f"{LABELS.get(e['metric'], e['metric'])} of {e['arm']} {than} of {e['against']}"
            out.append(f"- {what}: **{verdict}**, {shown}")
        out.append("")
    return "\n".join(out).rstrip()


def difference(entry: dict, baseline: bool) -> str:
    d = entry.get("difference")
    if d:
        return interval(d["mean"], d["low"], d["high"])
    return "baseline" if baseline and entry["mean"] is not None else "-"


def interval(difference: float, low: float | None, high: float | None) -> str:
    return f"{number(difference, True)} [{number(low, True)}, {number(high, True)}]"


def number(value: float | None, signed: bool = False) -> str:
    return "-" if value is None else f"{value:{'+' if signed else ''}.3f}"


def bench_table() -> str:
    """What bench/README.md shows, shorter."""
    rows = ["| what | peer | target | measured |", "|---|---|---|---|"]
    for path in sorted((ROOT / "bench" / "results").glob("*.json")):
        found = json.loads(path.read_text())
        for r in found if isinstance(found, list) else [found]:
            rows.append(f"| {r['what']} | {r['peer']} | {r['target']} | {r['ratio']:.2f}{' (not met)' if r.get('met') is False else ''} |")
    return "\n".join(rows)


def arena_table(arenas: dict[str, dict]) -> str:
    """Of each arena its first three, beside the baseline."""
    if not arenas:
        return "Not measured yet: `bench/arena.py` has no result file."
    rows = ["| on | try first | DSC, beside the baseline's |", "|---|---|---|"]
    for name, found in arenas.items():
        mean = lambda row, metric=found["metrics"][0]: number(row["scores"][metric]["mean"])
        base, first = found["rows"][0], sorted(found["rows"], key=lambda r: r["place"])[:3]
        best = ", ".join(f"`{r['method']}`" for r in first)
        scores = f"{', '.join(map(mean, first))}; `{base['method']}` {mean(base)}"
        rows.append(f"| [{found['title']}](docs/arenas/{name}.md) | {best} | {scores} |")
    return "\n".join(rows)


def arena(found: dict) -> str:
    """Methods by place, with intervals, what is sure against the baseline, and costs."""
    names = {**LABELS, "cldice": "clDice", "betti0_error": "Betti-0 error"}
    baseline, metrics, rows = found["rows"][0]["method"], found["metrics"], sorted(found["rows"], key=lambda r: r["place"])
    lines = [f"# {found['title']}", ""]
    spacing = found.get("plan", {}).get("grid", {}).get("spacing")
    voxels = f", voxels of {' x '.join(f'{mm:g}' for mm in spacing)} mm" if spacing else ""
    lines += [
        f"`{found['command']}`: {found['minutes']:g} minute{'s' * (found['minutes'] != 1)} a training on {found['machine']}, "
        f"{found['seeds']} seeds, one plan (patch {' x '.join(map(str, found['patch']))}{voxels}), {found['tests']} test patients; "
        f"{found['date']}. Means with 95 % intervals (bootstrap "
        f"over patients); a difference to `{baseline}` whose interval leaves out 0 is in bold. Place: by mean rank of {names[metrics[0]]}; "
        f"kept: share of bootstrap samples in which it keeps that place (Kendall's tau of whole rankings {number(found['tau'])}). GFLOPs: "
        "predicting one patch.",
        "",
    ]
    head = ["place", "kept", "method"]
    for m in metrics:
        head += [names[m], f"difference to {baseline}"]
    head += ["parameters", "GFLOPs", "steps", "s a case", "memory GiB"]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    old = {r["method"] for r in rows if r["code"] != catalog.digest(r["method"])}
    for r in rows:
        star = " \\*" if r["method"] in old else ""
        cells = [str(r["place"]), f"{100 * r['stability']:.0f} %", f"[{r['method']}](../methods/{r['method']}.md){star}"]
        for m in metrics:
            v = r["scores"][m]
            cells += [f"{number(v['mean'])} [{number(v['low'])}, {number(v['high'])}]", _sure(v) if r["method"] != baseline else "baseline"]
        cells += [f"{r['parameters'] / 1e6:.2f} M", f"{r['gflops']:.2f}", str(r["steps"])]
        cells += [f"{r['seconds_a_case']:.2f}", f"{r['memory_gib']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    at = next(r["place"] for r in rows if r["method"] == baseline)
    behind = [f"`{r['method']}`" for r in rows if r["place"] > at]
    first = ", ".join(f"`{r['method']}`" for r in rows[:3])
    lines += ["", "\\* Its code was changed since, and not measured again."] if old else []
    lines += ["", f"Try first: {first}."]
    lines += [f"Not better than the plain `{baseline}` in {names[metrics[0]]} here, at this length: {', '.join(behind)}."] if behind else []
    for m in metrics[1:]:
        ahead = [f"`{r['method']}`" for r in rows if r["method"] != baseline and _ahead(r["scores"][m], metric(m).better)]
        lines += [f"Surely better in {names[m]}: {', '.join(ahead)}."] if ahead else []
    return "\n".join(lines) + "\n"


def _ahead(v: dict, better: str) -> bool:
    """Whether the whole interval of a difference to the baseline lies on the better side of 0."""
    low, high = v["difference_low"], v["difference_high"]
    return low is not None and {"higher": low > 0, "lower": high < 0}.get(better, False)


def _sure(v: dict) -> str:
    """A paired difference with its interval, bold where that leaves out 0."""
    if v["difference"] is None:
        return "-"
    text = interval(v["difference"], v["difference_low"], v["difference_high"])
    return f"**{text}**" if v["difference_low"] is not None and v["difference_low"] * v["difference_high"] > 0 else text


def prompts_text() -> str:
    """What ``bench/promptable.py`` measured of boxes and clicks, in words and as a figure."""
    found = prompts_results()
    if not found:
        return "Not measured yet: `bench/promptable.py` has no result file."
    lines = ["![DSC against how far the sides of a box are off, before and after two clicks](img/prompts.png)", ""]
    return "\n".join([*lines, *(f"- {r['what']}; {r['peer']}." for r in found)])


def prompts_curves() -> dict:
    """{method: {set: {percent that a box's sides are off at most: [DSC after 0, 1, 2 clicks]}}}."""
    return next((r["details"]["dsc_by_method_set_jitter_clicks"] for r in prompts_results()), {})


def prompts_results() -> list[dict]:
    """The results that are accuracies."""
    path = ROOT / "bench" / "results" / "promptable.json"
    found = json.loads(path.read_text()) if path.exists() else []
    return [r for r in found if "DSC" in r["what"]]


def prompts_picture(curves: dict) -> bytes:
    """A panel a set: DSC against the error of a box, of each method, of the box alone and after the last click."""
    from io import BytesIO

    from matplotlib.figure import Figure

    sets = list(next(iter(curves.values())))
    figure = Figure(figsize=(3.1 * len(sets), 3.0), layout="constrained")
    axes = figure.subplots(1, len(sets), sharey=True)
    for axis, name in zip(axes, sets, strict=True):
        for (method, by_set), colour in zip(curves.items(), ("tab:blue", "tab:orange"), strict=True):
            off = [int(j) for j in by_set[name]]
            for clicks, line in ((0, "-"), (-1, "--")):
                told = f"{method}, box" + (" and 2 clicks" if clicks else "")
                axis.plot(off, [by_set[name][str(j)][clicks] for j in off], line, color=colour, marker="o", markersize=3, label=told)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("sides of the box off by up to, %")
        axis.set_xticks(off)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("DSC")
    axes[0].legend(fontsize=7, loc="lower left")
    out = BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def loop_table() -> str:
    """Round by round what ``bench/loop.py`` measured."""
    path = ROOT / "bench" / "results" / "loop.json"
    if not path.exists():
        return "Not measured yet: `bench/loop.py` has no result file."
    (result,) = json.loads(path.read_text())
    head = ("pictures", "proposals' DSC", "boxes drawn", "DSC of the masks", "test DSC after training")
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in result["details"]["rounds"]:
        rows.append(f"| {r['cases']} more | {number(r['proposals'])} | {r['boxes']} | {number(r['masks'])} | {number(r['test'])} |")
    rows.append(f"| all, the references | - | - | 1 | {number(result['details']['references'])} |")
    budget = f"{result['details']['method']}, {result['details']['iterations']} iterations a round"
    return "\n".join([*rows, "", f"`{result['command']}`, {budget}, {result['date']}."])


def between(text: str, name: str, content: str) -> str:
    """``text`` with what stands between the markers replaced."""
    begin, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{content}\n{end}{tail}"


def pictures() -> None:
    from vesalius.datasets.phantoms.gallery import gallery

    gallery(ROOT / "docs" / "img" / "phantoms.png")
    if curves := prompts_curves():
        (ROOT / "docs" / "img" / "prompts.png").write_bytes(prompts_picture(curves))
    demo = ROOT / "runs" / "demo"
    if (demo / "sdl-seg" / "seed_0" / "predictions").is_dir():
        (ROOT / "docs" / "img" / "demo.png").write_bytes(demo_picture(demo))


def demo_picture(demo: Path) -> bytes:
    """The demo's median case of sdl-seg: reference and both predictions."""
    import csv

    import numpy as np

    from vesalius.datasets import open_dataset, read_case
    from vesalius.io import read_labels
    from vesalius.report.figures import CasePicture, contours

    manifest = open_dataset("phantom:tumour-bed")
    with (demo / "scores.csv").open(newline="") as f:
        rows = [r for r in csv.DictReader(f) if r["metric"] == "dsc" and r["value"]]
    mine = sorted((float(r["value"]), r["case"]) for r in rows if r["method"] == "sdl-seg")
    chosen = mine[len(mine) // 2][1]
    case = read_case(manifest, chosen)
    grid = case.geometry.canonical()
    label = next(iter(case.labels.values())).on(grid)
    predictions = {}
    for m in ("unet", "sdl-seg"):
        path = demo / m / "seed_0" / "predictions" / f"{chosen}.nii.gz"
        predictions[m] = np.asarray(read_labels(path, values=manifest.values, names=manifest.names).on(grid).data)
    image = np.asarray(next(iter(case.images.values())).on(grid, "nearest").data)
    picture = CasePicture(chosen, image, grid.spacing, np.asarray(label.data), predictions, manifest.names)
    captions = {r["method"]: f"{r['method']}, DSC {float(r['value']):.3f}" for r in rows if r["case"] == chosen}
    return contours(picture, list(predictions), captions)


if __name__ == "__main__":
    main()
