"""A manifest in parts is the manifest: for medlt, pandas and pyarrow, for any number of rows in a part."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from medlt.cli import app
from medlt.data.manifest import Manifest
from medlt.files import read_table, write_table_parts
from medlt.types import InputError

FINDINGS = ("Mass", "No_Finding")


def collection(root: Path, count: int = 11) -> Manifest:
    """Rows with gaps, lists, soft labels and large seeds; whole columns are blank in some parts."""
    number = np.arange(count)
    rows = pd.DataFrame(
        {
            "path": [f"images/{i}.png" for i in number],
            "patient_id": [f"p{i}" for i in number],
            "split": np.array(["train", "val", "test"])[number % 3],
            "view": [None if i < 7 else "PA" for i in number],
            "Mass": np.where(number < 4, np.nan, (number % 2).astype(float)),
            "No_Finding": 0.0,
            "synthetic": number > 8,
            "weight": [1.0 if i < 9 else 0.3 for i in number],
            "parents": [[] if i < 9 else [f"u{i - 1}", f"u{i - 2}"] for i in number],
            "seed": pd.array([None if i < 9 else 2**63 - 1 - i for i in number], dtype="Int64"),
            "mask_Mass": [None if i != 10 else "masks/10.png" for i in number],
        },
        pd.Index([f"u{i}" for i in number], name="uid"),
    )
    return Manifest(rows, FINDINGS, root)


def with_files(manifest: Manifest) -> Manifest:
    """The same, with a file for each row."""
    for path in (*manifest.rows["path"], "masks/10.png"):
        (Path(manifest.root) / path).parent.mkdir(parents=True, exist_ok=True)
        (Path(manifest.root) / path).write_bytes(path.encode())
    return manifest


@given(part_rows=st.integers(1, 30), count=st.integers(11, 25))
def test_parts_are_read_as_one_table(part_rows: int, count: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("manifest")
    manifest = collection(place, count)
    manifest.write(place / "one.parquet")
    manifest.write(place / "parts.parquet", part_rows)
    assert len(list((place / "parts.parquet").iterdir())) == -(-count // part_rows)
    one, parts = Manifest.read(place / "one.parquet"), Manifest.read(place / "parts.parquet")
    pd.testing.assert_frame_equal(one.rows, parts.rows)
    assert parts.findings == one.findings == FINDINGS
    assert parts.counts().equals(one.counts())
    pd.testing.assert_frame_equal(read_table(place / "one.parquet"), read_table(place / "parts.parquet"))


@pytest.mark.parametrize("part_rows", [1, 4, 100])
def test_the_digest_does_not_depend_on_the_parts(tmp_path: Path, part_rows: int) -> None:
    manifest = with_files(collection(tmp_path))
    manifest.write(tmp_path / "parts.parquet", part_rows)
    assert Manifest.read(tmp_path / "parts.parquet").digest() == manifest.digest()


def test_pandas_and_pyarrow_read_the_folder(tmp_path: Path) -> None:
    manifest = collection(tmp_path)
    manifest.write(tmp_path / "parts.parquet", 4)
    by_pandas = pd.read_parquet(tmp_path / "parts.parquet")
    assert list(by_pandas.index) == list(manifest.rows.index)
    assert by_pandas["seed"].tolist()[9:] == manifest.rows["seed"].tolist()[9:]
    data = ds.dataset(tmp_path / "parts.parquet")
    assert data.count_rows() == 11
    assert [batch.num_rows for batch in data.to_batches() if batch.num_rows] == [4, 4, 3]  # streams part by part
    assert data.to_table(columns=["uid"]).column("uid").to_pylist() == list(manifest.rows.index)


def test_equal_manifests_have_equal_parts(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        collection(tmp_path).write(tmp_path / name, 3)
    for file in (tmp_path / "a.parquet").iterdir():
        assert file.read_bytes() == (tmp_path / "b.parquet" / file.name).read_bytes()


def test_a_part_that_is_gone_is_one_line(tmp_path: Path) -> None:
    collection(tmp_path).write(tmp_path / "m.parquet", 4)
    whole = Manifest.read(tmp_path / "m.parquet")
    for name in ("part-00001-of-00003.parquet", "part-00002-of-00003.parquet"):
        file = tmp_path / "m.parquet" / name
        data = file.read_bytes()
        file.unlink()
        with pytest.raises(InputError, match="has 2 of 3 parts; restore the others"):
            Manifest.read(tmp_path / "m.parquet")
        file.write_bytes(data)
    assert Manifest.read(tmp_path / "m.parquet").rows.equals(whole.rows)
    (tmp_path / "empty.parquet").mkdir()
    with pytest.raises(InputError) as error:
        Manifest.read(tmp_path / "empty.parquet")
    assert "\n" not in str(error.value)


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    collection(tmp_path).write(tmp_path / "m.parquet", 4)
    with pytest.raises(InputError, match="exists already"):
        collection(tmp_path, 20).write(tmp_path / "m.parquet", 4)
    with pytest.raises(InputError, match="would be 20000 files"):
        write_table_parts(tmp_path / "n.parquet", pd.DataFrame({"a": range(20_000)}), 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.parquet"]


def test_the_commands(tmp_path: Path) -> None:
    manifest = with_files(collection(tmp_path, 11))
    rows = manifest.rows[manifest.rows["weight"] == 1].dropna(subset="Mass")
    table = rows[["path", "patient_id", "split", *FINDINGS]]
    table.to_csv(tmp_path / "labels.csv")

    def call(*words: str) -> dict[str, object]:
        done = CliRunner().invoke(app, [*words, "--json"])
        assert done.exit_code in (0, 1), done.output
        return dict(json.loads(done.stdout))

    csv = ("manifest", "csv", str(tmp_path / "labels.csv"))
    options = ("--findings", "Mass,No_Finding", "--all-zero", "keep")
    call(*csv, str(tmp_path / "one.parquet"), *options)
    call(*csv, str(tmp_path / "parts.parquet"), *options, "--part-rows", "2")
    call(*csv, str(tmp_path / "parts.parquet"), *options, "--part-rows", "2")  # again: the same
    assert len(list((tmp_path / "parts.parquet").iterdir())) == 3
    other = CliRunner().invoke(app, [*csv, str(tmp_path / "parts.parquet"), *options, "--part-rows", "3"])
    assert other.exit_code == 2
    assert "exists with other contents" in other.stderr
    one, parts = Manifest.read(tmp_path / "one.parquet"), Manifest.read(tmp_path / "parts.parquet")
    assert parts.digest() == one.digest()
    assert not list(tmp_path.glob(".*"))
    assert call("validate", str(tmp_path / "parts.parquet"))["rows"] == len(one.rows)
