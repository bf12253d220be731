"""The Parquet shards of a run, read back with pyarrow, pandas, and Hugging Face datasets where it is installed."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

import medlt
from medlt.data.manifest import Manifest
from medlt.export.images import shard_count


@pytest.mark.parametrize("shard_size", [1, 2, 1000])
def test_the_shards_hold_the_run(tiny_run: medlt.Run, tmp_path: Path, shard_size: int) -> None:
    out = tiny_run.export("parquet", tmp_path / "out", shard_size=shard_size)
    made = tiny_run.images().rows
    count = -(-len(made) // shard_size)
    files = sorted((out / "data").iterdir())
    assert [file.name for file in files] == [f"train-{n:05d}-of-{count:05d}.parquet" for n in range(count)]
    assert max(pq.read_metadata(file).num_rows for file in files) <= shard_size
    assert len({pq.read_schema(file).to_string() for file in files}) == 1
    table = pd.read_parquet(out / "data").set_index("uid")
    assert list(table.index) == list(made.index)
    for uid, row in table.iterrows():
        assert row["image"]["bytes"] == tiny_run.manifest.local_file(str(uid)).read_bytes()
        assert row["image"]["path"] == f"{uid}.png"
        assert row["seed"] == made.at[uid, "seed"]
        assert row["prompt"]
    findings = list(tiny_run.findings)
    np.testing.assert_array_equal(table[findings].to_numpy(float), made[findings].to_numpy(float))


def test_real_images_are_in_the_shards_of_their_split(tiny_run: medlt.Run, tmp_path: Path) -> None:
    out = tiny_run.export("parquet", tmp_path / "out", real=True)
    rows = tiny_run.manifest.rows
    names = {"train": "train", "val": "validation", "test": "test"}
    for split, part in rows.groupby("split"):
        table = pd.read_parquet(out / "data" / f"{names[str(split)]}-00000-of-00001.parquet")
        assert set(table["uid"]) == set(part.index)
    assert len({pq.read_schema(file).to_string() for file in (out / "data").iterdir()}) == 1


def test_the_note_for_datasets_names_every_column(tiny_run: medlt.Run, tmp_path: Path) -> None:
    out = tiny_run.export("parquet", tmp_path / "out")
    (file,) = (out / "data").iterdir()
    schema = pq.read_schema(file)
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features["image"] == {"_type": "Image"}


def test_hugging_face_datasets_decode_it(tiny_run: medlt.Run, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    out = tiny_run.export("parquet", tmp_path / "out", shard_size=2)
    loaded = datasets.load_dataset("parquet", data_dir=str(out), cache_dir=str(tmp_path / "cache"))["train"]
    made = tiny_run.images().rows
    assert list(loaded["uid"]) == list(made.index)
    with Image.open(tiny_run.manifest.local_file(str(made.index[0]))) as image:
        np.testing.assert_array_equal(np.asarray(loaded[0]["image"]), np.asarray(image))


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_sharding_changes_no_row(tiny_run: medlt.Run, tmp_path: Path, kind: str) -> None:
    def rows(size: int) -> list[bytes]:
        out = tiny_run.export(kind, tmp_path / f"{kind}-{size}", shard_size=size)
        if kind == "parquet":
            return [json.dumps(row, default=repr).encode() for row in pq.read_table(out / "data").to_pylist()]
        members = []
        for file in sorted(out.glob("*.tar")):
            with tarfile.open(file) as tar:
                members += [one.name.encode() + tar.extractfile(one).read() for one in tar]  # type: ignore[union-attr]
        return members

    assert rows(1) == rows(3) == rows(1000)


def test_equal_exports_have_equal_bytes(tiny_run: medlt.Run, tmp_path: Path) -> None:
    one, two = (tiny_run.export("parquet", tmp_path / name) for name in "ab")
    for file in (one / "data").iterdir():
        assert file.read_bytes() == (two / "data" / file.name).read_bytes()


def test_a_missing_image_is_named(tiny_run: medlt.Run, tmp_path: Path, reseal: Callable[[Path], None]) -> None:
    import shutil

    shutil.copytree(tiny_run.folder, tmp_path / "run")
    run = medlt.Run(tmp_path / "run")
    manifest = Manifest.read(tmp_path / "run" / "manifest.parquet")
    made = run.images().rows.index
    manifest.local_file(str(made[0])).unlink()
    with pytest.raises(medlt.InputError, match="images: is not what this run wrote; restore it"):
        run.export("parquet", tmp_path / "out")
    shutil.copytree(tiny_run.folder / "images", tmp_path / "run" / "images", dirs_exist_ok=True)
    real = next(str(uid) for uid in manifest.split("train").rows.index if uid not in made)
    moved = manifest.moved(lambda path: path if path != manifest.rows.at[real, "path"] else "nowhere.png")
    Manifest(moved, manifest.findings, manifest.root).write(tmp_path / "run" / "manifest.parquet")
    reseal(run.folder)
    with pytest.raises(medlt.InputError, match=rf"no such file \(uid {real}\)"):
        run.export("parquet", tmp_path / "out", real=True)
    assert not (tmp_path / "out").exists()


def test_the_size_of_a_shard_is_for_shards_alone(tiny_run: medlt.Run, tmp_path: Path) -> None:
    with pytest.raises(medlt.InputError, match="has no shards"):
        tiny_run.export("imagefolder", tmp_path / "out", shard_size=5)
    with pytest.raises(medlt.InputError, match="1 image or more"):
        tiny_run.export("parquet", tmp_path / "out", shard_size=0)
    assert [shard_count(n, 3) for n in (0, 1, 3, 4)] == [0, 1, 1, 2]
