"""Private runs from a config: the ledger, the claim, what a data-independent run may not read, and the audit."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pydicom
import pytest
from typer.testing import CliRunner

from medlt.cli import app
from medlt.config import RunConfig, dump, load_config, load_verdict, parse
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.data.phantom import FINDINGS
from medlt.export.release import build_release
from medlt.export.release_check import verify_release
from medlt.files import read_tensors, write_tensors, write_text
from medlt.privacy import claim, ledger
from medlt.privacy.book import read_book
from medlt.recipes.audit import AuditOptions
from medlt.recipes.audit import main as audit
from medlt.recipes.augment import main as augment
from medlt.recipes.evaluate import main as evaluate
from medlt.recipes.run import main as run
from medlt.recipes.train import main as train
from medlt.records import without_checksum
from medlt.types import InputError

Tiny = Callable[[Path], RunConfig]
PRIVACY = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "patients": 24,
    "findings": [*FINDINGS, "No_Finding"],
    "noise_multiplicity": 1,
    "grad_sample_mode": "bookkeeping",
    "max_physical_batch_size": 16,
}
BRIEF, SHORT = AuditOptions(embedding_steps=2, planted=4), ("--embedding-steps", "2", "--planted", "4")


def private(tiny: Tiny, out: Path, **changes: Any) -> RunConfig:
    """The tiny config as a private run that samples from noise."""
    told = tiny(out).model_dump(mode="json", exclude={"method", "checks", "privacy"})
    own = {"method": {"kind": "noise", "num_inference_steps": 4}, "checks": {"folds": 2}, "privacy": PRIVACY}
    return parse({**told, **own, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """A finished private run whose codec was trained privately too."""
    return run(private(tiny, tmp_path_factory.mktemp("private") / "run"))


def test_a_private_run_leaves_one_ledger_and_one_claim(made: Path) -> None:
    kept = ledger.read_ledger(made / "ledger.json")
    assert [one.stage for one in kept.mechanisms] == ["codec", "denoiser"]
    assert len({one.noise_multiplier for one in kept.mechanisms}) == 1
    said = claim(made)
    assert said.reasons == ()
    assert said.epsilon is not None
    assert 6 < said.epsilon <= 8
    assert (said.privacy_unit, said.delta, said.secure_mode) == ("patient", 1e-5, True)
    for name in ("report.html", "MODEL_CARD.md", "DATASHEET.md"):
        assert ledger.format_epsilon(said.epsilon) in (made / name).read_text()


def test_nothing_that_may_leave_names_a_real_row(made: Path) -> None:
    manifest = Manifest.read(made / "manifest.parquet")
    flag = manifest.rows["synthetic"].astype(bool)
    real, synthetic = manifest.rows[~flag], manifest.rows[flag]
    leaving = [(made / name).read_text() for name in ("images/metadata.csv", "MODEL_CARD.md", "DATASHEET.md")]
    names = {*real.index, *real["patient_id"].astype(str)}
    assert not [name for name in names if any(name in text for text in leaving)]
    assert not set(synthetic["label_source"]) & set(real.index)
    assert (synthetic[list(manifest.findings)].sum(axis=1) == 1).all()


def test_how_many_are_made_is_what_the_config_says_and_not_what_the_counts_say(made: Path) -> None:
    manifest, config = Manifest.read(made / "manifest.parquet"), load_config(made / "config.yaml")
    counts = pd.read_parquet(made / "plan.parquet").groupby("finding")["slot"].nunique()
    wanted = [name for name in manifest.findings if name != manifest.no_finding]
    assert counts.to_dict() == dict.fromkeys(wanted, min(config.targets.count, config.targets.max_per_finding))
    checks = set(pd.read_parquet(made / "checks.parquet")["check"])
    assert checks <= {"finite", "flat", "saturated", "target_label", "best_of", "copy"}


def test_run_again_it_spends_nothing_more(made: Path) -> None:
    before = (made / "ledger.json").read_bytes()
    run(load_config(made / "config.yaml"))
    assert (made / "ledger.json").read_bytes() == before


def denoiser_of(run: Path) -> Path:
    """The folder of a run's denoiser."""
    (record,) = run.glob("artifacts/denoiser/*/artifact.json")
    return record.parent


