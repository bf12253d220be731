"""Private Evolution from a config: votes, resume, claim, what leaves, and collections that differ in one patient."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from medlt.config import RunConfig, dump, load_config, parse
from medlt.data.manifest import Manifest
from medlt.diffusion.labels import LabelUNet
from medlt.export.provenance import write_provenance
from medlt.export.release import build_release
from medlt.export.release_check import verify_release
from medlt.files import digest, read_tensors, write_json, write_text
from medlt.privacy import claim, votes
from medlt.privacy.dpsgd.randomness import Secure, Seeded
from medlt.privacy.ledger import read_ledger, read_mechanism, write_mechanism
from medlt.recipes import _evolution
from medlt.recipes.audit import AuditOptions
from medlt.recipes.audit import main as audit
from medlt.recipes.augment import main as augment
from medlt.store import RECORD
from medlt.types import InputError

FINDINGS = ["Mass", "Hernia", "No_Finding"]
PRIVACY = {"epsilon": 8.0, "delta": 1e-5, "patients": 10, "findings": FINDINGS}
METHOD = {"kind": "evolution", "num_inference_steps": 4, "population": 6, "strength": [0.75, 0.5]}
OWN = "patient-0"
"""The patient with the only hernia."""


class Fixed(Seeded):
    """Numbers of a seed in the place of the system's, which a test cannot fix."""

    secure = True
    description = Secure.description


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser of these findings that nobody trained."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("public")
    LabelUNet(16, len(FINDINGS), width=8, levels=1, rescale_betas_zero_snr=True).save(place)
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """A manifest of 24 patients, with or without one of them."""

    def make(with_own: bool = True) -> Path:
        place, rng, rows = tmp_path_factory.mktemp("data"), np.random.default_rng(0), []
        for i in range(24):
            pixels = rng.integers(0, 256, (32, 32), np.uint8)
            row = {"uid": f"image-{i}", "path": f"image-{i}.png", "patient_id": f"patient-{i}", "view": "PA",
                   "split": ("train", "val", "test")[max(i - 21, 0)], "Mass": float(i % 2), "Hernia": float(i == 0),
                   "No_Finding": float(not i % 2)}  # fmt: skip
            if i or with_own:
                rows.append(row)
                Image.fromarray(pixels).save(place / row["path"])
        Manifest(pd.DataFrame(rows).set_index("uid"), tuple(FINDINGS), place).write(place / "manifest.parquet")
        return place / "manifest.parquet"

    return make


Configure = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def configure(public: Path) -> Configure:
    """A function to a config as short as one can be."""

    def make(rows: Path, out: Path, **changes: Any) -> RunConfig:
        tree: dict[str, Any] = {
            "output_dir": str(out), "size": 32, "threads": 1, "evaluation": None, "seed": 4,
            "data": {"kind": "manifest", "path": str(rows)}, "codec": {"kind": "identity", "patch": 4},
            "denoiser": {"train": "none", "init_from": str(public)}, "method": METHOD,
            "targets": {"count": 3, "num_candidates": 1}, "checks": {"min_std": 0.0},
            "classifier": {"size": 32, "steps": 2}, "privacy": PRIVACY,
        }  # fmt: skip
        return parse({**tree, **changes})

    return make


@pytest.fixture(scope="module")
def rows(data: Callable[[bool], Path]) -> Path:
    """The manifest of all patients."""
    return data(True)


