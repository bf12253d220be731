"""The record that goes with every export: that it is synthetic, its run, and the claim of its privacy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medlt._version import __version__
from medlt.files import atomic, write_json
from medlt.privacy.claims import claim
from medlt.privacy.ledger import NAME, read_ledger
from medlt.types import InputError

CARDS = ("MODEL_CARD.md", "DATASHEET.md")
"""Files of a run that go with an export where they are there."""
NOTICE = "Synthetic radiographs. They show no patient; do not use them for diagnosis."
SECRET = ("data", "grad_sample_mode")
"""Fields of a mechanism that stay in the run. A person who knows all rows but one could test a digest for that one, and
how gradients were computed is chosen by the clock, which no mechanism covers."""


def provenance(run: Path) -> dict[str, Any]:
    """Return what an export says of itself: synthetic, notice, run, medlt, privacy.

    privacy: epsilon, delta, privacy_unit, covers and sentence of the claim, and the ledger. epsilon is None where no
    privacy is claimed; the sentence says why. The ledger is None where nothing was trained privately.
    """
    made = claim(run)
    private = {name: getattr(made, name) for name in ("epsilon", "delta", "privacy_unit", "covers", "sentence")}
    private |= {"delta": None} if made.epsilon is None else {}
    privacy = {**private, "ledger": public_ledger(run)}
    return {"synthetic": True, "notice": NOTICE, "run": run_id(run), "medlt": __version__, "privacy": privacy}


def run_id(run: Path) -> str:
    """Return the run's id, "" for a run without one. Raises InputError for a damaged run.json."""
    file = run / "run.json"
    try:
        return str(json.loads(file.read_text()).get("id", "")) if file.is_file() else ""
    except (ValueError, AttributeError):
        raise InputError(f"{file.absolute()}: damaged; remove it, and run the same command again") from None


def write_provenance(run: Path, out: Path) -> dict[str, Any]:
    """Write OUT/provenance.json, and copy the run's cards; returns the record."""
    record = provenance(run)
    write_json(out / "provenance.json", record)
    for name in CARDS:
        if (run / name).is_file():
            with atomic(out / name) as temporary:
                shutil.copyfile(run / name, temporary)
    return record


def public_ledger(run: Path) -> dict[str, Any] | None:
    """Return the ledger without the digest of the rows, or None. Raises InputError for a damaged one."""
    if not (run / NAME).is_file():
        return None
    ledger = read_ledger(run / NAME)
    composed = {"epsilon": ledger.spent.epsilon, "delta": ledger.delta, "privacy_unit": ledger.privacy_unit}
    return {**composed, "mechanisms": [_public(asdict(one)) for one in ledger.mechanisms]}


def _public(mechanism: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in mechanism.items() if name not in SECRET}
