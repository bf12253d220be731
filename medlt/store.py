"""The artifact store: everything learnt or cached is found by a digest of contents and settings, never by a name.

    ROOT/KIND/DIGEST/             the files of one artifact, and artifact.json, which says what it is
    ROOT/KIND/DIGEST.lock         held by the process that makes it; others wait
    ROOT/KIND/DIGEST.work/        where it is made; a killed process leaves it, and the next one continues there
    ROOT/KIND/DIGEST.damaged-N/   what failed its checksums, set aside

An artifact is made in its work folder under a lock, its files are hashed, and the folder is renamed into place: so it
is there whole or not at all. When it is opened again each file is compared with its checksum. The key holds all that
decides the contents (pixels, labels, uids, settings, the format number of the code), by value or by digest; versions of
packages are recorded beside it and do not decide.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from medlt.files import digest, digest_file, locked, write_json
from medlt.types import InputError
from medlt.versions import versions

RECORD = "artifact.json"
BEGUN = ".versions.json"
NO_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}
log = logging.getLogger(__name__)

Build = Callable[[Path], None]
"""Writes the files of an artifact into a folder, which may hold what an interrupted call left."""


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder, the digest of its key, and the versions of the packages that made it."""

    kind: str
    folder: Path
    digest: str
    versions: Mapping[str, str]
    contents: str
    """A digest of the files' bytes: equal artifacts of other keys have it in common."""

    def path(self, name: str) -> Path:
        """Return the path of one of its files."""
        return self.folder / name


