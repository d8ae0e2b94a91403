import subprocess
import sys

import numpy as np
import pytest

from vesalius.core.case import IGNORE, LabelMap
from vesalius.core.errors import DataError, GeometryError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.metrics import DEFAULT, METRICS, overlap, score_case, surface

NAMES = ("background", "kidney", "tumour")
GRID = Geometry.of((8, 9, 10), (1.0, 1.0, 3.0))


def _map(data, names=NAMES, geometry=GRID, **facts):
    return LabelMap(data, geometry, names, **facts)


def _data():
    r = np.zeros(GRID.shape, np.int16)
    r[1:5, 2:6, 3:7] = 1
    p = np.zeros_like(r)
    p[2:6, 2:6, 3:7] = 1
    return p, r


def _value(rows, structure, metric):
    return next(s for s in rows if (s.structure, s.metric) == (structure, metric)).value


def test_one_row_per_structure_and_metric():
    p, r = _data()
    rows = score_case(_map(p), _map(r), case_id="c1", patient="p1", tolerances={"kidney": 1.5})
    assert [(s.structure, s.metric) for s in rows] == [(n, m) for n in NAMES[1:] for m in DEFAULT]
    assert _value(rows, "kidney", "dsc") == 0.75 and _value(rows, "kidney", "rve") == 0
    assert _value(rows, "kidney", "hd95") == 1.0
    assert {s.value for s in rows if s.structure == "tumour"} == {None}
    assert {s.note for s in rows if s.structure == "tumour"} == {"empty prediction and reference"}
    nsd = [s.to_json() for s in rows if s.metric == "nsd"]
    assert [n["tolerance_mm"] for n in nsd] == [1.5, 2.0]
    assert nsd[0]["patient"] == "p1" and nsd[0]["rater"] == "reference" and nsd[0]["better"] == "higher"


def test_ignored_voxels_count_for_neither():
    p, r = _data()
    r[5:] = IGNORE  # the prediction's surplus
    r[1] = IGNORE  # the reference's surplus
    rows = score_case(_map(p), _map(r), case_id="c1", patient="p1", metrics=("dsc", "hd", "accuracy"))
    assert [s.value for s in rows if s.structure == "kidney"] == [1.0, 0.0, 1.0]
    p[2, 0, 0] = 1  # one false positive among the voxels somebody spoke for
    row = score_case(_map(p), _map(r), case_id="c", metrics=("accuracy",))[0]
    assert row.value == pytest.approx(1 - 1 / (r != IGNORE).sum())


def test_annotated_classes_only():
    p, r = _data()
    rows = score_case(_map(p), _map(r, annotated=frozenset({"kidney"})), case_id="c1", metrics=("dsc",))
    assert [s.structure for s in rows] == ["kidney"]


def test_two_dimensions_in_mm():
    grid = Geometry.of((6, 6), (0.5, 2.0))
    r = np.zeros((6, 6), int)
    r[1:4, 1:4] = 1
    names = ("background", "lesion")
    rows = score_case(_map(np.roll(r, 1, 1), names, grid), _map(r, names, grid), case_id="c", metrics=("hd",))
    assert rows[0].value == 2.0


def test_overlapping_maps_with_and_without_a_background_channel():
    p, r = _data()
    p3, r3 = (np.stack([x == k for k in range(3)]) for x in (p, r))
    dense = score_case(_map(p), _map(r), case_id="c")
    assert score_case(_map(p3, overlapping=True), _map(r3, overlapping=True), case_id="c") == dense
    assert score_case(_map(p3[1:], overlapping=True), _map(r, overlapping=False), case_id="c") == dense


def test_different_grids_names_and_metrics_are_refused():
    p, r = _data()
    with pytest.raises(GeometryError, match="Restore"):
        score_case(_map(p, geometry=Geometry.of(GRID.shape)), _map(r), case_id="c")
    with pytest.raises(DataError, match="name different classes"):
        score_case(_map(p, ("background", "a", "b")), _map(r), case_id="c")
    with pytest.raises(UsageError, match="hd95"):
        score_case(_map(p), _map(r), case_id="c", metrics=("hd_95",))
    with pytest.raises(DataError, match="instance"):
        score_case(_map(p, instances=True), _map(r), case_id="c")


def test_every_metric_of_the_table_runs_and_stays_in_its_range():
    p, r = _data()
    for s in score_case(_map(p), _map(r), case_id="c", metrics=tuple(METRICS)):
        low, high = METRICS[s.metric].range
        assert s.value is None or low <= s.value <= high


def test_import_is_light():
    code = "import sys, vesalius.metrics; print([m for m in ('torch', 'numba', 'scipy', 'pandas', 'cc3d') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("order", ["C", "F", "mixed"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64, np.float32])
def test_one_pass_over_both_volumes_equals_mask_by_mask(order, kind):
    rng = np.random.default_rng(2)
    for n in range(6):
        shape = tuple(rng.integers(1, 9, 2 + n % 2))
        p, r = rng.integers(0, 5, (2, *shape))  # 3 and 4 are no class: somebody else's labels count for nothing
        r = np.where(rng.random(shape) < 0.2, IGNORE if kind != np.uint8 else 0, r)
        grid, layout = Geometry.of(shape, (1.0, 2.0, 3.0)[: len(shape)]), {"C": "CC", "F": "FF", "mixed": "CF"}[order]
        a, b = (_map(np.asarray(m, kind, order=o), geometry=grid) for m, o in zip((p, r), layout, strict=True))
        rows = {(s.structure, s.metric): s.value for s in score_case(a, b, case_id="c", metrics=("dsc", "accuracy", "hd", "hd95_sitk"))}
        spoken = r != IGNORE
        for k, name in enumerate(NAMES[1:], 1):
            ours, theirs = (p == k) & spoken, r == k
            assert rows[name, "dsc"] == overlap.dsc(ours, theirs)
            assert rows[name, "accuracy"] == pytest.approx(((ours == theirs) & spoken).sum() / spoken.sum() if spoken.any() else None)
            assert rows[name, "hd"] == surface.hd(surface.surfaces(ours, theirs, grid.spacing))
            opened = surface.border_distances(ours, theirs, grid.spacing, closed=False)
            assert rows[name, "hd95_sitk"] == surface.hd95_sitk(opened)
