"""Every command, struck at every kind of file, gives the same bytes when it is run again, or one line."""

import json
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from medlt.records import with_checksum

pytestmark = pytest.mark.faults

DAMAGE: dict[str, Callable[[Path], object]] = {
    "flip": lambda file: file.write_bytes(flipped(file.read_bytes())),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "remove": lambda file: file.unlink(),
}
GROUPS = 6
"""Files that seem to change nothing are damaged in so many groups, neighbours in different ones."""
QUICK = ("convert", "augment", "release", "verify")
"""The commands of the short form; of the others it has the flipped bit, the swap and the versions alone."""


def flipped(data: bytes) -> bytes:
    """The same bytes but for one bit in the middle."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if data else b"\1"


@pytest.mark.parametrize("fault", DAMAGE)
@pytest.mark.parametrize("command", ["convert", "augment", "train", "evaluate", "audit", "release", "verify"])
def test_damage(rig: Any, command: str, fault: str) -> None:
    """One file of each kind is damaged; those that seem to change nothing in groups, in the short form in one."""
    if fault != "flip" and command not in QUICK:
        rig.only_in_full()
    files = rig.files(command)
    alone = ("converted/.convert/files.jsonl",)  # what knows of the other files
    same = [one for one in files if one not in alone and rig.may_be_same(command, fault, one)]
    count = 1 if rig.short else GROUPS
    groups = [group for group in (same[number::count] for number in range(count)) if group]
    singly = [[one] for one in files if one not in same]
    queue = [*singly[: 2 if rig.brief else None], *groups]
    for what in queue:
        place = rig.fresh(command)
        for one in what:
            DAMAGE[fault](place / files[one])
        [(code, said, _)] = rig.strike(command, at=place)
        if len(what) > 1 and rig.judge(command, code, said, what)[0] != "same bytes":
            queue += [what[: len(what) // 2], what[len(what) // 2 :]]
        else:
            rig.note(command, fault, what, code, said)
    rig.end()


WRITERS = ["convert", "augment", "train", "evaluate", "audit", "release"]


LOGS = ("/run.log", "/.convert/files.jsonl")
"""Files that are added to line by line; a reader leaves out a torn last line."""


def chosen(rig: Any, command: str) -> dict[str, list[dict[str, str]]]:
    """The moments of every kind of file that a command writes; the short form has three of them."""
    moments = rig.moments(command)
    names, unseen = [*moments], {one for one in rig.written(command) if not one.endswith(".lock")} - {*moments}
    assert not unseen, f"written without a change that was seen: {unseen}"
    torn = [one for one in rig.opened(command) if not one.endswith(LOGS)]
    assert not torn, f"written under their own names, so a kill may leave half of them: {torn}"
    few = (names[0], names[len(names) // 2], names[-1]) if rig.brief else names
    return {what: moments[what] for what in few}


def stays(rig: Any, command: str, names: Iterable[str]) -> list[str]:
    """Those of these kinds that are there when the command has ended; the page lists them."""
    return [one for one in names if one in rig.written(command)]


@pytest.mark.parametrize("command", WRITERS)
def test_kill(rig: Any, command: str) -> None:
    """SIGKILL just before every kind of file is put into place, and just after the last one.

    Each process goes on where the one before was killed: with the file in place, and nothing of the next.
    """
    if command not in QUICK:
        rig.only_in_full()
    moments = chosen(rig, command)
    place = rig.begin(command)
    for what, (_, put) in moments.items():
        for later in (0, 1) if what == [*moments][-1] else (0,):
            strike = put | {"how": "kill", "later": later}
            [(code, said, _)] = rig.strike(command, strike, at=place)
            if code != -signal.SIGKILL:  # what was finished before a kill is not written again
                [(code, said, _)] = rig.strike(command, strike, at=rig.begin(command))
            assert code == -signal.SIGKILL, f"{what}, {later}: {said}"
    rig.again(command, "kill", *stays(rig, command, moments))
    rig.end()


@pytest.mark.parametrize("fault", DAMAGE)
def test_damage_of_unfinished_work(rig: Any, fault: str) -> None:
    """An artifact's process is killed before it puts the artifact into place; then a file of its work is damaged."""
    rig.only_in_full()
    for kind, (_, put) in rig.moments("augment").items():
        if not kind.endswith("/*"):
            continue
        place = rig.begin("augment")
        [(code, said, _)] = rig.strike("augment", put | {"how": "kill", "later": 0}, at=place)
        assert code == -signal.SIGKILL, said
        halted = place.rename(place.with_name("halted"))
        work = {what: name for what, name in rig.kinds(halted, f"{kind}.work/**/*").items() if "/samples/" not in what}
        for what, name in work.items():
            DAMAGE[fault](rig.copied(halted) / name)
            rig.again("augment", fault, what)
        shutil.rmtree(halted)
    rig.end()


@pytest.mark.parametrize("command", WRITERS)
def test_full_disk(rig: Any, command: str) -> None:
    """No space is left from the moment when a file is about to be written: one line; then there is space again."""
    if command not in QUICK:
        rig.only_in_full()
    moments = chosen(rig, command)
    place = rig.begin(command)
    for what, (first, _) in moments.items():
        [(code, said, _)] = rig.strike(command, first | {"how": "full"}, at=place)
        rig.note(command, "full" if [*stays(rig, command, [what])] else "full, of what goes", [what], code, said)
        if code == rig.code(command):
            place = rig.begin(command)
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
    other = place.rename(place.with_name("another place"))
    [(code, said, _)] = rig.strike(command, at=other)
    other.rename(place)
    rig.note(command, "move", ["the folder"], code, said.replace(f"{other}", f"{place}"))
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
    record = json.loads((place / name).read_text())
    record |= {"versions": {**record["versions"], "torch": "0.1"}} if "versions" in record else {"format": "medlt 0"}
    record.pop("checksum", None)
    (place / name).write_text(json.dumps(with_checksum(record) if name.endswith("run.json") else record))
    rig.again(command, "versions", what)
    rig.end()
