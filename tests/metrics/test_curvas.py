"""The CURVAS protocol: the four invariants of its specification (the second as corrected), and what the published code computes."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.interpolate import interp1d
from scipy.stats import norm

from vesalius.core.case import Case, Image, LabelMap
from vesalius.core.errors import DataError, GeometryError
from vesalius.core.geometry import Geometry
from vesalius.core.prediction import Prediction
from vesalius.metrics import curvas
from vesalius.metrics.calibration import multirater_ece, volume_crps
from vesalius.metrics.curvas import body_box, ece_code, mean_ranks, rowwise_dsc, score
from vesalius.metrics.overlap import dsc
from vesalius.metrics.raters import consensus_dsc, regions

NAMES = ("background", "pancreas", "liver")
GRID = Geometry.of((12, 11, 10), (1.0, 1.5, 2.0))


def organs(shift: int = 0, grow: int = 0) -> np.ndarray:
    label = np.zeros(GRID.shape, np.int16)
    label[1 + shift : 5 + shift + grow, 2:6, 2:7] = 1
    label[7:11, 3 : 8 + grow, 1 + shift : 6 + shift] = 2
    return label


def frequencies(maps) -> np.ndarray:
    return np.stack([np.mean([m == k for m in maps], axis=0) for k in range(len(NAMES))]).astype(np.float32)


def case_of(maps, ct: np.ndarray | None = None) -> Case:
    image = np.ones((1, *GRID.shape), np.float32) if ct is None else ct[None]
    labels = {f"rater{i + 1}": LabelMap(m, GRID, NAMES) for i, m in enumerate(maps)}
    return Case("c", "p", images={"CT": Image(image, GRID)}, labels=labels)


def predicted(p: np.ndarray, label: np.ndarray | None = None) -> Prediction:
    label = p.argmax(0).astype(np.int16) if label is None else label
    return Prediction(labels={"prediction": LabelMap(label, GRID, NAMES)}, probability=Image(p, GRID))


def rows_of(p, maps, **options) -> dict:
    return {(r.metric, r.structure, r.rater): r.value for r in score(predicted(p), case_of(maps), **options)}


RATERS = [organs(), organs(0, 1), organs(1, 0)]


def test_a_identical_raters_have_no_dissensus_and_consensus_dsc_is_dsc():
    maps, mask = [organs()] * 3, organs(1, 1)
    assert not regions(maps, 1).dissensus.any()
    p = np.stack([mask == k for k in range(3)]).astype(np.float32)
    rows = rows_of(p, maps)
    for k in (1, 2):
        assert rows["curvas_dsc", NAMES[k], ""] == dsc(mask == k, maps[0] == k)


def test_b_rater_frequencies_are_calibrated_against_exchangeable_raters_only():
    """Raters who differ from voxel to voxel at random are matched by their frequency; one constant dissenter is not (ECE 1/3 in total)."""
    rng = np.random.default_rng(0)
    n = 300_000
    chance = rng.choice([1 / 3, 2 / 3, 1.0], n)  # of saying foreground
    exchangeable = [(rng.uniform(size=n) < chance).astype(int) for _ in range(3)]
    p = np.stack([1 - chance, chance])
    assert multirater_ece(p, exchangeable, bins=50) < 0.01
    dissent = [np.ones(n, int), np.ones(n, int), np.zeros(n, int)]  # frequency 2/3 everywhere
    p = np.stack([np.full(n, 1 / 3), np.full(n, 2 / 3)])
    assert multirater_ece(p, dissent, bins=50) == pytest.approx((1 / 3 + 1 / 3 + 2 / 3) / 3)


def test_c_crps_is_the_closed_form_and_the_absolute_error_without_spread():
    rng = np.random.default_rng(1)
    for _ in range(20):
        volumes, v = rng.uniform(50, 90, 3), float(rng.uniform(40, 100))
        mean, sd = volumes.mean(), volumes.std()
        low, high = min(v, mean - 10 * sd), max(v, mean + 10 * sd)
        gap = lambda y, v=v, mean=mean, sd=sd: (norm.cdf(y, mean, sd) - (y >= v)) ** 2
        integral = quad(gap, low, high, points=[v, mean], limit=400)[0]
        assert volume_crps(v, volumes) == pytest.approx(integral, rel=0.01)
    assert volume_crps(80.0, [70.0, 70.0, 70.0]) == 10
    assert volume_crps(80.0, [70.0, 70.0, 70.0 + 1e-7]) == pytest.approx(10, abs=1e-5)


def published_crps(v: float, volumes: np.ndarray) -> float:
    """The published recipe: the normal's distribution by 100 points between its percentiles, integrated over 3 sd, by quadrature."""
    mean, sd = volumes.mean(), volumes.std()
    x = np.linspace(norm.ppf(0.01, mean, sd), norm.ppf(0.99, mean, sd), 100)
    cdf = interp1d(x, norm.cdf(x, mean, sd), bounds_error=False, fill_value=(0, 1))
    y = np.linspace(mean - 3 * sd, mean + 3 * sd, 200_001)
    return float(np.trapezoid((cdf(y) - 0.5 * (np.sign(y - v) + 1)) ** 2, y))


