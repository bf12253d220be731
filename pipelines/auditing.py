"""The audit of a finished run: what its images and its denoiser give away of the patients it learnt from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from medlt import config as configs
from medlt.data.convert.encode import png
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.files import write_bytes, write_json, write_table, write_text
from medlt.privacy.audit.copies import Screening
from medlt.privacy.audit.summary import summary, tables
from medlt.privacy.card import datasheet, model_card
from medlt.report.html import write as write_report
from medlt.types import InputError
from pipelines import attacks, opening, shadowing
from pipelines.stages import Progress, quiet, threads
from pipelines.subject import Asked, Subject, Unknown

USUAL: dict[str, Callable[[Subject], Any]] = {
    "copies": attacks.screened,
    "reidentification": attacks.reidentified,
    "membership": attacks.members,
}
SHOWN = 8


def main(folder: Path, asked: Asked, progress: Progress = quiet) -> dict[str, Any]:
    """Audit a run; writes audit.json, its tables, the cards and the report anew.

    Raises InputError where there is no finished run, no image, or no patient to hold against those trained on.
    """
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder}: is no run folder; give one that `medlt augment` made")
    config = configs.load(folder / "config.yaml").model_copy(update={"out": folder})
    with threads(config.threads):
        subject = _subject(config, asked, progress)
        wanted = dict(USUAL)
        wanted |= {"membership, shadow models": shadowing.likelihood} if asked.shadows else {}
        wanted |= {"canaries": shadowing.canaries} if asked.canaries else {}
        parts = {name: _tried(part, subject) for name, part in wanted.items()}
    told = summary(parts)
    for name, table in tables(parts).items():
        write_table(folder / f"{name.replace(', ', '_').replace(' ', '_')}.parquet", table)
    write_json(folder / "audit.json", told)
    write_text(folder / "MODEL_CARD.md", model_card(folder))
    write_text(folder / "DATASHEET.md", datasheet(folder))
    write_report(folder)
    if asked.show_pairs:
        _show(subject, parts["copies"])
    return told


def _subject(config: configs.RunConfig, asked: Asked, progress: Progress) -> Subject:
    """The run, opened for reading."""
    run, real = opening.finished(config)
    whole = Manifest.read(config.out / "manifest.parquet")
    made = whole.where(whole.rows.get("synthetic", pd.Series(False, whole.rows.index)))
    subject = Subject(run, real, made, asked, progress)
    if made.rows.empty:
        raise InputError(f"{config.out}: no synthetic image was kept, so there is nothing to audit")
    if subject.held.rows.empty:
        raise InputError(f"{config.out}: no real image of split val or test; the audit needs patients not trained on")
    return subject


def _tried(part: Callable[[Subject], Any], subject: Subject) -> Any:
    """What a part found, or why it could not look."""
    try:
        return part(subject)
    except InputError as error:
        return Unknown(str(error))


def _show(subject: Subject, found: Any) -> None:
    """RUN/audit_pairs.png: the images nearest to a real one, each beside it. Shows REAL patients' images."""
    if not isinstance(found, Screening):
        return
    near = found.images.sort_values("similarity", ascending=False).head(SHOWN)
    size, train = subject.run.config.size, subject.real.train
    known, which = np.unique(near["train"], return_inverse=True)  # one real image may be nearest to several
    real = images(train, size, subject.real.cache, [str(train.rows.index[row]) for row in known])
    at = torch.from_numpy(subject.made.rows.index.get_indexer(near.index))
    rows = torch.cat([images(subject.made, size)[at], real[torch.from_numpy(which)]], dim=3)[:, 0]
    write_bytes(subject.run.path("audit_pairs.png"), png(rows.flatten(0, 1).numpy()))
