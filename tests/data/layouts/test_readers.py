"""Several readers of one image: their labels become one, in every form of table."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlt.data.layouts import read_layout
from medlt.data.layouts.readers import united
from medlt.types import InputError

NAN = float("nan")
VOTES = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 1.0, NAN]), st.sampled_from([0.0, 1.0, NAN])), min_size=1
)


def by_hand(votes: list[float], how: str) -> float:
    """Most of the readers who decided, or any of them."""
    yes, no = votes.count(1), votes.count(0)
    if not yes + no:
        return NAN
    if how == "any":
        return float(yes > 0)
    return NAN if yes == no else float(yes > no)


@given(VOTES, st.sampled_from(["majority", "any"]))
def test_one_label_of_several_readers(votes: list[tuple[str, float, float]], how: str) -> None:
    table = pd.DataFrame(votes, columns=["image", "Mass", "Hernia"])
    labels, note = united(table[["Mass", "Hernia"]], table["image"], how)
    of: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for image, *pair in votes:
        of[image].append((pair[0], pair[1]))
    assert list(labels.index) == sorted(of)
    for image, pairs in of.items():
        wanted = [by_hand([pair[k] for pair in pairs], how) for k in range(2)]
        np.testing.assert_array_equal(labels.loc[image], wanted)
    assert bool(note) == any(len(pairs) > 1 for pairs in of.values())


READ = pd.DataFrame(  # image a: two of three see a mass; b: one of two; c: one reader
    {
        "uid": [*"aaabbc"],
        "patient_id": [*"111223"],
        "reader": ["R1", "R2", "R3", "R1", "R2", "R3"],
        "Mass": [1, 1, 0, 1, 0, 0],
        "Hernia": [0, 0, 1, 0, 0, 1],
    }
)
FORMS: dict[str, dict[str, Any]] = {
    "a column a finding": {"findings": "Mass,Hernia"},
    "a row a finding": {"label_column": "finding", "value_column": "label"},
    "names": {"label_column": "finding", "findings": "Mass,Hernia"},
}


def written(place: Path, form: str) -> Path:
    """The table of `READ` in one of the forms, and its image files."""
    for uid in "abc":
        (place / f"{uid}.png").touch()
    table = READ
    if form != "a column a finding":
        table = READ.melt(["uid", "patient_id", "reader"], var_name="finding", value_name="label")
    if form == "names":
        none = READ[(READ["Mass"] == 0) & (READ["Hernia"] == 0)].assign(finding="nothing")
        table = pd.concat([table[table["label"] == 1], none])[["uid", "patient_id", "reader", "finding"]]
    table.to_csv(place / "t.csv", index=False)
    return place / "t.csv"


@pytest.mark.parametrize("layout", ["csv", "folder"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_table_may_have_several_readers(tmp_path: Path, form: str, layout: str) -> None:
    table = written(tmp_path, form)
    options = FORMS[form] | {"reader_column": "reader", "all_zero": "keep"}
    src, more = (table, {}) if layout == "csv" else (tmp_path, {"labels": table, "key": "uid"})
    for how, mass, hernia in (("majority", [1, NAN, 0], [0, 0, 1]), ("any", [1, 1, 0], [1, 0, 1])):
        result = read_layout(layout, src, options | more | {"readers": how})
        rows = result.manifest.rows
        assert list(rows.index) == [*"abc"]
        np.testing.assert_array_equal(rows["Mass"], mass)
        np.testing.assert_array_equal(rows["Hernia"], hernia)
        ties = ", 1 tied label(s) unknown" if how == "majority" else ""
        assert f"{how} of up to 3 readers{ties}" in result.notes
        assert not any("repeat" in note for note in result.notes)


def test_blanks_and_uncertain_labels_mean_something_before_readers_are_counted(tmp_path: Path) -> None:
    table = written(tmp_path, "a column a finding")
    READ.assign(Mass=[1, None, None, -1, 1, 0]).to_csv(table, index=False)
    options = {"findings": "Mass,Hernia", "reader_column": "reader", "all_zero": "keep"}
    for meaning, mass in (
        ({}, [1, 1, 0]),
        ({"blank": "negative"}, [0, 1, 0]),
        ({"uncertain": "negative"}, [1, NAN, 0]),
        ({"labeler": "chexbert", "uncertain": "positive"}, [0, 1, 0]),
    ):
        rows = read_layout("csv", table, options | meaning).manifest.rows
        np.testing.assert_array_equal(rows["Mass"], mass, str(meaning))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"reader_column": None}, "differ in Mass: 1 and 0; keep one, or name the column of their readers with"),
        ({}, {"readers": "mean"}, "--readers: mean gives soft labels, which real images cannot have; use majority"),
        ({}, {"reader_column": None, "readers": "any"}, "give it with --reader-column"),
        ({}, {"reader_column": "radiologist"}, "missing column 'radiologist'"),
        ({"reader": ["R1", "R1", "R3", "R1", "R2", "R3"]}, {}, "uid a, reader R1 has 2 rows"),
        ({"reader": ["R1", None, "R3", "R1", "R2", "R3"]}, {}, "uid a: reader is blank; name the reader"),
        ({"patient_id": [*"121223"]}, {}, "uid a has 2 rows that differ in patient_id; keep one$"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    table = written(tmp_path, "a column a finding")
    READ.assign(Mass=[1, 0, 0, 1, 0, 0], **change).to_csv(table, index=False)
    with pytest.raises(InputError, match=message) as error:
        read_layout("csv", table, {"findings": "Mass,Hernia", "reader_column": "reader", **options})
    assert "\n" not in str(error.value)


def test_a_label_specification_holds_values_keys_and_readers(tmp_path: Path) -> None:
    table = written(tmp_path, "a row a finding")
    pd.read_csv(table).replace({"label": {1: "seen", 0: "2"}}).rename(columns={"uid": "image"}).to_csv(
        table, index=False
    )
    (tmp_path / "labels.yaml").write_text(
        "key: image\nlabel_column: finding\nvalue_column: label\nreader_column: reader\nreaders: any\n"
        "value: {seen: 1, 2: 0}\nall_zero: keep\nalias: {Tumour: [Mass]}\n"
    )
    spec = {"labels": table, "label_spec": tmp_path / "labels.yaml"}
    result = read_layout("folder", tmp_path, spec)
    np.testing.assert_array_equal(result.manifest.rows["Tumour"], [1, 1, 0])
    rows = read_layout("folder", tmp_path, spec | {"readers": "majority", "findings": ()}).manifest.rows
    np.testing.assert_array_equal(rows["Tumour"], [1, NAN, 0])


@pytest.mark.parametrize(
    ("layout", "text", "message"),
    [
        ("csv", "readers: mean", r"spec\.yaml: readers: mean gives soft labels"),
        ("csv", "images: png", r"spec\.yaml: images is not a known key"),
        ("csv", "label_spec: spec.yaml", r"spec\.yaml: label_spec is not a known key"),
        ("csv", "key: uid", r"spec\.yaml: key is not a known key"),
        ("rsna", "value: {2: 1}", r"spec\.yaml: value is not a known key"),
    ],
)
def test_a_specification_that_does_not_fit_is_one_line(tmp_path: Path, layout: str, text: str, message: str) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_layout(layout, tmp_path, {"label_spec": tmp_path / "spec.yaml"})
    assert "\n" not in str(error.value)