def test_a_ledger_edited_by_hand_claims_nothing(made: Path) -> None:
    text = (made / "ledger.json").read_text()
    assert '"steps": 6' in text
    try:
        (made / "ledger.json").write_text(text.replace('"steps": 6', '"steps": 5'))
        said = claim(made)
        assert said.epsilon is None
        assert "by hand" in said.sentence
    finally:
        (made / "ledger.json").write_text(text)


MODEL = {"kind": "untrained", "widths": [32, 32], "text_width": 32, "text_layers": 1}
BRIEF_TRAINING = {"steps": 3, "batch_size": 8, "warmup_steps": 0, "learning_rate": 1e-3}
FEW = {"most": 3}  # a prompt of all findings is longer than the text encoder reads
FAMILIES: dict[str, dict[str, Any]] = {
    "lora": {
        "kind": "stable-diffusion",
        "model": MODEL,
        "train": "lora",
        "rank": 2,
        "train_text": True,
        "prompts": FEW,
    },
    "full": {"kind": "stable-diffusion", "model": MODEL, "train": "full", "prompts": FEW},
    "transformer": {"kind": "transformer", "width": 32, "depth": 1, "heads": 2},
}


@pytest.mark.parametrize(
    "family", ["lora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("full", "transformer"))]
)
def test_every_family_is_trained_privately_and_sampled_as_it_was_saved(
    family: str, tiny: Tiny, made: Path, tmp_path: Path
) -> None:
    data = {"kind": "manifest", "path": str(made / "stages" / "data" / "manifest.parquet")}
    own = {
        "data": data,
        "denoiser": {**FAMILIES[family], **BRIEF_TRAINING},
        "targets": {"count": 1, "num_candidates": 1},
        "format": "dicom",
        "budget_book": str(tmp_path / "book.json"),
    }
    done = augment(private(tiny, tmp_path / "run", **own))
    said = claim(done)
    assert said.epsilon is not None, said.sentence
    assert said.epsilon <= 8
    assert "began from given weights" not in said.sentence
    record = build_release(done, tmp_path / "out")
    assert verify_release(tmp_path / "out")["problems"] == []
    held = {Path(name).parts[0]: name for name in record["files"]}
    assert {"images", "dicom", "denoiser", "codec"} <= set(held)
    weights = {path.relative_to(done / "denoiser") for path in (done / "denoiser").rglob("*") if path.is_file()}
    assert {Path(name).relative_to("denoiser") for name in record["files"] if name.startswith("denoiser/")} == weights
    patients = Manifest.read(done / "stages/data/manifest.parquet").rows["patient_id"].astype(str)
    for name in (name for name in record["files"] if name.endswith(".dcm")):
        made_of = str(pydicom.dcmread(tmp_path / "out" / name))
        assert not [one for one in patients if one in made_of]


def test_weights_put_in_place_of_the_trained_ones_claim_nothing(made: Path) -> None:
    place = denoiser_of(made) / "model.safetensors"
    kept = place.read_bytes()
    try:
        write_tensors(place, {name: value + 1 for name, value in read_tensors(place).items()})
        assert "damaged or was replaced (model.safetensors)" in claim(made).sentence
    finally:
        place.write_bytes(kept)
    assert claim(made).epsilon is not None


def test_a_training_that_was_thrown_away_is_counted_and_its_images_are_not_taken_for_the_new_ones(
    made: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(made, copied)
    config = load_config(copied / "config.yaml").model_copy(update={"output_dir": copied})
    write_text(copied / "config.yaml", dump(config))
    shutil.rmtree(copied / "artifacts" / "denoiser")
    before = {path.name: path.read_bytes() for path in (copied / "images").glob("*.png")}
    with pytest.raises(InputError, match="is not the model that this run trained"):
        augment(config)
    (copied / "denoiser").rename(copied / "the first denoiser")
    augment(config)
    assert {path.name: path.read_bytes() for path in (copied / "images").glob("*.png")} != before
    kept = ledger.read_ledger(copied / "ledger.json")
    assert [one.stage for one in kept.mechanisms] == ["codec", "denoiser", "denoiser"]
    assert kept.spent.epsilon > ledger.read_ledger(made / "ledger.json").spent.epsilon


def test_a_start_that_saw_the_same_patients_takes_the_claim_away(made: Path, tiny: Tiny, tmp_path: Path) -> None:
    data = {"kind": "manifest", "path": str(made / "stages" / "data" / "manifest.parquet")}
    denoiser = {"width": 8, "steps": 3, "batch_size": 8, "init_from": str(denoiser_of(made))}
    done = train(private(tiny, tmp_path / "run", data=data, denoiser=denoiser), "denoiser")
    assert "was trained in a run on some of the same patients" in claim(done).sentence


def test_its_control_in_the_comparison_is_lent_by_real_rows(made: Path) -> None:
    assert json.loads((made / "verdict.json").read_text())["verdict"] in ("helps", "no evidence", "harms", "cannot see")
    scores = pd.read_parquet(made / "scores.parquet")
    assert set(scores["arm"]) == {"real", "duplicated for noise", "noise"}


def test_an_experiment_takes_it_as_a_source(made: Path, tiny: Tiny, tmp_path: Path) -> None:
    own = load_config(made / "config.yaml")
    rows = made / "stages" / "data" / "manifest.parquet"
    told = own.model_dump(mode="json", include={"seed", "threads", "targets", "classifier"})
    tree = {
        **told,
        "output_dir": str(tmp_path / "verdict"),
        "data": {"kind": "manifest", "path": str(rows)},
        "sources": {"private": {"run": str(made)}},
        "arms": {"private": {"source": "private"}},
        "evaluation": {"seeds": 2, "n_bootstrap": 100, "steps": 6, "synthetic_fraction": 0.2, "synthetic_weight": 0.3},
    }
    place = tmp_path / "verdict.yaml"
    place.write_text(json.dumps(tree))
    arms = pd.read_parquet(evaluate(load_verdict(place)) / "arms.parquet").set_index("arm")
    assert arms.at["private", "added"] > 0
    assert arms.at[arms.at["private", "control"], "added"] == arms.at["private", "added"]
    booked = read_book(rows.with_name("medlt-budget-book.json"))
    assert booked is not None
    assert "classifier" in {one.kind for one in booked.trainings}


def test_privacy_and_fusion_trains_all_privately_and_claims_nothing(tiny: Tiny, tmp_path: Path, caplog: Any) -> None:
    told = tiny(tmp_path / "run").model_dump(mode="json")
    told["sparse"] |= {"imitation_epochs": 1, "interaction_epochs": 1}
    done = augment(parse({**told, "privacy": {**PRIVACY, "epsilon": 50}}))
    stages = {one.stage for one in ledger.read_ledger(done / "ledger.json").mechanisms}
    assert {"codec", "denoiser", "verifier 0", "verifier 1", "sparse interaction 0", "sparse imitation 1"} <= stages
    assert ledger.read_ledger(done / "ledger.json").spent.epsilon <= 50
    said = claim(done)
    assert said.epsilon is None
    assert "fusion reads real images" in said.sentence
    assert "will carry no claim" in caplog.text


@pytest.mark.slow
def test_the_unit_may_be_an_image_and_is_called_weaker(tiny: Tiny, tmp_path: Path) -> None:
    done = train(private(tiny, tmp_path / "run", privacy={**PRIVACY, "privacy_unit": "image"}), "denoiser")
    kept = ledger.read_ledger(done / "ledger.json")
    assert kept.privacy_unit == "image"
    assert kept.mechanisms[-1].units == len(
        Manifest.read(tmp_path / "run/stages/data/manifest.parquet").split("train").rows
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"privacy": {**PRIVACY, "epsilon": 0}}, "privacy.epsilon: must be greater than 0, not 0"),
        ({"privacy": {**PRIVACY, "epsilon": -1}}, "privacy.epsilon"),
        ({"privacy": {**PRIVACY, "delta": 1}}, "privacy.delta"),
        ({"privacy": {**PRIVACY, "privacy_unit": "study"}}, "privacy.privacy_unit"),
        ({"privacy": {key: value for key, value in PRIVACY.items() if key != "delta"}}, "privacy.delta"),
        ({"method": "diffult"}, "use method: noise"),
        ({"denoiser": {"width": 8, "steps": 6, "batch_size": 8, "balance": "inverse_sqrt"}}, "denoiser.balance"),
    ],
)
def test_a_config_that_cannot_be_private_is_refused(tiny: Tiny, tmp_path: Path, changes: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        private(tiny, tmp_path / "run", **changes)


def test_a_batch_larger_than_the_patients_is_refused_before_anything_is_written(
    tiny: Tiny, tmp_path: Path, made: Path
) -> None:
    data = {"kind": "manifest", "path": str(made / "stages" / "data" / "manifest.parquet")}
    config = private(tiny, tmp_path / "run", data=data, denoiser={"width": 8, "steps": 6, "batch_size": 500})
    with pytest.raises(InputError, match="draws 500 of"):
        augment(config)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=r"'Elbow' is not one of privacy\.findings"):
        private(tiny, tmp_path / "other", privacy={**PRIVACY, "requested": ["Elbow"]})


