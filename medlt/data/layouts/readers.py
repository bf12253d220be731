"""Makes one label of those that several readers gave an image.

The label of most readers counts, or a finding that any of them marked. A share of readers would be a soft label, which
a manifest of real images cannot have: every loss, metric and count of medlt takes a real label as present or absent.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import AfterValidator


def _hard(how: str) -> str:
    """Raise ValueError for a rule that gives soft labels."""
    if how == "mean":
        raise ValueError("mean gives soft labels, which real images cannot have; use majority or any")
    return how


Readers = Annotated[Literal["majority", "any", "mean"], AfterValidator(_hard)]


def united(labels: pd.DataFrame, images: pd.Series, how: str) -> tuple[pd.DataFrame, str]:
    """Return one row per image, sorted by its name, and a note; '' if no image has two readers.

    labels: 1, 0 or NaN, one row per image and reader; images: the image of each row. A reader without a label of a
    finding does not count; a tie of the majority, or no label at all, is unknown.
    """
    groups = labels.groupby(images.to_numpy())
    share, most = groups.mean(), int(groups.size().max())
    one = share.gt(0).astype(np.float64) if how == "any" else share.round().where(share != 0.5)
    ties = int((share == 0.5).sum().sum()) if how == "majority" else 0
    note = f"{how} of up to {most} readers" + (f", {ties} tied label(s) unknown" if ties else "")
    return one.where(share.notna()), note if most > 1 else ""
