"""Collections of one's own: a table, or a folder, or what `medlt convert` wrote."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medlt.data.layouts import from_csv
from medlt.data.splits import patient_split
from medlt.types import InputError

AB = "A,B,No_Finding"


def test_a_table_is_read_as_from_csv_reads_it(folder: Path, read: Any) -> None:
    result = read("csv", folder / "labels.csv", findings=AB)
    expected = from_csv(table=folder / "labels.csv", findings=tuple(AB.split(",")))
    pd.testing.assert_frame_equal(result.manifest.rows[expected.rows.columns], expected.rows, check_dtype=False)
    assert not len(result.orphans)
    result.manifest.check_files()


def test_columns_of_other_names_and_a_train_flag(folder: Path, table: pd.DataFrame, read: Any, lost: Any) -> None:
    other = table.rename(columns={"uid": "image", "patient_id": "subject", "split": "part"}).drop(columns="view")
    other["part"] = other["part"].replace({"train": "Training", "val": "development"})
    other.assign(use=[1, 0, 1, 1, 0, 0], subject=["007", "007", "08", "9", "010", "11"]).to_csv(
        folder / "other.csv", index=False
    )
    names = ["uid=image", "patient_id=subject", "split=part"]
    result = read("csv", folder / "other.csv", findings=AB, column=names, train_flag="use", extra_columns="sex")
    rows = result.manifest.rows
    assert list(rows.index) == ["u0", "u2", "u3", "u4", "u5"]
    assert list(rows["patient_id"]) == ["007", "08", "9", "010", "11"]
    assert list(rows["split"]) == ["train"] * 3 + ["val", "test"]
    assert rows["view"].isna().all()
    assert "age" not in rows
    assert lost(result, "image_without_label") == ["images/1.png"]


def test_without_split_patients_are_split_by_finding(folder: Path, table: pd.DataFrame, read: Any) -> None:
    table.drop(columns="split").to_csv(folder / "labels.csv", index=False)
    rows = read("csv", folder / "labels.csv", findings=AB, seed=5).manifest.rows
    whole = table.set_index("uid")
    assert rows["split"].equals(patient_split(whole["patient_id"], whole[AB.split(",")], 5))


def test_blank_splits_are_completed_and_counted(folder: Path, table: pd.DataFrame, read: Any) -> None:
    table["split"] = ["train", None, "val", None, None, "test"]
    table.to_csv(folder / "labels.csv", index=False)
    result = read("csv", folder / "labels.csv", findings=AB)
    split = result.manifest.rows["split"]
    assert split.iloc[[0, 1, 2, 5]].tolist() == ["train", "train", "val", "test"]
    assert set(split.iloc[[3, 4]]) <= {"train", "val", "test"}
    assert any("3 row(s) had no split: " in note and "2 patient(s) got a new one" in note for note in result.notes)


def test_equal_numbers_of_two_sites_are_two_patients(folder: Path, table: pd.DataFrame, read: Any) -> None:
    sites = table.assign(site=["a", "b", "a/1", "a", "a%2F1", None], patient_id=["007", "007", "2", "1/2", "2", "007"])
    sites[:5].to_csv(folder / "labels.csv", index=False)
    rows = read("csv", folder / "labels.csv", findings=AB, patient_key="site,patient_id").manifest.rows
    assert list(rows["patient_id"]) == ["a/007", "b/007", "a%2F1/2", "a/1%2F2", "a%252F1/2"]
    by_path = {"labels": folder / "labels.csv", "key": "path"}
    joined = read("folder", folder, **by_path, findings=AB, patient_key="site,patient_id")
    assert list(joined.manifest.rows["patient_id"]) == list(rows["patient_id"])
    sites.to_csv(folder / "labels.csv", index=False)
    for options, message in (
        ({"patient_key": "site,patient_id"}, "uid u5: patient_id is blank"),
        ({"patient_key": "site,pid"}, "missing column 'pid'"),
        ({"patient_key": "site", "patient": "(.+)"}, "--patient and --patient-key both name the patient"),
    ):
        with pytest.raises(InputError, match=message):
            read("csv", folder / "labels.csv", findings=AB, **options)


def test_a_path_or_a_uid_is_enough(folder: Path, table: pd.DataFrame, read: Any) -> None:
    table.drop(columns=["uid", "patient_id"]).to_csv(folder / "labels.csv", index=False)
    rows = read("csv", folder / "labels.csv", findings=AB, patient=r"(\d)\.png").manifest.rows
    assert list(rows.index) == list(rows["patient_id"]) == list("012345")
    table.drop(columns="path").assign(uid=list("012345")).to_csv(folder / "labels.csv", index=False)
    rows = read("csv", folder / "labels.csv", findings=AB).manifest.rows
    assert list(rows["path"]) == [f"images/{i}.png" for i in range(6)]


def test_rows_without_a_path_may_be_kept_without_their_file(folder: Path, table: pd.DataFrame, read: Any) -> None:
    table.drop(columns="path").assign(uid=["0", "1", "2", "3", "4", "none"]).to_csv(folder / "labels.csv", index=False)
    rows = read("csv", folder / "labels.csv", findings=AB, missing="keep").manifest.rows
    assert list(rows["path"]) == [*(f"images/{i}.png" for i in range(5)), "none"]


def test_absolute_paths_inside_and_outside_the_folder(
    folder: Path, table: pd.DataFrame, read: Any, tmp_path_factory: Any
) -> None:
    away = tmp_path_factory.mktemp("away") / "x.png"
    away.touch()
    table["path"] = [str(away), str(folder / "images/1.png"), "./images/2.png", *table["path"][3:]]
    table.to_csv(folder / "labels.csv", index=False)
    result = read("csv", folder / "labels.csv", findings=AB)
    assert list(result.manifest.rows["path"])[:3] == [str(away), "images/1.png", "images/2.png"]
    assert result.failures == 0
    result.manifest.check_files()


def test_orphans_of_a_table(folder: Path, read: Any, lost: Any) -> None:
    (folder / "images" / "2.png").rename(folder / "images" / "stray.png")
    result = read("csv", folder / "labels.csv", findings=AB)
    assert lost(result, "label_without_image") == ["images/2.png"]
    assert lost(result, "image_without_label") == ["images/stray.png"]
    assert "u2" not in result.manifest.rows.index
    kept = read("csv", folder / "labels.csv", findings=AB, missing="keep")
    assert "u2" in kept.manifest.rows.index
    assert kept.failures == 1


def test_all_findings_are_the_columns_of_labels(folder: Path, table: pd.DataFrame, read: Any) -> None:
    table.assign(note="x", dose_mgy=0.3, empty=np.nan).to_csv(folder / "labels.csv", index=False)
    result = read("csv", folder / "labels.csv", findings="all")
    expected = read("csv", folder / "labels.csv", findings=AB)
    assert result.manifest.findings == expected.manifest.findings == tuple(AB.split(","))
    pd.testing.assert_frame_equal(result.manifest.rows, expected.manifest.rows)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: t, {}, "with --findings A,B,..., or --findings all for those of .* only: A,B,No_Finding"),
        (lambda t: t, {"findings": "A,C"}, r"labels\.csv: missing column 'C'"),
        (lambda t: t, {"findings": AB, "column": ["uid=image"]}, "missing column 'image'"),
        (lambda t: t, {"findings": AB, "column": ["sex=image"]}, "--column: 'sex' is not valid; use uid"),
        (lambda t: t, {"findings": AB, "train_flag": "use"}, "missing column 'use'"),
        (lambda t: t, {"findings": AB, "patient": "("}, "is not a regular expression"),
        (lambda t: t, {"findings": AB, "patient": "x(.)"}, "does not match 6 of 6 paths"),
        (lambda t: t, {"findings": AB, "labels": "x"}, "layout csv has no option --labels"),
        (lambda t: t.drop(columns="patient_id"), {"findings": AB}, "no patient_id; name its column"),
        (lambda t: t.drop(columns=["uid", "path"]), {"findings": AB}, "neither a uid nor a path column"),
        (lambda t: t.assign(uid="u0"), {"findings": AB}, "uid u0 has 6 rows"),
        (lambda t: t.assign(A=2), {"findings": AB}, "finding A, uid u0: label 2"),
        (lambda t: t.assign(A="maybe"), {"findings": AB}, "finding A, uid u0: label 'maybe'"),
        (lambda t: t.assign(split=["train", "oops", *t["split"][2:]]), {"findings": AB}, "unknown split 'oops'"),
        (lambda t: t.assign(patient_id="p0"), {"findings": AB}, "is in splits .*--resplit"),
        (lambda t: t.assign(use=0, split="train"), {"findings": AB, "train_flag": "use"}, "no row is left"),
        (lambda t: t.assign(A=0, B=0, No_Finding=0), {"findings": AB}, "6 of 6 rows have every finding at 0"),
    ],
)
def test_bad_tables_give_one_line(
    folder: Path, table: pd.DataFrame, read: Any, change: Any, options: dict[str, Any], message: str
) -> None:
    change(table).to_csv(folder / "labels.csv", index=False)
    with pytest.raises(InputError, match=message) as error:
        read("csv", folder / "labels.csv", **options)
    assert "\n" not in str(error.value)


def test_class_folders_with_and_without_splits(touch: Any, read: Any, positives: Any) -> None:
    src = touch(["NORMAL/a.jpeg", "NORMAL/b.jpeg", "PNEUMONIA/person1_bacteria_2.jpeg", "README.md"])
    result = read("folder", src, patient="(.+)")
    assert result.manifest.findings == ("NORMAL", "PNEUMONIA")
    assert list(positives(result).values()) == [{"NORMAL"}, {"NORMAL"}, {"PNEUMONIA"}]
    assert (result.manifest.labels().sum(axis=1) == 1).all()


def test_split_folders_above_class_folders_and_names_that_repeat(touch: Any, read: Any, positives: Any) -> None:
    names = ["train/NORMAL/p1_a.png", "train/SICK/p2_a.png", "val/SICK/p3_a.png", "test/NORMAL/p1_a.png"]
    src = touch(names)
    with pytest.raises(InputError, match="is in splits test and train"):
        read("folder", src, patient=r"(p\d)_")
    rows = read("folder", src, patient=r"\w+/(?:\w+/p\d)").manifest.rows
    assert dict(zip(rows["path"], rows["split"], strict=True)) == {n: n.split("/")[0] for n in names}
    assert set(rows.index) == {n.replace("/", "__").removesuffix(".png") for n in names}


def test_dicom_without_an_ending_is_seen_by_its_mark(touch: Any, read: Any, write_dicom: Any, tmp_path: Path) -> None:
    src = touch(["Hernia/README", "Mass/x.dcm"])
    write_dicom(np.zeros((4, 4), np.uint16)).rename(src / "Hernia" / "IM0001")
    result = read("folder", src, patient="(.+)")
    assert list(result.manifest.rows.index) == ["IM0001", "x"]


def test_a_folder_that_holds_its_own_manifest_is_read_as_before(touch: Any, read: Any) -> None:
    src = touch(["A/a.png", "B/b.png"])
    result = read("folder", src, patient="(.+)")
    result.write(src / "manifest.parquet")
    again = read("folder", src, patient="(.+)")
    assert again.manifest.digest() == result.manifest.digest()
    again.write(src / "manifest.parquet")


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_names_that_are_no_text_are_orphans_and_odd_ones_are_kept(tmp_path: Path, read: Any, lost: Any) -> None:
    (tmp_path / "A").mkdir()
    for name in (b"\xff.png", b"new\nline.png", "é ü.png".encode()):
        (tmp_path / "A" / os.fsdecode(name)).touch()
    (tmp_path / "B").mkdir()
    (tmp_path / "B" / "b.png").touch()
    result = read("folder", tmp_path, patient="(.+)")
    assert set(result.manifest.rows.index) == {"new_line", "é ü", "b"}
    assert lost(result, "label_without_image") == ["A/\\udcff.png"]
    result.manifest.check_files()
    result.write(tmp_path / "m.parquet")


@pytest.fixture
def converted(touch: Any) -> Path:
    """What `medlt convert` leaves: three images of two studies of two patients."""
    rows = pd.DataFrame(
        {
            "path": ["images/a.png", "images/b.png", "images/c.png"],
            "patient_id": ["p1", "p1", "p2"],
            "view": ["PA", "LL", "AP"],
            "study_uid": ["1.2", "1.2", "1.3"],
            "series_uid": ["1.2.1", "1.2.2", "1.3.1"],
            "sop_uid": ["1.2.1.1", "1.2.2.1", "1.3.1.1"],
            "accession": ["007", "007", "8"],
        },
        index=pd.Index(["a", "b", "c"], name="uid"),
    )
    src = touch(rows["path"])
    rows.to_parquet(src / "manifest.parquet")
    return Path(src)


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("uid", ["c", "a"], {"a": 0, "c": 1}),
        ("sop_uid", ["1.3.1.1", "1.2.1.1"], {"a": 0, "c": 1}),
        ("study_uid", ["1.3", "1.2"], {"a": 0, "b": 0, "c": 1}),
        ("series_uid", ["1.3.1", "1.2.2"], {"b": 0, "c": 1}),
        ("accession", ["8", "007"], {"a": 0, "b": 0, "c": 1}),
        ("file", ["c.png", "a.png"], None),
        ("path", ["images/c.png", "images/a.png"], {"a": 0, "c": 1}),
    ],
)
def test_labels_join_a_converted_folder_by_any_key(
    converted: Path, put: Any, read: Any, lost: Any, key: str, values: list[str], expected: dict[str, int] | None
) -> None:
    table = put("l.csv", **{key: [*values, "unheard of"], "Mass": [1, 0, 1], "No_Finding": [0, 1, 0]})
    options = {"labels": table, "key": key, "findings": "Mass,No_Finding"}
    if expected is None:
        with pytest.raises(InputError, match=r"column file .* holds no image's uid or path"):
            read("folder", converted, **options)
        return
    result = read("folder", converted, **options)
    assert result.manifest.rows["Mass"].to_dict() == expected
    assert result.manifest.rows["patient_id"].to_dict() == {u: {"c": "p2"}.get(u, "p1") for u in expected}
    assert result.manifest.rows["view"].to_dict() == {u: {"a": "PA", "b": "LL", "c": "AP"}[u] for u in expected}
    assert lost(result, "label_without_image") == ["l.csv line 4"]
    assert lost(result, "image_without_label") == [f"images/{u}.png" for u in "abc" if u not in expected]
    result.manifest.check_files()
    without_key = read("folder", converted, labels=table, findings="Mass,No_Finding")
    pd.testing.assert_frame_equal(without_key.manifest.rows, result.manifest.rows)
    assert without_key.notes == result.notes


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("AccessionNumber", ["8", "007"], {"a": 0, "b": 0, "c": 1}),
        ("Study Instance UID", ["1.3", "1.2"], {"a": 0, "b": 0, "c": 1}),
        ("Bild-ID", ["1.3.1.1", "1.2.1.1"], {"a": 0, "c": 1}),
        ("Patient", ["p2", "p1"], {"a": 0, "b": 0, "c": 1}),
    ],
)
def test_the_hospital_names_its_columns_as_it_likes(
    converted: Path, put: Any, read: Any, column: str, values: list[str], expected: dict[str, int]
) -> None:
    table = put("l.csv", **{column: values, "Mass": [1, 0], "No_Finding": [0, 1]})
    result = read("folder", converted, labels=table, findings="Mass,No_Finding")
    assert result.manifest.rows["Mass"].to_dict() == expected


def test_a_study_is_the_key_before_its_patient_who_has_more_images(converted: Path, put: Any, read: Any) -> None:
    """By patient, the finding of one study would be that of the other as well."""
    rows = pd.read_parquet(converted / "manifest.parquet")
    rows.loc["b", ["study_uid", "accession"]] = ["1.4", "009"]
    rows.to_parquet(converted / "manifest.parquet")
    table = put("l.csv", PatientID=["p1", "p2"], Acc=["007", "8"], Mass=[1, 0], No_Finding=[0, 1])
    result = read("folder", converted, labels=table, findings="Mass,No_Finding")
    assert result.manifest.rows["Mass"].to_dict() == {"a": 1, "c": 0}


@pytest.mark.parametrize(
    "values", [["disc/smith^jane.dcm", "b.dcm"], ["smith^jane.dcm", "b2.dcm"], ["smith^jane", "b2"]]
)
def test_labels_by_the_hospitals_file_names_which_do_not_reach_the_manifest(
    converted: Path, put: Any, read: Any, lost: Any, values: list[str]
) -> None:
    rows = pd.read_parquet(converted / "manifest.parquet").assign(source=["s1", "s2", "s3"])
    rows.to_parquet(converted / "manifest.parquet")
    put("sources.csv", source=["s3", "s1"], file=["disc/smith^jane.dcm", "b.dcm" if "/" in values[0] else "x/b2.dcm"])
    table = put("l.csv", image=[*values, "smith^joe"], Mass=[1, 0, 1], B=[0, 1, 0])
    result = read("folder", converted, labels=table, key="image", findings="Mass,B")
    assert result.manifest.rows["Mass"].to_dict() == {"a": 0, "c": 1}
    assert lost(result, "label_without_image") == ["l.csv line 4"]
    assert "smith" not in result.manifest.rows.reset_index().to_csv() + "".join(result.notes) + result.orphans.to_csv()


def test_a_name_that_two_images_share_is_no_key(touch: Any, put: Any, read: Any) -> None:
    src = touch(["p1/IM1.png", "p2/IM1.png", "p2/IM2.png"])
    table = put("l.csv", file=["IM1.png", "IM2.png"], Mass=[1, 0], B=[0, 1])
    with pytest.raises(InputError, match=r"'IM1.png' is the name of more than one image; use the path as key"):
        read("folder", src, labels=table, key="file", findings="Mass,B", patient=r"(p\d)/")
    table = put("l.csv", file=["p1/IM1.png", "p2/IM1.png"], Mass=[1, 0], B=[0, 1])
    rows = read("folder", src, labels=table, key="file", findings="Mass,B", patient=r"(p\d)/").manifest.rows
    assert rows["Mass"].to_dict() == {"p1__IM1": 1, "p2__IM1": 0}
    assert list(rows["patient_id"]) == ["p1", "p2"]


def test_a_blank_in_the_table_leaves_what_the_converter_knew(converted: Path, put: Any, read: Any) -> None:
    table = put("l.csv", uid=["a", "b", "c"], view=["AP", None, None], Mass=[1, 0, 1], B=[0, 1, 0])
    rows = read("folder", converted, labels=table, findings="Mass,B").manifest.rows
    assert rows["view"].to_dict() == {"a": "AP", "b": "LL", "c": "AP"}


def test_a_bare_folder_joined_by_file_name_with_patients_and_splits(touch: Any, put: Any, read: Any) -> None:
    src = touch(["x/a.png", "y/b.JPG"])
    columns = {"file": ["b.JPG", "a.png"], "who": ["p2", "p1"], "Mass": [1, 0], "B": [0, 1], "split": ["dev", "test"]}
    table = put("l.csv", **columns)
    result = read("folder", src, labels=table, key="file", column={"patient_id": "who"}, findings="Mass,B")
    rows = result.manifest.rows
    assert rows[["path", "patient_id", "split"]].to_dict("index") == {
        "a": {"path": "x/a.png", "patient_id": "p1", "split": "test"},
        "b": {"path": "y/b.JPG", "patient_id": "p2", "split": "val"},
    }
    assert rows["Mass"].to_dict() == {"a": 0, "b": 1}


def test_a_converted_image_that_is_gone_is_an_orphan(converted: Path, put: Any, read: Any, lost: Any) -> None:
    (converted / "images/b.png").unlink()
    table = put("l.csv", study_uid=["1.2", "1.3"], Mass=[1, 0], B=[0, 1])
    result = read("folder", converted, labels=table, key="study_uid", findings="Mass,B")
    assert lost(result, "label_without_image") == ["images/b.png"]
    assert list(result.manifest.rows.index) == ["a", "c"]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ([], {}, "no PNG, JPEG or DICOM file"),
        (["a.png"], {"patient": "(.+)"}, r"a\.png is in no class folder"),
        (["train/a.png"], {"patient": "(.+)"}, r"train/a\.png is in no class folder"),
        (["A/a.png"], {}, "no patient_id"),
        (["A/a.png"], {"key": "uid"}, "--key, --findings and --patient-key need a table"),
        (["A/a.png"], {"labels": Path("nowhere.csv"), "findings": "A"}, "no such table"),
    ],
)
def test_bad_folders_give_one_line(
    touch: Any, read: Any, files: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read("folder", touch(files), **options)


def test_bad_label_tables_of_a_converted_folder(converted: Path, put: Any, read: Any) -> None:
    with pytest.raises(InputError, match=r"manifest\.parquet has no labels"):
        read("folder", converted)
    twice = put("l.csv", uid=["a", "a"], Mass=[1, 0])
    with pytest.raises(InputError, match="uid a has 2 rows that differ in Mass: 1 and 0"):
        read("folder", converted, labels=twice, findings="Mass")
    strange = put("s.csv", who=["x", "y"], site=["a", "a"], Mass=[1, 0])
    with pytest.raises(InputError, match=r"s\.csv: no column names the images; .* the table has who, site, Mass"):
        read("folder", converted, labels=strange, findings="Mass")
    (converted / "manifest.parquet").write_bytes(b"no")
    with pytest.raises(InputError, match="not readable as parquet"):
        read("folder", converted, labels=twice, findings="Mass")
