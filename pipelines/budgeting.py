"""What a private run plans to train on its patients, and the noise at which all of it together costs the budget."""

from __future__ import annotations

import logging
from functools import cache

import pandas as pd

from medlt import config as configs
from medlt.checks.consistency import folds
from medlt.privacy import accounting
from medlt.privacy.claims import foreseen
from medlt.sparse.private import private_steps
from medlt.types import InputError
from pipelines.stages import Collection

Plans = dict[str, accounting.Planned]
SPARSE = {"batch", "generations", "imitation_epochs", "adaptation_epochs", "interaction_epochs"}


def plans(config: configs.RunConfig, real: Collection) -> Plans:
    """Every training on patients that this run plans, by its name in the ledger.

    A patient is counted in every judge, though each is left out of one. Raises InputError where a step would draw more
    than there are.
    """
    found: Plans = {}
    whole = _units(config, real.train.rows)

    def add(name: str, batch: int, steps: int, units: int = whole) -> None:
        if batch > units:
            raise InputError(f"privacy: a step of the {name} draws {batch} of {units} on average; give a smaller batch")
        found[name] = accounting.Planned(batch / units, steps)

    if isinstance(config.codec, configs.TrainedCodec):
        add("codec", config.codec.batch, config.codec.steps)
    elif config.codec.tune is not None:
        add("codec", config.codec.tune.batch, config.codec.tune.steps)
    if config.method.kind == "fusion":
        patients = int(real.train.rows["patient_id"].nunique())
        for name, steps in private_steps(patients, **config.sparse.model_dump(include=SPARSE)).items():
            add(name, config.sparse.batch, steps)
    if getattr(config.denoiser, "train", "full") != "none":
        add("denoiser", config.denoiser.batch, config.denoiser.steps)
    for k, units in _judged(config, real).items():
        add(f"judge {k}", config.classifier.batch, config.classifier.steps, units)
    return found


def _units(config: configs.RunConfig, rows: pd.DataFrame) -> int:
    """How many patients, or images, there are to hide among."""
    assert config.privacy is not None
    return len(rows) if config.privacy.unit == "image" else int(rows["patient_id"].nunique())


def _judged(config: configs.RunConfig, real: Collection) -> dict[int, int]:
    """Number of a judge -> among how many it hides who it was trained on; in a blind run only if asked for."""
    assert config.privacy is not None
    if config.blind and not config.privacy.classifier:
        return {}
    rows = real.train.rows
    fold = folds(rows["patient_id"], rows[list(real.train.findings)], config.checks.folds, config.seed)
    return {k: _units(config, rows[fold != k]) for k in range(config.checks.folds)}


def look(config: configs.RunConfig, real: Collection) -> None:
    """Raises InputError, with nothing written, for a budget that cannot be kept; warns of what breaks the claim."""
    if config.privacy is None:
        return
    log, units = logging.getLogger(__name__), _units(config, real.train.rows)
    noise(config, real)
    if (told := accounting.warn_of_delta(config.privacy.delta, units)) is not None:
        log.warning("privacy: %s", told)
    for reason in foreseen(config):
        log.warning("privacy: this run will carry no claim: %s", reason)


@cache
def _noise(planned: tuple[tuple[float, int], ...], epsilon: float, delta: float) -> float:
    return accounting.calibrate([accounting.Planned(*one) for one in planned], epsilon, delta)


def noise(config: configs.RunConfig, real: Collection) -> float:
    """The noise multiplier at which everything that is planned costs the budget."""
    assert config.privacy is not None
    planned = tuple((one.rate, one.steps) for one in plans(config, real).values())
    return _noise(planned, config.privacy.epsilon, config.privacy.delta)
