"""The page of an audit: one self-contained HTML file, with the rows it was made from beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .figures import PALETTE, STYLE, _figure, _grid, _png
from .page import PAGE, SCRIPT, _facts_section, _section, _table, _text
from .page import STYLE as CSS
from .page import _figure as _picture
from .tables import Row, number, p_text, to_csv, write_whole

__all__ = ["verdict", "write_audit"]

RED, BLUE, GREY = PALETTE[1], PALETTE[0], "#999999"
MOST = 60  # cases in the table; the rest is in audit.csv
LOW = 0.7  # predicted Dice of the rule of thumb (CheXmask)


def write_audit(
    folder: str | Path,
    *,
    title: str,
    rows: Sequence[Row],
    known: Sequence[float] = (),
    reliability: Mapping[str, Sequence[float]] | None = None,
    notes: Sequence[str] = (),
    facts: Mapping[str, Any],
) -> Path:
    """Write audit.html and audit.csv; returns the page.

    ``rows``: ``Score.to_json()`` of an audit: per case 'ood' (with threshold, flagged), 'rca_max', 'rca_mean', 'rca_flag', 'dsc', 'brier';
    of the cohort 'gap:<metric>' and 'ece'; of damaged images '<what>:<damage>' with the severity as step. ``known``: OOD distances of
    known cases; ``reliability``: count, confidence and accuracy by bin; ``notes``: what could not be done; ``facts``: to print, of which
    'command' reproduces the page.
    """
    folder = Path(folder)
    by = _by_metric(rows)
    sections = [
        _notes_section(notes),
        _shift_section(by["ood"], known),
        _quality_section(by["rca_max"], by["dsc"]),
        _gap_section(by["gap:rca_max"], by["gap:dsc"]),
        _calibration_section(reliability, by["ece"], by["brier"]),
        _damage_section(rows),
        _case_section(by),
        _facts_section("Run, data and machine", {k: v for k, v in facts.items() if k != "command"}),
        _section("How to reproduce", f"<pre>{escape(str(facts.get('command', '')))}</pre>", _text("All numbers are in audit.csv.")),
    ]
    body = "\n".join(s for s in sections if s)
    page = PAGE.format(title=escape(title), headline=escape(verdict(rows)), note="", body=body, style=CSS, script=SCRIPT)
    write_whole(folder / "audit.html", page)
    write_whole(folder / "audit.csv", to_csv(list(rows)))
    return folder / "audit.html"


def _by_metric(rows: Sequence[Row]) -> Mapping[str, list[Row]]:
    by: dict[str, list[Row]] = defaultdict(list)
    for r in rows:
        by[r["metric"]].append(r)
    return by


def verdict(rows: Sequence[Row]) -> str:
    """A few sentences from an audit's rows; nothing that was not measured is said."""
    by, said = _by_metric(rows), []
    ood, low = by["ood"], [r for r in by["rca_flag"] if r["value"]]
    if ood:
        far = sum(bool(r["flagged"]) for r in ood)
        said.append(f"{far} of {len(ood)} cases lie farther from the training cases than the threshold of known cases.")
    if by["rca_max"]:
        median = np.median([r["value"] for r in by["rca_max"]])
        said.append(f"The predicted Dice is {median:.2f} in the median; {len(low)} of {len(by['rca_flag'])} cases are flagged as poor.")
    if by["dsc"]:
        true = [r["value"] for r in by["dsc"] if r["value"] is not None]
        said.append(
            f"The true Dice, where there are labels, is {np.median(true):.2f} in the median." if true else "No true Dice is defined."
        )
    gaps = [r for r in by["gap:rca_max"] if r["p_holm"] is not None and r["p_holm"] < 0.05]
    if by["gap:rca_max"]:
        names = ", ".join(dict.fromkeys(str(r["by"]) for r in gaps))
        said.append(f"Predicted quality differs between groups of: {names}." if gaps else "No gap between groups was shown.")
    return " ".join(said) or "Nothing could be measured; the notes say why."


