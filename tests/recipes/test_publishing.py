"""What publishing leaves when the config asks for DICOM."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medlt.config import RunConfig, dump
from medlt.data.images import read_image
from medlt.data.manifest import Manifest
from medlt.recipes.augment import main as augment

Tiny = Callable[[Path], RunConfig]


def files(place: Path) -> dict[str, bytes]:
    return {p.relative_to(place).as_posix(): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def test_dicom_is_published_beside_the_png_and_changes_nothing_else(
    finished: Path, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    config = tiny(Path("run")).model_copy(update={"format": "dicom"})
    Path("run/config.yaml").write_text(dump(config))
    before = Manifest.read(Path("run/manifest.parquet")).rows
    augment(config)
    pd.testing.assert_frame_equal(Manifest.read(Path("run/manifest.parquet")).rows, before)
    made = before[before["synthetic"]]
    assert files(Path("run/images")) == files(finished / "images")
    assert sorted(files(Path("run/dicom"))) == sorted(f"{uid}.dcm" for uid in made.index) != []
    for uid in made.index:
        np.testing.assert_array_equal(
            read_image(Path(f"run/dicom/{uid}.dcm")), read_image(Path(f"run/images/{uid}.png"))
        )
    real = before[~before["synthetic"]]
    sources = {*real.index, *real["patient_id"]}
    written = b"".join(files(Path("run/dicom")).values())
    assert [name for name in sources if str(name).encode() in written] == []
    assert not (finished / "dicom").exists()
