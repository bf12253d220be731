"""Files at URLs, such as `s3://bucket/key.png`, read and written through fsspec.

Any protocol of fsspec will do; S3 needs `medlt[s3]`. Credentials come from the usual places of the protocol, such as
the environment or ~/.aws, and never from a URL. Nothing that is shown, logged or written by this module holds more of a
URL than its protocol, host and path. The metadata service of a cloud machine is not queried for credentials unless
AWS_EC2_METADATA_DISABLED is set to false.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO, RawIOBase
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from medlt.files import digest_bytes, digest_file
from medlt.types import InputError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_VERSION = ("ETag", "etag", "generation", "md5Hash", "content_md5", "created", "mtime", "LastModified", "last_modified")
"""What file systems say of an object that changes with its bytes."""
_EXTRAS = {"s3": "medlt[s3]", "s3a": "medlt[s3]", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
CONNECTIONS = 32
"""Requests at a time."""
T = TypeVar("T")
R = TypeVar("R")


def is_url(path: object) -> bool:
    """Return whether a path is a URL: text that begins with a protocol and '://'."""
    return isinstance(path, str) and _URL.match(path) is not None


def public(url: str) -> str:
    """Return a URL without user, password, query and fragment, for messages: any of them may be a secret."""
    head, _, rest = url.partition("://")
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    user, _, place = rest.rpartition("@")
    return f"{head}://{place if ':' in user or '/' not in user else rest}"


@dataclass(frozen=True)
class RemoteFile:
    """A file at a URL, with what medlt uses of a `Path`. Its text is the URL without anything that may be secret."""

    url: str

    def __str__(self) -> str:
        return public(self.url)

    def __repr__(self) -> str:
        return f"RemoteFile({str(self)!r})"

    def __truediv__(self, name: str) -> RemoteFile:
        return RemoteFile(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        whole = str(self) if self.url.startswith("http") else self.url  # the key of an object may hold '?' and '#'
        return PurePosixPath(whole).name

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot on."""
        return PurePosixPath(self.name).suffix

    def absolute(self) -> RemoteFile:
        """Return the file: a URL is absolute."""
        return self

    def is_file(self) -> bool:
        """Return whether there is such an object. Raises InputError if the server cannot be used."""
        try:
            return str(self._info()["type"]) == "file"
        except FileNotFoundError:
            return False

    def size(self) -> int:
        """Return the length in bytes, -1 if the server does not say. Raises FileNotFoundError and InputError."""
        size = self._info().get("size")
        return -1 if size is None else int(size)

    def state(self) -> tuple[int, int] | None:
        """Return the size and a number that changes with the bytes; None if there is no file, or none is known."""
        with suppress(FileNotFoundError, InputError):
            if (version := _version(info := self._info())) is not None:
                return int(info.get("size") or 0), version
        return None

    def read_bytes(self) -> bytes:
        """Return the bytes. Raises FileNotFoundError, and InputError if the server cannot be used."""
        system, path = connected(self.url)
        with remote_errors(self.url):
            return bytes(system.cat_file(path))

    def _info(self) -> dict[str, Any]:
        system, path = connected(self.url)
        with remote_errors(self.url):
            return dict(system.info(path))


