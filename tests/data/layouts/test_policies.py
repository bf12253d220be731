"""What every layout does with -1, blanks, zeros, missing files and splits, against a plain reading of the rule."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medlt.data.layouts import LAYOUTS, read_layout, tree
from medlt.data.layouts.layout_result import Draft, LayoutResult, finish
from medlt.data.layouts.lists import lists, unread
from medlt.data.layouts.options import Options
from medlt.data.layouts.reading import canonical
from medlt.data.manifest import Manifest
from medlt.types import InputError

LABELS = st.sampled_from([1.0, 0.0, -1.0, math.nan])
TABLE = st.lists(st.tuples(LABELS, LABELS, LABELS), min_size=1, max_size=12)
UNCERTAIN = {"unknown": math.nan, "positive": 1.0, "negative": 0.0}


def result_of(values: list[tuple[float, ...]], findings: tuple[str, ...], **options: Any) -> LayoutResult:
    index = pd.Index([f"u{i}" for i in range(len(values))], name="uid")
    rows = pd.DataFrame(values, columns=list(findings), index=index, dtype="float64")
    rows = rows.assign(path="x.png", exists=True, patient_id=list(index), split="train", view="PA")
    matched = tree.MatchedImages(rows, tree.images([]))
    return finish(Draft(matched, findings, Path("root"), Path("src")), Options(**options))


def expected(row: tuple[float, ...], uncertain: str, blank: str) -> list[float]:
    """One row by the rule, in plain words: a blank first, then -1."""
    filled = [0.0 if math.isnan(v) and blank == "negative" else v for v in row]
    return [UNCERTAIN[uncertain] if v == -1 else v for v in filled]


@settings(max_examples=60)
@given(
    values=TABLE,
    uncertain=st.sampled_from(list(UNCERTAIN)),
    blank=st.sampled_from(["unknown", "negative"]),
    choice=st.sampled_from([None, "keep", "drop", "no-finding"]),
    nothing=st.sampled_from(["No Finding", "No_Finding", "Normal", "C"]),
)
def test_labels_follow_the_rule(
    values: list[tuple[float, ...]], uncertain: str, blank: str, choice: str | None, nothing: str
) -> None:
    findings = ("A", "B", nothing)
    plain = [expected(row, uncertain, blank) for row in values]
    zeros = [all(v == 0 for v in row) for row in plain]
    options = {"uncertain": uncertain, "blank": blank, "all_zero": choice}
    if choice is None and any(zeros):
        with pytest.raises(InputError, match=f"{sum(zeros)} of {len(values)} rows have every finding at 0"):
            result_of(values, findings, **options)
        return
    if choice == "drop":
        plain = [row for row, zero in zip(plain, zeros, strict=True) if not zero]
        if not plain:
            with pytest.raises(InputError, match="no row is left"):
                result_of(values, findings, **options)
            return
    manifest = result_of(values, findings, **options).manifest
    if choice == "no-finding" and any(zeros):
        if nothing == "C":
            assert manifest.findings == (*findings, "No_Finding")
            plain = [
                [*row, 1.0 if zero else 0.0 if 1.0 in row else math.nan] for row, zero in zip(plain, zeros, strict=True)
            ]
        else:
            plain = [[0.0, 0.0, 1.0] if zero else row for row, zero in zip(plain, zeros, strict=True)]
    np.testing.assert_array_equal(manifest.labels(), np.array(plain, np.float32))


@settings(max_examples=60)
@given(rows=st.sets(st.sampled_from("abcdefgh"), min_size=1), files=st.sets(st.sampled_from("abcdefgh"), min_size=1))
def test_orphans_are_the_two_differences_of_sets(rows: set[str], files: set[str]) -> None:
    index = pd.Index(sorted(rows), name="uid")
    table = pd.DataFrame({"path": [f"{u}.png" for u in index]}, index=index)
    for place in (tree.by_stem, lambda t, f: tree.by_path(t, f, Path("nowhere"))):
        matched = place(table, tree.images([f"{f}.png" for f in sorted(files)]))
        listed = tree.orphans(matched)
        assert set(listed.loc[listed["kind"] == "label_without_image", "uid"]) == rows - files
        assert set(listed.loc[listed["kind"] == "image_without_label", "uid"]) == files - rows
        assert set(matched.rows.index[matched.rows["exists"]]) == rows & files


@settings(max_examples=60)
@given(
    prefix=st.sampled_from(["", "miccai2023_", "miccai2022_", "121722_", "061322-"]),
    dash=st.sampled_from("-_"),
    middle=st.sampled_from(["cxr", ""]),
    kind=st.sampled_from(["single-label", "single_label", "labels"]),
    part=st.sampled_from(["train", "val", "balanced-val", "test", "balanced_test"]),
    ending=st.sampled_from([".csv", ".csv.gz", ".CSV"]),
    dataset=st.sampled_from(["nih", "mimic"]),
)
def test_every_spelling_of_a_list_is_known_and_nothing_else(
    prefix: str, dash: str, middle: str, kind: str, part: str, ending: str, dataset: str
) -> None:
    name = f"labels/{prefix}{dataset}{dash}{middle and middle + dash}lt_{kind}_{part}{ending}"
    release = "2023" if kind == "labels" else "2022"
    assert lists([name], Path("at"), dataset) == {release: {part.replace("_", "-"): Path("at") / name}}
    assert lists([name], Path("at"), "mimic" if dataset == "nih" else "nih") == {}
    strange = [f"{name}.txt", "x/other.csv.gz", "cxr-study-list.csv.gz", name]
    assert unread(strange, dataset) == ("x/other.csv.gz",)
    assert lists([f"{name}.txt", "nih-cxr-lt_image_ids.csv"], Path("at"), dataset) == {}


def test_an_unpacked_list_stands_for_its_gzip() -> None:
    names = ["a/nih-cxr-lt_labels_val.csv", "a/nih-cxr-lt_labels_val.csv.gz"]
    assert lists(names, Path("at"), "nih") == {"2023": {"val": Path("at/a/nih-cxr-lt_labels_val.csv")}}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Pleural_Thickening", "Pleural Thickening", True),
        ("No Finding", "no_finding", True),
        ("Lung Lesion", "Lung Opacity", False),
        ("Round(ed) Atelectasis", "Atelectasis", False),
    ],
)
def test_names_of_findings(one: str, other: str, same: bool) -> None:
    assert (canonical(one) == canonical(other)) is same


def test_stems_keep_the_dots_of_a_uid() -> None:
    names = pd.Series(["a/1.2.840.1", "a/1.2.840.2.dcm", "b.c/x.JPEG", "y.png.png", "é\n.png"])
    assert list(tree.stems(names)) == ["1.2.840.1", "1.2.840.2", "x", "y.png", "é\n"]


def test_links_to_folders_are_followed_once_and_never_in_circles(tmp_path: Path) -> None:
    root, disk = tmp_path / "root", tmp_path / "disk"
    for file in (
        "root/a/x.png",
        "root/a/.y.png",
        "root/.store/s/z.png",
        "disk/p10/1.png",
        "disk/p11/2.png",
        "disk/t.csv",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    for link, target in (
        ("a/round", root), ("up", tmp_path), ("again", root / "a"), ("p10", disk / "p10"), ("twin", disk / "p10"),
        ("store", root / ".store" / "s"), ("gone", tmp_path / "nowhere"),
        ("itself", root / "itself"),
    ):  # fmt: skip
        (root / link).symlink_to(target)
    (disk / "p10/back").symlink_to(root)
    (disk / "p10/next").symlink_to(disk / "p11")
    wanted = ["a/x.png", "gone", "itself", "p10/1.png", "p10/next/2.png", "store/z.png"]
    assert tree.listing(root) == wanted
    (root / "linked").symlink_to(root)
    assert tree.listing(root / "linked") == sorted(wanted)


def test_a_new_split_follows_the_seed() -> None:
    values = [(1.0, 0.0)] * 300
    first, again, other = (
        result_of(values, ("A", "B"), resplit=True, seed=seed).manifest.rows["split"] for seed in (1, 1, 2)
    )
    assert first.equals(again)
    assert not first.equals(other)
    assert first.value_counts().to_dict() == {"train": 210, "val": 30, "test": 60}


def test_files_are_written_once_and_never_replaced(tmp_path: Path) -> None:
    result = result_of([(1.0, 0.0)], ("A", "B"))
    lone = pd.DataFrame({"kind": ["image_without_label"], "uid": ["x"], "path": ["x.png"]}, dtype="str")
    result = LayoutResult(result.manifest, lone, ())
    out = tmp_path / "deep" / "m.parquet"
    assert result.write(out) == out.with_name("m.orphans.csv")
    assert pd.read_csv(out.with_name("m.orphans.csv")).to_dict("records") == lone.to_dict("records")
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.parent.iterdir()}
    result.write(out)
    with pytest.raises(InputError, match=r"m\.parquet: exists with other contents"):
        LayoutResult(result_of([(0.0, 1.0)], ("A", "B")).manifest, lone, ()).write(out)
    with pytest.raises(InputError, match=r"m\.orphans\.csv: exists with other contents"):
        LayoutResult(result.manifest, lone.assign(uid="y"), ()).write(out)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.parent.iterdir()} == before
    again, rows = (one.rows.drop(columns="path") for one in (Manifest.read(out), result.manifest))
    pd.testing.assert_frame_equal(again, rows)


@pytest.mark.parametrize("name", ["m.csv", "m"])
def test_the_name_of_a_manifest(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=re.escape("end in .parquet")):
        result_of([(1.0, 0.0)], ("A", "B")).write(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another OUT"):
        result_of([(1.0, 0.0)], ("A", "B")).write(tmp_path / "file" / "m.parquet")


def test_layouts_and_their_options_go_together(tmp_path: Path) -> None:
    published = ["mimic-cxr-lt", "nih-cxr-lt", "cxr-lt", "chexpert", "padchest", "vindr", "rsna", "siim"]
    assert list(LAYOUTS) == [*published, "csv", "folder"]
    with pytest.raises(InputError, match="unknown layout 'dicomdir'; use one of mimic-cxr-lt, nih-cxr-lt"):
        read_layout("dicomdir", tmp_path)
    with pytest.raises(InputError, match="no such file or folder; check SRC"):
        read_layout("folder", tmp_path / "nothing")
