import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from sklearn import metrics as sk

from vesalius.core.case import IGNORE
from vesalius.core.errors import DataError, GeometryError, UsageError
from vesalius.metrics import calibration as cal
from vesalius.metrics.raters import consensus_dsc


def channels(rng, k=4, shape=(6, 7, 5)):
    p = rng.dirichlet(np.ones(k), shape)
    return np.moveaxis(p, -1, 0), rng.integers(0, k, shape)


def by_hand(confidence, event, bins):
    """ECE, MCE and overconfidence error, bin by bin."""
    gaps = []
    for m in range(bins):
        low, high = m / bins, (m + 1) / bins
        inside = (confidence <= high) & ((confidence > low) | (m == 0))
        if inside.any():
            gaps.append((inside.mean(), confidence[inside].mean(), event[inside].mean()))
    return (
        sum(s * abs(a - c) for s, c, a in gaps),
        max(abs(a - c) for _, c, a in gaps),
        sum(s * c * max(c - a, 0) for s, c, a in gaps),
    )


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_every_form_against_bins_by_hand(bins):
    rng = np.random.default_rng(bins)
    p, y = channels(rng)
    flat, label = p.reshape(4, -1), y.ravel()
    top = by_hand(flat.max(0), flat.argmax(0) == label, bins)
    foreground = by_hand(1 - flat[0], label > 0, bins)
    each = [by_hand(flat[k], label == k, bins) for k in range(4)]
    for n, f in enumerate((cal.ece, cal.mce, cal.overconfidence_error)):
        assert f(p, y, bins=bins) == pytest.approx(top[n], abs=1e-12)
        assert f(p, y, bins=bins, form="foreground") == pytest.approx(foreground[n], abs=1e-9)
        whole = max if f is cal.mce else lambda v: sum(v) / len(v)
        assert f(p, y, bins=bins, form="class-wise") == pytest.approx(whole([e[n] for e in each]), abs=1e-12)


def test_one_map_is_two_channels():
    rng = np.random.default_rng(0)
    p, y = rng.random((8, 9)), rng.random((8, 9)) < 0.4
    both = np.stack([1 - p, p])
    for form in cal.FORMS:
        assert cal.ece(p, y, form=form) == pytest.approx(cal.ece(both, y.astype(int), form=form), abs=1e-12)
    assert cal.nll(p, y) == pytest.approx(cal.nll(both, y.astype(int)))
    assert 2 * cal.brier(p, y) == pytest.approx(cal.brier(both, y.astype(int)))


def test_against_monai():
    monai = pytest.importorskip("monai.metrics", reason="MONAI is not installed")
    import torch

    p, y = channels(np.random.default_rng(3), k=3)
    truth = np.stack([y == k for k in range(3)])
    kind = monai.CalibrationReduction
    for reduction, ours in ((kind.EXPECTED, cal.ece), (kind.MAXIMUM, cal.mce)):
        m = monai.CalibrationErrorMetric(num_bins=10, calibration_reduction=reduction, right=True)
        m(y_pred=torch.tensor(p)[None], y=torch.tensor(truth)[None].double())
        tables = [ours(q, t, form="foreground", bins=10) for q, t in zip(p, truth, strict=True)]
        assert float(m.aggregate()) == pytest.approx(np.mean(tables), abs=1e-6)


def test_proper_scores_against_scikit_learn():
    rng = np.random.default_rng(1)
    p, y = channels(rng)
    flat, label = p.reshape(4, -1).T, y.ravel()
    assert cal.nll(p, y) == pytest.approx(sk.log_loss(label, flat, labels=range(4)))
    assert cal.brier(p, y) == pytest.approx(np.square(flat - np.eye(4)[label]).sum(1).mean())
    one, event = rng.random(90), rng.random(90) < 0.3
    assert cal.brier(one, event) == pytest.approx(sk.brier_score_loss(event, one))
    assert cal.nll(one, event) == pytest.approx(sk.log_loss(event, one))
    assert cal.nll(np.array([0.0]), np.array([True])) == pytest.approx(-np.log(np.finfo(float).eps))


