"""The journal of a conversion: one JSON line per finished file, appended at once; an incomplete line is ignored."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

from medlt.data.convert.one import Outcome
from medlt.data.convert.places import Places
from medlt.data.convert.scan import FileEntry
from medlt.files import no_follow, write_json
from medlt.types import InputError

_FSYNC_S = 5.0
_AGAIN = ("missing", "write_failed", "timeout", "crashed", "out_of_memory", "codec_missing")


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
        for file in (own / "settings.json", other / "settings.json"):
            if file.is_file():
                self._refuse_other(json.loads(file.read_text()), settings)
        if not (file := own / "settings.json").is_file():
            if self._out.exists() and (not self._out.is_dir() or any(self._out.iterdir())):
                raise InputError(f"{self._out}: not empty and not begun by 'medlt convert'; choose another OUT")
            self.folder.parent.mkdir(parents=True, mode=0o700 if self._places.deidentified else 0o777)
            self.folder.mkdir(mode=0o700)
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
        for at, line in self.lines():
            if last[line["file"]] == at and self._is_valid(line):
                self.finished[line["file"]] = (line["size"], line["changed"])

    def _torn(self) -> bool:
        """Return whether the last line is incomplete because a process was killed; the next must start a new line."""
        if not self._reader.seek(0, os.SEEK_END):
            return False
        self._reader.seek(-1, os.SEEK_END)
        return self._reader.read() != b"\n"

    def add(self, entry: FileEntry, outcome: Outcome) -> None:
        """Append the outcome of a file."""
        line = {"file": entry.relative, "size": entry.size, "changed": entry.changed}
        self._handle.write(json.dumps(line | vars(outcome)).encode() + b"\n")
        if time.monotonic() - self._synced > _FSYNC_S:
            self.flush()

    def flush(self) -> None:
        """Write all lines to the disk."""
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._synced = time.monotonic()

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (offset, line) of every complete line, in the order of writing."""
        with self.path.open("rb") as handle:
            at = 0
            for raw in handle:
                with suppress(ValueError):
                    yield at, json.loads(raw)
                at += len(raw)

    def last(self) -> dict[str, int]:
        """Return {file: offset of its last line}; the last line of a file counts."""
        return {line["file"]: at for at, line in self.lines()}

    def line(self, at: int) -> dict[str, Any]:
        """Return the line at this offset."""
        self._reader.seek(at)
        return dict(json.loads(self._reader.readline()))

    def _is_valid(self, line: dict[str, Any]) -> bool:
        """Return whether a line's output is still complete; failures that a second try may fix are tried again."""
        reason, places = line["reason"], self._places
        if reason and reason != "quarantined":
            return reason not in _AGAIN
        if places.deidentified and not (places.out / line["owned"]["file"]).is_file():
            return False
        try:
            return bool(reason) or all((places.release / r["path"]).stat().st_size == r["bytes"] for r in line["rows"])
        except OSError:
            return False

    def _refuse_other(self, before: dict[str, Any], now: dict[str, Any]) -> None:
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
