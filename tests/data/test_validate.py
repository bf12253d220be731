import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medlt.data.manifest import Manifest
from medlt.data.validate import scan, validate

FINDINGS = ("A", "B", "No_Finding")


@pytest.fixture
def manifest(folder: Path, table: pd.DataFrame) -> Manifest:
    return Manifest(table.set_index("uid"), FINDINGS, folder)


def test_a_sound_manifest_has_no_problem(manifest: Manifest) -> None:
    report = validate(Manifest(manifest.rows.assign(view="PA"), FINDINGS, manifest.root))
    assert (report.rows, report.patients, report.problems) == (6, 5, ())
    assert (report.passed, report.failures) == (True, 0)
    assert report.counts.loc[("train", "A")].to_dict() == {"positive": 2, "negative": 1, "unknown": 1}
    assert json.loads(json.dumps(report.summary()))["counts"]["val"]["A"] == {
        "positive": 1,
        "negative": 0,
        "unknown": 0,
    }


@pytest.mark.parametrize("workers", [1, 3])
def test_scan_lists_every_bad_file_with_its_reason_in_order(manifest: Manifest, workers: int) -> None:
    manifest.file("u4").unlink()
    manifest.file("u1").write_bytes(manifest.file("u1").read_bytes()[:60])
    manifest.file("u2").write_text("not an image " * 30)
    with warnings.catch_warnings(record=True) as filters:
        failures = scan(manifest, workers)
    assert list(failures["uid"]) == ["u1", "u2", "u4"]
    assert list(failures["code"]) == ["corrupt", "not_dicom", "missing"]
    assert not failures["reason"].str.contains("\n").any()
    assert not filters


def test_scan_puts_the_callers_warning_filters_back(manifest: Manifest) -> None:
    before = list(warnings.filters)
    scan(manifest, 4)
    assert list(warnings.filters) == before


def test_some_bad_files_are_told_all_bad_files_stop(manifest: Manifest) -> None:
    manifest.file("u4").unlink()
    some = validate(manifest)
    assert (some.passed, some.failures) == (True, 1)
    assert "1 of 6 files cannot be read; first:" in some.problems[0].what
    for uid in manifest.rows.index:
        manifest.file(uid).unlink(missing_ok=True)
    assert not validate(manifest).passed


def test_the_last_positive_in_a_damaged_file_counts_as_none(manifest: Manifest) -> None:
    manifest.file("u2").write_text("not an image " * 30)
    report = validate(manifest)
    assert not report.passed
    assert any("finding B has no positive image in split train" in p.what for p in report.problems)


def test_laterals_among_frontal_images_are_a_note(manifest: Manifest) -> None:
    report = validate(manifest)
    note = "1 of 6 images are lateral, 1 of unknown view; `medlt manifest ... --view frontal` leaves both out"
    assert [(p.what, p.fatal) for p in report.problems] == [(note, False)]


def test_rows_at_zero_and_rows_unknown_are_counted(folder: Path, table: pd.DataFrame) -> None:
    table.loc[2, ["A", "B", "No_Finding"]] = 0.0
    table.loc[0, "B"] = 1.0
    table.loc[4, ["A", "B", "No_Finding"]] = np.nan
    report = validate(Manifest(table.assign(view="PA").set_index("uid"), FINDINGS, folder))
    assert (report.all_zero, report.unlabelled) == (1, 1)
    assert report.passed
    assert sorted(p.what.split(";")[0] for p in report.problems) == [
        "1 row(s) with every finding, no-finding included, at 0",
        "1 row(s) without any known label",
    ]


def test_the_table_shows_counts_and_problems(manifest: Manifest) -> None:
    from rich.console import Console

    manifest.file("u4").unlink()
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    with console.file:
        console.print(validate(manifest).table())
    text = console.export_text()
    assert "2 / 1 / 1" in text
    assert "note: 1 of 6 files" in text


def test_a_finding_of_one_source_is_a_warning(manifest: Manifest) -> None:
    rows = pd.concat([manifest.rows] * 5)
    rows.index = pd.Index([f"{uid}-{n}" for n, uid in enumerate(rows.index)], name="uid")
    source = np.where(rows["A"] == 1, "a", "b")
    told = validate(Manifest(rows.assign(source=source), FINDINGS, manifest.root)).problems
    marked = [p for p in told if p.what.startswith("A goes with the source: 100% of its")]
    assert [p.fatal for p in marked] == [False]
    other = validate(Manifest(rows.assign(source=["a", "b"] * 15), FINDINGS, manifest.root)).problems
    assert not [p for p in other if "goes with the source" in p.what]
