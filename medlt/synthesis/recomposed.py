"""Composites of recomposition with their labels: the share of each finding taken from one image, left in the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor
from torch.nn import functional as F

from medlt.localise.measure import Localisation
from medlt.synthesis.evidence import carried, evidence, evidence_table, reason
from medlt.synthesis.labels import cam_share, recomposed_labels
from medlt.synthesis.plan import TrainTable


@dataclass(frozen=True)
class Recomposed:
    """Rows before the denoiser.

    real: composites [B,1,S,S]; change: weights [B,1,S,S] of what the denoiser may change; mask: pixels of the tail
    image, bool [B,S,S]; keeps_mask: whether the denoiser keeps the mask and changes the rest, or the reverse; labels:
    float32 [B,K]; measured: the columns that `Recomposition.run` adds.
    """

    real: Tensor
    change: Tensor
    mask: Tensor
    keeps_mask: bool
    labels: np.ndarray
    measured: pd.DataFrame

    def known(self, size: tuple[int, int]) -> Tensor:
        """Return the cells of latents that stay, bool [B,1,h,w]: those of the mask, or those without any change."""
        if self.keeps_mask:
            return F.adaptive_max_pool2d(self.mask[:, None].float(), size).bool()
        return ~F.adaptive_max_pool2d((self.change > 0).float(), size).bool()


def label(
    where: Localisation, train: TrainTable, variant: str, rows: pd.DataFrame, cells: Tensor, shown: np.ndarray,
    soft: Tensor,
) -> tuple[np.ndarray, pd.DataFrame]:  # fmt: skip
    """Return label vectors [B,K], and the columns that `Recomposition.run` adds.

    cells: what is taken from the tail image, bool [B,h,w]; shown: share of it that lies in the image, [B]; soft: what
    it covers of the head image, [B,1,S,S].
    """
    names, tails, heads = list(train.findings), rows["tail_parent"].tolist(), rows["head_parent"].tolist()
    findings, at = rows["finding"].tolist(), (np.arange(len(rows)), [names.index(one) for one in rows["finding"]])
    skip = None if train.no_finding is None else names.index(train.no_finding)
    y_tail, y_head = (train.table.loc[uids, names].to_numpy(np.float64, copy=True) for uids in (tails, heads))
    rest = 1 - F.adaptive_avg_pool2d(soft, (cells.shape[1], cells.shape[2]))[:, 0]
    taken = _shares(where, tails, y_tail, names, skip, cells.double())
    left = _shares(where, heads, y_head, names, skip, rest.double())
    own = evidence(where, "measured", tails, findings, cells)
    mass = own.mass * shown
    taken[at] = np.where(own.unmeasured, shown, mass)
    if variant == "lesion":  # nothing is taken from the tail image: the denoiser draws the finding
        y_tail, taken, mass = np.zeros_like(y_tail), np.zeros_like(taken), np.full(len(rows), np.nan)
        y_tail[at], taken[at] = 1.0, shown
    if variant == "surroundings":  # a finding beside the lesion is drawn again, under its label
        y_head, left = np.where(y_tail == 1, np.nan, y_tail), np.ones_like(left)
    labels = recomposed_labels(y_tail, y_head, taken, left, skip)
    carries = np.nan if variant == "lesion" else shown
    measured = _measured(where, tails, findings, cells, mass, own.unmeasured, np.isnan(labels[at]))
    carried_share = measured["lesion_carried"] * carries
    return labels, measured.assign(mask_share=soft.double().mean((1, 2, 3)).numpy(), lesion_carried=carried_share)


def _measured(
    where: Localisation, tails: list[str], findings: list[str], cells: Tensor, mass: np.ndarray,
    unmeasured: np.ndarray, unsure: np.ndarray,
) -> pd.DataFrame:  # fmt: skip
    """Return where the finding was taken from, how much of it, and why its label is unknown, if it is."""
    places = where.trust.locate(tails, findings)
    given = zip(unsure, places.stages, mass, unmeasured, strict=True)
    columns = {
        "tail_mass": cam_share(places.maps, cells),
        "localised_by": list(places.stages),
        "lesion_carried": carried(where, tails, findings, cells),
        "label_mass": mass,
        "label_reason": [
            (reason("measured", stage, own, bool(no)) or f"{own:.2f} of the finding was carried") if why else ""
            for why, stage, own, no in given
        ],
    }
    return pd.DataFrame(columns)


def _shares(
    where: Localisation, uids: list[str], y: np.ndarray, names: list[str], skip: int | None, pixels: Tensor
) -> np.ndarray:
    """Return the share of each positive finding on `pixels`, [B,K]: of its given region, else the share of the area."""
    given = evidence_table(where, "lesion_carried", uids, y, names, skip, pixels).mass
    area = pixels.mean((1, 2)).numpy()[:, None]
    return np.where(np.isnan(given), area, given)
