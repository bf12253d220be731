"""What may be said of a run: the truth table of its folder, and that any one flaw takes the claim away."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medlt import config as configs
from medlt.data.manifest import Manifest
from medlt.diffusion.labels import LabelUNet
from medlt.files import digest_tensors, write_bytes, write_json, write_table, write_text
from medlt.privacy import claim
from medlt.privacy.book import add_to_book
from medlt.privacy.claims import config_violations
from medlt.privacy.ledger import Mechanism, read_ledger, write_ledger, write_mechanism
from medlt.store import Store
from medlt.types import InputError

PUBLIC: dict[str, Any] = {"patients": 4, "findings": ["Mass"]}
LEAST: dict[str, Any] = {
    "method": "noise",
    "data": {"kind": "csv", "table": "labels.csv", "findings": ["Mass"]},
    "codec": {"kind": "folder", "path": "codec"},
    "denoiser": {"steps": 20, "batch_size": 1},
    "privacy": {"epsilon": 8, "delta": 1e-6, **PUBLIC},
}
BRIEF = {"steps": 20, "batch_size": 1}
UNTRAINED = {"kind": "stable-diffusion", "model": {"kind": "folder", "path": "base"}, "train": "none"}


def manifest() -> Manifest:
    index = pd.Index([f"real-{i}" for i in range(4)], name="uid")
    about = {"path": [f"{uid}.png" for uid in index], "patient_id": list("abcd"), "split": "train", "view": "PA",
             "content": list("wxyz")}  # fmt: skip
    return Manifest(pd.DataFrame({**about, "Mass": [1.0, 0.0, 0.0, 1.0]}, index=index), ("Mass",), Path("images"))


@cache
def network() -> tuple[LabelUNet, str]:
    """A small denoiser and the digest of its weights, as the ledger names them."""
    torch.manual_seed(0)
    net = LabelUNet(channels=2, findings=1, width=8)
    return net, digest_tensors({str(i): weight for i, weight in enumerate(net.parameters())})


def mechanism(stage: str = "denoiser", **changed: Any) -> Mechanism:
    given = {
        "stage": stage,
        "privacy_unit": "patient",
        "units": 4,
        "sample_rate": 0.25,
        "noise_multiplier": 4.0,
        "max_grad_norm": 1.0,
        "steps": 20,
        "planned": 20,
        "max_images_per_patient": 1,
        "noise_multiplicity": 4,
        "grad_sample_mode": "hooks",
        "randomness": "from the operating system",
        "secure_mode": True,
        "data": manifest().split("train").digest(),
        "weights": network()[1] if stage == "denoiser" else f"weights of {stage}",
    }
    return Mechanism(**{**given, **changed})


def lora(folder: Path) -> None:
    write_text(folder / "model" / "pytorch_lora_weights.safetensors", "a LoRA")


def trained(run: Path, one: Mechanism, save: Callable[[Path], object]) -> str:
    """The artifact of a private training in the run's store and in the budget book; its place, KIND/DIGEST."""

    def build(place: Path) -> None:
        save(place)
        write_mechanism(place / "mechanism.json", one)

    made = Store(run / "artifacts").make(one.stage, {"stage": str(one)}, build)
    add_to_book(run / "book.json", "this run", list("abcd"), [made], ())
    return f"{one.stage}/{made.digest}"


