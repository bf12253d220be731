"""The journal of a conversion: one JSON line per finished file, appended at once.

Each line has a checksum, so that an incomplete or damaged line is ignored, and each output has one in its line, so that
a damaged output is made again.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Self

from medlt.data.convert.one import Outcome
from medlt.data.convert.places import Places
from medlt.data.convert.scan import FileEntry
from medlt.files import digest, no_follow, set_aside, sha256, write_json
from medlt.types import InputError

_FSYNC_S = 5.0
_READERS, _AT_ONCE = 4, 1000  # threads that read outputs, and outputs in one go
_SETTINGS, _SUM = "settings.json", "checksum"
_AGAIN = ("missing", "write_failed", "timeout", "crashed", "out_of_memory", "codec_missing")
log = logging.getLogger(__name__)


class Journal:
    """The state of a run: `settings.json`, its settings, and `files.jsonl`, the outcome of each file.

    It holds source paths and patients' tags, so only its owner can read it.
    """

    def __init__(self, places: Places, settings: dict[str, Any]) -> None:
        self._places, self._out, self._settings = places, places.out, settings
        self.folder = places.state
        self.path = self.folder / "files.jsonl"
        self.finished: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        """Create or resume the journal; set `finished` to {relative: (size, changed)} of files that are done and exist.

        Raises InputError if the folder was made with other settings, or not by a conversion.
        """
        settings = json.loads(json.dumps(self._settings))
        own, other = self.folder, Places(self._out, not self._places.deidentified).state
        for file in (own / _SETTINGS, other / _SETTINGS):
            if file.is_file():
                self._refuse_other(file, settings)
        if not (file := own / _SETTINGS).is_file():
            if self._holds_others():
                raise InputError(f"{self._out}: not empty and not begun by 'medlt convert'; choose another OUT")
            self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if self._places.deidentified else 0o777)
            self.folder.mkdir(exist_ok=True, mode=0o700)
            write_json(file, settings)
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            self._reader.close()
            self._handle.close()  # raises on a full disk

    def _open(self) -> None:
        self._handle = open(no_follow(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
        _lock(self._handle, self._out)
        self._reader = self.path.open("rb")
        self._synced = time.monotonic()
        if self._torn():
            self._handle.write(b"\n")
        last = self.last()
        lines = (line for at, line in self.lines() if last[line["file"]] == at)
        with ThreadPoolExecutor(_READERS, "outputs") as pool:
            while some := list(islice(lines, _AT_ONCE)):
                valid = zip(some, pool.map(self._is_valid, some), strict=True)
                self.finished.update({line["file"]: (line["size"], line["changed"]) for line, ok in valid if ok})

    def _holds_others(self) -> bool:
        """Return whether the output holds more than what a conversion leaves that was killed before its settings."""
        if not self._out.is_dir():
            return self._out.exists() or self._out.is_symlink()
        own, left = (self.folder, self.folder.parent), f".{_SETTINGS}."
        inside = (path for folder in {self._out, *own} if folder.is_dir() for path in folder.iterdir())
        return any(path.is_symlink() or (path not in own and not path.name.startswith(left)) for path in inside)

    def _torn(self) -> bool:
        """Return whether the last line is incomplete because a process was killed; the next must start a new line."""
        if not self._reader.seek(0, os.SEEK_END):
            return False
        self._reader.seek(-1, os.SEEK_END)
        return self._reader.read() != b"\n"

    def add(self, entry: FileEntry, outcome: Outcome) -> None:
        """Append the outcome of a file."""
        line = {"file": entry.relative, "size": entry.size, "changed": entry.changed} | vars(outcome)
        self._handle.write(json.dumps(line | {_SUM: digest(line)}).encode() + b"\n")
        if time.monotonic() - self._synced > _FSYNC_S:
            self.flush()

    def flush(self) -> None:
        """Write all lines to the disk."""
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._synced = time.monotonic()

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (offset, line) of every whole line, in the order of writing."""
        with self.path.open("rb") as handle:
            at = 0
            for raw in handle:
                with suppress(ValueError, TypeError, AttributeError):
                    line = json.loads(raw)
                    if line.pop(_SUM, "") == digest(line):
                        yield at, line
                at += len(raw)

    def last(self) -> dict[str, int]:
        """Return {file: offset of its last line}; the last line of a file counts."""
        return {line["file"]: at for at, line in self.lines()}

    def line(self, at: int) -> dict[str, Any]:
        """Return the line at this offset."""
        self._reader.seek(at)
        return dict(json.loads(self._reader.readline()))

    def _is_valid(self, line: dict[str, Any]) -> bool:
        """Return whether a line's output is still what was written; failures that may pass are tried again."""
        if line["reason"] and line["reason"] != "quarantined":
            return line["reason"] not in _AGAIN
        return all([self._sound(path, checksum) for path, checksum in self._outputs(line)])

    def _outputs(self, line: dict[str, Any]) -> Iterator[tuple[Path, str]]:
        """Yield the outputs of a line with their SHA-256."""
        places, owned = self._places, line["owned"]
        if places.deidentified:
            yield places.out / owned["file"], owned["sha256"]
        yield from ((places.release / row["path"], row["sha256_out"]) for row in line["rows"])

    def _sound(self, path: Path, checksum: str) -> bool:
        """Return whether an output has its checksum. One with another, damaged or edited, is moved to superseded/."""
        with suppress(OSError):
            if sha256(path) == checksum:
                return True
            if aside := set_aside(path, self._places.private):
                log.warning("%s has other bytes than were written; it was moved to %s and is made again", path, aside)
        return False

    def _refuse_other(self, file: Path, now: dict[str, Any]) -> None:
        """Raise InputError if the settings in `file` are others, or cannot be read."""
        try:
            before = dict(json.loads(file.read_text()))
        except (ValueError, TypeError):
            raise InputError(f"{file}: damaged; restore it, or choose another OUT") from None
        changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        if changed:
            name = changed[0]
            values = f"{name} {before.get(name)!r}, now {now.get(name)!r}"
            raise InputError(f"{self._out}: begun with {values}; give the same settings or choose another OUT")


def _lock(handle: BinaryIO, out: Path) -> None:
    """Lock the journal for this process, where the system can; the lock ends with the process."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise InputError(
            f"{out}: another 'medlt convert' is working here; wait until it ends, or choose another OUT"
        ) from None
