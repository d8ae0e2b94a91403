"""The empty-mask table: what every metric of label maps says when one mask or both are empty: a blank in a report, never a number."""

import numpy as np
import pytest

from vesalius.core.case import LabelMap
from vesalius.core.geometry import Geometry
from vesalius.metrics import METRICS, score_case
from vesalius.metrics.table import FROM_LABELS

N = None
TABLE = {  # metric: (both empty, prediction empty, reference empty)
    **dict.fromkeys(("dsc", "iou", "vs", "f2"), (N, 0, 0)),
    "rve": (N, 1, N),
    "rvd": (N, -1, N),
    "sensitivity": (N, 0, N),
    "precision": (N, N, 0),
    "specificity": (1, 1, "below 1"),
    "accuracy": (1, "below 1", "below 1"),
    "balanced_accuracy": (N, 0.5, N),
    "mcc": (N, N, N),
    "kappa": (N, 0, 0),
    **dict.fromkeys(("hd", "hd95", "assd", "masd", "nsd"), (N, N, N)),
    **dict.fromkeys(("hd_voxel", "hd95_monai", "hd95_panoptica", "hd95_sitk", "hd_sitk"), (N, N, N)),
    **dict.fromkeys(("assd_monai", "assd_panoptica", "assd_sitk", "nsd_monai", "nsd_panoptica"), (N, N, N)),
    "cldice": (N, 0, 0),
    "length_detected": (N, 0, N),
    "branches_detected": (N, 0, N),
    "connectivity": (N, "below 1", N),
    "betti0_error": (N, 1, 1),
    **dict.fromkeys(("betti1_error", "betti2_error"), (N, 0, 0)),
    **dict.fromkeys(("betti_error", "betti_error_patches"), (N, 1, 1)),
    **dict.fromkeys(("object_f1", "pq", "rq", "aji"), (N, 0, 0)),
    "object_precision": (N, N, 0),
    "object_sensitivity": (N, 0, N),
    "sq": (N, N, N),
    "false_positives": (0, 0, 1),
    "count_error": (0, -1, 1),
}
GRID = Geometry.of((7, 8, 9), (1.0, 1.0, 2.0))


def _map(full: bool) -> LabelMap:
    data = np.zeros(GRID.shape, np.uint8)
    data[2:5, 2:6, 3:7] = full
    return LabelMap(data, GRID)


def test_the_table_covers_every_metric_of_label_maps():
    assert set(TABLE) == {name for name, m in METRICS.items() if m.needs in FROM_LABELS}


@pytest.mark.parametrize("column, prediction, reference", [(0, False, False), (1, False, True), (2, True, False)])
def test_the_empty_mask_table(column, prediction, reference):
    for s in score_case(_map(prediction), _map(reference), case_id="c", metrics=tuple(TABLE)):
        expected = TABLE[s.metric][column]
        if expected == "below 1":
            assert 0 < s.value < 1, s.metric
        else:
            assert s.value == expected, s.metric
        assert bool(s.note) == (s.value is None), s.metric


def test_a_perfect_prediction_has_every_metric_at_its_best():
    best = {"higher": lambda m: m.range[1], "lower": lambda m: m.range[0], "zero": lambda m: 0}
    for s in score_case(_map(True), _map(True), case_id="c", metrics=tuple(TABLE)):
        assert s.value == pytest.approx(best[METRICS[s.metric].better](METRICS[s.metric]), abs=1e-12), s.metric


def test_every_function_says_what_empty_masks_give_and_where_it_is_from():
    for name, m in METRICS.items():
        function = getattr(m.function, "func", m.function)
        if function.__module__.rsplit(".", 1)[-1] in ("overlap", "surface", "saliency", "topology", "detection"):
            text = function.__doc__
            assert any(word in text for word in ("Undefined", "undefined", "Defined", "defined", "None")), name
            assert "higher is better" in text or "lower is better" in text or "best at 0" in text or "mm" in text, name