def test_known_answers():
    p = np.full((10, 10), 0.75)
    event = np.arange(100).reshape(10, 10) % 4 > 0
    assert cal.ece(p, event, form="foreground") == 0 == cal.mce(p, event)
    assert cal.ece(p, ~event, form="foreground") == pytest.approx(0.5)
    assert cal.overconfidence_error(p, ~event, form="foreground") == pytest.approx(0.75 * 0.5)
    assert cal.overconfidence_error(np.full(4, 0.25), np.array([1, 1, 1, 0], bool), form="foreground") == 0


def test_reliability_table():
    t = cal.reliability(np.array([0.0, 0.1, 0.5, 0.51, 1.0]), np.array([0, 0, 1, 0, 1], bool), bins=2)
    assert t.edges.tolist() == [0, 0.5, 1] and t.count.tolist() == [3, 2]
    assert t.confidence == pytest.approx([0.2, 0.755]) and t.accuracy == pytest.approx([1 / 3, 1 / 2])
    empty = cal.reliability(np.array([0.9]), np.array([True]), bins=3)
    assert empty.count.tolist() == [0, 0, 1] and np.isnan(empty.accuracy[:2]).all()


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 12), st.booleans())
def test_laws_of_ece(seed, bins, adaptive):
    rng = np.random.default_rng(seed)
    p, y = rng.choice(np.linspace(0, 1, 9), 40), rng.random(40) < 0.5
    value = cal.ece(p, y, form="foreground", bins=bins, adaptive=adaptive)
    assert 0 <= value <= cal.mce(p, y, form="foreground", bins=bins, adaptive=adaptive) + 1e-12 <= 1 + 1e-12
    order = rng.permutation(40)
    assert cal.ece(p[order], y[order], form="foreground", bins=bins, adaptive=adaptive) == pytest.approx(value, abs=1e-12)
    assert cal.ece(p, y, form="foreground", bins=1) == pytest.approx(abs(p.mean() - y.mean()), abs=1e-12)
    assert cal.overconfidence_error(p, y, form="foreground", bins=bins) <= cal.ece(p, y, form="foreground", bins=bins) + 1e-12


def test_adaptive_bins_hold_equal_numbers():
    rng = np.random.default_rng(5)
    p = rng.random(1200) ** 4
    t = cal.reliability(p, rng.random(1200) < p, bins=12, adaptive=True)
    assert (t.count == 100).all()
    assert cal.reliability(np.ones(30), np.ones(30, bool), bins=5, adaptive=True).count.sum() == 30


def test_only_spoken_voxels_of_the_roi_count():
    rng = np.random.default_rng(2)
    p, y = channels(rng, k=3)
    roi = rng.random(y.shape) < 0.5
    silent = rng.random(y.shape) < 0.3
    masked = np.where(silent, IGNORE, y)
    keep = roi & ~silent
    for f in (cal.ece, cal.mce, cal.brier, cal.nll, cal.overconfidence_error):
        assert f(p, masked, roi=roi) == pytest.approx(f(p[:, keep], y[keep]))
        assert f(p, masked, roi=np.zeros_like(roi)) is None
        assert f(p, np.full_like(y, IGNORE)) is None
    broken = np.where(silent, np.nan, p)
    assert cal.ece(broken, masked) == cal.ece(p, masked)  # what nobody speaks for is not looked at


@pytest.mark.parametrize("f", [cal.ece, cal.mce, cal.brier, cal.nll, cal.overconfidence_error])
def test_bad_probabilities_are_named(f):
    y = np.array([0, 1, 1])
    with pytest.raises(DataError, match="NaN in 1 of 3"):
        f(np.array([0.2, np.nan, 0.1]), y)
    with pytest.raises(DataError, match="from 0 to 1"):
        f(np.array([0.2, 1.2, 0.1]), y)
    with pytest.raises(DataError, match="sum to 1.*with_background"):
        f(np.full((2, 3), 0.2), y)
    with pytest.raises(DataError, match="no channel"):
        f(np.array([0.2, 0.2, 0.1]), y + 1)
    with pytest.raises(GeometryError, match="shapes"):
        f(np.full((2, 4), 0.5), y)
    with pytest.raises(DataError, match="class indices"):
        f(np.full(3, 0.5), y / 2)


