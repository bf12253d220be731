"""Writes the documents that go with a model and its images: a model card and a datasheet, from a run folder.

The card has the sections of Mitchell et al. 2019 (arXiv 1810.03993) under the header that Hugging Face reads. The
datasheet answers the questions of Gebru et al. 2021 (arXiv 1803.09010). Neither holds a patient's name, a picture or a
path. In a private run (with a section privacy) they also hold no count, digest or loss of the real rows: with a digest
of the rows, a person who knows all rows but one could test whether that one is among them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from medlt.data.columns import is_synthetic
from medlt.files import read_columns
from medlt.markdown_text import inline
from medlt.privacy.card_text import (
    bullets,
    condition,
    dataset_header,
    distribution,
    header,
    identification,
    is_drawn,
    is_private,
    labelling,
    markdown_table,
    model,
    not_shown,
    parent_columns,
    run_name,
    training,
    verified,
)
from medlt.privacy.claims import Claim, claim
from medlt.privacy.ledger import Ledger, format_epsilon
from medlt.privacy.provenance import Provenance
from medlt.records import without_checksum
from medlt.types import InputError

AUDIT, VERDICT = "audit.json", "verdict.json"
NO_AUDIT = "Not measured: `medlt audit RUN` tests for copies, membership and identity."
LIMITS = (
    "The images are synthetic. Do not use them for clinical care.",
    "The label of a synthetic image is computed; it is not the reading of a radiologist.",
    "The plan decides how often findings occur, alone and together. These frequencies are no prevalence.",
    "Not measured: whether they show ages, devices, views and populations that the training images lack.",
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
    digests = seen.record.get("digests", {})
    parts["Model details"] = bullets(
        model(config, digests),
        f"{_software(seen)}, method {config.method.kind}, at {config.size} x {config.size} pixels.",
        f"Run: `{inline(seen.record['id'])}`." if "id" in seen.record else "Run: not recorded.",
        *([] if is_private(config) else [f"Digests: {_digests(seen)}."]),
    )
    parts["Intended use"] = bullets(*USES, NOT_FOR)
    parts["Factors"] = bullets(condition(config))
    parts["Training data"] = bullets(*_training_data(seen))
    parts["Training"] = bullets(*training(config, digests))
    parts["Evaluation"] = _evaluation(seen)
    parts["Privacy"] = _privacy(seen, claimed)
    parts["Audit"] = _audit(seen)
    parts["Not shown here"] = bullets(*not_shown(config))
    parts["Caveats"] = bullets(*LIMITS)
    return header(config) + _page(f"Model card: {inline(run_name(config))}", parts)


def datasheet(run: Path) -> str:
    """Return the Markdown of RUN/DATASHEET.md. Raises InputError for a folder that is no run."""
    seen, claimed = Provenance(Path(run)), claim(Path(run))
    config, parts = seen.config, {}
    made = _made(seen.folder)
    parts["Motivation"] = "The images are made to add findings that are rare in a collection of radiographs."
    side = config.image_size
    size = f", {side} x {side}, 8 bit grey. By finding:\n\n{_counts(made)}" if len(made) else " are published."
    parts["Composition"] = f"{len(made)} synthetic images{size}"
    parts["Collection"] = bullets(
        f"Method {config.method.kind} makes the images, with seed {config.seed}.",
        *_training_data(seen),
    )
    parts["Labelling"] = f"{labelling(config)} {verified(config, seen.folder, made)}"
    identified = identification(config, seen.folder, made)
    parts["Provenance of an image"] = bullets(*identified, *parent_columns(config, made))
    parts["Evaluation"] = _evaluation(seen)
    parts["Privacy"] = _privacy(seen, claimed)
    parts["Audit"] = _audit(seen)
    parts["Uses"] = bullets(*USES, NOT_FOR)
    parts["Distribution"] = distribution(config, len(made))
    parts["Limits"] = bullets(*LIMITS)
    return dataset_header(config, len(made)) + _page(f"Datasheet: {inline(run_name(config))}", parts)


def _page(title: str, parts: Mapping[str, str]) -> str:
    body = "\n".join(f"## {name}\n\n{text}\n" for name, text in parts.items())
    return f"# {title}\n\n{body}"


def _digests(seen: Provenance) -> str:
    digests = seen.record.get("digests", {})
    return ", ".join(f"{inline(name)} `{inline(value)}`" for name, value in sorted(digests.items())) or "not recorded"


def _software(seen: Provenance) -> str:
    """Return the version of medlt that made the run, by run.json."""
    version = seen.record.get("versions", {}).get("medlt")
    return f"Made by medlt {inline(version)}" if version else "Made by medlt, version not recorded"


def _training_data(seen: Provenance) -> list[str]:
    """Return what the model is trained on; in a private run without a number."""
    what = "phantom images, drawn by a program" if is_drawn(seen.config) else "radiographs of patients"
    if is_private(seen.config):
        return [f"{what.capitalize()}, under the ledger below. Their digest and number do not leave the run folder."]
    number = "Number not recorded" if seen.real is None else f"{len(seen.real.split('train').rows)} in the train split"
    return [
        f"{what.capitalize()}: {number}.",
        f"Digest of the train rows: `{seen.data or 'not recorded'}`.",
    ]


def _evaluation(seen: Provenance) -> str:
    """Return the verdict of verdict.json. A private run keeps it: it is measured on test images without noise."""
    file = seen.folder / VERDICT
    if not file.is_file():
        return "Not measured: whether the images help a classifier; `medlt run` or `medlt evaluate` measures it."
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
    parts = [inline(claimed.sentence), _ledger(seen, claimed), *([] if claimed.epsilon is None else [covered])]
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
        return read(without_checksum(file.read_text()))
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
    """Return a text on one line, without a path, HTML and links."""
    without = re.sub(r"(?<![\w.])(?:[A-Za-z]:\\|/)[\w.\-]+[/\\][^\s,;)]*", "[path]", " ".join(str(text).split()))
    return inline(without)


def _made(folder: Path) -> pd.DataFrame:
    """Return the synthetic rows; none if no image is published."""
    file = folder / "manifest.parquet"
    if not file.is_file():
        return pd.DataFrame({"finding": []})
    rows = read_columns(file)
    return rows[is_synthetic(rows)]


def _counts(made: pd.DataFrame) -> str:
    counts = made["finding"].value_counts().sort_index() if "finding" in made else pd.Series(dtype=int)
    return markdown_table(("target finding", "images"), counts.items())
