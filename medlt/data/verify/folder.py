"""Examines every file of a folder. A file that is neither an image nor a table cannot be examined, and is reported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlt.data.deidentify import Detector, text_boxes
from medlt.data.images import kind_of
from medlt.data.verify.dicom import dicom_file
from medlt.data.verify.pictures import picture_file
from medlt.data.verify.tables import table_file
from medlt.types import InputError, Progress

if TYPE_CHECKING:
    from rich.table import Table

OTHER = "neither an image nor a table that can be examined; look at it yourself"


@dataclass(frozen=True)
class Verified:
    """Result of `verify`: the number of examined `files`, and (file, what it still holds), in the order of names."""

    files: int
    leaks: tuple[tuple[str, str], ...]

    def summary(self) -> dict[str, Any]:
        """Return the result as values that JSON can hold."""
        return {"files": self.files, "leaks": [{"file": file, "what": what} for file, what in self.leaks]}

    def table(self) -> Table | str:
        """Return the files and what they hold, for a terminal."""
        from rich.table import Table

        if not self.leaks:
            return f"{self.files} files examined: nothing that leads to a patient was seen"
        title = f"{len(self.leaks)} place(s) in {self.files} files"
        made = Table("file", "what it still holds", title=title, title_justify="left")
        for file, what in self.leaks:
            made.add_row(file, what)
        return made


def verify(folder: Path, detector: Detector = text_boxes, progress: Progress | None = None) -> Verified:
    """Examine every file below `folder`, which is only read.

    DICOM: preamble, file meta, every attribute against PS3.15 Table E.1-1 and the allow-list, pixel cells, streams,
    and bytes behind the data. PNG, JPEG, NIfTI: text chunks, segments, fields and trailing bytes. All images: lines
    that look like text. Parquet tables: identifiers. The result names places, never contents. Raises InputError if
    there is no file.
    """
    folder = Path(folder)
    files = sorted(_files(folder))
    if not files:
        raise InputError(f"{folder.absolute()}: no file to examine; give the folder that is about to leave")
    report, leaks = progress or (lambda *_: None), []
    for done, path in enumerate(files):
        report("files", done, len(files))
        leaks += [(str(path.relative_to(folder)), what) for what in dict.fromkeys(_examined(path, detector))]
    report("files", len(files), len(files))
    return Verified(len(files), tuple(leaks))


def _files(folder: Path) -> Iterator[Path]:
    """Yield every file and every link below the folder."""
    for place, folders, names in os.walk(folder):
        yield from (Path(place) / name for name in names)
        yield from (Path(place) / name for name in folders if (Path(place) / name).is_symlink())


def _examined(path: Path, detector: Detector) -> Iterator[str]:
    if path.is_symlink():
        yield "a link, which may lead anywhere"
        return
    try:
        raw = path.read_bytes()
    except OSError as error:
        yield f"a file that cannot be read ({error.strerror})"
        return
    kind = kind_of(raw[:2048])
    if kind in ("png", "jpeg", "nifti"):
        yield from picture_file(kind, raw, detector)
    elif raw[128:132] == b"DICM":
        yield from dicom_file(raw, detector)
    elif raw[:4] == b"PAR1":
        yield from table_file(path)
    else:
        yield OTHER
