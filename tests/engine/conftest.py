"""The tasks of the tests of Ray, for all of its processes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def tasks() -> Iterator[Any]:
    """The module of tasks, on the path of all workers."""
    folder = str(Path(__file__).parent)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, *([before] if before else [])])
    sys.path.insert(0, folder)
    yield importlib.import_module("pool_tasks")
    sys.path.remove(folder)
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before
