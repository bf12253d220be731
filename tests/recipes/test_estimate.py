"""What a run would take: every training is tried, the disk is counted, and nothing is left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medlt.config import RunConfig
from medlt.recipes import estimate


@pytest.fixture
def config(tiny: Callable[[Path], RunConfig], tmp_path: Path) -> RunConfig:
    return tiny(tmp_path / "run")


def test_every_stage_that_trains_is_measured_in_the_order_of_a_run(
    config: RunConfig, tiny_collection: Any, tmp_path: Path
) -> None:
    made = estimate.main(config, tiny_collection.manifest)
    assert list(made.seconds) == ["reading", "codec", "verifiers", "sparse", "denoiser", "images", "arms"]
    assert all(seconds > 0 for seconds in made.seconds.values())
    assert made.memory_mb > 100
    assert not (tmp_path / "run").exists()


def test_the_disk_holds_each_size_of_each_image_and_its_latent(config: RunConfig, tiny_collection: Any) -> None:
    # 32 px for synthesis and classifiers, and a latent of 4 channels at 1/4 of the side in float16
    rows = len(tiny_collection.manifest.rows)
    assert estimate.main(config, tiny_collection.manifest).disk_mb == rows * (32**2 + 2 * 4 * 8**2) / 2**20


def test_images_take_the_forward_passes_of_their_candidates(
    config: RunConfig, tiny_collection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 candidates, 10 steps of which a fifth runs, twice for guidance, a third of a step of 8 rows each."""
    monkeypatch.setattr(estimate, "training_seconds", lambda parts: {"denoiser": 6.0})  # 6 steps of a second
    made = estimate.main(config, tiny_collection.manifest)
    lacking = estimate.RealRows(tiny_collection.manifest, config.targets).shortfall()
    assert made.seconds["images"] == pytest.approx(sum(lacking.values()) * 2 * 10 * 0.2 * 2 / 3 / 8)
