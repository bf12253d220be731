"""Which rows a private step sees: every unit by itself is drawn or not (Poisson sampling), of a drawn one a few rows.

Only so does the accountants' amplification by sampling hold; batches of fixed size cut from a shuffled order have
none that is proved as well. A step may see no unit at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medlt.privacy.dpsgd.randomness import Randomness
from medlt.types import InputError


class Units:
    """Rows by whose they are.

    units: one name a row; rate: the chance of each unit to be in a step; images_per_unit: rows of a drawn unit at
    most, chosen anew each time; multiplicity: how often each of them comes, for other timesteps and noises.

    Raises InputError for a rate that is none, and for no rows.
    """

    def __init__(self, units: Sequence[str], rate: float, images_per_unit: int = 1, multiplicity: int = 1) -> None:
        if not len(units):
            raise InputError("private training: there is no row to train on; give data")
        if images_per_unit < 1 or multiplicity < 1:
            raise InputError("private training: images of a unit and multiplicity must be 1 or more")
        self.rate, self.most, self.multiplicity = rate, images_per_unit, multiplicity
        numbers: dict[str, int] = {}
        owner = np.array([numbers.setdefault(unit, len(numbers)) for unit in units])
        order = np.argsort(owner, kind="stable")
        self.rows = np.split(order, np.cumsum(np.bincount(owner))[:-1])
        if not 0 < rate <= 1:
            raise InputError(
                f"private training: {rate * len(self):g} units a step are {rate:.3g} of {len(self)}; give a batch of "
                "at least 1 and at most the number of units"
            )

    def __len__(self) -> int:
        """Return how many units there are."""
        return len(self.rows)

    def draw(self, randomness: Randomness) -> tuple[np.ndarray, np.ndarray]:
        """Return rows int64 [B] of one step and groups int64 [B], 0, 1, ... a drawn unit, those of a unit beside each
        other.

        B may be 0.
        """
        drawn = np.flatnonzero(randomness.uniform(len(self)) < self.rate)
        chosen = [np.repeat(self._some(self.rows[unit], randomness), self.multiplicity) for unit in drawn]
        none = [np.zeros(0, np.int64)]
        rows = np.concatenate(none + chosen).astype(np.int64)
        return rows, np.repeat(np.arange(len(chosen)), [len(one) for one in chosen]).astype(np.int64)

    def _some(self, rows: np.ndarray, randomness: Randomness) -> np.ndarray:
        """Return at most `images_per_unit` of them, each set of that many equally likely."""
        if len(rows) <= self.most:
            return rows
        return np.sort(rows[np.argsort(randomness.uniform(len(rows)))[: self.most]])


def chunks(groups: np.ndarray, most: int) -> list[slice]:
    """Return pieces of whole groups of at most `most` rows; a group that is larger is a piece by itself."""
    ends = np.flatnonzero(np.append(np.diff(groups) != 0, True)) + 1 if len(groups) else np.zeros(0, int)
    pieces: list[slice] = []
    start = last = 0
    for end in ends.tolist():
        if end - start > most and last > start:
            pieces.append(slice(start, last))
            start = last
        last = end
    return [*pieces, slice(start, last)] if last > start else pieces
