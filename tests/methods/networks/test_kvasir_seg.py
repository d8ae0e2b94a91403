"""Fuzzy C-means: its mathematics, and a rule that never sees the answer."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from vesalius import catalog
from vesalius.core.case import Case, Image, LabelMap
from vesalius.core.errors import DataError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import Manifest
from vesalius.core.plan import Plan
from vesalius.methods.networks.kvasir_seg import NOT_LEARNT, FuzzyCMeans, describe, fuzzy_c_means, guess, memberships, regress

COLOURS = {"mucosa": (150, 100, 90), "polyp": (210, 90, 70), "shadow": (40, 20, 20)}


def method(*, channels: int = 1, classes: int = 2, **options) -> FuzzyCMeans:
    names = {"background": 0, **{f"c{k}": k for k in range(1, classes)}}
    manifest = Manifest("made", Path("."), 2, ("RGB",), names, ())
    return catalog.build("fuzzy-c-means", Plan(2, ("RGB",), channels, tuple(names), patch=(32, 32)), manifest, options=options)


def frame(seed: int, *, polyp: str = "polyp", grey: bool = False) -> Case:
    """A small blob of one colour in the middle, a large shadow at a corner."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :48]
    at = rng.integers(14, 26, 2)
    mask = (y - at[0]) ** 2 + (x - at[1]) ** 2 < 49
    shadow = y + x < 30
    rgb = np.empty((40, 48, 3))
    rgb[:] = COLOURS["mucosa"]
    rgb[shadow] = COLOURS["shadow" if polyp == "polyp" else "polyp"]
    rgb[mask] = COLOURS[polyp]
    rgb += rng.normal(0, 4, rgb.shape)
    data = np.moveaxis(rgb, -1, 0).astype(np.float32)
    grid = Geometry.of((40, 48))
    image = Image(data.mean(0, keepdims=True) if grey else data, grid)
    return Case(f"f{seed}", images={"RGB": image}, labels={"reference": LabelMap(mask.astype(np.int16), grid, ("background", "c1"))})


class Lent:
    """What the engine lends: prepared cases, a log."""

    def __init__(self, cases):
        self.cases, self.logged = {c.id: c for c in cases}, {}

    def prepared(self, case):
        return self.cases[case]

    def log(self, **values):
        self.logged.update(values)


def taught(cases, **options) -> tuple[FuzzyCMeans, Lent]:
    m, run = method(channels=len(cases[0].images["RGB"].data), **options), Lent(cases)
    m.fit(list(run.cases), [], run)
    return m, run


def answer(m: FuzzyCMeans, case: Case) -> np.ndarray:
    return np.asarray(m.predict(case.without_labels(), rng=np.random.default_rng(0)).labels["prediction"].data)


def dice(a, b) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


class TestClusters:
    @pytest.mark.parametrize("m", [1.3, 2.0, 3.5])
    def test_degrees_are_those_of_the_formula_and_sum_to_one(self, m):
        rng = np.random.default_rng(0)
        x, c = rng.normal(size=(50, 3)), rng.normal(size=(4, 3))
        u = memberships(x, c, m)
        d = np.linalg.norm(x[:, None] - c, axis=-1)
        brute = 1 / ((d[:, :, None] / d[:, None, :]) ** (2 / (m - 1))).sum(-1)
        np.testing.assert_allclose(u, brute, rtol=1e-9)
        np.testing.assert_allclose(u.sum(1), 1)

    @pytest.mark.parametrize("m", [1.3, 2.0, 3.5])
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_the_objective_never_rises(self, m, seed):
        x = np.random.default_rng(seed).normal(size=(300, 3)) ** 3
        _, objective = fuzzy_c_means(x, 4, fuzziness=m, tolerance=1e-9)
        assert len(objective) > 3 and (np.diff(objective) <= 1e-9 * objective[0]).all()

    def test_groups_far_apart_are_found(self):
        rng = np.random.default_rng(0)
        true = np.array([[0.0, 0], [10, 0], [0, 30]])
        x = np.concatenate([t + rng.normal(0, 0.3, (80, 2)) for t in true])
        centres, _ = fuzzy_c_means(x, 3)
        np.testing.assert_allclose(centres[np.lexsort(centres.round().T)], true[np.lexsort(true.T)], atol=0.2)

    def test_points_on_a_centre_and_one_colour_everywhere(self):
        u = memberships(np.array([[0.0], [1.0]]), np.array([[0.0], [0.0], [1.0]]), 2.0)
        np.testing.assert_allclose(u, [[0.5, 0.5, 0], [0, 0, 1]])
        centres, objective = fuzzy_c_means(np.full((20, 3), 7.0), 3)
        assert np.isfinite(centres).all() and objective[-1] < 1e-20
        assert np.isfinite(fuzzy_c_means(np.ones((1, 2)), 2)[0]).all()

    def test_against_scikit_fuzzy(self):
        skfuzzy = pytest.importorskip("skfuzzy")
        x = np.random.default_rng(0).normal(size=(200, 3))
        ours, _ = fuzzy_c_means(x, 2, tolerance=1e-8, iterations=500)
        theirs = skfuzzy.cmeans(x.T, 2, 2.0, 1e-8, 500, seed=0)[0]
        np.testing.assert_allclose(ours[np.argsort(ours[:, 0])], theirs[np.argsort(theirs[:, 0])], atol=1e-3)


