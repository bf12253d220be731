"""Writes synthetic images atomically, shard by shard, with their provenance. A killed run loses at most one shard.

A shard holds consecutive plan rows of whole slots. It is an artifact of the store below RUN/stages; its key is the
contents of the rows and a digest of everything that makes and checks images. It holds the kept images, their rows, and
the results of all checks. Each file has a checksum, so another plan, another denoiser or a damaged byte never passes.

Every PNG has text chunks (PNG 11.3.3): Software, Description, Synthetic, Run and UID.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from medlt._version import __version__
from medlt.csv_text import as_csv
from medlt.data.convert.encode import png
from medlt.data.dicom.synthetic import Origin, synthetic_bytes
from medlt.data.manifest import uids_in
from medlt.files import atomic, digest, read_table, write_bytes, write_table, write_text
from medlt.folders import MOST_FILES, require_no_link, subfolders
from medlt.processes import Build
from medlt.store import Artifact, Store
from medlt.types import Batch, CheckResult, InputError

FORMAT = 2
KIND = "shards"
WRITERS = 4
COLUMNS = ("check", "uid", "value", "limit", "passed", "reason")
TYPES = ("string", "string", "double", "double", "bool", "string")
GROUP = 256
"""Number of shards whose tables are read at a time; their results are a group of rows in the file."""
PROVENANCE = ("synthetic", "run", "method", "models", "finding", "seed", "weight", "split", "view")
"""Columns of metadata.csv after the labels."""
PARENTS = ("tail_parent", "head_parent", "label_source", "parents")
"""Columns with uids of real images; a private run does not hand them out."""


def to_uint8(images: Tensor) -> np.ndarray:
    """Return [B,1,H,W] in [0,1] as uint8 [B,H,W], rounded half up. Raises ValueError on a value that is not finite."""
    if not bool(torch.isfinite(images).all()):
        raise ValueError("an image has values that are not finite, so it is not written; check denoiser and codec")
    return (images[:, 0].clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()


def digest_rows(rows: pd.DataFrame) -> str:
    """Return 16 hex digits of plan rows: of their uids in order and of all values, but not of the column types.

    Rows in memory and the same rows read from a parquet file have equal digits.
    """
    values = {str(name): [_plain(value) for value in column] for name, column in rows.items()}
    return digest([str(uid) for uid in rows.index], values)


def _plain(value: Any) -> Any:
    """Return a number, a text, a list of texts, or None for a missing value."""
    if isinstance(value, list | tuple | np.ndarray):
        return uids_in(value)
    return None if pd.isna(value) else value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True)
class DatasetWriter:
    """The shards of one plan below `folder`/stages/shards, and the published images in `folder`/images.

    models: digest of everything that decides how an image looks and whether it is kept: models, checks, settings.
    run_id: id of the run, written into every image. A shard belongs to the plan after the first call of `has`, `write`
    or `shard` with its rows; the order of these calls is the order of the plan.
    """

    folder: Path
    models: str
    run_id: str = ""
    _shards: dict[str, Path | None] = field(default_factory=dict, init=False, repr=False, compare=False)
    _home: dict[str, Path] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def store(self) -> Store:
        """The store of the shards."""
        return Store(self.folder / "stages")

    def _key(self, rows: pd.DataFrame) -> dict[str, Any]:
        return {"format": FORMAT, "rows": digest_rows(rows), "models": self.models, "run": self.run_id}

    def has(self, rows: pd.DataFrame) -> bool:
        """Return whether the shard of these rows exists. A damaged shard is reported and moved aside."""
        key = self._key(rows)
        return self._belongs(key["rows"], self.store.find(KIND, key))

    def _belongs(self, named: str, shard: Artifact | None) -> bool:
        """Register a shard, or its place in the order, as part of the plan, and return whether it exists."""
        self._shards[named] = None if shard is None else shard.folder
        images = (name for name in (shard.files if shard else ()) if name.startswith("images/"))
        self._home.update({Path(name).stem: shard.folder for name in images if shard})
        return shard is not None

    def write(self, rows: pd.DataFrame, batch: Batch, results: Sequence[CheckResult], kept: Sequence[str]) -> None:
        """Write the shard of plan rows `rows`: the images of `kept`, their rows and labels, and all check results.

        batch: the images of exactly these rows. An image that cannot be written raises its error and leaves no shard.
        """
        self.shard(rows, lambda: (batch, results, kept))

    def shard(self, rows: pd.DataFrame, make: Callable[[], tuple[Batch, Sequence[CheckResult], Sequence[str]]]) -> None:
        """Find the shard of these rows, or call `make` under a lock for the arguments of `write`."""

        def build(folder: Path) -> None:
            batch, results, kept = make()
            if list(batch.rows.index) != list(rows.index):
                raise ValueError("the batch has other rows than the plan; give the images of exactly these rows")
            _fill(folder, batch, results, kept, self.run_id)

        key = self._key(rows)
        self._belongs(key["rows"], self.store.make(KIND, key, build))
        self.store.used.clear()  # of which a run needs no record, and has thousands

    def _opened(self) -> list[Path]:
        """Return the folders of the shards in the order of the plan."""
        return [self._sound(shard) for shard in self._shards.values() if shard is not None]

    def _sound(self, folder: Path) -> Path:
        """Return the folder of a shard. Raises InputError if it is damaged."""
        if self.store.open(KIND, folder) is None:
            raise InputError(f"{folder}: damaged while in use; run the same command again, which makes it again")
        return folder

    def kept(self) -> pd.DataFrame:
        """Return all kept rows with their labels, indexed by uid, in plan order, with the integers of the plan."""
        return _joined(folder / "kept.parquet" for folder in self._opened())

    def write_results(self, path: Path, more: Sequence[CheckResult] = ()) -> None:
        """Write the results of all checks, and `more`, one row per check and image; GROUP shards are in memory."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema(zip(COLUMNS, map(pa.type_for_alias, TYPES), strict=True))
        shards = (pq.read_table(folder / "checks.parquet", columns=list(COLUMNS)) for folder in self._opened())
        with atomic(path) as temporary, pq.ParquetWriter(temporary, schema) as file:
            while group := [table.cast(schema) for table in islice(shards, GROUP)]:
                file.write_table(pa.concat_tables(group))
            if more:
                file.write_table(pa.Table.from_pylist([vars(one) for one in more], schema))

    def _files(self, uids: Sequence[str]) -> list[Path]:
        """Return the files of these kept images, after their shards are verified."""
        for folder in dict.fromkeys(self._home[uid] for uid in uids):
            self._sound(folder)
        return [self._home[uid] / "images" / f"{uid}.png" for uid in uids]

    def read(self, uids: Sequence[str]) -> Tensor:
        """Return kept images of the plan, uint8 [n,1,H,W]. Raises KeyError for another uid."""
        return torch.stack([torch.from_numpy(np.array(Image.open(file)))[None] for file in self._files(uids)])

    def keep(self, kind: str, rows: pd.DataFrame, build: Build) -> None:
        """Copy files made of these plan rows into the folder; `build` makes them unless the store has them, sound."""
        kept = self.store.make(kind, self._key(rows), build)
        for name in kept.files:
            data = kept.path(name).read_bytes()
            if not (target := self.folder / name).exists() or target.read_bytes() != data:
                write_bytes(target, data)

    def publish(self, uids: Sequence[str], limit: int = MOST_FILES) -> list[str]:
        """Copy these kept images to images/, and return their paths. The shards stay for a resume.

        `limit` images and more are in subfolders (`medlt.folders`). An existing file of the same name with other bytes
        is replaced; other images move to superseded/images/.
        """
        place, inside = self.folder / "images", subfolders(uids, limit)
        names = [f"{inside[uid]}{uid}.png" for uid in uids]
        require_no_link(place, names)
        for name, file in zip(names, self._files(uids), strict=True):
            target, data = place / name, file.read_bytes()
            if not target.exists() or target.read_bytes() != data:
                write_bytes(target, data)
        self._set_aside(set(names))
        return [f"images/{name}" for name in names]

    def _set_aside(self, known: set[str]) -> None:
        """Move images that are not of the plan from images/ to superseded/images/, with a warning."""
        place, aside = self.folder / "images", self.folder / "superseded" / "images"
        strange = sorted(path for path in place.rglob("*.png") if path.relative_to(place).as_posix() not in known)
        for path in strange:
            target = aside / path.relative_to(place)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        if strange:
            logging.getLogger(__name__).warning(
                "%s: %d images are not in this run's plan, such as %s; they are now in %s",
                place, len(strange), strange[0].name, aside,
            )  # fmt: skip


