"""The pixel cache: every original is decoded once, to 8-bit squares that all stages and runs share.

One pass reads each file, names its bytes, decodes it and shrinks it to every size that is wanted. The squares lie in
the store in shards of up to 512 images, found by the names of the files' bytes, so an image that was replaced under its
old name is another image. A table beside them remembers which file holds which bytes by path, length, times and inode,
so that a file that did not change is not read again.

    ROOT/images-SIZE/DIGEST/     images.npy uint8 [n,SIZE,SIZE], contents.json: what names the bytes of each one's file
    ROOT/pixels/DIGEST.parquet   the files of one collection, and what names their bytes
"""

from __future__ import annotations

import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medlt.data.dicom.guard import Unreadable, read_bytes
from medlt.data.images import read_image
from medlt.data.loaders import Radiographs, square
from medlt.data.manifest import Manifest
from medlt.files import digest, digest_bytes, locked, write_json, write_table
from medlt.store import Store
from medlt.training.runtime import silent
from medlt.types import InputError, Progress

FORMAT = 1  # raise it when `square` or `read_image` change what they return
SHARD, SHARD_BYTES = 512, 2**26
RACY_NS = 2 * 10**9
"""A file that changed this shortly before it was read is read again: its times may not tell the next change."""

FAILURES = ["uid", "code", "reason"]
STATE = ["path", "size", "mtime_ns", "ctime_ns", "inode"]
FILE = "\0"  # stands for the file in the reason of a failure
State = tuple[str, int, int, int, int]
Place = tuple[Path, int]


