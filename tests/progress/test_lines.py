"""Progress as lines: a line where a stage starts and ends, one after each 30 s of silence, and the time left."""

import logging
import re
from pathlib import Path

import pytest

from medlt.progress import Lines, ProgressCallback, RunLog, duration

START = 1_700_000_000.0


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class Written:
    """Lines with the seconds at which each was written, and without their timestamps."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.lines: list[tuple[float, str]] = []
        self.progress = Lines(self._write, self.clock)

    def _write(self, line: str) -> None:
        stamp, text = line[:19], line[20:]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", stamp)
        self.lines.append((self.clock.now - START, text))

    def wait(self, seconds: int) -> None:
        """Let time pass, with a tick each second."""
        for _ in range(seconds):
            self.clock.now += 1
            self.progress.tick()

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.lines]


def test_a_count_speaks_every_30_seconds_and_no_more_often() -> None:
    written = Written()
    for done in range(296):  # one unit a second, for five minutes
        written.progress("training", done, 295)
        written.wait(1)
    assert [when for when, _ in written.lines] == [0, *range(30, 295, 30), 295]
    assert written.texts[0] == "training: started, 0/295"
    assert written.texts[-1] == "training: 295/295 done in 5 min"


def test_a_long_stage_that_counts_nothing_speaks_too() -> None:
    written = Written()
    with written.progress.stage("reading"):
        written.wait(95)
    assert written.lines == [
        (0, "reading: started"),
        (30, "reading: running for 30 s"),
        (60, "reading: running for 60 s"),
        (90, "reading: running for 2 min"),
        (95, "reading: finished in 2 min"),
    ]


def test_nothing_is_written_when_nothing_runs() -> None:
    written = Written()
    written.wait(100)
    written.progress("units", 2, 2)
    written.wait(100)
    assert written.texts == ["units: 2/2 done in 0 s"]


@pytest.mark.parametrize("first", [0, 400])
def test_the_time_left_follows_the_rate_of_this_process(first: int) -> None:
    """After a resume at 400 of 1,000 the units of the earlier process do not count as done in no time."""
    written = Written()
    for done in range(first, first + 61, 2):  # two units in four seconds
        written.progress("training", done, 1000)
        written.wait(4)
    left = [(when, text) for when, text in written.lines if "left" in text]
    assert len(left) == 4
    for when, text in left:
        done = int(re.search(r"(\d+)/1000", text)[1])  # type: ignore[index]
        truth = (1000 - done) * 2
        minutes = int(re.search(r"about (\d+) min left", text)[1])  # type: ignore[index]
        assert abs(minutes * 60 - truth) <= 0.1 * truth + 30, (when, text)


def test_no_time_left_is_given_before_there_is_a_rate() -> None:
    written = Written()
    written.progress("training", 0, 1000)
    written.wait(31)
    assert written.texts == ["training: started, 0/1000", "training: 0/1000"]


@pytest.mark.parametrize(
    ("error", "words"),
    [(ValueError("wrong"), "stopped by an error"), (KeyboardInterrupt(), "interrupted"), (None, "finished")],
)
def test_a_stage_says_how_it_ended(error: BaseException | None, words: str) -> None:
    written = Written()

    def work() -> None:
        with written.progress.stage("codec"):
            written.progress("codec", 3, 8)
            written.wait(12)
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    assert written.texts == ["codec: started", f"codec: {words} in 12 s, 3/8"]


def test_a_count_that_stops_early_is_closed() -> None:
    written = Written()
    with written.progress.stage("verifiers"):
        written.progress("fold 1", 5, 400)
        written.wait(10)
        written.progress("fold 2", 1, 400)
    assert written.texts == [
        "verifiers: started",
        "fold 1: started, 5/400",
        "fold 1: ended at 5/400 in 10 s",
        "fold 2: started, 1/400",
        "fold 2: ended at 1/400 in 0 s",
        "verifiers: finished in 10 s",
    ]


def test_run_log_keeps_lines_warnings_and_the_error(tmp_path: Path) -> None:
    clock, seen = Clock(), []

    class Outer(ProgressCallback):
        def end(self, stage: str, error: BaseException | None = None) -> None:
            seen.append((stage, error))

    def work() -> None:
        with RunLog(tmp_path, Outer(), clock) as log, log.stage("data"):
            logging.getLogger("medlt.part").warning("3 files are unreadable")
            logging.getLogger("pydicom").warning("Doe^John")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        work()
    lines = [line[20:] for line in (tmp_path / "run.log").read_text().splitlines()]
    assert re.fullmatch(r"medlt \S+ starts, process \d+", lines[0])
    assert lines[1:] == [
        "data: started",
        "warning: 3 files are unreadable",
        "data: stopped by an error in 0 s",
        "stopped: the disk is full",
    ]
    assert [(stage, type(error)) for stage, error in seen] == [("data", OSError)]
    with RunLog(tmp_path, Outer(), clock):
        pass
    assert (tmp_path / "run.log").read_text().splitlines()[-1].endswith("medlt ends")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-3, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (3540, "59 min"),
        (5400, "1 h 30 min"),
        (11100, "3 h 05 min"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
