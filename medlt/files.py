"""Atomic files: a temporary file is written, flushed and renamed. Also locks, and digests of contents."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlt.folders import MOST_FILES
from medlt.types import InputError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

REAL_ROWS = Path("stages/data/manifest.parquet")
"""The manifest of the real rows, in a run folder. When this file exists, the config can no longer change."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, remove it if not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    temporary.unlink(missing_ok=True)  # a link of this name would lead the writer elsewhere
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; rename it to `folder` if the block succeeds, remove it if not.

    Temporary folders that a killed process on this machine left are removed. Raises InputError if `folder` is not
    empty: nothing is overwritten.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder.absolute()} exists already; give another folder, or move it away first")
    fresh = folder.with_name(f".{folder.name}.{platform.node()}.{os.getpid()}.tmp")
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.{platform.node()}.*.tmp"):
        if left == fresh or not _runs(left.suffixes[-2][1:]):
            shutil.rmtree(left, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        yield fresh
        fresh.rename(folder)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{folder.absolute()} cannot be written ({reason}); choose a place with free space") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _runs(process: str) -> bool:
    """Return whether a process with this id runs on this machine; False if the text is not a number."""
    try:
        os.kill(int(process), 0)
    except PermissionError:
        return True
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    return True


WAIT = 5.0  # seconds of waiting before the warning


@contextmanager
def locked(path: Path, what: str, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path` (filelock) during the block; the operating system releases it if the process dies.

    `what` names the resource in messages. If another process holds the lock, log a warning and wait; without `wait`
    raise InputError instead.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=WAIT if wait else 0)
    except Timeout:
        if not wait:
            raise InputError(f"{what}: another process is working on it; wait until it ends, or stop it") from None
        logging.getLogger(__name__).warning("waiting for another process that is working on %s", what)
        lock.acquire()
    except OSError as error:
        problem = f"{path.parent.absolute()} cannot be written ({error.strerror or error})"
        raise InputError(f"{problem}; choose a place with free space and write permission") from None
    try:
        yield
    finally:
        lock.release()


def no_follow(path: str | Path, flags: int, mode: int = 0o666) -> int:
    """Open a file as `os.open` does, for `opener=`, but raise OSError (ELOOP) for a link, which leads elsewhere."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), mode)


def require_no_links(folder: Path, may_be: Iterable[str] = ()) -> None:
    """Raise InputError if an entry of a folder that medlt writes in is a link, but for those named in `may_be`."""
    for path in sorted(one for one in folder.iterdir() if one.is_symlink() and one.name not in may_be):
        where = path.absolute()
        raise InputError(f"{where}: is a link, and medlt writes nothing behind links here; move it away, and run again")


SUPERSEDED = "superseded"
"""Name of the folder of files that were replaced by others."""


def set_aside(file: Path, folder: Path) -> Path | None:
    """Move a file into `folder`/superseded under a free name; return the new path, None if there is no file."""
    number = 1
    while (target := folder / SUPERSEDED / f"{file.stem}-{number}{file.suffix}").exists():
        number += 1
    if not file.is_file():
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    file.replace(target)
    return target


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 `text` to `path` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as sorted, indented JSON. Raises ValueError on NaN, which JSON does not allow."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write `table` as parquet with its index; equal tables give equal bytes. Empty lists get the type list of text."""
    with atomic(path) as temporary:
        table.to_parquet(temporary, schema=_schema(table))


def write_table_parts(folder: Path, table: pd.DataFrame, part_rows: int) -> None:
    """Write `table` as FOLDER/part-00000-of-0000N.parquet, ..., of `part_rows` rows each, whole or not at all.

    `read_table`, pandas and pyarrow read the folder as one table. Raises InputError for a folder that is not empty, and
    for more parts than a folder may hold.
    """
    count = max(1, -(-len(table) // max(1, part_rows)))
    if part_rows < 1 or count > MOST_FILES:
        raise InputError(f"{folder}: parts of {part_rows} rows would be {count} files; give more rows to a part")
    schema = _schema(table)  # of all rows: a column may be blank in one part
    with whole_folder(folder) as fresh:
        for number in range(count):
            part = table.iloc[number * part_rows : (number + 1) * part_rows]
            part.to_parquet(fresh / f"part-{number:05d}-of-{count:05d}.parquet", schema=schema)


def _schema(table: pd.DataFrame) -> Any:
    """Return the types of a table's columns, in which empty lists are lists of text."""
    import pyarrow as pa

    schema = pa.Schema.from_pandas(table)
    for at, column in enumerate(schema):
        if column.type == pa.list_(pa.null()):
            schema = schema.set(at, column.with_type(pa.list_(pa.string())))
    return schema


def _require_parts(folder: Path) -> None:
    """Raise InputError if a part that the names of the others count is not there."""
    matches = [re.fullmatch(r"part-(\d+)-of-(\d+)\.parquet", path.name) for path in folder.iterdir()]
    numbers = {(int(match[1]), int(match[2])) for match in matches if match}
    if numbers and numbers != {(number, max(numbers)[1]) for number in range(max(numbers)[1])}:
        raise InputError(f"{folder}: has {len(numbers)} of {max(numbers)[1]} parts; restore the others")


def read_table(path: Path) -> pd.DataFrame:
    """Read a table that `write_table` or `write_table_parts` wrote; lists stay lists.

    Raises OSError or ValueError for any other file, and InputError for a folder that lacks a part.
    """
    import numpy as np
    import pandas as pd

    if Path(path).is_dir():
        _require_parts(Path(path))
    table = pd.read_parquet(path)
    for name in (column for column, kind in table.dtypes.items() if kind == np.dtype(object)):
        if table[name].map(lambda value: isinstance(value, np.ndarray)).any():
            table[name] = table[name].map(lambda value: value.tolist() if isinstance(value, np.ndarray) else value)
    return table


def read_columns(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read columns of a table that a run wrote, all by default. Raises InputError for a damaged or missing file."""
    import pandas as pd

    try:
        return pd.read_parquet(path, columns=None if columns is None else list(columns))
    except (OSError, ValueError):
        raise InputError(f"{path}: missing or damaged; restore it, or run the command that wrote it again") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors as safetensors. Raises OSError, with its errno, without free space or permission.

    Raises ValueError on two metadata entries: the format keeps no order.
    """
    if metadata and len(metadata) > 1:
        raise ValueError(f"metadata of {path} has {len(metadata)} entries; put them into one, or equal files differ")
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, dict(metadata or {}))
        except SafetensorError as error:  # the errno of the system is in its text only
            if not (number := re.search(r"os error (\d+)", str(error))):
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors from safetensors, onto the CPU. Raises InputError, in one line, for a file of another form."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is damaged or no safetensors file ({reason}); restore it or make it again") from None


def digest(*parts: object) -> str:
    """Return 16 hex digits that identify `parts`: bytes as they are, everything else by sorted JSON or `str`."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode())
        state.update(b"\x1f")
    return state.hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor's values in order, for any dtype (numpy has no bfloat16)."""
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits that identify named tensors: names and bytes, in the order of the names."""
    return digest(*(part for name in sorted(tensors) for part in (name, tensor_bytes(tensors[name]))))


def digest_bytes(data: bytes) -> str:
    """Return 32 hex digits that identify these bytes; equal to `digest_file` of a file with these bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_file(path: Path) -> str:
    """Return 32 hex digits that identify a file's bytes; the file is read in pieces."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits, as others can compute it."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_unchanged(path: Path) -> str:
    """Return `digest_file` of a file; as long as its size and time do not change, this process reads it once."""
    status = path.stat()
    return _digest_at(path.absolute(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest_at(path: Path, size: int, changed: int) -> str:
    return digest_file(path)
