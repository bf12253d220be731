"""`medlt init`: the config that it writes can be run as it is, and says what was seen and measured."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import medlt
from medlt.api import drafting
from medlt.cli import app
from medlt.config import RunConfig, load_config
from medlt.data.manifest import Manifest
from medlt.recipes.estimate import Estimate


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """No measurement, which takes half a minute; the configs that it would have been made for."""
    seen: list[RunConfig] = []

    def main(config: RunConfig, manifest: Manifest) -> Estimate:
        seen.append(config)
        return Estimate({"reading": 1.0, "denoiser": 60.0}, 1024.0, 512.0)

    monkeypatch.setattr("medlt.recipes.estimate.main", main)
    return seen


@pytest.fixture
def table(tiny_collection: medlt.Collection, tmp_path: Path) -> Path:
    """A table of the tiny collection, with its images by absolute paths."""
    rows = tiny_collection.manifest.absolute().reset_index()
    wanted = ["uid", "path", "patient_id", "split", *tiny_collection.findings]
    rows[wanted].to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path / "labels.csv"


def init(*given: object) -> Any:
    return CliRunner().invoke(app, ["init", *map(str, given)])


def test_a_table_becomes_a_manifest_and_a_config_that_reads_back(table: Path, brief: list[RunConfig]) -> None:
    out = table.with_name("mine.yaml")
    done = init(table, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    shown, config = json.loads(done.stdout), load_config(out)
    rows = Manifest.read(table.with_name("mine.parquet"))
    source = pd.read_csv(table, dtype={"uid": str, "patient_id": str}).set_index("uid")
    assert set(rows.rows.index) == set(source.index)
    assert config == brief[0]
    assert config.output_dir == table.parent / "runs" / "mine"
    assert shown["images"] == len(source)
    positives = source[source["split"] == "train"][list(rows.findings)].eq(1).sum()
    for name, row in shown["tail"].items():
        assert row["train"] == positives[name]
        assert f"{name}: {positives[name]} train positives, {row['planned']} images to make;" in out.read_text()
    again = init(table, "--out", out)
    assert again.exit_code == 0, again.output
    out.write_text("seed: 1\n")
    other = init(table, "--out", out)
    assert other.exit_code == 2
    assert "exists with other contents; choose another --out" in other.stderr
    assert out.read_text() == "seed: 1\n"


def test_the_method_follows_the_masks_and_the_comparison_the_splits(
    tiny_collection: medlt.Collection, tmp_path: Path, brief: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tiny_collection.saved(tmp_path)
    monkeypatch.setattr(drafting, "ENOUGH_REGIONS", 1)
    masks = drafting.draft(tiny_collection, place, tmp_path / "a.yaml", "here").config
    assert masks.method.kind == "recompose"
    bare = medlt.Collection(tiny_collection.manifest.without_regions())
    fusion = drafting.draft(bare, place, tmp_path / "b.yaml", "here").config
    assert (fusion.method.kind, fusion.size, fusion.image_size) == ("fusion", 64, 128)  # on a CPU
    rows = tiny_collection.manifest.where(tiny_collection.manifest.rows["split"] == "train")
    made = drafting.draft(medlt.Collection(rows), place, tmp_path / "c.yaml", "here")
    assert made.config.evaluation is None
    assert "no image has split val or test" in made.text


def test_a_collection_with_nothing_rare_is_refused(tiny_collection: medlt.Collection, tmp_path: Path) -> None:
    manifest = tiny_collection.manifest.without_regions()
    only = Manifest(manifest.rows, tuple(n for n in manifest.findings if n == manifest.no_finding), manifest.root)
    with pytest.raises(medlt.InputError, match="no finding of the collection is rare"):
        drafting.draft(medlt.Collection(only), tmp_path / "m.parquet", tmp_path / "a.yaml", "here")


def test_a_collection_that_no_run_can_learn_from_is_one_line(
    tiny_collection: medlt.Collection, tmp_path: Path, brief: list[RunConfig]
) -> None:
    manifest = tiny_collection.manifest
    held_out = manifest.where(manifest.rows["split"] != "train")
    with pytest.raises(medlt.InputError, match="split train has no row"):
        drafting.draft(medlt.Collection(held_out), tmp_path / "m.parquet", tmp_path / "a.yaml", "here")
    train = manifest.split("train").rows
    people = train.loc[train[list(manifest.findings)].eq(1).any(axis=1), "patient_id"].unique()[:2]
    few = manifest.where(manifest.rows["patient_id"].isin(people))
    few = few.with_findings([name for name in few.findings if few.counts()["positive"][name]])
    with pytest.raises(medlt.InputError, match=r"2 patient\(s\) in split train, and a run needs 3; add images"):
        drafting.draft(medlt.Collection(few), tmp_path / "m.parquet", tmp_path / "a.yaml", "here")
    assert not brief


def test_a_column_of_another_name_is_named_as_the_message_says(table: Path, brief: list[RunConfig]) -> None:
    rows = pd.read_csv(table, dtype=str)
    rows.rename(columns={"patient_id": "who"}).to_csv(table, index=False)
    words = ["init", str(table), "--out", str(table.with_name("mine.yaml"))]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "--column patient_id=NAME" in " ".join(done.stderr.split())
    done = CliRunner().invoke(app, [*words, "--column", "patient_id=who"])
    assert done.exit_code == 0, done.output
    made = Manifest.read(table.with_name("mine.parquet"))
    assert set(made.rows["patient_id"]) == set(rows["patient_id"])


def test_a_finding_that_no_train_image_has_is_left_out_and_named(table: Path, brief: list[RunConfig]) -> None:
    rows = pd.read_csv(table, dtype=str)
    pd.concat([rows, pd.Series(["0"] * len(rows), name="Hernia")], axis=1).to_csv(table, index=False)
    done = init(table, "--out", table.with_name("mine.yaml"))
    assert done.exit_code == 0, done.output
    assert "left out, since no train image has it: Hernia" in " ".join(done.output.replace("#", " ").split())
    assert "Hernia" not in Manifest.read(table.with_name("mine.parquet")).findings


@pytest.mark.slow
def test_three_commands_from_dicom_and_labels_to_a_report(
    tiny_collection: medlt.Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny_collection.manifest.rows.reset_index()
    rows[["uid", *tiny_collection.findings]].to_csv(tmp_path / "labels.csv", index=False)
    monkeypatch.chdir(tmp_path)
    source = str(tiny_collection.manifest.root / "dicom")
    brief = ["codec.steps=4", "denoiser.steps=4", "classifier.steps=4", "evaluation.steps=4", "evaluation.seeds=1"]
    for words in (
        ["convert", source, "converted"],
        ["init", "converted", "--labels", "labels.csv"],
        ["run", "medlt.yaml", *brief],
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code in (0, 1), (words, done.output)
    assert (tmp_path / "runs" / "medlt" / "report.html").is_file()
