"""Fill the long tail in the manners of imbalanced-learn: parameters, `fit_resample`, attributes with an underscore."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.base import BaseEstimator

from medlt.api.calls import augment
from medlt.api.collection import Collection, as_collection
from medlt.api.run import Run
from medlt.types import Progress


class LongTailAugmenter(BaseEstimator):  # type: ignore[misc]
    """Enlarges a collection by synthetic images of its rare findings, as imbalanced-learn's samplers enlarge tables.

    `get_params`, `set_params` and `sklearn.base.clone` work as for any estimator. The work is done by `medlt.augment`,
    and the same call continues an interrupted run.

    Parameters:
        method: fusion (default), edit, noise, diffult, minority, longtail, or one of a plug-in.
        sampling_strategy: `targets` of `medlt.augment`: train positives wanted for each tail finding, or the keys of
            the section `targets`; default by the collection.
        random_state: `seed` of `medlt.augment`: an integer that decides every image, split and batch.
        output_dir: the run folder; default runs/METHOD-DIGEST.
        settings: further keys of a config, nested or dotted.
        progress: True shows bars or lines on stderr.

    Attributes:
        run_: the finished `Run`.
        findings_: the findings, in the order of every label vector.
        tail_: the tail findings, as `Collection.summary` groups them for the run's targets.
        sampling_strategy_: finding -> synthetic images that were added for it.

    Examples:
        >>> augmenter = medlt.LongTailAugmenter(method="fusion", sampling_strategy=200)
        >>> enlarged = augmenter.fit_resample(collection)
        >>> counts = augmenter.sampling_strategy_
    """

    def __init__(
        self,
        method: str | None = None,
        sampling_strategy: int | Mapping[str, Any] | None = None,
        random_state: int = 0,
        output_dir: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        progress: bool | Progress = True,
    ) -> None:
        self.method = method
        self.sampling_strategy = sampling_strategy
        self.random_state = random_state
        self.output_dir = output_dir
        self.settings = settings
        self.progress = progress

    def fit_resample(self, collection: Collection | str | Path) -> Collection:
        """Return a collection with all rows of `collection`, and the synthetic rows in its train split.

        Real images that cannot be read are left out. Raises InputError as `medlt.augment`.
        """
        self.fit(collection)
        return Collection.from_manifest(self.run_.folder / "manifest.parquet")

    def fit(self, collection: Collection | str | Path) -> LongTailAugmenter:
        """Make the synthetic images and set the attributes; returns self."""
        rows = as_collection(collection)
        options = dict(self.settings or {})
        self.run_: Run = augment(
            rows,
            self.method,
            self.sampling_strategy,
            self.random_state,
            output_dir=self.output_dir,
            progress=self.progress,
            **options,
        )
        targets = self.run_.config.targets
        self.findings_ = self.run_.findings
        self.tail_ = rows.summary(targets.tail_below, targets.head_above).tail
        self.sampling_strategy_ = _counts(self.run_.images().rows)
        return self


def _counts(made: pd.DataFrame) -> dict[str, int]:
    counts = made["finding"].value_counts() if "finding" in made else {}
    return {str(name): int(count) for name, count in counts.items()}
