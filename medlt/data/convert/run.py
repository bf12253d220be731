"""The conversion of a folder: scan, work in processes, journal, tables. Run again, it goes on where it was stopped."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2

from medlt.data.convert.journal import Journal
from medlt.data.convert.one import FULL, Outcome, convert_one
from medlt.data.convert.pool import Pool, Stopped
from medlt.data.convert.reasons import kind_of_reason
from medlt.data.convert.scan import Found, scan
from medlt.data.convert.settings import Settings, versions
from medlt.data.convert.tables import write_tables
from medlt.types import InputError

_FOLDERS = {"images": 0o755, "dicom": 0o755, "quarantine": 0o700}  # its pixels may still hold a name
Report = Callable[[str, int, int], None]


def convert(
    source: Path, out: Path, settings: Settings, *, workers: int = 0, progress: Report | None = None
) -> dict[str, Any]:
    """Convert every file at or below `source` into the folder `out`; what came of them, in numbers.

    `out` gets images/, manifest.parquet, failures.csv, duplicates.csv, and sources.csv for its owner only; with a
    de-identification profile also dicom/ and quarantine/. The bytes do not depend on `workers` (0: one a core). A bad
    file becomes a line of failures.csv. Raises InputError if there is no source or no file in it, `out` belongs to
    other settings or lies inside `source`, or the disk is full; the same call then goes on from there.
    """
    source, out = Path(source), Path(out)
    _refuse_inside(source, out)
    found = list(scan(source))
    if not found:
        raise InputError(f"{source}: the folder is empty; check the path")
    root = source.parent if source.is_file() else source
    report = progress or (lambda *_: None)
    if settings.dry_run:
        return _dry(_outcomes(found, root, out, settings, workers, report))
    with _told_plainly(out), Journal(out, settings.told()) as journal:
        for folder, mode in _FOLDERS.items():
            if folder == "images" or settings.profile:
                (out / folder).mkdir(mode, exist_ok=True)
        for torn in (out / "images").glob(".*.tmp"):  # what a killed worker was writing; no other run is at work
            torn.unlink()
        todo = [f for f in found if journal.finished.get(f.relative) != (f.size, f.changed)]
        for file, outcome in _outcomes(todo, root, out, settings, workers, report):
            journal.add(file, outcome)
        journal.flush()
        return write_tables(out, journal, settings.key, versions())


@contextmanager
def _told_plainly(out: Path) -> Iterator[None]:
    """What the system says of an output that cannot be written, as one line that says how to mend it."""
    try:
        yield
    except Stopped as error:
        raise InputError(f"{out}: {error}; free some space and give the same command to go on") from None
    except OSError as error:
        told = error.strerror or "cannot be written"
        if error.errno in FULL:
            raise InputError(f"{out}: {told}; free some space and give the same command to go on") from None
        raise InputError(f"{out}: {told}; check the folder and its permissions") from None


def _refuse_inside(source: Path, out: Path) -> None:
    """Outputs among the inputs would be converted by the next run."""
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{out}: lies inside the source, which is never written to; choose an OUT outside {source}")


def _outcomes(
    files: list[Found], root: Path, out: Path, settings: Settings, workers: int, report: Report
) -> Iterator[tuple[Found, Outcome]]:
    """(file, outcome) as they come; links and unreadable folders never reach a worker."""
    report("files", 0, len(files))
    plain = [f for f in files if not f.link and f.size >= 0]
    done = 0
    for file in files:
        if file.link or file.size < 0:
            done += 1
            yield file, Outcome("symlink" if file.link else "missing")
    if not plain:
        return
    count = min(workers or _cores(), len(plain))
    with Pool(_worker, (root, out, settings), _lost, workers=count, timeout_s=settings.timeout_s) as pool:
        for file, outcome in pool.run(plain):
            done += 1
            report("files", done, len(files))
            yield file, outcome


def _cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lost(file: Found, how: str) -> Outcome:
    return Outcome(how)


def _worker(root: Path, out: Path, settings: Settings) -> Callable[[Found], Outcome]:
    """Runs in the worker: one thread, quiet, a cap on memory."""
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)  # libraries log what they stumble over, and that may be a name
    _cap_memory(settings.memory_mb)

    return lambda file: convert_one(root / file.relative, out, settings)


def _cap_memory(megabytes: int) -> None:
    """Beyond it an allocation fails, and with it one file, not the machine. Not on Windows, where there is none."""
    if megabytes and sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = megabytes << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))


def _dry(outcomes: Iterator[tuple[Found, Outcome]]) -> dict[str, Any]:
    """What a run would meet, from headers alone; nothing is written, `converted` is what it would try."""
    reasons: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {"transfer_syntax": Counter(), "modality": Counter()}
    for _, outcome in outcomes:
        if outcome.reason:
            reasons[outcome.reason] += 1
        for name, counter in kinds.items():
            if outcome.row:
                counter[str(outcome.row[name])] += 1
    return {
        "converted": sum(kinds["modality"].values()),
        "skipped": sum(n for code, n in reasons.items() if kind_of_reason(code) == "skipped"),
        "failed": sum(n for code, n in reasons.items() if kind_of_reason(code) == "failed"),
        "reasons": dict(sorted(reasons.items())),
        "transfer_syntaxes": dict(sorted(kinds["transfer_syntax"].items())),
        "modalities": dict(sorted(kinds["modality"].items())),
    }
