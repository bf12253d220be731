"""The run folder: whose it is, what stays on record, where it may be moved."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medlt.config import RunConfig
from medlt.files import REAL_ROWS
from medlt.recipes import _setup
from medlt.recipes._setup import opened
from medlt.recipes.augment import main as augment
from medlt.training.runtime import silent
from medlt.types import InputError

Tiny = Callable[[Path], RunConfig]


def pictures(run: Path) -> dict[str, bytes]:
    """Published images by name."""
    return {path.name: path.read_bytes() for path in sorted((run / "images").glob("*.png"))}


def test_a_second_process_in_one_folder_is_refused_in_one_line(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(tmp_path / "run")
    with opened(config, silent), pytest.raises(InputError, match="another process is working on it") as told:
        augment(config)
    assert "\n" not in str(told.value)


def test_a_folder_that_is_none_of_a_run_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    for name, said in (("mine", "is not empty and not a run folder"), ("file", "is a file")):
        with pytest.raises(InputError, match=said):
            augment(tiny(tmp_path / name))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_another_config_is_refused_once_the_rows_are_filed_and_free_before(tiny: Tiny, tmp_path: Path) -> None:
    """A run that stopped at an unreadable image left nothing that another setting could contradict."""
    config = tiny(tmp_path / "run")
    with opened(config, silent):
        pass
    changed = config.model_copy(update={"size": 64})
    with opened(changed, silent):
        pass
    filed = tmp_path / "run" / REAL_ROWS
    filed.parent.mkdir(parents=True)
    filed.write_bytes(b"")
    with pytest.raises(InputError, match=r"'size: 64' there, 'size: 32' now"), opened(config, silent):
        pass


def test_a_renamed_run_folder_continues(
    finished: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "renamed")
    monkeypatch.chdir(tmp_path)
    stages: list[str] = []
    augment(tiny(Path("renamed")), lambda stage, done, total: stages.append(stage))
    assert not {"codec", "denoiser", "latents"} & set(stages)
    assert pictures(tmp_path / "renamed") == pictures(finished) != {}


def test_other_versions_are_said_and_stay_on_record(
    finished: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    now = json.loads((finished / "run.json").read_text())["versions"]
    monkeypatch.setattr(_setup, "versions", lambda: {**now, "torch": "9.9.9"})
    with caplog.at_level(logging.WARNING):
        augment(tiny(Path("run")))
    assert f"torch {now['torch']}, now 9.9.9" in caplog.text
    summary = json.loads(Path("run/run.json").read_text())
    assert summary["versions"]["torch"] == "9.9.9"
    assert [one["torch"] for one in summary["previous_versions"]] == [now["torch"]]
    made = {name.split("/")[0]: versions["torch"] for name, versions in summary["artifacts"].items()}
    assert {made[kind] for kind in ("codec", "latents", "sparse", "denoiser", "classifier")} == {now["torch"]}


def test_the_seconds_of_interrupted_calls_add_up_and_memory_is_the_largest(tiny: Tiny, tmp_path: Path) -> None:
    with opened(tiny(tmp_path / "run"), silent) as run:
        for _ in range(2):
            with run.stage("waiting"):
                pass
        run.record(seconds={"waiting": 5.0}, peak_rss_mb=1e9)
        with run.stage("waiting"):
            pass
    summary = json.loads((tmp_path / "run" / "run.json").read_text())
    assert summary["seconds"]["waiting"] >= 5.0
    assert summary["peak_rss_mb"] == 1e9
    assert summary["device"] == "cpu"
    assert summary["seed"] == 3


def test_a_damaged_record_is_named(tiny: Tiny, tmp_path: Path) -> None:
    with opened(tiny(tmp_path / "run"), silent):
        pass
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json: damaged; remove it"), opened(tiny(tmp_path / "run"), silent):
        pass
