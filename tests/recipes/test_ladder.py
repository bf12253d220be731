"""Arms whose effect is known: drawn sources, expected verdicts, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from medlt.cli import app
from medlt.config import EvaluateConfig, catalogue, dump, load_verdict
from medlt.recipes._cohort import open_cohort
from medlt.recipes._drawn import drawn_source
from medlt.recipes._setup import opened
from medlt.recipes.evaluate import main
from medlt.training.runtime import silent


def experiment(out: Path, **changes: Any) -> EvaluateConfig:
    return EvaluateConfig.model_validate(
        {
            "output_dir": str(out),
            "seed": 3,
            "data": {"kind": "phantom", "patients": 60, "size": 64, "imbalance": 8},
            "targets": {"tail_below": 12, "head_above": 25},
            "classifier": {"size": 32, "steps": 4, "batch_size": 8, "evaluate_every": 2},
            "evaluation": {"seeds": 2, "n_bootstrap": 100, "steps": 4, "synthetic_fraction": 0.2},
            "sources": {"fresh": {"drawn": "fresh", "per_positive": 2}},
            "arms": {"fresh": {"source": "fresh"}},
            "expect": {"fresh": "no evidence"},
            **changes,
        }
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return main(experiment(tmp_path_factory.mktemp("ladder") / "run"))


def test_a_drawn_arm_is_compared_with_copies_of_the_same_positives(done: Path) -> None:
    arms = pd.read_parquet(done / "arms.parquet").set_index("arm")
    rows = pd.read_parquet(done / "stages" / "data" / "manifest.parquet").query("split == 'train'")
    tail = json.loads((done / "run.json").read_text())["counts"]
    assert tail["arms"] == 3
    positives = sum(int((rows[name] == 1).sum()) for name in rows if _is_tail(rows, name))
    assert arms.at["fresh", "added"] == 2 * positives
    assert arms.at[arms.at["fresh", "control"], "added"] == 2 * positives
    assert not (done / "retention.parquet").exists()  # no drawn lesion lies where that of its control does


def _is_tail(rows: pd.DataFrame, name: str) -> bool:
    from medlt.data.phantom.render import FINDINGS

    return name in FINDINGS and (rows[name] == 1).sum() < 12


def test_expected_verdicts_are_recorded_and_decide_the_exit_code(done: Path, tmp_path: Path) -> None:
    record = json.loads((done / "run.json").read_text())["expected"]
    got = {one["arm"]: one["verdict"] for one in json.loads((done / "verdict.json").read_text())["arms"]}
    assert record == [{"arm": "fresh", "expected": "no evidence", "verdict": got["fresh"],
                       "met": got["fresh"] == "no evidence"}]  # fmt: skip
    other = "harms" if got["fresh"] != "harms" else "helps"
    file = done.parent / "again.yaml"
    file.write_text(dump(experiment(done.parent / "run2", expect={"fresh": other})))
    result = CliRunner().invoke(app, ["evaluate", "--ladder", str(file)])
    assert result.exit_code == 1, result.output
    assert f"fresh: {got['fresh']}, where {other} was expected" in result.output


def test_each_drawn_image_is_the_same_however_it_is_asked_for(tmp_path: Path) -> None:
    config = experiment(tmp_path / "run", sources={"lesion": {"drawn": "same_lesion", "per_positive": 1}},
                        arms={"lesion": {"source": "lesion"}}, expect={})  # fmt: skip
    with opened(config, silent) as run:
        cohort = open_cohort(run)
        source, again = (drawn_source("lesion", config.sources["lesion"], config, cohort) for _ in range(2))
        uids = list(source.kept.index)
        whole = source.images(32, uids)
        assert whole.shape[1:] == (1, 32, 32)
        assert (again.images(32, uids[::-1]).flip(0) == whole).all()
        assert (source.labels.loc[uids].to_numpy() >= 0).all()
        assert set(source.labels.columns) == set(cohort.findings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": {"fresh": {"drawn": "fresh", "codec_of": "x"}}}, "give one of run"),
        ({"expect": {"fresher": "helps"}}, "is no arm with images of a source.*fresh"),
        ({"expect": {"real": "helps"}, "arms": {"real": {}, "fresh": {"source": "fresh"}}}, "'real' is no arm"),
        ({"expect": {"fresh": "cannot see"}}, "expect"),
        ({"data": {"kind": "manifest", "path": "m.parquet"}}, "only data of kind phantom can be drawn"),
    ],
)
def test_what_cannot_be_expected_or_drawn_is_an_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        experiment(tmp_path, **changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate"], "medlt evaluate --ladder"),
        (["evaluate", "--ladder", "phantom/verdict"], "expects no verdict"),
    ],
)
def test_the_command_says_what_to_type(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize("name", ["phantom/ladder", "phantom/small_ladder"])
def test_the_shipped_ladders_expect_help_and_harm(name: str) -> None:
    config = load_verdict(catalogue.path(name))
    assert config.expect["paste"] == "helps"
    assert config.expect["coded copies"] == "harms"
    assert config.evaluation.seeds >= 3
