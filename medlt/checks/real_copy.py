"""Copies of real images: the highest correlation of an image, or of its mirror image, with any real one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medlt.checks.sanity import Images, standardised
from medlt.types import CheckResult

NAME = "real_copy"


def real_copies(
    uids: Sequence[str], images: Images, real: Sequence[str], real_images: Images, limit: float = 0.995,
    chunk: int = 256,
) -> list[CheckResult]:  # fmt: skip
    """Return one CheckResult per image; above `limit` it is a copy of the real image that the reason names.

    Memory holds two chunks at a time. Without a real image the value is -1.
    """
    out: list[CheckResult] = []
    for i in range(0, len(uids), chunk):
        pixels = images(uids[i : i + chunk])
        own = torch.stack([standardised(pixels), standardised(pixels.flip(-1))])
        value = torch.full((len(pixels),), -1.0, dtype=torch.float64)
        nearest = torch.zeros(len(pixels), dtype=torch.long)
        for j in range(0, len(real), chunk):
            near = (own @ standardised(real_images(real[j : j + chunk])).T).max(0).values.max(1)
            nearest = torch.where(near.values > value, near.indices + j, nearest)
            value = torch.maximum(value, near.values)
        out += [
            _result(uid, one, limit, str(real[at]) if real else "")
            for uid, one, at in zip(uids[i : i + chunk], value.tolist(), nearest.tolist(), strict=True)
        ]
    return out


def _result(uid: str, value: float, limit: float, nearest: str) -> CheckResult:
    passed = value <= limit
    return CheckResult(NAME, uid, value, limit, passed, "" if passed else f"a copy of the real image {nearest}")
