"""What is finished, on disk as it happens: one JSON line a file, appended; a line cut by a kill is not read."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

from medlt.data.convert.one import Outcome
from medlt.data.convert.scan import Found
from medlt.files import write_json
from medlt.types import InputError

_FSYNC_S = 5.0
_AGAIN = ("missing", "write_failed", "timeout", "crashed", "out_of_memory", "codec_missing")


class Journal:
    """OUT/.convert: `settings.json`, what the run was asked to do, and `files.jsonl`, what came of each file.

    It knows the paths of the source and the tags of the patients, so it is readable by its owner only.
    """

    def __init__(self, out: Path, told: dict[str, Any]) -> None:
        self._out, self._told = Path(out), told
        self.folder = self._out / ".convert"
        self.path = self.folder / "files.jsonl"
        self.finished: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        """Make or resume; `finished` is then {relative: (size, changed)} of what is done and still there.

        Raises InputError if the folder was made with other settings, or is not ours.
        """
        told = json.loads(json.dumps(self._told))
        settings = self.folder / "settings.json"
        if settings.is_file():
            self._refuse_other(json.loads(settings.read_text()), told)
        elif self._out.exists() and (not self._out.is_dir() or any(self._out.iterdir())):
            raise InputError(f"{self._out}: not empty and not begun by 'medlt convert'; choose another OUT")
        else:
            self.folder.mkdir(parents=True, mode=0o700)
            write_json(settings, told)
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            self._handle.close()
            self._reader.close()

    def _open(self) -> None:
        self._handle = open(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
        _lock(self._handle, self._out)
        self._reader = self.path.open("rb")
        self._synced = time.monotonic()
        if self._torn():
            self._handle.write(b"\n")
        last = self.last()
        for at, line in self.lines():
            if last[line["file"]] == at and self._stands(line):
                self.finished[line["file"]] = (line["size"], line["changed"])

    def _torn(self) -> bool:
        """Whether a kill cut the last line; the next one must not be glued to it."""
        if not self._reader.seek(0, os.SEEK_END):
            return False
        self._reader.seek(-1, os.SEEK_END)
        return self._reader.read() != b"\n"

    def add(self, found: Found, outcome: Outcome) -> None:
        """Append what came of a file."""
        line = {"file": found.relative, "size": found.size, "changed": found.changed, "reason": outcome.reason}
        self._handle.write(json.dumps(line | {"row": outcome.row}).encode() + b"\n")
        if time.monotonic() - self._synced > _FSYNC_S:
            self.flush()

    def flush(self) -> None:
        """Onto the disk."""
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._synced = time.monotonic()

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(where it begins, line) of every whole line, in the order they were written."""
        with self.path.open("rb") as handle:
            at = 0
            for raw in handle:
                with suppress(ValueError):
                    yield at, json.loads(raw)
                at += len(raw)

    def last(self) -> dict[str, int]:
        """{file: where its last line begins}; of a file that was done again, that one counts."""
        return {line["file"]: at for at, line in self.lines()}

    def line(self, at: int) -> dict[str, Any]:
        """The line that begins there."""
        self._reader.seek(at)
        return dict(json.loads(self._reader.readline()))

    def _stands(self, line: dict[str, Any]) -> bool:
        """Whether a line's output is still whole; failures that another try may mend are tried again."""
        if line["reason"]:
            return line["reason"] not in _AGAIN
        try:
            return bool((self._out / line["row"]["path"]).stat().st_size == line["row"]["bytes"])
        except OSError:
            return False

    def _refuse_other(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        if changed:
            name = changed[0]
            told = f"{name} {before.get(name)!r}, now {now.get(name)!r}"
            raise InputError(f"{self._out}: begun with {told}; give the same settings or choose another OUT")


def _lock(handle: BinaryIO, out: Path) -> None:
    """One run at a time in a folder, as far as the system can lock; a lock goes with its process."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise InputError(
            f"{out}: another 'medlt convert' is at work here; wait for it, or choose another OUT"
        ) from None
