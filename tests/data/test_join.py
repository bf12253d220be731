"""`medlt join`: several collections in one manifest, where equal numbers are not equal patients."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from medlt.cli import app
from medlt.data.images import read_image
from medlt.data.join import JoinOptions, join_manifests, one_spelling
from medlt.data.manifest import Manifest
from medlt.metrics.confounding import associations
from medlt.types import InputError

NAN = math.nan


def collection(place: Path, level: int, **columns: Any) -> Path:
    """A manifest of four images of three patients, each of another grey level; images in pictures/ beside it."""
    (place / "pictures").mkdir(parents=True)
    for n in range(4):
        Image.fromarray(np.full((4, 4), level + n, np.uint8)).save(place / "pictures" / f"{n}.png")
    fixed = {"path": [f"pictures/{n}.png" for n in range(4)], "patient_id": [*"1123"], "view": "PA"}
    fixed |= {"split": ["train", "train", "val", "test"]}
    index = pd.Index([f"i{n}" for n in range(4)], name="uid")
    findings = tuple(name for name, values in columns.items() if isinstance(values[0], float))
    Manifest(pd.DataFrame(fixed | columns, index=index), findings, place).write(place / f"{place.name}.parquet")
    return place / f"{place.name}.parquet"


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Collections a and b: Effusion under two names, Mass in a and Hernia in b alone."""
    first = {"Effusion": [1.0, 0.0, NAN, 1.0], "Mass": [0.0, 1.0, 0.0, 0.0], "No_Finding": [0.0, 0.0, 1.0, 0.0]}
    second = {"Pleural Effusion": [0.0, 0.0, 1.0, 0.0], "No Finding": [1.0, 0.0, 0.0, 1.0], "Hernia": [0.0] * 3 + [1.0]}
    boxes = {"box_Effusion": [[0.1, 0.2, 0.3, 0.4], None, None, None]}
    return [collection(tmp_path / "a", 10, **first, **boxes), collection(tmp_path / "b", 50, **second)]


def test_equal_numbers_are_other_patients_and_lacking_findings_are_unknown(two: list[Path], tmp_path: Path) -> None:
    result = join_manifests(two, JoinOptions(alias={"Pleural Effusion": ("Effusion",)}))
    rows = result.manifest.rows
    assert list(rows.index) == [f"{name}__i{n}" for name in "ab" for n in range(4)]
    assert rows["patient_id"].tolist() == ["a/1", "a/1", "a/2", "a/3", "b/1", "b/1", "b/2", "b/3"]
    assert rows["source"].tolist() == ["a"] * 4 + ["b"] * 4
    assert result.manifest.findings == ("Pleural Effusion", "Mass", "No_Finding", "Hernia")
    wanted = {
        "Pleural Effusion": [1, 0, NAN, 1, 0, 0, 1, 0],
        "Mass": [0, 1, 0, 0, NAN, NAN, NAN, NAN],
        "No_Finding": [0, 0, 1, 0, 1, 0, 0, 1],
        "Hernia": [NAN, NAN, NAN, NAN, 0, 0, 0, 1],
    }
    for name, values in wanted.items():
        np.testing.assert_array_equal(rows[name], values, name)
    assert rows.at["a__i0", "box_Pleural Effusion"] == [0.1, 0.2, 0.3, 0.4]
    assert "findings of a with another name: Effusion is Pleural Effusion" in result.notes
    assert "findings of b with another name: No Finding is No_Finding" in result.notes
    assert "unknown in all images of b: Mass; --alias if it has another name there" in result.notes


@pytest.mark.parametrize("out", ["both.parquet", "elsewhere/deep/both.parquet", "a/both.parquet"])
def test_paths_stay_those_of_the_images_wherever_the_result_is(two: list[Path], tmp_path: Path, out: str) -> None:
    join_manifests(two, JoinOptions()).write(tmp_path / out)
    joined = Manifest.read(tmp_path / out)
    joined.check_files()
    for uid, level in zip(joined.rows.index, [10, 11, 12, 13, 50, 51, 52, 53], strict=True):
        np.testing.assert_allclose(read_image(joined.file(uid)) * 255, level)


def test_a_finding_of_one_source_is_seen_by_the_confounding_measure(tmp_path: Path) -> None:
    parts = [collection(tmp_path / name, 10, Mass=[label] * 4) for name, label in (("a", 1.0), ("b", 0.0))]
    joined = join_manifests(parts, JoinOptions()).manifest
    measured = {one.column: one for one in associations(joined.labels(), joined.findings, joined.rows)}
    assert measured["source"].cramers_v == 1
    again = tmp_path / "ab.parquet"
    joined.write(again)
    third = collection(tmp_path / "c", 10, Mass=[1.0] * 4)
    rows = join_manifests([again, third], JoinOptions()).manifest.rows
    assert rows["source"].tolist() == ["ab/a"] * 4 + ["ab/b"] * 4 + ["c"] * 4
    assert rows.index[0] == "ab__a__i0"


