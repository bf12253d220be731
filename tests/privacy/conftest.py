"""A fabricated run for the tests of its documents."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medlt import config as configs
from medlt.data.manifest import Manifest
from medlt.files import write_bytes, write_json, write_table, write_text
from medlt.privacy.ledger import Mechanism, write_ledger
from medlt.writer import synthetic_png


def manifest() -> Manifest:
    index = pd.Index([f"real-{i}" for i in range(4)], name="uid")
    about = {"path": [f"{uid}.png" for uid in index], "patient_id": list("abcd"), "split": "train", "view": "PA",
             "content": list("wxyz")}  # fmt: skip
    return Manifest(pd.DataFrame({**about, "Mass": [1.0, 0.0, 0.0, 1.0]}, index=index), ("Mass",), Path("images"))


def folder(run: Path, **changed: Any) -> Path:
    """A private run before it made images, its config changed so."""
    data = {"kind": "csv", "table": "labels.csv", "findings": ["Mass"]}
    tree = {"method": "noise", "data": data, "codec": {"kind": "folder", "path": "codec"}, "output_dir": str(run)}
    config = configs.parse(
        {**tree, "privacy": {"epsilon": 8, "delta": 1e-6, "patients": 4, "findings": ["Mass"]}, **changed}
    )
    write_text(run / "config.yaml", configs.dump(config))
    digests = {"codec": "1", "denoiser": "2", "manifest": manifest().digest()}
    record = {
        "id": "0123456789abcdef",
        "digests": digests,
        "weights": {"denoiser": "3"},
        "versions": {"medlt": "9.8.7"},
    }
    write_json(run / "run.json", record | {"counts": {"real": 6}})
    done = Mechanism(
        stage="denoiser", privacy_unit="patient", units=4, sample_rate=0.01, noise_multiplier=2.0, max_grad_norm=1.0,
        steps=20, planned=20, max_images_per_patient=1, noise_multiplicity=7, grad_sample_mode="hooks",
        randomness="from the operating system", secure_mode=True, data=manifest().split("train").digest(), weights="3",
    )  # fmt: skip
    write_ledger(run / "ledger.json", [done], 1e-6, 8.0)
    manifest().write(run / "stages" / "data" / "manifest.parquet")
    return run


def finished(run: Path, **changed: Any) -> Path:
    """The same with its published rows, an image file, and the checks of the labels."""
    folder(run, **changed)
    index = pd.Index(["noise_1", "noise_2", "noise_3"], name="uid")
    write_bytes(run / "images" / "x.png", synthetic_png(np.zeros((4, 4), np.uint8), "noise_1", "0123456789abcdef"))
    write_text(run / "images" / "metadata.csv", "file_name,uid,Mass,tail_parent,seed\n")
    table = pd.DataFrame({"check": "label_consistency", "uid": index, "passed": True})
    write_table(run / "checks.parquet", table)
    made = pd.DataFrame({"path": "images/x.png", "patient_id": "synthetic", "split": "train", "view": "PA", "Mass": 1.0,
                         "synthetic": True, "finding": ["Mass", "Mass", "Hernia"]}, index=index)  # fmt: skip
    pd.concat([manifest().rows.assign(synthetic=False), made]).to_parquet(run / "manifest.parquet")
    return run


UNTRAINED = {"kind": "stable-diffusion", "model": {"kind": "folder", "path": "base"}, "train": "none"}
AUDIT = {
    "results": [
        {"name": "near_copies", "sentence": "No copy was found, recall 0.9.", "passed": True},
        {"name": "membership", "sentence": "Caught 3 of 4, see /tmp/secret/place.", "passed": False},
        {"name": "identity", "sentence": "Too few | pairs.", "passed": None},
    ],
    "conclusion": "Leaks were found (membership).",
}


@pytest.fixture(scope="session")
def cards() -> SimpleNamespace:
    """What makes the fabricated runs: folder, finished, manifest; audit and untrained, parts of them."""
    return SimpleNamespace(folder=folder, finished=finished, manifest=manifest, audit=AUDIT, untrained=UNTRAINED)
