"""OOD detection: the invariants of the distances, thresholds from known cases alone, and the tap that reads the features."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from vesalius.core.case import Image
from vesalius.core.errors import DataError, UsageError
from vesalius.engine.infer import infer
from vesalius.methods.trust.ood_knn import OODKNN, Detector

from .small import Lent, fitted, segmenter, setting

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5))
NEW = RNG.normal(size=(20, 5)) * 2


def features(x):
    """(n, d) as (n, C, 1, 1)."""
    return np.asarray(x)[:, :, None, None]


def distances(train, new, **options):
    return Detector(**options).fit(features(train)).distance(features(new))


def test_mahalanobis_is_the_textbook_distance():
    inverse, mean = np.linalg.inv(np.cov(X.T)), X.mean(0)
    expected = np.sqrt([(x - mean) @ inverse @ (x - mean) for x in NEW])
    np.testing.assert_allclose(distances(X, NEW, reducer="none", statistic="mahalanobis"), expected, rtol=1e-9)


def test_mahalanobis_does_not_see_an_invertible_linear_map_and_knn_sees_all_but_rotations():
    m = RNG.normal(size=(5, 5)) + 3 * np.eye(5)
    q, _ = np.linalg.qr(m)
    md, knn = {"reducer": "none", "statistic": "mahalanobis"}, {"reducer": "none"}
    np.testing.assert_allclose(distances(X @ m, NEW @ m, **md), distances(X, NEW, **md), rtol=1e-6)
    np.testing.assert_allclose(distances(X @ q, NEW @ q, **knn), distances(X, NEW, **knn), rtol=1e-9)
    assert not np.allclose(distances(X @ m, NEW @ m, **knn), distances(X, NEW, **knn), rtol=0.1)


def test_the_mean_square_of_training_distances_is_d_of_n_minus_1_over_n():
    """The correction of the specification's (e): not d."""
    square = distances(X, X, reducer="none", statistic="mahalanobis") ** 2
    assert square.mean() == pytest.approx(5 * 59 / 60)


def test_the_pseudo_inverse_where_there_are_more_features_than_cases():
    wide = RNG.normal(size=(12, 40))
    expected = np.linalg.pinv(np.cov(wide.T))
    centred = wide - wide.mean(0)
    found = distances(wide, wide, reducer="none", statistic="mahalanobis")
    np.testing.assert_allclose(found, np.sqrt(np.einsum("ij,jk,ik->i", centred, expected, centred)), rtol=1e-6)
    assert (found**2).mean() == pytest.approx(11 * 11 / 12)  # the rank is n - 1


def test_a_training_case_is_at_distance_zero_and_k_counts_from_the_nearest():
    assert np.allclose(distances(X, X, reducer="none"), 0)
    brute = np.sort(np.linalg.norm(NEW[:, None] - X[None], axis=-1), axis=1)
    for k in (1, 3, 60):
        np.testing.assert_allclose(distances(X, NEW, reducer="none", k=k), brute[:, k - 1])


def test_pca_keeps_distances_when_nothing_is_dropped_and_never_sees_the_new_cases():
    np.testing.assert_allclose(distances(X, NEW, reducer="pca", components=5), distances(X, NEW, reducer="none"))
    alone = distances(X, NEW[:1], reducer="pca", components=2)
    assert np.allclose(distances(X, NEW, reducer="pca", components=2)[:1], alone)
    low = RNG.normal(size=(50, 2)) @ RNG.normal(size=(2, 30))
    reduced = Detector("pca", "mahalanobis", components=8).fit(features(low))
    assert reduced.axes.shape == (30, 2)


def test_pooling_is_the_mean_of_blocks():
    x = RNG.normal(size=(6, 3, 4, 4))
    pooled = Detector("pool").fit(x)
    blocks = x.reshape(6, 3, 2, 2, 2, 2).mean((3, 5)).reshape(6, -1)
    np.testing.assert_allclose(pooled.train + pooled.mean, blocks)
    assert Detector("global").fit(x).mean.shape == (3,)
    assert Detector("pool", kernel=3, stride=1).fit(x).mean.shape == (3 * 2 * 2,)
    volume = RNG.normal(size=(4, 2, 4, 4, 1))
    assert Detector("pool").fit(volume).mean.shape == (2 * 2 * 2 * 1,)


def test_separable_sets_are_told_apart_and_equal_ones_are_not():
    inside, far = RNG.normal(size=(200, 5)), RNG.normal(size=(200, 5)) + 20
    for options in ({"reducer": "none"}, {"reducer": "none", "statistic": "mahalanobis"}):
        both = np.concatenate([distances(X, inside, **options), distances(X, far, **options)])
        truth = np.repeat([0, 1], 200)
        assert roc_auc_score(truth, both) == 1
        same = np.concatenate([distances(X, inside, **options), distances(X, RNG.normal(size=(200, 5)), **options)])
        assert abs(roc_auc_score(truth, same) - 0.5) < 0.08


def test_bad_detectors():
    with pytest.raises(DataError, match="too few"):
        distances(X[:1], NEW, statistic="mahalanobis")
    with pytest.raises(DataError, match="do not differ"):
        distances(np.ones((5, 3)), NEW[:, :3], statistic="mahalanobis")
    with pytest.raises(DataError, match="reducer=global"):
        Detector("none").fit(np.ones((4, 2, 3, 3))).distance(np.ones((1, 2, 4, 4)))


