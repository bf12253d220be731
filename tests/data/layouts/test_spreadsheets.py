"""Tables as spreadsheets write them: separators, encodings, workbooks, words, names in cells, repeated rows."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlt.data.layouts import from_csv
from medlt.data.layouts.endings import by_ending
from medlt.data.layouts.reading import SEPARATORS, open_table
from medlt.data.layouts.values import WORDS, as_labels
from medlt.types import InputError

AB = "A,B,No_Finding"


@pytest.mark.parametrize("separator", list(SEPARATORS))
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_table_in_any_form_is_the_same_table(tmp_path: Path, separator: str, encoding: str, suffix: str) -> None:
    rows = pd.DataFrame(
        {"uid": ["007", "08"], "Müller, Jörg": ["größer", "a;b\tc"], "age": [60.5, 3.0], "A": [1.0, np.nan]}
    )
    text = rows.to_csv(index=False, sep=separator, decimal="." if separator == "," else ",")
    data = text.encode(encoding)
    (tmp_path / f"t{suffix}").write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    opened = open_table(tmp_path / f"t{suffix}", ("uid",))
    pd.testing.assert_frame_equal(opened.rows, rows, check_dtype=False)
    note = ", ".join(opened.notes)
    assert (SEPARATORS[separator] in note) == (separator != ",")
    assert ("Windows-1252" in note, "utf-16" in note) == (encoding == "cp1252", encoding == "utf-16")


def test_a_decimal_comma_counts_only_where_the_separator_is_another(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('uid,x,y\n1,"0,5",1\n')
    assert open_table(tmp_path / "t.csv").rows["x"].tolist() == ["0,5"]
    (tmp_path / "t.csv").write_text("uid;x;y\n1,5;0,5;1\n2;-3;a,b\n")
    rows = open_table(tmp_path / "t.csv", ("uid",)).rows
    assert rows.to_dict("list") == {"uid": ["1,5", "2"], "x": [0.5, -3.0], "y": ["1", "a,b"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2,3\n4,5,6\n", "more fields than its header; quote the cells that hold a comma"),
        ("", "not readable as CSV: No columns"),
        ("a,b\n", "has no row"),
    ],
)
def test_a_broken_table_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        open_table(tmp_path / "t.csv")
    assert "\n" not in str(error.value)


def test_a_workbook_is_read_by_sheet(folder: Path, table: pd.DataFrame, read: Any) -> None:
    pytest.importorskip("openpyxl")
    with pd.ExcelWriter(folder / "labels.xlsx") as book:
        table.assign(A=table["A"].map({1: "yes", 0: "no"})).to_excel(book, sheet_name="Befunde", index=False)
        pd.DataFrame({"x": [1]}).to_excel(book, sheet_name="Notes", index=False)
    result = read("csv", folder / "labels.xlsx", findings=AB)
    expected = read("csv", folder / "labels.csv", findings=AB)
    pd.testing.assert_frame_equal(result.manifest.rows, expected.manifest.rows, check_dtype=False)
    assert result.notes[0] == "labels.xlsx: sheet 'Befunde' of 2; choose another with --sheet"
    named = read("folder", folder, labels=folder / "labels.xlsx", findings=AB, sheet="Befunde", key="path")
    np.testing.assert_array_equal(named.manifest.labels(), expected.manifest.labels())
    with pytest.raises(InputError, match=r"no sheet 'Labels'; choose --sheet from Befunde, Notes"):
        read("csv", folder / "labels.xlsx", findings=AB, sheet="Labels")
    (folder / "bad.xlsx").write_bytes(b"no")
    with pytest.raises(InputError, match=r"bad\.xlsx: not readable as \.xlsx"):
        read("csv", folder / "bad.xlsx", findings=AB)


def test_a_workbook_with_the_name_of_a_csv_file_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"PK\x03\x04\x14\x00\x06")
    with pytest.raises(InputError, match=r"t\.csv: not readable as CSV: it is no text"):
        open_table(tmp_path / "t.csv")


def test_without_openpyxl_the_line_names_it(folder: Path, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    (folder / "labels.xlsx").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"needs openpyxl; pip install 'medlt\[xlsx\]', or save it as CSV"):
        read("csv", folder / "labels.xlsx", findings=AB)
    (folder / "labels.xls").write_bytes(b"")
    with pytest.raises(InputError, match=r"\.xls is not read; save it as \.xlsx or as CSV"):
        read("csv", folder / "labels.xls", findings=AB)
    with pytest.raises(InputError, match=r"labels\.csv: has no sheets; leave --sheet out"):
        read("csv", folder / "labels.csv", findings=AB, sheet="x")


def test_words_are_labels_and_the_notes_list_them(folder: Path, table: pd.DataFrame, read: Any) -> None:
    words = {"A": ["Yes", "present", "no ", None, "POSITIVE", "false"], "B": ["nein", "nein", "ja", "0", "n", "x"]}
    table.assign(**words).to_csv(folder / "labels.csv", index=False)
    result = read("csv", folder / "labels.csv", findings=AB, all_zero="keep")
    np.testing.assert_array_equal(result.manifest.rows["A"], [1, 1, 0, np.nan, 1, 0])
    np.testing.assert_array_equal(result.manifest.rows["B"], [0, 0, 1, 0, 0, 1])
    note = next(note for note in result.notes if note.startswith("label values"))
    assert "'ja' is present (1)" in note
    assert "'nein' is absent (2)" in note
    assert read("csv", folder / "labels.csv", findings="all", all_zero="keep").manifest.findings == tuple(AB.split(","))
    direct = from_csv(table=folder / "labels.csv", findings=("A", "B"))
    np.testing.assert_array_equal(direct.rows["A"], [1, 1, 0, np.nan, 1, 0])


@given(st.lists(st.sampled_from([*WORDS, "Yes", " NO", None, 1, 0, 1.0, -1, True, False]), min_size=1))
def test_words_by_the_table_of_words(cells: list[Any]) -> None:
    uids = pd.Series([f"u{i}" for i in range(len(cells))])
    labels, _ = as_labels(pd.DataFrame({"A": pd.Series(cells, dtype=object)}), {}, uids, Path("t"))
    plain = [np.nan if c is None else WORDS[str(c).strip().lower().removesuffix(".0")] for c in cells]
    np.testing.assert_array_equal(labels["A"], plain)


@pytest.mark.parametrize(
    ("values", "rules", "expected"),
    [
        ([2, 1, 0], ["2=1"], [1, 1, 0]),
        ([2, 1, 0], {"2": 1, "1": "unknown"}, [1, np.nan, 0]),
        ([0.7, 0.5, 0.1], [">=0.5=1", "<0.5=0"], [1, 1, 0]),
        ([0.7, 0.5, 0.1], [">0.5=1", "0.5=-1", "<0.5=0"], [1, np.nan, 0]),
        (["severe", "None", "mild"], ["Severe=1", "none=0", "mild=unknown"], [1, 0, np.nan]),
        ([0.7, 0.5, 0.1], ["<0.9=0", "0.5=1"], [0, 1, 0]),
        (["a=b", "yes", "no"], ["a=b=1"], [1, 1, 0]),
    ],
)
def test_other_values_by_a_mapping(
    folder: Path, table: pd.DataFrame, read: Any, values: list[Any], rules: Any, expected: list[float]
) -> None:
    table.assign(A=values * 2).to_csv(folder / "labels.csv", index=False)
    rows = read("csv", folder / "labels.csv", findings=AB, value=rules, all_zero="keep").manifest.rows
    np.testing.assert_array_equal(rows["A"], expected * 2)


@pytest.mark.parametrize(
    ("values", "rules", "message"),
    [
        ([0.5, 1, 0], (), r"finding A, uid u0: label 0\.5 is not 0, 1 or blank; map it with --value '0\.5=1'"),
        ([0.5, 0.25, 0.1], (), r"label 0\.5 .* \(and 2 more\); map such values with, for example, --value '>=0\.5=1'"),
        ([0, 3, 0], (), "finding A, uid u1: label 3 is not 0, 1 or blank"),
        (["none", "no", "yes"], (), r"uid u0: label 'none' is not .*--value 'none=1', 'none=0'"),
        ([1, 0, 0], ["3=1"], "no label column holds '3'; correct --value"),
        ([1, 0, 0], ["1=0.5"], "--value '1=0.5' maps to no label; map to 1, 0, -1 or unknown"),
        ([1, 0, 0], ["1"], "--value: '1' is no VALUE=LABEL"),
    ],
)
def test_a_value_without_a_meaning_is_one_line(
    folder: Path, table: pd.DataFrame, read: Any, values: list[Any], rules: Any, message: str
) -> None:
    table.assign(A=values * 2).to_csv(folder / "labels.csv", index=False)
    with pytest.raises(InputError, match=message) as error:
        read("csv", folder / "labels.csv", findings=AB, value=rules)
    assert "\n" not in str(error.value)


def test_a_column_of_names(folder: Path, table: pd.DataFrame, read: Any, positives: Any) -> None:
    names = ["Mass", "Mass|Hernia", "Normal", None, "Hernia| Mass", "Normal"]
    table.drop(columns=["A", "B", "No_Finding"]).assign(label=names).to_csv(folder / "labels.csv", index=False)
    with pytest.raises(InputError, match="--label-column 'label'"):
        read("csv", folder / "labels.csv")
    result = read("csv", folder / "labels.csv", label_column="label")
    assert result.manifest.findings == ("Hernia", "Mass", "Normal")
    assert positives(result) == {
        f"u{i}": set() if name is None else {part.strip() for part in name.split("|")} for i, name in enumerate(names)
    }
    assert result.manifest.rows.loc["u3", ["Hernia", "Mass", "Normal"]].isna().all()
    assert "3 findings by the names in 'label': Hernia, Mass, Normal" in result.notes
    fewer = read("csv", folder / "labels.csv", label_column="label", findings="Mass,Normal", all_zero="keep")
    assert fewer.manifest.findings == ("Mass", "Normal")
    assert "findings left out: Hernia" in fewer.notes
    with pytest.raises(InputError, match="missing column 'Tumour'"):
        read("csv", folder / "labels.csv", label_column="label", findings="Tumour")
    with pytest.raises(InputError, match=r"column 'age' holds numbers, not names of findings; .* --findings 'age'"):
        read("csv", folder / "labels.csv", label_column="age")


def test_two_spellings_of_a_name_are_not_two_findings(folder: Path, table: pd.DataFrame, read: Any) -> None:
    table.assign(label=["Mass", "mass", "B", "B", "B", "B"]).to_csv(folder / "labels.csv", index=False)
    with pytest.raises(InputError, match="'Mass' and 'mass' are spellings of one finding"):
        read("csv", folder / "labels.csv", label_column="label")


def long_form(table: pd.DataFrame) -> pd.DataFrame:
    """One row per image and finding, in another order; blanks are left out."""
    ids = ["path", "uid", "patient_id", "split", "view", "sex", "age"]
    return table.melt(ids, var_name="finding", value_name="grade").dropna(subset="grade").sample(frac=1, random_state=1)


def test_one_row_per_image_and_finding(folder: Path, table: pd.DataFrame, read: Any) -> None:
    expected = read("csv", folder / "labels.csv", findings=AB).manifest.rows
    long_form(table).to_csv(folder / "labels.csv", index=False)
    result = read("csv", folder / "labels.csv", label_column="finding", value_column="grade", findings=AB)
    pd.testing.assert_frame_equal(result.manifest.rows.loc[expected.index], expected)
    assert not any("repeat" in note for note in result.notes)
    present = long_form(table).query("grade == 1").drop(columns="grade")
    present.to_csv(folder / "labels.csv", index=False)
    rows = read("csv", folder / "labels.csv", label_column="finding").manifest.rows
    pd.testing.assert_frame_equal(rows.loc[expected.index, ["A", "B"]], expected[["A", "B"]].fillna(0.0))
    present.drop(columns="uid").rename(columns={"path": "file"}).to_csv(folder / "labels.csv", index=False)
    joined = read("folder", folder, labels=folder / "labels.csv", label_column="finding").manifest.rows
    assert joined["A"].tolist() == rows.sort_values("path")["A"].tolist()
    both = pd.concat([long_form(table), long_form(table).assign(grade=1 - long_form(table)["grade"])])
    both.to_csv(folder / "labels.csv", index=False)
    with pytest.raises(InputError, match=r"finding .*, uid u\d: two rows with [01] and [01]; keep one"):
        read("csv", folder / "labels.csv", label_column="finding", value_column="grade")


def test_equal_rows_count_once_and_others_are_an_error(folder: Path, table: pd.DataFrame, read: Any) -> None:
    expected = read("csv", folder / "labels.csv", findings=AB)
    pd.concat([table, table.iloc[[1, 1, 3]]]).to_csv(folder / "labels.csv", index=False)
    result = read("csv", folder / "labels.csv", findings=AB)
    pd.testing.assert_frame_equal(result.manifest.rows, expected.manifest.rows)
    assert "3 row(s) repeat another one and count once" in result.notes
    pd.concat([table, table.iloc[[2]].assign(B=0)]).to_csv(folder / "labels.csv", index=False)
    with pytest.raises(InputError, match="uid u2 has 2 rows that differ in B: 1 and 0; keep one"):
        read("csv", folder / "labels.csv", findings=AB)
    pd.concat([table, table.iloc[[2]].assign(patient_id="Smith")]).to_csv(folder / "labels.csv", index=False)
    with pytest.raises(InputError, match="uid u2 has 2 rows that differ in patient_id; keep one"):
        read("csv", folder / "labels.csv", findings=AB)


def test_names_with_commas(folder: Path, table: pd.DataFrame, read: Any) -> None:
    table.rename(columns={"A": "Mass, right"}).to_csv(folder / "labels.csv", index=False)
    with pytest.raises(InputError, match='--findings all for those of labels only: "Mass, right",B,No_Finding'):
        read("csv", folder / "labels.csv")
    assert read("csv", folder / "labels.csv", findings='"Mass, right",B').manifest.findings == ("Mass, right", "B")


@pytest.mark.parametrize("name", ["view", "split", "seed", "weight"])
def test_a_reserved_column_is_no_finding(folder: Path, table: pd.DataFrame, read: Any, name: str) -> None:
    table.assign(**({} if name in table else {name: 1})).to_csv(folder / "labels.csv", index=False)
    with pytest.raises(
        InputError, match=f"{name!r} is no finding.*; use --findings A,B,No_Finding, or rename the column"
    ):
        read("csv", folder / "labels.csv", findings=f"A,{name}")
    names = table.assign(label=["view"] + ["A"] * 5)[["uid", "patient_id", "label"]]
    names.to_csv(folder / "labels.csv", index=False)
    with pytest.raises(InputError, match="'view' cannot be a finding"):
        read("csv", folder / "labels.csv", label_column="label")


def test_a_column_of_names_or_of_grades_is_no_label_column(folder: Path, table: pd.DataFrame, read: Any) -> None:
    table.assign(diagnosis=["Mass", "Hernia", "Mass", "Normal", "Mass", "Normal"]).to_csv(folder / "t.csv", index=False)
    with pytest.raises(InputError, match=r"label 'Mass' is not 0, 1 or blank.*give it with --label-column 'diagnosis'"):
        read("csv", folder / "t.csv", findings="A,diagnosis")


def test_file_names_with_blanks_and_in_two_folders(touch: Any, put: Any, read: Any, lost: Any) -> None:
    names = ["Viral Pneumonia-1.png", "COVID/a (2).png", "Normal/a (2).png"]
    touch(names)
    table = put("t.csv", path=[" Viral Pneumonia-1.png", *names[1:]], A=[1, 0, 1], B=[0, 1, 0])
    result = read("csv", table, findings="A,B", patient="(.+)")
    assert list(result.manifest.rows.index) == ["Viral Pneumonia-1", "COVID__a (2)", "Normal__a (2)"]
    assert any(note.startswith("each image counts as a patient of its own") for note in result.notes)
    table = put("t.csv", uid=["Viral Pneumonia-1.png "], A=[1], B=[0], patient_id=["p1"])
    result = read("csv", table, findings="A,B")
    assert list(result.manifest.rows.index) == ["Viral Pneumonia-1"]
    assert lost(result, "image_without_label") == names[1:]


def test_paths_with_other_folders_in_front(touch: Any, put: Any, read: Any) -> None:
    src = touch(["small/train/p1/s1/a.jpg", "small/train/p2/s1/a.jpg"])
    paths = ["CheXpert-v1.0/train/p1/s1/a.jpg", "CheXpert-v1.0/train/p2/s1/a.jpg"]
    table = put("t.csv", Path=paths, A=[1, 0], B=[0, 1])
    options = {"findings": "A,B", "column": ["path=Path"], "patient": r"(p\d)", "images": src / "small"}
    result = read("csv", table, **options)
    assert result.manifest.rows["path"].tolist() == ["train/p1/s1/a.jpg", "train/p2/s1/a.jpg"]
    assert "images matched without the first 1 folder(s) of its paths" in result.notes


def test_a_name_that_two_rows_share_matches_no_file() -> None:
    path, note = by_ending(pd.Series(["p1/view1.jpg", "p2/view1.jpg"]), pd.Series(["q/p3/view1.jpg"]))
    assert path.isna().all()
    assert note == ""


@given(st.sets(st.tuples(st.sampled_from("ab"), st.sampled_from("cd"), st.sampled_from("xyz")), min_size=1))
def test_an_ending_is_never_that_of_another_image(images: set[tuple[str, str, str]]) -> None:
    paths = pd.Series(["/".join(("root", *one)) for one in sorted(images)])
    whole, _ = by_ending(paths, pd.Series(["/".join(one) for one in sorted(images)]))
    assert list(whole) == ["/".join(one) for one in sorted(images)]
    part, _ = by_ending(paths, pd.Series(["q/" + "/".join(one) for one in sorted(images)][:1]))
    assert [p for p in part if isinstance(p, str)] in ([], ["q/" + "/".join(sorted(images)[0])])
    assert isinstance(part.iloc[0], str)
