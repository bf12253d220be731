"""What a codec keeps of each finding, measured on real images against the same images decoded.

| measure | of a lesion in an image x and its decoded image y |
|---|---|
| ring | c(y) sign c(x) over abs c(x); c: mean inside the lesion's mask minus the mean of a ring around it |
| twin | <y - y', r> / norm(r) over norm(r), r = x - x'; x': the same image without the finding, y': x' decoded |
| AUROC | of verifiers that were trained on real images, by their mean probability: of decoded minus of real images |

The contrast kept is the sum of the numerators over the sum of the denominators, so that a lesion counts by its
amplitude and one that is hardly visible decides nothing. A linear codec that multiplies a lesion by a keeps a.
Intervals resample patients. A codec may show every finding to a verifier and still soften it, so both measures count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from medlt.metrics.bootstrap import FEWEST_PATIENTS, difference
from medlt.metrics.draws import patient_weights

Status: TypeAlias = Literal["kept", "lost", "unclear"]
Kind: TypeAlias = Literal["twin", "ring"]

FEWEST = 3
"""Fewest patients with a lesion for an interval of its contrast."""
COLUMNS = (
    "status", "reason", "contrast", "contrast_low", "contrast_high", "contrast_by", "lesions", "auroc_real",
    "auroc_decoded", "auroc_difference", "auroc_low", "auroc_high", "positive_patients",
)  # fmt: skip


@dataclass(frozen=True)
class CodecRule:
    """When a finding is lost, kept or unclear.

    Lost: the interval of its contrast kept ends below `contrast`, or that of its AUROC's difference ends below 0 and
    the difference is below -`auroc`. Kept: the intervals exclude both. Unclear: all else, and without a measure. A
    verifier whose AUROC on real images is below `visible` does not see the finding, so it decides nothing.
    """

    contrast: float = 0.8
    auroc: float = 0.05
    visible: float = 0.6

    def status(self, row: Mapping[str, float]) -> tuple[Status, str]:
        """Return the status of a finding and its reason, from a row with the columns of `COLUMNS`."""
        kept, low, high = row["contrast"], row["contrast_low"], row["contrast_high"]
        seen = row["auroc_real"] >= self.visible and not np.isnan(row["auroc_low"])
        if high < self.contrast:
            return "lost", f"{kept:.2f} of its contrast left"
        if seen and row["auroc_high"] < 0 and row["auroc_difference"] < -self.auroc:
            return "lost", f"AUROC {row['auroc_real']:.2f} becomes {row['auroc_decoded']:.2f}"
        if np.isnan(low) and not (seen and np.isnan(kept)):
            return "unclear", "too few patients, or verifiers do not see it"
        if low < self.contrast:
            return "unclear", f"{kept:.2f} of its contrast left, interval {low:.2f} to {high:.2f}"
        if seen and row["auroc_low"] < -self.auroc:
            return "unclear", f"AUROC may fall by {-row['auroc_low']:.2f}"
        return "kept", ""


@dataclass(frozen=True)
class Amplitudes:
    """Lesions of one finding: their amplitude in real images, [N] > 0, what is left of it in decoded ones, [N], and
    the patient of each."""

    real: np.ndarray
    decoded: np.ndarray
    patients: tuple[str, ...]
    by: Kind

    def kept(self, n_bootstrap: int, rng: np.random.Generator, level: float = 0.95) -> tuple[float, float, float]:
        """Return the share that is kept and its interval; NaN without a lesion, an interval of NaN for few patients."""
        if not len(self.real) or self.real.sum() <= 0:
            return (np.nan,) * 3
        value = float(self.decoded.sum() / self.real.sum())
        if len(set(self.patients)) < FEWEST:
            return value, np.nan, np.nan
        weights = patient_weights(self.patients, n_bootstrap, rng)
        drawn = (weights @ self.decoded) / (weights @ self.real)
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        return value, float(low), float(high)


def ring(masks: Tensor, width: int) -> Tensor:
    """Return the pixels outside a mask and at most `width` from it, 0 or 1, [B,H,W]; masks [B,H,W] in [0,1]."""
    grown = functional.max_pool2d(masks[:, None], 2 * width + 1, 1, width)[:, 0]
    return ((grown > 0) & (masks == 0)).to(masks.dtype)


def contrast(images: Tensor, masks: Tensor, width: int | None = None) -> np.ndarray:
    """Return the mean inside a mask minus the mean of the ring around it, [B]; NaN without a lesion or without a ring.

    images: [B,1,H,W]; masks: [B,H,W], the share of each pixel that is covered, NaN for an unknown one; width: of the
    ring in pixels, 1/16 of the side by default.
    """
    known = masks.nan_to_num(0)
    around = ring(known, max(2, masks.shape[-1] // 16) if width is None else width)
    x = images[:, 0].double()
    inside = (x * known).sum((1, 2)) / known.sum((1, 2))
    outside = (x * around).sum((1, 2)) / around.sum((1, 2))
    value: np.ndarray = torch.where(masks.isnan().any(2).any(1), torch.nan, inside - outside).numpy()
    return value


def by_ring(real: Tensor, decoded: Tensor, masks: Tensor, patients: Sequence[str]) -> Amplitudes:
    """Return the amplitudes of lesions with masks; images [B,1,H,W], masks [B,H,W] as for `contrast`."""
    before, after = contrast(real, masks), contrast(decoded, masks)
    known = np.flatnonzero(np.isfinite(before) & np.isfinite(after))
    owners = tuple(str(patients[i]) for i in known.tolist())
    return Amplitudes(np.abs(before[known]), after[known] * np.sign(before[known]), owners, "ring")


def by_twin(real: Tensor, twins: Tensor, decoded: Tensor, decoded_twins: Tensor, patients: Sequence[str]) -> Amplitudes:
    """Return the amplitudes of lesions whose images [B,1,H,W] have a twin without the finding, alike in all else."""
    lesion, left = ((a - b).double().flatten(1) for a, b in ((real, twins), (decoded, decoded_twins)))
    norm = torch.linalg.vector_norm(lesion, dim=1)
    seen = norm > 0
    along = (left * lesion).sum(1)[seen] / norm[seen]
    owners = tuple(str(patient) for patient, one in zip(patients, seen.tolist(), strict=True) if one)
    return Amplitudes(norm[seen].numpy(), along.numpy(), owners, "twin")


def codec_table(
    findings: Sequence[str],
    amplitudes: Mapping[str, Amplitudes],
    truth: np.ndarray,
    real: np.ndarray,
    decoded: np.ndarray,
    patients: Sequence[str],
    *,
    rule: CodecRule,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Return one row per finding, index `finding`, columns `COLUMNS`.

    amplitudes: of the findings whose lesions are known; truth: labels [N,K] of the real images, NaN unknown; real and
    decoded: probabilities [N,K], N = 0 without a verifier; patients: of the N images.
    """
    areas = _auroc(findings, truth, real, decoded, patients, n_bootstrap, rng)
    rows = []
    for name in findings:
        known = amplitudes.get(name)
        kept = (np.nan,) * 3 if known is None else known.kept(n_bootstrap, rng)
        row: dict[str, object] = dict(zip(("contrast", "contrast_low", "contrast_high"), kept, strict=True))
        row |= {"contrast_by": "" if known is None else known.by, "lesions": 0 if known is None else len(known.real)}
        row |= areas[name]
        status, reason = rule.status(row)  # type: ignore[arg-type]
        rows.append(row | {"status": status, "reason": reason})
    return pd.DataFrame(rows, index=pd.Index(findings, name="finding"), columns=list(COLUMNS))


