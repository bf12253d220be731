import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medlt.data.layouts import NIH_FINDINGS, from_csv, from_nih
from medlt.data.manifest import Manifest
from medlt.types import InputError

FINDINGS = ("A", "B", "No_Finding")


def csv(table: pd.DataFrame, folder: Path, **how: object) -> Manifest:
    table.to_csv(folder / "labels.csv", index=False)
    return from_csv(table=folder / "labels.csv", findings=FINDINGS, **how)  # type: ignore[arg-type]


def test_a_csv_becomes_the_same_table(folder: Path, table: pd.DataFrame) -> None:
    manifest = from_csv(table=folder / "labels.csv", findings=FINDINGS)
    expected = table.set_index("uid")[list(manifest.rows.columns)]
    pd.testing.assert_frame_equal(manifest.rows, expected, check_dtype=False)
    manifest.check_files()


def test_columns_may_have_other_names_and_zeros_stay_in_front(tmp_path: Path, table: pd.DataFrame) -> None:
    other = table.rename(columns={"uid": "image", "patient_id": "subject", "view": "projection", "split": "part"})
    other["subject"] = ["007", "007", "08", "9", "010", "11"]
    names = {"uid": "image", "patient_id": "subject", "view": "projection", "split": "part"}
    manifest = csv(other, tmp_path, **names)
    assert list(manifest.rows["patient_id"]) == ["007", "007", "08", "9", "010", "11"]
    assert manifest.rows.loc["u3", "view"] == "LL"


def test_one_column_may_serve_twice_and_the_view_may_be_absent(tmp_path: Path, table: pd.DataFrame) -> None:
    manifest = csv(table.drop(columns="view"), tmp_path, patient_id="uid", view=None)
    assert list(manifest.rows.index) == list(manifest.rows["patient_id"])
    assert manifest.rows["view"].isna().all()


def test_a_path_is_no_uid(tmp_path: Path, table: pd.DataFrame) -> None:
    with pytest.raises(
        InputError, match=r"labels\.csv: uid 'images/0\.png' holds a slash \(and 5 more\); uids are file names"
    ):
        csv(table, tmp_path, uid="path")


def test_root_defaults_to_the_tables_folder(folder: Path, table: pd.DataFrame) -> None:
    assert csv(table, folder).file("u0") == folder / "images/0.png"
    assert csv(table, folder, root=Path("/pictures")).file("u0") == Path("/pictures/images/0.png")


def test_kept_columns_are_those_asked_for_and_there(tmp_path: Path, table: pd.DataFrame) -> None:
    manifest = csv(table.assign(ward="x", secret="y"), tmp_path, extra_columns=("ward", "nothing"))
    assert {"ward"} == set(manifest.rows.columns) - {"path", "patient_id", "split", "view", *FINDINGS}


@pytest.mark.parametrize(("policy", "becomes"), [("unknown", np.nan), ("positive", 1.0), ("negative", 0.0)])
@pytest.mark.parametrize("other", [1, np.nan])
def test_minus_one_becomes_what_the_policy_says(
    tmp_path: Path, table: pd.DataFrame, policy: str, becomes: float, other: float
) -> None:
    manifest = csv(table.assign(A=[-1, 0, other, 0, 1, -1]), tmp_path, uncertain=policy)
    np.testing.assert_array_equal(manifest.labels()[:, 0], np.array([becomes, 0, other, 0, 1, becomes], np.float32))


def test_train_flag_filters_train_rows_only(tmp_path: Path, table: pd.DataFrame) -> None:
    manifest = csv(table.assign(use=[1, 0, 1, None, 0, 0]), tmp_path, train_flag="use")
    assert list(manifest.rows.index) == ["u0", "u2", "u4", "u5"]
    with pytest.raises(InputError, match="no row is left"):
        csv(table.assign(use=0, split="train"), tmp_path, train_flag="use")


