"""The pixel cache: each file is decoded once, to 8-bit squares that all stages and runs share.

One pass reads each file, hashes its bytes, decodes it, takes its `image_hash` and resizes it to all sizes. The store
holds the squares in shards of up to 512 images under the digests of the files' bytes, so a file that was replaced under
its old name is another image. A table maps path, length, times and inode of a file to its digest, so that an unchanged
file is not read again.

    ROOT/images-SIZE/DIGEST/     images.npy uint8 [n,SIZE,SIZE]; contents.json: of each image, the digest of its file
                                 and its hash
    ROOT/pixels/DIGEST.parquet   the files of one collection, and the digests of their bytes
"""

from __future__ import annotations

import io
import json
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from medlt.data.dicom.guard import Unreadable, read_bytes
from medlt.data.duplicates import ImageHash, image_hash
from medlt.data.file_states import State, remember_contents, remembered_contents, state_of, states_of
from medlt.data.images import levels_in
from medlt.data.loaders import Radiographs
from medlt.data.manifest import Manifest
from medlt.data.squares import Place, SquareItems, eight_bit, stored_rows
from medlt.data.validate import ImagesRead
from medlt.files import digest, digest_bytes, locked, write_json
from medlt.remote import as_file, is_url, location
from medlt.rows import StoredRows
from medlt.store import Store
from medlt.training.runtime import silent
from medlt.types import InputError, Progress

FORMAT = 2  # raise it when the results of `eight_bit`, `read_levels` or `image_hash` change
SHARD, SHARD_BYTES = 512, 2**26
FAILURES = ["uid", "code", "reason"]
FILE = "\0"  # stands for the file in the reason of a failure


@dataclass(frozen=True)
class _Read:
    """Result of reading a file: the digest of its bytes, a failure (code, reason), and squares not yet stored.

    `hash` is None if the file was not decoded.
    """

    content: str = ""
    failure: tuple[str, str] | None = None
    state: State | None = None
    squares: Mapping[int, np.ndarray] = field(default_factory=dict)
    hash: ImageHash | None = None


