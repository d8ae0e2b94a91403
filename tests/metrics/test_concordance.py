"""LLF and NLF, concordance with readers, and the usability scale: known answers and the specification's invariants."""

import numpy as np
import pytest

from vesalius.core.errors import DataError, UsageError
from vesalius.metrics.concordance import (
    Marked,
    Share,
    acceptance,
    case_score,
    class_concordance,
    localisation,
    location_concordance,
    marks_of_boxes,
    system_usability,
)


def image(marks=(), ratings=(), lesions=()) -> Marked:
    lesions = np.asarray(lesions, float).reshape(-1, 4)
    return Marked(np.asarray(marks, float).reshape(-1, 2), ratings, lesions[:, :2], lesions[:, 2:])


LESION = (10, 10, 20, 20)


def test_llf_and_nlf_by_hand():
    images = [
        image([(15, 15), (16, 16), (40, 40)], [0.9, 0.7, 0.8], [LESION]),  # found twice, one false mark
        image([(12, 12)], [0.4], [LESION, (30, 30, 35, 35)]),  # one of two found, late
        image([(5, 5)], [0.6]),  # a false mark in an image without lesion
        image(),
    ]
    curve = localisation(images)
    assert curve.thresholds.tolist() == [0.9, 0.8, 0.6, 0.4]
    assert curve.llf.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3])
    assert curve.nlf.tolist() == pytest.approx([0, 1 / 4, 2 / 4, 2 / 4])
    assert curve.llf_at(0.5) == pytest.approx(2 / 3) and curve.llf_at(0.3) == pytest.approx(1 / 3)
    assert curve.llf_at(0.0) == pytest.approx(1 / 3)


def test_both_fractions_rise_as_the_threshold_falls():
    rng = np.random.default_rng(0)
    images = []
    for _ in range(30):
        lesions = [(*(c := rng.uniform(0, 80, 2)), *(c + 15)) for _ in range(rng.integers(0, 3))]
        n = int(rng.integers(0, 6))
        images.append(image(rng.uniform(0, 100, (n, 2)), rng.uniform(size=n), lesions))
    curve = localisation(images)
    assert (np.diff(curve.llf) >= 0).all() and (np.diff(curve.nlf) >= 0).all() and (np.diff(curve.thresholds) < 0).all()
    wider = localisation(images, radius=5.0)
    assert wider.llf[-1] >= curve.llf[-1] and wider.nlf[-1] <= curve.nlf[-1]


def test_no_mark_no_lesion_no_image():
    assert localisation([image(lesions=[LESION])]).llf_at(1.0) == 0
    assert localisation([image([(1, 1)], [0.5])]).llf_at(1.0) is None
    with pytest.raises(DataError, match="no image"):
        localisation([])


def test_a_radius_reaches_outside_the_box():
    near = [image([(23, 24)], [1.0], [LESION])]  # 5 from the corner
    assert localisation(near).llf_at(1) == 0 and localisation(near, radius=5).llf_at(0) == 1
    with pytest.raises(UsageError, match="radius"):
        localisation(near, radius=-1)


def test_marks_must_fit_together():
    with pytest.raises(DataError, match="points"):
        Marked(np.zeros((2, 2)), np.zeros(3), np.zeros((0, 2)), np.zeros((0, 2)))
    with pytest.raises(DataError, match="from low to high"):
        Marked(np.zeros((1, 2)), [1.0], [[5, 5]], [[1, 1]])
    assert marks_of_boxes([[0, 0]], [[4, 2]]).tolist() == [[2, 1]]


def test_a_case_scores_as_its_worst_view():
    assert case_score({"L_CC": 0.2, "L_MLO": 0.7, "R_CC": None}) == 0.7
    assert case_score([None, None]) is None and case_score([]) is None


def test_concordance_of_class_counts_cases_both_spoke_about():
    share = class_concordance(["M", "B", None, "M"], ["M", "M", "B", "M"])
    assert (share.count, share.total) == (2, 3) and share.value == pytest.approx(2 / 3)
    assert class_concordance([], []).value is None and class_concordance([], []).interval is None
    with pytest.raises(DataError, match="same cases"):
        class_concordance(["M"], [])


def test_concordance_of_location_and_its_bases():
    agree, missed, extra, silent, none = (
        image([(15, 15)], [0.9], [LESION]),
        image([(50, 50)], [0.9], [LESION]),
        image([(15, 15), (60, 60)], [0.9, 0.8], [LESION]),
        image([(15, 15)], [0.1], [LESION]),  # below the threshold: the model is silent
        image(),
    )
    five = [agree, missed, extra, silent, none]
    count = lambda among: (lambda s: (s.count, s.total))(location_concordance(five, threshold=0.5, among=among))
    assert count("both") == (1, 3) and count("any") == (1, 4) and count("all") == (2, 5)
    assert location_concordance([extra], threshold=0.85).value == 1
    with pytest.raises(UsageError, match="base"):
        location_concordance(five, threshold=0.5, among="some")


def test_acceptance_and_wilson():
    assert acceptance([True, False, None, True]) == Share(2, 3)
    low, high = Share(90, 100).interval  # Newcombe 1998's form of the score interval
    assert low == pytest.approx(0.8256, abs=1e-3) and high == pytest.approx(0.9448, abs=1e-3)
    assert Share(0, 10).interval[0] == 0 and Share(10, 10).interval[1] == pytest.approx(1)


def test_usability_scale():
    assert system_usability([3] * 10) == 50
    assert system_usability([5, 1] * 5) == 100 and system_usability([1, 5] * 5) == 0
    for bad in ([3] * 9, [3] * 9 + [6], [3.5] * 10, [0] + [3] * 9):
        with pytest.raises(DataError, match="ten answers"):
            system_usability(bad)