@pytest.mark.parametrize(
    ("change", "how", "told"),
    [
        (lambda t: t.drop(columns="A"), {}, r"labels\.csv: missing column 'A'; the table has path, uid"),
        (lambda t: t.drop(columns=["split", "uid"]), {}, r"missing column 'uid' \(and 1 more\)"),
        (lambda t: t, {"train_flag": "lt"}, "missing column 'lt'"),
        (lambda t: t.assign(uid="u0"), {}, r"labels\.csv: uid u0 appears more than once"),
        (lambda t: t.assign(A=2), {}, "finding A, uid u0: label 2 is not 0, 1 or blank"),
        (lambda t: t.assign(A="maybe"), {}, "finding A, uid u0: label 'maybe'"),
        (lambda t: t.assign(patient_id="p0"), {}, "is in splits test and train and val"),
        (lambda t: t.assign(split="dev"), {}, "unknown split 'dev'"),
        (lambda t: t[:0], {}, "the table has no row"),
    ],
)
def test_bad_tables_give_one_line(
    tmp_path: Path, table: pd.DataFrame, change: object, how: dict[str, str], told: str
) -> None:
    with pytest.raises(InputError, match=told) as error:
        csv(change(table), tmp_path, **how)  # type: ignore[operator]
    assert "\n" not in str(error.value)


def test_no_table_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such table"):
        from_csv(table=tmp_path / "labels.csv", findings=("A",))
    (tmp_path / "labels.csv").write_bytes(b"\x89PNG\xff\xfe\x00\x00")
    with pytest.raises(InputError, match="not readable as CSV"):
        from_csv(table=tmp_path / "labels.csv", findings=("A",))
    (tmp_path / "labels.csv").touch()
    (tmp_path / "empty.csv").touch()
    with pytest.raises(InputError, match="not readable as CSV"):
        from_csv(table=tmp_path / "empty.csv", findings=("A",))


NIH = """Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width
00000001_000.png,Cardiomegaly|Emphysema,0,1,058Y,M,PA,2682
00000001_001.png,No Finding,1,1,59,M,AP,2682
00000002_000.png,Pleural_Thickening,0,2,411,F,PA,2682
00000003_000.png,Hernia,0,3,7,F,PA,2682
"""


@pytest.mark.parametrize("packed", [False, True])
def test_the_nih_table_needs_no_files(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("d.csv.gz" if packed else "d.csv")
    path.write_bytes(gzip.compress(NIH.encode()) if packed else NIH.encode())
    manifest = from_nih(table=path, images=tmp_path / "images")
    assert list(manifest.rows.index) == ["00000001_000", "00000001_001", "00000002_000", "00000003_000"]
    positive = {u: {f for f in NIH_FINDINGS if manifest.rows.at[u, f] == 1} for u in manifest.rows.index}
    assert positive["00000001_000"] == {"Cardiomegaly", "Emphysema"}
    assert positive["00000001_001"] == {"No_Finding"}
    np.testing.assert_array_equal(manifest.rows["age"], [58, 59, np.nan, 7])
    assert list(manifest.rows["view"]) == ["PA", "AP", "PA", "PA"]
    with pytest.raises(InputError, match="image folder does not exist"):
        manifest.check_files()


def test_nih_files_are_found_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(NIH)
    for name, place in (
        ("00000001_000", "images_001/images"),
        ("00000001_001", "images_002/images"),
        ("00000002_000", "."),
    ):
        (tmp_path / "nih" / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / "nih" / place / f"{name}.png").touch()
    manifest = from_nih(table=tmp_path / "d.csv", images=tmp_path / "nih")
    assert manifest.rows.at["00000001_001", "path"] == "images_002/images/00000001_001.png"
    with pytest.raises(InputError, match=r"00000003_000\.png: no such file"):
        manifest.check_files()


def test_the_official_test_list_is_kept(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(NIH)
    (tmp_path / "test.txt").write_text("00000001_000.png\n00000001_001.png\n")
    how = {"table": tmp_path / "d.csv", "images": tmp_path}
    manifest = from_nih(**how, test_list=tmp_path / "test.txt", seed=3)
    assert set(manifest.split("test").rows.index) == {"00000001_000", "00000001_001"}
    with pytest.raises(InputError, match="no such test list"):
        from_nih(**how, test_list=tmp_path / "none.txt")
    (tmp_path / "test.txt").write_text("00000001_000.png\n")
    manifest = from_nih(**how, test_list=tmp_path / "test.txt", seed=3)
    assert set(manifest.split("test").rows.index) == {"00000001_000", "00000001_001"}  # the whole patient


def test_a_table_that_is_not_nihs(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(NIH.replace("Hernia", "Gout"))
    with pytest.raises(InputError, match="unknown finding 'Gout'"):
        from_nih(table=tmp_path / "d.csv", images=tmp_path)
    (tmp_path / "d.csv").write_text(NIH.replace("Finding Labels", "Labels"))
    with pytest.raises(InputError, match="missing column 'Finding Labels'"):
        from_nih(table=tmp_path / "d.csv", images=tmp_path)
