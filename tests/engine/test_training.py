"""The loop: a killed and resumed training ends in the same weights; numbers that overflow are noticed; locks hold."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vesalius.core.errors import RunError, UsageError
from vesalius.core.method import Stage
from vesalius.datasets import open_dataset
from vesalius.engine import api, checkpoint, fit
from vesalius.engine.record import Lock
from vesalius.methods.planned import PlannedUNet

DATA = "phantom:shapes-2d"


def weights(folder) -> dict[str, np.ndarray]:
    return checkpoint.read(folder / "method.safetensors")[0]


def small(**more):
    return dict(iterations=12, plan_overrides={"batch": 2, "features": (4, 8, 8), "precision": "32", "workers": 0}, **more)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_resume_is_bit_equal(tmp_path, monkeypatch):
    api.train("unet", DATA, tmp_path / "whole", **small())
    done = {"n": 0}
    update = fit._update

    def dies(*args):
        if done["n"] == 7:
            raise RuntimeError("killed")
        done["n"] += 1
        return update(*args)

    monkeypatch.setattr(fit, "_update", dies)
    monkeypatch.setattr(fit.Budget, "save_every", 0.0, raising=False)
    monkeypatch.setattr(fit.Budget.__init__, "__defaults__", (None, None, None, 5, 0.0))  # a checkpoint every step
    with pytest.raises(RuntimeError, match="killed"):
        api.train("unet", DATA, tmp_path / "parts", **small())
    monkeypatch.setattr(fit, "_update", update)
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["status"] == "started"
    api.train("unet", DATA, tmp_path / "parts", resume=True, **small())
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@pytest.mark.parametrize(
    ("cost", "off", "chosen"),
    [(0.6, 0.0, "bf16"), (0.95, 0.0, "32"), (0.6, 0.2, "32"), (0.6, math.nan, "32")],
    ids=["faster", "hardly faster", "another loss", "overflows"],
)
def test_precision_is_chosen_by_a_check_that_other_work_on_the_machine_does_not_sway(tmp_path, monkeypatch, cost, off, chosen):
    """The clock is a fake one: every step takes a tenth longer than the one before, and ``cost`` times that in bf16."""
    clock, load, update = [0.0], [1.0], fit._update

    def timed(fabric, *args):
        terms, fine = update(fabric, *args)
        half = fabric._precision.precision == "bf16-mixed"
        clock[0] += load[0] * (cost if half else 1.0)
        load[0] *= 1.1
        return ({**terms, "loss": terms["loss"] * (1 + off)} if half else terms), fine

    monkeypatch.setattr(fit, "_has_bf16", lambda device: True)
    monkeypatch.setattr(fit, "_update", timed)
    monkeypatch.setattr(fit, "time", SimpleNamespace(**{**vars(time), "perf_counter": lambda: clock[0]}))
    settings = small()
    settings["plan_overrides"]["precision"] = "auto"
    api.train("unet", DATA, tmp_path / "run", **settings | {"iterations": 1})
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["facts"]["budget.main"]
    assert facts["precision"] == chosen, facts["why"]


def test_a_minute_budget_holds_for_slow_steps_too(tmp_path, monkeypatch):
    """Where a minute has fewer steps than are timed on the way, those timed beforehand decide; else the ones on the way do."""
    how = small() | {"iterations": None, "minutes": 1.0, "validations": 0}
    monkeypatch.setattr(fit, "_calibrate", lambda loop, timed: ("32", 10.0, "slow"))
    facts = api.train("unet", DATA, tmp_path / "slow", **how).record["facts"]["budget.main"]
    assert facts["iterations"] == facts["first"] == 6 and "revised" not in facts
    monkeypatch.setattr(fit, "_calibrate", lambda loop, timed: ("32", 1.0, "it would seem"))
    clock = [0.0]
    monkeypatch.setattr(fit, "time", SimpleNamespace(monotonic=lambda: clock[0], perf_counter=time.perf_counter))
    update = fit._update

    def timed(*args):
        clock[0] += 0.5
        return update(*args)

    monkeypatch.setattr(fit, "_update", timed)
    facts = api.train("unet", DATA, tmp_path / "fast", **how).record["facts"]["budget.main"]
    assert facts["first"] == 60 and facts["iterations"] == 116 and facts["revised"], "a share is kept for validations"


def test_workers_change_nothing(tmp_path):
    for workers in (0, 2):
        settings = small()
        settings["plan_overrides"]["workers"] = workers
        api.train("unet", DATA, tmp_path / str(workers), **settings)
    assert same(weights(tmp_path / "0"), weights(tmp_path / "2"))


def test_same_seed_same_numbers_other_seed_other_numbers(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        api.train("unet", DATA, tmp_path / name, seed=seed, **small())
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_killed_process_resumes(tmp_path):
    """SIGKILL at some moment of a real process; the folder then trains to the end."""
    code = (
        "from vesalius.engine import api; from vesalius.engine.fit import Budget;"
        "Budget.__init__.__defaults__ = (None, None, None, 5, 0.0);"
        f"api.train('unet', '{DATA}', r'{tmp_path / 'run'}', iterations=4000, resume=True,"
        "plan_overrides={'batch': 2, 'features': (4, 8, 8), 'precision': '32', 'workers': 0})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ))
    last = tmp_path / "run" / "checkpoint" / "main.safetensors"
    for _ in range(600):
        if last.exists():
            break
        time.sleep(0.1)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, record = checkpoint.read(last)  # whole, not half
    assert record["step"] > 0
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    facts["facts"]["budget.main"]["iterations"] = facts["facts"]["budget.main"]["first"] = record["step"] + 3  # not four thousand more
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    done = api.train("unet", DATA, tmp_path / "run", resume=True, iterations=4000)
    assert done.record["status"] == "finished"


def test_a_run_that_exists_is_kept(tmp_path):
    api.train("unet", DATA, tmp_path / "run", **small())
    with pytest.raises(RunError, match="--resume"):
        api.train("unet", DATA, tmp_path / "run", **small())
    with pytest.raises(RunError, match="another seed"):
        api.train("unet", DATA, tmp_path / "run", resume=True, seed=9, **small())
    with pytest.raises(RunError, match="another budget"):
        api.train("unet", DATA, tmp_path / "run", resume=True, **{**small(), "iterations": 99})


def test_two_processes_do_not_share_a_folder(tmp_path):
    with Lock(tmp_path):
        held = json.loads((tmp_path / ".lock").read_text())
        held["pid"] = 1  # init: alive, not us
        (tmp_path / ".lock").write_text(json.dumps(held))
        with pytest.raises(RunError, match="another process"), Lock(tmp_path):
            pass
        (tmp_path / ".lock").write_text(json.dumps({**held, "pid": 2**22 + 11}))  # nobody
        with Lock(tmp_path):
            pass


class Overflows(PlannedUNet):
    """The loss becomes infinite from some step on."""

    def losses(self, batch, clock, turn="main"):
        terms = super().losses(batch, clock, turn)
        return {k: v * (float("inf") if clock.step >= 3 else 1.0) for k, v in terms.items()}


def test_a_loss_that_is_not_finite_stops_with_the_last_good_weights(tmp_path):
    with pytest.raises(RunError, match="not finite"):
        api.train(Overflows, DATA, tmp_path / "run", **{**small(), "iterations": 40})


def test_unknown_option_before_any_work(tmp_path):
    with pytest.raises(UsageError, match="no option"):
        api.train("unet", DATA, tmp_path / "run", options={"learningrate": 1})
    assert not (tmp_path / "run").exists()


def test_predictions_of_an_opened_run_are_the_same(tmp_path):
    done = api.train("unet", DATA, tmp_path / "run", **small())
    case = api.reader(done.manifest)(done.split.test[0])
    a = api.infer(done.method, case, done.plan).label.data
    again = api.open_run(tmp_path / "run")
    b = api.infer(again.method, case, again.plan).label.data
    np.testing.assert_array_equal(a, b)


def test_checkpoint_of_another_shape_names_the_difference(tmp_path):
    done = api.train("unet", DATA, tmp_path / "run", **small())
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    plan["features"] = [8, 8, 8]
    (tmp_path / "run" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(RunError, match="does not fit"):
        api.open_run(done.folder)


class TwoStages(PlannedUNet):
    """Heads alone, then everything from the first weights on."""

    def stages(self):
        return (Stage("heads", 0.5, trainable=("network.heads",)), Stage("all", 0.5, reinit=("network.heads",)))


def test_stages_freeze_and_reset(tmp_path, monkeypatch):
    seen = {}

    def watch(fabric, module, method, optimizers, batch, clock):
        if clock.step == 0:
            free = [n for n, p in method.named_parameters() if p.requires_grad]
            seen[clock.stage] = (free, {n: p.detach().clone() for n, p in method.network.heads.named_parameters()})
        return update(fabric, module, method, optimizers, batch, clock)

    update = fit._update
    monkeypatch.setattr(fit, "_update", watch)
    done = api.train(TwoStages, DATA, tmp_path / "run", **small())
    assert all(n.startswith("network.heads.") for n in seen["heads"][0]) and len(seen["all"][0]) > len(seen["heads"][0])
    assert not any(n.startswith("ema.") for n in seen["all"][0])  # the average never trains
    for name, start in seen["heads"][1].items():
        assert torch.equal(start, seen["all"][1][name])  # set back to the first weights
    assert done.record["facts"]["budget.main"]["iterations"] == 12


def test_leaving_labels_out_is_seeded_and_by_patient():
    manifest = open_dataset("phantom:shapes-2d")
    train = manifest.split().train
    few = api.hide_labels(manifest, train, 2, seed=1)
    kept = {c.id for c in few.cases if c.labels and c.id in train}
    again = api.hide_labels(manifest, train, 2, seed=1)
    assert len({manifest[c].patient for c in kept}) == 2 and kept == {c.id for c in again.cases if c.labels and c.id in train}
    assert all(few[c].labels for c in manifest.split().test)
    assert not api.reader(few)(next(c for c in train if c not in kept)).labels
    with pytest.raises(UsageError, match="--labelled"):
        api.hide_labels(manifest, train, 99, 0)
