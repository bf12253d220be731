"""run.log: the progress of a run and the warnings it gave, in its folder."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from medlt._version import __version__
from medlt.files import no_follow
from medlt.progress.callback import ProgressCallback
from medlt.progress.lines import Lines, ticking
from medlt.types import InputError, Progress

NAME = "run.log"
PRIVATE_LOGGERS = ("pydicom",)
"""Their messages quote values of DICOM tags, so run.log does not hold them."""


class RunLog(ProgressCallback):
    """Append progress, stages, notes and the warnings of the logging module to a run folder's run.log.

    `outer` receives the same: a ProgressCallback all of it, a plain callable the counts alone. Open it with `with`; the
    folder must exist.
    """

    def __init__(self, folder: Path, outer: Progress, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(folder) / NAME
        self._outer = outer
        self._around = outer if isinstance(outer, ProgressCallback) else ProgressCallback()
        self._lines = Lines(self._append, clock)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._file = self._open.enter_context(self._appended())
        self._open.enter_context(_logging_to(self._lines.note))
        self._open.enter_context(ticking(self._lines))
        self._lines.note(f"medlt {__version__} starts, process {os.getpid()}")
        return self

    def _appended(self) -> TextIO:
        """Return run.log, open for more lines. Raises InputError for a link."""
        try:
            return open(self.path, "a", encoding="utf-8", opener=no_follow)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise InputError(f"{self.path.absolute()}: is a link; move it away, and run again") from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a full disk must not hide the error that ended the run
            self._lines.note("medlt ends" if error is None else f"stopped: {str(error) or type(error).__name__}")
        self._open.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` units of `stage` are finished."""
        self._lines(stage, done, total)
        self._outer(stage, done, total)

    def begin(self, stage: str) -> None:
        """Report that a stage of a recipe begins."""
        self._lines.begin(stage)
        self._around.begin(stage)

    def end(self, stage: str, error: BaseException | None = None) -> None:
        """Report that the innermost stage of a recipe ends."""
        self._lines.end(stage, error)
        self._around.end(stage, error)

    def note(self, text: str) -> None:
        """Report one line."""
        self._lines.note(text)
        self._around.note(text)

    def _append(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()


class _Handler(logging.Handler):
    """Pass warnings to a function, except those of loggers that may quote a patient's data."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._to = write

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.split(".")[0] not in PRIVATE_LOGGERS:
            with suppress(OSError):
                self._to(f"{record.levelname.lower()}: {record.getMessage()}")


@contextmanager
def _logging_to(write: Callable[[str], None]) -> Iterator[None]:
    """Pass the warnings of the block to `write`, and to stderr too if logging is not configured."""
    root = logging.getLogger()
    added: list[logging.Handler] = [_Handler(write)]
    if not root.handlers and logging.lastResort is not None:
        added.append(logging.lastResort)
    for handler in added:
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in added:
            root.removeHandler(handler)