def test_a_classifier_is_private_too_and_paid_for_or_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"privacy\.classifier: true"):
        train(private(tiny, tmp_path / "run"), "classifier")
    with pytest.raises(InputError, match="no private form"):
        train(private(tiny, tmp_path / "run"), "epistemic")
    paid = private(tiny, tmp_path / "paid", privacy={**PRIVACY, "classifier": True})
    train(paid, "classifier")
    kept = ledger.read_ledger(tmp_path / "paid" / "ledger.json")
    assert [one.stage for one in kept.mechanisms] == ["verifier 0", "verifier 1"]
    assert kept.spent.epsilon < 8


def test_a_delta_that_protects_nobody_is_warned_of(tiny: Tiny, tmp_path: Path, caplog: Any) -> None:
    train(private(tiny, tmp_path / "run", privacy={**PRIVACY, "delta": 0.2}), "codec")
    assert "delta 0.2 is at least 1/" in caplog.text


def test_a_start_is_taken_over_where_it_fits(tiny: Tiny, tmp_path: Path, made: Path) -> None:
    from medlt.diffusion.families import init_from, load_label_network

    known = load_label_network(denoiser_of(made))
    other = type(known)(**{**known.settings, "findings": 3})
    fresh = init_from(other, denoiser_of(made))
    assert fresh
    for name, value in other.state_dict().items():
        if name not in fresh:
            assert value.equal(known.state_dict()[name])
    with pytest.raises(InputError, match="less than half"):
        init_from(type(known)(**{**known.settings, "width": 16}), denoiser_of(made))


