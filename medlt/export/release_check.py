"""Verification of a release by whoever receives it: every file, no other file, and a record that agrees with itself."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medlt.export.deployment import deployment
from medlt.export.release import FORMAT, RECORD, SIGNATURE, files_of
from medlt.export.signature import verify_file
from medlt.files import sha256
from medlt.markdown_text import inline
from medlt.privacy.accounting import spent
from medlt.privacy.claims import Claim
from medlt.privacy.ledger import DRIFT, format_epsilon
from medlt.types import InputError


def verify_release(folder: Path, key: str | None = None) -> dict[str, Any]:
    """Return problems (one line each), files (their number), sentence (of the claim), epsilon, signed, and signature.

    key: public key of the signer, as for `medlt.export.signature.verify_file`. signed: the comment of a signature by
    this key, None without a key. signature: whether there is one. Raises InputError for a folder without a readable
    release.json.
    """
    folder = Path(folder).expanduser().absolute()
    record, problems, signed = _read(folder / RECORD), list[str](), None
    if key is not None:
        try:
            signed = verify_file(folder / RECORD, key)
        except InputError as error:
            problems.append(str(error))
    problems += [*_file_problems(folder, record), *_record_problems(folder, record)]
    claimed = record["claim"]
    return {
        "problems": problems,
        "files": len(record["files"]),
        "sentence": str(claimed["sentence"]),
        "epsilon": claimed["epsilon"],
        "signed": signed,
        "signature": (folder / SIGNATURE).is_file(),
    }


def _read(file: Path) -> dict[str, Any]:
    """Return release.json. Raises InputError if it is missing, damaged, or of another version."""
    try:
        record = dict(json.loads(file.read_text()))
        version, (claimed, files) = record["format"], (record["claim"], record["files"])
        whole = isinstance(claimed["sentence"], str) and isinstance(dict(files), dict)
        whole = whole and isinstance(claimed["epsilon"], float | int | None) and set(record) == KEYS
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{file}: missing or damaged, so this is no release; get it again") from None
    if not whole or version != FORMAT:
        raise InputError(f"{file}: is not a record of {FORMAT!r}; use the version of medlt that wrote it")
    return record


KEYS = {"format", "medlt", "run", "claim", "ledger", "deployment", "files"}


def _file_problems(folder: Path, record: dict[str, Any]) -> Iterator[str]:
    """Yield files that are missing, changed, added, or links."""
    present, wanted = files_of(folder), dict(record["files"])
    for name in sorted(wanted.keys() | present.keys()):
        if name not in present:
            yield f"{name}: is missing"
        elif present[name].is_symlink():
            yield f"{name}: is a link, not a file"
        elif name not in wanted:
            yield f"{name}: is not in {RECORD}"
        elif sha256(present[name]) != wanted[name]:
            yield f"{name}: has other bytes than {RECORD} says"


def _record_problems(folder: Path, record: dict[str, Any]) -> Iterator[str]:
    """Yield where the parts of the record contradict each other, or the files they describe."""
    try:
        claimed = Claim(**{**record["claim"], "reasons": tuple(record["claim"]["reasons"])})
        yield from _claim_problems(claimed, record)
        given = json.loads((folder / "provenance.json").read_text())["privacy"]
        if (given["epsilon"], given["sentence"], given["delta"]) != (claimed.epsilon, claimed.sentence, claimed.delta):
            yield f"provenance.json: has another claim than {RECORD}"
        if any(
            inline(claimed.sentence) not in (folder / name).read_text() for name in ("MODEL_CARD.md", "DATASHEET.md")
        ):
            yield f"MODEL_CARD.md or DATASHEET.md: has another claim than {RECORD}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
        yield f"{RECORD}: its claim, ledger or deployment record is damaged"
    images = {name for name in record["files"] if name.startswith("images/") and name.endswith(".png")}
    if images != {f"images/{name}" for name in _listed(folder / "images" / "metadata.csv")}:
        yield "images/metadata.csv: lists other images than there are"


def _claim_problems(claimed: Claim, record: dict[str, Any]) -> Iterator[str]:
    """Yield where claim, sentence, ledger and deployment record differ."""
    loss, ledger = record["deployment"]["privacy_loss"], record["ledger"]
    if claimed.epsilon is None:
        if not (claimed.sentence.startswith("No privacy is claimed") and claimed.reasons and loss is ledger is None):
            yield f"{RECORD}: the record of a run without a claim contradicts itself"
        return
    parameters = {"epsilon": claimed.epsilon, "delta": claimed.delta}
    text = "epsilon 0 " if claimed.epsilon == 0 else f"epsilon {format_epsilon(claimed.epsilon)} at delta "
    if not claimed.sentence.startswith(f"Differential privacy with {text}") or claimed.reasons:
        yield f"{RECORD}: the sentence of the claim has another epsilon than the claim"
    if (loss["privacy_parameters"], loss["privacy_unit"]) != (parameters, claimed.privacy_unit):
        yield f"{RECORD}: the deployment record has another claim than the claim"
    fixed = deployment(claimed, "", 0)
    if any(record["deployment"][name] != fixed[name] for name in ("dp_variant", "deployment_model", "side_channels")):
        yield f"{RECORD}: the deployment record is not the one that this version of medlt writes"
    if ledger is not None:
        yield from _ledger_problems(claimed, ledger, loss["private_runs_added_up"])


def _ledger_problems(claimed: Claim, ledger: dict[str, Any], runs: int) -> Iterator[str]:
    """Yield where the claim is below what the mechanisms cost, computed again."""
    steps = [
        (one["noise_multiplier"] / one["clip_margin"], one["sample_rate"], one["steps"] * one["times"])
        for one in ledger["mechanisms"]
    ]
    cost, stated = spent(steps, claimed.delta).epsilon, claimed.epsilon or 0.0
    same = math.isclose(cost, stated, rel_tol=DRIFT, abs_tol=DRIFT)
    if not same and (stated < cost or runs < 2):
        yield f"{RECORD}: its mechanisms cost epsilon {format_epsilon(cost)}, and the claim is {format_epsilon(stated)}"
    if not all(one["secure_mode"] is True for one in ledger["mechanisms"]):
        yield f"{RECORD}: a mechanism had no secure randomness, so nothing can be claimed"


def _listed(file: Path) -> list[str]:
    """Return the column file_name of a table; [] if there is no table."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as handle:
        return [row.get("file_name") or "" for row in csv.DictReader(handle)]
