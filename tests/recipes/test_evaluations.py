"""No kill and no lost file hides an experiment that was evaluated on the test set."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medlt.recipes._compare import EVALUATIONS, _evaluations
from medlt.types import InputError


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """A folder with the verdicts of three experiments, of which the list has the first; one had no arms."""
    (tmp_path / "superseded").mkdir()
    for name, record in {
        "superseded/verdict-a": {"experiment": "a", "arms": []},
        "superseded/verdict-b": {"experiment": "b", "arms": []},
        "superseded/verdict-none": {"experiment": "none"},
        "verdict": {"experiment": "c", "arms": []},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    (tmp_path / "superseded" / "verdict-1.json").write_text("damaged")
    (tmp_path / EVALUATIONS).write_text('["a"]')
    return SimpleNamespace(path=tmp_path.joinpath)


def test_a_verdict_counts_although_the_list_was_not_written(run: Any) -> None:
    assert _evaluations(run) == ["a", "b", "c"]


def test_a_lost_list_is_made_of_the_verdicts(run: Any) -> None:
    run.path(EVALUATIONS).unlink()
    assert _evaluations(run) == ["a", "b", "c"]


def test_a_damaged_list_is_named(run: Any) -> None:
    run.path(EVALUATIONS).write_text("[")
    with pytest.raises(InputError, match=EVALUATIONS):
        _evaluations(run)