# ------------------------------------------------------------------------------------------------------------------------------ sections
def _notes_section(notes: Sequence[str]) -> str:
    return _section("What could not be done", "".join(_text(n) for n in notes)) if notes else ""


def _shift_section(ood: Sequence[Row], known: Sequence[float]) -> str:
    if not ood:
        return ""
    words = (
        "Distance of a case's bottleneck features to the nearest training case. The threshold is a quantile of known cases: validation "
        "cases, and training cases held out in turn. It was set without any example of what is out of distribution; a case beyond it "
        "is unusual, and not therefore wrong."
    )
    return _section(
        "Is this what the model was trained on?", _picture(_distances(ood, known), "OOD distance, one dot a case."), _text(words)
    )


def _quality_section(predicted: Sequence[Row], true: Sequence[Row]) -> str:
    if not predicted:
        return ""
    words = (
        "Reverse classification accuracy: each answer is carried onto the most similar training images by registration; its best overlap "
        f"with their labels is its predicted Dice. Answers at or below {LOW:g} deserve a look."
    )
    pairs = _pairs(predicted, true)
    error = ""
    if len(pairs) >= 3:
        x, y = np.array(list(pairs.values())).T
        error = f" Where the truth is known, the mean absolute error of the prediction is {np.abs(x - y).mean():.3f}"
        error += f" and the correlation {np.corrcoef(x, y)[0, 1]:.2f} ({len(x)} masks)." if x.std() > 0 and y.std() > 0 else "."
    caption = "Predicted Dice by structure" + ("; right, against the true one." if pairs else ".")
    return _section(
        "How good are the masks, as far as can be told without labels?", _picture(_dice(predicted, pairs), caption), _text(words + error)
    )


def _gap_section(estimated: Sequence[Row], true: Sequence[Row]) -> str:
    if not estimated and not true:
        return ""
    real = {(r["by"], r["structure"], r["first"], r["second"]): r for r in true}
    lines = []
    for r in estimated or true:
        t = real.get((r["by"], r["structure"], r["first"], r["second"]))
        gap = f"{r['value']:+.3f} ({r['low']:+.3f} to {r['high']:+.3f})" if estimated else "–"
        truth = f"{t['value']:+.3f} ({t['low']:+.3f} to {t['high']:+.3f})" if t else "–"
        groups = f"{r['first']} ({r['n_first']}) minus {r['second']} ({r['n_second']})"
        lines.append((r["by"], r["structure"], groups, gap, p_text(r["p_holm"]) if estimated else "–", truth))
    header = ("Column", "Structure", "Groups (patients)", "Estimated gap (95% CI)", "p (Holm)", "True gap (95% CI)")
    words = (
        "Difference of the groups' mean predicted Dice (patients resampled; Mann-Whitney, Holm over all rows). A gap is a reason to look, "
        "not a proof: groups may differ in what they show, and in how well the references fit them."
    )
    picture = _picture(_forest(estimated), "Estimated gaps with 95% intervals.") if estimated else ""
    return _section("Is it worse for some patients?", picture, _table(header, lines, left=3), _text(words))


def _calibration_section(reliability: Mapping[str, Sequence[float]] | None, ece: Sequence[Row], brier: Sequence[Row]) -> str:
    if reliability is None:
        return ""
    scores = [r["value"] for r in brier if r["value"] is not None]
    words = (
        f"Expected calibration error {ece[0]['value']:.3f} (top label), mean Brier score {np.mean(scores):.3f}, over the voxels in the "
        "box around prediction and reference. Points below the line are overconfident."
    )
    picture = _picture(_reliability(reliability), "Reliability diagram; bars: share of voxels.")
    return _section("Are the probabilities right?", picture, _text(words))


