"""Writes the documents that go with a model and its images: a model card and a datasheet, from a run folder.

The card has the sections of Mitchell et al. 2019 (arXiv 1810.03993) under the header that Hugging Face reads. The
datasheet answers the questions of Gebru et al. 2021 (arXiv 1803.09010). Neither holds a patient's name, a picture or a
path. In a private run (with a section privacy) they also hold no count, digest or loss of the real rows: with a digest
of the rows, a person who knows all rows but one could test whether that one is among them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from medlt._version import __version__
from medlt.data.columns import is_synthetic
from medlt.privacy.card_text import (
    bullets,
    codec,
    condition,
    denoiser,
    distribution,
    header,
    identification,
    is_drawn,
    is_private,
    labelling,
    markdown_table,
    not_shown,
    parent_columns,
    run_name,
    training,
)
from medlt.privacy.claims import Claim, claim
from medlt.privacy.ledger import Ledger, format_epsilon
from medlt.privacy.provenance import Provenance
from medlt.types import InputError

AUDIT, VERDICT = "audit.json", "verdict.json"
NO_AUDIT = "This run has no audit; `medlt audit` makes one."
LIMITS = (
    "The images are synthetic. Do not use them for clinical care.",
    "A label is the target of the sampling, not the reading of a radiologist.",
    "The plan decides how often findings occur, alone and together. These frequencies are no prevalence.",
    "Ages, devices, views and populations that the training images lack are missing here too.",
)
USES = (
    "Training of classifiers for the same findings, together with real images; never in place of a real test set.",
    "Research on synthesis, long-tailed learning and privacy.",
)
NOT_FOR = "Not for: diagnosis, triage, treatment, prevalence, or any statement about a person."


def model_card(run: Path) -> str:
    """Return the Markdown of RUN/MODEL_CARD.md. Raises InputError for a folder that is no run."""
    seen, claimed = Provenance(Path(run)), claim(Path(run))
    config, parts = seen.config, {}
    radiographs = "phantom radiographs" if is_drawn(config) else "radiographs"
    parts["Model details"] = bullets(
        f"A latent diffusion model of {radiographs} ({denoiser(config)}), with {codec(config)}.",
        f"Made by medlt {__version__}, method {config.method.kind}, at {config.size} x {config.size} pixels.",
        *([f"Run: `{seen.record['id']}`."] if "id" in seen.record else []),
        *([] if is_private(config) else [f"Digests: {_digests(seen)}."]),
    )
    parts["Intended use"] = bullets(*USES, NOT_FOR)
    parts["Factors"] = bullets(f"Each image is sampled for {condition(config)}.")
    parts["Training data"] = bullets(*_training_data(seen))
    parts["Training"] = bullets(*training(config))
    parts["Evaluation"] = _evaluation(seen)
    parts["Privacy"] = _privacy(seen, claimed)
    parts["Audit"] = _audit(seen)
    parts["Not shown here"] = bullets(*not_shown(config))
    parts["Caveats"] = bullets(*LIMITS)
    return header(config) + _page(f"Model card: {run_name(config)}", parts)


def datasheet(run: Path) -> str:
    """Return the Markdown of RUN/DATASHEET.md. Raises InputError for a folder that is no run."""
    seen, claimed = Provenance(Path(run)), claim(Path(run))
    config, parts = seen.config, {}
    made = _made(seen.folder)
    parts["Motivation"] = "The images add rare findings to a long-tailed collection of radiographs."
    parts["Composition"] = "\n\n".join(
        [f"{len(made)} synthetic images, {config.size} x {config.size}, 8 bit grey. By finding:", _counts(made)]
    )
    parts["Collection"] = bullets(
        f"Method {config.method.kind} makes the images, with seed {config.seed}.",
        *_training_data(seen),
    )
    parts["Labelling"] = labelling(config)
    parts["Provenance of an image"] = bullets(*identification(config), *parent_columns(config, made))
    parts["Evaluation"] = _evaluation(seen)
    parts["Privacy"] = _privacy(seen, claimed)
    parts["Audit"] = _audit(seen)
    parts["Uses"] = bullets(*USES, NOT_FOR)
    parts["Distribution"] = distribution(config)
    parts["Limits"] = bullets(*LIMITS)
    return _page(f"Datasheet: {run_name(config)}", parts)


def _page(title: str, parts: Mapping[str, str]) -> str:
    body = "\n".join(f"## {name}\n\n{text}\n" for name, text in parts.items())
    return f"# {title}\n\n{body}"


def _digests(seen: Provenance) -> str:
    digests = seen.record.get("digests", {})
    return ", ".join(f"{name} `{value}`" for name, value in sorted(digests.items())) or "none yet"


def _training_data(seen: Provenance) -> list[str]:
    """Return what the model is trained on; in a private run without a number."""
    what = "phantom images, drawn by a program" if is_drawn(seen.config) else "radiographs of patients"
    if is_private(seen.config):
        return [f"{what.capitalize()}, under the ledger below. Their digest and number do not leave the run folder."]
    real = seen.record.get("counts", {}).get("real")
    return [
        f"{real if real is not None else 'An unknown number of'} {what}.",
        f"Digest of the train rows: `{seen.data or 'not recorded'}`.",
    ]


def _evaluation(seen: Provenance) -> str:
    """Return the verdict of verdict.json. A private run keeps it: it is measured on test images without noise."""
    file = seen.folder / VERDICT
    if not file.is_file():
        return "This run has no verdict: `medlt run` or `medlt evaluate` measures whether the images help a classifier."
    if is_private(seen.config):
        return (
            f"This run has a verdict. {VERDICT} stays in the run folder: it is measured on test images without noise."
        )
    verdict = _read(file, "medlt evaluate", lambda tree: {name: _clean(tree[name]) for name in ("verdict", "sentence")})
    drawn = (
        " The test images are phantoms: the verdict does not apply to real radiographs."
        if is_drawn(seen.config)
        else ""
    )
    return f"Verdict: **{verdict['verdict']}**. {verdict['sentence']}{drawn}"


def _privacy(seen: Provenance, claimed: Claim) -> str:
    covered = (
        "Nothing else in the run folder is covered: histories, reports, latents and recorded rows do not leave it."
    )
    parts = [claimed.sentence, _ledger(seen, claimed), *([] if claimed.epsilon is None else [covered])]
    if is_drawn(seen.config) and "patient" in " ".join(parts):
        parts.append("The data of this run is drawn by a program: its patients are simulated.")
    return "\n\n".join(parts)


def _ledger(seen: Provenance, claimed: Claim) -> str:
    """Return one row per mechanism, without the number of units, and the total cost if it may be claimed."""
    ledger = seen.ledger
    if not isinstance(ledger, Ledger) or not ledger.mechanisms:
        return "There is no ledger of private training."
    rows = [
        (one.stage, one.privacy_unit, one.noise_multiplier, one.max_grad_norm, one.clip_margin, one.sample_rate,
         one.steps, one.times, one.max_images_per_patient, one.noise_multiplicity, "yes" if one.secure_mode else "no")
        for one in ledger.mechanisms
    ]  # fmt: skip
    columns = (
        "stage privacy_unit noise_multiplier max_grad_norm clip_margin sample_rate steps times max_images_per_patient "
        "noise_multiplicity secure_mode"
    ).split()
    if claimed.epsilon is None:
        return markdown_table(columns, rows)
    spent = ledger.spent
    total = f"epsilon {format_epsilon(spent.epsilon)} ({spent.accountant}), {format_epsilon(spent.rdp)} by RDP alone"
    public = f"sample_rate is made of a public number of units, {ledger.units}; the true number is not stated."
    sentence = f"This run alone at delta {ledger.delta:g}: {total}; neighbours: {ledger.neighbours}. {public}"
    return f"{markdown_table(columns, rows)}\n\n{sentence}"


def _read(file: Path, command: str, read: Callable[[dict[str, Any]], Any]) -> Any:
    """Return what `read` takes from a JSON file. Raises InputError for a damaged one."""
    try:
        return read(json.loads(file.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{file}: damaged; run `{command}` again") from None


def _audit(seen: Provenance) -> str:
    """Return the results of `medlt audit`, one line each; none of a private run, since they read its patients."""
    folder = seen.folder
    if is_private(seen.config):
        return f"`medlt audit` measures on patients without noise: its results, {AUDIT}, stay in the run folder."
    if not (folder / AUDIT).is_file():
        return NO_AUDIT
    audit = _read(
        folder / AUDIT, "medlt audit", lambda tree: {**tree, "lines": [_attack(one) for one in tree["results"]]}
    )
    return "\n\n".join(part for part in (bullets(*audit["lines"]), _clean(audit.get("conclusion", ""))) if part)


def _attack(one: Mapping[str, Any]) -> str:
    words = {True: "passed", False: "FAILED", None: "cannot conclude"}
    return f"**{_clean(one['name'])}** ({words[one['passed']]}): {_clean(one['sentence'])}"


def _clean(text: object) -> str:
    """Return a text on one line and without a path."""
    return re.sub(r"(?<![\w.])(?:[A-Za-z]:\\|/)[\w.\-]+[/\\][^\s,;)]*", "[path]", " ".join(str(text).split()))


def _made(folder: Path) -> pd.DataFrame:
    """Return the synthetic rows; none if no image is published."""
    file = folder / "manifest.parquet"
    if not file.is_file():
        return pd.DataFrame({"finding": []})
    rows = pd.read_parquet(file)
    return rows[is_synthetic(rows)]


def _counts(made: pd.DataFrame) -> str:
    counts = made["finding"].value_counts().sort_index() if "finding" in made else pd.Series(dtype=int)
    return markdown_table(("target finding", "images"), counts.items())