def synthetic_png(pixels: np.ndarray, uid: str = "", run_id: str = "") -> bytes:
    """Return a grayscale PNG of uint8 or uint16 [h,w] with text chunks that mark it as synthetic.

    Equal arguments give equal bytes. An empty argument has no chunk.
    """
    about = {
        "Software": f"medlt {__version__}",
        "Description": "Synthetic image",
        "Synthetic": "true",
        "Run": run_id,
        "UID": uid,
    }
    return png(pixels, {keyword: text for keyword, text in about.items() if text})


def _fill(folder: Path, batch: Batch, results: Sequence[CheckResult], kept: Sequence[str], run_id: str) -> None:
    """Write the files of a shard: images, several at a time, then the tables."""
    chosen = np.flatnonzero(batch.rows.index.isin(set(kept)))
    uids, pixels = [str(uid) for uid in batch.rows.index[chosen]], to_uint8(batch.images[chosen])
    for left in (folder / "images").glob("*.png"):  # of an interrupted call, which may have kept others
        left.unlink()

    def write(uid: str, image: np.ndarray) -> None:
        write_bytes(folder / "images" / f"{uid}.png", synthetic_png(image, uid, run_id))

    with ThreadPoolExecutor(WRITERS, "writer") as pool:  # encoding and fsync release the interpreter lock
        list(pool.map(write, uids, pixels))
    write_table(folder / "checks.parquet", pd.DataFrame([asdict(result) for result in results], columns=COLUMNS))
    rows = batch.rows.iloc[chosen].join(batch.labels.iloc[chosen])
    write_table(folder / "kept.parquet", rows.assign(path=[f"images/{uid}.png" for uid in uids]))


