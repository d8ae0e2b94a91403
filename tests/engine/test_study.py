"""What `vesalius prove` writes: paired differences, held claims, data that is not here, and runs of other settings left alone."""

import json
from pathlib import Path

import pytest

from vesalius.core.errors import UsageError
from vesalius.engine.study import prove

MEASURED = """
from vesalius.engine.study import Arm, Data, Expect, Study

VALUES = {"plain": (0.5, 0.6, 0.7), "better": (0.6, 0.7, 0.8), "unlike": (0.9, 0.6, 0.5)}


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    return [
        {"method": arm, "case": f"c{i}", "patient": f"p{i}", "seed": seed, "metric": "dsc", "value": value}
        for seed in range(seeds) for arm, values in VALUES.items() for i, value in enumerate(values)
    ]


def study():
    return Study(
        slug="unet", claim="a known answer", arms=tuple(Arm(name, "unet") for name in VALUES),
        data=(Data("phantom:shapes-2d?cases=8"), Data("not/here")), baseline="plain",
        expects=(Expect("better", "dsc", "higher"), EXPECT), metrics=("dsc",), measure=measure,
    )
"""
TRAINED = """
from vesalius.engine.study import Arm, Data, Study

def study():
    return Study(
        slug="unet", claim="any", arms=(Arm("unet", "unet"),), data=(Data("phantom:shapes-2d?cases=8"),), baseline="unet", expects=(),
        metrics=("dsc",), iterations=ITERATIONS, plan={"features": (4, 8), "patch": (32, 32), "batch": 1},
    )
"""


def checkout(root: Path, text: str, **words: object) -> Path:
    for word, value in words.items():
        text = text.replace(word, str(value))
    (root / "proofs" / "networks").mkdir(parents=True, exist_ok=True)
    (root / "proofs" / "networks" / "unet.py").write_text(text)
    return root


@pytest.mark.parametrize(
    ("expect", "held"),
    [
        ('Expect("unlike", "dsc", "higher")', False),
        ('Expect("better", "dsc", "lower")', False),
        ('Expect("better", "dsc", "lower", margin=0.05)', False),
        ('Expect("better", "dsc", "lower", margin=0.2)', True),
    ],
)
def test_a_claim_holds_where_the_interval_lies_on_its_side(tmp_path, expect, held):
    found = prove("unet", checkout(tmp_path, MEASURED, EXPECT=expect), tmp_path / "runs")
    result = found["results"]["phantom:shapes-2d?cases=8"]
    assert [e["held"] for e in result["expected"]] == [True, held]
    assert result["holds"] is held
    assert result["arms"]["better"]["dsc"]["difference"]["mean"] == pytest.approx(0.1)
    assert result["arms"]["plain"]["dsc"]["by seed"] == pytest.approx([0.6] * 3)
    assert "skipped" in found["results"]["not/here"]
    assert json.loads((tmp_path / "proofs" / "results" / "unet.json").read_text())["holds"] == {
        "phantom:shapes-2d?cases=8": held,
        "not/here": None,
    }


def test_a_proof_of_another_length_stands_beside_the_first(tmp_path):
    """Runs of the same settings are taken up again; those of other settings are neither mixed in nor in the way."""
    trained = lambda: sorted((tmp_path / "runs" / "unet").glob("*/*/*/run.json"))
    prove("unet", checkout(tmp_path, TRAINED, ITERATIONS=2), tmp_path / "runs", seeds=1)
    first = [(p, p.stat().st_mtime_ns) for p in trained()]
    assert len(first) == 1
    prove("unet", tmp_path, tmp_path / "runs", seeds=1)
    assert [(p, p.stat().st_mtime_ns) for p in trained()] == first
    prove("unet", checkout(tmp_path, TRAINED, ITERATIONS=3), tmp_path / "runs", seeds=1)
    assert len(trained()) == 2 and set(first) < {(p, p.stat().st_mtime_ns) for p in trained()}


def test_a_data_set_asked_for_by_name_keeps_what_the_study_says_of_it(tmp_path):
    text = TRAINED.replace('Data("phantom:shapes-2d?cases=8")', 'Data("phantom:shapes-2d?cases=8", iterations=2), Data("not/here")')
    prove("unet", checkout(tmp_path, text, ITERATIONS=9), tmp_path / "runs", seeds=1, data=["phantom:shapes-2d?cases=8"])
    (run,) = (tmp_path / "runs" / "unet").glob("*/*/*/run.json")
    assert json.loads(run.read_text())["budget"]["iterations"] == 2


def test_what_was_measured_on_other_data_stays_while_the_study_is_the_same(tmp_path):
    first, second, expect = "phantom:shapes-2d?cases=8", "phantom:shapes-2d?cases=9", 'Expect("better", "dsc", "lower")'
    root = checkout(tmp_path, MEASURED.replace("not/here", second), EXPECT=expect)
    measured = lambda **how: set(prove("unet", root, tmp_path / "runs", **how)["results"])
    assert measured(data=[first]) == {first}
    assert measured(data=[second]) == {first, second}
    assert measured(data=[second], seeds=2) == {second}, "the other has another number of seeds"
    assert measured(data=[first], seeds=2) == {first, second}
    checkout(tmp_path, MEASURED.replace("not/here", second).replace("0.9", "0.8"), EXPECT=expect)
    assert measured(data=[second], seeds=2) == {second}, "the other was measured by another study"


def test_a_method_without_a_proof_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(UsageError, match=r"proofs/networks/unet\.py: unet has no proof here"):
        prove("unet", tmp_path, tmp_path / "runs")
