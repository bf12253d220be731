"""The near-copy filter of a run: what lies nearer to one real train image than unseen images do is not kept."""

from __future__ import annotations

import logging
import math

import torch

from medlt.chance import seed_of
from medlt.checks.near_copy import near_copy
from medlt.privacy.audit.copies import low_pass
from medlt.privacy.audit.embedding import fit_embedding
from medlt.runs import Run
from medlt.types import Check
from pipelines.stages import Collection, Progress

SIZE = 64
MEASURES = 2
"""The embedding and small pixels, which share the rate."""


def near_copies(run: Run, real: Collection, progress: Progress) -> tuple[Check, ...]:
    """The check, where the config has it and there are validation images enough to set its limit by.

    Its embedding is trained on train and validation images alike, so that it does not know the ones better.
    """
    chosen = run.config.checks.near_copy
    if chosen is None:
        return ()
    train, val = (real.training_set(split, SIZE).images for split in ("train", "val"))
    whose = [list(real.manifest.split(split).rows["patient_id"].astype(str)) for split in ("train", "val")]
    one_each = [whose[1].index(patient) for patient in dict.fromkeys(whose[1])]
    if (enough := math.ceil(MEASURES / chosen.false_positive)) > len(one_each):
        logging.getLogger(__name__).warning(
            "no near-copy filter: %d validation patients cannot show a rate of %g, that takes %d; give more, or raise "
            "checks.near_copy.false_positive", len(one_each), chosen.false_positive, enough
        )  # fmt: skip
        return ()
    with run.stage("embedding") as folder:
        embed = fit_embedding(torch.cat([train, val]), whose[0] + whose[1], folder=folder, steps=chosen.steps,
                              seed=seed_of(run.config.seed, "embedding"), progress=progress)  # fmt: skip
    return (near_copy([embed, low_pass], val[one_each], train, chosen.false_positive),)
