"""Chooses the images of a review, and the order in which a reader sees them.

Images come in pairs, a real and a synthetic one. Both have the target finding of the synthetic one, and the same view.
The reader is to say of one finding whether it is present: in every other pair the target itself, else a finding that is
absent in both. So neither the finding that is named, nor its label, nor the number of normal images depends on the
kind. The images depend on the seed, and their order on the seed and the reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import pandas as pd

from medlt.names import means_no_finding
from medlt.rng import numpy_generator
from medlt.types import InputError

KINDS = ("real", "synthetic")


@dataclass(frozen=True)
class PairPool:
    """Images of one kind in a seeded order.

    uids, patients, views: [N]; labels: 1, 0 or NaN [N,K]; targets: bool [N,K], whether an image may stand for a
    finding; used: bool [N], which changes.
    """

    uids: np.ndarray
    patients: np.ndarray
    views: np.ndarray
    labels: np.ndarray
    targets: np.ndarray
    used: np.ndarray

    @classmethod
    def of(cls, rows: pd.DataFrame, findings: Sequence[str], seed: int, kind: str) -> PairPool:
        """Return a pool of manifest rows. A label of 0.5 or more counts as 1.

        The target is the column `finding` where it names one, else every positive finding.
        """
        rows = rows.loc[sorted(rows.index)]
        rows = rows.iloc[numpy_generator(seed, "review", kind).permutation(len(rows))]
        values = rows[list(findings)].to_numpy(np.float64)
        labels = np.where(np.isnan(values), np.nan, values >= 0.5)
        views = rows["view"].fillna("").astype(str) if "view" in rows else pd.Series("", rows.index)
        targets = labels == 1
        if "finding" in rows:
            named = rows["finding"].to_numpy()[:, None] == np.array(findings, object)[None]
            targets = np.where(named.any(1, keepdims=True), named & targets, targets)
        uids, patients = rows.index.to_numpy().astype(str), rows["patient_id"].to_numpy().astype(str)
        return cls(uids, patients, views.to_numpy(), labels, targets, np.zeros(len(rows), bool))

    def free(self, target: int, finding: int, label: float, view: str | None) -> np.ndarray:
        """Return the numbers of unused images of a target with this label, in order; None: of any view."""
        fits = self.targets[:, target] & (self.labels[:, finding] == label) & ~self.used
        return np.flatnonzero(fits if view is None else fits & (self.views == view))

    def use(self, patient: str) -> None:
        """Mark all images of a patient as used."""
        self.used[self.patients == patient] = True


def choose(
    real: pd.DataFrame, synthetic: pd.DataFrame, findings: Sequence[str], images: int, seed: int
) -> pd.DataFrame:
    """Return the reading list: index uid, columns finding, label (1.0 or 0.0) and kind; up to `images` of each kind.

    real, synthetic: manifest rows. Targets take turns, the scarcest first; at most one image of a patient is used, of
    both kinds together.
    Raises InputError if there is no pair at all.
    """
    pools = [PairPool.of(rows, findings, seed, kind) for rows, kind in zip((real, synthetic), KINDS, strict=True)]
    views = all((pool.views != "").any() for pool in pools)
    chosen: list[tuple[str, str, float, str]] = []
    idle, turns = 0, _turns(pools, findings)
    while len(chosen) < 2 * images and idle <= len(findings):
        before = len(chosen)
        for target, finding, label in next(turns):
            pair = _pair(pools, target, finding, label, views) if len(chosen) < 2 * images else None
            if pair is not None:
                chosen += [(uid, findings[finding], label, kind) for uid, kind in zip(pair, KINDS, strict=True)]
        idle = 0 if len(chosen) > before else idle + 1
    if not chosen:
        raise InputError(
            "no real image has a finding and view of the synthetic ones, so there is nothing to compare them with; "
            "give --split val,test,train, or label more validation and test images"
        )
    return pd.DataFrame(chosen, columns=["uid", "finding", "label", "kind"]).set_index("uid")


def by_anatomy(synthetic: pd.DataFrame, patients: pd.Series) -> pd.DataFrame:
    """Return synthetic rows under the patient whose anatomy they show, if they have a head parent.

    patients: patient of each real uid. Two images of one patient look alike, which would show that they are synthetic.
    """
    if "head_parent" not in synthetic:
        return synthetic
    owners = synthetic["head_parent"].map(patients)
    return synthetic.assign(patient_id=owners.where(owners.notna(), synthetic["patient_id"]))


def order(uids: Sequence[str], seed: int, reader: str) -> list[str]:
    """Return these uids in the order of a reader, which depends on the seed and the reader's name alone."""
    names = sorted(uids)
    return [names[i] for i in numpy_generator(seed, "review", "order", reader).permutation(len(names))]


def _turns(pools: Sequence[PairPool], findings: Sequence[str]) -> Iterator[list[tuple[int, int, float]]]:
    """Yield rounds of (target, finding to be read, its label): every target present, then every target with another
    finding absent, a new one in each round.
    """
    named = [k for k, name in enumerate(findings) if not means_no_finding(name)]
    scarce = {k: min(int(pool.targets[:, k].sum()) for pool in pools) for k in named}
    targets = sorted((k for k in named if scarce[k]), key=lambda k: (scarce[k], k))
    others = targets if len(targets) > 1 else named
    for turn in count():
        absent = [(k, [f for f in others if f != k]) for k in targets]
        without = [(k, rest[turn % len(rest)], 0.0) for k, rest in absent if rest]
        yield [(k, k, 1.0) for k in targets] + without


def _pair(pools: Sequence[PairPool], target: int, finding: int, label: float, views: bool) -> tuple[str, str] | None:
    """Return the uids of a real and a synthetic image that fit, now used; None without such a pair."""
    real, synthetic = pools
    for made in synthetic.free(target, finding, label, None):
        view = str(synthetic.views[made]) if views else None
        if len(fitting := real.free(target, finding, label, view)):
            for pool in pools:
                pool.use(str(real.patients[fitting[0]]))
                pool.use(str(synthetic.patients[made]))
            return str(real.uids[fitting[0]]), str(synthetic.uids[made])
    return None
