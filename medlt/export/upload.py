"""Upload of a finished folder to a URL: complete, or seen as incomplete and resumed.

    PREFIX/upload.begun.json    written first: what will be uploaded; removed last
    PREFIX/...                  the files, in any order
    PREFIX/upload.json          written after them: every file with its size and digest, their number, and one digest

An object store replaces single objects only, so the record is what makes an upload whole. A reader takes an upload
without `upload.json` for incomplete. A second call with the same files uploads those that are not there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medlt.files import digest, digest_file
from medlt.remote import connected, in_parallel, public, remote_errors
from medlt.types import InputError, Progress

BEGUN, RECORD = "upload.begun.json", "upload.json"
FORMAT = "medlt upload 1"
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


def upload(folder: Path, url: str, progress: Progress | None = None) -> dict[str, Any]:
    """Upload all files below `folder` to the URL, and return the record (upload.json).

    Objects that are there with the same bytes are not sent again. Raises InputError for a URL that holds anything else:
    nothing is overwritten; and if the server cannot be used, after which the same call resumes.
    """
    url = url.rstrip("/")
    system, prefix = connected(url)
    plan = _plan(folder)
    with _store_errors(url):
        if _begin(system, prefix, plan, url):
            return plan
        there = _objects(system, prefix)
        lacking = [name for name in plan["files"] if not _is_equal(there.get(name), folder / name)]
        for done in range(0, len(lacking), 64):  # some at a time, so that progress is shown and an interrupt is quick
            part = lacking[done : done + 64]
            in_parallel(lambda name: system.put_file(str(folder / name), f"{prefix}/{name}"), part)
            if progress:
                progress("upload", done + len(part), len(lacking))
        _require_sizes(_objects(system, prefix), plan["files"], url)
        system.pipe_file(f"{prefix}/{RECORD}", _text(plan))
        with suppress(FileNotFoundError):
            system.rm_file(f"{prefix}/{BEGUN}")
    return plan


def read_upload(url: str) -> dict[str, Any]:
    """Return the record of a whole upload. Raises InputError if it is incomplete, or an object is missing."""
    url = url.rstrip("/")
    system, prefix = connected(url)
    with _store_errors(url):
        record = _read(system, f"{prefix}/{RECORD}")
        if record is None:
            raise InputError(f"{public(url)}: no {RECORD} there, so it is incomplete; run the same export again")
        _require_sizes(_objects(system, prefix), record["files"], url)
    return record


@contextmanager
def _store_errors(url: str) -> Iterator[None]:
    """Raise InputError, in one line, for an error of the server, or for a bucket that does not exist."""
    try:
        with remote_errors(url):
            yield
    except FileNotFoundError:
        raise InputError(f"{public(url)}: no such bucket or folder; make it first, or check the URL") from None


def _plan(folder: Path) -> dict[str, Any]:
    """Return the record of all files of a folder."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: {"bytes": (folder / name).stat().st_size, "digest": digest_file(folder / name)} for name in names}
    return {"format": FORMAT, "count": len(files), "digest": digest(files), "files": files}


def _begin(system: Any, prefix: str, plan: Mapping[str, Any], url: str) -> bool:
    """Write the plan first, and return False; True if the upload is there. Raises InputError for another one."""
    other = f"{public(url)}: holds another export; choose another URL, nothing is overwritten"
    if (whole := _read(system, f"{prefix}/{RECORD}")) is not None:
        if whole != plan:
            raise InputError(other)
        _require_sizes(_objects(system, prefix), plan["files"], url)
        return True
    begun = _read(system, f"{prefix}/{BEGUN}")
    if begun is None:
        if strange := sorted(_objects(system, prefix)):
            raise InputError(f"{public(url)}: is not empty, it holds {strange[0]}; choose another URL")
        try:
            system.pipe_file(f"{prefix}/{BEGUN}", _text(plan), mode="create")
        except FileExistsError:  # another process began meanwhile
            begun = _read(system, f"{prefix}/{BEGUN}")
    if begun is not None and begun != plan:
        raise InputError(f"{public(url)}: another export was begun there; finish that one, or choose another URL")
    return False


def _objects(system: Any, prefix: str) -> dict[str, Mapping[str, Any]]:
    """Return name below the prefix -> what the file system says of the object."""
    try:
        entries = system.find(prefix, detail=True)
    except FileNotFoundError:
        return {}
    base = prefix.rstrip("/") + "/"
    return {name.removeprefix(base): info for name, info in entries.items() if name.startswith(base)}


def _is_equal(info: Mapping[str, Any] | None, file: Path) -> bool:
    """Return whether an object of this upload has the file's bytes: by its MD5 where its ETag is one, else its size."""
    if info is None or info.get("size") != file.stat().st_size:
        return False
    tag = _MD5.fullmatch(str(info.get("ETag") or ""))
    if tag is None:
        return True
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == tag[1]


def _require_sizes(there: Mapping[str, Mapping[str, Any]], files: Mapping[str, Any], url: str) -> None:
    """Raise InputError for an object that is missing, or has another size than its file."""
    wrong = [name for name in files if name not in there or there[name].get("size") != files[name]["bytes"]]
    if wrong:
        raise InputError(f"{public(url)}/{wrong[0]}: missing or cut short; delete it, and run the same export again")


def _read(system: Any, path: str) -> dict[str, Any] | None:
    """Return the JSON object at a path, None if there is none or it is damaged."""
    try:
        return dict(json.loads(system.cat_file(path)))
    except (FileNotFoundError, ValueError):
        return None


def _text(plan: Mapping[str, Any]) -> bytes:
    return (json.dumps(plan, indent=1, sort_keys=True) + "\n").encode()
