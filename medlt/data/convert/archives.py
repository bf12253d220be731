"""Reads the members of zip files, as exam CDs are sent, without unpacking them to disk.

A member's name is only its name in sources.csv, behind "!/"; no path is built from it. Members that are archives
themselves are not opened.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from errno import EINVAL
from functools import lru_cache
from io import FileIO, RawIOBase
from typing import NamedTuple

from medlt.data.convert.scan import FileEntry
from medlt.data.dicom import guard
from medlt.data.dicom.guard import Unreadable
from medlt.remote import AnyFile, OpenObject, RemoteFile
from medlt.types import InputError

LIMIT_INDEX_BYTES = 2**26  # the directory of about a million members
LIMIT_RATIO = 100  # of a whole zip above LIMIT_FILE_BYTES; radiographs are packed 2 to 10 times
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_PIECE = 2**20


class Member(NamedTuple):
    """A member of the zip file `archive`, by its place in the zip's directory, because names may repeat."""

    archive: AnyFile
    number: int

    def read(self) -> bytes:
        """Return the member's bytes.

        Raises Unreadable if it is too large, damaged, encrypted, or packed otherwise, and InputError if a server cannot
        be used.
        """
        zipped = _kept_open(self.archive)
        info = zipped.infolist()[self.number]
        if info.file_size > guard.LIMIT_FILE_BYTES:
            raise Unreadable("too_large", "a member of a zip beyond the size limit")
        if info.flag_bits & 1 or info.compress_type not in _METHODS:
            raise Unreadable("not_unpacked", "a member of a zip that is encrypted, or packed in an unusual way")
        try:
            with zipped.open(info) as handle:  # by pieces: the declared size may be wrong
                return b"".join(iter(lambda: handle.read(_PIECE), b""))
        except InputError:  # of a server
            raise
        except EOFError:
            raise Unreadable("truncated", "a member of a zip that is cut short") from None
        except OSError as error:  # EINVAL: an offset before the file
            raise Unreadable("corrupt" if error.errno == EINVAL else "missing", "a zip that cannot be read") from None
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, ValueError):
            raise Unreadable("corrupt", "a damaged member of a zip") from None


def with_members(root: AnyFile, entry: FileEntry) -> Iterator[FileEntry]:
    """Yield the file; if it is a zip by its name and content, with the reason "unzipped", and then its members.

    A member's CRC-32 takes the place of its modification time. A zip that is damaged, or would grow beyond
    LIMIT_RATIO, is yielded with that reason alone; a file without a zip's first bytes as it is.
    """
    if entry.reason or not entry.relative.lower().endswith(".zip"):
        yield entry
        return
    try:
        with _opened(root / entry.relative) as file, _directory(file) as zipped:
            members = zipped.infolist()
        _refuse_growth(members, entry.size)
    except Unreadable as error:
        yield entry._replace(reason=error.code)
        return
    except OSError:
        yield entry._replace(reason="missing")
        return
    yield entry._replace(reason="unzipped")
    names: set[str] = set()
    for number, member in enumerate(members):
        name = f"{entry.relative}!/{member.filename}"
        name = f"{name}!{number}" if name in names else name
        names.add(name)
        if not member.is_dir():
            yield FileEntry(name, member.file_size, member.CRC, "", entry.relative, number)


class _Bounded(FileIO):
    """A file of which no large piece is read at once: zipfile reads a zip's whole directory into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(_bounded(size)) or b""

    def __del__(self) -> None:
        self.close()


class _BoundedObject(OpenObject):
    """An object at a URL of which no large piece is read at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(_bounded(size)) or b""


def _bounded(size: int | None) -> int:
    if size is not None and size > LIMIT_INDEX_BYTES:
        raise Unreadable("too_large", "a zip with too many members")
    return -1 if size is None else size


def _opened(archive: AnyFile) -> RawIOBase:
    return _BoundedObject(archive) if isinstance(archive, RemoteFile) else _Bounded(archive)


def _directory(file: RawIOBase) -> zipfile.ZipFile:
    """Return the zip in a file. Raises Unreadable if it is damaged; without a code if it was never a zip."""
    head = file.read(4)
    try:
        return zipfile.ZipFile(file)
    except (InputError, OSError):
        raise
    except Exception:  # hostile bytes may raise any exception
        raise Unreadable("corrupt" if head[:2] == b"PK" else "", "not a readable zip") from None


@lru_cache(maxsize=1)
def _kept_open(archive: AnyFile) -> zipfile.ZipFile:
    """Return the zip for reading. A worker reads its members one after the other, so the last zip stays open."""
    try:
        return _directory(_opened(archive))
    except OSError as error:
        raise Unreadable("missing", error.strerror or "cannot be opened") from None


def _refuse_growth(members: list[zipfile.ZipInfo], size: int) -> None:
    """Raise Unreadable for a bomb; members may overlap, so that each alone is small enough (Fifield, WOOT 2019)."""
    total = sum(member.file_size for member in members)
    if total > max(guard.LIMIT_FILE_BYTES, LIMIT_RATIO * size):
        raise Unreadable("too_large", f"a zip of {size} bytes that would grow to {total}")