def _damage_section(rows: Sequence[Row]) -> str:
    damaged = [r for r in rows if ":" in r["metric"] and not r["metric"].startswith("gap:")]
    if not damaged:
        return ""
    label = "DSC" if any(r["metric"].startswith("dsc:") for r in damaged) else "DSC with the answer to the undamaged image"
    words = (
        "Images damaged on purpose, on the grid that the model sees, at five severities: mean over cases and structures, and the share of "
        "cases that the OOD threshold would have flagged. A model is safe to watch where the share rises before the overlap falls."
    )
    return _section(
        "How does it bear damaged images?", _picture(_damage(damaged), f"{label} (line) and share flagged (dashed)."), _text(words)
    )


def _case_section(by: Mapping[str, Sequence[Row]]) -> str:
    cases = list(dict.fromkeys(r["case"] for m in ("ood", "rca_max", "dsc") for r in by[m]))
    if not cases:
        return ""
    ood, flag = ({r["case"]: r for r in by[m]} for m in ("ood", "rca_flag"))
    least = {m: _least(by[m]) for m in ("rca_max", "dsc")}
    order = sorted(cases, key=lambda c: (least["rca_max"].get(c, 1.0), -(ood[c]["value"] if c in ood else 0)))
    lines = []
    for c in order[:MOST]:
        far = ood.get(c)
        lines.append(
            (
                c,
                number(far["value"]) if far else "–",
                "yes" if far and far["flagged"] else "",
                number(least["rca_max"].get(c)),
                "yes" if flag.get(c, {}).get("value") else "",
                number(least["dsc"].get(c)),
            )
        )
    header = ("Case", "OOD distance", "Far", "Predicted Dice", "Poor", "True Dice")
    more = f" The {MOST} worst of {len(cases)} are shown." if len(cases) > MOST else ""
    return _section("Case by case", _table(header, lines), _text("Worst first; of several structures the least Dice." + more))


def _least(rows: Sequence[Row]) -> dict[str, float]:
    out: dict[str, float] = {}
    for r in rows:
        if r["value"] is not None:
            out[r["case"]] = min(r["value"], out.get(r["case"], np.inf))
    return out


def _pairs(predicted: Sequence[Row], true: Sequence[Row]) -> dict[tuple, tuple[float, float]]:
    known = {(r["case"], r.get("structure", "")): r["value"] for r in true if r["value"] is not None}
    keys = {(r["case"], r.get("structure", "")): r["value"] for r in predicted}
    return {k: (v, known[k]) for k, v in keys.items() if k in known}


# ------------------------------------------------------------------------------------------------------------------------------- figures
def _distances(ood: Sequence[Row], known: Sequence[float]) -> bytes:
    import matplotlib

    values, flagged = np.array([r["value"] for r in ood]), np.array([bool(r["flagged"]) for r in ood])
    rng = np.random.default_rng(0)
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = _figure(7.2, 2.3, 1, 1)
        for y, group, colour in ((1, np.asarray(known, float), GREY), (0, values[~flagged], BLUE), (0, values[flagged], RED)):
            axis.scatter(group, y + rng.uniform(-0.16, 0.16, group.size), s=16, color=colour, alpha=0.75, linewidths=0)
        axis.axvline(ood[0]["threshold"], color="#444444", linewidth=1, linestyle="--")
        axis.set_yticks([0, 1], ["audited cases", "known cases"])
        axis.set(ylim=(-0.5, 1.5), xlabel="OOD distance (dashed: threshold)")
        axis.grid(axis="y", visible=False)
        return _png(figure)