def _joined(files: Iterable[Path]) -> pd.DataFrame:
    """Return the tables one below the other, without empty ones."""
    tables, groups = (table for file in files if len(table := read_table(file))), []
    while group := list(islice(tables, GROUP)):  # a small table in memory takes ten times the room of its rows
        groups.append(pd.concat(group))
    return pd.concat(groups) if groups else pd.DataFrame()


def metadata(rows: pd.DataFrame, findings: Sequence[str], files: Mapping[str, str], *, parents: bool) -> pd.DataFrame:
    """Return the metadata of a Hugging Face `imagefolder`: file_name, uid, labels, then PROVENANCE and PARENTS.

    files: uid to file name. Empty columns are left out, and PARENTS unless `parents`. The column parents holds JSON
    lists of uids.
    """
    wanted = (*PROVENANCE, *(PARENTS if parents else ()))
    present = [name for name in wanted if name in rows and rows[name].notna().any()]
    table = rows[[*findings, *present]].copy()
    if "parents" in table:
        table["parents"] = [json.dumps(uids_in(value), ensure_ascii=False) for value in table["parents"]]
    table.insert(0, "file_name", [files[str(uid)] for uid in rows.index])
    table.insert(1, "uid", [str(uid) for uid in rows.index])
    return table


def write_metadata(folder: Path, rows: pd.DataFrame, findings: Sequence[str], *, parents: bool) -> None:
    """Write images/metadata.csv, which makes `folder`/images a Hugging Face `imagefolder`; see `metadata`.

    rows: of the images, with the column path, below `folder`.
    """
    files = {str(uid): str(path).removeprefix("images/") for uid, path in rows["path"].items()}
    write_text(folder / "images" / "metadata.csv", as_csv(metadata(rows, findings, files, parents=parents)))


def write_dicom(folder: Path, rows: pd.DataFrame, findings: Sequence[str]) -> None:
    """Write dicom/UID.dcm with the pixels of each published PNG; `rows` have the columns path, method and models.

    It is in the same subfolder as the PNG in images/. An existing file with equal bytes stays as it is.
    """
    files = {uid: str(path).removeprefix("images/") for uid, path in rows["path"].items()}
    require_no_link(folder / "dicom", files.values())
    for uid, row in rows.iterrows():
        target = (folder / "dicom" / files[uid]).with_name(f"{uid}.dcm")
        labels = {name: float(row[name]) for name in findings}
        origin = Origin(str(uid), row["method"], row["models"], labels)
        data = synthetic_bytes(np.asarray(Image.open(folder / row["path"])), origin)
        if not target.exists() or target.read_bytes() != data:
            write_bytes(target, data)