def folder(run: Path, *stages: Mechanism, **changed: Any) -> Path:
    """A run folder as a recipe leaves it, its config changed so."""
    stages = stages or (mechanism(),)
    config = configs.parse({**LEAST, "output_dir": str(run), "budget_book": str(run / "book.json"), **changed})
    write_text(run / "config.yaml", configs.dump(config))
    stable = isinstance(config.denoiser, configs.StableConfig)
    places = {
        one.stage: trained(run, one, lora if stable and one.stage == "denoiser" else network()[0].save)
        for one in stages
        if getattr(config.denoiser, "train", "full") != "none"
    }
    record = {"digests": {"codec": "1", "denoiser": "2"}, "weights": {one.stage: one.weights for one in stages}}
    record["artifacts"] = {place: {} for place in places.values()}
    if "denoiser" in places:
        record["denoiser"] = {"artifact": places["denoiser"].split("/")[1]}
        made = run / "artifacts" / places["denoiser"]
        for file in (made / "model").iterdir() if stable else [made / "model.json", made / "model.safetensors"]:
            write_bytes(run / "denoiser" / file.name, file.read_bytes())
    write_json(run / "run.json", record)
    write_ledger(run / "ledger.json", stages, 1e-6, 8.0)
    manifest().write(run / "stages" / "data" / "manifest.parquet")
    looks = pd.DataFrame(
        {"check": ["finite", "flat", "saturated", "target_label", "best_of", "copy"], "uid": "noise_1"}
    )
    write_table(run / "checks.parquet", looks)
    write_table(
        run / "plan.parquet", pd.DataFrame({"label_source": ["only-Mass"]}, index=pd.Index(["noise_1"], name="uid"))
    )
    return run


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("runs") / "sound")


def test_a_sound_run_carries_what_its_ledger_says(sound: Path) -> None:
    found = claim(sound)
    assert found.reasons == ()
    assert found.epsilon == read_ledger(sound / "ledger.json").spent.epsilon
    assert (found.delta, found.privacy_unit, found.secure_mode) == (1e-6, "patient", True)
    assert found.covers == "the denoiser's weights, the synthetic images with their labels"
    assert "one patient, with all of their images" in found.sentence
    assert "codec is assumed to be public" in found.sentence
    assert "runs on these patients that were added up: 1" in found.sentence


FLAWS: dict[str, tuple[dict[str, Any], str]] = {
    "no privacy": ({"privacy": None, "checks": {"near_copy": None}}, "no section privacy"),
    "seeded": ({"privacy": {"epsilon": 8, "delta": 1e-6, **PUBLIC, "secure_mode": False}}, "randomness was not secure"),
    "fusion": ({"method": "fusion"}, "method fusion reads real images"),
    "edit": ({"method": "edit"}, "method edit reads real images"),
    "diffult": ({"method": "diffult", "privacy": None}, "method diffult"),
    "longtail": ({"method": "longtail"}, "longtail guide"),
    "minority": ({"method": "minority"}, "rarity of real ones"),
    "features": (
        {"method": {"kind": "noise", "guidance": [{"kind": "minority", "distance": "features", "reference": False}]}},
        "latent classifier",
    ),
    "jepa": ({"method": {"kind": "noise", "guidance": [{"kind": "jepa"}]}}, "jepa guide"),
    "near copies": ({"checks": {"near_copy": {}}}, "near-copy filter"),
    "codec trained": ({"codec": {"kind": "train"}}, "codec was trained without privacy"),
    "codec tuned": ({"codec": {"kind": "folder", "path": "codec", "tune": {}}}, "codec was trained without privacy"),
    "budget": ({"privacy": {"epsilon": 1, "delta": 1e-6, **PUBLIC}}, "another budget"),
    "unit": ({"privacy": {"epsilon": 8, "delta": 1e-6, **PUBLIC, "privacy_unit": "image"}}, "another privacy_unit"),
}
AT_THE_DOOR = set(FLAWS) - {"codec trained", "codec tuned", "budget", "unit"}


@pytest.mark.parametrize("name", FLAWS)
def test_a_flaw_of_the_config(tmp_path: Path, name: str) -> None:
    changed, said = FLAWS[name]
    found = claim(run := folder(tmp_path / "run", **changed))
    assert found.epsilon is None
    assert any(said in reason for reason in found.reasons)
    assert found.sentence.startswith("No privacy is claimed")
    assert all(reason in found.sentence for reason in found.reasons)
    config = configs.load_config(run / "config.yaml")
    assert any(said in reason for reason in config_violations(config)) == (name in AT_THE_DOOR)
    assert set(config_violations(config)) <= set(found.reasons)


@pytest.mark.parametrize(
    "guides", [[], [{"kind": "minority", "reference": False}], [{"kind": "longtail", "weight": 0}]]
)
def test_guides_that_read_nothing_real_are_no_reason(tmp_path: Path, guides: list[dict[str, Any]]) -> None:
    assert claim(folder(tmp_path / "run", method={"kind": "noise", "guidance": guides})).reasons == ()


