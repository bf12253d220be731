"""Exports and releases of more images than a folder may hold."""

import csv
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import medlt
from medlt.data.manifest import Manifest
from medlt.export.images import copy_images
from medlt.export.release import build_release
from medlt.export.release_check import verify_release
from medlt.privacy.provenance import Provenance
from medlt.privacy.published import image_name, image_violations
from medlt.types import InputError

Spread = Callable[[Path, Path, int], Path]


@pytest.fixture
def fanned(tiny_run: medlt.Run, tmp_path: Path, spread: Spread) -> Path:
    """A copy of the run as it is where a folder holds two images."""
    return spread(tiny_run.folder, tmp_path / "run", 2)


def test_a_run_is_released_as_it_is(fanned: Path, tmp_path: Path) -> None:
    build_release(fanned, tmp_path / "release")
    assert verify_release(tmp_path / "release")["problems"] == []
    there = {path.relative_to(fanned / "images").as_posix() for path in (fanned / "images").rglob("*.png")}
    assert {path.relative_to(tmp_path / "release" / "images").as_posix()
            for path in (tmp_path / "release" / "images").rglob("*.png")} == there  # fmt: skip


def test_a_moved_image_is_a_violation(fanned: Path) -> None:
    first, second = sorted((fanned / "images").rglob("*.png"))[:2]
    data = first.read_bytes()
    (first.parent / "copy").mkdir()
    (first.parent / "copy" / first.name).write_bytes(data)
    assert any("different images" in one for one in image_violations(Provenance(fanned)))
    shutil.rmtree(first.parent / "copy")
    second.write_bytes(data)
    assert any("are not those that this run made" in one for one in image_violations(Provenance(fanned)))


@pytest.mark.parametrize("kind", ["imagefolder", "monai", "cxr-lt", "longtailcxr", "torchxrayvision", "webdataset"])
def test_every_export_reads_it(fanned: Path, tiny_run: medlt.Run, tmp_path: Path, kind: str) -> None:
    """The export of a run does not depend on the subfolders of the run."""
    one, other = medlt.Run(fanned).export(kind, tmp_path / "a"), tiny_run.export(kind, tmp_path / "b")
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert names == {path.relative_to(other) for path in other.rglob("*") if path.is_file()}
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_copies_are_in_subfolders_from_the_limit_on(tiny_run: medlt.Run, tmp_path: Path, limit: int) -> None:
    rows = tiny_run.images().rows
    names = copy_images(tiny_run.manifest, rows, tmp_path / "out", limit)
    counts = Counter(path.parent for path in (tmp_path / "out").rglob("*.png"))
    assert max(counts.values()) <= limit
    assert [*names] == list(rows.index)
    for uid, name in names.items():
        assert (tmp_path / "out" / name).read_bytes() == tiny_run.manifest.local_file(uid).read_bytes()
        assert Path(name).stem == uid


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("images/u.png", "images/u.png"),
        ("images/3f/u.png", "images/3f/u.png"),
        ("images/abc/d/u.png", "images/abc/d/u.png"),
        ("images/../u.png", "images/u.png"),
        ("images/../../etc/u.png", "images/u.png"),
        ("/etc/u.png", "images/u.png"),
        ("images/3f/../u.png", "images/u.png"),
        ("s3://bucket/u.png", "images/u.png"),
    ],
)
def test_no_path_of_a_manifest_leads_out_of_the_images(path: str, name: str) -> None:
    assert image_name("u", path) == name


def test_a_release_takes_no_file_that_a_manifest_names_elsewhere(
    fanned: Path, tmp_path: Path, reseal: Callable[[Path], None]
) -> None:
    rows = pd.read_parquet(fanned / "manifest.parquet")
    uid = Manifest.read(fanned / "manifest.parquet").rows.query("synthetic == True").index[0]
    (tmp_path / "secret.png").write_bytes(b"secret")
    rows.loc[uid, "path"] = "../secret.png"
    rows.to_parquet(fanned / "manifest.parquet")
    reseal(fanned)
    with pytest.raises(InputError, match="no such image"):
        build_release(fanned, tmp_path / "release")
    with (fanned / "images" / "metadata.csv").open(newline="") as handle:
        assert len(list(csv.DictReader(handle))) > 1
