"""A whole run: its numbers, its bytes for any worker count, going on after any end, and what it refuses."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medlt.data.convert import ConversionSettings, Places, convert
from medlt.types import InputError

Film, Run, Tree = Callable[..., bytes], Callable[..., Any], Callable[[Path], dict[str, bytes]]


@pytest.fixture
def source(tmp_path: Path, film: Film) -> Path:
    """24 films in three folders, two of them equal, and four files that become no image."""
    rng = np.random.default_rng(0)
    for i in range(24):
        place = tmp_path / "in" / f"study{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 4096, (16, 20)).astype(np.uint16)
        (place / f"film{i:02}").write_bytes(film(pixels, SOPInstanceUID=f"1.2.{i}"))
    (tmp_path / "in/study0/again").write_bytes((tmp_path / "in/study1/film01").read_bytes())
    (tmp_path / "in/cut").write_bytes(film()[:-9])
    (tmp_path / "in/note.txt").write_text("call back\n" * 50)
    (tmp_path / "in/empty").touch()
    return tmp_path / "in"


COUNTS = {
    "converted": 24,
    "skipped": 3,
    "failed": 1,
    "duplicates": {"file": 1},
    "reasons": {"duplicate": 1, "empty": 1, "not_dicom": 1, "truncated": 1},
    "implausible": {},
    "unlabelled_body_part": 0,
    "transfer_syntaxes": {"1.2.840.10008.1.2.1": 24},
    "modalities": {"DX": 24},
}


def test_one_bad_file_never_stops_a_batch_and_the_numbers_add_up(source: Path, run: Run, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out")
    assert result.counts == COUNTS
    assert result.reasons == {
        "cut": "truncated",
        "note.txt": "not_dicom",
        "empty": "empty",
        "study1/film01": "duplicate",
    }
    assert len(list((tmp_path / "out/images").iterdir())) == 24


def test_the_same_bytes_for_any_worker_count(source: Path, run: Run, tree: Tree, tmp_path: Path) -> None:
    trees = []
    for workers in (1, 2, 3):
        run(source, tmp_path / f"out{workers}", workers=workers)
        trees.append(tree(tmp_path / f"out{workers}"))
    assert trees[0] == trees[1] == trees[2]
    assert len(trees[0]) == 24 + 5


def test_progress_counts_every_file(source: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    convert(source, tmp_path / "out", ConversionSettings(), workers=1, progress=lambda *a: steps.append(a))
    assert steps == [("files", i, 28) for i in range(29)]


class _StopAt:
    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, stage: str, done: int, total: int) -> None:
        if done == self.count:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "count", [13, pytest.param(1, marks=pytest.mark.slow), pytest.param(28, marks=pytest.mark.slow)]
)
def test_a_run_that_was_interrupted_goes_on(source: Path, run: Run, tree: Tree, tmp_path: Path, count: int) -> None:
    run(source, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", ConversionSettings(), workers=1, progress=_StopAt(count))
    assert not (tmp_path / "out/manifest.parquet").exists()
    seen: list[int] = []
    convert(
        source, tmp_path / "out", ConversionSettings(), workers=1, progress=lambda _, done, total: seen.append(total)
    )
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert seen[-1] <= 28 - max(0, count - 2)


def test_a_second_run_has_nothing_to_do(source: Path, run: Run, tree: Tree, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/images").iterdir()}
    first, seen = tree(tmp_path / "out"), []
    result = convert(
        source, tmp_path / "out", ConversionSettings(), workers=1, progress=lambda _, done, total: seen.append(total)
    )
    assert (result, seen[-1]) == (COUNTS, 0)
    assert tree(tmp_path / "out") == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out/images").iterdir()} == before


@pytest.mark.slow
def test_an_output_that_is_gone_is_made_again(source: Path, run: Run, tree: Tree, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    first = tree(tmp_path / "out")
    for path in sorted((tmp_path / "out/images").iterdir())[::5]:
        path.unlink()
    run(source, tmp_path / "out")
    assert tree(tmp_path / "out") == first


@pytest.mark.parametrize(
    "cut", [20, pytest.param(1, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.slow)]
)
def test_a_journal_with_a_torn_last_line_is_read_up_to_it(
    source: Path, run: Run, tree: Tree, tmp_path: Path, cut: int
) -> None:
    run(source, tmp_path / "out")
    first, journal = tree(tmp_path / "out"), tmp_path / "out/.convert/files.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])
    run(source, tmp_path / "out")
    assert tree(tmp_path / "out") == first


@pytest.mark.slow
def test_new_files_are_added(source: Path, film: Film, run: Run, tree: Tree, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    (source / "a new one").write_bytes(film(SOPInstanceUID="1.9"))
    assert run(source, tmp_path / "out").counts["converted"] == 25
    run(source, tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


KILLED = """
import sys
from pathlib import Path
from medlt.data.convert import ConversionSettings, convert
show = lambda s, d, n: print(d, flush=True)
convert(Path(sys.argv[1]), Path(sys.argv[2]), ConversionSettings(), workers=2, progress=show)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_killed_run_goes_on(film: Film, run: Run, tree: Tree, tmp_path: Path, seed: int) -> None:
    """SIGKILL of the whole process at a random moment, three times, then to the end: the bytes of an unbroken run."""
    rng = np.random.default_rng(seed)
    (tmp_path / "in").mkdir()
    for i in range(300):
        pixels = rng.integers(0, 4096, (40, 50)).astype(np.uint16)
        (tmp_path / "in" / f"{i:03}").write_bytes(film(pixels, SOPInstanceUID=f"1.2.{i}"))
    run(tmp_path / "in", tmp_path / "whole", workers=2)
    for _ in range(3):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "in"), str(tmp_path / "out")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(float(rng.uniform(0, 0.25)))
            os.killpg(process.pid, signal.SIGKILL)
    run(tmp_path / "in", tmp_path / "out", workers=2)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def refused(source: Path, out: Path, **settings: Any) -> str:
    with pytest.raises(InputError) as error:
        convert(source, out, ConversionSettings(**settings), workers=1)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_changed_settings_are_refused(source: Path, run: Run, tree: Tree, tmp_path: Path) -> None:
    run(source, tmp_path / "out", size=8)
    before = tree(tmp_path / "out")
    assert "size 8, now 12" in refused(source, tmp_path / "out", size=12)
    assert "preset" in refused(source, tmp_path / "out", size=8, preset="chexpert")
    assert tree(tmp_path / "out") == before


