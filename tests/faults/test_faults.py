"""Every command, struck at every kind of file, gives the same bytes when it is run again, or one line."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medlt.recipes._sealed import with_checksum

pytestmark = pytest.mark.faults

DAMAGE: dict[str, Callable[[Path], object]] = {
    "flip": lambda file: file.write_bytes(flipped(file.read_bytes())),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "remove": lambda file: file.unlink(),
}


QUICK = ("convert", "augment", "release", "verify")
"""The commands of the short form; of the others it has the flipped bit, the swap and the versions alone."""


def flipped(data: bytes) -> bytes:
    """The same bytes but for one bit in the middle."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if data else b"\1"


@pytest.mark.parametrize("fault", DAMAGE)
@pytest.mark.parametrize("command", ["convert", "augment", "train", "evaluate", "audit", "release", "verify"])
def test_damage(rig: Any, command: str, fault: str) -> None:
    """One file of each kind is damaged. The short form damages at once all those that change nothing."""
    if fault != "flip" and command not in QUICK:
        rig.only_in_full()
    files = rig.files(command)
    alone = ("converted/.convert/files.jsonl",)  # what knows of the other files
    together = [one for one in files if rig.short and one not in alone and rig.known_same(command, fault, one)]
    singly = [[one] for one in files if one not in together][: 4 if rig.brief else None]
    for what in [*singly, together] if together else singly:
        place = rig.fresh(command)
        if command == "release":
            shutil.rmtree(place / "release")
        for one in what:
            DAMAGE[fault](place / files[one])
        rig.again(command, fault, *what)
    rig.end()


WRITERS = ["convert", "augment", "train", "evaluate", "audit", "release"]


