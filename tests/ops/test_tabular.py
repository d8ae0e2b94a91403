"""Tables: gaps, levels, and models that say as arrays what scikit-learn's objects say."""

import numpy as np
import pytest

from vesalius.core.errors import DataError, UsageError
from vesalius.ops import tabular
from vesalius.ops.tabular import SPACES, Scaled, Scaler, fit, level, levels_of, matrix, numeric, target_of

ROWS = [{"age": 40, "bmi": None, "site": "A", "ill": 1}, {"age": 50.5, "bmi": 30, "site": "B", "ill": 0}, {"bmi": float("nan"), "ill": 1}]


def data(levels, n=120, p=4):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, p))
    y = (x[:, 0] + 0.5 * x[:, 1] ** 2 + 0.3 * rng.normal(size=n) > np.linspace(-1, 1, levels + 1)[1:-1, None]).sum(0)
    return x, y


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("kind", list(SPACES))
def test_arrays_give_scikit_learn_s_probabilities(kind, levels):
    x, y = data(levels)
    model = fit(kind, x, y, levels, seed=1)
    theirs = tabular._estimator(kind, {}, 1)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.fit(x, y)
    new = np.random.default_rng(1).normal(size=(50, x.shape[1]))
    np.testing.assert_allclose(model(new), theirs.predict_proba(new), atol=1e-9)
    assert all(v.dtype.kind in "fi" for v in model.arrays.values())


def test_a_cell_names_one_level_however_it_is_written():
    assert {level(v) for v in (1, 1.0, True, np.float32(1), "1")} == {"1"}
    assert levels_of([10, 2.0, None, float("nan"), 1, ""]) == ["1", "2", "10"] and levels_of(["b", "a", "10"]) == ["10", "a", "b"]


def test_a_model_behind_its_scaler_comes_back_from_its_arrays():
    x, y = data(2)
    x[::7, 1] = np.nan
    model = Scaled.fit("tree", x, y, 3, {"depth": 3}, indicators=True)
    again = Scaled.of("tree", 3, {**model.arrays, "other": np.zeros(1)})
    assert np.array_equal(again(x), model(x)) and np.isfinite(model(x)).all() and model(x).shape == (120, 3)
    assert Scaled.of("tree", 3, {"other": np.zeros(1)}) is None


@pytest.mark.parametrize("kind", list(SPACES))
def test_every_corner_of_the_searched_space_can_be_fitted(kind):
    x, y = data(2, 40)
    for end in ("low", "high"):
        options = {k: getattr(r, end) if hasattr(r, "low") else r[-1] for k, r in SPACES[kind].items()}
        assert np.isfinite(fit(kind, x, y, 2, options)(x)).all()


def test_a_level_never_shown_has_probability_zero():
    x, y = data(2)
    p = fit("tree", x, 2 * y, 3)(x)
    assert p.shape == (120, 3) and not p[:, 1].any() and np.allclose(p.sum(1), 1)
    with pytest.raises(DataError, match="two classes"):
        fit("forest", x, np.zeros(120, int), 2)


def test_gaps_take_the_training_median_and_may_be_told():
    x = matrix(ROWS, ("age", "bmi"))
    assert np.isnan(x).tolist() == [[False, True], [False, False], [True, True]]
    scaler = Scaler.fit(np.array([[1.0, 10], [2, np.nan], [9, 30]]), indicators=True)
    assert scaler.facts[0].tolist() == [2, 20] and scaler.gaps.tolist() == [1]
    out = scaler(np.array([[np.nan, np.nan], [2.0, 20]]))
    np.testing.assert_allclose(out[0, :2], out[1, :2])
    assert out[:, 2].tolist() == [1, 0]
    inside = np.array([[1.0, 10], [2, 20], [9, 30]])
    np.testing.assert_allclose(Scaler.fit(inside)(inside).mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(Scaler.fit(inside)(inside).std(0), 1)
    assert np.isfinite(Scaler.fit(np.full((3, 1), np.nan))(np.full((2, 1), np.nan))).all()
    with pytest.raises(DataError, match="holds a word"):
        matrix(ROWS, ("site",))


def test_columns_and_levels_are_read_from_the_training_rows():
    assert numeric(ROWS, ("ill",)) == ("age", "bmi")
    assert target_of(ROWS, "ill") == {"kind": "nominal", "levels": ["0", "1"]}
    assert target_of([{"c": v} for v in (10, 2, 1.0, None)], "c")["levels"] == ["1", "2", "10"]
    assert target_of(ROWS, "site", {"kind": "binary", "levels": ["B", "A"]})["levels"] == ["B", "A"]
    with pytest.raises(UsageError, match="no column"):
        target_of(ROWS, "sites")
    with pytest.raises(DataError, match="fewer than two"):
        target_of(ROWS[:1], "site")
