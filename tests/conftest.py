"""Shared by all tests: where the real radiographs are, and how hypothesis draws."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "medlt",
    deadline=None,  # no test may fail because a machine is slow
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),  # the same examples for every change that is judged
    print_blob=True,
)
settings.load_profile("medlt")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real radiographs; the test is skipped where there is none."""
    if not (place := os.environ.get("MEDLT_DATA")):
        pytest.skip("set MEDLT_DATA to the folder of real radiographs to run this test")
    return Path(place)
