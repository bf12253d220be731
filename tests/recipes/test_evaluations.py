"""No kill and no lost file hides an experiment that was evaluated on the test set."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medlt.recipes._compare import EVALUATIONS, _evaluated
from medlt.types import InputError


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """A folder in which one experiment was evaluated."""
    folder = SimpleNamespace(path=tmp_path.joinpath)
    assert _evaluated(folder, "a") == ["a"]
    (tmp_path / "verdict.json").write_text("{}")
    return folder


def test_an_experiment_counts_before_its_verdict_is_written_and_once(run: Any) -> None:
    assert _evaluated(run, "b") == ["a", "b"]
    assert _evaluated(run, "b") == ["a", "b"]
    assert _evaluated(run, None) == ["a", "b"]


CHANGES: dict[str, Callable[[Path], object]] = {
    "another name": lambda file: file.write_text(file.read_text().replace('"a"', '"b"')),
    "cut": lambda file: file.write_text(file.read_text()[:20]),
    "a list": lambda file: file.write_text(json.dumps(["a"])),
    "missing": lambda file: file.unlink(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_damaged_or_lost_list_is_named(run: Any, name: str) -> None:
    CHANGES[name](run.path(EVALUATIONS))
    with pytest.raises(InputError, match=EVALUATIONS):
        _evaluated(run, "a")