@dataclass(frozen=True)
class PixelCache:
    """8-bit squares of the images of any manifest, kept in `store`; `workers` threads decode."""

    store: Store
    workers: int
    _known: dict[int, dict[str, Place]] = field(default_factory=dict, repr=False, compare=False)
    _seen: set[Path] = field(default_factory=set, repr=False, compare=False)

    def prepare(
        self, manifest: Manifest, sizes: Sequence[int], progress: Progress = silent
    ) -> tuple[Manifest, pd.DataFrame]:
        """Fill the cache; return the readable rows, with `content`, and a table uid, code, reason of the others.

        The cache then holds squares of every size in `sizes`. Each file is decoded at most once, whatever the number of
        sizes; a second process that prepares the same files waits for the first. Reasons contain uids, not paths.
        Raises InputError if the cache cannot be written.
        """
        paths = {uid: location(manifest.file(uid)) for uid in manifest.rows.index}
        table = self.store.root / "pixels" / f"{digest(sorted(paths.values()))}.parquet"
        with locked(table.with_suffix(".lock"), "the same images"):
            began = time.time_ns()
            remembered = remembered_contents(table)
            read = self._read_all(paths, tuple(dict.fromkeys(sizes)), remembered, progress)
            contents = {one.state: one.content for one in read.values() if one.state and one.failure is None}
            remember_contents(table, contents, began, remembered)
        failures = [(uid, *one.failure) for uid, one in read.items() if one.failure]
        rows = manifest.rows[[read[uid].failure is None for uid in manifest.rows.index]]
        rows = rows.assign(content=pd.Series({uid: read[uid].content for uid in rows.index}, rows.index, dtype="str"))
        named = [(uid, code, reason.replace(FILE, uid)) for uid, code, reason in failures]
        return Manifest(rows, manifest.findings, manifest.root), pd.DataFrame(named, columns=FAILURES)

    def images(self, manifest: Manifest, size: int, uids: Sequence[str] | None = None) -> Tensor:
        """Return squares uint8 [N,1,size,size] in the order of `uids` (default: of the rows); see `rows`."""
        return self._stored(manifest, size, uids)[:]

    def rows(self, manifest: Manifest, size: int) -> StoredRows:
        """Return the squares of all rows, uint8 [N,1,size,size], in memory if they are few, else on disk.

        Images that are not in the cache are read from their files, whose digests must equal the column `content` where
        it is not blank. Raises InputError for a file that cannot be read or has another digest.
        """
        return self._stored(manifest, size, None).loaded()

    def dataset(self, manifest: Manifest, size: int) -> Radiographs:
        """Return a data set of dicts uid, image float32 [1,size,size] in [0,1], label, weight. Raises as `rows`."""
        return Radiographs(manifest, SquareItems(self.rows(manifest, size)))

    def hashes(self, manifest: Manifest, size: int) -> dict[str, ImageHash]:
        """Return uid -> hash of images of which the cache holds squares of this size: rows that `prepare` returned."""
        contents = manifest.rows["content"]
        self._scan_shards(size, contents)
        wanted = {self._known[size][content][0] for content in set(contents)}
        hashes: dict[str, ImageHash] = {}
        for folder in wanted:
            shard = json.loads((folder / "contents.json").read_text())
            hashes |= dict(zip(shard["contents"], map(ImageHash.parse, shard["hashes"]), strict=True))
        return {str(uid): hashes[content] for uid, content in contents.items()}

    def _stored(self, manifest: Manifest, size: int, uids: Sequence[str] | None) -> StoredRows:
        """Return squares in the order of `uids`, on disk. A digest of a row is that of its file, and the format."""
        places, contents = self._places(manifest, size, uids)
        return stored_rows(places, [f"{content}/{size}/{FORMAT}" for content in contents], size)

    def _places(self, manifest: Manifest, size: int, uids: Sequence[str] | None) -> tuple[list[Place], list[str]]:
        """Return the place and the content of each square, shards verified; missing images are prepared first."""
        rows = manifest.rows if uids is None else manifest.rows.loc[list(uids)]
        contents = dict(rows["content"].dropna()) if "content" in rows else {}
        self._scan_shards(size, contents.values())
        cached = self._verified(size, contents.values())
        lacking = [uid for uid in dict.fromkeys(rows.index) if contents.get(uid) not in cached]
        if lacking:
            ready, failures = self.prepare(
                Manifest(manifest.rows.loc[lacking], manifest.findings, manifest.root), (size,)
            )
            if len(failures):
                raise Unreadable(failures["code"].iloc[0], failures["reason"].iloc[0])
            for uid, content in ready.rows["content"].items():
                if contents.setdefault(uid, content) != content:
                    message = f"{manifest.file(uid).absolute()} changed since this run began (uid {uid})"
                    raise InputError(f"{message}; run again, so that all stages use the same image")
        known, named = self._known[size], [contents[uid] for uid in rows.index]
        return [known[content] for content in named], named

    def _scan_shards(self, size: int, contents: Iterable[str]) -> None:
        """List new shards of the store, unverified, if one of these contents is in no known shard."""
        known = self._known.setdefault(size, {})
        if all(content in known for content in contents):
            return
        for folder in set(self.store.folders(f"images-{size}")) - self._seen:
            try:
                shard = json.loads((folder / "contents.json").read_text())
                digests = shard["contents"] if shard["format"] == FORMAT else ()
                known |= {str(content): (folder, row) for row, content in enumerate(digests)}
            except (OSError, ValueError, TypeError, KeyError):
                self.store.open(f"images-{size}", folder)  # its warning names the damaged file
            self._seen.add(folder)

    def _verified(self, size: int, contents: Iterable[str]) -> set[str]:
        """Return the contents whose shards have valid checksums; forget the shards that do not."""
        known, wanted = self._known[size], set(contents)
        folders = {known[content][0] for content in wanted if content in known}
        for folder in folders:
            if self.store.open(f"images-{size}", folder) is None:
                self._seen.discard(folder)
                for content in [content for content, (place, _) in known.items() if place == folder]:
                    del known[content]
        return wanted & known.keys()

    def _read_all(
        self, paths: Mapping[str, str], sizes: tuple[int, ...], remembered: Mapping[State, str], progress: Progress
    ) -> dict[str, _Read]:
        """Read all files; unchanged files whose squares are cached are not opened."""
        read: dict[str, _Read] = {}
        for uid, state in zip(paths, states_of(paths.values()), strict=True):
            if state is not None and (content := remembered.get(state)):
                read[uid] = _Read(content, state=state)
        cached = {one.content for one in read.values()}
        for size in sizes:
            self._scan_shards(size, (*cached, ""))
            cached = self._verified(size, cached)
        todo = [uid for uid in paths if uid not in read or read[uid].content not in cached]
        step = max(1, min(SHARD, SHARD_BYTES // max(1, sum(size * size for size in sizes))))
        for start in range(0, len(todo), step):
            part = todo[start : start + step]
            read |= self._read_part({uid: paths[uid] for uid in part}, sizes)
            progress("images", len(paths) - len(todo) + start + len(part), len(paths))
        return {uid: read[uid] for uid in paths}

    def _read_part(self, paths: Mapping[str, str], sizes: tuple[int, ...]) -> dict[str, _Read]:
        """Read some files and store the missing squares in new shards."""
        lock, claimed = threading.Lock(), set[str]()

        def lacking(content: str) -> list[int]:
            """Return the sizes to decode this content for; empty for a second file with the same content."""
            with lock:
                if content in claimed:
                    return []
                claimed.add(content)
                return [size for size in sizes if not self._verified(size, (content,))]

        read = _in_threads(lambda path: _read(path, lacking), list(paths.values()), self.workers)
        for size in sizes:
            self._publish(size, [one for one in read if size in one.squares])
        failed = {one.content: one.failure for one in read if one.failure and one.content}
        bare = [replace(one, failure=one.failure or failed.get(one.content), squares={}, hash=None) for one in read]
        return dict(zip(paths, bare, strict=True))

    def _publish(self, size: int, read: Collection[_Read]) -> None:
        """Store one shard of squares, keyed by the digests of their files."""
        if not read:
            return
        contents = [one.content for one in read]

        def build(folder: Path) -> None:
            np.save(squares := io.BytesIO(), np.stack([one.squares[size] for one in read]))
            (folder / "images.npy").write_bytes(squares.getbuffer())  # np.save itself hides that the disk is full
            hashes = [str(one.hash) for one in read]
            write_json(folder / "contents.json", {"format": FORMAT, "contents": contents, "hashes": hashes})

        shard = self.store.make(f"images-{size}", {"format": FORMAT, "size": size, "contents": contents}, build)
        self._known[size] |= {content: (shard.folder, row) for row, content in enumerate(contents)}
        self._seen.add(shard.folder)


def read_into(cache: PixelCache, manifest: Manifest, sizes: Sequence[int], progress: Progress = silent) -> ImagesRead:
    """Fill the cache with squares of these sizes, at least one, and return the hashes and the unreadable images."""
    ready, failures = cache.prepare(manifest, sizes, progress)
    return ImagesRead(failures, cache.hashes(ready, sizes[0]) if len(ready.rows) else {})


def _read(path: str, lacking: Callable[[str], list[int]]) -> _Read:
    """Read one file: digest, and squares of the missing sizes. An unreadable file becomes a failure, not an error."""
    content, state, shown = "", state_of(path), str(as_file(path))
    try:
        raw = read_bytes(path)
        content = digest_bytes(raw)
        sizes = lacking(content)
        if not sizes:
            return _Read(content, None, state)
        levels = levels_in(raw, as_file(path))
        squares = {size: eight_bit(levels, size) for size in sizes}
        if is_url(path) or state_of(path) == state:
            return _Read(content, None, state, squares, image_hash(levels))
        failure = ("changed", f"{FILE}: the file changed during the read; run again when it is complete")
    except InputError as error:
        failure = (error.code if isinstance(error, Unreadable) else "bad_input", str(error).replace(shown, FILE))
    except Exception as error:  # any decoder error concerns this file only
        reason = (str(error).replace(shown, FILE) or type(error).__name__).splitlines()[0]
        failure = ("corrupt", f"{FILE}: damaged image ({reason}); restore the file from its source")
    return _Read(content, failure)


def _in_threads(read: Callable[[str], _Read], paths: Sequence[str], workers: int) -> list[_Read]:
    """Return `read` of each path, in order. An interrupt stops after the files that are being read."""
    pool = ThreadPoolExecutor(max(1, workers), "pixels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # also here: filters are global, and reader threads reset each other's
        try:
            return list(pool.map(read, paths))
        finally:
            pool.shutdown(cancel_futures=True)
