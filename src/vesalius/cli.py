"""The command line: verbs on the user's own folder. Tables and the last line go to stdout, progress to stderr, errors are one sentence.

Exit codes: 0 done, 2 usage, 3 data, 4 run folder or checkpoint, 5 resources, 130 interrupted, 1 anything else.
Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .core.errors import UsageError, VesaliusError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Vesalius: published methods for medical image segmentation, one engine, one fair comparison on your own data.",
)
methods_app = typer.Typer(invoke_without_command=True, help="List the methods, or show one.")
app.add_typer(methods_app, name="methods")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Data = Annotated[str, typer.Option("--data", "-d", help="A dataset folder, CSV, or phantom:NAME.")]
Minutes = Annotated[float | None, typer.Option(help="Training time per run, minutes.", min=0.01)]
Iterations = Annotated[int | None, typer.Option(help="Training iterations per run.", min=1)]


def main() -> None:
    """Entry point: one sentence for every foreseen error, no traceback."""
    try:
        sys.exit(app(standalone_mode=False))  # an Exit's code comes back as the value
    except VesaliusError as e:
        _fail(str(e), e.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted.", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except MemoryError as e:
        _fail(f"not enough memory: {e or 'choose a smaller patch, or a machine with more'}", 5)
    except Exception as e:  # noqa: BLE001 - the last resort: still one sentence
        if hasattr(e, "format_message"):  # click's own usage errors
            _fail(e.format_message(), 2)
        if os.environ.get("VESALIUS_DEBUG"):
            raise
        _fail(f"this should not have happened: {type(e).__name__}: {e}. VESALIUS_DEBUG=1 shows where; please report it.", 1)


def _fail(text: str, code: int) -> None:
    print(f"error: {text}", file=sys.stderr)
    sys.exit(code)


def _progress(quiet: bool):
    from .engine.progress import Progress

    return Progress(quiet)


def _settings(pairs: list[str]) -> dict[str, str]:
    out = {}
    for pair in pairs:
        key, sep, value = pair.partition("=")
        if not sep or not key:
            raise UsageError("an option is given as key=value", where="--set", found=pair)
        out[key.strip()] = value.strip()
    return out


def _print(rows: list[dict[str, Any]], as_json: bool, columns: tuple[str, ...] = ()) -> None:
    """A list of records as JSON or as aligned text."""
    if as_json:
        print(json.dumps(rows, indent=1, default=str))
        return
    columns = columns or tuple(rows[0]) if rows else columns
    cells = [[_text(r.get(c)) for c in columns] for r in rows]
    widths = [max([len(c), *(len(row[i]) for row in cells)]) for i, c in enumerate(columns)]
    for row in [list(columns), *cells]:
        print("  ".join(v.ljust(w) for v, w in zip(row, widths, strict=True)).rstrip())


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return str(value)


@methods_app.callback()
def methods(
    ctx: typer.Context, as_json: Json = False, family: Annotated[str | None, typer.Option(help="Only this family.")] = None
) -> None:
    """List the methods of the catalogue."""
    if ctx.invoked_subcommand:
        return
    from . import catalog

    rows = [c.to_json() for c in catalog.cards().values() if family in (None, c.family)]
    _print(rows, as_json, ("slug", "family", "dims", "supervision", "evidence", "title"))


@methods_app.command("show")
def methods_show(slug: str, as_json: Json = False) -> None:
    """What a method is, claims, takes, gives, and its options."""
    from . import catalog

    card = catalog.get(slug).to_json()
    card["options"] = {
        k: {"type": getattr(v["type"], "__name__", str(v["type"]).replace("typing.", "")), "default": v["default"]}
        for k, v in catalog.options(slug).items()
    }
    if as_json:
        print(json.dumps(card, indent=1, default=str))
        return
    print(f"{card['slug']}: {card['title']}\n{card['paper']}\n{card['url']}\n")
    for key in (
        "family",
        "kind",
        "task",
        "dims",
        "supervision",
        "takes",
        "gives",
        "claim",
        "baseline",
        "evidence",
        "weights",
        "deviations",
    ):
        if card[key]:
            print(f"{key:<12} {_text(card[key])}")
    print("\noptions (--set key=value)")
    _print([{"option": k, **v} for k, v in card["options"].items()], False)


@app.command()
def datasets(as_json: Json = False) -> None:
    """List the built-in phantoms and the dataset layouts that open."""
    from .datasets import available

    _print(available(), as_json)


@app.command()
def check(data: Annotated[str, typer.Argument(metavar="DATA")], as_json: Json = False, quick: bool = False, workers: int = 0) -> None:
    """Find what is wrong with a dataset before hours of training. Exit code 3 when there are errors."""
    from dataclasses import asdict

    from .datasets import check as run
    from .datasets import open_dataset

    manifest = open_dataset(data)
    findings = [asdict(f) for f in run(manifest, quick=quick, workers=workers)]
    if as_json or findings:
        _print(findings, as_json)
    errors = sum(f["level"] == "error" for f in findings)
    if not as_json:
        print(
            f"{manifest.name}: {len(manifest)} cases, {len({c.patient for c in manifest.cases})} patients, "
            f"{errors} errors, {len(findings)} findings"
        )
    if errors:
        raise typer.Exit(3)


@app.command()
def train(
    method: Annotated[str, typer.Argument(metavar="METHOD")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run folder.")],
    minutes: Minutes = None,
    iterations: Iterations = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A method's option, key=value; repeat for more.")] = None,
    part: Annotated[list[str] | None, typer.Option("--part", help="A method inside the method, name=slug.")] = None,
    folds: Annotated[int | None, typer.Option(help="Train once per fold, into OUT/fold_0, OUT/fold_1, ...", min=2)] = None,
    fold: Annotated[int | None, typer.Option(help="Only this fold of --folds (default 5).", min=0)] = None,
    labelled: Annotated[int | None, typer.Option(help="Keep the labels of so many training patients only.")] = None,
    seed: int = 0,
    patience: Annotated[int | None, typer.Option(help="Stop after so many validations without improvement.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in OUT.")] = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train METHOD on a dataset."""
    from .engine import api

    wanted = [None] if folds is None and fold is None else ([fold] if fold is not None else list(range(folds or 5)))
    rows = []
    for k in wanted:
        where = out if k is None else out / f"fold_{k}"
        done = api.train(
            method,
            data,
            where,
            options=_settings(set_ or []),
            parts=_settings(part or []),
            seed=seed,
            iterations=iterations,
            minutes=minutes,
            patience=patience,
            fold=k,
            folds=folds or 5,
            labelled=labelled,
            resume=resume,
            device=device,
            progress=_progress(quiet),
        )
        checked = [v for name, v in done.record["facts"].items() if name.startswith("val_dsc.")]
        rows.append({"run": str(where), "method": method, "seconds": done.record["seconds"], "val_dsc": checked[-1] if checked else None})
    _print(rows, as_json)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN")],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the label files.")],
    format: Annotated[str | None, typer.Option(help="File ending, e.g. .nii.gz, .nrrd, .png; default: the input's kind.")] = None,
    probability: Annotated[bool, typer.Option(help="Also write the class probabilities.")] = False,
    split: Annotated[str | None, typer.Option(help="Of a dataset: only these cases (train, val, test).")] = None,
    overwrite: bool = False,
    backend: Annotated[str, typer.Option(help="auto, torch or openvino.")] = "auto",
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict files, folders or a dataset with a trained RUN; labels lie on each input's own grid."""
    from .engine import api

    given: Any = inputs[0] if len(inputs) == 1 else inputs
    written = api.predict(
        run,
        given,
        out,
        format=format,
        probability=probability,
        overwrite=overwrite,
        backend=backend,
        device=device,
        split=split,
        progress=_progress(quiet),
    )
    if as_json:
        print(json.dumps([str(p) for p in written], indent=1))
    else:
        print(f"{len(written)} label files in {out}")


