"""Sources of synthetic images, as the arms and the label checks of a comparison need them.

The verifiers of a source are cross-fitted classifiers that checked its images. The verifier of an image's fold was
trained on none of its parents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from torch import Tensor

from medlt.checks.folds import CrossFitClassifiers
from medlt.evaluation.agreement import mask_unobserved
from medlt.types import InputError

KEPT = ("finding", "slot", "verifier")
"""Columns of kept images that every arm needs; `verifier` is the verifier's probability of the finding."""


@dataclass(frozen=True)
class Verifiers:
    """The verifiers that selected a source's images.

    cross_fit: the verifiers, the fold of every train row, and its score by the verifier of its fold; labels: uid x
    finding of these train rows, 1 / 0 / NaN; size: side of the verifiers' input images, px.
    """

    cross_fit: CrossFitClassifiers
    labels: pd.DataFrame
    size: int

    def mask_unobserved(self, scores: pd.DataFrame, verifier: pd.Series) -> pd.DataFrame:
        """Return scores, NaN where the verifier (uid -> its number) had no positives or no negatives of the finding."""
        return mask_unobserved(scores, verifier, self.labels, self.cross_fit.fold)

    def held_out(self) -> pd.DataFrame:
        """Return probabilities [uid, finding] of the train rows, each by the verifier that was trained without it."""
        return self.mask_unobserved(self.cross_fit.held_out, self.cross_fit.fold)


@dataclass(frozen=True)
class SourceImages:
    """The kept images of one run.

    kept: index uid; the columns KEPT, the real row of its control as `tail_parent` or `label_source`, and with
    `verifiers` also `fold`, the number of its verifier. labels: uid x finding in [0,1] or NaN, at least of the kept
    images; images(size, uids) -> uint8 [n,1,size,size]. Label checks also need checks: the run's table of check results
    (check, uid, passed); planned: number of planned images; guiding: digests of the networks that guided the images.
    through_codec(size, uids): real images through the codec that made the source, as `images`; None without one that
    may be used. real_pixels: no image went through a codec.
    Raises InputError if a column is missing.
    """

    name: str
    kept: pd.DataFrame
    labels: pd.DataFrame
    images: Callable[[int, Sequence[str]], Tensor]
    verifiers: Verifiers | None = None
    checks: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["check", "uid", "passed"]))
    planned: int = 0
    guiding: tuple[str, ...] = ()
    through_codec: Callable[[int, Sequence[str]], Tensor] | None = None
    real_pixels: bool = False

    def __post_init__(self) -> None:
        wanted = (*KEPT, *(("fold",) if self.verifiers is not None else ()))
        if not self.empty and (lost := [name for name in wanted if name not in self.kept]):
            raise InputError(f"source {self.name}: its images have no column {lost[0]!r}; use the rows of a run")
        if not self.empty and not {"tail_parent", "label_source"} & set(self.kept.columns):
            raise InputError(f"source {self.name}: no column tail_parent or label_source, so no control can be made")

    @property
    def empty(self) -> bool:
        """Return whether no image was kept."""
        return not len(self.kept)

    @property
    def findings(self) -> list[str]:
        """Return the findings of its labels, in order."""
        return [str(name) for name in self.labels.columns]

    def require_verifiers(self) -> Verifiers:
        """Return its verifiers. Raises InputError if it has none."""
        if self.verifiers is None:
            raise InputError(f"source {self.name} has no verifiers; use labels soft or hard")
        return self.verifiers

    def predict(self, classifiers: CrossFitClassifiers, size: int, uids: Sequence[str]) -> pd.DataFrame:
        """Return probabilities [uid, finding] of kept images, each by the classifier of its fold; size: input size."""
        parts = [pd.DataFrame(np.zeros((0, len(self.findings))), columns=self.findings)]
        for k, rows in self.kept.loc[list(uids)].groupby("fold"):
            scores = classifiers.verifiers[int(str(k))](self.images(size, list(rows.index))).cpu().numpy()
            parts.append(pd.DataFrame(scores, index=rows.index, columns=self.findings))
        return pd.concat(parts[1:] or parts).loc[list(uids)]
