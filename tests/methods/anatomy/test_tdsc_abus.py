"""The TDSC-ABUS pipeline: candidates and their scores, features with known answers, the regression, and the whole on the phantom."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from vesalius.core.case import Case, Image, LabelMap
from vesalius.core.errors import UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import Manifest
from vesalius.core.method import Method
from vesalius.core.plan import Plan
from vesalius.core.prediction import Prediction
from vesalius.datasets import open_dataset, read_case
from vesalius.engine.infer import infer
from vesalius.engine.prepare import prepare
from vesalius.methods.anatomy.tdsc_abus import (
    NO_LESION,
    NOT_LEARNT,
    TumourPipeline,
    lesion_features,
    logistic,
    only,
    probability_of,
    volume_features,
)
from vesalius.metrics import tdsc_abus as board

MANIFEST = Manifest("abus", Path("."), 3, ("ABUS",), {"background": 0, "lesion": 1}, ())
PLAN = Plan(
    dims=3, channels=("ABUS",), classes=MANIFEST.names, patch=(16, 16, 16), features=(4, 8), strides=((1, 1, 1), (2, 2, 2)),
    kernels=((3, 3, 3), (3, 3, 3)), normalise={"ABUS": "zscore"},
)  # fmt: skip
GRID = Geometry.of((24, 24, 24), 0.5)


class Told(Method):
    """A segmenter that needs no training: it is told the lesion, and adds a fainter one where there is none."""

    def predict(self, case: Case, prompts=(), *, rng) -> Prediction:
        truth = read_case(open_dataset("phantom:abus?cases=20"), case.id).labels["reference"].on(case.geometry).data
        p = 0.95 * ndimage.gaussian_filter((truth > 0).astype(np.float32), 0.7)
        p[3:8, 3:8, 3:8] = np.maximum(p[3:8, 3:8, 3:8], 0.6)
        return Prediction(probability=Image(np.stack([1 - p, p]), case.geometry))


def pipeline(plan: Plan = PLAN, part: type = Told, **options) -> TumourPipeline:
    return TumourPipeline(plan, MANIFEST, parts={"segmenter": part(plan, MANIFEST)}, **options)


def ball(radius: float, centre=(12, 12, 12), shape=(24, 24, 24), stretch=(1, 1, 1)) -> np.ndarray:
    at = (np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))) / np.reshape(stretch, (3, 1, 1, 1))
    return (at**2).sum(0) <= radius**2


# ------------------------------------------------------------------------------------------------------------------------- candidates
def predicted(*blobs: tuple[np.ndarray, float]) -> Prediction:
    p = np.zeros(GRID.shape, np.float32)
    for mask, value in blobs:
        p[mask] = value
    return Prediction(probability=Image(np.stack([1 - p, p]), GRID))


def test_candidates_are_components_scored_by_their_surest_voxels():
    a, b = ball(3, (6, 6, 6)), ball(3, (17, 17, 17))
    core = ball(1, (17, 17, 17))
    found = pipeline(top=7 / b.sum()).candidates(predicted((a, 0.7), (b, 0.6), (core, 0.95)))
    assert [round(c.score, 4) for c in found] == [0.95, 0.7]
    assert np.array_equal(found[0].mask, b) and np.allclose(found[0].box.high - found[0].box.low, 7 * 0.5)
    unscored = pipeline(scored=False).candidates(predicted((a, 0.7), (b, 0.9)))
    assert [c.score for c in unscored] == [1.0, 1.0]


def test_small_candidates_and_covered_boxes_go():
    m = pipeline()
    m.smallest = 2.0  # mm^3: 16 voxels
    speck = ball(1, (4, 4, 4))
    assert len(m.candidates(predicted((speck, 0.99), (ball(3), 0.8)))) == 1
    shell = ball(7) & ~ball(5.5)
    both = predicted((shell, 0.7), (ball(3), 0.9))
    assert len(pipeline(nms=1.0).candidates(both)) == 2
    assert [c.score for c in pipeline(nms=0.05).candidates(both)] == pytest.approx([0.9])


def test_the_mask_keeps_the_best_component_only():
    both = predicted((ball(3, (6, 6, 6)), 0.7), (ball(3, (17, 17, 17)), 0.9))
    kept = only(both.probability, ball(3, (17, 17, 17))).data
    assert np.array_equal(kept.argmax(0) == 1, ball(3, (17, 17, 17))) and np.allclose(kept.sum(0), 1)


# --------------------------------------------------------------------------------------------------------------------------- features
def test_features_of_a_ball():
    x = np.where(ball(5), -2.0, 1.0)
    f = lesion_features(x, ball(5), (0.5,) * 3, 3.0)
    volume = ball(5).sum() / 8
    assert f[0] == pytest.approx(np.log(volume)) and f[3] == pytest.approx(1)
    assert f[4] == pytest.approx(-3) and f[5] == 0 and f[6] == pytest.approx(0) and f[7] == pytest.approx(0)
    assert f[2] < 0.15 and f[8] == pytest.approx(volume / (11 * 0.5) ** 3)


def test_spicules_orientation_halo_and_shadow_show():
    rng = np.random.default_rng(0)
    smooth = ball(5)
    rough = smooth.copy()
    for _ in range(25):
        u = rng.standard_normal(3)
        for t in np.linspace(4, 9, 20):
            rough[tuple(np.rint(12 + t * u / np.linalg.norm(u)).astype(int))] = True
    x = np.where(smooth, -2.0, 1.0)
    a, b = (lesion_features(x, m, (0.5,) * 3, 3.0) for m in (smooth, rough))
    assert b[1] < 0.6 * a[1] and b[2] > 1.5 * a[2]
    deep, wide = (lesion_features(x, ball(4, stretch=s), (0.5,) * 3, 3.0)[3] for s in ((1, 1.5, 1), (1.5, 1, 1.5)))
    assert deep > 1.2 and wide < 0.8
    shadow = x.copy()
    shadow[:, :7][np.broadcast_to(smooth.any(1, keepdims=True), smooth.shape)[:, :7]] -= 2  # behind: towards lower indices
    assert lesion_features(shadow, smooth, (0.5,) * 3, 3.0)[7] == pytest.approx(-2)
    halo = np.where(ball(7) & ~smooth, 3.0, x)
    assert lesion_features(halo, smooth, (0.5,) * 3, 5.0)[6] > 0.5
    whole = np.ones((6, 6, 6), bool)
    assert np.isfinite(lesion_features(np.zeros((6, 6, 6)), whole, (1, 1, 1), 2.0)).all()
    assert volume_features(x).shape == (9,) and np.isfinite(volume_features(np.zeros((4, 4, 4)))).all()


def test_the_regression_is_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(1)
    x = rng.normal(3, 5, (60, 4))
    y = (x[:, 0] - x[:, 1] + rng.normal(0, 4, 60) > 0).astype(int)
    ours = logistic(x, y, 2.0)
    z = (x - x.mean(0)) / x.std(0)
    judge = linear_model.LogisticRegression(C=1 / 2.0, tol=1e-10, max_iter=2000).fit(z, y)
    assert np.allclose(ours[2], [*judge.coef_[0], judge.intercept_[0]], atol=1e-3)
    assert probability_of(x[7], ours) == pytest.approx(judge.predict_proba(z[7:8])[0, 1], abs=1e-4)
    assert 0 < probability_of(x[0] + 1e6, ours) < 1


# -------------------------------------------------------------------------------------------------------------------------- the whole
class FakeRun:
    """Lends prepared cases and a part's predictions, without training."""

    def __init__(self, manifest, plan):
        self.manifest, self.plan, self.fitted, self.logged = manifest, plan, [], {}

    def fit(self, part, train, val, *, share=1.0):
        self.fitted.append((part, share))

    def infer(self, method, cases):
        for name in cases:
            case = prepare(read_case(self.manifest, name), self.plan, method)
            yield case, method.predict(case.without_labels(), rng=np.random.default_rng(0))

    def log(self, **values):
        self.logged |= values


