"""NIH-CXR-LT and ChestX-ray14, in exactly their folders, file names and columns."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medlt.data.layouts import NIH_FINDINGS, from_nih
from medlt.data.layouts.nih_cxr_lt import FINDINGS
from medlt.types import InputError

IDS = ["00000001_000", "00000001_001", "00000002_000", "00000003_000", "00000013_002"]
PLACES = [f"images_{1 + i % 2:03d}/images/{name}.png" for i, name in enumerate(IDS)]


def listed(ids: list[str], finding: str, spelling: str = "Pleural_Thickening") -> dict[str, Any]:
    columns = {f if f != "Pleural_Thickening" else spelling: [int(f == finding)] * len(ids) for f in FINDINGS}
    return {"id": [f"{i}.png" for i in ids], **columns, "subject_id": [i[:8] for i in ids]}


def lists_2022(put: Any, name: str = "LongTailCXR/nih-cxr-lt_single-label_{}.csv") -> None:
    put(name.format("train"), **listed(IDS[:2], "Hernia"))
    put(name.format("balanced-val"), **listed(IDS[2:3], "Pleural_Thickening"))
    put(name.format("test"), **listed(IDS[3:], "Pneumoperitoneum"))
    put(name.format("balanced-test"), **listed(IDS[4:], "Pneumoperitoneum"))


def lists_2023(put: Any) -> None:
    for part, ids in (("train", IDS[:2]), ("val", IDS[2:3]), ("test", IDS[3:])):
        columns = listed(ids, "Pleural_Thickening", "Pleural Thickening")
        put(f"PruneCXR/miccai2023_nih-cxr-lt_labels_{part}.csv", **columns | {"Hernia": [1] * len(ids)})


def entry(put: Any, name: str = "Data_Entry_2017_v2020.csv.gz") -> Path:
    labels = ["Hernia", "Hernia|Edema", "No Finding", "Pleural_Thickening", "Mass"]
    columns = {
        "Image Index": [f"{i}.png" for i in IDS],
        "Finding Labels": labels,
        "Follow-up #": range(5),
        "Patient ID": [int(i[:8]) for i in IDS],
        "Patient Age": [57, 58, 411, 3, 80],
        "Patient Gender": list("MMFFM"),
        "View Position": ["PA", "AP", "PA", "PA", "AP"],
    }
    return put(name, **columns)


@pytest.mark.parametrize("with_entry", [False, True])
@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_the_lists_of_2022(touch: Any, put: Any, read: Any, positives: Any, ending: str, with_entry: bool) -> None:
    lists_2022(put, "LongTailCXR/nih-cxr-lt_single-label_{}" + ending)
    put("LongTailCXR/nih-cxr-lt_image_ids.csv", id=IDS)
    if with_entry:
        entry(put)
    result = read("nih-cxr-lt", touch(PLACES))
    rows = result.manifest.rows
    assert list(rows.index) == IDS
    assert len(result.manifest.findings) == 20
    assert list(rows["path"]) == PLACES
    assert list(rows["patient_id"]) == ["1", "1", "2", "3", "13"]
    assert list(rows["split"]) == ["train", "train", "val", "test", "test"]
    assert list(rows["balanced_test"]) == [False] * 4 + [True]
    assert [next(iter(p)) for p in positives(result).values()] == [
        *["Hernia"] * 2,
        "Pleural_Thickening",
        *["Pneumoperitoneum"] * 2,
    ]
    if with_entry:
        assert list(rows["view"]) == ["PA", "AP", "PA", "PA", "AP"]
        np.testing.assert_array_equal(rows["age"], [57, 58, np.nan, 3, 80])
    else:
        assert rows["view"].isna().all()


def test_one_finding_has_one_name_in_both_releases(touch: Any, put: Any, read: Any, positives: Any) -> None:
    lists_2022(put)
    lists_2023(put)
    src = touch(PLACES)
    old, new = (read("nih-cxr-lt", src, release=r) for r in ("2022", "2023"))
    assert old.manifest.findings == new.manifest.findings == FINDINGS
    assert positives(new)[IDS[0]] == {"Pleural_Thickening", "Hernia"}
    with pytest.raises(InputError, match="choose one with --release"):
        read("nih-cxr-lt", src)


def test_lists_that_are_missing_are_told(touch: Any, put: Any, read: Any) -> None:
    put("nih-cxr-lt_single-label_balanced-test.csv", **listed(IDS[4:], "Mass"))
    result = read("nih-cxr-lt", touch(PLACES))
    assert list(result.manifest.rows["split"]) == ["test"]
    assert {"no train list", "no val list"} <= set(result.notes)


def test_orphans_both_ways(touch: Any, put: Any, read: Any, lost: Any) -> None:
    lists_2022(put)
    src = touch([*PLACES[1:], "images_001/images/00000099_000.png", "thumbs.db"])
    result = read("nih-cxr-lt", src)
    assert list(result.manifest.rows.index) == IDS[1:]
    assert lost(result, "label_without_image") == ["00000001_000.png"]
    assert lost(result, "image_without_label") == ["images_001/images/00000099_000.png"]
    assert result.failures == 1
    kept = read("nih-cxr-lt", src, missing="keep")
    assert list(kept.manifest.rows.index) == IDS
    assert kept.failures == 1
    with pytest.raises(InputError, match=r"00000001_000\.png: no such file"):
        kept.manifest.check_files()


@pytest.mark.parametrize("as_file", [True, False])
def test_the_table_of_fourteen_alone_is_what_from_nih_reads(touch: Any, put: Any, read: Any, as_file: bool) -> None:
    table = entry(put, "Data_Entry_2017.csv")
    src = touch(PLACES)
    result = read("nih-cxr-lt", table, seed=4) if as_file else read("nih-cxr-lt", src, seed=4, release="nih14")
    expected = from_nih(table=table, images=src, seed=4)
    assert result.manifest.findings == NIH_FINDINGS
    pd.testing.assert_frame_equal(result.manifest.rows[expected.rows.columns], expected.rows, check_dtype=False)
    assert result.manifest.digest() == expected.digest()


def test_the_official_test_list_is_used_where_it_lies(touch: Any, put: Any, read: Any) -> None:
    entry(put)
    src = touch(PLACES)
    (src / "test_list_NIH.txt").write_text("\n".join(f"{i}.png" for i in IDS[:2]))
    result = read("nih-cxr-lt", src, release="nih14")
    assert set(result.manifest.split("test").rows.index) == set(IDS[:2])
    assert "test split by test_list_NIH.txt" in result.notes
    (src / "test_list_NIH.txt").write_text(f"{IDS[0]}.png")
    followed = read("nih-cxr-lt", src, seed=3, release="nih14")
    assert set(followed.manifest.split("test").rows.index) == set(IDS[:2])  # the whole patient
    assert any("row(s) had no split" in note for note in followed.notes)
    assert read("nih-cxr-lt", src, resplit=True, release="nih14").manifest.rows["split"].iloc[:2].nunique() == 1


@pytest.mark.parametrize(
    ("spoil", "release", "message"),
    [
        (lambda put: None, None, "no label lists of release 2022 or 2023; check SRC$"),
        (lambda put: None, "nih14", r"no Data_Entry_2017\*\.csv"),
        (
            lambda put: put("nih-cxr-lt_single-label_train.csv", id=["00000001_000.png"], Gout=[1]),
            None,
            "none of the 20",
        ),
        (lambda put: put("Data_Entry_2017.csv", a=[1]), "nih14", "missing column 'Image Index'"),
        (
            lambda put: (put("nih_train.csv", a=[1]), entry(put)),
            None,
            "2023; seen and not understood: nih_train.csv; check SRC, or use --release nih14 for the 14 findings of ",
        ),
    ],
)
def test_what_is_refused(touch: Any, put: Any, read: Any, spoil: Any, release: str | None, message: str) -> None:
    spoil(put)
    with pytest.raises(InputError, match=message):
        read("nih-cxr-lt", touch(PLACES), **({"release": release} if release else {}))


def test_the_names_that_the_code_of_longtailcxr_reads(touch: Any, put: Any, read: Any, positives: Any) -> None:
    lists_2022(put, "nih-lt_single-label_{}.csv")
    entry(put)
    result = read("nih-cxr-lt", touch(PLACES))
    assert result.manifest.findings == FINDINGS
    assert positives(result)[IDS[0]] == {"Hernia"}
    assert not any("not read" in note for note in result.notes)


def test_no_image_at_all_names_the_searched_folder(touch: Any, put: Any, read: Any) -> None:
    lists_2022(put)
    with pytest.raises(InputError, match=r"none of the 5 labelled images .*--images, or use --missing keep"):
        read("nih-cxr-lt", touch([]))
