"""The command line as a user meets it: help, one clear line for a mistake, exit codes, nothing half-written."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from medlt.cli import app
from medlt.cli.recipes import _finish

FINDINGS = ("Mass", "Hernia", "No_Finding")
Spoil = Callable[[pd.DataFrame, Path], pd.DataFrame]


def table(folder: Path, n: int = 12) -> pd.DataFrame:
    """A small, right collection of PNG files."""
    rows = []
    for i in range(n):
        Image.new("L", (64, 64), 10 * i).save(folder / f"{i}.png")
        split = ("train", "train", "val", "test")[i % 4]
        rows.append({"uid": f"u{i}", "path": f"{i}.png", "patient_id": f"p{i}", "split": split, "view": "PA"})
    labels = {f: [float((i // 4 + k) % 3 == 0) for i in range(n)] for k, f in enumerate(FINDINGS)}
    return pd.DataFrame(rows).assign(**labels)


def invoke(tmp_path: Path, *more: str) -> tuple[int, str]:
    """`medlt run` on the collection in tmp_path; exit code and what was said on stderr."""
    (tmp_path / "c.yaml").write_text(
        f"out: {tmp_path}/run\nsize: 32\nneed: {{tail_below: 5, head_above: 8, target: 6}}\n"
        f"data: {{kind: csv, table: {tmp_path}/labels.csv, findings: [{', '.join(FINDINGS)}]}}\n"
        "codec: {kind: train}\n"
    )
    done = CliRunner().invoke(app, ["run", str(tmp_path / "c.yaml"), *more])
    return done.exit_code, done.stderr


def edit(column: str, value: object, row: int = 0) -> Spoil:
    def spoil(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
        rows[column] = rows[column].astype(object)
        rows.loc[row, column] = value
        return rows

    return spoil


def unreadable(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
    (folder / "0.png").write_bytes(b"not an image")
    return rows


def emptied(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
    for path in folder.glob("*.png"):
        path.unlink()
    return rows


MISTAKES: dict[str, tuple[Spoil, str]] = {
    "missing column": (lambda rows, folder: rows.drop(columns="Hernia"), "missing column 'Hernia'"),
    "duplicated uid": (edit("uid", "u1"), "u1"),
    "label 2": (edit("Mass", 2), "label 2"),
    "patient in two splits": (edit("patient_id", "p2"), "the patient of uid u0 is in splits"),
    "missing file": (edit("path", "gone.png"), "gone.png"),
    "unreadable image": (unreadable, "0.png"),
    "no positive": (lambda rows, folder: rows.assign(Hernia=0.0), "Hernia has no positive"),
    "empty folder": (emptied, "no such file"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_bad_data_is_one_clear_line_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    spoil, said = MISTAKES[name]
    spoil(table(tmp_path), tmp_path).to_csv(tmp_path / "labels.csv", index=False)
    code, told = invoke(tmp_path)
    assert code == 2
    assert said in told
    assert len(told.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    table(tmp_path).to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "run").write_text("in the way")
    code, told = invoke(tmp_path)
    assert code == 2
    assert re.search(r"run.*; give a place with room", told)
    assert len(told.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"planned": 2, "kept": 0}, ["none of 2 images passed the checks"]),
        ({"planned": 2, "kept": 0, "failed": 1}, ["1 images could not be read", "none of 2 images passed the checks"]),
        ({"planned": 2, "kept": 1, "failed": 0}, []),
    ],
)
def test_a_run_that_kept_nothing_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], counts: dict[str, int], said: list[str]
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"counts": counts}))
    code = 0
    try:
        _finish(tmp_path, as_json=True)
    except typer.Exit as ended:
        code = ended.exit_code
    lines = capsys.readouterr().err.splitlines()
    assert code == bool(said)
    assert [line.removeprefix("medlt: ").split(";")[0] for line in lines] == said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("codec={kind: folder, path: nowhere}", "nowhere"),
        ("sparse.gruops=3", "sparse.gruops is not a known key"),
        ("need.target=1", "nothing to fill"),
    ],
)
def test_a_bad_setting_is_one_clear_line_and_nothing_is_written(tmp_path: Path, override: str, said: str) -> None:
    table(tmp_path).to_csv(tmp_path / "labels.csv", index=False)
    code, told = invoke(tmp_path, override)
    assert code == 2
    assert said in told
    assert len(told.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_codec_folder_that_is_none_is_told(tmp_path: Path) -> None:
    table(tmp_path).to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "codec").mkdir()
    code, told = invoke(tmp_path, f"codec={{kind: folder, path: {tmp_path}/codec}}")
    assert (code, "config.json" in told) == (2, True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["demo", "run", "validate", "report", "doctor"])
def test_every_command_has_help(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert "--json" in re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


def test_doctor_tells_json() -> None:
    told = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert told["versions"]["torch"].startswith("2.")
    assert told["dicom"]["JPEG2000Lossless"] != "none"


def test_validate_counts_and_exits_by_what_it_found(tmp_path: Path) -> None:
    from medlt.data.layouts import from_csv

    table(tmp_path).to_csv(tmp_path / "labels.csv", index=False)
    from_csv(table=tmp_path / "labels.csv", findings=FINDINGS).write(tmp_path / "manifest.parquet")
    good = CliRunner().invoke(app, ["validate", str(tmp_path / "manifest.parquet"), "--json"])
    assert good.exit_code == 0
    assert json.loads(good.stdout)
    (tmp_path / "3.png").write_bytes(b"broken")
    some = CliRunner().invoke(app, ["validate", str(tmp_path / "manifest.parquet")])
    assert some.exit_code == 1
    none = CliRunner().invoke(app, ["validate", str(tmp_path / "nowhere.parquet")])
    assert none.exit_code == 2
    assert len(none.stderr.strip().splitlines()) == 1


def test_report_of_no_run_is_one_clear_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1
