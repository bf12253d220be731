"""The run folder: one config, one process at a time, and the record run.json.

Every stage writes artifacts to the store or files to the folder, and reuses them when it runs again. So a killed run
repeats no finished stage, and ends with the same bytes as an uninterrupted one. run.json is a record for people and for
the report; no stage reads another stage's result from it. Only run.json and run.log hold times, so only they differ
between two equal runs.
"""

from __future__ import annotations

import logging
import os
import resource
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

from medlt import config as configs
from medlt import processes
from medlt.files import REAL_ROWS, locked, require_no_links, write_json, write_text
from medlt.progress import ProgressCallback, RunLog
from medlt.recipes._sealed import SEAL, read_record, require_sealed, seal
from medlt.records import with_checksum
from medlt.store import Artifact, Store
from medlt.training.runtime import Runtime, silent
from medlt.types import InputError, Progress
from medlt.versions import versions
from medlt.yaml_text import read_yaml

C = TypeVar("C", configs.RunConfig, configs.EvaluateConfig)

CHANGEABLE = ("arms", "sources", "evaluation", "evaluation_classifier")
"""Sections of an experiment's config that may change between two calls."""
LOCK = ".lock"
UNRECORDED = ("images", "shard")
"""Kinds of artifacts that are not listed in run.json, because a run has many of them."""
log = logging.getLogger(__name__)


def peak_rss_mb() -> float:
    """Return the peak resident set size of this process, MB (getrusage returns kB on Linux, bytes on macOS)."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def runtime_of(config: configs.RunConfig | configs.EvaluateConfig, progress: Progress) -> Runtime:
    """Return the runtime of a config. Raises InputError if its device does not exist."""
    precision = config.precision if isinstance(config, configs.RunConfig) else "fp32"
    runtime = Runtime(config.device, precision, config.threads, config.seed, progress)
    runtime.torch_device("this run")
    return runtime


@dataclass(frozen=True)
class RunFolder(Generic[C]):
    """An open run folder; read-only if `writable` is False."""

    folder: Path
    config: C
    runtime: Runtime
    store: Store
    writable: bool = True

    def path(self, *parts: str) -> Path:
        """Return a path inside the folder."""
        return self.folder.joinpath(*parts)

    def summary(self) -> dict[str, Any]:
        """Return the content of run.json. Raises InputError if it is damaged."""
        return read_record(self.folder)

    def record(self, **sections: Any) -> None:
        """Merge sections into run.json, one level deep."""
        if not self.writable:
            return
        summary = self.summary()
        for name, value in sections.items():
            summary[name] = {**summary.get(name, {}), **value} if isinstance(value, dict) else value
        summary["peak_rss_mb"] = max(peak_rss_mb(), summary.get("peak_rss_mb", 0.0))
        write_json(self.path("run.json"), with_checksum(summary))

    @property
    def progress(self) -> ProgressCallback:
        """The progress of the run with stages and notes: its log if that is open, else one that ignores them."""
        progress = self.runtime.progress
        return progress if isinstance(progress, ProgressCallback) else ProgressCallback()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Report and time a stage, and record the artifacts that it used, with the versions that made them.

        The seconds of interrupted calls are added up.
        """
        start, before = time.perf_counter(), self.summary().get("seconds", {}).get(name, 0.0)
        known = len(self.store.used)
        try:
            with self.progress.stage(name):
                yield
        finally:
            used = {
                f"{one.kind}/{one.digest}": dict(one.versions)
                for one in self.store.used[known:]
                if not one.kind.startswith(UNRECORDED)
            }
            seconds = {name: round(before + time.perf_counter() - start, 2)}
            self.record(seconds=seconds, **({"artifacts": used} if used else {}))
            self._book(self.store.used[known:])

    def _book(self, made: Sequence[Artifact]) -> None:
        """Write trainings into the budget book of the collection. An ordinary run goes on without it, with a warning.

        Raises InputError in a private run if the book cannot be written.
        """
        from medlt.data.manifest import Manifest
        from medlt.privacy.book import MODELS, add_to_book, book_place
        from medlt.privacy.provenance import given_weights

        config, rows = self.config, self.path(REAL_ROWS.as_posix())
        if not (self.writable and rows.is_file()):
            return
        own = config if isinstance(config, configs.RunConfig) else None
        place, made = book_place(config, self.folder), [one for one in made if one.kind in MODELS]
        if place is None or not made:
            return
        account = self.summary().get("account") or secrets.token_hex(8)
        patients = Manifest.read(rows).split("train").rows["patient_id"]
        try:
            add_to_book(place, account, patients, made, given_weights(own).values() if own else ())
        except InputError as error:
            if own is not None and own.privacy is not None:
                raise
            log.warning("%s; a private run on the same patients will not know of this one", error)
        else:
            self.record(account=account)


@contextmanager
def opened(config: C, progress: Progress, several: bool = False) -> Iterator[RunFolder[C]]:
    """Open the run folder of a config, for this process alone, and yield it with the config's number of torch threads.

    several: torchrun may start the recipe. The first process then opens the folder, and the others work beside it
    without files of their own.

    Raises InputError if another process works in the folder, if it was made by another config, if it is not empty and
    not a run folder, or if a private run cannot use its budget book. Call the checks of `_checks` first.
    """
    if not several and processes.started() > 1:
        raise InputError(f"{processes.started()} processes were started; start one, or train by `medlt train`")
    if processes.first():
        with _opened(config, progress) as run, processes.joined(config.device):
            yield run
    else:
        with processes.joined(config.device), _without_files(config) as run:
            yield run


