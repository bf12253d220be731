"""A link in a run folder leads no writer elsewhere: it is replaced by the file, or refused, and its target stays."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medlt.config import RunConfig, parse
from medlt.data.convert import ConversionSettings, convert
from medlt.data.convert.one import write_once
from medlt.files import atomic, whole_folder, write_text
from medlt.progress.run_log import RunLog
from medlt.recipes._setup import opened
from medlt.review.answers import reader_file
from medlt.store import Store
from medlt.training.runtime import silent
from medlt.types import InputError


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of somebody else's, which nothing may change."""
    (folder := tmp_path / "outside").mkdir()
    (folder / "file").write_text("mine")
    return folder


def assert_untouched(outside: Path) -> None:
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "mine"


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: write_text(path, "new"),
    "bytes of a conversion": lambda path: write_once(path, b"new"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_link_in_place_of_a_temporary_file_is_not_followed(writer: str, outside: Path, tmp_path: Path) -> None:
    for suffix in (".tmp", ".tmp.csv"):
        (tmp_path / f".x.csv.{os.getpid()}{suffix}").symlink_to(outside / "file")
    WRITERS[writer](tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text() == "new"
    assert not (tmp_path / "x.csv").is_symlink()
    assert_untouched(outside)


@pytest.mark.parametrize("name", ["report.html", "config.yaml", "run.json"])
def test_a_link_in_place_of_a_file_is_replaced(name: str, outside: Path, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(outside / "file")
    write_text(tmp_path / name, "new")
    assert (tmp_path / name).read_text() == "new"
    assert not (tmp_path / name).is_symlink()
    assert_untouched(outside)


def config_of(out: Path, tiny_settings: dict[str, Any]) -> RunConfig:
    return parse({**tiny_settings, "output_dir": str(out), "data": {"kind": "phantom", "patients": 20}})


@pytest.mark.parametrize("name", ["images", "stages", "report.html", "run.log", "run.json", "denoiser", "superseded"])
def test_a_run_folder_with_a_link_is_refused_in_one_line(
    name: str, outside: Path, tmp_path: Path, tiny_settings: dict[str, Any]
) -> None:
    config = config_of(tmp_path / "run", tiny_settings)
    with opened(config, silent):
        pass
    target = outside / "file" if "." in name else outside
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).symlink_to(target)
    with pytest.raises(InputError, match=f"run/{name}: is a link") as refused, opened(config, silent):
        pass
    assert "\n" not in str(refused.value)
    assert_untouched(outside)


def test_artifacts_may_be_on_another_disk(outside: Path, tmp_path: Path, tiny_settings: dict[str, Any]) -> None:
    config = config_of(tmp_path / "run", tiny_settings)
    with opened(config, silent):
        pass
    (outside / "disk").mkdir()
    (tmp_path / "run" / "artifacts").symlink_to(outside / "disk")
    with opened(config, silent) as run:
        made = run.store.make("codec", {"a": 1}, lambda folder: write_text(folder / "x", "y"))
    assert made.path("x").read_text() == "y"
    assert [path.name for path in (outside / "disk").iterdir()] == ["codec"]


@pytest.mark.parametrize("name", ["images", "manifest.parquet"])
def test_a_conversion_writes_behind_no_link(name: str, outside: Path, tmp_path: Path) -> None:
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "note.txt").write_text("no image")
    convert(tmp_path / "dicom", tmp_path / "out", ConversionSettings())
    if (tmp_path / "out" / name).is_dir():
        (tmp_path / "out" / name).rmdir()
    (tmp_path / "out" / name).unlink(missing_ok=True)
    (tmp_path / "out" / name).symlink_to(outside / "file" if "." in name else outside)
    with pytest.raises(InputError, match=f"out/{name}: is a link"):
        convert(tmp_path / "dicom", tmp_path / "out", ConversionSettings())
    assert_untouched(outside)


def test_answers_are_written_behind_no_link(outside: Path, tmp_path: Path) -> None:
    (tmp_path / "review").symlink_to(outside)
    with pytest.raises(InputError, match="review: is a link"):
        reader_file(tmp_path, "reader-1")
    assert_untouched(outside)


@pytest.mark.parametrize(
    ("kind", "link"),
    [("codec", lambda place: place.with_suffix(".work")), ("codec", lambda place: place.with_suffix(".fresh")),
     ("shards", lambda place: place.with_suffix(".work")), ("shards", lambda place: place.parent)],
)  # fmt: skip
def test_a_store_builds_behind_no_link(kind: str, link: Callable[[Path], Path], outside: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "artifacts")
    place = link(store.place(kind, {"a": 1}))
    place.parent.mkdir(parents=True)
    place.symlink_to(outside)
    with pytest.raises(InputError, match="is a link") as refused:
        store.make(kind, {"a": 1}, lambda folder: write_text(folder / "x", "y"))
    assert "\n" not in str(refused.value)
    assert_untouched(outside)


def test_the_log_is_appended_to_no_link(outside: Path, tmp_path: Path) -> None:
    (tmp_path / "run.log").symlink_to(outside / "file")
    with pytest.raises(InputError, match=r"run\.log: is a link"), RunLog(tmp_path, silent):
        pass
    assert_untouched(outside)


@pytest.mark.parametrize("target", ["", "nowhere"])
def test_a_new_folder_is_made_in_place_of_no_link(target: str, outside: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / (target or "empty"))
    with pytest.raises(InputError, match="out cannot be written"), whole_folder(tmp_path / "out") as fresh:
        (fresh / "x").write_text("x")
    assert not (tmp_path / "empty" / "x").exists()
    assert not (tmp_path / "nowhere").exists()


def test_another_file_is_never_the_temporary_one(tmp_path: Path) -> None:
    with atomic(tmp_path / "x.parquet") as temporary:
        assert not temporary.exists()
        temporary.write_bytes(b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]
