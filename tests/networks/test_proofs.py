"""The proofs of the network papers say what they mean: options exist, arms differ by what is claimed, sizes are comparable."""

import runpy
from pathlib import Path

import pytest
import torch

from vesalius import catalog
from vesalius.core.manifest import Manifest
from vesalius.core.plan import Plan
from vesalius.networks.ablation import transformer_parameters

PROOFS = Path(__file__).resolve().parents[2] / "proofs" / "networks"
MANIFEST = Manifest("made", Path("."), 3, ("a",), {"background": 0, "b": 1, "c": 2}, ())


def study(name: str):
    return runpy.run_path(str(PROOFS / f"{name}.py"))["study"]()


def built(arm, study) -> torch.nn.Module:
    plan = Plan(3, ("a",), 1, MANIFEST.names, **{"patch": (32, 40, 32), **study.plan})
    if isinstance(arm.method, str):
        return catalog.build(arm.method, plan, MANIFEST, options=arm.options)
    return arm.method(plan, MANIFEST, **arm.options)


@pytest.mark.parametrize("name", sorted(p.stem for p in PROOFS.glob("*.py")))
def test_arms_and_expectations_are_known(name):
    s = study(name)
    arms = {a.name for a in s.arms}
    assert catalog.get(s.slug).family == "networks" and s.baseline in arms
    assert all({e.arm, e.against or s.baseline} <= arms and e.metric in s.metrics for e in s.expects)
    for arm in s.arms:
        if isinstance(arm.method, str):
            catalog.coerce(arm.method, arm.options)


def test_the_forms_of_pranet_differ_in_attention_alone():
    mine = [a for a in study("pranet").arms if a.method == "pranet"]
    common = [{k: v for k, v in a.options.items() if k != "attention"} for a in mine]
    assert len(mine) == 3 and all(c == common[0] for c in common) and len({a.options.get("attention", "reverse") for a in mine}) == 3


def test_primus_differs_from_its_twin_by_its_transformer():
    s = study("primus")
    arms = {a.name: built(a, s).network for a in s.arms}
    size = {n: sum(p.numel() for p in m.parameters()) for n, m in arms.items()}
    inside = transformer_parameters(arms["primus"])
    assert inside > 0.2 * size["primus"] and transformer_parameters(arms["primus without blocks"]) == 0
    assert size["primus"] - size["primus without blocks"] == inside


def test_pls_net_sees_the_whole_and_the_unet_slabs():
    s = study("meningioma_pls")
    methods = {a.name: built(a, s) for a in s.arms}
    assert methods["unet on slabs"].plan.patch == (32, 40, 16)
    for name, m in methods.items():
        if name != "unet on slabs":
            assert m.plan.grid.size == m.plan.patch == (32, 40, 32)
            assert sum(p.numel() for p in m.network.parameters()) < 1_000_000