def test_bad_options():
    with pytest.raises(UsageError, match="form"):
        cal.ece(np.ones(2), np.ones(2, bool), form="bottom")
    with pytest.raises(UsageError, match="bin"):
        cal.ece(np.ones(2), np.ones(2, bool), bins=0)
    with pytest.raises(TypeError):
        cal.ece(np.ones(2), np.ones(2, bool), bin=3)
    with pytest.raises(GeometryError, match="region"):
        cal.ece(np.ones(2), np.ones(2, bool), roi=np.ones(3, bool))


# --------------------------------------------------------------------------------------------------------------------------- temperature
def test_temperature_is_recovered_and_keeps_decisions():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (3, 60, 100))
    p = cal.softmax(logits)
    y = (rng.random((60, 100)) > np.cumsum(p, axis=0)[:2]).sum(axis=0)  # labels drawn from p: T = 1 is right
    for scale in (0.5, 1.0, 3.0):
        t = cal.fit_temperature(logits * scale, y)
        assert t == pytest.approx(scale, rel=0.05)
        before, after = cal.softmax(logits * scale), cal.softmax(logits * scale, t)
        assert (before.argmax(0) == after.argmax(0)).all()
        assert cal.nll(after, y) <= cal.nll(before, y) + 1e-9
    sharp = cal.softmax(logits * 3)
    assert cal.ece(cal.softmax(logits * 3, cal.fit_temperature(logits * 3, y)), y) < cal.ece(sharp, y) / 3


def test_temperature_refuses():
    with pytest.raises(DataError, match="one channel a class"):
        cal.fit_temperature(np.zeros((4, 4)), np.zeros((4, 4), int))
    with pytest.raises(DataError, match="labelled voxels"):
        cal.fit_temperature(np.zeros((2, 4)), np.full(4, IGNORE))
    with pytest.raises(UsageError):
        cal.softmax(np.zeros((2, 4)), 0)


# ------------------------------------------------------------------------------------------------------------------------------- curvas
def test_multirater_ece():
    rng = np.random.default_rng(4)
    p, _ = channels(rng, k=3)
    raters = [rng.integers(0, 3, p.shape[1:]) for _ in range(3)]
    each = cal.ece_by_rater(p, raters)
    assert each == pytest.approx([by_hand(p.max(0).ravel(), (p.argmax(0) == r).ravel(), 5)[0] for r in raters])
    assert cal.multirater_ece(p, raters) == pytest.approx(np.mean(each))
    assert cal.multirater_ece(p, [*raters, np.full_like(raters[0], IGNORE)]) == pytest.approx(np.mean(each))
    assert cal.multirater_ece(p, []) is None


def test_the_frequency_of_raters_is_calibrated_only_when_they_are_exchangeable():
    yes, no = np.ones(300, int), np.zeros(300, int)
    p = np.full(300, 2 / 3)
    assert cal.multirater_ece(p, [yes, yes, no]) == pytest.approx((1 / 3 + 1 / 3 + 2 / 3) / 3)  # a constant dissenter keeps it up
    turns = [np.roll(np.tile([1, 1, 0], 100), n) for n in range(3)]
    assert cal.multirater_ece(p, turns) == pytest.approx(0, abs=1e-12)


def test_a_background_channel_is_prepended():
    organs = np.random.default_rng(0).dirichlet(np.ones(4), 50).T[1:]
    full = cal.with_background(organs)
    assert full.shape == (4, 50) and np.allclose(full.sum(0), 1)
    with pytest.raises(DataError, match="sum to more than 1"):
        cal.with_background(np.full((3, 5), 0.5))


