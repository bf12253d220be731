"""Arms of a comparison: one network, one number of steps and one schedule; an arm changes one thing only.

The control of a synthetic arm is count-matched. It replaces each synthetic image by the real tail image that the image
was made from or took its label vector from, with the real labels. Count, share of every batch, loss weight and training
strategy are the same. Notation: S seeds, N test images, V validation images, K findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medlt.classify.sets import TrainingSet
from medlt.classify.train import ClassifierSettings
from medlt.files import digest
from medlt.metrics.decisions import decided, one_of, thresholds
from medlt.metrics.ranking import macro, per_finding
from medlt.rows import subset
from medlt.types import InputError

REAL = "real"
Role = Literal["real", "reweighted", "control", "synthetic"]


@dataclass(frozen=True)
class Arm:
    """One way of training.

    settings: of `medlt.classify.train.fit_classifier`; added: rows added to the real ones; control: name of the arm
    that it is compared with; about: its columns in arms.parquet; free: which of synthetic_fraction and synthetic_weight
    validation may choose.
    """

    name: str
    role: Role
    settings: Mapping[str, Any]
    added: TrainingSet | None = None
    control: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    free: frozenset[str] = frozenset()

    @property
    def empty(self) -> bool:
        """Return whether the arm needs added rows and has none, because no image of its source was kept."""
        return self.role in ("control", "synthetic") and self.added is None

    def digest(self) -> str:
        """Return 16 hex digits that identify the training: all settings, defaults included, and added rows."""
        return digest(ClassifierSettings(**self.settings).identity(), "" if self.added is None else self.added.digest())


@dataclass(frozen=True)
class ExperimentRows:
    """Real rows that all arms share: train, validation (selects the arm) and test (gives the verdict).

    groups: name (head, medium, tail) -> findings; the verdict is about `tail`. patients: patient of each test row;
    attributes: view, sex, age and source of the test rows where known, in the same order; simulated: whether the images
    are phantoms and the patients simulated; balanced: bool [N], test rows in a benchmark's balanced test list, None
    without such a list. Raises InputError if lengths do not match the rows.
    """

    train: TrainingSet
    val: TrainingSet
    test: TrainingSet
    findings: tuple[str, ...]
    groups: Mapping[str, Sequence[str]]
    patients: Sequence[str]
    attributes: pd.DataFrame
    simulated: bool = False
    balanced: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        marks = () if self.balanced is None else (len(self.balanced),)
        if {len(self.patients), len(self.attributes), *marks} != {len(self.test)}:
            counts = (
                f"{len(self.patients)} patients, {len(self.attributes)} rows of attributes, {len(self.test)} images"
            )
            raise InputError(f"test rows differ in number: {counts}; give one patient and one row an image")
        for name, rows in (("train", self.train), ("validation", self.val), ("test", self.test)):
            if rows.labels.shape[1] != len(self.findings):
                counts = f"{rows.labels.shape[1]} labels for {len(self.findings)} findings"
                raise InputError(f"{name} rows have {counts}; load all rows with the same findings")
        if "tail" not in self.groups:
            raise InputError(f"no group is named tail, only {', '.join(self.groups)}; the verdict is about the tail")

    @property
    def tail(self) -> tuple[str, ...]:
        """Return the findings that the verdict is about."""
        return tuple(self.groups["tail"])

    def positives(self) -> dict[str, int]:
        """Return the number of positive train rows of each finding."""
        return dict(zip(self.findings, (self.train.labels == 1).sum(0).tolist(), strict=True))

    def digest(self) -> str:
        """Return 16 hex digits that identify pixels and labels of all rows, findings and groups."""
        groups = {name: list(members) for name, members in self.groups.items()}
        parts = (part.digest() for part in (self.train, self.val, self.test))
        return digest(*parts, list(self.findings), groups)


@dataclass(frozen=True)
class ArmScores:
    """Probabilities of every arm on the test rows, scores[arm] [S,N,K], and on the validation rows, val[arm] [S,V,K].

    single: True for one finding a row; the most probable finding is then the decision. Otherwise a finding is decided
    present where its probability reaches the threshold of best F1 on validation, per seed. simulated: as in
    `ExperimentRows`. metric: the one whose mean over the tail gives the verdict.
    """

    scores: Mapping[str, np.ndarray]
    truth: np.ndarray
    patients: Sequence[str]
    findings: tuple[str, ...]
    val: Mapping[str, np.ndarray] = field(default_factory=dict)
    val_truth: np.ndarray | None = None
    single: bool = False
    simulated: bool = False
    metric: str = "AP"

    @property
    def seeds(self) -> int:
        """Return the number of training seeds."""
        return len(next(iter(self.scores.values())))

    @cached_property
    def _decisions(self) -> dict[str, np.ndarray]:
        return {}

    def decisions(self, arm: str) -> NDArray[np.floating] | None:
        """Return decisions [S,N,K]: 1 present, 0 absent, NaN without a threshold; None without validation rows."""
        if arm not in self._decisions:
            if self.single:
                self._decisions[arm] = one_of(self.scores[arm])
            elif self.val_truth is None:
                return None
            else:
                cut = np.stack([thresholds(self.val_truth, scores) for scores in self.val[arm]])
                self._decisions[arm] = decided(self.scores[arm], cut)
        return self._decisions[arm]

    def validation_ap(self, arm: str, members: Sequence[str]) -> NDArray[np.floating]:
        """Return macro AP [S] of `members` on the validation rows, NaN if none of them has a positive there."""
        if self.val_truth is None:
            raise InputError("no validation rows, so no arm can be selected; give some rows split val")
        tables = [per_finding(self.val_truth, scores, self.findings) for scores in self.val[arm]]
        return macro(np.array([table.loc[list(members), "AP"].to_numpy() for table in tables]))


def count_matched_control(kept: pd.DataFrame, real: TrainingSet, weight: float) -> TrainingSet:
    """Return the count-matched control: the real tail image and labels of every kept synthetic row.

    kept: plan rows of the synthetic images, with `tail_parent`, or with `label_source` for methods that start from
    noise. Raises KeyError if a parent is not a train row.
    """
    at = {uid: i for i, uid in enumerate(real.uids)}
    source = kept["tail_parent" if "tail_parent" in kept else "label_source"]
    rows = np.array([at[uid] for uid in source], dtype=np.int64)
    uids = tuple(f"{real.uids[i]}-copy-{n}" for n, i in enumerate(rows))
    weights = np.full(len(rows), weight, dtype=np.float32)
    return TrainingSet(subset(real.images, rows), real.labels[rows], weights, uids)


def match_real_rows(rows: pd.DataFrame, labels: pd.DataFrame) -> pd.Series:
    """Return uid -> a real positive of its finding, in turn: the control of images made from no real row.

    rows: synthetic images with `finding`; labels: uid x finding of real train rows. Raises InputError for a finding
    without a positive.
    """
    positives, sources = {}, []
    for finding in rows["finding"]:
        if finding not in positives:
            uids = sorted(map(str, labels.index[labels[finding] == 1]))
            if not uids:
                raise InputError(f"{finding} has no positive train row, so no control can be made; leave it out")
            positives[finding] = cycle(uids)
        sources.append(next(positives[finding]))
    return pd.Series(sources, index=rows.index, name="label_source", dtype=object)


def select_by_ratio(
    kept: pd.DataFrame, positives: Mapping[str, int], synthetic_ratio: float | None = None, keep_top: float = 1.0
) -> tuple[list[str], int]:
    """Return the uids of the images of an arm, and how many images its synthetic ratio requires.

    kept: index uid; columns finding, slot and verifier (the verifier's probability of the finding). Of each finding the
    function takes the `keep_top` share by `verifier` (ties: the earlier slot), and of these the first
    round(synthetic_ratio * train positives) by slot; None takes all. A larger ratio contains every image of a smaller
    one. Fewer images than wanted are possible.
    """
    chosen: list[str] = []
    wanted = 0
    for finding, part in kept.groupby("finding", sort=False):
        part = part.sort_values("slot", kind="stable")
        sure = part["verifier"].rank(method="first", ascending=False) <= np.ceil(keep_top * len(part))
        part = part[sure] if keep_top < 1 else part
        n = len(part) if synthetic_ratio is None else round(synthetic_ratio * positives[str(finding)])
        wanted += n
        chosen += [str(uid) for uid in part.index[:n]]
    return chosen, wanted


def relabelled(labels: pd.DataFrame, kind: str, verified: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return the labels of synthetic images as an arm uses them: soft (unchanged), hard (cut at 0.5) or verifier.

    verified: uid x finding, probabilities by the verifiers. NaN stays unknown in soft and hard labels.
    """
    if kind == "soft":
        return labels
    if kind == "hard":
        return (labels >= 0.5).astype(np.float32).where(labels.notna())
    if verified is None:
        raise InputError("labels: verifier, but the source has no verifiers; use soft or hard")
    return verified.loc[labels.index, labels.columns]