def test_the_published_crps_is_ours_cut_off_at_three_sd():
    rng = np.random.default_rng(2)
    for _ in range(20):
        volumes = rng.uniform(50, 90, 3)
        v = float(rng.uniform(30, 110))
        assert volume_crps(v, volumes, within=3) == pytest.approx(published_crps(v, volumes), rel=5e-3, abs=1e-3)
    assert volume_crps(1e4, volumes, within=3) == volume_crps(2e4, volumes, within=3) < volume_crps(1e4, volumes)


def test_d_what_is_said_in_dissensus_changes_no_dsc():
    p = frequencies(RATERS)
    before = rows_of(p, RATERS)
    other = p.copy()
    for k in (1, 2):
        where = regions(RATERS, k).dissensus
        other[:, where] = np.eye(3, dtype=np.float32)[0][:, None]
    assert not np.array_equal(other.argmax(0), p.argmax(0))
    after = rows_of(other, RATERS)
    for metric in ("curvas_dsc", "curvas_dsc_code"):
        for k in (1, 2):
            assert before[metric, NAMES[k], ""] == after[metric, NAMES[k], ""]


@pytest.fixture(scope="module")
def exchangeable():
    """Three raters who place each border voxel at random, and the rate at which each says it."""
    rng = np.random.default_rng(3)
    core, wide = organs(), organs()
    rate = np.zeros((3, *GRID.shape), np.float32)
    for k in (1, 2):
        rate[k] = np.where(core == k, 1.0, 0.0)
    edge = (organs(0, 2) != core) & (organs(0, 2) > 0) & (core == 0)
    rate[:, edge] = 0
    for k in (1, 2):
        rate[k][edge & (organs(0, 2) == k)] = 0.65
    rate[0] = 1 - rate[1:].sum(0)
    maps = []
    for _ in range(3):
        said = wide.copy()
        draw = rng.uniform(size=GRID.shape)
        for k in (1, 2):
            said[(rate[k] > 0) & (rate[k] < 1)] = 0
        for k in (1, 2):
            said[(rate[k] > 0) & (rate[k] < 1) & (draw < rate[k])] = k
        maps.append(said)
    return maps, rate


def sharpened(p: np.ndarray, power: float) -> np.ndarray:
    out = np.maximum(p, 1e-6) ** power
    return (out / out.sum(0)).astype(np.float32)


def test_of_equal_decisions_the_calibrated_ones_rank_first(exchangeable):
    maps, rate = exchangeable
    tables = {}
    for name, p in {"calibrated": rate, "overconfident": sharpened(rate, 8), "underconfident": sharpened(0.5 * rate + 0.5 / 3, 1)}.items():
        assert np.array_equal(p.argmax(0), rate.argmax(0))
        rows = rows_of(p, maps)
        tables[name] = {m: np.mean([v for (of, _, rater), v in rows.items() if of == m and not rater]) for m in curvas.RANKED}
    assert len({t["curvas_dsc"] for t in tables.values()}) == 1
    for metric in ("curvas_ece", "curvas_crps"):
        assert tables["calibrated"][metric] < min(tables["overconfident"][metric], tables["underconfident"][metric])
    assert next(iter(mean_ranks(tables))) == "calibrated"


def test_rows_name_raters_structures_and_units():
    rows = score(predicted(frequencies(RATERS)), case_of(RATERS))
    assert {r.metric for r in rows} == set(curvas.ROWS)
    assert [r.rater for r in rows if r.metric == "curvas_ece"] == ["rater1", "rater2", "rater3", ""]
    crps = [r for r in rows if r.metric == "curvas_crps"]
    assert [r.structure for r in crps] == ["pancreas", "liver"] and all(r.extra["unit"] == "mL" for r in crps)
    for r, k in zip(crps, (1, 2), strict=True):
        assert r.extra["raters_ml"] == pytest.approx([(m == k).sum() * 3 / 1000 for m in RATERS])
        assert r.extra["predicted_ml"] == pytest.approx(np.mean(r.extra["raters_ml"]), rel=1e-5)
    assert all(r.patient == "p" and r.to_json() for r in rows)


def test_without_probabilities_only_the_dsc_is_defined():
    label = organs()
    rows = score(Prediction(labels={"prediction": LabelMap(label, GRID, NAMES)}), case_of(RATERS))
    assert {r.metric for r in rows if r.value is not None} == {"curvas_dsc", "curvas_dsc_code"}
    assert all("no probability" in r.note for r in rows if r.value is None)


