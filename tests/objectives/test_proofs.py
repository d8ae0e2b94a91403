"""The proofs of the objective papers say what they mean: arms and options exist, and all arms of one train the same network."""

import runpy
from pathlib import Path

import pytest

from vesalius import catalog
from vesalius.core.manifest import Manifest
from vesalius.core.plan import Plan
from vesalius.metrics import metric

PROOFS = Path(__file__).resolve().parents[2] / "proofs" / "objectives"


@pytest.mark.parametrize("name", ["sauna", "singr", "spockmip"])
def test_arms_differ_by_the_objective_alone(name):
    s = runpy.run_path(str(PROOFS / f"{name}.py"))["study"]()
    arms = {a.name for a in s.arms}
    assert catalog.get(s.slug).family == "objectives" and s.baseline in arms
    assert all({e.arm, e.against or s.baseline} <= arms and e.metric in s.metrics for e in s.expects)
    assert all(metric(m) for m in s.metrics)
    dims = len(s.plan["patch"])
    manifest = Manifest("made", Path("."), dims, ("a",), {"background": 0, "b": 1, "c": 2}, ())
    plan = Plan(dims, ("a",), 1, manifest.names, **s.plan)
    shapes = []
    for arm in s.arms:
        network = catalog.build(arm.method, plan, manifest, options=arm.options).network
        shapes.append([tuple(p.shape) for n, p in network.named_parameters() if not n.startswith("heads.")])
    assert all(one == shapes[0] for one in shapes)
