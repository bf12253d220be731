"""The images and labels that a classifier reads, in memory as 8 bit, aligned by uid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from medlt.files import digest
from medlt.rows import Rows, StoredRows, chunks, subset
from medlt.types import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSet:
    """images uint8 [N,1,S,S], in memory or stored; labels float32 [N,K] in [0,1] or NaN; weights float32 [N]; N uids.

    Raises InputError if the lengths differ, for images of another form, and for a uid that occurs twice.
    """

    images: Rows
    labels: np.ndarray
    weights: np.ndarray
    uids: tuple[str, ...]

    def __post_init__(self) -> None:
        sizes = {len(self.images), len(self.labels), len(self.weights), len(self.uids)}
        if len(sizes) > 1:
            raise InputError(f"images, labels, weights and uids differ in number: {sorted(sizes)}")
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 1:
            raise InputError(f"images must be uint8 [N,1,S,S], got {self.images.dtype} {tuple(self.images.shape)}")
        if len(set(self.uids)) != len(self.uids):
            raise InputError("a uid occurs twice; give each row, repeated ones too, a uid of its own")

    def __len__(self) -> int:
        return len(self.uids)

    def take(self, uids: Sequence[str]) -> TrainingSet:
        """Return the rows of `uids`, in that order. Raises InputError for a uid that is not in the set."""
        at = {uid: i for i, uid in enumerate(self.uids)}
        if missing := [uid for uid in uids if uid not in at]:
            raise InputError(f"{len(missing)} uids are not in this set, the first {missing[0]}")
        rows = np.array([at[uid] for uid in uids], dtype=np.int64)
        return TrainingSet(subset(self.images, rows), self.labels[rows], self.weights[rows], tuple(uids))

    def digest(self) -> str:
        """Return a digest of uids, pixels, labels and weights, in order. Stored images stand for their pixels."""
        parts = (self.labels.astype(np.float32), self.weights.astype(np.float32))
        return digest(list(self.uids), digest_rows(self.images), *(part.tobytes() for part in parts))


def require_one_label(rows: TrainingSet, name: str, soft: bool = False) -> None:
    """Raise InputError, naming a uid, for a row of a single-label set without exactly one positive.

    soft: labels in [0,1] that sum to 1 are allowed. A row with an unknown label (NaN) passes: the loss leaves it out.
    """
    labels = np.asarray(rows.labels, np.float64)
    fits = np.abs(labels.sum(1) - 1) < 1e-3
    fits &= (labels >= 0).all(1) if soft else np.isin(labels, (0, 1)).all(1)
    bad = np.flatnonzero(~fits & ~np.isnan(labels).any(1))
    if len(bad):
        rule = "labels that sum to 1" if soft else "exactly one positive"
        problem = f"{len(bad)} {name} rows without {rule}, the first {rows.uids[bad[0]]}"
        raise InputError(f"single-label task: {problem}; correct these rows, or choose task multi-label")


def as_distributions(rows: TrainingSet) -> TrainingSet:
    """Return rows whose labels sum to 1: soft labels with another sum above 0 are divided by it.

    So a fused image with labels 0.9 and 0.6 of two findings counts as 0.6 of one and 0.4 of the other. Rows without a
    positive label, with an unknown one or with a negative one are unchanged.
    """
    labels = np.asarray(rows.labels, np.float64)
    total = labels.sum(1, keepdims=True)
    change = ((np.abs(total - 1) >= 1e-3) & (total > 0))[:, 0] & (labels >= 0).all(1)
    if not change.any():
        return rows
    _mention(int(change.sum()))
    scaled = np.where(change[:, None], labels / np.where(total > 0, total, 1), labels).astype(np.float32)
    return replace(rows, labels=scaled)


@cache
def _mention(count: int) -> None:
    """Log the rule of `as_distributions`, once for each number of rows."""
    logger.warning("single-label task: the soft labels of %d added row(s) are divided by their sum", count)


def digest_rows(rows: Rows) -> str:
    """Return a digest of rows in their order; stored rows are those that their names say, and are not read."""
    if isinstance(rows, StoredRows):
        return digest(rows.digest_names())
    return digest(list(rows.shape), *(part.contiguous().numpy().tobytes() for part in chunks(rows, 64)))


def to_uint8(images: Tensor) -> Tensor:
    """Convert float in [0,1] to 8 bit as a file holds it; uint8 stays, and non-finite pixels become 0."""
    if images.dtype == torch.uint8:
        return images
    return images.nan_to_num(0, 0, 0).clamp(0, 1).mul(255).round().to(torch.uint8)
