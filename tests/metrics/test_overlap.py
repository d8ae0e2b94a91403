import numpy as np
import pytest
from sklearn import metrics as sk

from vesalius.core.errors import GeometryError, UsageError
from vesalius.metrics import overlap

EMPTY, FULL, ONE = np.zeros((3, 4), bool), np.ones((3, 4), bool), np.eye(3, 4, dtype=bool)


def test_against_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(200):
        p, r = rng.random((2, 4, 5, 6)) < rng.random((2, 1, 1, 1))
        p[0, 0, 0] = r[0, 0, 0] = True
        p[0, 0, 1] = r[0, 0, 1] = False
        a, b = r.ravel(), p.ravel()
        assert overlap.dsc(p, r) == pytest.approx(sk.f1_score(a, b), abs=1e-12)
        assert overlap.iou(p, r) == pytest.approx(sk.jaccard_score(a, b), abs=1e-12)
        assert overlap.sensitivity(p, r) == pytest.approx(sk.recall_score(a, b), abs=1e-12)
        assert overlap.specificity(p, r) == pytest.approx(sk.recall_score(~a, ~b), abs=1e-12)
        assert overlap.precision(p, r) == pytest.approx(sk.precision_score(a, b), abs=1e-12)
        assert overlap.accuracy(p, r) == pytest.approx(sk.accuracy_score(a, b), abs=1e-12)
        j = overlap.iou(p, r)
        assert overlap.dsc(p, r) == pytest.approx(2 * j / (1 + j), abs=1e-12)


EMPTY_MASKS = {  # metric: (both empty, prediction empty, reference empty), for 3 foreground voxels of 12
    "dsc": (None, 0.0, 0.0),
    "iou": (None, 0.0, 0.0),
    "volumetric_similarity": (None, 0.0, 0.0),
    "relative_volume_error": (None, 1.0, None),
    "relative_volume_difference": (None, -1.0, None),
    "sensitivity": (None, 0.0, None),
    "precision": (None, None, 0.0),
    "specificity": (1.0, 1.0, 0.75),
    "accuracy": (1.0, 0.75, 0.75),
}


@pytest.mark.parametrize("name", EMPTY_MASKS)
def test_empty_mask_table(name):
    f = getattr(overlap, name)
    assert (f(EMPTY, EMPTY), f(EMPTY, ONE), f(ONE, EMPTY)) == EMPTY_MASKS[name]


def test_volumes_by_hand():
    assert overlap.relative_volume_error(FULL, ONE) == 3.0
    assert overlap.relative_volume_difference(ONE, FULL) == -0.75
    assert overlap.volumetric_similarity(FULL, ONE) == pytest.approx(1 - 9 / 15)
    assert overlap.specificity(ONE, FULL) is None
    assert overlap.dsc(overlap.Counts(1, 1, 0, 5)) == pytest.approx(2 / 3)


@pytest.mark.parametrize("p, r", [(ONE, ONE[:2]), (ONE.astype(int), ONE), (ONE, ONE * 0.5)])
def test_only_boolean_masks_of_one_shape(p, r):
    with pytest.raises(GeometryError):
        overlap.dsc(p, r)


def test_agreement_measures_equal_scikit_learn():
    rng = np.random.default_rng(7)
    for _ in range(60):
        p, r = rng.random((2, rng.integers(2, 40))) < rng.random((2, 1))
        if 0 < r.sum() < r.size and 0 < p.sum() < p.size:
            assert overlap.mcc(p, r) == pytest.approx(sk.matthews_corrcoef(r, p), abs=1e-12)
            assert overlap.kappa(p, r) == pytest.approx(sk.cohen_kappa_score(r, p), abs=1e-12)
            assert overlap.balanced_accuracy(p, r) == pytest.approx(sk.balanced_accuracy_score(r, p))
            for beta in (0.5, 1, 2):
                assert overlap.f_beta(p, r, beta=beta) == pytest.approx(sk.fbeta_score(r, p, beta=beta))
            assert overlap.f_beta(p, r, beta=1) == pytest.approx(overlap.dsc(p, r))


def test_mcc_of_large_images_does_not_overflow():
    c = overlap.Counts(10**9, 10**8, 10**7, 10**12)
    assert overlap.mcc(c) == pytest.approx(0.9488, abs=1e-3) and 0 < overlap.kappa(c) < 1
    with pytest.raises(UsageError):
        overlap.f_beta(c, beta=0)