def test_every_config_reads_back(tiny: Tiny, tmp_path: Path) -> None:
    told = tiny(tmp_path).model_dump(mode="json", exclude={"method", "checks"})
    for checks in ({}, {"near_copy": None}, {"near_copy": {"fpr": 0.1}}):
        for privacy in (None, PRIVACY):
            config = parse({**told, "method": "noise", "checks": checks, "privacy": privacy})
            assert parse(load_text(dump(config), tmp_path).model_dump(mode="json")) == config


def load_text(text: str, folder: Path) -> RunConfig:
    """A config from its YAML."""
    (folder / "config.yaml").write_text(text)
    return load_config(folder / "config.yaml")


def test_an_audit_writes_what_it_found_and_says_what_it_could_not(made: Path) -> None:
    told = audit(made, BRIEF)
    assert [one["name"] for one in told["results"]] == ["near_copies", "reidentification", "membership"]
    assert without_checksum((made / "audit.json").read_text()) == told
    assert 'id="privacy"' in (page := (made / "report.html").read_text())
    assert told["conclusion"] in page
    membership = next(one for one in told["results"] if one["name"] == "membership")
    assert "AUC" in membership["sentence"]
    rows = Manifest.read(made / "manifest.parquet").rows
    patients = set(rows.loc[~rows["synthetic"].astype(bool), "patient_id"].astype(str))
    text = (made / "audit.json").read_text()
    assert not [patient for patient in patients if patient in text]