def test_same_patients_keep_their_ids_and_must_be_in_one_split(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"uid i0 appears more than once.*leave it out of one collection"):
        join_manifests(two, JoinOptions(same_patients=True))
    manifest = Manifest.read(two[1])
    rows = manifest.rows.set_axis(pd.Index(["j0", "j1", "j2", "j3"], name="uid"))
    Manifest(rows.assign(split="train"), manifest.findings, manifest.root).write(tmp_path / "j.parquet")
    pair = [two[0], tmp_path / "j.parquet"]
    with pytest.raises(
        InputError, match=r"the patient of uid i2 is in splits train and val.*split again with --resplit"
    ):
        join_manifests(pair, JoinOptions(same_patients=True))
    result = join_manifests(pair, JoinOptions(same_patients=True, resplit=True, seed=1))
    assert set(result.manifest.rows["patient_id"]) == set("123")
    assert result.manifest.rows.groupby("patient_id")["split"].nunique().max() == 1
    assert any(note.startswith("split by patient with seed 1") for note in result.notes)


def test_columns_of_other_kinds_are_written_and_numbers_of_studies_stay_apart(tmp_path: Path) -> None:
    parts = [
        collection(tmp_path / "a", 10, Mass=[1.0] * 4, study_id=[7, 7, 8, 9], station=["X"] * 4, used=[True] * 4),
        collection(tmp_path / "b", 10, Mass=[0.0] * 4, study_id=["7"] * 4, station=[1, 2, 3, 4], used=[1, 0, 1, 0]),
    ]
    join_manifests(parts, JoinOptions()).write(tmp_path / "both.parquet")
    rows = Manifest.read(tmp_path / "both.parquet").rows
    assert rows["study_id"].tolist() == ["a/7", "a/7", "a/8", "a/9"] + ["b/7"] * 4
    assert rows["station"].tolist() == ["X"] * 4 + [*"1234"]


SPELLINGS: dict[str, tuple[dict[str, list[str]], dict[str, list[str]], dict[str, dict[str, str]]]] = {
    "blank or underscore": ({"a": ["Old_TB"], "b": ["Old TB"]}, {}, {"a": {}, "b": {"Old TB": "Old_TB"}}),
    "no finding": (
        {"a": ["Normal"], "b": ["No Finding"], "c": ["normal"]},
        {},
        {"a": {}, "b": {"No Finding": "Normal"}, "c": {"normal": "Normal"}},
    ),
    "both in one": ({"a": ["Normal", "No Finding"], "b": ["No_Finding"]}, {}, {"a": {}, "b": {}}),
    "alias before spelling": (
        {"a": ["Fluid"], "b": ["effusion"], "c": ["Effusion"]},
        {"Effusion": ["Fluid"]},
        {"a": {"Fluid": "Effusion"}, "b": {"effusion": "Effusion"}, "c": {}},
    ),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_spellings_of_one_finding(case: str) -> None:
    sets, alias, renamed = SPELLINGS[case]
    assert one_spelling(sets, alias) == renamed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"alias": ["Effusion=Fluid"]},
            "--alias Effusion=Fluid: no collection has the finding Fluid; the findings are",
        ),
        ({"alias": ["Mass=Efusion"]}, "no collection has the finding Efusion; did you mean 'Effusion'"),
        ({"alias": ["Mass=Effusion"]}, "--alias Mass=Effusion: a has both Mass and Effusion; leave the option out"),
        ({"names": ("x",)}, r"--names: 1 name\(s\) for 2 manifests"),
        ({"names": ("x", "x")}, "two manifests have the name x; give others with --names"),
        ({"names": ("x", "y/z")}, "--names: 'y/z' holds a slash"),
    ],
)
def test_options_that_do_not_fit_are_one_line(two: list[Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        join_manifests(two, JoinOptions(**options))
    assert "\n" not in str(error.value)


def test_other_meanings_synthetic_images_and_a_single_manifest_are_refused(two: list[Path], tmp_path: Path) -> None:
    odd = collection(tmp_path / "c", 10, Hernia=[1.0] * 4, Mass=["left"] * 4)
    with pytest.raises(InputError, match="Mass is a finding of a, and a column of c that is none"):
        join_manifests([two[0], odd], JoinOptions())
    with pytest.raises(InputError, match="at least two manifests"):
        join_manifests(two[:1], JoinOptions())
    made = collection(tmp_path / "d", 10, Mass=[0.5] * 4, synthetic=[True] * 4)
    with pytest.raises(InputError, match=r"d\.parquet: holds synthetic images; join the manifests of real images"):
        join_manifests([two[0], made], JoinOptions())


def test_the_command(two: list[Path], tmp_path: Path) -> None:
    command = ["join", *map(str, two), str(tmp_path / "both.parquet"), "--alias", "Effusion=Pleural Effusion"]
    done = CliRunner().invoke(app, [*command, "--names", "nih,mimic", "--json"])
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["patients"]) == (8, 6)
    assert summary["findings"]["Effusion"] == {"positive": 3, "negative": 4, "unknown": 1}
    assert set(Manifest.read(tmp_path / "both.parquet").rows["source"]) == {"nih", "mimic"}
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "exists with other contents" in done.stderr
    done = CliRunner().invoke(app, ["join", str(two[0]), str(tmp_path / "one.parquet")])
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