@pytest.fixture(scope="module")
def made(configure: Configure, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    return augment(configure(rows, tmp_path_factory.mktemp("evolution") / "run"))


def artifact_of(run: Path) -> Path:
    """The folder of a run's populations and votes."""
    (record,) = run.glob("artifacts/evolution/*/artifact.json")
    return record.parent


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its name."""
    return {one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def test_a_run_has_one_mechanism_and_claims_what_it_costs(made: Path) -> None:
    (one,) = read_ledger(made / "ledger.json").mechanisms
    assert (one.stage, one.sample_rate, one.steps, one.planned, one.max_grad_norm) == ("evolution", 1.0, 2, 2, 1.0)
    stated = claim(made)
    assert stated.epsilon is not None, stated.sentence
    assert 7.9 < stated.epsilon <= 8
    assert stated.covers == "the synthetic images with their labels"
    assert "noisy votes" in stated.sentence
    assert "the denoiser has given weights" in stated.sentence.lower()
    assert "noisy votes" in (made / "MODEL_CARD.md").read_text()
    assert not (made / "denoiser").exists()


def test_its_release_is_the_images_alone_and_verifies(made: Path, tmp_path: Path) -> None:
    record = build_release(made, tmp_path / "out")
    assert record["deployment"]["implementation"]["mechanisms"].startswith("noisy votes")
    assert "DP-SGD" not in record["deployment"]["implementation"]["mechanisms"]
    stated = verify_release(tmp_path / "out")
    assert (stated["problems"], stated["epsilon"]) == ([], claim(made).epsilon)
    assert {Path(name).parts[0] for name in record["files"]} == {
        "images", "MODEL_CARD.md", "DATASHEET.md", "provenance.json",
    }  # fmt: skip


def test_run_again_it_votes_no_more(made: Path) -> None:
    before = bytes_of(made / "images") | bytes_of(artifact_of(made)) | {"ledger": (made / "ledger.json").read_bytes()}
    augment(load_config(made / "config.yaml"))
    after = bytes_of(made / "images") | bytes_of(artifact_of(made)) | {"ledger": (made / "ledger.json").read_bytes()}
    assert before == after


def same_folder(config: RunConfig, out: Path) -> RunConfig:
    """The config with another run folder."""
    return config.model_copy(update={"output_dir": out})


@pytest.mark.parametrize("written", [0, 1, 2, 3, 4])
def test_interrupted_anywhere_it_ends_with_the_same_bytes_and_draws_no_noise_twice(
    configure: Configure, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """Killed before the file of number `written`, in the order population, votes, population, votes, mechanism."""
    drawn: list[int] = []

    class Counted(Fixed):
        def normal(self, shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
            drawn.append(self.seed)
            return super().normal(shape, dtype)

    monkeypatch.setattr(_evolution, "randomness", lambda private, seed: Counted(seed))
    whole = augment(configure(rows, tmp_path / "whole"))
    assert len(drawn) == 2
    drawn.clear()
    done: list[int] = []

    def killed(honest: Callable[..., None]) -> Callable[..., None]:
        def write(*args: Any) -> None:
            if len(done) == written:
                raise KeyboardInterrupt
            done.append(1)
            honest(*args)

        return write

    config = configure(rows, tmp_path / "cut")
    with monkeypatch.context() as patch:
        for name in ("write_tensors", "write_mechanism"):
            patch.setattr(_evolution, name, killed(getattr(_evolution, name)))
        with pytest.raises(KeyboardInterrupt):
            augment(config)
    cut = augment(config)
    kept = len(drawn) - 2
    assert kept == (1 if written in (1, 3) else 0)  # noise that was drawn, and seen by nobody: it was not written
    assert {k: v for k, v in bytes_of(artifact_of(cut)).items()} == bytes_of(artifact_of(whole))
    assert bytes_of(cut / "images") == bytes_of(whole / "images")
    assert (cut / "ledger.json").read_bytes() == (whole / "ledger.json").read_bytes()


def test_with_secure_noise_every_run_votes_otherwise(
    made: Path, configure: Configure, rows: Path, tmp_path: Path
) -> None:
    other = augment(configure(rows, tmp_path / "run"))
    one, two = (artifact_of(run) for run in (made, other))
    assert (one / "population_0.safetensors").read_bytes() == (two / "population_0.safetensors").read_bytes()
    assert not votes.read_votes(one / votes.file_of(0)).equal(votes.read_votes(two / votes.file_of(0)))


def test_without_noise_the_population_comes_nearer_to_the_patients(
    configure: Configure, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(votes, "noisy", lambda counted, noise, source: torch.from_numpy(counted).float())
    method = {**METHOD, "population": 24, "strength": [0.25] * 4, "threshold": 0.0, "vote_size": 8}
    run = augment(configure(rows, tmp_path / "run", method=method))
    made, train = artifact_of(run), Manifest.read(rows).split("train")
    mass = train.rows[train.rows["Mass"] == 1]
    real = [np.asarray(Image.open(rows.parent / path), np.float32) / 255 for path in mass["path"]]
    wanted = votes.thumbnails(torch.from_numpy(np.stack(real))[:, None], 8).double()
    distances = []
    for generation in range(4):
        z = read_tensors(made / f"population_{generation}.safetensors")["0"]
        images = torch.nn.functional.pixel_shuffle(z, 4)
        small = votes.thumbnails((images / 2 + 0.5).clamp(0, 1), 8).double()
        distances.append(torch.cdist(wanted, small).min(1).values.mean().item())
    assert distances[-1] < distances[0]


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    place = tmp_path / "copied"
    shutil.copytree(made, place)
    config = load_config(place / "config.yaml").model_copy(update={"output_dir": place})
    write_text(place / "config.yaml", dump(config))
    assert claim(place).epsilon is not None, claim(place).sentence
    return place


def sealed(folder: Path) -> None:
    """Write the checksums of an artifact again, as a person does who knows how."""
    from medlt.files import digest_file

    record = json.loads((folder / RECORD).read_text())
    record.pop("checksum")
    record["files"] = {name: digest_file(folder / name) for name in record["files"]}
    write_json(folder / RECORD, record | {"checksum": digest(record)})


def edited(file: Path) -> None:
    """Give one image of one finding a hundred votes more."""
    from medlt.files import write_tensors

    voted = votes.read_votes(file)
    voted[0, 0] += 100
    write_tensors(file, {"votes": voted})


@pytest.mark.parametrize("name", ["votes_1.safetensors", "population_1.safetensors", "mechanism.json"])
def test_a_changed_file_of_the_votes_takes_the_claim_away(copied: Path, name: str) -> None:
    file = artifact_of(copied) / name
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert f"is damaged or was replaced ({name})" in claim(copied).sentence


def test_edited_votes_take_the_claim_away_even_if_their_checksums_were_written_anew(copied: Path) -> None:
    place = artifact_of(copied)
    edited(place / votes.file_of(1))
    sealed(place)
    assert "the noisy votes are not those in ledger.json" in claim(copied).sentence


def test_votes_of_another_run_take_the_claim_away(
    copied: Path, configure: Configure, rows: Path, tmp_path: Path
) -> None:
    other = artifact_of(augment(configure(rows, tmp_path / "other")))
    shutil.copyfile(other / votes.file_of(1), artifact_of(copied) / votes.file_of(1))
    sealed(artifact_of(copied))
    assert "the noisy votes are not those in ledger.json" in claim(copied).sentence


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 1), ("sample_rate", 0.5), ("max_grad_norm", 0.5), ("noise_multiplier", 99.0)]
)
def test_a_ledger_of_other_votes_takes_the_claim_away(copied: Path, field: str, value: float) -> None:
    from dataclasses import replace

    from medlt.privacy.ledger import write_ledger

    (one,) = read_ledger(copied / "ledger.json").mechanisms
    write_ledger(copied / "ledger.json", [replace(one, **{field: value})], PRIVACY["delta"], PRIVACY["epsilon"])  # type: ignore[arg-type]
    assert claim(copied).epsilon is None
    if field != "noise_multiplier":
        file = artifact_of(copied) / "mechanism.json"
        write_mechanism(file, replace(read_mechanism(file), **{field: value}))
        sealed(artifact_of(copied))
        assert "another number or weight of votes than the config" in claim(copied).sentence


def test_a_run_without_its_votes_claims_nothing(copied: Path) -> None:
    shutil.rmtree(artifact_of(copied))
    assert claim(copied).epsilon is None
    (copied / "ledger.json").unlink()
    assert "there is no ledger" in claim(copied).sentence


def test_a_second_vote_of_the_same_patients_is_added_up(
    made: Path, configure: Configure, rows: Path, tmp_path: Path
) -> None:
    book = tmp_path / "book.json"
    one = augment(configure(rows, tmp_path / "one", budget_book=str(book)))
    alone = claim(one).epsilon
    augment(configure(rows, tmp_path / "two", seed=5, budget_book=str(book)))
    both = claim(one).epsilon
    assert alone is not None
    assert both is not None
    assert both > 1.3 * alone


def leaving(run: Path, out: Path) -> dict[str, bytes]:
    """Every file that may leave, by its name."""
    out.mkdir()
    write_provenance(run, out)
    return bytes_of(run / "images") | bytes_of(out)


def test_all_that_leaves_is_a_function_of_the_noisy_votes(
    data: Callable[[bool], Path], configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With equal noisy votes, two collections that differ in one patient leave the same bytes; otherwise not."""
    honest = votes.noisy
    places = {name: data(name == "with") for name in ("with", "without")}
    made: dict[bool, list[dict[str, bytes]]] = {True: [], False: []}
    for equal, several in made.items():
        monkeypatch.setattr(_evolution, "randomness", lambda private, seed: Fixed(seed))
        fixed = lambda counted, noise, source: honest(np.ones_like(counted), noise, source)  # noqa: E731
        monkeypatch.setattr(votes, "noisy", fixed if equal else honest)
        for name, place in places.items():
            home = tmp_path / f"{name} {equal}"
            run = augment(configure(place, home / "run"))
            assert claim(run).epsilon is not None, claim(run).sentence
            several.append(leaving(run, home / "out"))
    one, other = made[True]
    assert any(name.endswith(".png") for name in one)
    assert [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)] == []
    one, other = made[False]
    assert sorted(one) == sorted(other)
    assert "provenance.json" in [name for name in one if one[name] != other[name]]


