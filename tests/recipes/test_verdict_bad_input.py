"""What may be wrong with an experiment stops it in one line, before an arm is trained; what is damaged is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from medlt.cli import app
from medlt.config import EvaluateConfig, dump
from medlt.recipes.evaluate import main
from medlt.types import InputError

Make = Callable[..., EvaluateConfig]


@pytest.fixture
def source(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "source"))


@pytest.fixture
def make(finished: Path, tmp_path: Path) -> Make:
    def experiment(**changes: Any) -> EvaluateConfig:
        return EvaluateConfig.model_validate(
            {
                "output_dir": str(tmp_path / "run"),
                "seed": 3,
                "data": {"kind": "manifest", "path": str(finished / "stages" / "data" / "manifest.parquet")},
                "targets": {"tail_below": 8, "head_above": 20},
                "classifier": {"size": 32, "steps": 2, "batch_size": 8, "evaluate_every": 2},
                "evaluation": {
                    "seeds": 2,
                    "n_bootstrap": 100,
                    "steps": 4,
                    "synthetic_fraction": 0.2,
                    "synthetic_weight": 0.3,
                },
                "sources": {"fusion": {"run": str(tmp_path / "source")}},
                "arms": {"fusion": {"source": "fusion"}},
                **changes,
            }
        )

    return experiment


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"loss": "ldam", "tau_norm": True}, "tau_norm changes nothing"),
        ({"loss": "balanced_softmax"}, "no loss named 'balanced_softmax' for the multi-label task"),
    ],
)
def test_settings_that_do_not_go_together_are_told_with_the_arm_before_anything_is_opened(
    make: Make, tmp_path: Path, arm: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=rf"^arms\.wrong: {said}"):
        main(make(arms={"focal": {"loss": "focal"}, "wrong": arm}))
    assert not (tmp_path / "run").exists()


def test_too_few_steps_for_the_stages_of_a_course_are_told_with_the_arm(make: Make) -> None:
    one_step = {"size": 32, "steps": 1, "batch_size": 8, "evaluate_every": 1}
    with pytest.raises(InputError, match=r"^arms\.later: 1 steps are too few"):
        main(make(classifier=one_step, arms={"later": {"training_strategy": "drw"}}))


def test_a_dose_below_one_image_is_what_is_blamed(make: Make, source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"arms\.little: synthetic_ratio 0\.001 .* raise them"):
        main(make(arms={"little": {"source": "fusion", "synthetic_ratio": 0.001}}))
    assert not (tmp_path / "run" / "artifacts" / "classifier").exists()


@pytest.mark.parametrize("name", ["checks.parquet", "plan.parquet"])
@pytest.mark.parametrize("left", [None, b"PAR1"])
def test_a_source_without_a_table_is_told(make: Make, source: Path, name: str, left: bytes | None) -> None:
    (source / name).unlink()
    if left is not None:
        (source / name).write_bytes(left)
    with pytest.raises(InputError, match=rf"source fusion: .*{name}: is (missing|not what this run wrote)"):
        main(make())


def test_every_source_is_looked_at_before_the_folder_is_opened_or_one_is_made(
    make: Make, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text("method: fusion\n")
    for gone in ("nowhere", "unfinished"):
        sources = {"fusion": {"run": str(tmp_path / "source")}, "gone": {"run": str(tmp_path / gone)}}
        with pytest.raises(InputError, match=rf"sources\.gone: .*{gone} is not a finished run"):
            main(make(sources=sources))
    assert not (tmp_path / "run").exists()


def _spoil(source: Path, change: Callable[[pd.DataFrame], pd.DataFrame], name: str = "manifest.parquet") -> None:
    table = pd.read_parquet(source / name)
    changed = change(table.copy())
    changed.attrs = table.attrs
    changed.to_parquet(source / name)


@pytest.fixture
def spoil(source: Path, reseal: Callable[[Path], None]) -> Callable[..., None]:
    """Changes a table of the source, as a run that was made so would have it."""

    def change(*given: Any) -> None:
        _spoil(source, *given)
        reseal(source)

    return change


@pytest.mark.parametrize("column", ["finding", "slot", "fold"])
def test_a_source_whose_rows_lack_their_plan_is_told(make: Make, spoil: Callable[..., None], column: str) -> None:
    spoil(lambda rows: rows.drop(columns=column))
    with pytest.raises(InputError, match=f"source fusion: no column {column}"):
        main(make())


def test_images_of_a_finding_nobody_knows_are_refused(make: Make, spoil: Callable[..., None]) -> None:
    spoil(lambda rows: rows.assign(finding=rows["finding"].where(rows["finding"].isna(), "Nonsense")))
    with pytest.raises(InputError, match=r"source fusion: image .* is made for no finding of the experiment"):
        main(make())


def test_a_source_that_learnt_from_other_labels_is_refused(make: Make, spoil: Callable[..., None]) -> None:
    spoil(lambda rows: rows.assign(Effusion=1.0), "stages/data/manifest.parquet")
    with pytest.raises(InputError, match=r"source fusion: trained with other labels of \d+ train images"):
        main(make())


ALONE: dict[str, Any] = {"sources": {}, "arms": {"focal": {"loss": "focal"}}}


def test_a_source_taken_out_leaves_no_table_and_a_damaged_file_is_named(
    make: Make, source: Path, tmp_path: Path
) -> None:
    run = main(make())
    assert (run / "agreement.parquet").is_file()
    main(make(**ALONE))
    tables = ("agreement", "confusion", "filter_effect", "rejections")
    assert [name for name in tables if (run / f"{name}.parquet").exists()] == []
    assert [name for name in tables if not (run / "superseded" / f"{name}-1.parquet").is_file()] == []
    file = tmp_path / "experiment.yaml"
    file.write_text(dump(make(**ALONE)))
    for name in ("run.json", "config.yaml", "test_set_evaluations.json"):
        held = (run / name).read_bytes()
        (run / name).write_bytes(b"{[")
        answer = CliRunner().invoke(app, ["evaluate", str(file), "-q"])
        assert (answer.exit_code, answer.stderr.count("\n")) == (2, 1), (name, answer.stderr, answer.exception)
        assert "damaged" in answer.stderr
        (run / name).write_bytes(held)
    for pattern in ("verdict.json", "artifacts/classifier/*/*.safetensors"):
        for path in run.glob(pattern):
            path.write_bytes(b"{[")
        assert CliRunner().invoke(app, ["evaluate", str(file)]).exit_code == 0
    assert json.loads((run / "verdict.json").read_text())["test_set_evaluations"] == 2


def test_the_number_of_processes_asks_no_new_question(make: Make, source: Path) -> None:
    evaluation = {
        "seeds": 2,
        "n_bootstrap": 100,
        "steps": 4,
        "synthetic_fraction": 0.2,
        "synthetic_weight": 0.3,
        "workers": 2,
    }
    names = [json.loads((main(one) / "verdict.json").read_text())["experiment"]
             for one in (make(), make(evaluation=evaluation), make(**ALONE))]  # fmt: skip
    assert names[0] == names[1] != names[2]


def test_a_controls_name_is_reserved_and_verifiers_give_no_single_label() -> None:
    least = {"output_dir": "run", "data": {"kind": "manifest", "path": "m"}, "sources": {"x": {"run": "x"}}}
    with pytest.raises(ValueError, match="is the name of a control"):
        EvaluateConfig.model_validate({**least, "arms": {"a": {"source": "x"}, "duplicated for a": {"loss": "focal"}}})
    verified = {"a": {"source": "x", "labels": "verifier"}}
    EvaluateConfig.model_validate({**least, "arms": verified})
    with pytest.raises(ValueError, match="use labels: soft"):
        EvaluateConfig.model_validate({**least, "arms": verified, "classifier": {"task": "single-label"}})
