"""Which label maps are opinions, and votes turned into nested ones."""

import numpy as np
import pytest

from vesalius.core.errors import DataError, UsageError
from vesalius.ops.opinions import from_votes, opinions


def test_reference_is_no_opinion_beside_raters():
    assert opinions({"reference": 0, "rater1": 0, "rater2": 0}) == ("rater1", "rater2")
    assert opinions({"reference": 0}) == ("reference",)
    with pytest.raises(DataError, match="no rater"):
        opinions({})


def test_votes_become_nested_masks_with_their_count():
    votes = np.random.default_rng(0).integers(0, 5, (6, 7))
    masks = from_votes(votes, 4)
    assert np.array_equal(np.sum(masks, 0), votes)
    assert all((inner <= outer).all() for outer, inner in zip(masks, masks[1:]))


@pytest.mark.parametrize("votes", [np.array([0, 5]), np.array([-1, 1]), np.array([0.0, 1.0])])
def test_what_is_no_vote_is_refused(votes):
    with pytest.raises(DataError, match="no votes"):
        from_votes(votes, 4)
    with pytest.raises(UsageError):
        from_votes(np.zeros(3, int), 0)