@contextmanager
def _without_files(config: C) -> Iterator[RunFolder[C]]:
    """Yield the run for a process that is not the first: it shares the store, and its folder is deleted in the end."""
    with tempfile.TemporaryDirectory(prefix="medlt-") as scratch:
        runtime = runtime_of(config, silent)
        store = Store(Path(config.artifacts_dir or Path(config.output_dir) / "artifacts"))
        with runtime.limited():
            yield RunFolder(Path(scratch), config, runtime, store, writable=False)


@contextmanager
def _opened(config: C, progress: Progress) -> Iterator[RunFolder[C]]:
    folder, runtime = Path(config.output_dir), runtime_of(config, progress)
    _require_own(folder)
    _require_book(config)
    with locked(folder / LOCK, str(folder), wait=False):
        text, written = configs.dump(config, folder), folder / "config.yaml"
        if (folder / REAL_ROWS).is_file() and written.is_file():
            _require_same(folder, written.read_text(), text)
        write_text(written, text)
        run = RunFolder(folder, config, runtime, Store(Path(config.artifacts_dir or folder / "artifacts")))
        with logged(run) as run, runtime.limited():
            _record_begin(run)
            yield run
            run.record(**{SEAL: seal(folder)})


@contextmanager
def logged(run: RunFolder[C]) -> Iterator[RunFolder[C]]:
    """Yield the run with its progress, stages and warnings also written to run.log in its folder."""
    with RunLog(run.folder, run.runtime.progress) as log:
        yield replace(run, runtime=replace(run.runtime, progress=log))


def finished(folder: Path, progress: Progress, artifacts_dir: Path | None = None) -> RunFolder[configs.RunConfig]:
    """Open a finished run read-only, wherever its folder is.

    Raises InputError if it is not finished, or if its files are not what it wrote.
    """
    for name in ("config.yaml", "run.json", "manifest.parquet"):
        if not (folder / name).is_file():
            place = folder.absolute()
            raise InputError(f"{place}: is not a finished run: it has no {name}; run `medlt augment` for it first")
    require_sealed(folder)
    return read_only(folder, progress, artifacts_dir)


def read_only(folder: Path, progress: Progress, artifacts_dir: Path | None = None) -> RunFolder[configs.RunConfig]:
    """Open a run folder to read it, wherever it is, while another process may write it."""
    config = configs.load_config(folder / "config.yaml").model_copy(update={"output_dir": folder})
    store = Store(Path(artifacts_dir or config.artifacts_dir or folder / "artifacts"))
    return RunFolder(folder, config, runtime_of(config, progress), store, writable=False)


def _require_own(folder: Path) -> None:
    """Raise InputError for a file, or for a folder that is neither empty nor a run folder."""
    if folder.is_file():
        raise InputError(f"{folder}: is a file; choose another --out")
    others = [path.name for path in folder.iterdir() if path.name != LOCK] if folder.is_dir() else []
    if others and not (folder / "config.yaml").is_file():
        raise InputError(f"{folder}: is not empty and not a run folder; choose another --out")
    if others:
        require_no_links(folder, may_be=("artifacts",))


def _require_book(config: configs.RunConfig | configs.EvaluateConfig) -> None:
    """Raise InputError, before any training, if a private run could not read or write its budget book."""
    from medlt.privacy.book import book_place, read_book

    if not isinstance(config, configs.RunConfig) or config.privacy is None:
        return
    if (place := book_place(config, Path(config.output_dir))) is not None:
        read_book(place)
        home = next(folder for folder in place.parents if folder.exists())
        if not os.access(home, os.W_OK):
            raise InputError(f"{place}: the budget book cannot be written; give another place as budget_book")


def _fixed(text: str, where: Path) -> dict[str, Any]:
    """Return the part of a config's text that may not change between calls. Raises InputError if it is damaged.

    It leaves out the folder, since a run folder may be renamed.
    """
    try:
        tree = dict(read_yaml(text))
    except (InputError, TypeError, ValueError):
        raise InputError(f"{where}/config.yaml: damaged; restore it, or choose another --out") from None
    free = {"output_dir", *configs.WORKING, *(CHANGEABLE if "arms" in tree else ())}
    return {name: value for name, value in tree.items() if name not in free}


def _require_same(folder: Path, before: str, now: str) -> None:
    """Raise InputError, with the first difference, if the folder was made by another config."""
    old, new = (yaml.safe_dump(_fixed(text, folder), sort_keys=False).splitlines() for text in (before, now))
    if old != new:
        pairs = zip(old, new, strict=False)
        changed = next((f"{a.strip()!r} there, {b.strip()!r} now" for a, b in pairs if a != b), "other keys")
        raise InputError(f"{folder}: was made by another config ({changed}); choose another --out, or restore it")


def _record_begin(run: RunFolder[C]) -> None:
    """Record versions, seed and device. Warn of versions that changed, and keep the previous ones on record."""
    summary, now = run.summary(), versions()
    if isinstance(run.config, configs.RunConfig):
        now = {**now, **run.config.plugin_versions}
    before = summary.get("versions", now)
    previous = list(summary.get("previous_versions", []))
    if changed := [
        f"{name} {before.get(name)}, now {value}" for name, value in now.items() if before.get(name) != value
    ]:
        log.warning("%s was started with %s; finished parts are not made again", run.folder, "; ".join(changed))
        previous.append(before)
    run.record(versions=now, seed=run.config.seed, device=run.config.device)
    if previous:
        run.record(previous_versions=previous)
