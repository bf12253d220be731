"""The judges of a run: classifiers of real train images, each asked about patients it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medlt import config as configs
from medlt.chance import seed_of
from medlt.checks.consistency import Crossfit, crossfit, folds
from medlt.classify.private import private_classifier
from medlt.classify.train import Classifier, fit
from medlt.privacy.preflight import prepare
from medlt.runs import Run
from pipelines import guarding
from pipelines.stages import Collection, Progress

PRIVATE = ("network", "steps", "batch", "learning_rate", "weight_decay")
"""Settings that hold for a private judge too; class weights and early stops read all patients at once."""


def classifier_options(config: configs.RunConfig) -> dict[str, Any]:
    """The settings all classifiers of a run share."""
    return config.classifier.model_dump(exclude={"size"})


def judges(run: Run, real: Collection, progress: Progress, *, plain: bool = False) -> Crossfit:
    """Cross-fitted classifiers on real train images: judge k never saw the patients of fold k.

    Trained privately in a private run, unless `plain`: such may measure a run, and must not touch its images.
    """
    rows, config = real.train.rows, run.config
    fold = folds(rows["patient_id"], rows[list(real.train.findings)], config.checks.folds, config.seed)
    train, val = (real.training_set(split, config.classifier.size) for split in ("train", "val"))
    with run.stage("judges") as folder:
        own = None if plain else guarding.fit(run, real, progress)

        def judge(uids: Sequence[str], k: int) -> Classifier:
            seed, options = seed_of(config.seed, "judge", k), classifier_options(config)
            if own is not None:
                whose = list(rows.loc[list(uids), "patient_id"].astype(str))
                chosen = {name: options[name] for name in PRIVATE} | {"seed": seed}
                return private_classifier(train.take(uids), whose, folder=folder, private=own, prepare=prepare,
                                          name=f"judge {k}", **chosen)  # fmt: skip
            return fit(train.take(uids), val, folder=folder, name=f"judge {k}", progress=progress, seed=seed, **options)

        return crossfit(fold, lambda uids: train.take(uids).images, judge, real.train.findings)
