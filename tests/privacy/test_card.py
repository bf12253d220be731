"""What goes with a model: everything a reader needs, and nothing of a patient."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from medlt import config as configs
from medlt.data.manifest import Manifest
from medlt.files import write_json, write_text
from medlt.privacy import claim
from medlt.privacy.card import datasheet, model_card
from medlt.privacy.ledger import Mechanism, write_ledger
from medlt.types import InputError


def manifest() -> Manifest:
    index = pd.Index([f"real-{i}" for i in range(4)], name="uid")
    about = {"path": [f"{uid}.png" for uid in index], "patient_id": list("abcd"), "split": "train", "view": "PA",
             "content": list("wxyz")}  # fmt: skip
    return Manifest(pd.DataFrame({**about, "Mass": [1.0, 0.0, 0.0, 1.0]}, index=index), ("Mass",), Path("images"))


def folder(run: Path, **changed: Any) -> Path:
    """A private run before it made images, its config changed so."""
    data = {"kind": "csv", "table": "labels.csv", "findings": ["Mass"]}
    tree = {"method": "noise", "data": data, "codec": {"kind": "folder", "path": "codec"}, "output_dir": str(run)}
    config = configs.parse({**tree, "privacy": {"epsilon": 8, "delta": 1e-6}, **changed})
    write_text(run / "config.yaml", configs.dump(config))
    digests = {"codec": "1", "denoiser": "2", "manifest": manifest().digest()}
    write_json(run / "run.json", {"digests": digests, "weights": {"denoiser": "3"}, "counts": {"real": 4}})
    done = Mechanism(
        stage="denoiser", privacy_unit="patient", units=4, sample_rate=0.01, noise_multiplier=2.0, max_grad_norm=1.0, steps=20,
        planned=20, max_images_per_patient=1, noise_multiplicity=7, grad_sample_mode="hooks", randomness="from the operating system",
        secure_mode=True, data=manifest().split("train").digest(), weights="3",
    )  # fmt: skip
    write_ledger(run / "ledger.json", [done], 1e-6, 8.0)
    manifest().write(run / "stages" / "data" / "manifest.parquet")
    return run


def finished(run: Path, **changed: Any) -> Path:
    """The same with its published rows."""
    folder(run, **changed)
    index = pd.Index(["noise_1", "noise_2", "noise_3"], name="uid")
    made = pd.DataFrame({"path": "x.png", "patient_id": "synthetic", "split": "train", "view": "PA", "Mass": 1.0,
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


def test_the_card_has_the_header_the_claim_and_the_ledger(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    card = model_card(run)
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "medlt"
    assert "differential-privacy" in yaml.safe_load(header)["tags"]
    assert claim(run).sentence in body
    assert "| denoiser | patient | 2 | 1 | 0.01 | 20 | 1 | 1 | 7 | yes |" in body
    names = ["Model details", "Intended use", "Training data", "Privacy", "Audit", "Not shown here", "Caveats"]
    assert all(f"## {name}\n" in body for name in names)
    assert "medlt audit" in body


def test_the_datasheet_counts_synthetic_rows_alone(tmp_path: Path) -> None:
    sheet = datasheet(run := finished(tmp_path / "run"))
    assert claim(run).sentence in sheet
    assert "3 synthetic images" in sheet
    assert "| Hernia | 1 |\n| Mass | 2 |" in sheet


@pytest.mark.parametrize("write", [model_card, datasheet])
@pytest.mark.parametrize("changed", [{}, {"method": "fusion"}, {"method": "noise", "checks": {"near_copy": {}}}])
def test_a_run_asked_to_be_private_tells_nothing_of_its_patients(
    tmp_path: Path, write: Any, changed: dict[str, Any]
) -> None:
    """Whether or not it carries a claim: no digest, count, name or place."""
    text = write(finished(tmp_path / "run", **changed))
    real = manifest()
    for hidden in (real.digest(), real.split("train").digest(), "real-", "4 radiographs", str(tmp_path), "codec`"):
        assert hidden not in text
    assert "| 4 |" not in text


@pytest.mark.parametrize("write", [model_card, datasheet])
def test_a_run_that_promises_nothing_says_so_and_may_count(tmp_path: Path, write: Any) -> None:
    text = write(finished(tmp_path / "run", privacy=None))
    assert "No privacy is claimed" in text
    assert "4 radiographs" in text
    assert manifest().split("train").digest() in text
    assert "real-" not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("write", [model_card, datasheet])
def test_the_audit_is_told_a_line_a_finding(tmp_path: Path, write: Any) -> None:
    write_json(finished(tmp_path / "run") / "audit.json", AUDIT)
    text = write(tmp_path / "run")
    assert "**near_copies** (passed): No copy was found, recall 0.9." in text
    assert "**membership** (FAILED): Caught 3 of 4, see [path]" in text
    assert "**identity** (cannot say)" in text
    assert "Leaks were found" in text


@pytest.mark.parametrize("damaged", ["{", "[]", "{}", '{"results": [{"name": "near_copies"}]}'])
def test_a_damaged_audit_is_told(tmp_path: Path, damaged: str) -> None:
    (finished(tmp_path / "run") / "audit.json").write_text(damaged)
    with pytest.raises(InputError, match="damaged"):
        model_card(tmp_path / "run")


def test_a_run_that_is_not_finished_has_a_card(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    (run / "ledger.json").unlink()
    assert "no ledger" in model_card(run)
    assert "0 synthetic images" in datasheet(run)


def test_stable_diffusion_as_it_was_given(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", denoiser=UNTRAINED)
    (run / "ledger.json").unlink()
    card = model_card(run)
    assert yaml.safe_load(card.split("---\n")[1])["pipeline_tag"] == "text-to-image"
    assert "as it was given" in card
    assert "epsilon 0" in card
