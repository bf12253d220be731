"""Each format of images, read back as its own tool reads it and compared with the run's manifest."""

import csv
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from monai.data import load_decathlon_datalist
from PIL import Image
from typer.testing import CliRunner

import medlt
from medlt.cli import app
from medlt.data.layouts import NIH_FINDINGS, nih_cxr_lt, read_layout
from medlt.data.manifest import Manifest
from medlt.export import IMAGES


def made(run: medlt.Run) -> pd.DataFrame:
    """The synthetic rows."""
    return run.images().rows


def assert_same_image(file: Path, run: medlt.Run, uid: str) -> None:
    """The file has the bytes of the run's image."""
    assert file.read_bytes() == run.manifest.file(uid).read_bytes()


def imagefolder_rows(folder: Path) -> dict[str, dict[str, str]]:
    """The metadata of an imagefolder by file name, by the rules of Hugging Face datasets.

    metadata.csv lies beside the images; its column file_name is relative to it; every image has a row and every row an
    image.
    """
    with (folder / "metadata.csv").open(newline="") as handle:
        rows = {row["file_name"]: row for row in csv.DictReader(handle)}
    images = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix != ".csv"}
    assert images == set(rows)
    return rows


def test_imagefolder(tiny_run: medlt.Run, tmp_path: Path) -> None:
    out = tiny_run.export("imagefolder", tmp_path / "out")
    rows = imagefolder_rows(out / "train")
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"train"}  # the name of a split
    table = made(tiny_run)
    assert {name.removesuffix(".png") for name in rows} == set(table.index)
    for name, row in rows.items():
        uid = name.removesuffix(".png")
        assert_same_image(out / "train" / name, tiny_run, uid)
        for finding in tiny_run.findings:
            value = table.at[uid, finding]
            assert row[finding] == ("" if np.isnan(value) else str(float(value)))
        assert row["synthetic"] == "True"
        assert int(row["seed"]) == table.at[uid, "seed"]  # every digit
        assert row["finding"] == table.at[uid, "finding"]
        assert row.get("run", "") == tiny_run.id
        with Image.open(out / "train" / name) as image:
            assert image.size == (32, 32)