@pytest.fixture(scope="module")
def learnt():
    manifest = open_dataset("phantom:abus?cases=20")
    m = pipeline()
    run = FakeRun(manifest, PLAN)
    m.fit(manifest.where("train"), manifest.where("val"), run)
    return manifest, m, run


def test_the_pipeline_finds_outlines_and_classifies(learnt):
    manifest, m, run = learnt
    assert run.fitted == [(m.parts["segmenter"], 1.0)] and run.logged["classified"] == len(manifest.where("train")) and m.smallest > 0
    rows = []
    for name in (*manifest.where("val"), *manifest.where("test")):
        case = read_case(manifest, name)
        answer = infer(m, case, PLAN)
        assert answer.label.geometry == case.geometry and 0 <= answer.table["malignant"] <= 1
        scores = answer.boxes["lesion"].scores
        assert (np.diff(scores) <= 0).all() and answer.boxes["lesion"].labels == ("lesion",) * len(scores)
        rows += board.score(answer, case)
    values = {r.metric: r.value for r in board.pool(rows)}
    assert values["tdsc_board_detection"] > 0.99 and values["tdsc_auc"] > 0.8 and values["tdsc_dsc"] > 0.9
    assert values["tdsc_hd_mm"] < 4  # the faint one is not in the mask


def test_saved_and_loaded_it_answers_the_same(learnt):
    manifest, m, _ = learnt
    again = pipeline()
    again.load_state(*m.state())
    case = read_case(manifest, manifest.where("test")[0])
    a, b = infer(m, case, PLAN), infer(again, case, PLAN)
    assert a.table == b.table and np.array_equal(a.boxes["lesion"].low, b.boxes["lesion"].low)
    assert np.array_equal(a.label.data, b.label.data)


