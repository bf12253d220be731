"""The scorecard: every value is one of the run's files, what is not measured is named, and no criterion is left out."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from medlt.files import write_json, write_table
from medlt.report.collect import COLUMNS
from medlt.report.scorecard import CRITERIA, Measure, markdown, scorecard, write_scorecard
from medlt.types import InputError


@pytest.fixture
def run(tiny_run: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))


def of(measures: list[Measure], name: str) -> Measure:
    (one,) = [measure for measure in measures if measure.name == name]
    return one


def test_every_criterion_has_a_section_and_every_measure_a_value_or_a_reason(run: Path) -> None:
    write_scorecard(run)
    page, record = (run / "SCORECARD.md").read_text(), json.loads((run / "scorecard.json").read_text())
    assert re.findall(r"^## (\w+)", page, re.MULTILINE) == [one.capitalize() for one in CRITERIA]
    measures = scorecard(run)
    assert record["measures"] == [vars(one) for one in measures]
    assert {one.criterion for one in measures} == set(CRITERIA)
    for one in measures:
        assert bool(one.value) != bool(one.missing)
        assert bool(one.value) == bool(one.source)
        assert one.name in page


def test_counts_are_those_of_the_manifest_and_the_plan(run: Path) -> None:
    rows, plan = pd.read_parquet(run / "manifest.parquet"), pd.read_parquet(run / "plan.parquet")
    made, measures = rows[rows["synthetic"].astype(bool)], scorecard(run)
    for finding in plan["finding"].unique():
        kept, slots = (made["finding"] == finding).sum(), plan.loc[plan["finding"] == finding, "slot"].nunique()
        assert of(measures, f"{finding}: images kept").value == f"{kept} of {slots}"
    assert of(measures, "images with view").value == f"{made['view'].notna().sum()} of {len(made)}"


def test_a_value_changes_with_its_file_and_goes_with_it(run: Path) -> None:
    overall = {"finding": ["overall"] * 2, "metric": ["KID", "FID"], "value": [0.25, float("nan")],
               "n_real": [40, 40], "n_synthetic": [12, 1], "reason": ["", "1 synthetic row; FID needs 2"]}  # fmt: skip
    write_table(run / "quality.parquet", pd.DataFrame(overall))
    measures = scorecard(run)
    assert of(measures, "KID").value == "0.250 (40 real, 12 synthetic)"
    assert of(measures, "FID").missing == "1 synthetic row; FID needs 2"
    (run / "quality.parquet").unlink()
    assert of(scorecard(run), "KID").value == ""


def test_audit_check_and_verdict_are_quoted(run: Path) -> None:
    attack = {"name": "near copies", "passed": None, "sentence": "Cannot conclude: few"}
    write_json(run / "audit.json", {"results": [attack], "conclusion": ""})
    checks = [{"check": "flat", "status": "passed", "images": 3, "conclusion": "no image is flat", "uids": []},
              {"check": "fingerprint", "status": "not measured", "images": 0, "conclusion": "not measured: no codec",
               "uids": []}]  # fmt: skip
    write_json(run / "check.json", {"written_by": "medlt check", "images": 3, "failed": False, "checks": checks})
    measures = scorecard(run)
    assert of(measures, "audit, near copies").value == "cannot conclude"
    assert of(measures, "flat").value == "passed: no image is flat"
    assert of(measures, "fingerprint").missing == "no codec"
    assert "not measured: no codec" not in markdown(measures)


def test_readers_are_counted_with_their_interval(run: Path) -> None:
    assert "medlt review" in of(scorecard(run), "guesses of real or synthetic that are right").missing
    rows = pd.read_parquet(run / "manifest.parquet")
    uids = rows.index[rows["synthetic"].astype(bool)][:3]
    answers = pd.DataFrame({"seed": 0, "uid": uids, "finding": "", "origin": ["real", "synthetic", "synthetic"],
                            "plausibility": "plausible", "presence": "", "comment": ""})  # fmt: skip
    (run / "review").mkdir()
    answers.to_csv(run / "review" / "ana.csv", index=False)
    measures = scorecard(run)
    assert of(measures, "guesses of real or synthetic that are right").value == "2 of 3: 0.67 [0.09, 0.99]"
    assert of(measures, "synthetic images that readers call plausible").value == "3 of 3: 1.00 [0.29, 1.00]"


FILES = ("quality.parquet", "plan.parquet", "manifest.parquet", "checks.parquet", "MODEL_CARD.md")
REMOVED = {
    "quality.parquet": {"KID", "FID", "recall", "coverage"},
    "plan.parquet": {"plan.parquet"},
    "manifest.parquet": {"labels", "images of each finding", "images marked as synthetic in their file"},
    "checks.parquet": {"finite", "flat", "saturated"},
    "MODEL_CARD.md": {"MODEL_CARD.md"},
}


@pytest.mark.parametrize("name", FILES)
def test_what_a_missing_file_would_hold_is_not_measured(run: Path, name: str) -> None:
    def missing() -> set[str]:
        return {one.name for one in scorecard(run) if one.missing}

    (run / "quality.parquet").unlink(missing_ok=True)
    overall = {"finding": "overall", "metric": ["KID", "FID", "recall", "coverage"], "value": 0.5}
    write_table(run / "quality.parquet", pd.DataFrame({**overall, "n_real": 4, "n_synthetic": 4, "reason": ""}))
    assert not missing() & REMOVED[name]
    (run / name).unlink()
    assert missing() >= REMOVED[name]
    sources = {one.source for one in scorecard(run) if one.value}
    assert name == "MODEL_CARD.md" or name not in sources


def test_files_are_counted_by_what_they_state(run: Path) -> None:
    rows = pd.read_parquet(run / "manifest.parquet")
    made = rows[rows["synthetic"].astype(bool)]
    name = "images marked as synthetic in their file"
    assert of(scorecard(run), name).value == f"{len(made)} of {len(made)}"
    Image.new("L", (4, 4)).save(run / made["path"].iloc[0])
    assert of(scorecard(run), name).value == f"{len(made) - 1} of {len(made)}"


def test_a_name_breaks_no_table() -> None:
    page = markdown([Measure("coverage", "a|b\n# c", "1 | 2", "x"), Measure("coverage", "d\ne", missing="f\ng")])
    assert "| a\\|b # c | 1 \\| 2 | x |" in page
    assert "- Not measured: d e; f g." in page
    assert "\n\n\n" not in page


def test_a_folder_of_images_made_elsewhere_has_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.yaml"):
        write_scorecard(tmp_path)


def test_an_experiment_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("arms: {}\n")
    (tmp_path / "run.json").write_text("{}")
    write_table(tmp_path / "arms.parquet", pd.DataFrame({name: ["real"] for name in COLUMNS["arms"]}))
    assert write_scorecard(tmp_path) is None
    assert not (tmp_path / "SCORECARD.md").exists()
