"""What the epistemic head knows, against truth: a rare region, label noise, and the same region with many rows."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
SEED = 1


@pytest.fixture(scope="module")
def toy() -> Callable[..., Any]:
    """`measured` of benchmarks/epistemic.py: seed, rare points, folder, steps -> AUROCs by network and statistic."""
    sys.path.insert(0, BENCHMARKS)
    try:
        from epistemic import measured
    finally:
        sys.path.remove(BENCHMARKS)
    return measured


@pytest.fixture(scope="module")
def measured(toy: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """AUROCs with 8 and with 400 train points in the rare region, of the head and of one without consensus."""
    return {rare: toy(SEED, rare, tmp_path_factory.mktemp("store"), 200) for rare in (8, 400)}


def test_the_variance_finds_the_rare_region_and_forgets_it_when_it_is_known(measured: dict[int, Any]) -> None:
    rare, known = (measured[count]["head", "variance"] for count in (8, 400))
    for other in ("band", "dense"):
        assert rare[f"rare against {other}"] > 0.95
        assert known[f"rare against {other}"] < 0.8


def test_without_consensus_the_variance_follows_the_size_of_the_logit(measured: dict[int, Any]) -> None:
    """The control: as many rows as elsewhere, and the variance still calls the region unknown."""
    assert measured[400]["head, consensus 0", "variance"]["rare against band"] > 0.9


def test_the_other_statistics_rank_label_noise_first(measured: dict[int, Any]) -> None:
    for name in ("entropy", "margin"):
        assert measured[8]["head", name]["rare against band"] < 0.2
    assert measured[8]["head", "bald"]["rare against band"] < measured[8]["head", "variance"]["rare against band"]
    assert measured[400]["head", "bald"]["rare against band"] < 0.1


@pytest.mark.slow
def test_five_classifiers_trained_apart_agree_with_the_variance_on_label_noise(
    toy: Callable[..., Any], tmp_path: Path
) -> None:
    """Their logits differ more in the rare region than in the band, their probabilities less."""
    made = toy(SEED, 8, tmp_path, 600)
    by = {name: made["ensemble", name]["rare against band"] for name in ("variance", "bald")}
    assert by["variance"] > 0.7
    assert by["bald"] < 0.5