@dataclass(frozen=True)
class _Read:
    """What is known of a file: what names its bytes; why it cannot be read (code, reason); squares not yet stored."""

    content: str = ""
    failure: tuple[str, str] | None = None
    state: State | None = None
    squares: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class PixelCache:
    """8-bit squares of all images of any manifest, in `store`; `workers` threads decode."""

    store: Store
    workers: int
    _known: dict[int, dict[str, Place]] = field(default_factory=dict, repr=False, compare=False)
    _seen: set[Path] = field(default_factory=set, repr=False, compare=False)
    _arrays: dict[Path, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def prepare(
        self, manifest: Manifest, sizes: Sequence[int], progress: Progress = silent
    ) -> tuple[Manifest, pd.DataFrame]:
        """Return the rows whose file can be read, with `content`, and a table uid, code, reason of the others.

        Afterwards squares of every size of `sizes` are in the cache. Each file is decoded at most once, whatever the
        number of sizes; a second process that prepares the same files waits for the first. Reasons name uids, not
        paths. Raises InputError where the cache cannot be written.
        """
        paths = {uid: os.path.abspath(manifest.file(uid)) for uid in manifest.rows.index}
        table = self.store.root / "pixels" / f"{digest(sorted(paths.values()))}.parquet"
        with locked(table.with_suffix(".lock"), "preparing the same images"):
            began = time.time_ns()
            remembered = _remembered(table)
            read = self._read_all(paths, tuple(dict.fromkeys(sizes)), remembered, progress)
            _remember(table, read.values(), began, remembered)
        failures = [(uid, *one.failure) for uid, one in read.items() if one.failure]
        rows = manifest.rows[[read[uid].failure is None for uid in manifest.rows.index]]
        rows = rows.assign(content=pd.Series({uid: read[uid].content for uid in rows.index}, rows.index, dtype="str"))
        told = [(uid, code, reason.replace(FILE, uid)) for uid, code, reason in failures]
        return Manifest(rows, manifest.findings, manifest.root), pd.DataFrame(told, columns=FAILURES)

    def images(self, manifest: Manifest, size: int, uids: Sequence[str] | None = None) -> Tensor:
        """Return squares uint8 [N,1,size,size] in the order of `uids`, by default of the rows.

        What is not in the cache is read, from files that must hold what the column `content` says, where it is there.
        Raises InputError for a file that cannot be read or holds something else.
        """
        places = self._places(manifest, size, uids)
        held = torch.empty((len(places), 1, size, size), dtype=torch.uint8)
        for i, place in enumerate(places):
            held[i, 0] = self._square(place)
        return held

    def dataset(self, manifest: Manifest, size: int) -> Radiographs:
        """Return a data set of dicts: uid, image float32 [1,size,size] in [0,1], label, weight. Raises as `images`."""
        return Radiographs(manifest, _Squares(self._square, self._places(manifest, size, None)))

    def _places(self, manifest: Manifest, size: int, uids: Sequence[str] | None) -> list[Place]:
        """Where the squares lie, shards verified; those that are not in the cache are prepared first."""
        rows = manifest.rows if uids is None else manifest.rows.loc[list(uids)]
        contents = dict(rows["content"].dropna()) if "content" in rows else {}
        self._learn(size, contents.values())
        cached = self._sound(size, contents.values())
        lacking = [uid for uid in dict.fromkeys(rows.index) if contents.get(uid) not in cached]
        if lacking:
            ready, failures = self.prepare(
                Manifest(manifest.rows.loc[lacking], manifest.findings, manifest.root), (size,)
            )
            if len(failures):
                raise Unreadable(failures["code"].iloc[0], failures["reason"].iloc[0])
            for uid, content in ready.rows["content"].items():
                if contents.setdefault(uid, content) != content:
                    told = f"{manifest.file(uid)} was replaced since this run looked at it (uid {uid})"
                    raise InputError(f"{told}; run again, so that everything is made of the same image")
        known = self._known[size]
        return [known[contents[uid]] for uid in rows.index]

    def _learn(self, size: int, contents: Iterable[str]) -> None:
        """Hear of the shards in the store, not yet verified, where some of these are in none that is known."""
        known = self._known.setdefault(size, {})
        if all(content in known for content in contents):
            return
        for folder in set(self.store.folders(f"images-{size}")) - self._seen:
            try:
                told = json.loads((folder / "contents.json").read_text())
                held = told["contents"] if told["format"] == FORMAT else ()
                known |= {str(content): (folder, row) for row, content in enumerate(held)}
            except (OSError, ValueError, TypeError, KeyError):
                self.store.open(f"images-{size}", folder)  # which names the damage
            self._seen.add(folder)

    def _sound(self, size: int, contents: Iterable[str]) -> set[str]:
        """Those of these contents whose squares are in shards that have their checksums; others are forgotten."""
        known, wanted = self._known[size], set(contents)
        folders = {known[content][0] for content in wanted if content in known}
        for folder in folders:
            if self.store.open(f"images-{size}", folder) is None:
                self._arrays.pop(folder, None)
                self._seen.discard(folder)
                for content in [content for content, (place, _) in known.items() if place == folder]:
                    del known[content]
        return wanted & known.keys()

    def _read_all(
        self, paths: Mapping[str, str], sizes: tuple[int, ...], remembered: Mapping[State, str], progress: Progress
    ) -> dict[str, _Read]:
        """What is known of each file afterwards; files that are remembered and cached are not opened."""
        read: dict[str, _Read] = {}
        for uid, path in paths.items():
            if (state := _state(path)) is not None and (content := remembered.get(state)):
                read[uid] = _Read(content, state=state)
        cached = {one.content for one in read.values()}
        for size in sizes:
            self._learn(size, (*cached, ""))
            cached = self._sound(size, cached)
        todo = [uid for uid in paths if uid not in read or read[uid].content not in cached]
        step = max(1, min(SHARD, SHARD_BYTES // max(1, sum(size * size for size in sizes))))
        for start in range(0, len(todo), step):
            part = todo[start : start + step]
            read |= self._read_part({uid: paths[uid] for uid in part}, sizes)
            progress("images", len(paths) - len(todo) + start + len(part), len(paths))
        return {uid: read[uid] for uid in paths}

    def _read_part(self, paths: Mapping[str, str], sizes: tuple[int, ...]) -> dict[str, _Read]:
        """Read some files, and put the squares that are lacking into shards of their own."""
        lock, claimed = threading.Lock(), set[str]()

        def lacking(content: str) -> list[int]:
            """Sizes this content is to be decoded for: by the first file that holds it."""
            with lock:
                if content in claimed:
                    return []
                claimed.add(content)
                return [size for size in sizes if not self._sound(size, (content,))]

        read = _in_threads(lambda path: _read(path, lacking), list(paths.values()), self.workers)
        for size in sizes:
            self._publish(size, {one.content: one.squares[size] for one in read if size in one.squares})
        failed = {one.content: one.failure for one in read if one.failure and one.content}
        told = [replace(one, failure=one.failure or failed.get(one.content), squares={}) for one in read]
        return dict(zip(paths, told, strict=True))

    def _publish(self, size: int, squares: Mapping[str, np.ndarray]) -> None:
        """One shard of these squares, by what names the bytes of their files."""
        if not squares:
            return
        contents = list(squares)

        def build(folder: Path) -> None:
            np.save(folder / "images.npy", np.stack(list(squares.values())))
            write_json(folder / "contents.json", {"format": FORMAT, "contents": contents})

        shard = self.store.make(f"images-{size}", {"format": FORMAT, "size": size, "contents": contents}, build)
        self._known[size] |= {content: (shard.folder, row) for row, content in enumerate(contents)}
        self._seen.add(shard.folder)

    def _square(self, place: Place) -> Tensor:
        """uint8 [size,size], mapped from the disk until it is copied."""
        folder, row = place
        if folder not in self._arrays:
            self._arrays[folder] = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        return torch.from_numpy(np.array(self._arrays[folder][row]))


@dataclass(frozen=True)
class _Squares:
    """The source of a data set: an image when it is asked for."""

    square: Callable[[Place], Tensor]
    places: Sequence[Place]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.square(self.places[index])[None].float() / 255}


def _read(path: str, lacking: Callable[[str], list[int]]) -> _Read:
    """One file: what names its bytes, and squares of the sizes that are lacking. No file stops the pass."""
    content, state = "", _state(path)
    try:
        content = digest_bytes(read_bytes(Path(path)))
        sizes = lacking(content)
        if not sizes:
            return _Read(content, None, state)
        pixels = read_image(Path(path))
        squares = {size: np.rint(square(pixels, size) * 255).astype(np.uint8) for size in sizes}
        if _state(path) == state:
            return _Read(content, None, state, squares)
        failure = ("changed", f"{FILE}: it changed while it was read; run again when it is complete")
    except InputError as error:
        failure = (error.code if isinstance(error, Unreadable) else "bad_input", str(error).replace(path, FILE))
    except Exception as error:  # whatever a decoder stumbles over is told of this file; the others are read
        told = (str(error).replace(path, FILE) or type(error).__name__).splitlines()[0]
        failure = ("corrupt", f"{FILE}: damaged image ({told}); restore the file from its source")
    return _Read(content, failure)


def _in_threads(read: Callable[[str], _Read], paths: Sequence[str], workers: int) -> list[_Read]:
    """`read` of each path, in order. An interrupt ends it after the files in hand."""
    pool = ThreadPoolExecutor(max(1, workers), "pixels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # here too: filters belong to the process, readers in threads undo each other's
        try:
            return list(pool.map(read, paths))
        finally:
            pool.shutdown(cancel_futures=True)


def _state(path: str) -> State | None:
    """What tells that a file did not change, or None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _remembered(table: Path) -> dict[State, str]:
    """What names the bytes of files in this state; nothing where the table is lost or damaged: files are read again."""
    try:
        rows = pd.read_parquet(table, columns=[*STATE, "content"])
    except (OSError, ValueError, KeyError):
        return {}
    return {tuple(state): str(content) for *state, content in rows.itertuples(index=False, name=None)}


def _remember(table: Path, read: Iterable[_Read], began: int, before: Mapping[State, str]) -> None:
    """Keep what names the bytes of files that had stopped changing before the pass began."""
    known = {one.state: one.content for one in read if one.state and one.failure is None}
    kept = {state: content for state, content in known.items() if max(state[2:4]) < began - RACY_NS}
    if kept == before:
        return
    rows = [(*state, content) for state, content in kept.items()]
    write_table(table, pd.DataFrame(rows, columns=[*STATE, "content"]))
