"""The proofs of the objective papers say what they mean: arms and options exist, and all arms of one train the same network at one rate."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from vesalius import catalog
from vesalius.core.geometry import LongestSide
from vesalius.core.manifest import Manifest
from vesalius.core.plan import Plan
from vesalius.datasets import open_dataset
from vesalius.engine.progress import Progress
from vesalius.metrics import metric

PROOFS = Path(__file__).resolve().parents[2] / "proofs" / "objectives"


def study(name: str):
    return runpy.run_path(str(PROOFS / f"{name}.py"))["study"]()


@pytest.mark.parametrize("name", ["sauna", "singr", "spockmip"])
def test_arms_differ_by_the_objective_alone(name):
    s = study(name)
    arms = {a.name for a in s.arms}
    assert catalog.get(s.slug).family == "objectives" and s.baseline in arms
    assert all({e.arm, e.against or s.baseline} <= arms and e.metric in s.metrics for e in s.expects)
    assert all(metric(m.removesuffix(", other set")) for m in s.metrics)
    assert len({(arm.method, *sorted(arm.options.items())) for arm in s.arms}) == len(s.arms)
    dims = len(s.plan["patch"])
    manifest = Manifest("made", Path("."), dims, ("a",), {"background": 0, "b": 1, "c": 2}, ())
    plan = Plan(dims, ("a",), 1, manifest.names, **s.plan)
    built = [catalog.build(arm.method, plan, manifest, options=arm.options) for arm in s.arms]
    shapes = [[tuple(p.shape) for n, p in b.network.named_parameters() if not n.startswith("heads.")] for b in built]
    assert all(one == shapes[0] for one in shapes) and len({b.lr for b in built}) == 1


def test_sauna_is_tested_on_its_own_set_and_on_the_other(shared, tmp_path):
    manifest, other = (open_dataset(shared / "2d" / name) for name in ("chase_db1", "drive_vessels"))
    s = study("sauna")
    small = {"grid": LongestSide(64), "patch": (32, 32), "batch": 1, "features": (4, 8), "overlap": 0.0, "test_mirror": (), "workers": 0}
    one = replace(s, arms=s.arms[1:2])
    rows = s.measure(one, manifest, tmp_path, seeds=1, iterations=1, plan=small, progress=Progress(quiet=True))
    for data, words in ((manifest, ""), (other, ", other set")):
        mine = [r for r in rows if r["metric"].endswith(", other set") == bool(words)]
        assert {r["case"] for r in mine} == set(data.held_out().test) and {r["rater"] for r in mine} >= {"rater1"}
        assert {m for m in s.metrics if m.endswith(", other set") == bool(words)} <= {r["metric"] for r in mine}
