"""Progress as timestamped lines, for a pipe, a scheduler's log and run.log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

from medlt.progress.callback import ProgressCallback, ending

EVERY = 30.0
"""Seconds of silence after which a line is written."""


@dataclass
class _Count:
    """One counted stage: when it was first reported, with how much done, and where it stands."""

    start: float
    first: int
    done: int
    total: int
    over: bool = False

    @property
    def ended(self) -> bool:
        return self.done >= self.total

    @property
    def holds_others(self) -> bool:
        """Return whether other counts may run inside this one: it was first reported with nothing done."""
        return self.first == 0

    def left(self, now: float) -> float | None:
        """Return the seconds left at the rate so far, or None without a rate."""
        if self.done <= self.first or now <= self.start:
            return None
        return (self.total - self.done) * (now - self.start) / (self.done - self.first)


class Lines(ProgressCallback):
    """Write a timestamped line where a stage starts and ends, and after every 30 s without one.

    `write` receives each line without its line feed. `clock` returns seconds since 1970. Call `tick` about once a
    second, see `ticking`.
    """

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.time, every: float = EVERY
    ) -> None:
        self._write, self._clock, self._every = write, clock, every
        self._lock = threading.RLock()
        self._last = clock()
        self._counts: dict[str, _Count] = {}
        self._stages: list[tuple[str, float]] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` units of `stage` are finished."""
        with self._lock:
            count = self._counts.pop(stage, None)
            fresh = count is None or done < count.done or (count.ended and done < total)
            if count is None or fresh:
                self._close_open()
                count = _Count(self._clock(), done, done, total)
                if not count.ended and not self._named(stage):
                    self._line(f"{stage}: started, {done}/{total}")
            news = fresh or (done, total) != (count.done, count.total)
            self._counts[stage] = count  # the latest is the last
            count.done, count.total, count.over = done, total, False
            if news and count.ended and not self._named(stage):
                self._line(f"{stage}: {done}/{total} done{self._since(count.start)}")
            else:
                self.tick()

    def _close_open(self) -> None:
        """Write the end of counts that stopped early, such as a training that did not improve any more."""
        for name, one in self._counts.items():
            if not (one.ended or one.over or one.holds_others):
                one.over = True
                if not self._named(name):
                    self._line(f"{name}: ended at {one.done}/{one.total}{self._since(one.start)}")

    def begin(self, stage: str) -> None:
        """Report that a stage of a recipe begins."""
        with self._lock:
            self._stages.append((stage, self._clock()))
            self._line(f"{stage}: started")

    def end(self, stage: str, error: BaseException | None = None) -> None:
        """Report that the innermost stage of a recipe ends, and with it the counts inside it."""
        with self._lock:
            _, start = self._stages.pop()
            count = self._counts.pop(stage, None)
            self._close_open()
            self._counts = {name: one for name, one in self._counts.items() if one.start < start}
            of = f", {count.done}/{count.total}" if count else ""
            self._line(f"{stage}: {ending(error)}{self._since(start)}{of}")

    def note(self, text: str) -> None:
        """Write one line."""
        with self._lock:
            self._line(text)

    def tick(self) -> None:
        """Write a line about the work under way if none was written for 30 s."""
        with self._lock:
            if self._clock() - self._last >= self._every and (text := self._under_way()):
                self._line(text)

    def _named(self, stage: str) -> bool:
        """Return whether an open stage of a recipe has this name; its own lines are enough then."""
        return any(name == stage for name, _ in self._stages)

    def _under_way(self) -> str:
        """Return the state of the open counts, the latest first, or else of the stage."""
        now = self._clock()
        open_ = [(name, one) for name, one in reversed(self._counts.items()) if not (one.ended or one.over)]
        parts = [f"{name}: {one.done}/{one.total}{_left(one.left(now))}" for name, one in open_]
        if not parts and self._stages:
            name, start = self._stages[-1]
            parts = [f"{name}: running for {duration(now - start)}"]
        return "; ".join(parts)

    def _since(self, start: float) -> str:
        return f" in {duration(self._clock() - start)}"

    def _line(self, text: str) -> None:
        self._last = self._clock()
        self._write(f"{datetime.fromtimestamp(self._last):%Y-%m-%d %H:%M:%S} {' '.join(text.splitlines())}")


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f", about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """Return seconds as text: 45 s, 12 min, 3 h 05 min."""
    whole = round(max(0.0, seconds))
    if whole < 90:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def ticking(lines: Lines, every: float = 1.0) -> Iterator[None]:
    """Call `lines.tick` every so many seconds from a thread of its own while the block runs."""
    over = threading.Event()

    def work() -> None:
        with suppress(OSError, ValueError):  # a full disk or a closed stream; the work itself reports it
            while not over.wait(every):
                lines.tick()

    thread = threading.Thread(target=work, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