def test_a_folder_of_somebody_else_is_refused(source: Path, tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("precious")
    assert "not empty" in refused(source, tmp_path / "out")
    assert tree(tmp_path / "out") == {"thesis.txt": b"precious"}


def test_an_out_that_is_a_file_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    refused(source, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "precious"


def test_an_out_below_a_file_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    assert str(tmp_path / "file") in refused(source, tmp_path / "file/out")


@pytest.mark.parametrize("inside", [".", "out", "study0/out", "../in/out"])
def test_an_out_inside_the_source_is_refused(source: Path, tree: Tree, inside: str) -> None:
    before = tree(source)
    assert "inside the source" in refused(source, source / inside)
    assert tree(source) == before


def test_an_out_inside_the_source_through_a_link_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    assert "inside the source" in refused(source, tmp_path / "link/out")


def test_an_output_that_was_edited_is_kept_aside_and_made_again(
    source: Path, run: Run, tree: Tree, tmp_path: Path, caplog: Any
) -> None:
    first = run(source, tmp_path / "out")
    before, name = tree(tmp_path / "out"), first.rows["study2/film02"]["path"]
    image = tmp_path / "out" / name
    edited = image.read_bytes()[:-1] + b"!"
    image.write_bytes(edited)
    again = run(source, tmp_path / "out")
    assert again.counts == first.counts
    assert "it was moved to" in caplog.text
    kept = f"superseded/{image.stem}-1{image.suffix}"
    assert tree(tmp_path / "out") == {**before, kept: edited}


def test_an_existing_different_output_is_never_overwritten(source: Path, run: Run, tmp_path: Path) -> None:
    """A file that the conversion did not write, under the name of an output."""
    first = run(source, tmp_path / "whole")
    name = first.rows["study2/film02"]["path"]
    (source / "study2/film02").rename(tmp_path / "film02")
    run(source, tmp_path / "out")
    (tmp_path / "film02").rename(source / "study2/film02")
    (tmp_path / "out" / name).write_bytes(b"drawn by hand")
    again = run(source, tmp_path / "out")
    assert (tmp_path / "out" / name).read_bytes() == b"drawn by hand"
    assert again.reasons["study2/film02"] == "write_failed"
    assert again.counts["converted"] == 23


def test_empty_and_missing_folders_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(tmp_path / "empty", tmp_path / "out")
    assert "no such file" in refused(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(source: Path, tree: Tree, tmp_path: Path) -> None:
    before = tree(tmp_path)
    result = convert(source, tmp_path / "out", ConversionSettings(dry_run=True), workers=2)
    assert tree(tmp_path) == before
    assert not (tmp_path / "out").exists()
    assert result["converted"] == 26  # the cut file opens, and what is a duplicate is not known yet
    assert result["reasons"] == {"empty": 1, "not_dicom": 1}


def test_a_single_file_is_a_source(source: Path, run: Run, tmp_path: Path) -> None:
    result = run(source / "study1/film01", tmp_path / "out")
    assert list(result.rows) == ["film01"]
    assert result.counts["converted"] == 1


def test_a_single_bad_file_is_a_reason(source: Path, run: Run, tmp_path: Path) -> None:
    result = run(source / "note.txt", tmp_path / "out")
    assert result.reasons == {"note.txt": "not_dicom"}
    assert (result.counts["converted"], len(result.rows)) == (0, 0)


def test_filters_skip_what_was_not_asked_for(film: Film, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    kinds = {
        "dx": ("DX", "CHEST"),
        "cr": ("CR", "chest"),
        "ct": ("CT", "CHEST"),
        "hand": ("DX", "HAND"),
        "no": ("DX", None),
    }
    for name, (modality, part) in kinds.items():
        (tmp_path / "in" / name).write_bytes(film(Modality=modality, BodyPartExamined=part))
    result = run(tmp_path / "in", tmp_path / "out", modalities=("CR", "DX"), body_parts=("CHEST",))
    assert sorted(result.rows) == ["cr", "dx", "no"]
    assert result.reasons == {"ct": "filtered", "hand": "filtered"}
    assert (result.counts["skipped"], result.counts["failed"]) == (2, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks")
def test_two_runs_never_work_in_one_folder(source: Path, run: Run, tmp_path: Path) -> None:
    from medlt.data.convert.journal import Journal

    run(source, tmp_path / "out", workers=1)
    with (
        Journal(Places(tmp_path / "out", False), ConversionSettings().summary()),
        pytest.raises(InputError, match="another 'medlt convert' is working"),
    ):
        convert(source, tmp_path / "out", ConversionSettings(), workers=1)


def test_what_a_killed_worker_was_writing_is_swept_up(source: Path, run: Run, tree: Tree, tmp_path: Path) -> None:
    run(source, tmp_path / "out", workers=1)
    before = tree(tmp_path / "out")
    (tmp_path / "out/images/.abc.png.17.tmp").write_bytes(b"half")
    run(source, tmp_path / "out", workers=1)
    assert tree(tmp_path / "out") == before


def test_a_worker_needs_some_memory() -> None:
    with pytest.raises(InputError, match="1024 MiB or more"):
        ConversionSettings(memory_mb=64)


def test_any_damage_to_the_journal_is_ignored_or_named(source: Path, run: Run, tree: Tree, tmp_path: Path) -> None:
    """One flipped bit at any place: the files of the damaged line are converted again."""
    run(source, tmp_path / "out", workers=1)
    before, journal = tree(tmp_path / "out"), tmp_path / "out/.convert/files.jsonl"
    whole = journal.read_bytes()
    for at in np.linspace(0, len(whole) - 1, 12).astype(int):
        journal.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        run(source, tmp_path / "out", workers=1)
        assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("text", ["{", "[]", "", '{"format": NaN'])
def test_damaged_settings_are_one_line(source: Path, run: Run, tmp_path: Path, text: str) -> None:
    run(source, tmp_path / "out", workers=1)
    (tmp_path / "out/.convert/settings.json").write_text(text)
    assert "settings.json" in refused(source, tmp_path / "out") or "begun with" in refused(source, tmp_path / "out")


def test_a_conversion_that_was_killed_before_its_settings_begins_again(
    source: Path, run: Run, tree: Tree, tmp_path: Path
) -> None:
    run(source, tmp_path / "whole", workers=1)
    (tmp_path / "out/.convert").mkdir(parents=True)
    (tmp_path / "out/.convert/.settings.json.17.tmp.json").write_text("{")
    run(source, tmp_path / "out", workers=1)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    (tmp_path / "other/.convert").mkdir(parents=True)
    (tmp_path / "other/.convert/thesis.txt").write_text("precious")
    assert "not begun by" in refused(source, tmp_path / "other")
