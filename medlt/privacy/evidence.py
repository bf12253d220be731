"""Comparison of the weights that a claim covers with the ledger, the config, and what the trainings themselves wrote.

A training writes mechanism.json into its artifact, whose checksums bind it to the weights beside it. So a ledger that
was changed together with its digest still differs from the artifact, and weights that were replaced differ from their
checksum. Each function yields reasons against a claim, each with its correction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from medlt import config as configs
from medlt.files import digest_file, digest_tensors
from medlt.privacy.ledger import MECHANISM, NAME, Ledger, Mechanism, read_mechanism
from medlt.privacy.provenance import Provenance, must_be_private
from medlt.privacy.votes import SENSITIVITY, STAGE, votes_digest
from medlt.store import Artifact

LABEL_FILES = ("model.json", "model.safetensors")
"""The files of a small denoiser."""


def ledger_violations(seen: Provenance, ledger: Ledger) -> Iterator[str]:
    """Yield where the ledger does not match the run: its stages, weights, budget, rows and recorded trainings."""
    weights, current = seen.record.get("weights", {}), list[Mechanism]()
    for stage in must_be_private(seen.config):
        own = ledger.of(stage)
        if not own:
            yield f"the {stage} was trained without privacy: it is not in {NAME} (train it with a section privacy)"
        elif not all(one.weights for one in own):
            yield f"the training of the {stage} did not finish (run the same command again)"
        elif weights.get(stage) not in [one.weights for one in own]:
            yield f"the {stage} is not the one in {NAME}: its weights differ (train it again)"
        else:
            current += [one for one in own if one.weights == weights[stage]]
    yield from _artifact_violations(seen, ledger, current)
    yield from _budget_violations(seen, ledger)
    if seen.data is None:
        yield f"the recorded rows of the run are missing, so {NAME} cannot be compared with them (restore stages/data)"
    elif any(one.data != seen.data for one in ledger.mechanisms):
        yield f"{NAME} names other rows than those of the run (restore the {NAME} of this run)"
    else:
        for one in current:
            yield from _settings_violations(seen, one)


def _budget_violations(seen: Provenance, ledger: Ledger) -> Iterator[str]:
    """Yield where the ledger has another budget, unit or randomness than the config."""
    chosen = seen.config.privacy
    if not ledger.secure_mode:
        yield "randomness was not secure, so the noise can be removed (set privacy.secure_mode: true)"
    if chosen is not None and (ledger.delta, ledger.target_epsilon) != (chosen.delta, chosen.epsilon):
        yield f"{NAME} has another budget than the config (restore the {NAME} of this run)"
    public = None if chosen is None else (chosen.privacy_unit, chosen.patients)
    if public is not None and any((one.privacy_unit, one.units) != public for one in ledger.mechanisms):
        yield f"{NAME} has another privacy_unit or number of patients than the config (restore the {NAME} of this run)"


def recorded_mechanisms(seen: Provenance) -> list[Mechanism]:
    """Return every mechanism.json of the sound artifacts of a run. Raises InputError for one of another version."""
    sound = [one for one in seen.trained.values() if isinstance(one, Artifact)]
    return [read_mechanism(one.path(name)) for one in sound for name in one.files if Path(name).name == MECHANISM]


def _artifact_violations(seen: Provenance, ledger: Ledger, current: list[Mechanism]) -> Iterator[str]:
    """Yield damaged or missing artifacts, and trainings whose own record is not in the ledger."""
    damaged = False
    for name, made in seen.trained.items():
        kind = name.split("/")[0]
        if not isinstance(made, Artifact):
            damaged = True
            lost = "is missing" if made is None else f"is damaged or was replaced ({made})"
            yield f"the {kind} in the folder of artifacts {lost} (restore it, or train it again)"
    recorded = recorded_mechanisms(seen)
    stages = {one.stage for one in current}
    for one in recorded:
        if one not in ledger.mechanisms and (one.stage in stages or one.stage not in must_be_private(seen.config)):
            yield _difference(one, ledger)
    known = {(one.stage, one.weights) for one in recorded}
    for one in current:
        if not damaged and (one.stage, one.weights) not in known:
            yield f"the trained weights of the {one.stage} are missing from the folder of artifacts (restore them)"
    if "denoiser" in stages:
        yield from _network_violations(seen, ledger)
    if STAGE in stages:
        yield from _histogram_violations(seen, current)


def _difference(recorded: Mechanism, ledger: Ledger) -> str:
    """Return how the ledger differs from what a training recorded of itself."""
    same = [one for one in ledger.of(recorded.stage) if one.weights == recorded.weights]
    if not same:
        return f"a private training of the {recorded.stage} is not in {NAME} (restore the {NAME} of this run)"
    written = same[0]
    name = next(one.name for one in fields(Mechanism) if getattr(written, one.name) != getattr(recorded, one.name))
    values = name if name == "data" else f"{name} {getattr(written, name)}, not {getattr(recorded, name)}"
    return (
        f"{NAME} is not what the training of the {recorded.stage} recorded: {values} (restore the {NAME} of this run)"
    )


def _settings_violations(seen: Provenance, one: Mechanism) -> Iterator[str]:
    """Yield the settings of a training in the ledger that are not those of the config."""
    if (chosen := seen.config.privacy) is None:
        return
    if one.stage == STAGE:
        yield from _votes_violations(seen.config, one)
        return
    batch, steps = _batch_and_steps(seen.config, one.stage)
    expected = {
        "privacy.max_grad_norm": (one.max_grad_norm, chosen.max_grad_norm),
        "privacy.max_images_per_patient": (one.max_images_per_patient, chosen.max_images_per_patient),
        "privacy.noise_multiplicity": (one.noise_multiplicity, chosen.noise_multiplicity),
        f"{one.stage}.steps": (one.planned, steps),
        f"{one.stage}.batch_size": (one.sample_rate, batch / chosen.patients),
    }
    for name, (written, wanted) in expected.items():
        if written != wanted:
            yield f"{NAME} was made with another {name} than the config has (restore both)"
            return
    if one.steps > one.planned:
        yield f"{NAME} has more steps of the {one.stage} than were planned (restore the {NAME} of this run)"


def _votes_violations(config: configs.RunConfig, one: Mechanism) -> Iterator[str]:
    """Yield where the votes in the ledger are not those of the config: how many, of all patients, each of norm 1."""
    votes = len(config.method.strength) if isinstance(config.method, configs.Evolution) else 0
    if (one.steps, one.planned, one.sample_rate, one.max_grad_norm) != (votes, votes, 1.0, SENSITIVITY):
        yield f"{NAME} was made with another number or weight of votes than the config has (restore both)"


def _batch_and_steps(config: configs.RunConfig, stage: str) -> tuple[int, int]:
    """Return batch size and steps of the codec's or the denoiser's training."""
    if stage == "denoiser":
        return config.denoiser.batch_size, config.denoiser.steps
    codec = config.codec
    chosen = codec if isinstance(codec, configs.TrainedCodec) else getattr(codec, "tune", None)
    assert chosen is not None
    return chosen.batch_size, chosen.steps


def _network_violations(seen: Provenance, ledger: Ledger) -> Iterator[str]:
    """Yield a reason if the parameters of the small denoiser are not those in the ledger."""
    from medlt.diffusion.families import load_label_network

    made = seen.denoiser
    if not isinstance(made, Artifact) or "model.json" not in made.files or not ledger.of("denoiser"):
        return
    saved = {str(i): weight for i, weight in enumerate(load_label_network(made.folder).parameters())}
    if digest_tensors(saved) not in [one.weights for one in ledger.of("denoiser")]:
        yield f"the denoiser's weights on disk are not those in {NAME} (restore them, or train it again)"


def _histogram_violations(seen: Provenance, current: list[Mechanism]) -> Iterator[str]:
    """Yield a reason if the noisy votes that the images were drawn from are not those in the ledger."""
    wanted = [one.weights for one in current if one.stage == STAGE]
    for name, made in seen.trained.items():
        if name.startswith(f"{STAGE}/") and isinstance(made, Artifact) and votes_digest(made.folder) not in wanted:
            yield f"the noisy votes are not those in {NAME} (restore them, or run in a new folder)"


def denoiser_files(made: Artifact) -> dict[str, str]:
    """Return the files that RUN/denoiser holds, by name, with the name of each in the artifact."""
    if "model.json" in made.files:
        return {name: name for name in LABEL_FILES}
    return {name.removeprefix("model/"): name for name in made.files if name.startswith("model/")}


def handed_over_violations(seen: Provenance) -> Iterator[str]:
    """Yield where RUN/denoiser is not the denoiser that the run trained, file by file."""
    home, made = seen.folder / "denoiser", seen.denoiser
    present = {file.relative_to(home).as_posix() for file in home.rglob("*") if file.is_file()}
    if "denoiser" not in must_be_private(seen.config):
        if present:
            yield "denoiser/ holds files, but this run trains no denoiser (move them away)"
        return
    if not isinstance(made, Artifact):
        if not seen.trained:
            yield "the trained denoiser is not recorded in run.json (restore run.json, or run the same command again)"
        return
    wanted = denoiser_files(made)
    lacking = [name for name in sorted(wanted) if name not in present]
    other = [n for n in sorted(wanted) if n in present and digest_file(home / n) != made.files[wanted[n]]]
    if lacking:
        yield f"denoiser/{lacking[0]} is missing (run the same command again, which writes it)"
    elif other:
        yield f"denoiser/{other[0]} is not the file that this run trained (move it away and run again)"
    elif present - set(wanted):
        yield "denoiser/ holds files that this run did not write (move them away)"