@dataclass(frozen=True)
class Store:
    """Artifacts below `root`, which several runs and processes may share."""

    root: Path
    used: list[Artifact] = field(default_factory=list, repr=False, compare=False)
    """What was made or found, in the order of the calls, for whoever keeps a record of it."""
    _verified: dict[Path, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)
    _others: set[str] = field(default_factory=set, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(os.path.abspath(self.root)))

    def place(self, kind: str, key: Mapping[str, Any]) -> Path:
        """Return where the artifact of this key lies, or would lie.

        Raises TypeError for a key that holds anything but numbers, text, None, and lists, mappings and data classes of
        them: a printed tensor or path does not say what is in it.
        """
        return self.root / kind / digest(_plain(key))

    def find(self, kind: str, key: Mapping[str, Any]) -> Artifact | None:
        """Return the artifact of this key after comparing its files with their checksums, or None.

        A damaged one is set aside, with a warning that names the file, and None is returned.
        """
        return self.open(kind, self.place(kind, key))

    def folders(self, kind: str) -> list[Path]:
        """Return the folders of all artifacts of a kind, not yet compared with their checksums (see `open`)."""
        found = (path.parent for path in (self.root / kind).glob(f"*/{RECORD}"))
        return sorted(folder for folder in found if "." not in folder.name)

    def make(
        self, kind: str, key: Mapping[str, Any], build: Build, *, work: Mapping[str, Any] | None = None
    ) -> Artifact:
        """Return the artifact of this key; where there is none, `build` makes it under a lock.

        `build` is given the work folder and leaves there the files of the artifact. Names that begin with a dot, and
        the folder `checkpoint`, are not part of it. `work` is the key of a work folder that several artifacts share and
        that is kept: trainings that can be continued into one another. Raises InputError where the place cannot be
        written; what was there before then stays.
        """
        place = self.place(kind, key)
        if isinstance(found := self._read(kind, place), Artifact):
            return self._noted(found)
        with locked(place.with_suffix(".lock"), f"the {kind} {place.name}"):
            if (artifact := self._open(kind, place)) is not None:
                return self._noted(artifact)
            folder = self.place(kind, work if work is not None else key).with_suffix(".work")
            with locked(folder.with_suffix(".work.lock"), f"the {kind} {place.name}"), _told(folder):
                folder.mkdir(parents=True, exist_ok=True)
                begun = self._begin(kind, folder)
                build(folder)
                self._publish(kind, key, folder, place, begun, keep=work is not None)
            artifact = self._open(kind, place)
        if artifact is None:
            raise InputError(f"{place}: reads back otherwise than it was written; check the disk, and run again")
        return self._noted(artifact)

    def _noted(self, artifact: Artifact) -> Artifact:
        self.used.append(artifact)
        return artifact

    def open(self, kind: str, place: Path) -> Artifact | None:
        """Return the artifact in this folder, as `find` does."""
        found = self._read(kind, place)
        if not isinstance(found, str):
            return found
        with locked(place.with_suffix(".lock"), f"the {kind} {place.name}"):
            return self._open(kind, place)  # another process may have made it again meanwhile

    def _begin(self, kind: str, folder: Path) -> dict[str, str]:
        """Return the versions this work folder was begun with; tell where they are not today's."""
        begun: dict[str, str] = {}
        with suppress(OSError, ValueError):
            begun = dict(json.loads((folder / BEGUN).read_text()))
        if not begun:
            write_json(folder / BEGUN, begun := versions())
        self._tell(f"the {kind} {folder.stem} was begun", begun)
        return begun

    def _tell(self, what: str, made_by: Mapping[str, str]) -> None:
        """Warn, once for each set of versions, that something was made by other versions than today's."""
        now = versions()
        other = [name for name in sorted(made_by) if now.get(name) != made_by[name]]
        told = ", ".join(f"{name} {made_by[name]} (now {now.get(name, 'absent')})" for name in other)
        if other and told not in self._others:
            self._others.add(told)
            log.warning("%s by other versions: %s; they are recorded with it", what, told)

    def _publish(
        self, kind: str, key: Mapping[str, Any], folder: Path, place: Path, begun: dict[str, str], *, keep: bool
    ) -> None:
        """Put what was built in its place, with its record, in one rename; the work folder is whole until then."""
        fresh = place.with_suffix(".fresh")
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            fresh.mkdir(parents=True)
            for name in _files(folder):
                (target := fresh / name).parent.mkdir(parents=True, exist_ok=True)
                _put(folder / name, target, copy=keep)
            record = {"kind": kind, "key": _plain(key), "versions": versions()}
            record |= {"files": {name: digest_file(fresh / name) for name in _files(fresh)}}
            record |= {"begun": begun} if begun != versions() else {}
            write_json(fresh / RECORD, record | {"checksum": digest(record)})
            fresh.rename(place)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)

    def _open(self, kind: str, place: Path) -> Artifact | None:
        """As `open`, under the lock."""
        found = self._read(kind, place)
        if not isinstance(found, str):
            return found
        number = 1
        while (aside := place.with_suffix(f".damaged-{number}")).exists():
            number += 1
        with _told(place):
            place.rename(aside)
        log.warning("%s is damaged; it was moved to %s and is made again", place / found, aside.name)
        return None

    def _read(self, kind: str, place: Path) -> Artifact | str | None:
        """The artifact in this folder, the name of its first damaged file, or None where there is no folder."""
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
        for name, checksum in sums.items():
            if not self._sound(place / name, checksum):
                return name
        self._tell(f"the {kind} {place.name} was made", made_by)
        return Artifact(kind, place, place.name, made_by, digest(sums))

    def _sound(self, file: Path, checksum: str) -> bool:
        """Whether a file has its checksum; asked once for a file that does not change meanwhile."""
        try:
            status = file.stat()
            seen = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
            if self._verified.get(file) == seen:
                return True
            if digest_file(file) != checksum:
                return False
        except OSError:
            return False
        self._verified[file] = seen
        return True


@contextmanager
def _told(place: Path) -> Iterator[None]:
    """Tell in one line where there is no room or no permission."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        told = f"{error.filename or place}: {error.strerror}"
        raise InputError(f"{told}; make room or mend the permission there, and run again") from None


def _plain(value: Any) -> Any:
    """A key as JSON gives it back. Raises TypeError for what JSON does not know."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if hasattr(value, "dtype") and getattr(value, "shape", None) == () and type(value).__module__ == "numpy":
        return _plain(value.item())
    raise TypeError(f"a key of the store holds a {type(value).__name__}; put a digest of its contents there")


def _put(source: Path, target: Path, *, copy: bool) -> None:
    """A second name for the file where that can be, else a copy."""
    if not copy:
        with suppress(OSError):
            target.hardlink_to(source)
            return
    shutil.copy2(source, target)


def _files(folder: Path) -> list[str]:
    """Names of an artifact's files, relative to its folder: neither hidden, nor of a checkpoint, nor the record."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    own = (name for name in names if not any(part.startswith(".") or part == "checkpoint" for part in name.parts))
    return [name.as_posix() for name in own if name.as_posix() != RECORD]
