"""The artifact store: trained networks and caches are stored under a digest of their inputs and settings.

    ROOT/KIND/DIGEST/             the files of one artifact, and artifact.json, which describes it
    ROOT/KIND/DIGEST.lock         held by the process that builds it; other processes wait
    ROOT/KIND/DIGEST.work/        where it is built; if the process is killed, the next one continues there
    ROOT/KIND/DIGEST.damaged-N/   an artifact whose checksums failed, moved aside

A kind of MANY artifacts has subfolders (`medlt.folders`): ROOT/KIND/3f/DIGEST/ and so on.
An artifact is built in its work folder under a lock, its files are hashed, and the folder is renamed into place, so it
is complete or absent. Each file is compared with its checksum when the artifact is opened. The key holds everything
that determines the contents (pixels, labels, uids, settings, the format number of the code), by value or by digest.
Package versions are recorded, and are not part of the key.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from medlt.files import digest, digest_file, locked, write_json
from medlt.folders import GROWING, require_no_link, subfolder
from medlt.keys import plain_key
from medlt.processes import Build, made_by_first
from medlt.types import InputError
from medlt.versions import versions

RECORD = "artifact.json"
BEGUN = ".versions.json"
NO_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}
MANY = ("shards", "images")
"""First words of the kinds that grow with the number of images."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder, the digest of its key, and the versions of the packages that built it."""

    kind: str
    folder: Path
    digest: str
    versions: Mapping[str, str]
    contents: str
    """Digest of the files' bytes; equal for equal artifacts with different keys."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Name of each file -> `medlt.files.digest_file` of its bytes."""
    key: Mapping[str, Any] = field(default_factory=dict)
    """Everything that determines the contents, as JSON restores it."""

    def path(self, name: str) -> Path:
        """Return the path of one of its files."""
        return self.folder / name