@pytest.mark.parametrize("codec", [{"kind": "train", **BRIEF}, {"kind": "folder", "path": "codec", "tune": BRIEF}])
def test_a_codec_in_the_ledger_is_covered_and_paid_for(tmp_path: Path, codec: dict[str, Any]) -> None:
    found = claim(folder(tmp_path / "run", mechanism(), mechanism("codec"), codec=codec))
    assert found.reasons == ()
    assert "codec's weights" in found.covers
    assert (found.epsilon or 0) > (claim(folder(tmp_path / "one")).epsilon or 0)


def test_given_weights_are_said_to_be_assumed_public(tmp_path: Path) -> None:
    base = {"kind": "stable-diffusion", "model": {"kind": "folder", "path": "base"}, **BRIEF}
    for denoiser in (base, {"kind": "unet", "init_from": "pretrained", **BRIEF}):
        found = claim(folder(tmp_path / denoiser["kind"], denoiser=denoiser))
        assert found.reasons == ()
        assert "began from given weights" in found.sentence
    assert "began from given weights" not in claim(folder(tmp_path / "own")).sentence


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("codec.path", {"codec": {"kind": "folder", "path": "GIVEN"}}),
        ("denoiser.init_from", {"denoiser": {"kind": "unet", "init_from": "GIVEN", **BRIEF}}),
        ("denoiser.init_from", {"denoiser": {"kind": "transformer", "init_from": "GIVEN", **BRIEF}}),
        (
            "denoiser.model.path",
            {"denoiser": {"kind": "stable-diffusion", "model": {"kind": "folder", "path": "GIVEN"}, **BRIEF}},
        ),
        (
            "denoiser.model.loras[0]",
            {
                "denoiser": {
                    "kind": "stable-diffusion",
                    "model": {"kind": "folder", "path": "base", "loras": ["GIVEN"]},
                    **BRIEF,
                }
            },
        ),
    ],
)
def test_given_weights_of_a_run_on_the_same_patients_are_a_reason(
    tmp_path: Path, key: str, changed: dict[str, Any]
) -> None:
    manifest().write(tmp_path / "other" / "stages" / "data" / "manifest.parquet")
    given = str(tmp_path / "other" / "artifacts" / "weights")
    (tmp_path / "other" / "artifacts").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "other" / "artifacts")
    for i, place in enumerate((given, str(tmp_path / "link" / "weights"))):
        told = json.loads(json.dumps(changed).replace("GIVEN", place))
        (reason,) = claim(folder(tmp_path / f"run{i}", **told)).reasons
        assert reason.startswith(f"{key} was trained in a run on some of the same patients")


