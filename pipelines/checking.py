"""What an image of a run must pass before it is kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import torch

from medlt import config as configs
from medlt.checks.asserted import Asserted
from medlt.checks.bands import Rule, in_band
from medlt.checks.consistency import Crossfit, LabelConsistency, thresholds
from medlt.checks.sanity import Finite, Flat, Saturated, sanity
from medlt.classify.train import Classifier
from medlt.data.loaders import images
from medlt.types import Check
from pipelines.stages import Collection


def checks(config: configs.RunConfig, real: Collection, judges: Crossfit) -> tuple[Check, ...]:
    """Sanity against the parents, then the label as seen by the judge that saw neither parent, then the band.

    A blind run looks at the image alone.
    """
    if config.blind:
        return Finite(), Flat(config.checks.black_below), Saturated(), Asserted()
    findings = list(real.manifest.findings)
    limits = thresholds(judges.held_out, real.train.rows[findings], config.checks.quantile)
    parents = partial(_parents, real, config.size)
    usual = sanity(parents, black_below=config.checks.black_below, duplicate_above=config.checks.duplicate_above)
    label = LabelConsistency(judges.judges, dict(limits), findings, config.checks.quantile)
    return (*usual, Asserted(), label, *_bands(config, real, judges))


def _bands(config: configs.RunConfig, real: Collection, judges: Crossfit) -> tuple[Check, ...]:
    """The check that drops what is out of distribution, where the config has it."""
    chosen, rows = config.checks.in_band, real.train.rows
    if chosen is None:
        return ()
    looks = [judge.features for judge in judges.judges if isinstance(judge, Classifier)]
    rule = Rule(chosen.form, chosen.k, chosen.quantile)
    pixels = partial(_parents, real, config.size)
    labels = rows[list(real.manifest.findings)]
    check = in_band(looks, pixels, judges.fold, labels, real.tail, rule=rule, limit=chosen.limit)
    if without := [
        f"{name} (fold {k})" for k, held in enumerate(check.bands) for name in held if not held[name].limit > 0
    ]:
        logging.getLogger(__name__).warning(
            "no band of %s: too few real positives; their images will all be dropped. Fewer folds (checks.folds), "
            "checks.in_band.form: centre, or checks.in_band: null keep them",
            ", ".join(without),
        )
    return (check,)


def _parents(real: Collection, size: int, uids: Sequence[str]) -> torch.Tensor:
    return images(real.train, size, real.cache, uids)
