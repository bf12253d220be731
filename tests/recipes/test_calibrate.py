"""Calibration on the tiny run: weights are displacements, the choice is recorded and resumed, no test row is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from medlt.config import RunConfig, parse
from medlt.evaluation.calibration import chosen
from medlt.recipes import calibrate
from medlt.recipes._calibrate import _Calibration
from medlt.recipes._cohort import Cohort
from medlt.types import InputError

GUIDE = {"kind": "minority", "every": 2, "window": [0.2, 0.9], "reference": False, "cap": 100}


def config(tiny: Callable[[Path], RunConfig], out: Path, trained: Path, *guides: dict[str, Any]) -> RunConfig:
    method = {"kind": "minority", "scheduler": "ddim", "num_inference_steps": 10, "guidance": list(guides)}
    settings = tiny(out).model_dump(mode="json", exclude={"method", "checks"})
    return parse({
        **settings, "method": method, "checks": {"folds": 2, "verifier_quantile": 0.01}, "artifacts_dir": str(trained),
        "calibration": {"rows": 4, "weights": [0.02, 0.04], "max_outside": 1.0, "max_label_loss": 1.0},
    })  # fmt: skip


def test_a_weight_is_the_displacement_and_auto_the_largest_allowed(
    tmp_path: Path, trained: Path, tiny: Callable[[Path], RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    images = Cohort.images

    def watched(self: Cohort, part: Any, *args: Any) -> Any:
        read.extend(part.rows["split"].unique())
        return images(self, part, *args)

    monkeypatch.setattr(Cohort, "images", watched)
    settings = config(tiny, tmp_path / "run", trained, GUIDE | {"weight": 0.03}, GUIDE | {"weight": "auto"})
    run = calibrate.main(settings)
    assert set(read) == {"train", "val"}
    table = pd.read_parquet(run / "calibration.parquet")
    fixed, auto = (part for _, part in table.groupby("guide"))
    assert list(fixed["strength"]) == [0.0, 0.03]
    assert list(auto["strength"]) == [0.0, 0.02, 0.04]
    assert list(fixed["displacement"]) == pytest.approx([0.0, 0.03], rel=0.3)
    assert list(auto["displacement"]) == pytest.approx([0.0, 0.02, 0.04], rel=0.3)
    assert bool(((fixed["outside"] >= 0) & (fixed["verifier"] > 0)).all())
    guides = json.loads((run / "run.json").read_text())["guidance"]
    assert [guide["weight"] for guide in guides] == [0.03, chosen(auto)] == [0.03, 0.04]
    assert [guide["chosen"] for guide in guides] == [False, True]
    assert 'id="guidance"' in (run / "report.html").read_text()

    def unexpected(*args: Any) -> Any:
        raise AssertionError("sampled again")

    before = (run / "calibration.parquet").read_bytes()
    monkeypatch.setattr(_Calibration, "_measure", unexpected)
    calibrate.main(settings)
    assert (run / "calibration.parquet").read_bytes() == before


def test_a_config_without_guidance_has_nothing_to_calibrate(
    tmp_path: Path, trained: Path, tiny: Callable[[Path], RunConfig]
) -> None:
    with pytest.raises(InputError, match=r"method minority has no guidance to calibrate; add method\.guidance"):
        calibrate.main(config(tiny, tmp_path / "run", trained))