class Nothing(Method):
    def predict(self, case: Case, prompts=(), *, rng) -> Prediction:
        p = np.zeros((2, *case.geometry.shape), np.float32)
        p[0] = 1
        return Prediction(probability=Image(p, case.geometry))


def test_without_a_candidate_it_says_the_share_and_why(learnt):
    manifest, m, _ = learnt
    blind = pipeline(part=Nothing)
    blind.regression, blind.base = m.regression, m.base
    answer = infer(blind, read_case(manifest, manifest.where("test")[0]), PLAN)
    assert answer.table["malignant"] == m.base and NO_LESION in answer.notes
    assert answer.boxes["lesion"].low.shape == (0, 3) and not np.asarray(answer.label.data).any()


def test_a_missed_training_lesion_still_teaches_and_one_class_does_not():
    manifest = open_dataset("phantom:abus?cases=6")
    blind = pipeline(part=Nothing)
    run = FakeRun(manifest, PLAN)
    blind.fit(manifest.where("train"), (), run)
    assert run.logged["classified"] == len(manifest.where("train")) and blind.smallest == 0
    one = [c.id for c in manifest.cases if c.table["malignant"] == 1][:2]
    lone = pipeline()
    lone.fit(one, (), FakeRun(manifest, PLAN))
    answer = infer(lone, read_case(manifest, one[0]), PLAN)
    assert "malignant" not in answer.table and NOT_LEARNT in answer.notes


def test_its_own_segmenter_draws_patches_as_asked():
    m = TumourPipeline(PLAN, MANIFEST, foreground=0.0)
    assert m.parts["segmenter"].plan.foreground == 0.0 and m.plan.foreground == PLAN.foreground
    for bad in ({"top": 0.0}, {"threshold": 1.5}, {"nms": -0.1}):
        with pytest.raises(UsageError, match="share"):
            TumourPipeline(PLAN, MANIFEST, **bad)


def test_a_case_without_labels_teaches_nothing():
    case = Case("a", images={"ABUS": Image(np.zeros((1, *GRID.shape), np.float32), GRID)})
    m = pipeline()

    class Empty(FakeRun):
        def infer(self, method, cases):
            yield case, predicted((ball(3), 0.9))

    m.fit(("a",), (), Empty(None, PLAN))
    assert not m.regression.size and m.base == 0.5
    labelled = case.with_(labels={"reference": LabelMap(np.zeros(GRID.shape, np.int16), GRID, MANIFEST.names)})
    assert labelled.labels and m.candidates(predicted()) == []