def test_images_of_the_unit_image_count_each_by_itself(configure: Configure, rows: Path, tmp_path: Path) -> None:
    run = augment(configure(rows, tmp_path / "run", privacy={**PRIVACY, "privacy_unit": "image"}))
    assert read_ledger(run / "ledger.json").privacy_unit == "image"


def test_a_denoiser_of_other_findings_is_used_without_its_condition(
    configure: Configure, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    LabelUNet(16, 7, width=8, levels=1, rescale_betas_zero_snr=True).save(tmp_path / "public")
    given = {"train": "none", "init_from": str(tmp_path / "public")}
    run = augment(configure(rows, tmp_path / "run", denoiser=given))
    assert "the given denoiser knows 7 findings, not these 3" in caplog.text
    assert claim(run).epsilon is not None
    other = {"train": "none", "init_from": str(tmp_path / "other")}
    LabelUNet(4, 3, width=8, levels=1, rescale_betas_zero_snr=True).save(tmp_path / "other")
    with pytest.raises(InputError, match="makes latents of 4 channels, the codec has 16"):
        augment(configure(rows, tmp_path / "second", denoiser=other))


def test_its_audit_says_that_no_denoiser_was_trained(made: Path) -> None:
    results = {one["name"]: one for one in audit(made, AuditOptions(embedding_steps=2))["results"]}
    assert "trained no denoiser" in results["membership"]["sentence"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privacy": None}, "method evolution is for private runs; add a section privacy"),
        ({"denoiser": {"width": 8}}, "write denoiser.train: none with a public denoiser"),
        ({"denoiser": {"train": "none"}}, "write init_from: FOLDER"),
        ({"method": {**METHOD, "strength": [0.4, 0.5]}}, "strength 0.4, 0.5 rises; write it falling"),
        ({"method": {**METHOD, "population": 1}}, "method.population"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_one_line(
    configure: Configure, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        configure(tmp_path / "rows", tmp_path / "run", **changes)
    assert "\n" not in str(error.value)
