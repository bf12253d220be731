"""A finished run is read as it was written, or refused: every sealed file, every bit of run.json."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from medlt.files import write_json
from medlt.recipes._sealed import FREE, TABLES, read_record, require_sealed, seal, with_checksum
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