class TestRule:
    def test_ridge_without_a_penalty_is_least_squares(self):
        rng = np.random.default_rng(0)
        x, w = rng.normal(3, 2, (60, 4)), np.array([1.0, -2, 0.5, 0])
        rule = regress(x, x @ w + 5, 1e-12)
        assert guess(x[7], rule) == pytest.approx(x[7] @ w + 5)
        assert guess(x[7], regress(x, x @ w + 5, 1e6)) == pytest.approx((x @ w + 5).mean(), rel=1e-2)

    def test_what_a_cluster_is_described_by(self):
        image = np.zeros((1, 20, 20), np.float32)
        image[0, 8:12, 8:12] = 1
        colour, share, place, spread, rim = describe(image[0], image)
        assert share == pytest.approx(16 / 400) and rim == 0 and place < 0.1 and spread < 0.1
        assert colour == pytest.approx((1 - image.mean()) / image.std(), rel=1e-5)
        assert describe(1 - image[0], image)[-1] > 0.1

    def test_it_is_learnt_from_training_frames(self):
        m, run = taught([frame(s) for s in range(8)])
        assert run.logged["training_clusters"] == 24
        for seed in (20, 21, 22):
            case = frame(seed)
            assert dice(answer(m, case) > 0, np.asarray(case.label.data) > 0) > 0.9

    def test_other_labels_teach_another_cluster(self):
        """The same colours with the roles of polyp and shadow exchanged: what is taken follows the training labels."""
        swapped = [frame(s, polyp="shadow") for s in range(8)]
        m, _ = taught(swapped)
        case = frame(30, polyp="shadow")
        assert dice(answer(m, case) > 0, np.asarray(case.label.data) > 0) > 0.9

    def test_the_answer_does_not_depend_on_the_reference(self):
        m, _ = taught([frame(s) for s in range(6)])
        case = frame(40)
        lied = case.with_(labels={"reference": LabelMap(1 - np.asarray(case.label.data), case.geometry, ("background", "c1"))})
        first = m.predict(case, rng=np.random.default_rng(0)).labels["prediction"].data
        assert np.array_equal(first, m.predict(lied, rng=np.random.default_rng(0)).labels["prediction"].data)

    def test_grey_frames_and_the_state(self):
        m, _ = taught([frame(s, grey=True) for s in range(6)])
        again = method()
        again.load_state(*m.state())
        case = frame(50, grey=True)
        assert np.array_equal(answer(m, case), answer(again, case)) and answer(m, case).any()

    def test_untaught_it_says_so(self):
        case = frame(0)
        prediction = method(channels=3).predict(case.without_labels(), rng=np.random.default_rng(0))
        assert prediction.notes == (NOT_LEARNT,) and prediction.images["degree"].data.shape == (1, 40, 48)
        with pytest.raises(DataError, match="no training case has labels"):
            taught([frame(0).without_labels()])

    def test_frames_without_a_polyp_are_survived(self):
        cases = [frame(s) for s in range(4)]
        grid = cases[0].geometry
        cases += [frame(9).with_(labels={"reference": LabelMap(np.zeros((40, 48), np.int16), grid, ("background", "c1"))})]
        m, _ = taught(cases)
        assert np.isfinite(m.rule).all()


class TestOptions:
    @pytest.mark.parametrize(
        "options", [{"clusters": 1}, {"fuzziness": 1.0}, {"iterations": 0}, {"tolerance": 0.0}, {"pixels": -1}, {"ridge": 0.0}]
    )
    def test_impossible_ones_are_refused(self, options):
        with pytest.raises(UsageError, match="impossible"):
            method(**options)

    def test_the_target_is_a_class(self):
        assert answer(method(channels=3, classes=4, target="c3"), frame(1)).max() == 3
        with pytest.raises(UsageError, match="no foreground class"):
            method(target="polip")

    def test_all_pixels_or_some(self):
        case = frame(2)
        some, every = method(channels=3, pixels=200), method(channels=3, pixels=0)
        assert np.mean(answer(some, case) == answer(every, case)) > 0.98


def test_the_proofs_arms_are_known():
    s = runpy.run_path(str(Path(__file__).resolve().parents[3] / "proofs" / "networks" / "kvasir_seg.py"))["study"]()
    assert s.baseline in {a.name for a in s.arms} and {e.arm for e in s.expects} <= {a.name for a in s.arms}
    for arm in s.arms:
        catalog.coerce(arm.method, arm.options)
    network = catalog.build(s.slug, Plan(2, ("RGB",), 3, ("background", "polyp"), **s.plan), method().manifest, options=s.arms[1].options)
    assert network.plan.patch == (128, 128) and network.out_channels == 2
