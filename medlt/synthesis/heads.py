"""Head images for recomposition: who may receive a lesion, who resembles the tail image, and whose turn it is.

A head image is of another patient, in the same fold and projection, and is known not to have the finding. Of these, the
nearest share is compatible: Euclidean distance between images of SIDE x SIDE pixels, so brightness and anatomy count.
Every compatible head is used once before any is used twice; among those used least, the nearest comes first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from torch.nn import functional as F

from medlt.synthesis.composite import Pixels
from medlt.synthesis.pairing import nearest_allowed, pair_rule, partner_mask
from medlt.synthesis.plan import TrainTable

SIDE = 16
CHUNK = 256
"""Number of images in memory at a time."""


def thumbnails(pixels: Pixels, uids: Sequence[str]) -> np.ndarray:
    """Return images of SIDE x SIDE pixels, flattened, float32 [N,SIDE*SIDE]."""
    parts = [pixels(uids[i : i + CHUNK]) for i in range(0, len(uids), CHUNK)]
    small = [F.adaptive_avg_pool2d(part, SIDE).flatten(1).numpy() for part in parts]
    return np.concatenate(small) if small else np.zeros((0, SIDE * SIDE), np.float32)


def compatible_heads(
    train: TrainTable, finding: str, tails: Sequence[str], pixels: Pixels, share: float
) -> dict[str, list[str]]:
    """Return tail uid -> uids of its compatible heads, the nearest first; empty for a tail image without any."""
    healthy = partner_mask(train.table, [finding], train.no_finding)
    heads = sorted(map(str, train.table.index[healthy]))
    if not heads:
        return {uid: [] for uid in tails}
    rule = pair_rule(train.table, tails, heads)
    count = [math.ceil(share * int(allowed)) for allowed in rule.counts()]
    near = nearest_allowed(thumbnails(pixels, tails), thumbnails(pixels, heads), rule, max(count, default=0))
    return {uid: [heads[j] for j in near[i, : count[i]]] for i, uid in enumerate(tails)}


def in_turn(heads: Sequence[str], used: Counter[str]) -> str:
    """Return the nearest of the least used heads, and count it."""
    chosen = min(enumerate(heads), key=lambda one: (used[one[1]], one[0]))[1]
    used[chosen] += 1
    return chosen
