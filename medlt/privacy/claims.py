"""What may be said of a run's privacy: (epsilon, delta, unit), or nothing, and why.

Epsilon belongs to what leaves the hospital, not to a switch: the trained denoiser (and codec), and the synthetic images
with their labels. Everything that made them, and saw a patient, must be in the ledger. Never covered is the run folder:
histories, reports, latents and the filed rows are the patients' own. The table of what reads what is in
docs/explanation/privacy.md.
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
from medlt.privacy.ledger import NAME, NEIGHBOURS, Ledger, format_epsilon, read_ledger
from medlt.types import InputError

BLIND_CHECKS = {"finite", "flat", "saturated", "target_label", "best_of", "copy"}
"""Checks that look at synthetic images alone."""

LEARNT_OF_PATIENTS = {
    "guidance_classifier": "the predictor that guided",
    "latent_classifier": "the latent classifier that guided",
    "levels": "the levels of rarity that guided",
    "sparse": "the sparse code",
}


@dataclass(frozen=True)
class Claim:
    """`epsilon` at `delta` for each `unit` of what `covers` says, or None because of `reasons`; told in `sentence`."""

    epsilon: float | None
    delta: float
    unit: str
    secure: bool
    reasons: tuple[str, ...]
    covers: str
    sentence: str


@dataclass(frozen=True)
class Provenance:
    """A run folder as the claim reads it. Raises InputError for one without a config, or with a damaged run.json."""

    folder: Path

    @cached_property
    def config(self) -> configs.RunConfig:
        return configs.load(self.folder / "config.yaml")

    @cached_property
    def told(self) -> dict[str, Any]:
        """run.json; {} where there is none yet."""
        file = self.folder / "run.json"
        try:
            return dict(json.loads(file.read_text())) if file.is_file() else {}
        except ValueError:
            raise InputError(f"{file}: damaged; remove it, and the same command writes it again") from None

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
        """Digest of the train rows that the run filed; None where they are not there."""
        from medlt.data.manifest import Manifest

        file = self.folder / "stages" / "data" / "manifest.parquet"
        return Manifest.read(file).split("train").digest() if file.is_file() else None

    def stages(self) -> list[str]:
        """Return what the ledger has."""
        return [] if isinstance(self.ledger, str) else [one.stage for one in self.ledger.mechanisms]


def claim(run: Path) -> Claim:
    """Walk the provenance of a run folder. Raises InputError where it is none."""
    seen = Provenance(Path(run))
    reasons = tuple(dict.fromkeys((*config_violations(seen.config), *_found(seen))))
    covers, ledger, chosen = _covers(seen.config), seen.ledger, seen.config.privacy
    if isinstance(ledger, str):
        delta, secure, epsilon = 0.0, False, 0.0
        unit: str = chosen.privacy_unit if chosen else "patient"
        neighbours = NEIGHBOURS[unit]
    else:
        delta, secure, epsilon, unit = ledger.delta, ledger.secure, ledger.spent.epsilon, ledger.unit
        neighbours = ledger.neighbours
    if reasons:
        sentence = f"No privacy is claimed for {covers}, because {'; and '.join(reasons)}."
        return Claim(None, delta, unit, secure, reasons, covers, sentence)
    given = (
        "epsilon 0 (no patient was read for it)"
        if epsilon == 0
        else f"epsilon {format_epsilon(epsilon)} at delta {delta:g}"
    )
    further = " ".join(f"{one[0].upper()}{one[1:]}." for one in _assumed(seen.config, ledger))
    sentence = f"Differential privacy with {given}, for {covers}; neighbours: {neighbours}. {further}"
    return Claim(epsilon, delta, unit, secure or epsilon == 0, (), covers, sentence)


def config_violations(config: configs.RunConfig) -> tuple[str, ...]:
    """Return the reasons against a claim that the config alone gives, each with how to mend it; known before any
    training.
    """
    return tuple(_foreseen(config))


def must_be_private(config: configs.RunConfig) -> tuple[str, ...]:
    """Return stages that train on patients and whose weights are covered, or make what is covered."""
    codec = isinstance(config.codec, configs.TrainedCodec) or config.codec.tune is not None
    denoiser = getattr(config.denoiser, "train", "full") != "none"
    return (("codec",) if codec else ()) + (("denoiser",) if denoiser else ())


def _foreseen(config: configs.RunConfig) -> Iterator[str]:
    kind, chosen = config.method.kind, config.privacy
    if chosen is None:
        yield "the config has no section privacy (add `privacy: {epsilon: 8, delta: 1e-6}`, and run in a new folder)"
    elif not chosen.secure_mode:
        yield "randomness was not secure, so a rerun could take the noise off (leave privacy.secure at true)"
    if kind in ("fusion", "edit"):
        yield f"method {kind} reads real images when it makes one (use method: noise or minority)"
    if kind == "diffult":
        yield "method diffult trains with losses and a classifier that no ledger counts (use method: noise)"
    if not config.data_independent:
        yield (
            "label vectors, numbers and checks of the images are taken from real rows and images "
            "(with a section privacy and a method from noise they are not)"
        )
    if config.checks.near_copy is not None:
        yield "the near-copy filter compares with real images (set checks.near_copy: null, and run `medlt audit`)"
    for guide in getattr(config.method, "guidance", ()):
        if guide.weight:
            yield from _guided(guide)


def _guided(guide: configs.GuideConfig) -> Iterator[str]:
    """Return what a guide asks that was learnt from patients outside the ledger."""
    if isinstance(guide, configs.LongtailGuideConfig):
        yield "the longtail guide asks a predictor trained without privacy (use method: noise or minority)"
    elif isinstance(guide, configs.JepaGuideConfig):
        yield "the jepa guide asks a latent classifier trained without privacy (leave the guide out)"
    else:
        if guide.distance == "features":
            yield "the minority guide asks a latent classifier trained without privacy (give it distance: l2)"
        if guide.reference:
            yield "the minority guide holds images against the rarity of real ones (give it reference: false)"


def _found(seen: Provenance) -> Iterator[str]:
    """Return the reasons that the folder gives: what was trained, and what looked."""
    needed, ledger = must_be_private(seen.config), seen.ledger
    if isinstance(ledger, str):
        if needed or (seen.folder / NAME).exists():
            yield ledger
    else:
        yield from _of_ledger(seen, ledger)
    digests = seen.told.get("digests", {})
    for name, what in LEARNT_OF_PATIENTS.items():
        if name in digests and not any(stage.split()[0] == name for stage in seen.stages()):
            yield f"{what} was learnt without privacy ({name} is in run.json and not in {NAME}; run without it)"
    yield from _bases_seen(seen)
    yield from _looked(seen.folder)


def _of_ledger(seen: Provenance, ledger: Ledger) -> Iterator[str]:
    """Return what of the run the ledger does not speak of, or speaks of otherwise."""
    chosen, weights = seen.config.privacy, seen.told.get("weights", {})
    for stage in must_be_private(seen.config):
        if not (own := ledger.of(stage)):
            yield f"the {stage} was trained without privacy: {NAME} lacks it (train it again with a section privacy)"
        elif not all(one.weights for one in own):
            yield f"the training of the {stage} did not finish (run the same command again)"
        elif weights.get(stage) not in [one.weights for one in own]:
            yield f"the {stage} is not the one that {NAME} tells of: its weights differ (train it again)"
    yield from _on_disk(seen, ledger)
    if not ledger.secure:
        yield "randomness was not secure, so a rerun could take the noise off (leave privacy.secure at true)"
    if chosen is not None and (ledger.delta, ledger.epsilon_asked) != (chosen.delta, chosen.epsilon):
        yield f"{NAME} was kept for another budget than the config's (restore the one of this run)"
    if chosen is not None and any(one.unit != chosen.privacy_unit for one in ledger.mechanisms):
        yield f"{NAME} has another unit than the config (restore the one of this run)"
    if seen.data is None:
        yield "the rows the run filed are gone, so it cannot be told whose ledger it is (restore stages/data)"
    elif any(one.data != seen.data for one in ledger.mechanisms):
        yield f"{NAME} tells of other rows than the run's (restore the one of this run)"


def _on_disk(seen: Provenance, ledger: Ledger) -> Iterator[str]:
    """Return weights that lie there now and are not those the ledger tells of; Stable Diffusion's have their file
    hashes.
    """
    from medlt.diffusion.families import load_label_network

    name = str(seen.told.get("denoiser", {}).get("artifact"))
    home = (seen.config.artifacts_dir or seen.folder / "artifacts") / "denoiser" / name
    if not (home / "model.json").is_file() or not ledger.of("denoiser"):
        return
    saved = {str(i): weight for i, weight in enumerate(load_label_network(home).parameters())}
    if digest_tensors(saved) not in [one.weights for one in ledger.of("denoiser")]:
        yield f"the denoiser's weights on disk are not those that {NAME} tells of (restore them, or train it again)"


def _bases_seen(seen: Provenance) -> Iterator[str]:
    """Return given weights that lie in a run folder whose patients are this run's too."""
    from medlt.data.manifest import Manifest

    config = seen.config
    given = {"start": getattr(config.denoiser, "start", None), "codec": getattr(config.codec, "path", None)}
    given["model"] = getattr(getattr(config.denoiser, "model", None), "path", None)
    own = seen.folder / "stages" / "data" / "manifest.parquet"
    patients = set(Manifest.read(own).rows["patient_id"]) if own.is_file() else set()
    for name, place in given.items():
        homes = [] if place is None else [folder for folder in (place, *place.parents) if folder != seen.folder]
        rows = (folder / "stages" / "data" / "manifest.parquet" for folder in homes)
        if (file := next((one for one in rows if one.is_file()), None)) is None:
            continue
        if patients & set(Manifest.read(file).rows["patient_id"]):
            yield f"the {name} was learnt in a run on some of the same patients (give one that saw none of them)"