def test_reference_is_no_rater_beside_raters():
    case = case_of(RATERS)
    with_truth = case.with_(labels={"reference": LabelMap(organs(0, 3), GRID, NAMES)})
    p = predicted(frequencies(RATERS))
    assert score(p, with_truth) == score(p, case)
    assert {r.rater for r in score(p, case, raters=("rater1", "rater3"))} == {"", "rater1", "rater3"}


def test_bad_input_is_refused():
    p = predicted(frequencies(RATERS))
    with pytest.raises(DataError, match="several raters"):
        score(p, case_of(RATERS[:1]))
    moved = case_of(RATERS)
    grid = Geometry.of(GRID.shape, GRID.spacing, origin=(5, 0, 0))
    moved = moved.with_(labels={k: LabelMap(v.data, grid, NAMES) for k, v in moved.labels.items()})
    with pytest.raises(GeometryError, match="different grids"):
        score(p, moved)
    with pytest.raises(DataError, match="one channel a class"):
        score(p.with_(probability=Image(frequencies(RATERS)[1:], GRID)), case_of(RATERS))
    with pytest.raises(DataError, match="NaN"):
        score(p.with_(probability=Image(np.full((3, *GRID.shape), np.nan, np.float32), GRID)), case_of(RATERS))


def test_an_organ_nobody_drew_is_undefined_and_an_organ_one_rater_drew_is_not():
    only = [organs(), np.where(organs() == 2, 2, 0).astype(np.int16), np.where(organs() == 2, 2, 0).astype(np.int16)]
    rows = rows_of(frequencies(only), only)
    assert rows["curvas_dsc", "pancreas", ""] is None and rows["curvas_confidence", "pancreas", ""] is None
    assert rows["curvas_crps", "pancreas", ""] is not None  # 1/3 of one rater's volume against volumes of V, 0, 0


class TestPublishedCode:
    def test_its_dice_is_monais_of_rows(self):
        pytest.importorskip("monai")
        import torch
        from monai.metrics import DiceMetric

        rng = np.random.default_rng(4)
        for _ in range(5):
            p, r = rng.uniform(size=(2, 6, 7, 8)) < 0.3
            r[2] = r[:, 3] = False
            metric = DiceMetric(include_background=False, reduction="mean", get_not_nans=False, ignore_empty=True)
            metric(torch.from_numpy(p.astype(np.uint8)), torch.from_numpy(r.astype(np.uint8)))
            assert rowwise_dsc(p, r) == pytest.approx(metric.aggregate().item(), abs=1e-6)
        assert rowwise_dsc(p, np.zeros_like(r)) is None

    def test_its_ece_has_bins_closed_on_the_left(self):
        p = np.array([[0.4, 0.5, 0.5, 0.0], [0.6, 0.5, 0.5, 1.0]])
        label = np.array([1, 0, 1, 1])
        # bins of 0.5: [0.5, 1) holds three voxels (confidence 0.6, 0.5, 0.5; right 1, 1, 0), certainty its own, right
        assert ece_code(p, label, bins=2) == pytest.approx(abs(1.6 - 2) / 4)

    def test_it_looks_at_the_box_of_positive_ct_only(self):
        ct = np.full(GRID.shape, -50.0, np.float32)
        ct[2:9, 3:10, 4] = 30
        assert body_box(ct) == (slice(2, 9), slice(3, 10), slice(None))
        assert body_box(np.full(GRID.shape, -1.0)) == (slice(None),) * 3
        p = frequencies(RATERS)
        p[:, :2] = np.array([0, 0, 1], np.float32)[:, None, None, None]  # wrong and certain outside the box
        prediction = predicted(p)
        whole = {r.metric: r.value for r in score(prediction, case_of(RATERS)) if not r.rater}
        boxed = {r.metric: r.value for r in score(prediction, case_of(RATERS, ct)) if not r.rater}
        assert boxed["curvas_ece_code"] < whole["curvas_ece_code"] and boxed["curvas_ece"] == whole["curvas_ece"]


def test_ranks_share_ties_and_put_the_undefined_last():
    values = {
        "a": {"curvas_dsc": 0.9, "curvas_ece": 0.1, "curvas_crps": 2.0},
        "b": {"curvas_dsc": 0.9, "curvas_ece": 0.2, "curvas_crps": None},
    }
    assert mean_ranks(values) == {"a": pytest.approx(3.5 / 3), "b": pytest.approx(5.5 / 3)}


def test_consensus_dsc_agrees_with_the_shared_one():
    p = frequencies(RATERS)
    rows = rows_of(p, RATERS)
    for k in (1, 2):
        assert rows["curvas_dsc", NAMES[k], ""] == consensus_dsc(p.argmax(0) == k, RATERS, k)
