"""Masks with a predicted quality: near the truth, flagged when low, and the bank travels with the state."""

import numpy as np
import pytest

from vesalius.core.case import LabelMap
from vesalius.core.errors import DataError, UsageError
from vesalius.core.method import Method
from vesalius.core.prediction import Prediction
from vesalius.engine.infer import infer
from vesalius.methods.trust.chexmask import CheXmask
from vesalius.metrics.overlap import dsc

from .small import Lent, fitted, segmenter, setting


class Shifted(Method):
    """The reference moved by some pixels: a segmenter whose quality is known. It looks the reference up; no label reaches ``predict``."""

    pixels = 0

    def predict(self, case, prompts=(), *, rng):
        label = next(iter(self.read(case.id).labels.values()))
        moved = LabelMap(np.roll(label.data, self.pixels, 0), label.geometry, label.names)
        return Prediction(labels={"prediction": moved.on(case.geometry)})


@pytest.fixture(scope="module")
def world():
    manifest, split, plan, read = setting("phantom:chest-radiograph?cases=12&structures=organs&occluded=0&site=A")
    part = Shifted(plan, manifest)
    part.read = read
    wrapper = fitted(CheXmask(plan, manifest, parts={"segmenter": part}, references=2, longest=96), manifest, split)
    return manifest, split, plan, read, part, wrapper


def test_predicted_dice_follows_the_true_one(world):
    manifest, split, plan, read, part, wrapper = world
    case = read(split.test[0])
    reference = np.asarray(case.labels["reference"].data)
    predicted, true = [], []
    for part.pixels in (0, 8, 24):
        answer = infer(wrapper, case, plan)
        for k, name in enumerate(manifest.names[1:], 1):
            best, mean = answer.table[f"rca_max/{name}"], answer.table[f"rca_mean/{name}"]
            assert best >= mean
            predicted.append(best)
            true.append(dsc(np.asarray(answer.label.data) == k, reference == k))
    part.pixels = 0
    assert np.corrcoef(predicted, true)[0, 1] > 0.8 and np.abs(np.subtract(predicted, true)).mean() < 0.15
    first, last = np.reshape(predicted, (3, -1))[[0, 2]]
    assert (first > last).all()


def test_low_quality_is_flagged_with_a_note(world):
    manifest, split, plan, read, part, wrapper = world
    case = read(split.test[1])
    fine = infer(wrapper, case, plan)
    part.pixels = 60
    bad = infer(wrapper, case, plan)
    part.pixels = 0
    assert bad.table["rca_flag"] == 1 and "predicted Dice at or below 0.7" in bad.notes[-1] and "heart" in bad.notes[-1]
    assert fine.table["rca_flag"] == 0 and not fine.notes


def test_the_state_comes_back(world):
    manifest, split, plan, read, part, wrapper = world
    again = CheXmask(plan, manifest, parts={"segmenter": part}, references=2, longest=96)
    again.load_state(*wrapper.state())
    case = read(split.test[0])
    a, b = (infer(m, case, plan).table for m in (wrapper, again))
    assert a == b  # to the last bit


def test_references_by_features():
    manifest, split, plan, read = setting()
    wrapper = CheXmask(plan, manifest, parts={"segmenter": segmenter(plan, manifest)}, similarity="features", bank=3, references=1)
    fitted(wrapper, manifest, split)
    assert wrapper.bank.codes.shape == (3, 8) and len(wrapper.bank.images) == 3
    case = read(wrapper.manifest.where("train")[0])
    assert infer(wrapper, case, plan).table  # predicts, with one forward
    assert np.allclose(np.linalg.norm(wrapper.bank.codes, axis=1), 1, atol=1e-5)


def test_it_refuses_what_it_cannot_do(world):
    manifest, split, plan, read, part, wrapper = world
    with pytest.raises(UsageError, match="similarity=image"):
        CheXmask(plan, manifest, parts={"segmenter": part}, similarity="features")
    bare = infer(CheXmask(plan, manifest, parts={"segmenter": part}), read(split.test[0]), plan)
    assert "no references" in bare.notes[-1] and bare.label is not None
    unlabelled = CheXmask(plan, manifest, parts={"segmenter": part}, references=2)
    with pytest.raises(DataError, match="references with labels"):
        unlabelled.fit((), (), Lent(manifest, unlabelled))
