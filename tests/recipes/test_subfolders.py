"""A private run of more images than a folder holds keeps its claim; its tables still name every image where it is."""

import shutil
from pathlib import Path

import pandas as pd

from medlt.data.columns import is_synthetic
from medlt.data.manifest import Manifest
from medlt.folders import subfolders
from medlt.privacy import claim
from medlt.writer import write_metadata


def test_a_claim_covers_images_in_subfolders(private_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(private_run, tmp_path / "run"))
    manifest = Manifest.read(run / "manifest.parquet")
    made = manifest.rows[is_synthetic(manifest.rows)]
    inside = subfolders(list(made.index), 3)
    paths = {uid: f"images/{place}{uid}.png" for uid, place in inside.items()}
    for uid, path in paths.items():
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / "images" / f"{uid}.png").rename(run / path)
    rows = manifest.rows.assign(path=[paths.get(uid, path) for uid, path in manifest.rows["path"].items()])
    Manifest(rows, manifest.findings, run).write(run / "manifest.parquet")
    assert claim(run).reasons[0].startswith("images/metadata.csv is not the table of these images")
    write_metadata(run, rows.loc[made.index], manifest.findings, parents=False)
    assert claim(run).reasons == ()
    assert claim(run).epsilon == claim(private_run).epsilon
    table = pd.read_csv(run / "images" / "metadata.csv", dtype=str)
    table["file_name"] = [*table["file_name"].iloc[1:], table["file_name"].iloc[0]]
    table.to_csv(run / "images" / "metadata.csv", index=False)
    assert claim(run).reasons[0].startswith("images/metadata.csv is not the table of these images")
