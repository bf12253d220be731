"""The published NIH tables themselves."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medlt.data.layouts import NIH_FINDINGS
from medlt.data.layouts.nih_cxr_lt import FINDINGS
from medlt.data.manifest import Manifest

pytestmark = pytest.mark.real_data
ENTRY = "Data_Entry_2017_v2020.csv.gz"


def test_the_table_of_112120_rows(real_data: Path, read: Any, tmp_path: Path) -> None:
    table = real_data / "labels_only" / ENTRY
    result = read("nih-cxr-lt", table, missing="keep")
    result.write(tmp_path / "m.parquet")
    rows = Manifest.read(tmp_path / "m.parquet").rows
    assert len(rows) == result.failures == 112120  # Wang et al. 2017; no image is here
    assert rows["patient_id"].nunique() == 30805
    with gzip.open(table, "rt") as lines:
        next(lines)
        message = {line.split(",")[0].removesuffix(".png"): line.split(",")[1:7] for line in lines}
    for finding in NIH_FINDINGS:
        named = finding.replace("No_Finding", "No Finding")
        expected = [float(named in message[u][0].split("|")) for u in rows.index]
        np.testing.assert_array_equal(rows[finding], expected)
    assert list(rows["view"]) == [message[u][5] for u in rows.index]


def test_the_long_tailed_lists_as_published(real_data: Path, read: Any) -> None:
    result = read("nih-cxr-lt", real_data / "labels_only", missing="keep")
    rows = result.manifest.rows
    assert result.manifest.findings == FINDINGS
    assert rows["split"].value_counts().to_dict() == {"test": 20279, "val": 300}  # the train list is not here
    assert rows["balanced_test"].sum() == 600
    assert (result.manifest.labels().sum(axis=1) == 1).all()
    balanced = result.manifest.where(rows["balanced_test"]).labels()
    np.testing.assert_array_equal(balanced.sum(axis=0), [30] * 20)
    assert set(rows["view"]) == {"PA", "AP"}
    assert "no train list" in result.notes


def test_the_real_lists_over_a_tree_as_the_archives_unpack(real_data: Path, read: Any, tmp_path: Path) -> None:
    source = real_data / "labels_only" / "nih-cxr-lt_single-label_balanced-val.csv.gz"
    (tmp_path / "LongTailCXR").mkdir()
    names = pd.read_csv(source)["id"]
    pd.read_csv(source).to_csv(tmp_path / "LongTailCXR" / source.name.removesuffix(".gz"), index=False)
    for i, name in enumerate([*names[1:], "00099999_000.png"]):
        place = tmp_path / f"images_{1 + i % 12:03d}" / "images"
        place.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    result = read("nih-cxr-lt", tmp_path)
    assert len(result.manifest.rows) == 299
    result.manifest.check_files()
    assert result.orphans["kind"].value_counts().to_dict() == {"label_without_image": 1, "image_without_label": 1}
    assert set(result.orphans["uid"]) == {names[0].removesuffix(".png"), "00099999_000"}


def test_a_real_folder_with_its_own_table(real_data: Path, read: Any) -> None:
    findings = [f for f in NIH_FINDINGS if f != "No_Finding"]
    result = read("csv", real_data / "nih14" / "labels.csv", findings=",".join([*findings, "No_Finding"]))
    assert len(result.manifest.rows) == 1739
    assert result.failures == 0
    assert result.manifest.rows["patient_id"].nunique() == 1441