# ---------------------------------------------------------------------------------------------------------------------------- the method
@pytest.fixture(scope="module")
def world():
    manifest, split, plan, read = setting()
    return manifest, split, plan, read, segmenter(plan, manifest)


def test_the_tap_sees_every_window_and_leaves_nothing_behind(world):
    manifest, split, plan, read, net = world
    from vesalius.engine.prepare import prepare

    case = prepare(read(split.test[0]), plan, net).without_labels()
    plain = net.predict(case, rng=np.random.default_rng(0))
    with torch.no_grad(), net.tap() as seen:
        tapped = net.predict(case, rng=np.random.default_rng(0))
    windows = torch.cat(seen)
    flips = 2 ** len(plan.test_mirror)
    assert windows.shape == (flips * net.inferer().count(case.geometry.shape), 8, 32, 32)
    assert np.array_equal(plain.probability.data, tapped.probability.data)
    with torch.no_grad():
        net.predict(case, rng=np.random.default_rng(0))
    assert len(torch.cat(seen)) == len(windows)  # the hook is gone
    assert net.bottleneck is net.ema.average.bottleneck  # the network that predicts
    with torch.no_grad(), net.tap("ema.average.heads") as none, pytest.raises(UsageError, match="Did you mean"):
        with net.tap("ema.average.head"):
            pass
    assert none == []


def test_an_accelerated_forward_is_set_aside_while_tapped(world):
    manifest, split, plan, read, net = world
    net.fast = lambda image: pytest.fail("the fast forward has no hooks")
    try:
        with net.tap():
            assert net.fast is None
        assert net.fast is not None
    finally:
        net.fast = None


@pytest.mark.parametrize("options", [{}, {"reducer": "global", "distance": "mahalanobis"}, {"reducer": "none", "k": 2}])
def test_corrupted_cases_are_farther_and_the_state_comes_back(world, options):
    manifest, split, plan, read, net = world
    wrapper = fitted(OODKNN(plan, manifest, parts={"segmenter": net}, **options), manifest, split)
    case = read(split.test[0])
    known = infer(wrapper, case, plan)
    image = case.images["image"]
    strange = case.with_(images={"image": Image(100 * RNG.normal(size=image.data.shape).astype(np.float32), image.geometry)})
    odd = infer(wrapper, strange, plan)
    assert odd.table["ood"] > known.table["ood"] and odd.table["ood"] > wrapper.threshold
    assert "unlike the training cases" in odd.notes[-1]
    assert np.array_equal(known.label.data, infer(net, case, plan).label.data)  # the segmenter's answer is untouched
    again = OODKNN(plan, manifest, parts={"segmenter": segmenter(plan, manifest)}, **options)
    again.load_state(*wrapper.state())
    assert infer(again, strange, plan).table == odd.table


def test_only_training_and_validation_cases_are_seen_in_fitting(world):
    manifest, split, plan, read, net = world
    wrapper = OODKNN(plan, manifest, parts={"segmenter": net})
    run = Lent(manifest, wrapper)
    wrapper.fit(split.train, split.val, run)
    assert set(run.asked) == {*split.train, *split.val}
    assert len(wrapper.known) == len(split.train) + len(split.val)  # training cases held out in folds: none at distance 0
    assert wrapper.known.min() > 0 and (wrapper.known <= wrapper.threshold).mean() >= 0.9


def test_it_refuses_what_it_cannot_do(world):
    manifest, split, plan, read, net = world
    with pytest.raises(UsageError, match="learned segmenter"):
        OODKNN(plan, manifest, parts={"other": net})
    with pytest.raises(UsageError, match="no such detector"):
        OODKNN(plan, manifest, parts={"segmenter": net}, k=0)
    bare = infer(OODKNN(plan, manifest, parts={"segmenter": net}), read(split.test[0]), plan)
    assert "ood" not in bare.table and "not fitted" in bare.notes[-1] and bare.label is not None
    with pytest.raises(DataError, match="threshold needs"):
        OODKNN(plan, manifest, parts={"segmenter": net}).fit(split.train[:2], (), Lent(manifest, OODKNN(plan, manifest)))


def test_it_trains_its_part_and_opens_again(tmp_path):
    """vesalius train ood-knn --part segmenter=unet"""
    from vesalius.engine import api

    small = {"features": (4, 8), "batch": 2, "precision": "32", "threads": 1, "workers": 0}
    data, parts = "phantom:shapes-2d?cases=12", {"segmenter": "unet"}
    done = api.train("ood-knn", data, tmp_path / "run", parts=parts, options={"k": "2"}, iterations=2, validations=1, plan_overrides=small)
    again = api.open_run(tmp_path / "run")
    assert type(again.method.parts["segmenter"]).__name__ == "PlannedUNet" and again.method.detector.k == 2
    case = api.reader(done.manifest)(done.split.test[0])
    a, b = (infer(t.method, case, t.plan) for t in (done, again))
    assert a.table == b.table and a.table["ood"] > 0