@app.command()
def evaluate(
    pred: Annotated[Path, typer.Option("--pred", help="Folder of label files named <case>.*")],
    ref: Annotated[str, typer.Option("--ref", help="The dataset with the references.")],
    split: Annotated[str | None, typer.Option(help="Only these cases.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for scores.csv and summaries.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score anybody's predictions against a dataset's references, on the original grid. Exit code 3 when one is missing or unusable."""
    from .engine import api
    from .report.tables import summarise, write_tables

    rows, problems = api.evaluate(pred, ref, split=split, progress=_progress(quiet))
    records = [{**r.to_json(), "method": pred.name} for r in rows]
    if out is not None:
        write_tables(out, records)
    _print(
        summarise(records) if not as_json else records,
        as_json,
        () if as_json else ("structure", "metric", "mean", "low", "high", "median", "n", "undefined"),
    )
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    if problems:
        raise typer.Exit(3)


@app.command()
def compare(
    methods: Annotated[list[str], typer.Argument(metavar="METHOD METHOD...")],
    data: Data,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the comparison; default runs/compare-<data>.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    folds: Annotated[int | None, typer.Option(min=2)] = None,
    minutes: Minutes = None,
    iterations: Iterations = None,
    labelled: Annotated[int | None, typer.Option(help="Keep the labels of so many training patients only.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="method.key=value; repeat for more.")] = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train and test several methods under one split and plan, and write the report. Started again, it goes on where it was."""
    from .engine import api

    options: dict[str, dict[str, str]] = {}
    for key, value in _settings(set_ or []).items():
        method, dot, name = key.rpartition(".")
        if not dot or method not in methods:
            raise UsageError(
                "in a comparison an option is given as method.key=value", where="--set", found=f"{key}={value}", allowed=", ".join(methods)
            )
        options.setdefault(method, {})[name] = value
    name = "".join(ch if ch.isalnum() else "-" for ch in Path(data.removeprefix("phantom:")).name)
    target = out or Path("runs") / f"compare-{name}"
    page = api.compare(
        methods,
        data,
        target,
        seeds=seeds,
        folds=folds,
        minutes=minutes,
        iterations=iterations,
        labelled=labelled,
        options=options,
        device=device,
        progress=_progress(quiet),
    )
    _summary(target, page, as_json)


def _summary(folder: Path, page: Path, as_json: bool) -> None:
    rows = json.loads((folder / "summary.json").read_text())
    rows = rows["rows"] if isinstance(rows, dict) else rows
    _print(rows, as_json, () if as_json else ("method", "structure", "metric", "mean", "low", "high", "n", "difference", "p"))
    if not as_json:
        print(f"report: {page}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o")] = Path("runs/demo"),
    quiet: Quiet = False,
    as_json: Json = False,
    minutes: Annotated[float, typer.Option(help="Training time per method, minutes.", min=0.01)] = 1.0,
) -> None:
    """The main job on the built-in tumour-bed phantom: train unet and sdl-seg under one plan, test, report."""
    from .engine import api

    page = api.compare(
        ["unet", "sdl-seg"],
        "phantom:tumour-bed",
        out,
        minutes=minutes,
        progress=_progress(quiet),
        title="Tumour bed in breast CT: does the clips' saliency help?",
    )
    _summary(out, page, as_json)


@app.command()
def prove(
    slug: str,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the runs live.")] = Path("runs/proofs"),
    seeds: Annotated[int | None, typer.Option(min=1)] = None,
    data: Annotated[list[str] | None, typer.Option("--data", help="Only on this data; repeat for more.")] = None,
    root: Annotated[Path, typer.Option(help="The project's checkout.")] = Path("."),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a paper's own paired experiment and write proofs/results/SLUG.json."""
    from .engine import study

    record = study.prove(slug, root.resolve(), out.resolve(), seeds=seeds, data=data or (), progress=_progress(quiet))
    if as_json:
        print(json.dumps(record, indent=1, default=str))
        return
    rows = []
    for where, result in record["results"].items():
        for arm, metrics in result.get("arms", {}).items():
            for metric, entry in metrics.items():
                d = entry.get("difference") or {}
                interval = f"[{_text(d['low'])}, {_text(d['high'])}]" if d else "baseline"
                rows.append(
                    {
                        "data": where,
                        "arm": arm,
                        "metric": metric,
                        "mean": entry["mean"],
                        "difference": d.get("mean"),
                        "95% interval": interval,
                    }
                )
    _print(rows, False)
    print(f"holds: {record['holds']}; written to {root / 'proofs' / 'results' / (slug + '.json')}")


if __name__ == "__main__":
    main()