@dataclass(frozen=True)
class Store:
    """The artifacts below `root`. Several runs and processes may share one store."""

    root: Path
    used: list[Artifact] = field(default_factory=list, repr=False, compare=False)
    """The artifacts that were built or opened, in the order of the calls, for the record of a run."""
    _verified: dict[Path, str] = field(default_factory=dict, repr=False, compare=False)
    _others: set[str] = field(default_factory=set, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(os.path.abspath(self.root)))

    def place(self, kind: str, key: Mapping[str, Any]) -> Path:
        """Return the folder of the artifact with this key, whether it exists or not.

        Raises TypeError for a key that holds anything but numbers, text, None, and lists, mappings and data classes of
        them: the printed form of a tensor or a path does not identify its contents.
        """
        return self._named(kind, digest(plain_key(key)))

    def _require_no_link(self, kind: str, folder: Path) -> None:
        require_no_link(self.root / kind, [(folder / RECORD).relative_to(self.root / kind).as_posix()])

    def _named(self, kind: str, name: str) -> Path:
        """Return the folder of the artifact with this digest."""
        return self.root / kind / f"{subfolder(name, _digits(kind))}{name}"

    def find(self, kind: str, key: Mapping[str, Any]) -> Artifact | None:
        """Return the artifact with this key, or None. Its files are compared with their checksums.

        A damaged artifact is moved aside with a warning that names the file; the result is then None.
        """
        return self.open(kind, self.place(kind, key))

    def folders(self, kind: str) -> list[Path]:
        """Return the folders of all artifacts of a kind, without verifying their checksums (see `open`)."""
        pattern = f"*/*/{RECORD}" if _digits(kind) else f"*/{RECORD}"
        folders = (path.parent for path in (self.root / kind).glob(pattern))
        return sorted(folder for folder in folders if "." not in folder.name)

    def make(
        self, kind: str, key: Mapping[str, Any], build: Build, *, work: Mapping[str, Any] | None = None,
        joint: bool = False,
    ) -> Artifact:  # fmt: skip
        """Return the artifact with this key; call `build` under a lock if it does not exist.

        `build` receives the work folder and writes the files of the artifact there. Names that begin with a dot, and
        the folder `checkpoint`, are not part of the artifact. `work` is the key of a work folder that several artifacts
        share and that is kept, for trainings that continue one another. joint: see `processes.made_by_first`. Raises
        InputError if the store cannot be written; existing artifacts then stay.
        """
        finished = partial(self._finished, kind, self.place(kind, key))
        return self._record(made_by_first(build, partial(self._lead, kind, key, work), finished, joint))

    def _finished(self, kind: str, place: Path) -> Artifact | None:
        return existing if isinstance(existing := self._read(kind, place), Artifact) else None

    def _lead(self, kind: str, key: Mapping[str, Any], work: Mapping[str, Any] | None, build: Build) -> Artifact:
        place = self.place(kind, key)
        if (existing := self._finished(kind, place)) is not None:
            if work is None:
                _remove_leftover_work(kind, place)
            return existing
        self._require_no_link(kind, place)
        with locked(place.with_suffix(".lock"), f"the {kind} {place.name}"):
            if (artifact := self._open(kind, place)) is not None:
                return artifact
            folder = self.place(kind, work if work is not None else key).with_suffix(".work")
            with locked(folder.with_suffix(".work.lock"), f"the {kind} {place.name}"), _storage_errors(folder):
                self._require_no_link(kind, folder)
                folder.mkdir(parents=True, exist_ok=True)
                begun = self._begin(kind, folder)
                build(folder)
                self._publish(kind, key, folder, place, begun, keep=work is not None)
            artifact = self._open(kind, place)
        if artifact is None:
            raise InputError(f"{place}: the files differ from what was written; check the disk, and run again")
        return artifact

    def _record(self, artifact: Artifact) -> Artifact:
        self.used.append(artifact)
        return artifact

    def open(self, kind: str, place: Path) -> Artifact | None:
        """Return the artifact in this folder, verified as by `find`, or None."""
        if not isinstance(result := self._read(kind, place), str):
            return result
        with locked(place.with_suffix(".lock"), f"the {kind} {place.name}"):
            return self._open(kind, place)  # another process may have built it again meanwhile

    def examine(self, kind: str, name: str) -> Artifact | str | None:
        """Return the artifact with this digest, the name of its first damaged file, or None if it is missing.

        Nothing is moved, locked or written, so that a folder can be examined that nobody may change.
        """
        return self._read(kind, self._named(kind, name))

    def _begin(self, kind: str, folder: Path) -> dict[str, str]:
        """Return the versions this work folder was begun with; warn if they differ from the installed ones."""
        begun: dict[str, str] = {}
        with suppress(OSError, ValueError):
            begun = dict(json.loads((folder / BEGUN).read_text()))
        if not begun:
            write_json(folder / BEGUN, begun := versions())
        self._warn_versions(f"the {kind} {folder.stem} was begun", begun)
        return begun

    def _warn_versions(self, what: str, made_by: Mapping[str, str]) -> None:
        """Warn, once per set of versions, that the versions of an artifact differ from the installed ones."""
        now = versions()
        other = [name for name in sorted(made_by) if now.get(name) != made_by[name]]
        changes = ", ".join(f"{name} {made_by[name]} (now {now.get(name, 'absent')})" for name in other)
        if other and changes not in self._others:
            self._others.add(changes)
            log.warning("%s with other versions: %s; they are recorded with it", what, changes)

    def _publish(
        self, kind: str, key: Mapping[str, Any], folder: Path, place: Path, begun: dict[str, str], *, keep: bool
    ) -> None:
        """Move the built files and their record into place in one rename; the work folder stays complete until then."""
        fresh = place.with_suffix(".fresh")
        self._require_no_link(kind, fresh)
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            fresh.mkdir(parents=True)
            for name in _files(folder):
                (target := fresh / name).parent.mkdir(parents=True, exist_ok=True)
                _link_or_copy(folder / name, target, copy=keep)
            record = {"kind": kind, "key": plain_key(key), "versions": versions()}
            record |= {"files": {name: digest_file(fresh / name) for name in _files(fresh)}}
            record |= {"begun": begun} if begun != versions() else {}
            write_json(fresh / RECORD, record | {"checksum": digest(record)})
            fresh.rename(place)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)

    def _open(self, kind: str, place: Path) -> Artifact | None:
        """Do as `open`, under the lock."""
        if not isinstance(result := self._read(kind, place), str):
            return result
        number = 1
        while (aside := place.with_suffix(f".damaged-{number}")).exists():
            number += 1
        with _storage_errors(place):
            place.rename(aside)
        log.warning("%s is damaged; it was moved to %s and is built again", place / result, aside.name)
        return None

    def _read(self, kind: str, place: Path) -> Artifact | str | None:
        """Return the artifact in this folder, the name of its first damaged file, or None if there is no folder."""
        if not place.is_dir():
            return None
        sums: dict[str, str] = {}
        try:
            record = json.loads((place / RECORD).read_text())
            checksum = record.pop("checksum")
            sums, made_by = dict(record["files"]), dict(record["versions"])
            whole = checksum == digest(record) and (record["kind"], digest(record["key"])) == (kind, place.name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            return RECORD
        if not (state := _state(place, sums)) or self._verified.get(place) != state:
            if damaged := next((name for name, checksum in sums.items() if _digest(place / name) != checksum), ""):
                return damaged
            self._verified[place] = state
        self._warn_versions(f"the {kind} {place.name} was built", made_by)
        return Artifact(kind, place, place.name, made_by, digest(sums), sums, record["key"])


def _state(place: Path, names: Iterable[str]) -> str:
    """Return a digest of the sizes and times of files; while it stays, they are not hashed again. "": one is missing"""
    with suppress(OSError):
        seen = [(place / name).stat() for name in names]
        return digest([(one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino) for one in seen])
    return ""


def _digest(file: Path) -> str:
    with suppress(OSError):
        return digest_file(file)
    return ""


def _digits(kind: str) -> int:
    """Return the digits of a kind's subfolders; 0 for none."""
    return GROWING if kind.partition("-")[0] in MANY else 0


def _remove_leftover_work(kind: str, place: Path) -> None:
    """Remove the work folder of a published artifact, which a process killed just after publishing leaves.

    Done under the lock, since another process may be rebuilding a damaged artifact in that folder.
    """
    folder = place.with_suffix(".work")
    if not folder.is_dir():
        return
    with suppress(InputError), locked(place.with_suffix(".lock"), f"the {kind} {place.name}"):
        if place.is_dir():
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _storage_errors(place: Path) -> Iterator[None]:
    """Raise InputError, in one line, if there is no free space or no permission."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        problem = f"{os.path.abspath(error.filename or place)}: {error.strerror}"
        raise InputError(f"{problem}; free space or fix the permissions there, and run again") from None


def _link_or_copy(source: Path, target: Path, *, copy: bool) -> None:
    """Make a hard link to the file, or a copy if there can be no link."""
    if not copy:
        with suppress(OSError):
            target.hardlink_to(source)
            return
    shutil.copy2(source, target)


def _files(folder: Path) -> list[str]:
    """Return the names of an artifact's files, relative to its folder, without hidden files, checkpoints and record."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    own = (name for name in names if not any(part.startswith(".") or part == "checkpoint" for part in name.parts))
    return [name.as_posix() for name in own if name.as_posix() != RECORD]