def integral(mean, sd, value, within):
    f = lambda y: (norm.cdf(y, mean, sd) - (y >= value)) ** 2
    low, high = mean - within * sd, mean + within * sd
    cut = min(max(value, low), high)
    return quad(f, low, cut, limit=200)[0] + quad(f, cut, high, limit=200)[0]


@pytest.mark.parametrize("value", [-8.0, 1.0, 2.5, 4.0, 30.0])
@pytest.mark.parametrize("within", [1.0, 3.0])
def test_crps_of_a_normal_is_its_integral(value, within):
    assert cal.crps_gaussian(2.0, 1.5, value, within=within) == pytest.approx(integral(2.0, 1.5, value, within), abs=1e-7)
    if 2 - 3 * 1.5 <= value <= 2 + 3 * 1.5:
        z = (value - 2) / 1.5
        closed = 1.5 * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
        assert cal.crps_gaussian(2.0, 1.5, value) == pytest.approx(closed, abs=1e-12)
        assert cal.crps_gaussian(2.0, 1.5, value, within=3) == pytest.approx(closed, rel=0.01)  # the invariant of the specification


def test_crps_tends_to_the_absolute_error():
    for sd in (0.0, 1e-300, 1e-6):
        assert cal.crps_gaussian(5.0, sd, 7.0) == pytest.approx(2.0, abs=1e-6)
    assert cal.volume_crps(12.0, [10.0, 10.0, 10.0]) == 2
    assert cal.volume_crps([11.0, 13.0], [10.0], within=3) == 2
    assert cal.volume_crps([], [1.0]) is None is cal.volume_crps([1.0], [])
    assert cal.volume_crps(12.0, [8.0, 10.0]) == pytest.approx(cal.crps_gaussian(9, 1, 12))
    with pytest.raises(DataError, match="finite"):
        cal.volume_crps(np.nan, [1.0])


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=8), st.floats(-60, 60))
def test_crps_of_an_ensemble_is_its_integral(members, value):
    at = np.unique([*members, value])
    steps = [(np.mean(np.array(members) <= a) - (a >= value)) ** 2 for a in at[:-1]]
    assert cal.crps_ensemble(members, value) == pytest.approx(float(np.diff(at) @ np.array(steps)) if len(at) > 1 else 0.0, abs=1e-9)


def test_crps_of_ensembles():
    draws = norm.ppf((np.arange(4000) + 0.5) / 4000, 3, 2)
    assert cal.crps_ensemble(draws, 4.0) == pytest.approx(cal.crps_gaussian(3, 2, 4.0), abs=1e-3)
    assert cal.crps_ensemble([], 1.0) is None is cal.volume_crps_ensemble([], [1.0])
    assert cal.volume_crps_ensemble([1.0, 3.0], [2.0, 5.0]) == pytest.approx(np.mean([0.5, 2.5]))


def test_prove_it_small():
    """Three predictors of one argmax: the raters' frequency is best calibrated, Dice is the same."""
    at = np.indices((24, 24, 24)) - 11.5
    radius = np.sqrt((at**2).sum(0))
    raters = [radius < r for r in (6.5, 8.0, 9.5)]
    frequency = np.mean(raters, axis=0)
    sharp, dull = np.clip((frequency - 0.5) * 9 + 0.5, 0, 1), (frequency - 0.5) * 0.5 + 0.5
    maps = {"over": sharp, "right": frequency, "under": dull}
    roi = radius < 11
    ece = {
        k: cal.ece(np.tile(p, (3, 1, 1)), np.concatenate(raters), form="foreground", roi=np.tile(roi, (3, 1, 1))) for k, p in maps.items()
    }
    crps = {k: cal.volume_crps(p[roi].sum(), [r.sum() for r in raters], within=3) for k, p in maps.items()}
    dice = {consensus_dsc(p >= 0.5, raters) for p in maps.values()}
    assert len(dice) == 1 and ece["right"] < 1e-9 < min(ece["over"], ece["under"]) and crps["right"] == min(crps.values())
