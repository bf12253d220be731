"""A ready-made config whose images are made on Ray: the bytes of the local run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytestmark = pytest.mark.ray


def medlt(*words: str) -> subprocess.CompletedProcess[str]:
    """Call the command line."""
    return subprocess.run([sys.executable, "-m", "medlt", *words], capture_output=True, text=True)


def contents(run: Path) -> dict[str, Any]:
    """Bytes of every image, the id, and the tables of a run."""
    images = {file.name: file.read_bytes() for file in (run / "images").iterdir()}
    tables = {name: (run / f"{name}.parquet").read_bytes() for name in ("plan", "checks", "manifest")}
    return {"images": images, "id": json.loads((run / "run.json").read_text())["id"], **tables}


def test_augment_on_ray_makes_the_bytes_of_the_local_run(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    shared = ["threads=1", f"artifacts_dir={tmp_path / 'artifacts'}"]
    runs = {"local": ["--engine", "local"], "ray": ["--engine", "ray", "--workers", "2"]}
    for name, options in runs.items():
        done = medlt("augment", "phantom/recompose", *shared, "--out", str(tmp_path / name), *options, "-q")
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    local, on_ray = (contents(tmp_path / name) for name in runs)
    assert len(local["images"]) > 20
    assert on_ray == local


def test_convert_on_ray_writes_the_files_of_the_local_one(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from medlt.data.phantom.write import write_phantom

    write_phantom(tmp_path / "phantom", patients=20, size=64)
    folders = [tmp_path / "local", tmp_path / "ray"]
    for folder in folders:
        done = medlt("convert", str(tmp_path / "phantom"), str(folder), "--engine", folder.name, "--workers", "2", "-q")
        assert done.returncode == 0, done.stderr
    tables = [pd.read_parquet(folder / "manifest.parquet") for folder in folders]
    assert len(tables[0]) > 10
    pd.testing.assert_frame_equal(*tables)
    for path in tables[0]["path"]:
        assert (folders[0] / path).read_bytes() == (folders[1] / path).read_bytes()
