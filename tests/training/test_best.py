"""Tests of early stopping: the best weights are kept, also after a resume."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from medlt.files import read_tensors
from medlt.training import checkpoint
from medlt.training.checkpoint import Best, State
from medlt.training.loop import fit
from medlt.training.runtime import Runtime
from medlt.training.settings import BatchPart, Training

CPU = Runtime("cpu", "fp32", None, 0)
TRAINING = Training(
    steps=20, learning_rate=0.1, batch_size=1, warmup_steps=0, ema_decay=0.0, weight_decay=0.0, checkpoint_every=5,
    evaluate_every=2, patience=2,
)  # fmt: skip


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(()))


def climb(net: nn.Module, step: int, part: BatchPart) -> Tensor:
    """x rises by about 0.1 a step."""
    return -net.x  # type: ignore[operator, return-value]


def near(top: float) -> Any:
    return lambda net: -abs(float(net.x) - top)


def train(folder: Path | None, top: float, training: Training = TRAINING, **more: Any) -> tuple[Point, State]:
    net = Point()
    options: dict[str, Any] = {"runtime": CPU, "key": "k", "name": "climb", "evaluate": near(top)} | more
    return net, fit(net, climb, training, folder=folder, **options)


def test_the_best_weights_are_kept_and_training_stops_after_patience(tmp_path: Path) -> None:
    net, state = train(tmp_path, 0.6)
    assert float(net.x) == pytest.approx(0.6, abs=1e-4)
    assert (state.best.step, state.step) == (6, 10)  # measured at 8 and 10 without a better one
    assert list(pd.read_parquet(tmp_path / "history.parquet")["validation"].dropna().index) == [2, 4, 6, 8, 10]


def test_a_training_that_still_improves_goes_to_the_end() -> None:
    net, state = train(None, 9.0)
    assert (state.step, state.best.step) == (20, 20)
    assert float(net.x) == pytest.approx(2.0, abs=1e-3)


def test_nan_scores_keep_the_newest_weights() -> None:
    _, state = train(None, 0.6, evaluate=lambda net: math.nan)
    assert (state.step, state.best.step) == (20, 20)
    best = Best()
    for step, score in enumerate([math.nan, 1.0, 0.5, math.nan, 0.7, 2.0]):
        best.rank(score, step, [torch.full((1,), float(step))])
    assert (best.score, best.step, best.since, float(best.tensors[0])) == (2.0, 5, 0, 5.0)


@pytest.mark.parametrize("stops", [(3, 20), (5, 6, 20), (9, 20), (10, 20), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)])
def test_a_resumed_training_keeps_the_same_weights(tmp_path: Path, stops: tuple[int, ...]) -> None:
    whole, one = train(tmp_path / "whole", 0.6)
    for stop in stops:
        cut, other = train(tmp_path / "cut", 0.6, replace(TRAINING, stop_at=stop))
    assert torch.equal(whole.x, cut.x)
    assert (one.step, one.best.step, one.best.since) == (other.step, other.best.step, other.best.since)
    files = [read_tensors(tmp_path / name / checkpoint.FILE) for name in ("whole", "cut")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(value, files[1][name]) for name, value in files[0].items())


def test_a_finished_training_is_loaded_without_further_steps(tmp_path: Path) -> None:
    whole, _ = train(tmp_path, 0.6)
    seen: list[int] = []
    runtime = replace(CPU, progress=lambda stage, done, total: seen.append(done))
    again, state = train(tmp_path, 0.6, runtime=runtime)
    assert torch.equal(whole.x, again.x)
    assert (seen, state.step) == ([], 10)


def test_the_evaluation_interval_changes_the_digest_only_with_patience() -> None:
    assert TRAINING.digest() != replace(TRAINING, evaluate_every=3).digest()
    assert TRAINING.digest() == replace(TRAINING, checkpoint_every=3).digest()
    by_checkpoint = replace(TRAINING, evaluate_every=None)
    assert by_checkpoint.digest() != replace(by_checkpoint, checkpoint_every=3).digest()
    plain = replace(TRAINING, patience=None)
    assert plain.digest() == replace(plain, evaluate_every=3, checkpoint_every=None, stop_at=3).digest()
    assert plain.digest(steps=False) == replace(plain, steps=30).digest(steps=False)
    assert TRAINING.digest(steps=False) != replace(TRAINING, steps=30).digest(steps=False)
