"""Two collections that differ in one patient: nothing that leaves a private run differs but what the mechanism made."""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medlt.checks.folds import folds, private_folds
from medlt.config import RunConfig, parse
from medlt.data.manifest import Manifest
from medlt.diffusion.autoencoder import autoencoder, save_codec
from medlt.export.release import build_release
from medlt.privacy import claim
from medlt.privacy.dpsgd import training
from medlt.privacy.dpsgd.randomness import Secure, Seeded
from medlt.recipes.augment import main as augment
from medlt.types import InputError

PUBLIC = ["Mass", "Hernia", "No_Finding"]
PRIVACY = {"epsilon": 8.0, "delta": 1e-5, "patients": 10, "findings": PUBLIC, "noise_multiplicity": 1,
           "grad_sample_mode": "bookkeeping"}  # fmt: skip
OWN = "patient-0"
"""The patient with the only hernia, the only finding that a folder of theirs names, and the only known sex and age."""


class Fixed(Seeded):
    """Numbers of a seed in the place of the system's, which a test cannot fix."""

    secure = True
    description = Secure.description

    def at(self, step: int) -> Seeded:
        return type(self)(self.seed, step)


class Nobody(Fixed):
    """The same, with no patient in any step: the mechanism makes the same of every collection."""

    def uniform(self, count: int) -> np.ndarray:
        return np.full(count, 1 - 2.0**-53)


def collection(folder: Path, with_own: bool) -> Path:
    """A manifest of eight patients and `OWN`, or without them."""
    rng, rows = np.random.default_rng(0), []
    for i in range(9):
        one = {"uid": f"image-{i}", "path": f"image-{i}.png", "patient_id": f"patient-{i}", "view": "PA",
               "split": "val" if i == 8 else "train",
               "Mass": float(i % 2), "No_Finding": float(not i % 2), "sex": None, "age": np.nan}  # fmt: skip
        pixels = rng.integers(0, 256, (32, 32), np.uint8)
        if i or with_own:
            rows.append(one)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / one["path"])
    table, findings = pd.DataFrame(rows).set_index("uid"), ["No_Finding", "Mass"]
    if with_own:
        table = table.assign(sex="F", age=96.0, Hernia=0.0, Folder_Of_One=0.0)
        table.loc["image-0", ["Hernia", "Folder_Of_One"]] = 1.0
        findings = ["Folder_Of_One", "Hernia", *findings]
    Manifest(table, tuple(findings), folder).write(folder / "manifest.parquet")
    return folder / "manifest.parquet"


def config(data: Path, out: Path) -> RunConfig:
    """A private run as short as one can be."""
    return parse({
        "output_dir": str(out), "size": 32, "threads": 1, "evaluation": None,
        "data": {"kind": "manifest", "path": str(data)},
        "codec": {"kind": "identity", "patch": 4},
        "denoiser": {"width": 8, "levels": 1, "steps": 2, "batch_size": 4, "precision": "fp32", "warmup_steps": 0,
                     "learning_rate": 0.01, "attributes": ["view", "sex", "age"]},
        "method": {"kind": "noise", "num_inference_steps": 2},
        "targets": {"count": 1, "num_candidates": 1, "max_per_finding": 1},
        "checks": {"min_std": 0.0},
        "classifier": {"size": 32, "steps": 2},
        "privacy": PRIVACY,
    })  # fmt: skip


def leaving(run: Path, out: Path) -> dict[str, bytes]:
    """Every file of the run's release, by its name."""
    build_release(run, out)
    return {one.relative_to(out).as_posix(): one.read_bytes() for one in out.rglob("*") if one.is_file()}


def both(tmp_path: Path, patch: pytest.MonkeyPatch, randomness: type[Fixed]) -> Sequence[dict[str, bytes]]:
    """What leaves the run on the collection, and on the one without the patient."""
    patch.setattr(training, "_randomness", lambda private, seed: randomness(seed))
    made = []
    for name, with_own in (("with", True), ("without", False)):
        home = tmp_path / name
        run = augment(config(collection(home / "data", with_own), home / "run"))
        assert claim(run).epsilon is not None, claim(run).sentence
        made.append(leaving(run, home / "out"))
    return made


