"""What goes with a model and its images when they leave: a model card and a datasheet, from a run folder.

The card has the sections of Mitchell et al. 2019 (arXiv 1810.03993) under the header that Hugging Face reads; the
datasheet asks the questions of Gebru et al. 2021 (arXiv 1803.09010). Neither names a patient, or has a picture or path.
Where a run was asked to be private they give no count, digest or loss of its patients: a digest of the rows alone would
tell who knows all but one of them whether that one was there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from medlt import config as configs
from medlt._version import __version__
from medlt.privacy.claims import Claim, Provenance, claim
from medlt.privacy.ledger import Ledger, format_epsilon
from medlt.types import InputError

AUDIT = "audit.json"
NO_AUDIT = "No audit was made of this run; `medlt audit` makes one."
LIMITS = (
    "The images are synthetic. No patient stands behind any of them, and none may be used for the care of one.",
    "A label is what the image was asked to show, not what a reader saw in it.",
    "How often findings occur, and occur together, is what was asked for; it is no prevalence.",
    "What the training images lacked (ages, devices, views, populations) the synthetic ones lack too.",
)
USES = (
    "training and testing of classifiers of the same findings, beside real images and never in place of a real test",
    "research into synthesis, long-tailed learning and privacy",
)
NOT_FOR = "Diagnosis, triage, treatment, prevalence, and any claim about a person."


def model_card(run: Path) -> str:
    """Markdown for RUN/MODEL_CARD.md. Raises InputError for a folder that is no run."""
    seen, said = Provenance(Path(run)), claim(Path(run))
    config, parts = seen.config, {}
    parts["Model details"] = _items(
        f"A latent diffusion model of radiographs ({_denoiser(config)}), with {_codec(config)}.",
        f"Made by medlt {__version__}, method {config.method.kind}, at {config.size} x {config.size} pixels.",
        *([] if _private(config) else [f"Digests: {_digests(seen)}."]),
    )
    parts["Intended use"] = _items(*USES, f"Not for: {NOT_FOR}")
    parts["Factors"] = _items(f"What it is told of an image: {_condition(config)}.")
    parts["Training data"] = _items(*_training_data(seen))
    parts["Training"] = _items(*_training(config))
    parts["Privacy"] = "\n\n".join([said.sentence, _ledger(seen, said), *_not_covered(said)])
    parts["Audit"] = _audit(seen.folder)
    parts["Not shown here"] = _not_shown(config)
    parts["Caveats"] = _items(*LIMITS)
    return _header(config) + _page(f"Model card: {_name(config)}", parts)


def datasheet(run: Path) -> str:
    """Markdown for RUN/DATASHEET.md. Raises InputError for a folder that is no run."""
    seen, said = Provenance(Path(run)), claim(Path(run))
    config, parts = seen.config, {}
    made = _made(seen.folder)
    parts["Motivation"] = (
        "To fill the long tail of a collection of radiographs: findings of which there are few images."
    )
    parts["Composition"] = "\n\n".join(
        [f"{len(made)} synthetic images, {config.size} x {config.size}, 8 bit grey. By finding:", _counts(made)]
    )
    parts["Collection"] = _items(
        f"Sampled from a diffusion model by method {config.method.kind}, seed {config.seed}; no patient was imaged.",
        *_training_data(seen),
    )
    parts["Labelling"] = _labelling(config)
    parts["Privacy"] = "\n\n".join([said.sentence, _ledger(seen, said), *_not_covered(said)])
    parts["Audit"] = _audit(seen.folder)
    parts["Uses"] = _items(*USES, f"Not for: {NOT_FOR}")
    parts["Distribution"] = _distribution(config)
    parts["Limits"] = _items(*LIMITS)
    return _page(f"Datasheet: {_name(config)}", parts)


def _header(config: configs.RunConfig) -> str:
    """What Hugging Face reads; the licence is for whoever holds the data to choose."""
    tags = ["medical", "radiograph", "synthetic", "diffusion", "medlt"]
    tags += ["differential-privacy"] if _private(config) else []
    stable = isinstance(config.denoiser, configs.StableConfig)
    lines = [f"library_name: {'diffusers' if stable else 'medlt'}", "license: other", "license_name: not-yet-chosen"]
    lines += ["pipeline_tag: text-to-image"] if stable else []
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---", "", ""])


def _page(title: str, parts: Mapping[str, str]) -> str:
    body = "\n".join(f"## {name}\n\n{text}\n" for name, text in parts.items())
    return f"# {title}\n\n{body}"


def _items(*lines: str) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = list(columns)
    lines = [head, ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _private(config: configs.RunConfig) -> bool:
    return config.privacy is not None


def _name(config: configs.RunConfig) -> str:
    """Of the run, without where it lies."""
    return config.output_dir.name or "run"


def _denoiser(config: configs.RunConfig) -> str:
    chosen = config.denoiser
    if isinstance(chosen, configs.StableConfig):
        how = {"none": "as it was given", "lora": f"LoRA of rank {chosen.rank}", "full": "all weights trained"}
        return f"Stable Diffusion, {how[chosen.train]}"
    begun = "from nothing" if chosen.init_from is None else "from given weights"
    return f"{chosen.kind}, width {chosen.width}, told label vectors, trained {begun}"


def _codec(config: configs.RunConfig) -> str:
    if isinstance(config.codec, configs.TrainedCodec):
        return "a codec trained on the same images"
    if not isinstance(config.codec, configs.FolderCodec):
        return f"codec {config.codec.kind} of a plug-in"
    return "a given codec" if config.codec.tune is None else "a given codec tuned on the same images"


def _condition(config: configs.RunConfig) -> str:
    return "a prompt" if isinstance(config.denoiser, configs.StableConfig) else "a label vector of findings"


def _digests(seen: Provenance) -> str:
    found = seen.record.get("digests", {})
    return ", ".join(f"{name} `{value}`" for name, value in sorted(found.items())) or "none yet"


def _training_data(seen: Provenance) -> list[str]:
    """Of what it learnt; without a number where the run was asked to be private."""
    if _private(seen.config):
        return ["Radiographs of patients, under the ledger below. Their digest and counts stay where they are."]
    real = seen.record.get("counts", {}).get("real")
    return [
        f"{real if real is not None else 'An unknown number of'} radiographs of patients.",
        f"Digest of the train rows: `{seen.data or 'not there'}`.",
    ]


def _training(config: configs.RunConfig) -> list[str]:
    chosen = config.denoiser
    if getattr(chosen, "train", "full") == "none":
        return ["None on these patients."]
    unit = "images" if config.privacy is None else f"{config.privacy.privacy_unit}s on average"
    return [
        f"{chosen.steps} steps of {chosen.batch_size} {unit}, learning rate {chosen.learning_rate:g}, "
        f"{chosen.lr_scheduler} after {chosen.warmup_steps} steps, {chosen.precision}, weights averaged at {chosen.ema_decay}.",
    ]


def _ledger(seen: Provenance, said: Claim) -> str:
    """The mechanisms, one a row, without the number of patients; what they cost together where it may be claimed."""
    ledger = seen.ledger
    if not isinstance(ledger, Ledger) or not ledger.mechanisms:
        return "There is no ledger of private training."
    rows = [
        (one.stage, one.privacy_unit, one.noise_multiplier, one.max_grad_norm, one.sample_rate, one.steps, one.times,
         one.max_images_per_patient, one.noise_multiplicity, "yes" if one.secure_mode else "no")
        for one in ledger.mechanisms
    ]  # fmt: skip
    columns = (
        "stage privacy_unit noise_multiplier max_grad_norm sample_rate steps times max_images_per_patient "
        "noise_multiplicity secure_mode"
    ).split()
    composed = (
        f"All together, at delta {ledger.delta:g}: epsilon {format_epsilon(ledger.spent.epsilon)} ({ledger.spent.accountant}), "
        f"{format_epsilon(ledger.spent.rdp)} by RDP alone; neighbours: {ledger.neighbours}. The number of units is taken as "
        "public: rate and noise follow from it."
    )
    return f"{_table(columns, rows)}\n\n{composed}" if said.epsilon is not None else _table(columns, rows)


def _not_covered(said: Claim) -> list[str]:
    if said.epsilon is None:
        return []
    return ["Nothing else of the run is covered: histories, reports, latents and filed rows stay with the patients'."]


def _audit(folder: Path) -> str:
    """What `medlt audit` found, a line each."""
    file = folder / AUDIT
    if not file.is_file():
        return NO_AUDIT
    try:
        told = json.loads(file.read_text())
        lines = [_finding(one) for one in told["results"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{file}: damaged; run `medlt audit` again") from None
    return "\n\n".join(part for part in (_items(*lines), _clean(told.get("conclusion", ""))) if part)


def _finding(one: Mapping[str, Any]) -> str:
    words = {True: "passed", False: "FAILED", None: "cannot say"}
    return f"**{_clean(one['name'])}** ({words[one['passed']]}): {_clean(one['sentence'])}"


def _clean(text: object) -> str:
    """On one line, and without a path."""
    return re.sub(r"(?<![\w.])(?:[A-Za-z]:\\|/)[\w.\-]+[/\\][^\s,;)]*", "[path]", " ".join(str(text).split()))


def _not_shown(config: configs.RunConfig) -> str:
    common = ["Whether the images help a classifier: `medlt run` or `medlt evaluate` compares.",
              "How it fares on another hospital's images."]  # fmt: skip
    if not _private(config):
        return _items(*common)
    return _items(
        "Losses of training and validation: they are measured on patients, without noise.",
        "How many patients had which finding.",
        "What other runs on the same patients spent; it must be added.",
        *common,
    )


def _made(folder: Path) -> pd.DataFrame:
    """The synthetic rows; none where nothing was published."""
    file = folder / "manifest.parquet"
    if not file.is_file():
        return pd.DataFrame({"finding": []})
    rows = pd.read_parquet(file)
    return rows[rows["synthetic"].fillna(False).astype(bool)] if "synthetic" in rows else rows.iloc[:0]


def _counts(made: pd.DataFrame) -> str:
    counts = made["finding"].value_counts().sort_index() if "finding" in made else pd.Series(dtype=int)
    return _table(("made for", "images"), counts.items())


def _labelling(config: configs.RunConfig) -> str:
    if config.data_independent:
        return "Each image is labelled with the one finding it was asked to show, and denies the others."
    return "Label vectors are those of real images, as the method passes them on."


def _distribution(config: configs.RunConfig) -> str:
    form = "PNG" if config.format == "png" else "PNG, and DICOM Secondary Capture marked as synthetic"
    return f"images/ as {form}, with metadata.csv. The licence is for whoever holds the data to choose."
