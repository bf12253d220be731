"""Progress of a run: an estimate before its first training, and run.log, which a resumed run extends."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medlt.config import RunConfig, SparseConfig, parse
from medlt.privacy import ledger
from medlt.progress import ProgressCallback
from medlt.recipes import _estimate
from medlt.recipes._estimate import Part, note_training_time
from medlt.recipes._setup import opened
from medlt.recipes.run import main as run
from medlt.recipes.train import main as train
from medlt.rng import noise_like
from medlt.sparse import collapse, phases
from medlt.sparse.iterated import iterate
from medlt.store import Store
from medlt.training.runtime import Runtime, silent
from medlt.types import InputError

Tiny = Callable[[Path], RunConfig]


class Notes(ProgressCallback):
    """A reporter that keeps notes and the order in which stages begin."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, stage: str) -> None:
        self.lines.append(stage)

    def note(self, text: str) -> None:
        self.lines.append(text)


def log(folder: Path) -> list[str]:
    """The lines of run.log without their times."""
    return [line[20:] for line in (folder / "run.log").read_text().splitlines()]


def fail() -> float:
    raise InputError("a part that cannot be tried")


def test_the_estimate_is_the_time_of_a_step_times_the_steps(tiny: Tiny, tmp_path: Path) -> None:
    """Short parts, parts that an earlier call began, and parts that cannot be tried are left out."""
    notes = Notes()
    with opened(tiny(tmp_path / "run"), notes) as opened_run:
        opened_run.record(seconds={"latents": 4.0})
        parts = [
            Part("codec", 1000, lambda: 0.06),
            Part("latents", 1000, lambda: 1.0),
            Part("denoiser", 200, lambda: 3.0),
            Part("verifiers", 5, lambda: 9.0),
            Part("sparse", 500, fail),
        ]
        note_training_time(opened_run, parts)
        note_training_time(opened_run, parts[1:2])
    (line,) = [one for one in notes.lines if one.startswith("estimate")]
    assert line.startswith("estimate: about 11 min of training on cpu (codec 60 s, denoiser 10 min), ")
    assert line in log(tmp_path / "run")


def test_a_run_notes_its_estimate_before_its_first_training(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_estimate, "FEWEST", 1)
    notes = Notes()
    run(tiny(tmp_path / "run"), notes)
    (number,) = [number for number, line in enumerate(notes.lines) if line.startswith("estimate: about ")]
    assert notes.lines[:number] == ["data"]
    for part in ("codec", "sparse", "denoiser", "verifiers", "arms"):
        assert f"{part} " in notes.lines[number]
        assert part in notes.lines[number + 1 :]


def test_a_resumed_run_appends_to_its_log(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_estimate, "FEWEST", 1)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "codec" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny(tmp_path / "run"), "codec", stop)
    first = (tmp_path / "run" / "run.log").read_text()
    lines = log(tmp_path / "run")
    assert lines[0].startswith("medlt ")
    assert [line for line in lines if line.startswith("estimate: ")] != []
    assert "codec: started" in lines
    train(tiny(tmp_path / "run"), "codec")
    whole = (tmp_path / "run" / "run.log").read_text()
    assert whole.startswith(first)
    more = log(tmp_path / "run")[len(lines) :]
    assert more[0].startswith("medlt ")
    assert [line for line in more if line.startswith("estimate: ")] == []  # the codec had begun
    assert [line for line in more if line.startswith("codec: finished")] != []


def test_the_trials_of_a_private_run_are_in_no_ledger(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_estimate, "FEWEST", 1)
    tree = tiny(tmp_path / "run").model_dump(mode="json", exclude={"method", "checks", "privacy"})
    privacy = {
        "epsilon": 8.0,
        "delta": 1e-5,
        "patients": 24,
        "findings": ["Mass"],
        "noise_multiplicity": 1,
        "max_physical_batch_size": 16,
    }
    own = {"method": {"kind": "noise", "num_inference_steps": 4}, "checks": {"folds": 2}, "privacy": privacy}
    notes = Notes()
    train(parse({**tree, **own}), "codec", notes)
    assert [line for line in notes.lines if line.startswith("estimate: ") and "codec " in line] != []
    kept = ledger.read_ledger(tmp_path / "run" / "ledger.json")
    assert [(one.stage, one.steps) for one in kept.mechanisms] == [("codec", 8)]


def test_a_trial_measures_the_time_between_two_steps() -> None:
    def trial(runtime: Runtime, store: Store, steps: int) -> object:
        for done in range(steps):
            time.sleep(0.05 if done else 0.5)  # the first step loads modules
            runtime.progress("trial", done + 1, steps)
        return None

    measured = _estimate._seconds_a_step(trial, Runtime("cpu", "fp32", 1, 0, silent))
    assert 0.05 <= measured < 0.2


def test_the_steps_of_the_sparse_code_are_those_that_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = SparseConfig(groups=2, vocabulary=2, generations=3, imitation_epochs=3, adaptation_epochs=2,
                          interaction_epochs=2, width=8, batch_size=4)  # fmt: skip
    steps: list[int] = []
    fit = phases.loop.fit

    def counted(network: Any, loss_of: Any, settings: Any, **options: Any) -> Any:
        steps.append(settings.steps)
        return fit(network, loss_of, settings, **options)

    monkeypatch.setattr(phases, "loop", SimpleNamespace(fit=counted))
    monkeypatch.setattr(collapse, "problem", lambda *_: "")  # a retry is not in the estimate
    latents, labels = noise_like(range(21), (4, 4, 4)), np.eye(3, dtype=np.float32)[np.arange(21) % 3]
    runtime = Runtime("cpu", "fp32", 1, 0, silent)
    iterate(latents, labels, latents[:6], labels[:6], contents="a", val_contents="b", runtime=runtime,
            store=Store(tmp_path), **chosen.model_dump())  # fmt: skip
    assert sum(steps) == _estimate._sparse_steps(chosen, 21) == (3 * 2 + 2 * 5) * 5
