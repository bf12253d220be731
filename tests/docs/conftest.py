"""A folder with the small files that the pages name, and settings that keep the networks of their examples small."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SMALL: dict[str, Any] = {
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
    "denoiser": {"kind": "unet", "width": 8, "steps": 6, "batch_size": 8, "checkpoint_every": 3},
    "checks": {"folds": 2, "verifier_quantile": 0.01},
    "classifier": {"size": 32, "steps": 6, "batch_size": 8, "evaluate_every": 3},
}
"""Settings that replace the defaults of `medlt.augment`: real networks of a few thousand weights."""


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages name: dicom/, png/, labels.csv, in.dcm, KEYFILE, mimic.parquet."""
    from medlt.data import phantom
    from medlt.data.dicom import read_dicom
    from medlt.data.layouts import from_csv

    place = tmp_path_factory.mktemp("pages")
    table = phantom.write_phantom(place / "dicom", patients=60, seed=0, size=64)
    manifest = from_csv(table=table, findings=(*phantom.FINDINGS, "No_Finding"))
    manifest.write(place / "mimic.parquet")
    (place / "png").mkdir()
    rows = manifest.rows.reset_index()
    for uid in rows["uid"]:
        pixels = np.asarray(read_dicom(manifest.file(uid)).pixels, dtype=np.float64)
        Image.fromarray((255 * (pixels - pixels.min()) / np.ptp(pixels)).astype(np.uint8)).save(
            place / f"png/{uid}.png"
        )
    rows["path"] = rows["uid"] + ".png"
    rows[["uid", "path", "patient_id", "split", "view", *manifest.findings]].to_csv(place / "labels.csv", index=False)
    (place / "in.dcm").write_bytes(manifest.file(rows["uid"][0]).read_bytes())
    (place / "KEYFILE").write_text("0123456789abcdef" * 4)
    return place


def _made_small(patch: pytest.MonkeyPatch) -> None:
    from medlt.api import settings

    usual: Callable[..., dict[str, Any]] = settings.defaults
    patch.setattr(settings, "defaults", lambda *given: {**usual(*given), **SMALL})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the networks of `medlt.augment` small while a test runs."""
    _made_small(monkeypatch)


@pytest.fixture(scope="session")
def augmented(workplace: Path) -> Path:
    """A finished run of `medlt.augment`: the one that several pages make, which is then only opened."""
    import medlt

    with pytest.MonkeyPatch.context() as patch:
        _made_small(patch)
        patch.chdir(workplace)
        collection = medlt.Collection.from_csv("labels.csv", images="png/")
        return medlt.augment(collection, method="fusion", targets=20, seed=0).folder
