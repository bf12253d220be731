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

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medlt.files import digest, locked, write_json
from medlt.types import InputError
from medlt.versions import versions

RECORD = "artifact.json"
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
    _verified: dict[Path, tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)

    def place(self, kind: str, key: Mapping[str, Any]) -> Path:
        """Return where the artifact of this key lies, or would lie."""
        return Path(self.root) / kind / digest(dict(key))

    def find(self, kind: str, key: Mapping[str, Any]) -> Artifact | None:
        """Return the artifact of this key after comparing its files with their checksums, or None.

        A damaged one is set aside, with a warning that names the file, and None is returned.
        """
        return self.open(kind, self.place(kind, key))

    def folders(self, kind: str) -> list[Path]:
        """Return the folders of all artifacts of a kind, not yet compared with their checksums (see `open`)."""
        found = (path.parent for path in (Path(self.root) / kind).glob(f"*/{RECORD}"))
        return sorted(folder for folder in found if "." not in folder.name)

    def make(
        self, kind: str, key: Mapping[str, Any], build: Build, *, work: Mapping[str, Any] | None = None
    ) -> Artifact:
        """Return the artifact of this key; where there is none, `build` makes it under a lock.

        `build` is given the work folder and leaves there the files of the artifact. Names that begin with a dot, and
        the folder `checkpoint`, are not part of it. `work` is the key of a work folder that several artifacts share and
        that is kept: trainings that can be continued into one another. Raises InputError where the place cannot be
        written.
        """
        place = self.place(kind, key)
        with locked(place.with_suffix(".lock"), f"the {kind} {place.name}"):
            if (artifact := self.open(kind, place)) is not None:
                return artifact
            folder = self.place(kind, work if work is not None else key).with_suffix(".work")
            with locked(folder.with_suffix(".work.lock"), f"the {kind} {place.name}"):
                folder.mkdir(parents=True, exist_ok=True)
                build(folder)
                self._publish(kind, key, folder, place, keep=work is not None)
        artifact = self.open(kind, place)
        if artifact is None:
            raise InputError(f"{place}: reads back otherwise than it was written; check the disk, and run again")
        return artifact

    def _publish(self, kind: str, key: Mapping[str, Any], folder: Path, place: Path, keep: bool) -> None:
        """Copy or move what was built to its place, with its record, in one rename."""
        fresh = place.with_suffix(".fresh")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name in _files(folder):
            target = fresh / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if keep:
                shutil.copy2(folder / name, target)
            else:
                (folder / name).replace(target)
        sums = {name: _checksum(fresh / name) for name in _files(fresh)}
        record = {"kind": kind, "key": json.loads(json.dumps(dict(key), default=str)), "versions": versions()}
        write_json(fresh / RECORD, record | {"files": sums})
        fresh.rename(place)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)

    def open(self, kind: str, place: Path) -> Artifact | None:
        """Return the artifact in this folder, as `find` does."""
        if not place.is_dir():
            return None
        try:
            record = json.loads((place / RECORD).read_text())
            sums, made_by = dict(record["files"]), dict(record["versions"])
        except (OSError, ValueError, KeyError, TypeError):
            return self._set_aside(place, RECORD)
        for name, checksum in sums.items():
            if not self._sound(place / name, checksum):
                return self._set_aside(place, name)
        return Artifact(kind, place, place.name, made_by, digest(sums))

    def _sound(self, file: Path, checksum: str) -> bool:
        """Whether a file has its checksum; asked once for a file that does not change meanwhile."""
        if not file.is_file():
            return False
        status = file.stat()
        seen = (status.st_size, status.st_mtime_ns)
        if self._verified.get(file) == seen:
            return True
        if _checksum(file) != checksum:
            return False
        self._verified[file] = seen
        return True

    def _set_aside(self, place: Path, name: str) -> None:
        number = 1
        while (aside := place.with_suffix(f".damaged-{number}")).exists():
            number += 1
        log.warning("%s is damaged; it was moved to %s and is made again", place / name, aside.name)
        place.rename(aside)


def _files(folder: Path) -> list[str]:
    """Names of the files of an artifact, relative to its folder: neither hidden, nor of a checkpoint, nor the record."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    own = (name for name in names if not any(part.startswith(".") or part == "checkpoint" for part in name.parts))
    return [name.as_posix() for name in own if name.as_posix() != RECORD]


def _checksum(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