def test_an_export_without_a_folder_lies_beside_the_run(tiny_run: medlt.Run, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    run = medlt.Run(tmp_path / "run")
    out = run.export("imagefolder")
    assert out == tmp_path / "run-imagefolder"
    assert len(imagefolder_rows(out / "train")) == len(run.images())


def test_a_home_folder_is_expanded(tiny_run: medlt.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tiny_run.export("imagefolder", "~/out") == tmp_path / "out"


def test_imagefolder_by_hugging_face(tiny_run: medlt.Run, tmp_path: Path) -> None:
    datasets: Any = pytest.importorskip("datasets")
    out = tiny_run.export("imagefolder", tmp_path / "out")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(loaded) == len(made(tiny_run))
    assert set(tiny_run.findings) <= set(loaded.column_names)


def test_imagefolder_with_real_images(tiny_run: medlt.Run, tmp_path: Path) -> None:
    out = tiny_run.export("imagefolder", tmp_path / "out", real=True)
    counts = tiny_run.manifest.rows["split"].value_counts()
    for split in ("train", "val", "test"):
        rows = imagefolder_rows(out / split)
        assert len(rows) == counts[split]
        assert all(row["run"] == "none" for row in rows.values() if row["synthetic"] == "False")


def test_a_monai_datalist(tiny_run: medlt.Run, tmp_path: Path) -> None:
    out = tiny_run.export("monai", tmp_path / "out", real=True)
    rows = tiny_run.manifest.rows
    for key, split in (("training", "train"), ("validation", "val"), ("test", "test")):
        items = load_decathlon_datalist(out / "datalist.json", False, key)
        assert [item["uid"] for item in items] == list(rows.index[rows["split"] == split])
        for item in items:
            expected = rows.loc[item["uid"], list(tiny_run.findings)].to_numpy(np.float32)
            np.testing.assert_allclose(np.asarray(item["label"], np.float32), expected, atol=1e-6)
            assert Path(item["image"]).is_file()
            assert item["synthetic"] == bool(rows.at[item["uid"], "synthetic"])
            assert item["weight"] == rows.at[item["uid"], "weight"]
    head = json.loads((out / "datalist.json").read_text())
    assert list(head["labels"].values()) == list(tiny_run.findings)
    assert head["numTraining"] == (rows["split"] == "train").sum()
    assert any(None in item["label"] for item in head["training"])


def test_webdataset(tiny_run: medlt.Run, tmp_path: Path) -> None:
    out = tiny_run.export("webdataset", tmp_path / "out")
    table, seen = made(tiny_run), []
    with tarfile.open(out / "train-000000.tar") as tar:
        members = [(member.name, handle.read()) for member in tar if (handle := tar.extractfile(member)) is not None]
    for (image, pixels), (text, record) in zip(members[::2], members[1::2], strict=True):
        assert image.partition(".")[0] == text.partition(".")[0]  # readers group members by the key before the dot
        said = json.loads(record)
        seen.append(said["uid"])
        assert pixels == tiny_run.manifest.file(said["uid"]).read_bytes()
        vector = np.asarray(list(said["label"].values()), np.float32)
        np.testing.assert_allclose(vector, table.loc[said["uid"], list(said["label"])].to_numpy(np.float32), atol=1e-6)
        assert said["synthetic"] is True
    assert seen == list(table.index)


def test_cxr_lt_is_read_by_its_layout(tiny_run: medlt.Run, tmp_path: Path) -> None:
    """The layout knows the 26 findings of the challenge; the tiny run has eight of them."""
    out = tiny_run.export("cxr-lt", tmp_path / "out", real=True)
    for path in (out / "images").glob("*.dcm"):  # the layout is of JPEG files; this test has DICOM files
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path.with_suffix(".png"))
    train = pd.read_csv(out / "cxr-lt-2023" / "train.csv").set_index("dicom_id")
    assert int(train["synthetic"].sum()) == len(made(tiny_run))
    for name, part in (("development", "val"), ("test", "test")):
        table = pd.read_csv(out / "cxr-lt-2023" / f"{name}.csv")
        assert len(table) == (tiny_run.manifest.rows["split"] == part).sum()
        assert all((out / file).is_file() for file in table["fpath"])
    read = read_layout("cxr-lt", out, {"release": "2023", "all_zero": "keep"}).manifest
    rows = tiny_run.manifest.rows.loc[read.rows.index]
    assert len(read.findings) == 8
    for finding in read.findings:
        own = finding.replace(" ", "_")
        np.testing.assert_array_equal(read.rows[finding].to_numpy(float), rows[own].to_numpy(float))
    assert (read.rows["split"] == rows["split"]).all()
    assert (read.rows["patient_id"] == rows["patient_id"]).all()


def test_longtailcxr_has_one_finding_an_image(tiny_run: medlt.Run, tmp_path: Path) -> None:
    out = tiny_run.export("longtailcxr", tmp_path / "out", real=True)
    lists = {name: pd.read_csv(out / "labels" / f"nih-cxr-lt_single-label_{name}.csv") for name in ("train", "test")}
    called = {name.replace("_", " "): name for name in tiny_run.findings}
    train, test = (table.rename(columns=called) for table in lists.values())
    findings = [name for name in tiny_run.findings if name != "Support_Device"]  # which the benchmark does not have
    own = made(tiny_run)[made(tiny_run)["finding"] != "Support_Device"]
    assert (train[findings].sum(axis=1) == 1).all()
    assert set(np.unique(train[findings])) == {0, 1}
    synthetic = train[train["synthetic"] == 1].set_index("id")
    assert set(synthetic.index.str.removesuffix(".png")) == set(own.index)
    for name, row in synthetic.iterrows():
        assert row[findings].astype(int).idxmax() == made(tiny_run).at[str(name).removesuffix(".png"), "finding"]
    assert all((out / "images" / name).is_file() for name in train["id"])
    real = tiny_run.manifest.rows.query("split == 'test'")[list(tiny_run.findings)]
    assert len(test) == ((real.fillna(0).sum(axis=1) == 1) & (real["Support_Device"] != 1)).sum()


@pytest.mark.parametrize("kind", list(IMAGES))
def test_every_export_says_that_it_is_synthetic(tiny_run: medlt.Run, tmp_path: Path, kind: str) -> None:
    out = tiny_run.export(kind, tmp_path / "out")
    record = json.loads((out / "provenance.json").read_text())
    assert record["synthetic"] is True
    assert record["run"] == tiny_run.id
    assert record["privacy"]["epsilon"] is None
    assert (out / "DATASHEET.md").is_file()
    copied = {path.stem for path in out.rglob("*.png")}
    assert copied in ({*made(tiny_run).index}, set())
    tables = {path for path in out.rglob("*") if path.suffix in (".dcm", ".parquet")}
    assert tables == (set((out / "data").glob("train-*.parquet")) if kind == "parquet" else set())  # none of a patient


@pytest.mark.parametrize("kind", list(IMAGES))
def test_a_run_without_images_has_nothing_to_export(
    tiny_run: medlt.Run, tiny_collection: medlt.Collection, tmp_path: Path, kind: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_bytes((tiny_run.folder / "config.yaml").read_bytes())
    with pytest.raises(medlt.InputError, match=r"manifest\.parquet"):
        medlt.Run(run).export(kind, tmp_path / "out")
    manifest = tiny_collection.manifest
    Manifest(manifest.rows, manifest.findings, manifest.root).write(run / "manifest.parquet")
    with pytest.raises(medlt.InputError, match="nothing to export"):
        medlt.Run(run).export(kind, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class LongTailSet:
    """Reads a list as the data sets of LongTailCXR do: paths, the class of each image, and images a class."""

    def __init__(self, images: Path, labels: Path, name: str, key: str, classes: Sequence[str], split: str) -> None:
        table = pd.read_csv(labels / f"{name}_single-label_{split}.csv")
        self.paths = [images / entry for entry in table[key]]
        self.targets = [classes.index(one) for one in table[list(classes)].idxmax(axis=1)]
        self.per_class = table[list(classes)].sum(axis=0).tolist()


@pytest.mark.parametrize("labels", [None, "hard", "soft"])
def test_longtailcxr_loads_in_its_own_data_set(tiny_run: medlt.Run, tmp_path: Path, labels: str | None) -> None:
    out = tiny_run.export("longtailcxr", tmp_path / "out", real=True, **({"labels": labels} if labels else {}))
    classes = list(nih_cxr_lt.FINDINGS)
    table = pd.read_csv(out / "labels" / "nih-cxr-lt_single-label_train.csv")
    for split in ("train", "balanced-val", "test"):
        read = LongTailSet(out / "images", out / "labels", "nih-cxr-lt", "id", classes, split)
        assert all(path.is_file() for path in read.paths)
        assert sum(read.per_class) == pytest.approx(len(read.paths), abs=1e-3)
    assert all((out / path).is_file() for path in table["path"])
    synthetic = table.set_index(table["id"].str.removesuffix(".png"))[table["synthetic"].to_numpy() == 1]
    assert table["seed"].dtype == np.int64
    assert (synthetic["seed"] == made(tiny_run).loc[synthetic.index, "seed"]).all()
    read = LongTailSet(out / "images", out / "labels", "nih-cxr-lt", "id", classes, "train")
    if labels == "soft":
        known = [name for name in tiny_run.findings if name.replace("_", " ") in {c.replace("_", " ") for c in classes}]
        own = made(tiny_run).loc[synthetic.index, known].fillna(0)
        shared = own["Effusion"] / own.sum(axis=1)
        np.testing.assert_allclose(synthetic["Effusion"], shared, atol=1e-9)
        return
    for path, target in zip(read.paths, read.targets, strict=True):
        if path.stem in synthetic.index and (aim := made(tiny_run).at[path.stem, "finding"]) in classes:
            assert classes[target] == aim


def test_torchxrayvision_loads_in_its_own_data_set(tiny_run: medlt.Run, tmp_path: Path) -> None:
    """NIH_Dataset(imgpath, csvpath, views=["*"], unique_patients=False), by its documented behaviour."""
    out = tiny_run.export("torchxrayvision", tmp_path / "out")
    table = pd.read_csv(out / "train.csv")
    pathologies = sorted(set(NIH_FINDINGS) - {"No_Finding"})
    labels = np.stack([table["Finding Labels"].str.contains(name).to_numpy() for name in pathologies], 1)
    own = made(tiny_run)
    uids = table["Image Index"].str.removesuffix(".png")
    assert set(uids) == set(own.index)
    for column, name in enumerate(pathologies):
        expected = own.loc[uids, name] >= 0.5 if name in own else np.zeros(len(uids), bool)
        np.testing.assert_array_equal(labels[:, column], expected)
    for name in table["Image Index"]:
        with Image.open(out / "images" / name) as image:
            assert image.mode == "L"  # 8 bit: it scales from 255
    assert (table["Patient Age"] * 1.0).dtype == np.float64
    assert {"Patient ID", "Patient Gender", "View Position"} <= set(table)
    assert (table["seed"].to_numpy() == own.loc[uids, "seed"].to_numpy()).all()
    with pytest.raises(medlt.InputError, match="no soft labels"):
        tiny_run.export("torchxrayvision", tmp_path / "soft", labels="soft")
    with pytest.raises(medlt.InputError, match="reads PNG and JPEG only"):
        tiny_run.export("torchxrayvision", tmp_path / "real", real=True)


def test_prompts_go_with_the_images(tiny_run: medlt.Run, tmp_path: Path) -> None:
    """CheXGenBench joins img_savename to the folder of images and reads the prompt beside it."""
    out = tiny_run.export("imagefolder", tmp_path / "out")
    info = pd.read_csv(out / "prompt_INFO.csv")
    assert list(info.columns) == ["prompt", "img_savename"]
    assert all((out / name).is_file() for name in info["img_savename"])
    rows = imagefolder_rows(out / "train")
    for prompt, name in info.itertuples(index=False):
        assert rows[Path(name).name]["prompt"] == prompt
        row = made(tiny_run).loc[Path(name).stem]
        for finding in set(tiny_run.findings) - {"No_Finding"}:
            assert (finding.lower().replace("_", " ") in prompt) == (row[finding] >= 0.5)
        assert "aged" not in prompt
        assert "male" not in prompt


def test_a_choice_of_labels_that_a_format_has_not(tiny_run: medlt.Run, tmp_path: Path) -> None:
    for kind, labels, message in (("monai", "soft", "one form of labels"), ("longtailcxr", "softer", "hard or soft")):
        with pytest.raises(medlt.InputError, match=message):
            tiny_run.export(kind, tmp_path / "out", labels=labels)


def test_the_command(tiny_run: medlt.Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["export", str(tiny_run.folder), str(out), "--format", "imagefolder"]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"out": str(out), "format": "imagefolder"}
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    assert CliRunner().invoke(app, [*command[:3], "--format", "imagfolder"]).exit_code == 2