def _looked(folder: Path) -> Iterator[str]:
    """Return judges and real rows at work on the images, as the tables of the folder tell."""
    import pandas as pd

    if (file := folder / "checks.parquet").is_file():
        names = set(pd.read_parquet(file, columns=["check"])["check"]) - BLIND_CHECKS
        if names:
            yield (
                f"checks that stand on real images chose among the synthetic ones ({', '.join(sorted(names))}; "
                "a judge that was trained without privacy takes the claim away: run without it)"
            )
    plan, rows = folder / "plan.parquet", folder / "stages" / "data" / "manifest.parquet"
    if plan.is_file() and rows.is_file():
        made, real = pd.read_parquet(plan), set(pd.read_parquet(rows, columns=[]).index)
        columns = [name for name in ("label_source", "tail_parent", "head_parent") if name in made]
        if any(made[name].isin(real).any() for name in columns):
            yield "images were made from real rows, which lent their labels or pixels (run with a section privacy)"


def _covers(config: configs.RunConfig) -> str:
    """Return what the claim speaks of."""
    trained = [f"the {stage}'s weights" for stage in reversed(must_be_private(config))]
    return ", ".join([*trained, "the synthetic images with their labels"])


def _assumed(config: configs.RunConfig, ledger: Ledger | str) -> Iterator[str]:
    """Return what the claim stands on that no file of the run can show, and what the reader should know."""
    if isinstance(config.codec, configs.FolderCodec):
        yield "the codec is taken as public, as far as its folder tells: it must not have seen these patients"
    if _bases(config):
        yield "the denoiser began from given weights: they must not have seen these patients"
    yield "what other runs on the same patients spent must be added; no file can see them"
    if isinstance(ledger, str):
        return
    if len({one.unit for one in ledger.mechanisms}) > 1:
        yield "stages differ in their unit; the weaker one is told"
    if ledger.spent.epsilon > ledger.epsilon_asked:
        yield f"that is more than the {format_epsilon(ledger.epsilon_asked)} that was asked for"
    if ledger.warning:
        yield ledger.warning


def _bases(config: configs.RunConfig) -> bool:
    """Return whether the denoiser begins with somebody's weights."""
    given = (getattr(config.denoiser, name, None) for name in ("start", "model"))
    return any(isinstance(one, Path | configs.StableFolder) for one in given)