def _auroc(
    findings: Sequence[str], truth: np.ndarray, real: np.ndarray, decoded: np.ndarray, patients: Sequence[str],
    n_bootstrap: int, rng: np.random.Generator,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Return finding -> AUROC on real and on decoded images, their difference and its interval; NaN if unknown.

    A finding of fewer than `FEWEST_PATIENTS` has no interval.
    """
    names = {"control_value": "auroc_real", "value": "auroc_decoded", "difference": "auroc_difference",
             "low": "auroc_low", "high": "auroc_high", "patients": "positive_patients"}  # fmt: skip
    at = {name: np.flatnonzero(truth[:, k] == 1).tolist() for k, name in enumerate(findings)}
    positive = {name: len({patients[i] for i in rows}) for name, rows in at.items()}
    empty = {name: dict.fromkeys(names.values(), np.nan) | {"positive_patients": positive[name]} for name in findings}
    if not len(real):
        return empty
    table = difference(truth, decoded[None], real[None], patients, findings, n_bootstrap=n_bootstrap, rng=rng)
    rows = table[(table["level"] == "finding") & (table["metric"] == "AUROC")].set_index("name")
    areas = {name: {new: rows.loc[name, old] for old, new in names.items()} for name in findings}
    unsure = dict.fromkeys(("auroc_low", "auroc_high"), np.nan)
    return {name: areas[name] | (unsure if positive[name] < FEWEST_PATIENTS else {}) for name in findings}