class OpenObject(RawIOBase):
    """The bytes of an object as an open file, of which only what is read is sent. Raises as `RemoteFile.read_bytes`."""

    def __init__(self, file: RemoteFile) -> None:
        self._url, self._file = file.url, BytesIO()
        system, path = connected(file.url)
        with remote_errors(file.url):
            self._file = system.open(path, "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any, /) -> int:
        with remote_errors(self._url):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


AnyFile: TypeAlias = Path | RemoteFile
"""A file on a disk or at a URL."""


def as_file(path: str | Path | RemoteFile) -> AnyFile:
    """Return the file at a path or a URL. Raises InputError for a URL that `connected` refuses."""
    if isinstance(path, str) and is_url(path):
        require_plain(path)
        return RemoteFile(path)
    return path if isinstance(path, RemoteFile) else Path(path)


def location(file: AnyFile) -> str:
    """Return the absolute path or the whole URL of a file, which `as_file` takes."""
    return file.url if isinstance(file, RemoteFile) else os.path.abspath(file)


def digest_of(file: AnyFile) -> str:
    """Return `medlt.files.digest_file` of a file anywhere. Raises as `RemoteFile.read_bytes`."""
    return digest_bytes(file.read_bytes()) if isinstance(file, RemoteFile) else digest_file(file)


def require_local(path: str | Path) -> None:
    """Raise InputError for a path that was typed as a URL, where only a file of this machine is read."""
    if _URL.match(text := re.sub(":/+", "://", str(path), count=1)):
        raise InputError(f"{public(text)}: is a URL; copy it to this machine, and give its path")


def require_plain(url: str) -> None:
    """Raise InputError for a URL that names a user or a password, or chains protocols."""
    if "@" in urlsplit(url).netloc:
        raise InputError(f"{public(url)}: the URL holds a user or password; give credentials by the environment")
    if "::" in url:
        raise InputError(f"{public(url)}: chained protocols are not read; give a single one, such as s3://bucket/key")


def connected(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path there. Listings are not remembered.

    Raises InputError for a protocol that is unknown or needs a package.
    """
    import fsspec

    require_plain(url)
    protocol = url.partition("://")[0].lower()
    if protocol in ("s3", "s3a"):
        os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    try:
        options = {"auto_mkdir": True} if protocol in ("file", "local") else {}
        system = fsspec.filesystem(protocol, use_listings_cache=False, **options)
        return system, str(system._strip_protocol(url))
    except ImportError:
        package = _EXTRAS.get(protocol, "the package of this protocol")
        raise InputError(f"{public(url)}: a package is missing; install it: pip install '{package}'") from None
    except (ValueError, TypeError):
        raise InputError(f"{public(url)}: no protocol {protocol!r}; use a path, or one that fsspec knows") from None


@contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Raise FileNotFoundError for a missing object, and InputError, in one line, for any other error of the server.

    The text of an error of another library is not repeated: it may hold a signed URL.
    """
    try:
        yield
    except (FileNotFoundError, InputError):
        raise
    except PermissionError:
        raise InputError(f"{public(url)}: access is denied; check the credentials and their rights") from None
    except Exception as error:  # libraries of object stores have exceptions of their own
        kind = type(error).__name__
        if "Credential" in kind:
            raise InputError(f"{public(url)}: no credentials; set those of its protocol in the environment") from None
        raise InputError(
            f"{public(url)}: the server cannot be used ({kind}); check its address and the network"
        ) from None


def listed(url: str) -> dict[str, tuple[int, int]]:
    """Return name below the URL -> (size, number that changes with the bytes, 0 if unknown) of every object, sorted.

    An object itself gives one entry, its last part. Raises InputError if there is nothing, or as `RemoteFile.size`.
    """
    system, path = connected(url)
    try:
        with remote_errors(url):
            entries = system.find(path, detail=True)
    except FileNotFoundError:
        entries = {}
    if not entries:
        raise InputError(f"{public(url)}: no such object, or nothing below it; check the URL")
    base = path.rstrip("/")
    names = {name.removeprefix(base).lstrip("/") or PurePosixPath(name).name: info for name, info in entries.items()}
    return {name: (int(names[name].get("size") or 0), _version(names[name]) or 0) for name in sorted(names)}


def _version(info: dict[str, Any]) -> int | None:
    """Return 60 bits that change with an object's bytes, None if the file system says nothing of them."""
    values = [str(info[key]) for key in _VERSION if info.get(key)]
    digits = hashlib.sha256("\n".join(values).encode()).hexdigest()
    return int(digits[:15], 16) if values else None


def are_files(paths: Sequence[str]) -> list[bool]:
    """Return whether there is a file at each path or URL; many URLs are requested at a time."""
    urls = [path for path in paths if is_url(path)]
    known = dict(zip(urls, in_parallel(lambda url: as_file(url).is_file(), urls), strict=True))
    return [known[path] if path in known else os.path.isfile(path) for path in paths]


def in_parallel(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return `work` of each item, in order, CONNECTIONS at a time: a request waits for the network."""
    with ThreadPoolExecutor(CONNECTIONS, "remote") as pool:
        return list(pool.map(work, items))
