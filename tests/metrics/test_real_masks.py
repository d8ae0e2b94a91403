"""Real masks of the workshop's data: our values beside the other tools', and what the names mean on anatomy."""

import numpy as np
import pytest

from vesalius.core.prediction import Prediction
from vesalius.datasets import open_dataset, read_case
from vesalius.metrics import score_prediction
from vesalius.metrics.structures import structures

from . import judge


def _cases(shared, folder, number):
    manifest = open_dataset(shared / folder)
    for ref in [c for c in manifest.cases if c.labels][:number]:
        yield manifest, read_case(manifest, ref.id)


def _shifted(labels):
    from dataclasses import replace

    return replace(labels, source=np.roll(np.asarray(labels.data), (1, -2), (0, 1)))


def test_volumes_equal_surface_distance(shared):
    compared = 0
    for manifest, case in _cases(shared, "3d/msd_hippocampus", 2):
        reference = next(iter(case.labels.values()))
        given = _shifted(reference)
        names = ("dsc", "hd", "hd95", "assd", "masd", "nsd")
        rows = score_prediction(Prediction(labels={"p": given}), case, metrics=names, tolerances=1.0)
        for k, name in enumerate(manifest.names[1:], 1):
            p, r = (np.asarray(m.data) == k for m in (given, reference))
            expected = judge.surface_metrics(p, r, reference.geometry.spacing, 1.0)
            expected["dsc"] = judge.metrics.compute_dice_coefficient(r, p)
            found = {row.metric: row.value for row in rows if row.structure == name}
            assert found == pytest.approx({m: expected[m] for m in names}, abs=1e-9)
            compared += 1
    assert compared >= 2


def test_two_raters_of_retinal_vessels(shared):
    """A rater as the prediction of the other: vessels are thin, so overlap is low where the centre lines agree."""
    for _, case in _cases(shared, "2d/chase_db1", 1):
        first, second = case.labels["rater1"], case.labels["rater2"]
        one = case.with_(labels={"rater2": None})
        rows = score_prediction(Prediction(labels={"p": second}), one, metrics=("dsc", "cldice", "betti_error", "mcc", "branches_detected"))
        value = {r.metric: r.value for r in rows}
        assert 0.6 < value["dsc"] < value["cldice"] < 1 and value["betti_error"] > 0 and 0.5 < value["mcc"] < 1
        s = next(structures(second, first, case.id))
        expected = judge.surface_metrics(*s.whole, first.geometry.spacing, 2.0)
        assert score_prediction(Prediction(labels={"p": second}), one, metrics=("hd95",))[0].value == pytest.approx(
            expected["hd95"], abs=1e-9
        )


def test_nuclei_as_instances(shared):
    for _, case in _cases(shared, "2d/dsb2018_nuclei", 1):
        reference = next(iter(case.labels.values()))
        number = len(np.unique(np.asarray(reference.data))) - 1
        same = {
            r.metric: r.value for r in score_prediction(Prediction(labels={"p": reference}), case, metrics=("pq", "aji", "count_error"))
        }
        assert same == {"pq": 1, "aji": 1, "count_error": 0} and number > 1
        merged = score_prediction(Prediction(labels={"p": reference.semantic}), case, metrics=("pq", "count_error", "dsc"))
        value = {r.metric: r.value for r in merged}
        assert value["dsc"] == 1 and value["pq"] <= 1 and value["count_error"] <= 0
