"""The images of a run as Parquet shards, as Hugging Face `datasets` has them: bytes, labels and provenance in one row.

`datasets.load_dataset("parquet", data_dir=OUT)` decodes the images, and `pandas.read_parquet(OUT + "/data")` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from medlt.data.manifest import Manifest
from medlt.export.images import ROWS, exported, gives_parents, image_bytes, prompts_of, shard_count
from medlt.export.provenance import write_provenance
from medlt.files import atomic
from medlt.writer import metadata

SPLITS = {"train": "train", "val": "validation", "test": "test"}
"""Split -> its name in `datasets`."""
GROUP = 100
"""Images in a row group, which is what a reader holds in memory."""


def export_parquet(run: Path, out: Path, real: bool = False, shard_size: int = ROWS) -> None:
    """Write OUT/data/SPLIT-00000-of-0000N.parquet, ..., OUT/provenance.json and the run's cards.

    Columns: image (bytes, path), uid, one a finding (1, 0, null for unknown, or a soft label), what made the image, and
    its prompt. A shard holds up to `shard_size` images of one split. Raises InputError if there is no image to write.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = exported(run, real)
    write_provenance(run, out)
    names = {str(uid): f"{uid}{manifest.file(str(uid)).suffix}" for uid in manifest.rows.index}
    table = metadata(manifest.rows, manifest.findings, names, parents=gives_parents(run))
    table = table.assign(prompt=prompts_of(run, manifest))
    schema = _schema(pa.Schema.from_pandas(table.drop(columns="file_name"), preserve_index=False))
    for split, part in table.groupby(manifest.rows["split"]):
        count = shard_count(len(part), shard_size)
        for number in range(count):
            name = f"{SPLITS[str(split)]}-{number:05d}-of-{count:05d}.parquet"
            rows = part.iloc[number * shard_size : (number + 1) * shard_size]
            with atomic(out / "data" / name) as temporary, pq.ParquetWriter(temporary, schema) as writer:
                for group in _groups(manifest, rows):
                    writer.write_table(pa.Table.from_pandas(group, schema, preserve_index=False))


def _groups(manifest: Manifest, rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the rows with their images, a row group at a time."""
    for start in range(0, len(rows), GROUP):
        part = rows.iloc[start : start + GROUP]
        images = [{"bytes": image_bytes(manifest, str(uid)), "path": name} for uid, name in part["file_name"].items()]
        yield part.drop(columns="file_name").assign(image=images)


def _schema(columns: Any) -> Any:
    """Return the schema of a shard, with the note by which `datasets` decodes the images."""
    import pyarrow as pa

    image = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    plain = [pa.field(one.name, pa.string() if pa.types.is_large_string(one.type) else one.type) for one in columns]
    features = {"image": {"_type": "Image"}} | {one.name: _feature(one.type) for one in plain}
    note = json.dumps({"info": {"features": features}})
    return pa.schema([image, *plain], metadata={"huggingface": note})


def _feature(kind: Any) -> dict[str, str]:
    """Return a column's type as `datasets` writes it."""
    return {"dtype": {"double": "float64", "float": "float32"}.get(str(kind), str(kind)), "_type": "Value"}
