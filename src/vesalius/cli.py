"""The command line: verbs on the user's own folder. Tables and the last line go to stdout, progress to stderr, errors are one sentence.

Exit codes: 0 done, 2 usage, 3 data, 4 run folder or checkpoint, 5 resources, 130 interrupted, 143 terminated, 1 anything else.
Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .core.errors import UsageError, VesaliusError, nearest
from .io.notes import Summary

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Vesalius: published methods for medical image segmentation, one engine, one fair comparison on your own data.",
)
methods_app = typer.Typer(invoke_without_command=True, help="List the methods, or show one.")
app.add_typer(methods_app, name="methods")
datasets_app = typer.Typer(invoke_without_command=True, help="List the built-in data sets and the layouts that open, or show one.")
app.add_typer(datasets_app, name="datasets")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, or one of several GPUs as cuda:N.")]
Data = Annotated[str, typer.Option("--data", "-d", help="A dataset folder, CSV, or phantom:NAME.")]
Minutes = Annotated[float | None, typer.Option(help="Training time per run, minutes.", min=0.01)]
_STOPPED = "terminated; what was saved before is usable. Continue with --resume"
Metrics = Annotated[list[str] | None, typer.Option("--metric", help="Only this metric; repeat for more.")]
Iterations = Annotated[int | None, typer.Option(help="Training iterations per run.", min=1)]


def main() -> None:
    """Entry point: one sentence for every foreseen error, no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a letter shows '?'
    stopped = _stopped_by()
    try:
        with Summary():
            code = app(standalone_mode=False)  # an Exit's code comes back as the value, and so does a KeyboardInterrupt
        if code == 130:
            raise KeyboardInterrupt
        sys.exit(code)
    except VesaliusError as e:
        code = stopped() if e.exit_code in (130, 5) else 0  # 5: the whole process group was told to stop, and a worker was faster
        _fail(_STOPPED if code and e.exit_code == 5 else str(e), code or e.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = stopped() or 130
        _fail("interrupted." if code == 130 else "terminated.", code)
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
        code = stopped()
        if code:
            _fail(_STOPPED, code)
        _fail(f"this should not have happened: {type(e).__name__}: {e}. VESALIUS_DEBUG=1 shows where; please report it.", 1)


def _stopped_by() -> Callable[[], int]:
    """SIGTERM, and SIGHUP of a terminal that was closed, end a command as Ctrl-C does: nothing half-written. Returns a function that gives
    the exit code of the first such signal (130, 143, 129), or 0; it also sees the signals that a training handles by itself."""
    if os.name != "posix":
        return lambda: 0
    ends = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def stop(number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    def hang_up(number: int, _frame: object) -> None:
        signal.raise_signal(signal.SIGTERM)  # whoever handles that one by now

    def leave_alone() -> None:  # in worker processes
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, hang_up)
    os.register_at_fork(after_in_child=leave_alone)

    def code() -> int:
        try:
            seen = os.read(reading, 1 << 16)
        except BlockingIOError:
            return 0
        return next((128 + number for number in seen if number in ends), 0)

    return code


def _fail(text: str, code: int) -> None:
    print(f"error: {text}", file=sys.stderr)
    if code > 128:
        sys.unraisablehook = lambda _: None  # what loaders complain about when their workers are gone already
    sys.exit(code)


def _progress(quiet: bool):
    from .engine.progress import Progress

    return Progress(quiet)


def _whole(text: str, where: str) -> int:
    number = _number(text, where)
    if number != int(number):
        raise UsageError("not a whole number", where=where, found=text)
    return int(number)


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError("not a number", where=where, found=text) from None


def _settings(pairs: list[str], where: str = "--set") -> dict[str, str]:
    out = {}
    for pair in pairs:
        key, sep, value = pair.partition("=")
        if not sep or not key:
            raise UsageError("an option is given as key=value", where=where, found=pair)
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


@datasets_app.callback()
def datasets(ctx: typer.Context, as_json: Json = False) -> None:
    """List the built-in phantoms and the dataset layouts that open."""
    if ctx.invoked_subcommand:
        return
    from .datasets import available

    rows = available()
    if as_json:
        return _print(rows, True)
    _print([r for r in rows if r["kind"] == "phantom"], False, ("open", "dims", "modality", "cases", "title"))
    print("\nlayouts of folders and files that open as they are")
    _print([r for r in rows if r["kind"] == "layout"], False, ("name", "text"))


@datasets_app.command("show")
def datasets_show(name: str, as_json: Json = False) -> None:
    """What a built-in phantom or a layout holds, and its options."""
    from .datasets import available

    rows, name = {row["name"]: row for row in available()}, name.removeprefix("phantom:").partition("?")[0]
    if name not in rows:
        raise UsageError(f"no built-in dataset '{name}'", fix=nearest(name, rows))
    row = rows[name]
    if as_json:
        print(json.dumps(row, indent=1, default=str))
        return
    print(f"{row['name']}: {row.get('title', row['kind'])}\n{row['text']}\n")
    for key in ("open", "dims", "modality", "channels", "labels", "cases"):
        if row.get(key):
            print(f"{key:<12} {', '.join(row[key]) if key in ('channels', 'labels') else _text(row[key])}")
    if row.get("options"):
        print(f"\noptions ({row['open']}?option=value&option=value)")
        _print([{"option": k, "text": v} for k, v in row["options"].items()], False)


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
    folds: Annotated[
        int | None,
        typer.Option(help="Train once per fold, into OUT/fold_0, OUT/fold_1, ...; as many as the dataset declares, if it does.", min=1),
    ] = None,
    fold: Annotated[int | None, typer.Option(help="Only this fold of --folds (default: as many as declared, or 5).", min=0)] = None,
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

    wanted = [None] if folds is None and fold is None else ([fold] if fold is not None else list(range(folds)))
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
            folds=folds,
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
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the label files.")],
    inputs: Annotated[list[str] | None, typer.Argument(metavar="INPUT...")] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="For registration: a CSV, columns fixed and moving, of inputs by name (or of image files).")
    ] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="An expression to look for, 'the left nodule'; repeat.")] = None,
    format: Annotated[str | None, typer.Option(help="Ending (.nii.gz, .mha, .png), dicomseg, rtstruct; default: the input's.")] = None,
    probability: Annotated[bool, typer.Option(help="Also write the class probabilities.")] = False,
    split: Annotated[str | None, typer.Option(help="Of a dataset: only these cases (train, val, test).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Predict anew what is there; else what this RUN wrote is kept.")] = False,
    tta: Annotated[
        bool | None, typer.Option("--tta/--no-tta", help="Average over mirrored windows, or not (faster); default: as planned.")
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, torch or openvino.")] = "auto",
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict files, folders or a dataset with a trained RUN; labels lie on each input's own grid.

    A folder holds one case a file (or <case>_0000, <case>_0001, ... for several channels), or DICOM series. A prediction that was stopped
    goes on when the same command is given again. A registration takes FIXED MOVING, a dataset's pairs or --pairs, and writes displacement
    fields (world mm, on the fixed grid) with the warped images.
    """
    from .engine import api

    inputs = inputs or []
    if not inputs and pairs is None:
        raise UsageError("nothing to predict", where="INPUT", fix="name image files, folders or a dataset")
    given: Any = inputs[0] if len(inputs) == 1 else inputs
    written = api.predict(
        run,
        given,
        out,
        pairs=pairs,
        texts=tuple(text or ()),
        format=format,
        probability=probability,
        overwrite=overwrite,
        tta=tta,
        backend=backend,
        device=device,
        split=split,
        progress=_progress(quiet),
    )
    if as_json:
        print(json.dumps([str(p) for p in written], indent=1))
    else:
        print(f"{len(written)} {api.answers(run)} in {out}")


@app.command()
def evaluate(
    pred: Annotated[Path, typer.Option("--pred", help="Folder of label files named <case>.*")],
    ref: Annotated[str, typer.Option("--ref", help="The dataset with the references, or a folder of label files.")],
    split: Annotated[str | None, typer.Option(help="Only these cases.")] = None,
    metric: Metrics = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", help="Another tool's label value, structure=value; repeat. Other values are background.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; default: one a core from 32 cases on.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for report.html, scores.csv and summaries.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score anybody's predictions against references, on the original grid. Exit code 3 when one is missing or unusable."""
    from .engine.evaluate import RULES, evaluate
    from .report.tables import summarise

    values = {name: _whole(value, "--label") for name, value in _settings(label or [], "--label").items()}
    given = {"metrics": tuple(metric or RULES), "split": split, "labels": values or None, "workers": workers}
    done = evaluate(pred, ref, **given, progress=_progress(quiet))
    records = done.records()
    page = done.write(out, command=" ".join(["vesalius", *sys.argv[1:]])) if out is not None else None
    _print(
        summarise(records) if not as_json else records,
        as_json,
        () if as_json else ("structure", "metric", "mean", "low", "high", "median", "n", "undefined"),
    )
    if page is not None and not as_json:
        print(f"report: {page}")
    for problem in done.problems:
        print(f"{'problem' if problem.level == 'error' else 'note'}: {problem}", file=sys.stderr)
    if done.failed:
        raise typer.Exit(3)


@app.command()
def compare(
    methods: Annotated[
        list[str], typer.Argument(metavar="METHOD METHOD...", help="Slugs, folders of finished runs, or folders of label files.")
    ],
    data: Data,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the comparison; default runs/compare-<data>.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    folds: Annotated[int | None, typer.Option(min=2)] = None,
    minutes: Minutes = None,
    iterations: Iterations = None,
    labelled: Annotated[int | None, typer.Option(help="Keep the labels of so many training patients only.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="method.key=value; repeat for more.")] = None,
    metric: Metrics = None,
    prompts: Annotated[
        str,
        typer.Option(help="Simulated users of promptable methods, by commas: box, box20, 1click, 3random, scribble, 2slices, box+2clicks."),
    ] = "",
    margin: Annotated[list[str] | None, typer.Option("--margin", help="Of non-inferiority, metric=value; repeat for more.")] = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train and test several methods under one split and plan, and write the report. Started again, it goes on where it was.

    Finished runs and folders of label files are compared as they are; runs of another manifest or split are refused.
    """
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
        prompts=tuple(m.strip() for m in prompts.split(",") if m.strip()),
        margin={name: _number(value, "--margin") for name, value in _settings(margin or [], "--margin").items()},
        **({"metrics": tuple(metric)} if metric else {}),
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
def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN")],
    data: Data,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the page; default RUN/audit/<data>.")] = None,
    split: Annotated[str | None, typer.Option(help="Only these cases (train, val, test).")] = None,
    by: Annotated[list[str] | None, typer.Option("--by", help="A table column that makes groups; repeat for more. Default: all.")] = None,
    trained_on: Annotated[str | None, typer.Option("--trained-on", help="The training data, where they moved.")] = None,
    bench: Annotated[int, typer.Option(help="So many cases' images are damaged on purpose.", min=0)] = 8,
    set_: Annotated[list[str] | None, typer.Option("--set", help="judge.key=value, e.g. chexmask.references=3; repeat for more.")] = None,
    seed: int = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Can RUN be trusted on DATA? Out-of-distribution scores, predicted quality, group gaps, calibration, damaged images: one page."""
    from .engine.audit import audit as look

    options: dict[str, dict[str, str]] = {}
    for key, value in _settings(set_ or []).items():
        judge, _, name = key.rpartition(".")
        options.setdefault(judge, {})[name] = value
    done = look(
        run,
        data,
        out,
        split=split,
        by=by or (),
        trained_on=trained_on,
        bench=bench,
        options=options,
        device=device,
        seed=seed,
        progress=_progress(quiet),
    )
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        print(json.dumps({"verdict": done.verdict, "notes": done.notes, "rows": [r.to_json() for r in done.rows]}, indent=1, default=str))
        return
    print(done.verdict)
    print(f"report: {done.page}")


@app.command()
def annotate(
    data: Annotated[list[str], typer.Argument(metavar="DATA|FILES...", help="A dataset, a folder of images, or image files.")],
    model: Annotated[str | None, typer.Option(help="The model offered first: a run folder, lite-medsam, or a SAM checkpoint.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8421,
    host: Annotated[str, typer.Option(help="Whom it listens to; 127.0.0.1: this machine alone.")] = "127.0.0.1",
    project: Annotated[Path | None, typer.Option(help="Where all is saved; default vesalius-project.")] = None,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Also open the link in a browser.")] = False,
) -> None:
    """Draw and correct masks in the browser, with a model's help; prints the one link that lets in. Ctrl-C ends it.

    Everything is saved as it is drawn, in versions. VESALIUS_TOKEN sets the link's token.
    """
    try:
        from .serve.command import serve

        folder = serve(data if len(data) > 1 else data[0], project=project, model=model, host=host, port=port, show=open_)
    except ModuleNotFoundError as e:
        if (e.name or "vesalius").startswith("vesalius"):
            raise
        fix = "run: pip install 'vesalius[serve]'"
        raise UsageError("the annotator needs packages that are not installed", found=f"no {e.name}", fix=fix) from e
    print(f"stopped; what was saved is in {folder}")


@app.command()
def prove(
    slug: str,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the runs live.")] = Path("runs/proofs"),
    seeds: Annotated[int | None, typer.Option(min=1)] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Only on this data; repeat for more. Results on other data stay.")
    ] = None,
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
