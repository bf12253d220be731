"""A manifest in parts may be given wherever a manifest may be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import medlt
from medlt.cli import app
from medlt.config import RunConfig, load_any, parse
from medlt.data.manifest import Manifest
from medlt.recipes._cohort import read_rows
from medlt.recipes.augment import main as augment


@pytest.fixture
def manifests(finished: Path, tmp_path: Path) -> dict[str, Path]:
    """The real rows of the finished run as one file, and in parts of seven rows."""
    rows = Manifest.read(finished / "stages" / "data" / "manifest.parquet")
    paths = {"one": tmp_path / "one.parquet", "parts": tmp_path / "parts.parquet"}
    rows.write(paths["one"])
    rows.write(paths["parts"], part_rows=7)
    assert len([*paths["parts"].iterdir()]) > 5
    return paths


def call(*words: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code in (0, 1), done.output
    return dict(json.loads(done.stdout))


def test_a_run_makes_the_same_images(
    manifests: dict[str, Path], tiny: Callable[[Path], RunConfig], trained: Path, tmp_path: Path
) -> None:
    made = []
    for name, path in manifests.items():
        tree = tiny(tmp_path / name).model_dump(mode="json")
        data = {"kind": "manifest", "path": str(path)}
        run = augment(parse({**tree, "data": data, "artifacts_dir": str(trained)}))
        made.append({file.name: file.read_bytes() for file in (run / "images").iterdir()})
    assert len(made[0]) > 2
    assert made[0] == made[1]


def test_the_commands_that_take_one(manifests: dict[str, Path], tmp_path: Path) -> None:
    """validate, alone and with a config, join, init, and the config that init writes."""
    seen = []
    for name, path in manifests.items():
        call("init", path, "--out", tmp_path / f"{name}.yaml")
        rows = read_rows(load_any(tmp_path / f"{name}.yaml"))
        assert rows is not None
        report = call("validate", path, "--config", tmp_path / f"{name}.yaml")
        joined = call("join", path, path, tmp_path / f"joined-{name}.parquet", "--names", "a,b", "--part-rows", "30")
        again = call("validate", tmp_path / f"joined-{name}.parquet")
        kept = {key: joined[key] for key in ("rows", "patients", "findings")}
        seen.append((rows.manifest.digest(), report, kept, again))
    assert seen[0] == seen[1]


def test_python_takes_it_and_leaves_it_as_it_is(manifests: dict[str, Path], tmp_path: Path) -> None:
    path = manifests["parts"]
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    collection = medlt.Collection.from_manifest(path)
    assert collection.saved(tmp_path / "runs") == path
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert collection.digest() == medlt.Collection.from_manifest(manifests["one"]).digest()


def test_a_folder_that_holds_one(manifests: dict[str, Path], tmp_path: Path) -> None:
    """`medlt init FOLDER` takes its manifest.parquet, a file or a folder of parts."""
    for name, path in manifests.items():
        (tmp_path / "own" / name).mkdir(parents=True)
        place = tmp_path / "own" / name / "manifest.parquet"
        shutil.copytree(path, place) if path.is_dir() else shutil.copy(path, place)
        call("init", tmp_path / "own" / name, "--out", tmp_path / f"own-{name}.yaml")
        assert load_any(tmp_path / f"own-{name}.yaml").data.model_dump()["path"] == place
