"""Shared by all tests: where the real radiographs are, and how hypothesis draws."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "medlt",
    deadline=None,  # no test may fail because a machine is slow
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),  # the same examples for every change that is judged
    print_blob=True,
)
settings.load_profile("medlt")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real radiographs; the test is skipped where there is none."""
    if not (place := os.environ.get("MEDLT_DATA")):
        pytest.skip("set MEDLT_DATA to the folder of real radiographs to run this test")
    return Path(place)


@pytest.fixture(scope="session")
def reseal() -> Callable[[Path], None]:
    """Seals a run folder as it is, for tests that change its files."""
    from medlt.files import write_json
    from medlt.recipes._sealed import read_record, seal
    from medlt.records import with_checksum

    return lambda folder: write_json(folder / "run.json", with_checksum(read_record(folder) | {"files": seal(folder)}))


@pytest.fixture(scope="session")
def spread(reseal: Callable[[Path], None]) -> Callable[[Path, Path, int], Path]:
    """Copies a run to a new folder as it is where a folder holds so many images."""
    from medlt.config import load_config
    from medlt.data.columns import is_synthetic
    from medlt.data.manifest import Manifest
    from medlt.folders import subfolders
    from medlt.writer import write_metadata

    def copy(run: Path, to: Path, limit: int) -> Path:
        shutil.copytree(run, to)
        manifest = Manifest.read(to / "manifest.parquet")
        made = is_synthetic(manifest.rows)
        inside = subfolders(list(manifest.rows.index[made]), limit)
        paths = {uid: f"images/{place}{uid}.png" for uid, place in inside.items()}
        for uid, path in paths.items():
            (to / path).parent.mkdir(parents=True, exist_ok=True)
            (to / "images" / f"{uid}.png").rename(to / path)
        rows = manifest.rows.assign(path=[paths.get(uid, path) for uid, path in manifest.rows["path"].items()])
        Manifest(rows, manifest.findings, to).write(to / "manifest.parquet")
        parents = load_config(to / "config.yaml").privacy is None
        write_metadata(to, rows[made], manifest.findings, parents=parents)
        reseal(to)
        return to

    return copy


TINY: dict[str, Any] = {
    "seed": 3,
    "size": 32,
    "threads": 1,
    "codec": {"kind": "train", "width": 8, "levels": 3, "steps": 8, "batch_size": 4},
    "sparse": {
        "groups": 4,
        "vocabulary": 4,
        "generations": 2,
        "imitation_epochs": 2,
        "interaction_epochs": 2,
        "width": 8,
        "batch_size": 8,
    },
    "denoiser": {"width": 8, "steps": 6, "batch_size": 8, "checkpoint_every": 3, "precision": "fp32"},
    "method": {"kind": "noise", "scheduler": "ddim", "num_inference_steps": 6, "guidance_scale": 2.0},
    "targets": {"tail_below": 8, "head_above": 20, "count": 10, "max_per_finding": 3, "num_candidates": 2},
    "checks": {"folds": 2, "verifier_quantile": 0.01, "near_copy": None},
    "classifier": {"size": 32, "steps": 6, "batch_size": 8, "evaluate_every": 3},
}
"""Settings of a run that takes seconds."""


@pytest.fixture(scope="session")
def tiny_settings() -> dict[str, Any]:
    """Settings of a run that takes seconds, for `medlt.augment`."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in TINY.items()}


@pytest.fixture(scope="session")
def tiny_collection(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Synthetic radiographs of forty patients, as DICOM files of 64 px; some labels of the head are unknown."""
    import medlt
    from medlt.data.manifest import Manifest

    whole = medlt.Collection.from_phantom(tmp_path_factory.mktemp("phantom"), 40, seed=3, size=64, imbalance=8).manifest
    unknown = (whole.rows["Effusion"] == 0) & (whole.rows.reset_index().index % 3 == 0)
    rows = whole.rows.assign(Effusion=whole.rows["Effusion"].mask(unknown))
    return medlt.Collection(Manifest(rows, whole.findings, whole.root))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_collection: Any, tiny_settings: dict[str, Any]) -> Any:
    """A finished run of `medlt.augment`, which tests only read."""
    import medlt

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return medlt.augment(tiny_collection, output_dir=folder, progress=False, **tiny_settings)
