"""The privacy claim of a run: (epsilon, delta, privacy unit), or no claim, with the reasons.

Epsilon holds for what leaves the hospital: the trained denoiser (and codec), and the synthetic images with their
labels. Everything that made them and read patients must be in the ledger. The claim never covers the run folder:
histories, reports, latents and recorded rows belong to the patients. docs/explanation/privacy.md lists what each part
reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medlt import config as configs
from medlt.files import REAL_ROWS, read_columns
from medlt.plugins import CHECKS, METHODS
from medlt.privacy.book import weight_digests
from medlt.privacy.evidence import handed_over_violations, ledger_violations, recorded_mechanisms
from medlt.privacy.ledger import NAME, NEIGHBOURS, Ledger, Mechanism, compose, format_epsilon
from medlt.privacy.limits import delta_violation
from medlt.privacy.provenance import Provenance, given_weights, must_be_private
from medlt.privacy.published import image_violations
from medlt.privacy.votes import STAGE

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


def claim(run: Path) -> Claim:
    """Return the privacy claim of a run folder. Raises InputError if it is not a run folder."""
    seen = Provenance(Path(run))
    reasons = tuple(dict.fromkeys((*config_violations(seen.config), *_folder_violations(seen))))
    covers, ledger, chosen = _covers(seen.config), seen.ledger, seen.config.privacy
    ledger = ledger if isinstance(ledger, str) or reasons else composed(seen, ledger)
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
    notes = " ".join(f"{one[0].upper()}{one[1:]}." for one in _assumptions(seen, ledger))
    sentence = f"Differential privacy with {given}, for {covers}; neighbours: {neighbours}. {notes}"
    return Claim(epsilon, delta, unit, secure or epsilon == 0, (), covers, sentence)


def config_violations(config: configs.RunConfig) -> tuple[str, ...]:
    """Return the reasons against a claim that follow from the config alone, each with its fix."""
    return tuple(_config_violations(config))


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
        yield from ledger_violations(seen, ledger)
    if seen.config.privacy is not None:
        yield from handed_over_violations(seen)
        yield from image_violations(seen)
    digests = seen.record.get("digests", {})
    for name, what in TRAINED_ON_PATIENTS.items():
        if name in digests and not any(stage.split()[0] == name for stage in seen.stages()):
            yield f"{what} was trained without privacy ({name} is in run.json but not in {NAME}; run without it)"
    yield from _shared_patients(seen)
    yield from _book_violations(seen)
    yield from _real_data_used(seen.folder, seen.config)


def _book_violations(seen: Provenance) -> Iterator[str]:
    """Yield why the private runs on these patients cannot be added up."""
    if seen.config.privacy is None or seen.real is None or not (made := recorded_mechanisms(seen)):
        return
    if isinstance(seen.book, str):
        yield seen.book
    elif seen.book is None:
        yield (
            "the budget book of the collection is missing, so the other runs on the same patients are not known "
            "(restore it, or give its place as budget_book)"
        )
    elif any(one not in _booked(seen) for one in made):
        yield "the budget book does not list the trainings of this run (restore it, or run the same command again)"


def _booked(seen: Provenance) -> list[Mechanism]:
    """Return the private mechanisms on these patients in the budget book."""
    return [one for training in seen.trainings for one in training.mechanisms]


def composed(seen: Provenance, ledger: Ledger) -> Ledger:
    """Return the ledger with the private trainings of all runs on some of the same patients, by the budget book.

    Costs add up wherever one patient may be in two trainings; a patient who is in one alone counts as well (no parallel
    composition). A training of several runs counts once. Trainings without secure randomness count as not private.
    """
    others = [one for one in _booked(seen) if one.secure_mode and one not in ledger.mechanisms]
    return compose([*ledger.mechanisms, *others], ledger.delta, ledger.target_epsilon) if others else ledger


def _shared_patients(seen: Provenance) -> Iterator[str]:
    """Yield given weights that were trained on some of the same patients.

    Their folder, or the one that a link leads to, is in a run on these patients, or the budget book has their digest.
    """
    from medlt.data.manifest import Manifest

    same = "content" if isinstance(seen.config.data, configs.PhantomData) else "patient_id"  # all phantoms count alike
    patients = set() if seen.real is None else set(seen.real.rows[same])
    known = {one for training in seen.trainings for one in training.weights}
    for name, path in given_weights(seen.config).items():
        places = dict.fromkeys(one for start in (path, path.resolve()) for one in (start, *start.parents))
        homes = [folder for folder in places if folder not in (seen.folder, seen.folder.resolve())]
        rows = [file for folder in homes if (file := folder / REAL_ROWS).is_file()]
        shared = any(patients & set(Manifest.read(file).rows.get(same, ())) for file in rows)
        if shared or (known and known & set(weight_digests(path))):
            yield f"{name} was trained in a run on some of the same patients (give weights that saw none of them)"


def _real_data_used(folder: Path, config: configs.RunConfig) -> Iterator[str]:
    """Yield uses of verifiers and of real rows for the images, from the tables of the folder."""

    if (file := folder / "checks.parquet").is_file():
        added = {name for name in config.checks.optional if CHECKS.package(name) and CHECKS[name].private}
        names = set(read_columns(file, columns=["check"])["check"]) - DATA_INDEPENDENT_CHECKS - added
        if names:
            yield (
                f"the images were chosen by checks that use real images ({', '.join(sorted(names))}; such checks are "
                "not trained with privacy: run without them)"
            )
    plan, rows = folder / "plan.parquet", folder / "stages" / "data" / "manifest.parquet"
    if plan.is_file() and rows.is_file():
        made, real = read_columns(plan), set(read_columns(rows, columns=[]).index)
        columns = [name for name in ("label_source", "tail_parent", "head_parent") if name in made]
        if any(made[name].isin(real).any() for name in columns):
            yield "images were made with labels or pixels of real rows (run with a section privacy)"


def _covers(config: configs.RunConfig) -> str:
    """Return what the claim covers."""
    trained = [f"the {stage}'s weights" for stage in reversed(must_be_private(config)) if stage != STAGE]
    return ", ".join([*trained, "the synthetic images with their labels"])


def _given(config: configs.RunConfig) -> str:
    """Return what a denoiser has to do with the weights that were given to it."""
    return "began from" if "denoiser" in must_be_private(config) else "has"


def private_runs(seen: Provenance) -> int:
    """Return the number of runs that trained privately on some of these patients."""
    private = [one for one in seen.trainings if any(done.secure_mode for done in one.mechanisms)]
    return len({run for training in private for run in training.runs})


def _assumptions(seen: Provenance, ledger: Ledger | str) -> Iterator[str]:
    """Yield the assumptions of the claim that no file of the run can prove, and other notes for the reader."""
    given = given_weights(seen.config)
    if "codec.path" in given:
        yield "the codec is assumed to be public: it must not have seen these patients"
    if set(given) - {"codec.path"}:
        yield f"the denoiser {_given(seen.config)} given weights: they must not have seen these patients"
    if isinstance(ledger, str):
        yield "the cost of other runs on the same patients comes on top"
        return
    if isinstance(seen.config.method, configs.Evolution):
        yield (
            "the images were chosen by noisy votes of the patients, who trained no denoiser; votes compare small "
            "pixels, which need no model"
        )
    yield f"private runs on these patients that were added up: {private_runs(seen)}, by the collection's budget book"
    if len({one.privacy_unit for one in ledger.mechanisms}) > 1:
        yield "stages differ in their privacy unit; the weaker one is reported"
    if ledger.spent.epsilon > ledger.target_epsilon:
        yield f"this is more than the {format_epsilon(ledger.target_epsilon)} in the config"