def test_shadows_and_canaries_are_trained_like_the_run_and_stay_out_of_its_ledger(made: Path) -> None:
    before = (made / "ledger.json").read_bytes()
    told = audit(made, replace(BRIEF, shadow_models=2, canaries=8))
    assert {"membership, shadow models", "canaries"} <= {one["name"] for one in told["results"]}
    canary = next(one for one in told["results"] if one["name"] == "canaries")
    assert canary["passed"] is None
    assert "if all guesses were correct: " in canary["sentence"]
    assert canary["bound"] <= canary["ledger"]
    inner = next(one for one in told["results"] if one["name"] == "canaries in gradients")
    assert inner["m"] > 400  # a hundredth of the weights
    assert inner["passed"] is not False
    assert 0 < inner["gaussian"] <= inner["ledger"] < canary["ledger"]
    assert "canaries in gradients were correct" in inner["sentence"]
    assert (made / "ledger.json").read_bytes() == before


def test_the_command_exits_1_where_something_is_not_ruled_out_and_2_without_a_run(made: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["audit", str(made), "--json", "--show-pairs", *SHORT])
    told = json.loads(done.stdout)
    assert done.exit_code == (0 if all(one["passed"] for one in told["results"]) else 1)
    assert (made / "audit_pairs.png").is_file() == ("plants" in told["results"][0])
    gone = CliRunner().invoke(app, ["audit", str(tmp_path)])
    assert gone.exit_code == 2
    assert "is not a finished run" in gone.stderr


def test_ordinary_runs_are_audited_too_and_claim_nothing(finished: Path) -> None:
    assert claim(finished).epsilon is None
    assert [one["name"] for one in audit(finished, BRIEF)["results"]] == [
        "near_copies",
        "reidentification",
        "membership",
    ]


def test_near_copies_are_not_kept_and_are_counted(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose images are real train images: with validation patients enough to set a limit by, none is kept."""
    from medlt.recipes import _publish

    told = tiny(tmp_path / "run").model_dump(mode="json", exclude={"method", "checks"})
    told["data"] |= {"patients": 60, "shares": [0.4, 0.5, 0.1]}
    checks = {"folds": 2, "verifier_quantile": 0.01, "max_correlation": 1.0, "near_copy": {"fpr": 0.08, "steps": 3}}
    config = parse({**told, "method": {"kind": "noise", "num_inference_steps": 3}, "checks": checks})
    honest = _publish.joined

    def copied(batches: Any) -> Any:
        batch = honest(batches)
        real = Manifest.read(tmp_path / "run/stages/data/manifest.parquet").split("train")
        likes = pd.read_parquet(tmp_path / "run/plan.parquet").loc[batch.rows.index, "label_source"]
        pixels = images(real, batch.images.shape[-1], uids=sorted(set(likes))).float() / 255
        return replace(batch, images=pixels[[sorted(set(likes)).index(like) for like in likes]])

    monkeypatch.setattr(_publish, "joined", copied)
    run = augment(config)
    found = pd.read_parquet(run / "checks.parquet").query("check == 'near_copy'")
    assert len(found)
    assert not found["passed"].any()
    assert json.loads((run / "run.json").read_text())["counts"]["kept"] == 0
    assert "near_copy" in (run / "report.html").read_text()
