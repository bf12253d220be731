"""The conversion of a folder: scan, worker processes, journal, tables. A second call resumes the first."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2

from medlt.data.convert.archives import Member, with_members
from medlt.data.convert.filters import UNLABELLED
from medlt.data.convert.journal import Journal
from medlt.data.convert.one import FULL, Outcome, Stopped, convert_one
from medlt.data.convert.places import Places
from medlt.data.convert.preview import write_preview
from medlt.data.convert.reasons import kind_of_reason
from medlt.data.convert.scan import FileEntry, scan
from medlt.data.convert.settings import ConversionSettings, versions
from medlt.data.convert.tables import write_tables
from medlt.engine import EngineChoice, run_tasks
from medlt.folders import MOST_FILES, digits_for
from medlt.remote import AnyFile, RemoteFile, as_file
from medlt.types import InputError, Progress


def convert(
    source: str | AnyFile,
    out: Path,
    settings: ConversionSettings,
    *,
    workers: int = 0,
    engine: EngineChoice = EngineChoice(),  # noqa: B008
    progress: Progress | None = None,
    not_retrieved: Collection[str] = (),
    limit: int = MOST_FILES,
) -> dict[str, Any]:
    """Convert every file at or below `source`, a folder, file, zip or URL, into the folder `out`; return the counts.

    Writes images/, manifest.parquet, failures.csv, duplicates.csv, objects.csv, and sources.csv, which only its owner
    can read. With a de-identification profile images/, dicom/ and the manifest are in release/, and what leads back to
    the source in private/ (see `Places`). The bytes depend on neither `engine` nor `workers` (0: one per core). A bad
    file becomes a line of failures.csv, and so does a name in `not_retrieved`, which a server did not deliver. The
    images of `limit` files and more are in subfolders (`medlt.folders`), as are the frames of each file of several.
    Raises InputError if `source` does not exist or is empty, `out` belongs to other settings or is inside `source`, or
    the disk is full; the same call then resumes.
    """
    source, out = as_file(source), Path(out)
    root, entries = _listed(source, out, settings)
    if not entries and not not_retrieved:
        raise InputError(f"{source.absolute()}: the folder is empty; check the path")
    report, engine = progress or (lambda *_: None), replace(engine, workers=workers or _cores())
    digits = digits_for(len(entries), limit)
    if settings.dry_run:
        return _dry(_outcomes(entries, root, out, settings, engine, report))
    places = Places(out, settings.profile is not None, digits)
    with _output_errors(out), Journal(places, settings.summary()) as journal:
        places.make()
        todo = [f for f in entries if journal.finished.get(f.relative) != (f.size, f.changed)]
        for file, outcome in _outcomes(todo, root, out, settings, engine, report, digits):
            journal.add(file, outcome)
        journal.flush()
        counts = write_tables(places, journal, settings.key, versions(), settings.tags, not_retrieved)
        if settings.preview:
            write_preview(places)
        return counts


def _listed(source: AnyFile, out: Path, settings: ConversionSettings) -> tuple[AnyFile, list[FileEntry]]:
    """Return the folder that names start from, and all files, also those in zips."""
    if isinstance(source, RemoteFile):
        files = list(scan(source))
        single = [source.name] == [file.relative for file in files] and source.is_file()
        root: AnyFile = RemoteFile(source.url.rpartition("/")[0]) if single else source
    else:
        _refuse_inside(source, out)
        root = source.parent if source.is_file() else source
        files = list(scan(source, follow=settings.follow_links, out=out))
    return root, [entry for file in files for entry in with_members(root, file)]


@contextmanager
def _output_errors(out: Path) -> Iterator[None]:
    """Raise InputError, in one line, if the output cannot be written."""
    try:
        yield
    except Stopped as error:
        raise InputError(f"{out}: {error}; free some space and repeat the command to resume") from None
    except OSError as error:
        reason = error.strerror or "cannot be written"
        if error.errno in FULL:
            raise InputError(f"{out}: {reason}; free some space and repeat the command to resume") from None
        raise InputError(f"{out}: {reason}; check the folder and its permissions") from None


def _refuse_inside(source: Path, out: Path) -> None:
    """Raise InputError if the output is inside the source: the next run would convert it."""
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{out}: is inside the source, which is never written to; choose an OUT outside {source}")


def _outcomes(
    files: list[FileEntry],
    root: AnyFile,
    out: Path,
    settings: ConversionSettings,
    engine: EngineChoice,
    report: Progress,
    digits: int = 0,
) -> Iterator[tuple[FileEntry, Outcome]]:
    """Yield (file, outcome) in the order of completion; a file that is not to be opened does not reach a worker."""
    report("files", 0, len(files))
    plain = [f for f in files if not f.reason]
    done = 0
    for file in files:
        if file.reason:
            done += 1
            yield file, Outcome(file.reason)
    if not plain:
        return
    engine = replace(engine, workers=min(engine.workers, len(plain)))
    args = (root.absolute(), out.absolute(), settings, digits)  # a worker of a cluster has another working folder
    for file, outcome in run_tasks(engine, _worker, args, plain, _lost, timeout_s=settings.timeout_s):
        done += 1
        report("files", done, len(files))
        yield file, outcome


def _cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lost(file: FileEntry, how: str) -> Outcome:
    return Outcome(how)


def _worker(root: AnyFile, out: Path, settings: ConversionSettings, digits: int) -> Callable[[FileEntry], Outcome]:
    """Set up a worker: one thread, no logs, a memory limit; return its function."""
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)  # libraries log invalid values, and these may be names
    _cap_memory(settings.memory_mb)

    def work(file: FileEntry) -> Outcome:
        place = Member(root / file.archive, file.member) if file.archive else root / file.relative
        return convert_one(place, out, settings, digits)

    return work


def _cap_memory(megabytes: int) -> None:
    """Limit the address space, so that a large file fails alone. Windows has no such limit."""
    if megabytes and sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = megabytes << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))


def _dry(outcomes: Iterator[tuple[FileEntry, Outcome]]) -> dict[str, Any]:
    """Return the counts of a dry run, from headers alone; `converted` counts the files that a run would try."""
    reasons: Counter[str] = Counter()
    unlabelled = 0
    kinds: dict[str, Counter[str]] = {"transfer_syntax": Counter(), "modality": Counter()}
    for _, outcome in outcomes:
        if outcome.reason:
            reasons[outcome.reason] += 1
        for row in outcome.rows:
            unlabelled += UNLABELLED in row["notes"]
            for name, counter in kinds.items():
                counter[str(row[name])] += 1
    return {
        "converted": sum(kinds["modality"].values()),
        "skipped": sum(n for code, n in reasons.items() if kind_of_reason(code) == "skipped"),
        "failed": sum(n for code, n in reasons.items() if kind_of_reason(code) == "failed"),
        "reasons": dict(sorted(reasons.items())),
        "unlabelled_body_part": unlabelled,
        "transfer_syntaxes": dict(sorted(kinds["transfer_syntax"].items())),
        "modalities": dict(sorted(kinds["modality"].items())),
    }