def test_all_that_leaves_is_equal_where_the_mechanism_made_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = both(tmp_path, monkeypatch, Nobody)
    assert {"MODEL_CARD.md", "DATASHEET.md", "provenance.json", "release.json"} <= set(one)
    assert {"denoiser/model.safetensors", "images/metadata.csv"} <= set(one)
    assert sum(name.endswith(".png") for name in one) > 0
    assert [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)] == []


def test_where_it_learns_nothing_but_weights_images_and_their_digests_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = both(tmp_path, monkeypatch, Fixed)
    assert one["denoiser/model.safetensors"] != other["denoiser/model.safetensors"]
    public: list[Any] = []
    for files in (one, other):
        record, release = (json.loads(files[name]) for name in ("provenance.json", "release.json"))
        table = pd.read_csv(io.BytesIO(files["images/metadata.csv"]))
        made = [record.pop("run"), release.pop("run"), *release.pop("files").values()]
        ledgers = (record["privacy"]["ledger"], release["ledger"])
        made += [one.pop("weights") for ledger in ledgers for one in ledger["mechanisms"]]
        made += table["models"].unique().tolist()
        assert all(made)
        cards = [files[name].decode().replace(made[0], "ID") for name in ("MODEL_CARD.md", "DATASHEET.md")]
        labels = table.drop(columns=["run", "models"]).to_csv()
        public.append((record, release, cards, labels, sorted(files), files["denoiser/model.json"]))
    assert public[0] == public[1]


def test_an_untrained_public_model_claims_epsilon_0_of_either(tmp_path: Path) -> None:
    """No patient is read for its images, so nothing needs noise: a private run without a training is allowed."""
    save_codec(autoencoder(4, 8, 3), None, tmp_path / "codec")
    model = {"kind": "untrained", "widths": [32, 32], "text_width": 32, "text_layers": 1}
    own = {"codec": {"kind": "folder", "path": str(tmp_path / "codec")},
           "denoiser": {"kind": "stable-diffusion", "model": model, "train": "none"}}  # fmt: skip
    files = []
    for name, with_own in (("with", True), ("without", False)):
        home = tmp_path / name
        tree = config(collection(home / "data", with_own), home / "run").model_dump(mode="json")
        run = augment(parse({**tree, **own}))
        made = claim(run)
        assert (made.epsilon, made.reasons) == (0.0, ())
        assert "epsilon 0 (no patient was read for it)" in made.sentence
        assert not (run / "ledger.json").exists()
        files.append(leaving(run, home / "out"))
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"privacy": {"epsilon": 8, "delta": 1e-5, "findings": PUBLIC}}, "write privacy.patients: N, a public number"),
        ({"privacy": {"epsilon": 8, "delta": 1e-5, "patients": 9}}, "write privacy.findings: [A, B, ...]"),
        ({"data": {"kind": "nih", "table": "t.csv", "images": "i"}}, "so one patient moves others"),
        ({"data": {"kind": "csv", "table": "t.csv", "findings": ["Hernai"]}}, "'Mass' is not in data.findings"),
        ({"privacy": {**PRIVACY, "requested": ["Hernai"]}}, "did you mean 'Hernia'?"),
    ],
)
def test_what_the_config_must_say_is_named_in_one_line(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    tree = config(tmp_path / "data", tmp_path / "run").model_dump(mode="json")
    with pytest.raises(InputError, match=re.escape(message)) as error:
        parse({**tree, **more})
    assert "\n" not in str(error.value)


def test_private_folds_of_the_others_stay_without_a_patient() -> None:
    """Stratified folds do not: a patient moves others, who would then be in other trainings."""
    owners = pd.Series([f"patient-{i // 2}" for i in range(60)], index=[f"image-{i}" for i in range(60)])
    labels = pd.DataFrame({"Mass": [float(i < 8) for i in range(60)]}, index=owners.index)
    kept = owners[owners != "patient-0"]
    for seed in range(5):
        whole, fewer = (private_folds(some, labels.loc[some.index], 3, seed) for some in (owners, kept))
        assert fewer.equals(whole[kept.index])
        assert whole.groupby(owners).nunique().eq(1).all()
        assert set(whole) == {0, 1, 2}
    one, other = folds(owners, labels, 3, 0), folds(kept, labels.loc[kept.index], 3, 0)
    assert not other.equals(one[kept.index])
