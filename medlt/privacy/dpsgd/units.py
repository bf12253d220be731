"""Poisson sampling for private training: each unit is in a step with a fixed probability, independently of the others.

The accountants' amplification by sampling needs this. For batches of fixed size, cut from a shuffled order, no equally
strong amplification is proved. A step may contain no unit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medlt.privacy.dpsgd.randomness import Randomness
from medlt.types import InputError


class Units:
    """Rows grouped by privacy unit, from which steps are sampled.

    units: the name of the unit of each row; rate: probability that a unit is in a step, which depends on public
    numbers alone; max_images_per_patient: number
    of rows of a sampled unit, chosen again in each step; noise_multiplicity: how often each of these rows is used, with
    other timesteps and noise.

    Raises InputError for a rate outside (0, 1], and for no rows.
    """

    def __init__(
        self, units: Sequence[str], rate: float, max_images_per_patient: int = 1, noise_multiplicity: int = 1
    ) -> None:
        if not len(units):
            raise InputError("private training: there is no row to train on; give data")
        if max_images_per_patient < 1 or noise_multiplicity < 1:
            raise InputError(
                f"private training: max_images_per_patient {max_images_per_patient} and noise_multiplicity "
                f"{noise_multiplicity} must be 1 or more"
            )
        self.rate, self.most, self.noise_multiplicity = rate, max_images_per_patient, noise_multiplicity
        numbers: dict[str, int] = {}
        owner = np.array([numbers.setdefault(unit, len(numbers)) for unit in units])
        order = np.argsort(owner, kind="stable")
        self.rows = np.split(order, np.cumsum(np.bincount(owner))[:-1])
        if not 0 < rate <= 1:
            raise InputError(
                f"private training: a unit would be in a step with probability {rate:.3g}; give a batch_size of 1 or "
                "more, and at most the public number of units"
            )

    def __len__(self) -> int:
        """Return the number of units."""
        return len(self.rows)

    def draw(self, randomness: Randomness) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows int64 [B] of one step, and the number of the sampled unit of each, int64 [B], rising from 0.

        B may be 0.
        """
        drawn = np.flatnonzero(randomness.uniform(len(self)) < self.rate)
        chosen = [np.repeat(self._some(self.rows[unit], randomness), self.noise_multiplicity) for unit in drawn]
        none = [np.zeros(0, np.int64)]
        rows = np.concatenate(none + chosen).astype(np.int64)
        return rows, np.repeat(np.arange(len(chosen)), [len(one) for one in chosen]).astype(np.int64)

    def _some(self, rows: np.ndarray, randomness: Randomness) -> np.ndarray:
        """Return at most `max_images_per_patient` of these rows; each such set is equally likely."""
        if len(rows) <= self.most:
            return rows
        return np.sort(rows[np.argsort(randomness.uniform(len(rows)))[: self.most]])


def chunks(groups: np.ndarray, most: int) -> list[slice]:
    """Return slices of whole groups with at most `most` rows each; a larger group is a slice by itself."""
    ends = np.flatnonzero(np.append(np.diff(groups) != 0, True)) + 1 if len(groups) else np.zeros(0, int)
    pieces: list[slice] = []
    start = last = 0
    for end in ends.tolist():
        if end - start > most and last > start:
            pieces.append(slice(start, last))
            start = last
        last = end
    return [*pieces, slice(start, last)] if last > start else pieces
