"""Shared by all tests: where the real radiographs are, and one torch thread so that runs are comparable."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real radiographs; the test is skipped where there is none."""
    if not (place := os.environ.get("MEDLT_DATA")):
        pytest.skip("set MEDLT_DATA to the folder of real radiographs to run this test")
    return Path(place)
