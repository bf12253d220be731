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
def rows(finished: Path) -> Manifest:
    """The real rows of the finished run."""
    return Manifest.read(finished / "stages" / "data" / "manifest.parquet")


@pytest.fixture
def parts(rows: Manifest, tmp_path: Path) -> Path:
    """These rows in parts of seven."""
    rows.write(tmp_path / "parts.parquet", part_rows=7)
    assert len([*(tmp_path / "parts.parquet").iterdir()]) > 5
    return tmp_path / "parts.parquet"


def call(*words: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code in (0, 1), done.output
    return dict(json.loads(done.stdout))


def test_a_run_makes_the_same_images(
    parts: Path, tiny: Callable[[Path], RunConfig], finished: Path, trained: Path, tmp_path: Path
) -> None:
    tree = tiny(tmp_path / "run").model_dump(mode="json")
    data = {"kind": "manifest", "path": str(parts)}
    run = augment(parse({**tree, "data": data, "artifacts_dir": str(trained)}))
    made, wanted = ({f.name: f.read_bytes() for f in (one / "images").iterdir()} for one in (run, finished))
    assert len(made) > 2
    assert made == wanted


def test_commands_answer_as_for_one_file(parts: Path, rows: Manifest, tmp_path: Path) -> None:
    rows.write(tmp_path / "one.parquet")
    answers = []
    for path in (parts, tmp_path / "one.parquet"):
        joined = tmp_path / f"joined-{path.name}"
        counts = call("join", path, path, joined, "--names", "a,b", "--part-rows", "30")
        kept = {name: counts[name] for name in ("rows", "patients", "findings")}
        answers.append((call("validate", path), kept, call("validate", joined)))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("inside", [False, True])
def test_init_takes_it_and_the_folder_that_holds_it(parts: Path, rows: Manifest, tmp_path: Path, inside: bool) -> None:
    """The config that is written names it, and its rows are those of the whole manifest."""
    if inside:
        (tmp_path / "own").mkdir()
        parts = Path(shutil.move(parts, tmp_path / "own" / "manifest.parquet"))
    call("init", parts.parent if inside else parts, "--out", tmp_path / "own.yaml")
    config = load_any(tmp_path / "own.yaml")
    assert config.data.model_dump()["path"] == parts
    read = read_rows(config)
    assert read is not None
    assert read.manifest.digest() == rows.digest()


def test_python_takes_it_and_leaves_it_as_it_is(parts: Path, rows: Manifest, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in parts.iterdir()}
    collection = medlt.Collection.from_manifest(parts)
    assert collection.saved(tmp_path / "runs") == parts
    assert {file.name: file.read_bytes() for file in parts.iterdir()} == before
    assert collection.manifest.digest() == rows.digest()
