"""The arms of the comparison: one network, one number of steps, one schedule; only what an arm is about differs.

The control is the one that no radiograph study has beaten: each synthetic image replaced by the real tail image it was
made from, or whose label vector it was told, with that image's real labels. Same count, same share of every batch, same
loss weight, same use. Notation: S seeds, N test images, V validation images, K findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import cycle
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medlt.classify.sets import TrainingSet
from medlt.classify.train import Settings
from medlt.files import digest
from medlt.metrics.decisions import decided, one_of, thresholds
from medlt.metrics.ranking import macro, per_finding
from medlt.types import InputError

CONTROL = "duplicated"
REAL = "real"
Role = Literal["real", "reweighted", "control", "synthetic"]


@dataclass(frozen=True)
class Arm:
    """One way of training. `settings` are those of `medlt.classify.train.fit`; `added` are rows beside the real ones;
    `control` names the arm it is held against; `about` is what tables say of it."""

    name: str
    role: Role
    settings: Mapping[str, Any]
    added: TrainingSet | None = None
    control: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether it is about added rows and there are none: no image of its source was kept."""
        return self.role in ("control", "synthetic") and self.added is None

    def digest(self) -> str:
        """Return 16 hex digits that name what is trained: settings, those left out too, and added rows."""
        return digest(asdict(Settings(**self.settings)), "" if self.added is None else self.added.digest())


@dataclass(frozen=True)
class HeldOutRows:
    """What all arms share: train rows, validation rows that choose, test rows that decide; and what is known of them.

    groups: name (head, medium, tail) -> findings; `tail` is what the verdict is about. patients: whose each test row
    is; attributes: view, sex, age, source of the test rows, as far as they are known, in their order. Raises InputError
    where these do not fit the rows.
    """

    train: TrainingSet
    val: TrainingSet
    test: TrainingSet
    findings: tuple[str, ...]
    groups: Mapping[str, Sequence[str]]
    patients: Sequence[str]
    attributes: pd.DataFrame

    def __post_init__(self) -> None:
        if {len(self.patients), len(self.attributes)} != {len(self.test)}:
            told = f"{len(self.patients)} patients, {len(self.attributes)} rows of attributes, {len(self.test)} images"
            raise InputError(f"the test rows do not fit together: {told}; give one of each an image")
        for name, rows in (("train", self.train), ("validation", self.val), ("test", self.test)):
            if rows.labels.shape[1] != len(self.findings):
                told = f"{rows.labels.shape[1]} labels, there are {len(self.findings)} findings"
                raise InputError(f"{name} rows have {told}; load all rows with the same findings")
        if "tail" not in self.groups:
            raise InputError(f"no group is named tail, only {', '.join(self.groups)}; the verdict is about the tail")

    @property
    def tail(self) -> tuple[str, ...]:
        """The findings the verdict is about."""
        return tuple(self.groups["tail"])

    def positives(self) -> dict[str, int]:
        """Return how many train rows are known to have each finding."""
        return dict(zip(self.findings, (self.train.labels == 1).sum(0).tolist(), strict=True))

    def digest(self) -> str:
        """Return 16 hex digits that name pixels and labels of all rows, findings and groups."""
        groups = {name: list(members) for name, members in self.groups.items()}
        parts = (part.digest() for part in (self.train, self.val, self.test))
        return digest(*parts, list(self.findings), groups)


