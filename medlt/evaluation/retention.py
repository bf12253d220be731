"""How much of a finding's contrast synthetic images keep, where masks or boxes of their tail images say where it is.

The contrast is the mean inside the region minus the mean of a ring around it (`medlt.checks.codec.contrast`), of the
tail image at its region and of the synthetic image where that region came to lie. The share kept is the sum of the
second over the sum of the first: 1 for a lesion that was pasted, about 0 for one that is gone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from medlt.checks.codec import Amplitudes, contrast

COLUMNS = ("source", "finding", "kept", "low", "high", "images", "patients")


def retention_row(
    source: str,
    finding: str,
    real: Tensor,
    made: Tensor,
    regions: tuple[Tensor, Tensor],
    patients: Sequence[str],
    *,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> dict[str, object]:
    """Return the contrast of one finding that the images of one source keep, a row of `COLUMNS`.

    real, made: tail images and the synthetic ones made from them, [B,1,S,S] in [0,1]; regions: in the tail images and
    in the synthetic ones, [B,S,S] in [0,1]; patients: of the tail images, which the interval resamples. Pairs without a
    contrast are left out.
    """
    before, after = contrast(real, regions[0]), contrast(made, regions[1])
    known = np.flatnonzero(np.isfinite(before) & np.isfinite(after))
    owners = tuple(str(patients[i]) for i in known.tolist())
    both = Amplitudes(np.abs(before[known]), after[known] * np.sign(before[known]), owners, "ring")
    kept, low, high = both.kept(n_bootstrap, rng)
    numbers = {"kept": kept, "low": low, "high": high, "images": len(known), "patients": len(set(owners))}
    return {"source": source, "finding": finding, **numbers}


def retention_table(rows: Sequence[dict[str, object]]) -> pd.DataFrame:
    """Return rows of `retention_row` as a table."""
    return pd.DataFrame(list(rows), columns=list(COLUMNS))
