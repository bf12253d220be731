"""Where the synthetic images of a comparison come from, as its arms and its label checks ask for them.

The judges of a source verified its images: they are cross-fitted, and an image is judged by the one of its fold, which
was trained on none of its parents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from torch import Tensor

from medlt.checks.folds import Crossfit
from medlt.evaluation.agreement import sighted
from medlt.types import InputError

KEPT = ("finding", "slot", "judge")
"""Columns of kept images that every arm needs: for which finding, as which one, and how sure its judge is."""


@dataclass(frozen=True)
class Verifiers:
    """The judges that chose a source's images.

    crossfit: the judges, the fold of every train row, and what was said of it by the judge that did not see it; labels:
    uid x finding of these train rows, 1 / 0 / NaN; size: side of the images they take, px.
    """

    crossfit: Crossfit
    labels: pd.DataFrame
    size: int

    def sighted(self, scores: pd.DataFrame, judge: pd.Series) -> pd.DataFrame:
        """Return scores, NaN where the judge (uid -> its number) never saw the finding both present and absent."""
        return sighted(scores, judge, self.labels, self.crossfit.fold)

    def held_out(self) -> pd.DataFrame:
        """Return probabilities [uid, finding] of the train rows, each by the judge that did not see it."""
        return self.sighted(self.crossfit.held_out, self.crossfit.fold)


@dataclass(frozen=True)
class SourceImages:
    """The kept images of one run.

    kept: index uid; the columns KEPT, the real row each is held against as `parent_a` or `like`, and `fold`, the number
    of its verifying judge, where there are `verifiers`. labels: uid x finding in [0,1] or NaN, of at least the kept
    images; images(size, uids) -> uint8 [n,1,size,size]. For label checks also: `checks`, the run's table of results
    (check, uid, passed), `planned`, how many images it planned, and `guiding`, the digests of networks that guided
    them. Raises InputError for a column that is missing.
    """

    name: str
    kept: pd.DataFrame
    labels: pd.DataFrame
    images: Callable[[int, Sequence[str]], Tensor]
    verifiers: Verifiers | None = None
    checks: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["check", "uid", "passed"]))
    planned: int = 0
    guiding: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wanted = (*KEPT, *(("fold",) if self.verifiers is not None else ()))
        if not self.empty and (lost := [name for name in wanted if name not in self.kept]):
            raise InputError(f"source {self.name}: its images have no column {lost[0]!r}; give those of a run's plan")
        if not self.empty and not {"parent_a", "like"} & set(self.kept.columns):
            raise InputError(f"source {self.name}: no column parent_a or like, so no control can be made")

    @property
    def empty(self) -> bool:
        """Whether no image was kept."""
        return not len(self.kept)

    @property
    def findings(self) -> list[str]:
        """The findings of its labels, in order."""
        return [str(name) for name in self.labels.columns]

    def verified(self) -> Verifiers:
        """Return its judges. Raises InputError where it has none."""
        if self.verifiers is None:
            raise InputError(f"source {self.name} has no judges that could label or check its images; use soft or hard")
        return self.verifiers

    def judged(self, judges: Crossfit, size: int, uids: Sequence[str]) -> pd.DataFrame:
        """Return probabilities [uid, finding] of kept images, each by the judge of its fold; size: of the judges'."""
        parts = [pd.DataFrame(np.zeros((0, len(self.findings))), columns=self.findings)]
        for k, rows in self.kept.loc[list(uids)].groupby("fold"):
            scores = judges.judges[int(str(k))](self.images(size, list(rows.index))).cpu().numpy()
            parts.append(pd.DataFrame(scores, index=rows.index, columns=self.findings))
        return pd.concat(parts[1:] or parts).loc[list(uids)]
