"""Every study in proofs/ can be begun: its arms exist, take their options, and speak the contract; its expectations are about its arms."""

import inspect
import runpy
from pathlib import Path

import pytest

from vesalius import catalog
from vesalius.core.method import Method
from vesalius.engine.study import Arm, Study, find

ROOT = Path(__file__).resolve().parent.parent
STUDIES = sorted(p for p in (ROOT / "proofs").glob("*/*.py"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_a_study_is_of_its_slug_and_its_arms_take_their_options(path):
    names = runpy.run_path(str(path))
    study: Study = names["study"]()
    assert find(study.slug, ROOT) == path
    arms = [arm.name for arm in study.arms]
    assert len(set(arms)) == len(arms)
    of = lambda column: next((a for a in arms if column == a or column.startswith(f"{a}, ")), None)
    for column in (study.baseline, *(x for e in study.expects for x in (e.arm, e.against) if x)):
        assert of(column), f"'{column}' is none of the arms {arms}"
    assert {e.metric for e in study.expects} <= set(study.metrics)
    for arm in study.arms:
        check(arm)
    for kind in filter(inspect.isclass, names.values()):
        if issubclass(kind, Method) and kind.__module__ == "<run_path>":
            speaks_the_contract(kind)


def check(arm: Arm) -> None:
    if isinstance(arm.method, str) and arm.method:
        catalog.coerce(arm.method, arm.options)
    elif arm.method:
        inspect.signature(arm.method).bind("plan", "manifest", parts=None, **arm.options)


def speaks_the_contract(kind: type) -> None:
    """What a class overrides takes what its base is called with."""
    for name, own in vars(kind).items():
        base = getattr(super(kind, kind), name, None)
        if name.startswith("__") or not (inspect.isfunction(own) and inspect.isfunction(base)):
            continue
        given = inspect.signature(base).parameters.values()
        positional = [p.name for p in given if p.kind is p.POSITIONAL_OR_KEYWORD]
        inspect.signature(own).bind(*positional, **{p.name: None for p in given if p.kind is p.KEYWORD_ONLY})


def test_an_arm_that_speaks_an_older_contract_is_seen():
    class Old(Method):
        def fit(self, train, val):
            return self

    with pytest.raises(TypeError, match="too many positional"):
        speaks_the_contract(Old)
