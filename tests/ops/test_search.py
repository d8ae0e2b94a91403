"""Searches: the same seed, the same trials; the best so far never falls; the estimator's start is the random search's."""

import math
from importlib.util import find_spec

import numpy as np
import pytest

from vesalius.core.errors import UsageError
from vesalius.ops.search import Range, sweep

SPACE = {"x": Range(-2, 2), "rate": Range(1e-4, 1.0, log=True), "n": Range(1, 9, whole=True), "kind": ("a", "b", "c")}
tpe = pytest.mark.skipif(find_spec("optuna") is None, reason="Optuna is not installed (vesalius[tuning])")


def hill(o):
    return -((o["x"] - 0.7) ** 2) - (math.log10(o["rate"]) + 2) ** 2 - abs(o["n"] - 4) / 4 + (o["kind"] == "b")


@pytest.mark.parametrize("by", ["random", pytest.param("tpe", marks=tpe)])
def test_the_same_seed_gives_the_same_trials_and_the_best_never_falls(by):
    found = sweep(hill, SPACE, trials=20, by=by, seed=3, startup=5)
    assert found == sweep(hill, SPACE, trials=20, by=by, seed=3, startup=5) and found.by == by and len(found.trials) == 20
    assert found.trials != sweep(hill, SPACE, trials=20, by=by, seed=4, startup=5).trials
    assert (np.diff(found.curve) >= 0).all() and found.curve[-1] == found.best.value == max(hill(t.options) for t in found.trials)
    for t in found.trials:
        assert -2 <= t.options["x"] <= 2 and 1e-4 <= t.options["rate"] <= 1 and t.options["kind"] in "abc"
        assert 1 <= t.options["n"] <= 9 and isinstance(t.options["n"], int)


@tpe
def test_with_a_start_as_long_as_the_search_it_is_a_random_one():
    many = sweep(hill, SPACE, trials=12, by="random", seed=1)
    assert sweep(hill, SPACE, trials=12, by="tpe", startup=12, seed=1).trials == many.trials
    assert sweep(hill, SPACE, trials=12, by="tpe", startup=4, seed=1).trials[:4] == many.trials[:4]


@tpe
def test_the_estimator_finds_more_than_chance():
    gain = [
        sweep(hill, SPACE, trials=40, by="tpe", seed=s).best.value - sweep(hill, SPACE, trials=40, by="random", seed=s).best.value
        for s in range(4)
    ]
    assert np.mean(gain) > 0, gain


def test_the_defaults_come_first_and_whole_numbers_are_evenly_drawn():
    found = sweep(lambda o: o.get("x", 9), SPACE, trials=3, by="random", first={})
    assert found.trials[0].options == {} and found.best.value == 9
    rng = np.random.default_rng(0)
    drawn = np.bincount([Range(1, 4, whole=True).draw(rng) for _ in range(4000)])[1:]
    assert (abs(drawn - 1000) < 120).all()
    assert {Range(1, 3, log=True, whole=True).draw(rng) for _ in range(200)} == {1, 2, 3}
    with pytest.raises(UsageError, match="a trial and an option"):
        sweep(hill, {}, trials=3)


def test_without_optuna_it_is_random_and_says_so(monkeypatch):
    monkeypatch.setattr("vesalius.ops.search.find_spec", lambda _: None)
    found = sweep(hill, SPACE, trials=15, by="tpe", startup=2, seed=1)
    assert found.by == "random" and found.trials == sweep(hill, SPACE, trials=15, by="random", seed=1).trials
