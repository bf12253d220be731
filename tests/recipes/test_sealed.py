"""A finished run is read as it was written, or refused: every sealed file, every bit of run.json."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medlt.cli import app
from medlt.files import write_json
from medlt.recipes._sealed import FREE, TABLES, read_record, require_sealed, seal
from medlt.records import with_checksum
from medlt.types import InputError

CONFIG = "output_dir: {place}\nartifacts_dir: null\nworkers: 1\nseed: 3\nsize: 32\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A sealed run folder of text files."""
    folder = tmp_path / "run"
    for name in (*TABLES, "images/a.png", "images/b.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"contents of {name}")
    (folder / "config.yaml").write_text(CONFIG.format(place=folder))
    write_json(folder / "run.json", with_checksum({"seed": 3, "files": seal(folder)}))
    return folder


def swap(run: Path) -> None:
    one, two = (run / "images" / name for name in ("a.png", "b.png"))
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    **{name: (lambda run, name=name: (run / name).write_text("other"), name) for name in TABLES},
    "a table is missing": (lambda run: (run / TABLES[0]).unlink(), f"{TABLES[0]}: is missing"),
    "images swapped": (swap, "images: is not what this run wrote"),
    "an image is added": (lambda run: (run / "images" / "c.png").write_text("c"), "images: is not"),
    "images are missing": (lambda run: shutil.rmtree(run / "images"), "is missing"),
    "another seed": (lambda run: (run / "config.yaml").write_text(CONFIG.replace("seed: 3", "seed: 2")), "config.yaml"),
    "no YAML": (lambda run: (run / "config.yaml").write_text("a: [b"), "config.yaml: is missing"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_with_another_file_is_refused(run: Path, name: str) -> None:
    require_sealed(run)
    change, message = CHANGES[name]
    change(run)
    with pytest.raises(InputError) as error:
        require_sealed(run)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_may_move_with_its_store(run: Path, tmp_path: Path) -> None:
    moved = run.rename(tmp_path / "moved")
    text = CONFIG.format(place=moved).replace("artifacts_dir: null", "artifacts_dir: /elsewhere")
    (moved / "config.yaml").write_text(text.replace("workers: 1", "workers: 4"))
    require_sealed(moved)
    assert "seed" not in FREE


def test_every_flipped_bit_of_the_record_is_noticed(run: Path) -> None:
    """A bit that turns a blank into another, or breaks the name of the checksum, changes nothing that is read."""
    whole = (run / "run.json").read_bytes()
    before = read_record(run)
    for at in range(len(whole)):
        (run / "run.json").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            after = read_record(run)
        except InputError:
            continue
        assert after == before or "checksum" not in json.loads((run / "run.json").read_text())


def test_a_folder_without_a_record_has_no_seal(tmp_path: Path) -> None:
    require_sealed(tmp_path)


READERS = ("report {run}", "export {run} {out} --format imagefolder", "export {run} {out} --format diffusers")
DAMAGED = ("manifest.parquet", "training.parquet", "failures.csv", "config.yaml", "run.json", "an image")


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("command", READERS)
def test_a_damaged_run_is_neither_shown_nor_exported(finished: Path, tmp_path: Path, command: str, name: str) -> None:
    """One bit in the middle of a file is another: one line, and nothing is written."""
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(finished, run)
    args = command.format(run=run, out=out).split()
    file = run / name if name != "an image" else sorted((run / "images").glob("*.png"))[0]
    data, page = file.read_bytes(), (run / "report.html").read_bytes()
    at = data.index(b"seed: 3") + 6 if name == "config.yaml" else len(data) // 2
    file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if data else b"\1")
    done = CliRunner().invoke(app, args)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"{file.parent if name == 'an image' else file}: " in done.stderr
    assert not out.exists()
    assert (run / "report.html").read_bytes() == page
