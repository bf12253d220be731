"""Train one part of a run and the parts that it needs. A later run reuses them from its artifacts folder."""

from __future__ import annotations

from pathlib import Path

from medlt import config as configs
from medlt import processes
from medlt.recipes._checks import check_rows, check_shortfall
from medlt.recipes._codec import encode, make_codec
from medlt.recipes._cohort import open_cohort
from medlt.recipes._denoiser import train_denoiser
from medlt.recipes._estimate import generator_parts, note_training_time
from medlt.recipes._learn import learn
from medlt.recipes._methods import extra_losses
from medlt.recipes._models import learn_sparse_code, train_guidance_classifier, train_verifiers
from medlt.recipes._parts import PARTS
from medlt.recipes._privacy import check_budget, private_fit
from medlt.recipes._setup import opened
from medlt.recipes.augment import check
from medlt.training.runtime import silent
from medlt.types import InputError, Progress


def main(config: configs.RunConfig, part: str, progress: Progress = silent) -> Path:
    """Train `part`, or resume its training, and return the run folder. Raises InputError on bad input.

    Under torchrun all processes call it, and the first one writes.
    """
    if part not in PARTS:
        raise InputError(f"{part!r} is not a part of a run; train one of {', '.join(PARTS)}")
    _check_privacy(config, part)
    rows = check(config)
    with opened(config, progress, several=True) as run:
        with processes.first_ahead():
            cohort = open_cohort(run, rows)
        if processes.count() == 1:
            note_training_time(run, [one for one in generator_parts(run, cohort) if one.stage in PARTS[part]])
        if part == "denoiser":
            learnt = learn(run, cohort)
            train_denoiser(run, cohort, learnt.latents, learnt.private, extra_losses(run, learnt))
            return run.folder
        check_rows(config, cohort)
        check_shortfall(cohort)
        check_budget(config)
        private = private_fit(run, cohort)
        if part == "classifier":
            train_verifiers(run, cohort, private)
        elif part == "epistemic":
            train_guidance_classifier(run, cohort, train_verifiers(run, cohort, private))
        else:
            codec = make_codec(run, cohort, private)
            if part == "sparse":
                learn_sparse_code(run, cohort, encode(run, cohort, codec), private)
    return run.folder


def _check_privacy(config: configs.RunConfig, part: str) -> None:
    """Raise InputError for a part that has no private form, or that the privacy budget does not include."""
    if config.privacy is not None and part == "epistemic":
        raise InputError(
            "privacy: the epistemic head has no private form; train it in a run without the section privacy"
        )
    if config.data_independent and part == "classifier" and not (config.privacy and config.privacy.classifier):
        raise InputError("privacy: the budget of this run includes no classifier; write privacy.classifier: true")