@dataclass(frozen=True)
class Arms:
    """Probabilities of every arm on the test rows, scores[arm] [S,N,K], and on the validation rows, val[arm] [S,V,K].

    `single`: one finding a row, so the most probable one is decided on; else a finding is decided on where its
    probability reaches the threshold of best F1 on validation, seed by seed.
    """

    scores: Mapping[str, np.ndarray]
    truth: np.ndarray
    patients: Sequence[str]
    findings: tuple[str, ...]
    val: Mapping[str, np.ndarray] = field(default_factory=dict)
    val_truth: np.ndarray | None = None
    single: bool = False

    @property
    def seeds(self) -> int:
        return len(next(iter(self.scores.values())))

    @cached_property
    def _decided(self) -> dict[str, np.ndarray]:
        return {}

    def decided(self, arm: str) -> NDArray[np.floating] | None:
        """[S,N,K]: 1 where the finding is decided to be there, 0 where not, NaN without a threshold; None without
        validation rows to choose thresholds by."""
        if arm not in self._decided:
            if self.single:
                self._decided[arm] = one_of(self.scores[arm])
            elif self.val_truth is None:
                return None
            else:
                cut = np.stack([thresholds(self.val_truth, scores) for scores in self.val[arm]])
                self._decided[arm] = decided(self.scores[arm], cut)
        return self._decided[arm]

    def on_validation(self, arm: str, members: Sequence[str]) -> NDArray[np.floating]:
        """[S]: macro AP of `members` on the validation rows, NaN where none of them has a positive there."""
        if self.val_truth is None:
            raise InputError("no validation rows, so no arm can be chosen; give rows split val")
        tables = [per_finding(self.val_truth, scores, self.findings) for scores in self.val[arm]]
        return macro(np.array([table.loc[list(members), "AP"].to_numpy() for table in tables]))


def duplicated(kept: pd.DataFrame, real: TrainingSet, weight: float) -> TrainingSet:
    """The count-matched control: for every kept synthetic row its real tail image and labels, again.

    kept: plan rows of the synthetic images, with `parent_a`, or with `like` where a method begins with noise. Raises
    KeyError for one that is no train row.
    """
    at = {uid: i for i, uid in enumerate(real.uids)}
    source = kept["parent_a" if "parent_a" in kept else "like"]
    rows = np.array([at[uid] for uid in source], dtype=np.int64)
    uids = tuple(f"{real.uids[i]}-copy-{n}" for n, i in enumerate(rows))
    weights = np.full(len(rows), weight, dtype=np.float32)
    return TrainingSet(real.images[rows], real.labels[rows], weights, uids)


def lent(rows: pd.DataFrame, labels: pd.DataFrame) -> pd.Series:
    """uid -> a real row that has its finding, each in turn: the control of images that were made from no real row.

    rows: synthetic images with `finding`; labels: uid x finding of real train rows. Raises InputError for a finding
    without a positive.
    """
    lenders, likes = {}, []
    for finding in rows["finding"]:
        if finding not in lenders:
            found = sorted(map(str, labels.index[labels[finding] == 1]))
            if not found:
                raise InputError(f"{finding} has no positive train row, so no control can be made; leave it out")
            lenders[finding] = cycle(found)
        likes.append(next(lenders[finding]))
    return pd.Series(likes, index=rows.index, name="like", dtype=object)


def dosed(
    kept: pd.DataFrame, positives: Mapping[str, int], dose: float | None = None, best: float = 1.0
) -> tuple[list[str], int]:
    """Uids of the images an arm is given, and how many its dose asks for.

    kept: index uid; columns finding, slot, and judge, the probability the verifying judge gave. Of each finding first
    the `best` share by judge (ties: the earlier slot), then the first round(dose * train positives) in order of slots;
    `dose` None takes all. So a larger dose holds every image of a smaller one, and fewer than wanted is possible.
    """
    chosen: list[str] = []
    wanted = 0
    for finding, part in kept.groupby("finding", sort=False):
        part = part.sort_values("slot", kind="stable")
        sure = part["judge"].rank(method="first", ascending=False) <= np.ceil(best * len(part))
        part = part[sure] if best < 1 else part
        n = len(part) if dose is None else round(dose * positives[str(finding)])
        wanted += n
        chosen += [str(uid) for uid in part.index[:n]]
    return chosen, wanted


def relabelled(labels: pd.DataFrame, kind: str, judged: pd.DataFrame | None = None) -> pd.DataFrame:
    """Labels of synthetic images as an arm reads them: soft as they are, hard cut at one half, or as judges say.

    judged: uid x finding, probabilities by judges. NaN stays unknown in soft and hard labels.
    """
    if kind == "soft":
        return labels
    if kind == "hard":
        return (labels >= 0.5).astype(np.float32).where(labels.notna())
    if judged is None:
        raise InputError("labels: judged, but the source has no judges; use soft or hard")
    return judged.loc[labels.index, labels.columns]
