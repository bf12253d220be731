"""What is finished, on disk as it happens: one JSON line a file, appended; a line cut by a kill is not read."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from medlt.data.convert.one import Outcome
from medlt.data.convert.scan import Found
from medlt.files import write_json
from medlt.types import InputError

_FSYNC_S = 5.0


class Journal:
    """OUT/.convert: `settings.json`, what the run was asked to do, and `files.jsonl`, what came of each file.

    It knows the paths of the source and the tags of the patients, so it is readable by its owner only.
    """

    def __init__(self, out: Path, told: dict[str, Any]) -> None:
        self._out, self._told = Path(out), told
        self.folder = self._out / ".convert"
        self.path = self.folder / "files.jsonl"
        self._synced = time.monotonic()
        self._reader: BinaryIO | None = None

    def open(self) -> dict[str, tuple[int, int]]:
        """Make or resume; {relative: (size, changed)} of what is finished and still there.

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
        done = {line["file"]: (line["size"], line["changed"]) for line in self._finished()}
        self._handle = open(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
        if self._torn():
            self._handle.write(b"\n")
        return done

    def _torn(self) -> bool:
        """Whether a kill cut the last line; the next one must not be glued to it."""
        with self.path.open("rb") as handle:
            if not handle.seek(0, os.SEEK_END):
                return False
            handle.seek(-1, os.SEEK_END)
            return handle.read() != b"\n"

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

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self._handle.close()

    def done(self) -> None:
        """Let go of the file that `line` reads."""
        if self._reader is not None:
            self._reader.close()

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(where it begins, line) of every whole line, in the order they were written."""
        if not self.path.exists():
            return
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
        if self._reader is None:
            self._reader = self.path.open("rb")
        self._reader.seek(at)
        return dict(json.loads(self._reader.readline()))

    def _finished(self) -> Iterator[dict[str, Any]]:
        last = self.last()
        return (line for at, line in self.lines() if last[line["file"]] == at and self._stands(line))

    def _stands(self, line: dict[str, Any]) -> bool:
        """Whether a line's output is still whole; failures that another try may mend are tried again."""
        if line["reason"]:
            return line["reason"] not in ("missing", "write_failed", "timeout", "crashed", "out_of_memory")
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
