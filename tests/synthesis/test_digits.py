"""The positive control benchmarks/digits.py: its splits, its long tail, its arms, and one tiny seed of it."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from medlt.testing import label_backbone

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture(scope="module")
def digits() -> Iterator[Any]:
    sys.path.insert(0, BENCHMARKS)
    yield importlib.import_module("digits")
    sys.path.remove(BENCHMARKS)


def test_splits_are_balanced_and_apart(digits: Any, tmp_path: Path) -> None:
    images, classes, parts = digits.digits()
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(images)))
    for name, size in (("val", 14), ("test", 40)):
        assert np.bincount(classes[parts[name]]).tolist() == [size] * 10
    for seed in (0, 1):
        one = digits.Experiment(tmp_path, seed, digits.Settings())
        counts = one.real.labels.sum(0)
        assert sorted(counts, reverse=True) == [120, 72, 43, 26, 15, 9, 6, 3, 2, 1]
        assert counts[one.rank == 0] == 120
        assert not set(one.rows) & (set(parts["val"]) | set(parts["test"]))


def test_classes_are_filled_to_the_most_frequent_one_or_by_a_factor(digits: Any, tmp_path: Path) -> None:
    whole, three = (digits.Experiment(tmp_path, 0, digits.Settings(fill=fill)) for fill in (0.0, 3.0))
    counts = dict(zip(digits.CLASSES, whole.real.labels.sum(0), strict=True))
    assert {name: n + counts[name] for name, n in whole.targets.items()} == dict.fromkeys(whole.targets, 120)
    assert three.targets == {name: min(120, 3 * n) - n for name, n in counts.items() if n < 120}


def test_the_check_makes_dropped_images_again(digits: Any, tmp_path: Path) -> None:
    """A check that drops the first candidate of every second slot: each slot is filled once, by the next candidate."""
    one = digits.Experiment(tmp_path, 0, digits.Settings(fill=2.0))
    sampled: list[str] = []

    def images(backbone: Any, rows: pd.DataFrame) -> torch.Tensor:
        sampled.extend(rows.index)
        return torch.rand(len(rows), 1, 8, 8)

    one.images = images

    def second(_: torch.Tensor, rows: pd.DataFrame) -> np.ndarray:
        return (rows["slot"] % 2 + rows["candidate"] > 0).to_numpy()

    made = one.made(label_backbone(lambda x, t, y: x, 10), second)
    assert len(made) == sum(one.targets.values())
    assert one.plan.groupby(["finding", "slot"]).size().eq(1).all()
    assert (one.plan["candidate"] == 1 - one.plan["slot"] % 2).all()
    labels = pd.Series(made.labels.argmax(1)).value_counts()
    assert {digits.CLASSES[c]: n for c, n in labels.items()} == one.targets


@pytest.mark.slow
def test_one_tiny_seed_from_end_to_end(digits: Any, tmp_path: Path) -> None:
    """Every arm adds what it says, and the classifier of the real images knows frequent digits better."""
    settings = digits.Settings(steps=20, further_steps=10, width=8, fill=2.0, classifier_steps=100)
    results = digits.run(tmp_path, 0, settings, "val", ("real", "copies", "diffusion", "DiffuLT")).set_index("arm")
    assert results["images"]["copies"] == results["images"]["diffusion"] == 153
    assert results["many"]["real"] > results["few"]["real"]
    assert results["shown all"]["copies"] > 0.95
    assert results["shown all"]["copies"] > results["shown all"]["diffusion"]
    assert any("DiffuLT" in line for line in digits.report(results.reset_index(), settings, "val"))
