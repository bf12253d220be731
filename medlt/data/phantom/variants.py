"""Variants of a cohort's tail images whose truth is known: the bounds of what synthetic images could give.

| kind | image |
|---|---|
| fresh | a new patient with the finding: the bound of any generator |
| same_lesion | the lesion of a train image, drawn in another train patient: fusion without a fault |
| new_lesion | a lesion that no train image has, drawn in a train patient |

They are drawn as the cohort is, so they carry no mark of a generator. Each is counted against one positive train image,
as synthetic images are.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from medlt.data.phantom.cohort import COMMON_TO_RARE, NO_FINDING, cohort
from medlt.data.phantom.render import FINDINGS, Lesions, film, lesion
from medlt.data.squares import square
from medlt.rng import numpy_generator, seed_of
from medlt.types import InputError

Kind = Literal["fresh", "same_lesion", "new_lesion"]
Row = Mapping[Hashable, Any]
IMBALANCE, MOST, IMAGES_A_PATIENT = 3.0, 0.3, 1.7
"""Of the cohort that new patients come from: the rarest finding has a prevalence of 0.1; about 1.8 images a patient."""


@dataclass(frozen=True)
class Drawing:
    """One image: its row, the seed of its patient, and the lesions that look as in another row."""

    row: Row
    seed: int
    lesions: Lesions

    def draw(self, size: int, side: int) -> np.ndarray:
        """Return the image, uint8 [side,side], of a film with `size` pixels a side."""
        shown = square(film(self.row, self.seed, size, self.lesions).image, side)  # type: ignore[arg-type]
        return np.asarray(np.round(shown * 255), np.uint8)


def variants(
    kind: Kind, train: pd.DataFrame, tail: Sequence[str], count: int, seed: int
) -> tuple[pd.DataFrame, dict[str, Drawing]]:
    """Return a table of `count` variants of each positive of each tail finding, and what to draw, by uid.

    train: the train rows of the cohort with this seed, index uid, with patient_id, view, sex, age and all findings. The
    table has finding, slot, tail_parent (the positive), and a column of each finding and No_Finding. Raises InputError
    if a tail finding has no positive, or no patient for a variant.
    """
    positives = {name: [str(uid) for uid in train.index[train[name] == 1]] for name in tail}
    if lost := [name for name, uids in positives.items() if not uids]:
        raise InputError(f"phantom: {lost[0]} has no positive train row; raise patients, or lower imbalance")
    rows = _rows(train)
    turns = {name: [uid for _ in range(count) for uid in uids] for name, uids in positives.items()}
    made = {name: list(_make(kind, name, uids, rows, tail, seed)) for name, uids in turns.items()}
    drawn, table = {}, []
    for name, parents in turns.items():
        for slot, (parent, one) in enumerate(zip(parents, made[name], strict=True)):
            uid = f"{kind}-{name}-{slot:05d}"
            drawn[uid] = one
            labels = {finding: float(one.row[finding]) for finding in (*FINDINGS, NO_FINDING)}
            table.append({"uid": uid, "finding": name, "slot": slot, "tail_parent": parent} | labels)
    return pd.DataFrame(table).set_index("uid"), drawn


def _rows(table: pd.DataFrame) -> dict[str, Row]:
    return {str(row["uid"]): row for row in table.rename_axis("uid").reset_index().to_dict("records")}


def _make(
    kind: Kind, finding: str, parents: Sequence[str], rows: Mapping[str, Row], tail: Sequence[str], seed: int
) -> Iterator[Drawing]:
    """Yield a variant for each parent."""
    other = seed_of(seed, "variants") % 2**31
    if kind == "fresh":
        yield from (Drawing(row, other, {}) for row in _new_patients(finding, len(parents), other))
        return
    heads = _Heads(rows, tail, numpy_generator(seed, "variants", kind, finding))
    for number, parent in enumerate(parents):
        tail_row = rows[parent]
        head = dict(heads.take(tail_row)) | {finding: 1.0, NO_FINDING: 0.0}
        new: Row = {"uid": f"variant-{number}", "patient_id": f"variant-{number}"}
        key = lesion(tail_row, finding, seed) if kind == "same_lesion" else lesion(new, finding, other)  # type: ignore[arg-type]
        yield Drawing(head, seed, {finding: key})


def _new_patients(finding: str, count: int, seed: int) -> list[Row]:
    """Return rows of other patients that have the finding, one a patient."""
    patients = round(count / (MOST / IMBALANCE) / IMAGES_A_PATIENT) + 200
    order = [name for name in COMMON_TO_RARE if name != finding] + [finding]
    table = cohort(2 * patients, seed, IMBALANCE, order=order, shares=(0.98, 0.01, 0.01))
    positive = table[table[finding] == 1].groupby("patient_id", sort=False).head(1)
    chosen = numpy_generator(seed, "fresh", finding).permutation(len(positive))[:count]
    if len(chosen) < count:
        raise InputError(f"phantom: {count} new patients with {finding} are too many; draw fewer a positive")
    return [dict(row) for row in positive.iloc[chosen].to_dict("records")]


class _Heads:
    """Patients without a tail finding, each used once before any twice."""

    def __init__(self, rows: Mapping[str, Row], tail: Sequence[str], rng: np.random.Generator) -> None:
        free = [row for row in rows.values() if all(row[name] == 0 for name in tail)]
        self._queue: list[Row] = [free[i] for i in rng.permutation(len(free))]

    def take(self, tail_row: Row) -> Row:
        """Return a row of the same view and another patient. Raises InputError if there is none."""
        for at, row in enumerate(self._queue):
            if row["view"] == tail_row["view"] and row["patient_id"] != tail_row["patient_id"]:
                self._queue.append(self._queue.pop(at))
                return row
        raise InputError(f"phantom: no {tail_row['view']} image without a tail finding; raise patients")