def _dice(predicted: Sequence[Row], pairs: Mapping[tuple, tuple[float, float]]) -> bytes:
    import matplotlib

    names = list(dict.fromkeys(r.get("structure", "") for r in predicted))
    rng = np.random.default_rng(0)
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(7.2 if pairs else 4.4, 3.0, 1, 2 if pairs else 1)
        for n, name in enumerate(names):
            values = np.array([r["value"] for r in predicted if r.get("structure", "") == name])
            colours = [RED if v <= LOW else BLUE for v in values]
            axes[0].scatter(n + rng.uniform(-0.15, 0.15, values.size), values, s=16, c=colours, alpha=0.75, linewidths=0)
        axes[0].axhline(LOW, color="#444444", linewidth=1, linestyle="--")
        turn = {"rotation": 30, "ha": "right"} if len(names) > 3 else {}
        axes[0].set_xticks(range(len(names)), names, **turn)
        axes[0].set(xlim=(-0.6, len(names) - 0.4), ylabel="predicted Dice")
        axes[0].set_ylim(top=1.02)
        if pairs:
            x, y = np.array(list(pairs.values())).T
            low = float(min(x.min(), y.min())) - 0.03
            axes[1].plot([low, 1], [low, 1], color="#888888", linewidth=0.8, linestyle="--")
            axes[1].scatter(x, y, s=16, color=BLUE, alpha=0.75, linewidths=0)
            axes[1].set(xlabel="predicted Dice", ylabel="true Dice", xlim=(low, 1.02), ylim=(low, 1.02), aspect="equal")
        return _png(figure)


def _forest(gaps: Sequence[Row]) -> bytes:
    import matplotlib

    shown = list(gaps)[:24][::-1]
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = _figure(7.2, 0.6 + 0.3 * len(shown), 1, 1)
        for n, r in enumerate(shown):
            colour = RED if r["p_holm"] is not None and r["p_holm"] < 0.05 else BLUE
            axis.plot([r["low"], r["high"]], [n, n], color=colour, linewidth=1.6)
            axis.scatter(r["value"], n, s=26, color=colour, zorder=3)
        axis.axvline(0, color="#444444", linewidth=0.9)
        axis.set_yticks(range(len(shown)), [f"{r['by']}: {r['first']} − {r['second']} ({r['structure']})" for r in shown])
        axis.set(ylim=(-0.6, len(shown) - 0.4), xlabel="gap in predicted Dice")
        axis.grid(axis="y", visible=False)
        return _png(figure)


def _reliability(table: Mapping[str, Sequence[float]]) -> bytes:
    import matplotlib

    count, confidence, accuracy = (np.asarray(table[k], float) for k in ("count", "confidence", "accuracy"))
    some = count > 0
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = _figure(3.6, 3.4, 1, 1)
        edges = np.linspace(0, 1, len(count) + 1)
        axis.bar(edges[:-1], count / count.sum(), width=np.diff(edges), align="edge", color="#dfe6ec")
        axis.plot([0, 1], [0, 1], color="#888888", linewidth=0.8, linestyle="--")
        axis.plot(confidence[some], accuracy[some], color=BLUE, marker="o", markersize=4, linewidth=1.4)
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="confidence", ylabel="share right")
        return _png(figure)


def _damage(rows: Sequence[Row]) -> bytes:
    import matplotlib

    curves: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for r in rows:
        what, _, kind = r["metric"].partition(":")
        value = float(r["flagged"]) if what == "ood" else r["value"]
        if value is not None:
            curves[kind]["flagged" if what == "ood" else "overlap"][int(r["step"])].append(value)
    with matplotlib.rc_context(STYLE):
        figure, axes = _grid(len(curves), 2.4, 2.1)
        for axis, (kind, found) in zip(axes, curves.items(), strict=False):
            for name, colour, dash in (("overlap", BLUE, "-"), ("flagged", RED, "--")):
                if found[name]:
                    steps = sorted(found[name])
                    means = [np.mean(found[name][s]) for s in steps]
                    axis.plot(steps, means, color=colour, linestyle=dash, marker="o", markersize=3.5, linewidth=1.4)
            axis.set(ylim=(-0.03, 1.03), xticks=range(6), xlabel="severity")
            axis.set_title(kind, fontweight="bold", loc="left")
        return _png(figure)
