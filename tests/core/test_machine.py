"""A process that was given few cores plans for those."""

import os

import pytest

from vesalius.core.machine import cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system gives no process a part of the cores")
def test_the_cores_of_the_affinity_mask_count():
    all_of_them = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(all_of_them)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, all_of_them)
    assert cores() == len(all_of_them)