def struck(rig: Any, command: str) -> list[str]:
    """The files that a command puts into place, in order, one of each kind; the short form has three of them."""
    renamed = [name for event, name in rig.changes(command) if event == "os.rename" and ".tmp" not in name]
    kinds = {rig.label(name): name for name in reversed(renamed)}
    names = [*reversed(kinds.values())]
    assert names, "nothing was put into place by a rename, so a kill may leave half a file"
    return [names[0], names[len(names) // 2], names[-1]] if rig.short and len(names) > 3 else names


@pytest.mark.parametrize("command", WRITERS)
def test_kill(rig: Any, command: str) -> None:
    """SIGKILL when a file was written under a temporary name, and when it was just put into place, at every file.

    The short form kills before one file and after the next.
    """
    if command not in QUICK:
        rig.only_in_full()
    names = struck(rig, command)
    place = rig.begin(command)
    for number, name in enumerate(names):
        for later in (number % 2,) if rig.short else (0, 1):
            strike = {"how": "kill", "event": "os.rename", "name": name, "later": later}
            [(code, said, _)] = rig.strike(command, strike, at=place)
            assert code in (-signal.SIGKILL, rig.code(command)), said  # a conversion repeats nothing that is finished
    rig.again(command, "kill", *map(rig.label, names))
    rig.end()


@pytest.mark.parametrize("command", WRITERS)
def test_full_disk(rig: Any, command: str) -> None:
    """No space is left from the moment when a file is about to be written: one line; then there is space again."""
    if command not in QUICK:
        rig.only_in_full()
    names = struck(rig, command)
    place = rig.begin(command)
    for name in names:
        begun = (Path(name).parent / f".{Path(name).name}.*").as_posix()
        event = "os.remove" if Path(name).suffix else "os.mkdir"  # of the temporary file or folder
        [(code, said, _)] = rig.strike(command, {"how": "full", "event": event, "name": begun}, at=place)
        rig.note(command, "full", [rig.label(name)], code, said)
    rig.again(command, "space again", "all of them")
    rig.end()


@pytest.mark.parametrize("command", WRITERS)
def test_files_that_are_too_large(rig: Any, command: str) -> None:
    """The system itself refuses to write more than so many bytes into a file: one line; then it writes all."""
    if command not in QUICK:
        rig.only_in_full()
    place = rig.begin(command)
    for size in (2**13, 2**16) if rig.short else (2**13, 2**14, 2**15, 2**16, 2**17):
        [(code, said, _)] = rig.strike(command, {"how": "small", "bytes": size}, at=place)
        rig.note(command, "limit", [f"{size} bytes"], code, said)
    rig.again(command, "limit", "none")
    rig.end()


@pytest.mark.parametrize("command", WRITERS)
def test_race(rig: Any, command: str) -> None:
    """Two processes at once in one folder: each ends well, or with one line, and the folder is as one leaves it."""
    if command not in QUICK:
        rig.only_in_full()
    place = rig.begin(command)
    ends = rig.strike(command, at=place, times=2)
    assert rig.code(command) in [code for code, _, _ in ends], ends
    for code, said, _ in ends:
        rig.note(
            command, "race", ["the second process"] if code != rig.code(command) else ["the first process"], code, said
        )
    rig.again(command, "race", "afterwards")
    rig.end()


@pytest.mark.parametrize("command", [*WRITERS, "verify"])
def test_moved(rig: Any, command: str) -> None:
    """The workplace is renamed, and the command run there again."""
    if command not in QUICK:
        rig.only_in_full()
    place = rig.fresh(command)
    if command == "release":
        shutil.rmtree(place / "release")
    other = place.rename(place.with_name("another place"))
    [(code, said, _)] = rig.strike(command, at=other)
    other.rename(place)
    rig.note(command, "move", ["the folder"], code, said)
    rig.end()


def swapped(files: list[Path]) -> None:
    """Let the first two of these files change places."""
    one, two = files[:2]
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)


SWAPS = {
    "augment": ("two images of the collection", "run/stages/data/phantom/dicom/*/*.dcm"),
    "train": ("two images of the collection", "trained/stages/data/phantom/dicom/*/*.dcm"),
    "evaluate": ("two images of the source", "run/images/*.png"),
    "audit": ("two images of the run", "run/images/*.png"),
    "release": ("two images of the run", "run/images/*.png"),
    "verify": ("two images of the release", "release/images/*.png"),
}


@pytest.mark.parametrize("command", SWAPS)
def test_swap(rig: Any, command: str) -> None:
    """Two input images change places under their names between two calls."""
    place, (what, pattern) = rig.fresh(command), SWAPS[command]
    if command == "release":
        shutil.rmtree(place / "release")
    swapped(sorted(place.glob(pattern)))
    assert rig.again(command, "swap", what) != "same bytes"
    rig.end()


def test_swap_of_converted_files(rig: Any) -> None:
    """A conversion whose inputs changed places gives the tables of a conversion that begins with them so."""
    place = rig.fresh("convert")
    swapped(sorted(place.glob("dicom/*.dcm"))[1:])
    tables = ("manifest.parquet", "sources.csv", "failures.csv", "duplicates.csv", "objects.csv")
    both = []
    for _ in range(2):
        [(code, said, _)] = rig.strike("convert", at=place)
        assert code == rig.code("convert"), said
        both.append({name: (place / "converted" / name).read_bytes() for name in tables})
        shutil.rmtree(place / "converted")
    assert both[0] == both[1]


VERSIONS = {
    "convert": ("the format of the settings", "converted/.convert/settings.json"),
    "augment": ("a version in run.json", "run/run.json"),
    "train": ("a version in run.json", "trained/run.json"),
    "evaluate": ("a version in run.json", "experiment/run.json"),
    "release": ("a version in run.json", "run/run.json"),
    "verify": ("the format of the release", "release/release.json"),
}


@pytest.mark.parametrize("command", VERSIONS)
def test_other_versions(rig: Any, command: str) -> None:
    """Another version of torch, or of a format, made the folder."""
    place, (what, name) = rig.fresh(command), VERSIONS[command]
    if command == "release":
        shutil.rmtree(place / "release")
    record = json.loads((place / name).read_text())
    record |= {"versions": {**record["versions"], "torch": "0.1"}} if "versions" in record else {"format": "medlt 0"}
    record.pop("checksum", None)
    (place / name).write_text(json.dumps(with_checksum(record) if name.endswith("run.json") else record))
    rig.again(command, "versions", what)
    rig.end()
