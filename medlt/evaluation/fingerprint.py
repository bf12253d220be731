"""The fingerprint of a codec: whether the classifiers of an arm call an image tail-positive because it was decoded.

If every tail-positive image of an arm went through a codec and no other did, a classifier can learn the codec instead
of the finding. So each arm's classifiers rate validation images without a tail finding twice: raw, and encoded and
decoded again. The AUROC of coded against raw images is 0.5 for classifiers that do not see the codec. Above `LIMIT` an
arm cannot get the verdict helps. Notation: C images, S seeds, K findings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from torch import Tensor

from medlt.evaluation.arms import Arm, ExperimentRows
from medlt.metrics.bootstrap import measured
from medlt.metrics.ranking import macro
from medlt.rng import numpy_generator
from medlt.types import InputError

LIMIT = 0.7
MOST = 400
"""Validation images that are coded, at most."""
COLUMNS = ("arm", "finding", "auroc", "low", "high", "images")
ENDS = (0.025, 0.975)
TAIL = "tail"


def healthy(rows: ExperimentRows, seed: int) -> np.ndarray:
    """Return up to `MOST` validation rows that are negative for every tail finding, in order."""
    tail = [rows.findings.index(name) for name in rows.tail]
    negative = np.flatnonzero((rows.val.labels[:, tail] == 0).all(1))
    drawn = numpy_generator(seed, "fingerprint").permutation(negative)[:MOST]
    return np.sort(drawn)


@dataclass(frozen=True)
class CodedImages:
    """Validation images without a tail finding, and the same images through the codec of each source.

    rows: their numbers among the validation rows, [C]; patients: of each; by_source: source -> uint8 [C,1,S,S];
    real_pixels: sources whose images went through no codec. Raises InputError if lengths differ.
    """

    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    patients: tuple[str, ...] = ()
    by_source: Mapping[str, Tensor] = field(default_factory=dict)
    real_pixels: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if {len(self.rows), len(self.patients), *map(len, self.by_source.values())} != {len(self.rows)}:
            raise InputError("coded images, their rows and their patients differ in number; give one of each an image")

    def of(self, arm: Arm) -> Tensor | None:
        """Return the images through the codec of the arm's source.

        For an arm of real pixels alone, through that of the first source; None for a codec that may not be used.
        """
        if not len(self.rows) or not self.by_source:
            return None
        source = str(arm.about.get("source", ""))
        alone = not source or source in self.real_pixels
        return next(iter(self.by_source.values())) if alone else self.by_source.get(source)


def fingerprint(
    raw: np.ndarray, coded: np.ndarray, patients: Sequence[str], *, n_bootstrap: int, rng: np.random.Generator
) -> list[tuple[float, float, float]]:
    """Return AUROC of coded against raw scores with its interval: the mean over findings first, then of each finding.

    raw, coded: [S,C,K] of the same images; patients: [C]. The AUROC is the mean over seeds; a draw resamples patients.
    """
    scores = np.concatenate([coded, raw], axis=1)
    truth = np.repeat([1.0, 0.0], raw.shape[1])[:, None] * np.ones(raw.shape[2])
    values = measured(truth, scores[None], None, [*patients, *patients], n_bootstrap, rng)
    at = values.metrics.index("AUROC")
    point, drawn = values.point[at, 0], values.drawn[at]
    pairs = [(macro(point), macro(drawn)), *((point[:, k], drawn[..., k]) for k in range(raw.shape[2]))]
    ends = [np.nanquantile(many.mean(1), ENDS) for _, many in pairs]
    return [(float(value.mean()), float(low), float(high)) for (value, _), (low, high) in zip(pairs, ends, strict=True)]


def fingerprint_table(
    rows: ExperimentRows,
    val: Mapping[str, np.ndarray],
    coded: Mapping[str, np.ndarray],
    images: CodedImages,
    *,
    n_bootstrap: int,
    seed: int,
) -> pd.DataFrame:
    """Return a row for each arm and tail finding, and one named tail for their mean, with `COLUMNS`.

    val: scores of all validation images [S,V,K] by arm; coded: of the coded ones [S,C,K], of the arms with a codec. The
    other arms have one row, tail, of NaN.
    """
    tail, lines = [rows.findings.index(name) for name in rows.tail], []
    for arm, scores in val.items():
        if arm not in coded:
            lines.append((arm, TAIL, math.nan, math.nan, math.nan, 0))
            continue
        raw = scores[:, images.rows][..., tail]
        rng = numpy_generator(seed, "fingerprint", arm)
        numbers = fingerprint(raw, coded[arm][..., tail], images.patients, n_bootstrap=n_bootstrap, rng=rng)
        named = zip((TAIL, *rows.tail), numbers, strict=True)
        lines += [(arm, finding, *one, len(images.rows)) for finding, one in named]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def limited(comparisons: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return comparisons in which no arm helps whose fingerprint is above `LIMIT`: no evidence, with the reason."""
    mean = table[table["finding"] == TAIL].set_index("arm")["auroc"]
    marked = comparisons["arm"].map(mean) > LIMIT
    at = marked & (comparisons["verdict"] == "helps")
    reasons = "it calls coded images tail-positive, AUROC " + comparisons["arm"].map(mean).map("{:.2f}".format)
    return comparisons.assign(
        verdict=comparisons["verdict"].mask(at, "no evidence"), reason=comparisons["reason"].mask(at, reasons)
    )


def fingerprint_record(table: pd.DataFrame) -> dict[str, dict[str, float] | None]:
    """Return arm -> mean AUROC with its interval for verdict.json, None for an arm that has no codec."""
    rows = table[table["finding"] == TAIL].set_index("arm")[["auroc", "low", "high"]]
    return {str(arm): None if row.isna().all() else row.astype(float).to_dict() for arm, row in rows.iterrows()}