def test_what_never_saw_a_patient_costs_nothing(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", denoiser=UNTRAINED)
    (run / "ledger.json").unlink()
    found = claim(run)
    assert (found.epsilon, found.reasons) == (0.0, ())
    assert found.covers == "the synthetic images with their labels"
    (run / "ledger.json").write_text("{}")
    assert claim(run).epsilon is None


def test_the_same_model_with_labels_of_real_rows_carries_none(tmp_path: Path) -> None:
    found = claim(folder(tmp_path / "run", denoiser=UNTRAINED, privacy=None))
    assert found.epsilon is None
    assert any("label vectors" in reason for reason in found.reasons)


def test_a_delta_too_large_is_no_claim(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", privacy={"epsilon": 8, "delta": 0.3, **PUBLIC})
    write_ledger(run / "ledger.json", [mechanism()], 0.3, 8.0)
    found = claim(run)
    assert found.epsilon is None
    assert [reason for reason in found.reasons if "delta 0.3 is at least 1/4" in reason] != []
    assert config_violations(configs.load_config(run / "config.yaml")) != ()


def test_a_ledger_of_another_number_of_patients_is_not_the_runs(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", mechanism(units=5))
    assert "another privacy_unit or number of patients than the config" in claim(run).sentence


def copied(sound: Path, run: Path) -> Path:
    """A copy of a run, whose book is copied too."""
    shutil.copytree(sound, run)
    write_text(run / "config.yaml", (run / "config.yaml").read_text().replace(str(sound), str(run)))
    return run


def rewrite(run: Path, *stages: Mechanism) -> None:
    write_ledger(run / "ledger.json", stages, 1e-6, 8.0)


def again(run: Path, *stages: Mechanism) -> None:
    """Another run in its place, whose trainings recorded these mechanisms."""
    shutil.rmtree(run)
    folder(run, *stages)


def artifact(run: Path) -> Path:
    (place,) = (run / "artifacts" / "denoiser").glob("*/artifact.json")
    return place.parent


def retell(run: Path, **sections: Any) -> None:
    told = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", {**told, **{k: {**told.get(k, {}), **v} for k, v in sections.items()}})


def look(run: Path, check: str) -> None:
    table = pd.read_parquet(run / "checks.parquet")
    write_table(run / "checks.parquet", pd.concat([table, pd.DataFrame({"check": [check], "uid": ["noise_1"]})]))


def hand(run: Path) -> None:
    file = run / "ledger.json"
    file.write_text(file.read_text().replace('"noise_multiplier": 4.0', '"noise_multiplier": 9.0'))


def leave_out(run: Path) -> None:
    retell(run, artifacts={trained(run, mechanism("sparse"), lora): {}})


def lend(run: Path, column: str) -> None:
    plan = pd.read_parquet(run / "plan.parquet")
    write_table(run / "plan.parquet", plan.assign(**{column: "real-2"}))


def another(run: Path, build: Callable[[Path], object], patients: str = "abcd") -> Path:
    """A denoiser of another run on these patients, in the same budget book."""
    made = Store(run.parent / "another").make("denoiser", {"patients": patients}, lambda place: build(place))
    add_to_book(run / "book.json", "another run", list(patients), [made], ())
    return made.folder


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no ledger": (lambda run: (run / "ledger.json").unlink(), "no ledger"),
    "edited": (hand, "edited by hand"),
    "damaged": (lambda run: (run / "ledger.json").write_text("{"), "damaged"),
    "other stage": (lambda run: rewrite(run, mechanism("codec")), "denoiser was trained without privacy"),
    "unfinished": (lambda run: rewrite(run, mechanism(weights="")), "did not finish"),
    "other weights": (lambda run: rewrite(run, mechanism(weights="x")), "weights differ"),
    "weights unknown": (lambda run: retell(run, weights={"denoiser": ""}), "weights differ"),
    "steps": (lambda run: rewrite(run, mechanism(steps=19)), "recorded: steps 19, not 20"),
    "less noise": (lambda run: rewrite(run, mechanism(noise_multiplier=9.0)), "noise_multiplier 9.0, not 4.0"),
    "a training left out": (lambda run: leave_out(run), "a private training of the sparse is not in"),
    "no artifact": (lambda run: shutil.rmtree(artifact(run)), "is missing (restore it"),
    "other artifact": (
        lambda run: write_text(artifact(run) / "model.json", "{}"),
        "was replaced (model.json)",
    ),
    "other record": (
        lambda run: write_mechanism(artifact(run) / "mechanism.json", mechanism(steps=3)),
        "mechanism.json",
    ),
    "renamed": (
        lambda run: (run / "denoiser" / "model.json").rename(run / "denoiser" / "m.json"),
        "model.json is missing",
    ),
    "handed over no more": (lambda run: shutil.rmtree(run / "denoiser"), "is missing"),
    "others handed over": (lambda run: write_text(run / "denoiser" / "model.safetensors", "x"), "is not the file that"),
    "one more file": (lambda run: write_text(run / "denoiser" / "more.safetensors", "x"), "did not write"),
    "no book": (lambda run: (run / "book.json").unlink(), "budget book of the collection is missing"),
    "damaged book": (lambda run: write_text(run / "book.json", "{}"), "budget book of the collection is damaged"),
    "edited book": (
        lambda run: write_text(run / "book.json", (run / "book.json").read_text().replace('"steps": 20', '"steps": 2')),
        "budget book of the collection is damaged",
    ),
    "book of others": (
        lambda run: [(run / "book.json").unlink(), another(run, lora)],
        "the budget book does not list the trainings of this run",
    ),
    "an image": (lambda run: write_text(run / "images" / "real-1.png", "x"), "1 files that this run did not make"),
    "seeded": (lambda run: again(run, mechanism(secure_mode=False)), "not secure"),
    "one seeded": (lambda run: again(run, mechanism(), mechanism("codec", secure_mode=False)), "not secure"),
    "other rows": (lambda run: again(run, mechanism(data="0")), "other rows"),
    "rows gone": (lambda run: shutil.rmtree(run / "stages"), "recorded rows of the run are missing"),
    "other budget": (lambda run: write_ledger(run / "ledger.json", [mechanism()], 1e-5, 8.0), "another budget"),
    "other unit": (lambda run: again(run, mechanism(privacy_unit="image")), "another privacy_unit"),
    "judge": (lambda run: look(run, "label_consistency"), "label_consistency"),
    "band": (lambda run: look(run, "in_band"), "in_band"),
    "near copy": (lambda run: look(run, "near_copy"), "near_copy"),
    "unknown check": (lambda run: look(run, "of tomorrow"), "of tomorrow"),
    "guidance_classifier": (lambda run: retell(run, digests={"guidance_classifier": "1"}), "guidance_classifier"),
    "latent classifier": (lambda run: retell(run, digests={"latent_classifier": "1"}), "latent classifier"),
    "levels": (lambda run: retell(run, digests={"levels": "1"}), "levels of rarity"),
    "lent labels": (lambda run: lend(run, "label_source"), "with labels or pixels of real rows"),
    "lent pixels": (lambda run: lend(run, "tail_parent"), "with labels or pixels of real rows"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_flaw_of_the_folder(sound: Path, tmp_path: Path, name: str) -> None:
    run = copied(sound, tmp_path / "run")
    spoil, said = BREAKS[name]
    spoil(run)
    found = claim(run)
    assert found.epsilon is None
    assert any(said in reason for reason in found.reasons), found.reasons
    assert len(found.reasons) == 1
    assert str(tmp_path) not in found.sentence
    assert "real-" not in found.sentence


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(changed=st.sampled_from(sorted(FLAWS)), spoilt=st.sets(st.sampled_from(sorted(BREAKS)), max_size=3))
def test_no_flaw_mends_another(sound: Path, tmp_path: Path, changed: str, spoilt: set[str]) -> None:
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    folder(run, **FLAWS[changed][0])
    agrees = {"other unit"} if changed == "unit" else set()  # a config and a ledger by images are a sound run
    for name in sorted(spoilt - {"no ledger", "damaged", "rows gone", "lent pixels"} - agrees):
        with suppress(ValueError, OSError):  # another one has removed what it would spoil
            BREAKS[name][0](run)
    found = claim(run)
    assert found.epsilon is None
    assert found.reasons
    assert "epsilon 8" not in found.sentence.replace("epsilon: 8", "")


def test_a_stage_in_the_ledger_is_no_flaw(sound: Path, tmp_path: Path) -> None:
    """A predictor that was trained privately too is paid for."""
    run = copied(sound, tmp_path / "run")
    retell(run, digests={"guidance_classifier": "1"})
    rewrite(run, mechanism(), mechanism("guidance_classifier"))
    assert claim(run).reasons == ()


def test_weights_that_a_store_took_for_trained_are_compared_with_the_ledger(tmp_path: Path) -> None:
    """An artifact that is sound, whose mechanism agrees, and whose network is another one."""
    other = LabelUNet(channels=2, findings=1, width=8)
    run = folder(tmp_path / "run")
    shutil.rmtree(artifact(run))
    trained(run, mechanism(), other.save)
    for name in ("model.json", "model.safetensors"):
        shutil.copyfile(artifact(run) / name, run / "denoiser" / name)
    (reason,) = claim(run).reasons
    assert "weights on disk are not those" in reason


STABLE = {"kind": "stable-diffusion", "model": {"kind": "folder", "path": "base"}, **BRIEF}
SETTINGS: dict[str, dict[str, Any]] = {
    "privacy.max_grad_norm": {"privacy": {"epsilon": 8, "delta": 1e-6, **PUBLIC, "max_grad_norm": 2}},
    "privacy.max_images_per_patient": {"privacy": {"epsilon": 8, "delta": 1e-6, **PUBLIC, "max_images_per_patient": 2}},
    "privacy.noise_multiplicity": {"privacy": {"epsilon": 8, "delta": 1e-6, **PUBLIC, "noise_multiplicity": 2}},
    "denoiser.steps": {"denoiser": {"steps": 19, "batch_size": 1}},
    "denoiser.batch_size": {"denoiser": {"steps": 20, "batch_size": 2}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_changed_in_the_config_alone(tmp_path: Path, name: str) -> None:
    (reason,) = claim(folder(tmp_path / "run", **SETTINGS[name])).reasons
    assert f"another {name} than" in reason


def test_a_lora_is_compared_file_by_file(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", denoiser=STABLE)
    assert claim(run).reasons == ()
    adapter = run / "denoiser" / "pytorch_lora_weights.safetensors"
    adapter.write_text("another LoRA")
    (swapped,) = claim(run).reasons
    assert "is not the file that this run trained" in swapped
    adapter.unlink()
    (gone,) = claim(run).reasons
    assert "is missing" in gone


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("patients", ["abcd", "dxyz", "wxyz"])
def test_a_copy_of_weights_of_the_same_patients_is_known_by_its_content(
    tmp_path: Path, private: bool, patients: str
) -> None:
    def build(place: Path) -> None:
        write_text(place / "model" / "pytorch_lora_weights.safetensors", "another LoRA")
        if private:
            write_mechanism(place / "mechanism.json", mechanism(weights="of another run"))

    copied = tmp_path / "elsewhere" / "renamed.safetensors"
    model = {"kind": "folder", "path": "base", "loras": [str(copied)]}
    run = folder(tmp_path / "run", denoiser={**STABLE, "model": model})
    write_bytes(copied, (another(run, build, patients) / "model" / "pytorch_lora_weights.safetensors").read_bytes())
    reasons = claim(run).reasons
    if patients == "wxyz":
        assert reasons == ()
    else:
        (reason,) = reasons
        assert reason.startswith("denoiser.model.loras[0] was trained in a run on some of the same patients")


@pytest.mark.parametrize("patients", ["abcd", "dxyz", "wxyz"])
def test_runs_on_some_of_the_same_patients_are_added_up(tmp_path: Path, patients: str) -> None:
    """The sum is that of one ledger with both trainings, whether patients overlap in part or as a whole."""
    other = mechanism(weights="of another run", steps=10, planned=10, noise_multiplier=2.0)
    run = folder(tmp_path / "run")
    alone = claim(run).epsilon
    another(run, lambda place: write_mechanism(place / "mechanism.json", other), patients)
    write_ledger(tmp_path / "both.json", [mechanism(), other], 1e-6, 8.0)
    both = read_ledger(tmp_path / "both.json").spent.epsilon
    added = claim(run)
    if patients == "wxyz":
        assert added.epsilon == alone
    else:
        assert added.epsilon == both
        assert both > (alone or 0)
        assert "added up: 2" in added.sentence


def test_a_training_with_a_seed_is_not_added_as_a_private_one(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    alone = claim(run)
    seeded = mechanism(weights="of another run", secure_mode=False)
    another(run, lambda place: write_mechanism(place / "mechanism.json", seeded))
    assert claim(run) == alone


def test_a_claim_changes_nothing_in_the_folder(sound: Path, tmp_path: Path) -> None:
    """Not even a damaged artifact is moved aside."""
    run = copied(sound, tmp_path / "run")
    write_text(artifact(run) / "model.json", "{}")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert claim(run).epsilon is None
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        claim(tmp_path)


def test_a_damaged_record_is_told(sound: Path, tmp_path: Path) -> None:
    run = copied(sound, tmp_path / "run")
    (run / "run.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        claim(run)
