"""A de-identified conversion: what may leave in release/, what leads back in private/, and labels joined through it."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from medlt.cli import app
from medlt.data.convert import ConversionSettings, convert
from medlt.data.deidentify import Profile
from medlt.data.layouts import read_layout
from medlt.types import InputError

Film, Run, Tree = Callable[..., bytes], Callable[..., Any], Callable[[Path], dict[str, bytes]]
KEY, BASIC = b"k" * 32, "basic,retain-patient-characteristics"
PATIENTS = {"a": ("MRN-1001", "ACC-77001"), "b": ("MRN-1001", "ACC-77002"), "c": ("MRN-2002", "ACC-77003")}


@pytest.fixture
def source(tmp_path: Path, film: Film) -> Path:
    """Three films of two patients, and a fourth that holds a name in its pixels, all in folders that name them."""
    for i, (name, (patient, accession)) in enumerate([*PATIENTS.items(), ("d", ("MRN-3003", "ACC-77004"))]):
        place = tmp_path / "in" / patient
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint16) * 16 + i
        tags = {"PatientName": f"Quimby^Wanda{i}", "PatientID": patient, "AccessionNumber": accession}
        tags |= {"StudyInstanceUID": f"1.2.826.9.{i}", "SOPInstanceUID": f"1.2.826.8.{i}", "PatientAge": "093Y"}
        tags |= {"BurnedInAnnotation": "YES"} if name == "d" else {}
        (place / name).write_bytes(film(pixels, **tags))
    return tmp_path / "in"


@pytest.fixture
def made(source: Path, run: Run, tmp_path: Path) -> Any:
    return run(source, tmp_path / "out", profile=Profile.parse(BASIC), key=KEY)


def test_release_holds_what_may_leave_and_private_the_rest(made: Any, tmp_path: Path) -> None:
    out, uids = tmp_path / "out", {row["uid"] for row in made.rows.values()}
    tables = {"failures.csv", "duplicates.csv", "objects.csv"}
    assert {path.name for path in out.iterdir()} == {"release", "private", *tables}
    assert {path.name for path in (out / "release").iterdir()} == {"images", "dicom", "manifest.parquet"}
    assert {path.stem for path in (out / "release/dicom").iterdir()} == uids
    assert {path.stem for path in (out / "release/images").iterdir()} == uids
    private = {"crosswalk.csv", "sources.csv", "dropped.csv", "quarantine", "journal"}
    assert {path.name for path in (out / "private").iterdir()} == private
    assert made.reasons == {"MRN-3003/d": "quarantined"}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (out / "private").rglob("*.csv")}
    assert (stat.S_IMODE((out / "private").stat().st_mode), modes) == (0o700, {0o600})


def test_nothing_that_leads_back_is_outside_private(source: Path, made: Any, tmp_path: Path) -> None:
    """Neither the identifiers nor the names, paths, sizes and digests of the files."""
    words = [b"MRN-", b"ACC-770", b"1.2.826.8.", b"1.2.826.9.", b"Quimby"]
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file() and "private" not in path.parts:
            assert not [word for word in words if word in path.read_bytes()], path
    for row in made.rows.values():
        assert (row["blake3_in"], row["bytes_in"]) == ("", 0)


def test_the_crosswalk_leads_from_every_source_to_its_image(made: Any, tmp_path: Path) -> None:
    walk = pd.read_csv(tmp_path / "out/private/crosswalk.csv", dtype=str).set_index("file")
    assert list(walk["status"]) == ["released"] * 3 + ["quarantined"]
    for name, (patient, accession) in PATIENTS.items():
        line, row = walk.loc[f"{patient}/{name}"], made.rows[f"{patient}/{name}"]
        assert tuple(line[["patient_id", "accession", "uid"]]) == (patient, accession, row["uid"])
        released = [row[column] for column in ("patient_id", "study_uid", "sop_uid")]
        assert list(line[["released_patient_id", "released_study_uid", "released_sop_uid"]]) == released
    held = walk.loc["MRN-3003/d"]
    assert (tmp_path / f"out/private/quarantine/{held['uid']}.dcm").is_file()
    assert held["patient_id"] == "MRN-3003"


def test_what_was_removed_is_counted_by_tag(film: Film, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        tags = {"OtherStudyNumbers": "77", "WindowCenter": 2048, "WindowWidth": 4096 - i}
        (tmp_path / f"in/{i}").write_bytes(film(**(tags if i else {})))
    run(tmp_path / "in", tmp_path / "out", profile=Profile.parse("basic"), key=KEY)
    table = pd.read_csv(tmp_path / "out/private/dropped.csv", dtype=str)
    assert table.to_dict("records") == [{"tag": "(0020,1070)", "attribute": "OtherStudyNumbers", "removed": "2"}]


def test_the_crosswalk_is_the_same_for_any_workers_and_after_a_resume(
    source: Path, run: Run, tree: Tree, tmp_path: Path
) -> None:
    settings = {"profile": Profile.parse(BASIC), "key": KEY}
    run(source, tmp_path / "one", **settings)
    run(source, tmp_path / "two", workers=2, **settings)
    (tmp_path / "two/release/dicom").joinpath(os.listdir(tmp_path / "two/release/dicom")[0]).unlink()
    run(source, tmp_path / "two", workers=2, **settings)
    first, second = ({k: v for k, v in tree(tmp_path / n).items() if "journal" not in k} for n in ("one", "two"))
    assert first == second


@pytest.mark.parametrize("begun", [True, False])
def test_a_folder_is_de_identified_or_not(source: Path, run: Run, tmp_path: Path, begun: bool) -> None:
    settings = {"profile": Profile.parse("basic"), "key": KEY}
    run(source, tmp_path / "out", **(settings if begun else {}))
    with pytest.raises(InputError, match="begun with deidentify"):
        run(source, tmp_path / "out", **({} if begun else settings))


def labels(tmp_path: Path, key: str, **more: Any) -> Path:
    table = {
        "sop_uid": ["1.2.826.8.0", "1.2.826.8.1", "1.2.826.8.2"],
        "accession": ["ACC-77001", "ACC-77002", "ACC-77003"],
        "patient_id": ["MRN-1001", "MRN-2002"],
    }[key]
    findings = {"Mass": [1, 0, 0][: len(table)], "Nodule": [0, 1, 1][: len(table)]}
    extra = {name: values[: len(table)] for name, values in more.items()}
    pd.DataFrame({key: table, **findings, **extra}).to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path / "labels.csv"


@pytest.mark.parametrize(("key", "mass"), [("sop_uid", [1, 0, 0]), ("accession", [1, 0, 0]), ("patient_id", [1, 1, 0])])
def test_the_hospitals_labels_reach_released_images(made: Any, tmp_path: Path, key: str, mass: list[int]) -> None:
    more = {} if key == "patient_id" else {"patient_id": ["MRN-1", "MRN-2", "MRN-3"]}
    table = labels(tmp_path, key, age=["093Y", "040Y", "041Y"], **more)
    out = tmp_path / "own.parquet"
    where = [str(tmp_path / "out/release"), str(out), "--labels", str(table), "--key", key, "--findings", "all"]
    crosswalk = str(tmp_path / "out/private/crosswalk.csv")
    done = CliRunner().invoke(app, ["manifest", "folder", *where, "--crosswalk", crosswalk])
    assert done.exit_code == 0, done.stderr
    orphans = tmp_path / "own.orphans.csv"
    assert not orphans.exists() or "dicom/" not in orphans.read_text()
    rows = pd.read_parquet(out)
    uids = [made.rows[f"{patient}/{name}"]["uid"] for name, (patient, _) in PATIENTS.items()]
    assert list(rows.loc[uids, "Mass"]) == mass
    assert list(rows.loc[uids, "patient_id"]) == [made.rows[f"{p}/{n}"]["patient_id"] for n, (p, _) in PATIENTS.items()]
    assert set(rows["age"]) == {"090Y"}
    assert b"MRN-" not in out.read_bytes()
    assert not {column for column in rows if "source" in column and column != "source"}


def test_a_crosswalk_of_other_images_or_without_images_is_one_line(made: Any, tmp_path: Path) -> None:
    crosswalk = tmp_path / "out/private/crosswalk.csv"
    given = {"labels": labels(tmp_path, "accession"), "findings": "Mass,Nodule", "key": "accession"}
    other = tmp_path / "other.csv"
    pd.read_csv(crosswalk, dtype=str).iloc[1:].to_csv(other, index=False)
    with pytest.raises(InputError, match="same conversion"):
        read_layout("folder", tmp_path / "out/release", {**given, "crosswalk": other})
    with pytest.raises(InputError, match="OUT/release"):
        read_layout("folder", tmp_path / "out", {**given, "crosswalk": crosswalk})
    with pytest.raises(InputError, match="identifies the source"):
        read_layout("folder", tmp_path / "out/release", given | {"extra_columns": "accession", "crosswalk": crosswalk})


def test_a_dry_run_under_a_profile_writes_nothing(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", ConversionSettings(profile=Profile.parse("basic"), key=KEY, dry_run=True))
    assert not (tmp_path / "out").exists()
