"""Copies of real images: the correlation of an image, or of its mirror image, with the real ones most like it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medlt.checks.correlation import CHUNK, Images, most_alike, project
from medlt.types import CheckResult

NAME = "real_copy"


def real_copies(
    uids: Sequence[str], images: Images, real: Sequence[str], real_images: Images, limit: float = 0.995,
    chunk: int = CHUNK,
) -> list[CheckResult]:  # fmt: skip
    """Return one CheckResult per image; above `limit` it is a copy of the real image that the reason names.

    Every copy is detected, and each image is read once or twice (`medlt.checks.correlation`). Value: the highest of the
    correlations that were computed; -1 if no real image can be above the limit.
    """
    own, others = project(uids, images, chunk), project(real, real_images, chunk)
    plain, at = most_alike(own, others, limit, chunk=chunk)
    turned, turned_at = most_alike(own.mirrored(), others, limit, chunk=chunk)
    values, nearest = np.maximum(plain, turned), np.where(turned > plain, turned_at, at)
    scored = zip(uids, values.tolist(), nearest.tolist(), strict=True)
    return [_result(uid, value, limit, str(real[number]) if real else "") for uid, value, number in scored]


def _result(uid: str, value: float, limit: float, nearest: str) -> CheckResult:
    passed = value <= limit
    return CheckResult(NAME, uid, value, limit, passed, "" if passed else f"a copy of the real image {nearest}")
