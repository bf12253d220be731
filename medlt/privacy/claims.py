"""The privacy claim of a run: (epsilon, delta, privacy unit), or no claim, with the reasons.

Epsilon holds for what leaves the hospital: the trained denoiser (and codec), and the synthetic images with their
labels. Everything that made them and read patients must be in the ledger. The claim never covers the run folder:
histories, reports, latents and recorded rows belong to the patients. docs/explanation/privacy.md lists what each part
reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from medlt import config as configs
from medlt.files import digest_tensors
from medlt.plugins import CHECKS, METHODS
from medlt.privacy.ledger import NAME, NEIGHBOURS, Ledger, format_epsilon, read_ledger
from medlt.privacy.limits import delta_violation
from medlt.types import InputError

DATA_INDEPENDENT_CHECKS = {"finite", "flat", "saturated", "target_label", "best_of", "copy"}
"""Checks that read synthetic images alone."""

TRAINED_ON_PATIENTS = {
    "guidance_classifier": "the guidance classifier",
    "latent_classifier": "the latent classifier",
    "levels": "the levels of rarity",
    "sparse": "the sparse code",
}
"""Parts of a run that are trained on real images, by their key in run.json."""


@dataclass(frozen=True)
class Claim:
    """The privacy claim of a run, as a whole in `sentence`.

    `epsilon` at `delta` holds for each `privacy_unit` and for what `covers` names. It is None if there are `reasons`
    against a claim.
    """

    epsilon: float | None
    delta: float
    privacy_unit: str
    secure_mode: bool
    reasons: tuple[str, ...]
    covers: str
    sentence: str


@dataclass(frozen=True)
class Provenance:
    """The files of a run folder that a claim depends on.

    Raises InputError for a folder without a config, or with a damaged run.json.
    """

    folder: Path

    @cached_property
    def config(self) -> configs.RunConfig:
        """The resolved config of the run."""
        return configs.load_config(self.folder / "config.yaml")

    @cached_property
    def record(self) -> dict[str, Any]:
        """The contents of run.json; {} if there is none yet."""
        file = self.folder / "run.json"
        try:
            return dict(json.loads(file.read_text())) if file.is_file() else {}
        except ValueError:
            raise InputError(f"{file}: damaged; remove it and run the same command again to write a new one") from None

    @cached_property
    def ledger(self) -> Ledger | str:
        """The ledger, or what is wrong with it."""
        file = self.folder / NAME
        try:
            return read_ledger(file)
        except InputError as error:
            return str(error).replace(str(file), NAME)

    @cached_property
    def data(self) -> str | None:
        """Digest of the train rows that the run recorded; None if they are missing."""
        from medlt.data.manifest import Manifest

        file = self.folder / "stages" / "data" / "manifest.parquet"
        return Manifest.read(file).split("train").digest() if file.is_file() else None

    def stages(self) -> list[str]:
        """Return the stages in the ledger."""
        return [] if isinstance(self.ledger, str) else [one.stage for one in self.ledger.mechanisms]


def claim(run: Path) -> Claim:
    """Return the privacy claim of a run folder. Raises InputError if it is not a run folder."""
    seen = Provenance(Path(run))
    reasons = tuple(dict.fromkeys((*config_violations(seen.config), *_folder_violations(seen))))
    covers, ledger, chosen = _covers(seen.config), seen.ledger, seen.config.privacy
    if isinstance(ledger, str):
        delta, secure, epsilon = 0.0, False, 0.0
        unit: str = chosen.privacy_unit if chosen else "patient"
        neighbours = NEIGHBOURS[unit]
    else:
        delta, secure, epsilon, unit = ledger.delta, ledger.secure_mode, ledger.spent.epsilon, ledger.privacy_unit
        neighbours = ledger.neighbours
    if reasons:
        sentence = f"No privacy is claimed for {covers}, because {'; and '.join(reasons)}."
        return Claim(None, delta, unit, secure, reasons, covers, sentence)
    given = (
        "epsilon 0 (no patient was read for it)"
        if epsilon == 0
        else f"epsilon {format_epsilon(epsilon)} at delta {delta:g}"
    )
    notes = " ".join(f"{one[0].upper()}{one[1:]}." for one in _assumptions(seen.config, ledger))
    sentence = f"Differential privacy with {given}, for {covers}; neighbours: {neighbours}. {notes}"
    return Claim(epsilon, delta, unit, secure or epsilon == 0, (), covers, sentence)


def config_violations(config: configs.RunConfig) -> tuple[str, ...]:
    """Return the reasons against a claim that follow from the config alone, each with its fix."""
    return tuple(_config_violations(config))


def must_be_private(config: configs.RunConfig) -> tuple[str, ...]:
    """Return the stages that train on patients and whose weights the claim covers."""
    codec = isinstance(config.codec, configs.TrainedCodec) or getattr(config.codec, "tune", None) is not None
    denoiser = getattr(config.denoiser, "train", "full") != "none"
    return (("codec",) if codec else ()) + (("denoiser",) if denoiser else ())


def _config_violations(config: configs.RunConfig) -> Iterator[str]:
    """Yield the reasons of `config_violations`."""
    kind, chosen = config.method.kind, config.privacy
    if chosen is None:
        section = "privacy: {epsilon: 8, delta: 1e-6, patients: N, findings: [...]}"
        yield f"the config has no section privacy (add `{section}` and run in a new folder)"
    else:
        if not chosen.secure_mode:
            yield "randomness was not secure, so the noise can be removed (set privacy.secure_mode: true)"
        if (too_large := delta_violation(chosen.delta, chosen.patients)) is not None:
            yield too_large
    if not METHODS[kind].from_noise:
        yield f"method {kind} reads real images when it makes synthetic ones (use method: noise or minority)"
    if kind == "diffult":
        yield "method diffult trains with losses and a classifier that the ledger does not cover (use method: noise)"
    if not config.data_independent:
        yield (
            "label vectors, counts and checks of the images come from real rows and images (add a section privacy and "
            "use method: noise or minority)"
        )
    if config.checks.near_copy is not None:
        yield "the near-copy filter compares with real images (set checks.near_copy: null and run `medlt audit`)"
    for guide in getattr(config.method, "guidance", ()):
        if guide.weight:
            yield from _guide_violations(guide)


def _guide_violations(guide: configs.GuideConfig) -> Iterator[str]:
    """Yield why a guide is against a claim: parts trained on patients without privacy."""
    if isinstance(guide, configs.LongtailGuideConfig):
        yield "the longtail guide uses a classifier trained without privacy (use method: noise or minority)"
    elif isinstance(guide, configs.JepaGuideConfig):
        yield "the jepa guide uses a latent classifier trained without privacy (remove the guide)"
    else:
        if guide.distance == "features":
            yield "the minority guide uses a latent classifier trained without privacy (set its distance: l2)"
        if guide.reference:
            yield "the minority guide compares images with the rarity of real ones (set its reference: false)"


def _folder_violations(seen: Provenance) -> Iterator[str]:
    """Yield the reasons against a claim that follow from the files of the run."""
    needed, ledger = must_be_private(seen.config), seen.ledger
    if isinstance(ledger, str):
        if needed or (seen.folder / NAME).exists():
            yield ledger
    else:
        yield from _ledger_violations(seen, ledger)
    digests = seen.record.get("digests", {})
    for name, what in TRAINED_ON_PATIENTS.items():
        if name in digests and not any(stage.split()[0] == name for stage in seen.stages()):
            yield f"{what} was trained without privacy ({name} is in run.json but not in {NAME}; run without it)"
    yield from _shared_patients(seen)
    yield from _real_data_used(seen.folder, seen.config)


def _ledger_violations(seen: Provenance, ledger: Ledger) -> Iterator[str]:
    """Yield where the ledger does not match the run."""
    chosen, weights = seen.config.privacy, seen.record.get("weights", {})
    for stage in must_be_private(seen.config):
        if not (own := ledger.of(stage)):
            yield f"the {stage} was trained without privacy: it is not in {NAME} (train it with a section privacy)"
        elif not all(one.weights for one in own):
            yield f"the training of the {stage} did not finish (run the same command again)"
        elif weights.get(stage) not in [one.weights for one in own]:
            yield f"the {stage} is not the one in {NAME}: its weights differ (train it again)"
    yield from _weights_on_disk(seen, ledger)
    if not ledger.secure_mode:
        yield "randomness was not secure, so the noise can be removed (set privacy.secure_mode: true)"
    if chosen is not None and (ledger.delta, ledger.target_epsilon) != (chosen.delta, chosen.epsilon):
        yield f"{NAME} has another budget than the config (restore the {NAME} of this run)"
    public = None if chosen is None else (chosen.privacy_unit, chosen.patients)
    if public is not None and any((one.privacy_unit, one.units) != public for one in ledger.mechanisms):
        yield f"{NAME} has another privacy_unit or number of patients than the config (restore the {NAME} of this run)"
    if seen.data is None:
        yield f"the recorded rows of the run are missing, so {NAME} cannot be compared with them (restore stages/data)"
    elif any(one.data != seen.data for one in ledger.mechanisms):
        yield f"{NAME} names other rows than those of the run (restore the {NAME} of this run)"


def _weights_on_disk(seen: Provenance, ledger: Ledger) -> Iterator[str]:
    """Yield a reason if the weights of the denoiser on disk are not those in the ledger.

    Weights of Stable Diffusion are checked by the hashes of their files.
    """
    from medlt.diffusion.families import load_label_network

    name = str(seen.record.get("denoiser", {}).get("artifact"))
    home = (seen.config.artifacts_dir or seen.folder / "artifacts") / "denoiser" / name
    if not (home / "model.json").is_file() or not ledger.of("denoiser"):
        return
    saved = {str(i): weight for i, weight in enumerate(load_label_network(home).parameters())}
    if digest_tensors(saved) not in [one.weights for one in ledger.of("denoiser")]:
        yield f"the denoiser's weights on disk are not those in {NAME} (restore them, or train it again)"


def given_weights(config: configs.RunConfig) -> dict[str, Path]:
    """Return the paths of weights that the config takes from elsewhere, by their key in the config."""
    denoiser, codec = config.denoiser, config.codec
    given: dict[str, Path] = {}
    if isinstance(codec, configs.FolderCodec):
        given["codec.path"] = codec.path
    if isinstance(denoiser, configs.StableConfig):
        if isinstance(denoiser.model, configs.StableFolder):
            given["denoiser.model.path"] = denoiser.model.path
    elif denoiser.init_from is not None:
        given["denoiser.init_from"] = denoiser.init_from
    return given


def _shared_patients(seen: Provenance) -> Iterator[str]:
    """Yield given weights that lie in the folder of a run on some of the same patients."""
    from medlt.data.manifest import Manifest

    own = seen.folder / "stages" / "data" / "manifest.parquet"
    patients = set(Manifest.read(own).rows["patient_id"]) if own.is_file() else set()
    for name, path in given_weights(seen.config).items():
        homes = [folder for folder in (path, *path.parents) if folder != seen.folder]
        rows = (folder / "stages" / "data" / "manifest.parquet" for folder in homes)
        if (file := next((one for one in rows if one.is_file()), None)) is None:
            continue
        if patients & set(Manifest.read(file).rows["patient_id"]):
            yield f"{name} was trained in a run on some of the same patients (give weights that saw none of them)"


def _real_data_used(folder: Path, config: configs.RunConfig) -> Iterator[str]:
    """Yield uses of verifiers and of real rows for the images, from the tables of the folder."""
    import pandas as pd

    if (file := folder / "checks.parquet").is_file():
        added = {name for name in config.checks.optional if CHECKS.package(name) and CHECKS[name].private}
        names = set(pd.read_parquet(file, columns=["check"])["check"]) - DATA_INDEPENDENT_CHECKS - added
        if names:
            yield (
                f"the images were chosen by checks that use real images ({', '.join(sorted(names))}; such checks are "
                "not trained with privacy: run without them)"
            )
    plan, rows = folder / "plan.parquet", folder / "stages" / "data" / "manifest.parquet"
    if plan.is_file() and rows.is_file():
        made, real = pd.read_parquet(plan), set(pd.read_parquet(rows, columns=[]).index)
        columns = [name for name in ("label_source", "tail_parent", "head_parent") if name in made]
        if any(made[name].isin(real).any() for name in columns):
            yield "images were made with labels or pixels of real rows (run with a section privacy)"


def _covers(config: configs.RunConfig) -> str:
    """Return what the claim covers."""
    trained = [f"the {stage}'s weights" for stage in reversed(must_be_private(config))]
    return ", ".join([*trained, "the synthetic images with their labels"])


def _assumptions(config: configs.RunConfig, ledger: Ledger | str) -> Iterator[str]:
    """Yield the assumptions of the claim that no file of the run can prove, and other notes for the reader."""
    given = given_weights(config)
    if "codec.path" in given:
        yield "the codec is assumed to be public: it must not have seen these patients"
    if set(given) - {"codec.path"}:
        yield "the denoiser began from given weights: they must not have seen these patients"
    yield "the cost of other runs on the same patients must be added; no file records them"
    if isinstance(ledger, str):
        return
    if len({one.privacy_unit for one in ledger.mechanisms}) > 1:
        yield "stages differ in their privacy unit; the weaker one is reported"
    if ledger.spent.epsilon > ledger.target_epsilon:
        yield f"this is more than the {format_epsilon(ledger.target_epsilon)} in the config"
