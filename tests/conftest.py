"""Tests share one throwaway cache and never use the user's."""

import os
import tempfile
from pathlib import Path

import pytest

os.environ["VESALIUS_CACHE"] = tempfile.mkdtemp(prefix="vesalius-test-cache-")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"real data is not on this machine ({SHARED})")
    return SHARED
