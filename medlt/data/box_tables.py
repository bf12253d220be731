"""Published tables of boxes in the columns of a table of one's own, see `boxes`: RSNA and VinDr-CXR."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medlt.data.layouts.reading import require
from medlt.names import means_no_finding

OWN = ("uid", "finding", "x", "y", "width", "height")
FRAME = ("image_width", "image_height")
RSNA = ("patientId", "x", "y", "width", "height", "Target")
VINDR = ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max")
RSNA_SIDE = 1024


def published_boxes(source: pd.DataFrame, table: Path) -> pd.DataFrame | None:
    """Return the columns OWN and FRAME (NaN if unknown) of RSNA or VinDr-CXR, without rows that have no box.

    None for a table in neither format. Raises InputError for one that lacks a column.
    """
    if RSNA[0] in source:
        require(source, RSNA, table)
        boxes = source.rename(columns={"patientId": "uid"}).assign(finding="Lung Opacity")
        boxes = boxes.assign(**dict.fromkeys(FRAME, RSNA_SIDE))
    elif {*VINDR[:2]} <= {*source}:
        require(source, VINDR, table)
        source = source[~source["class_name"].astype("str").map(means_no_finding, na_action="ignore").fillna(False)]
        boxes = source.rename(columns={"image_id": "uid", "class_name": "finding", "x_min": "x", "y_min": "y"})
        boxes = boxes.assign(width=source["x_max"] - source["x_min"], height=source["y_max"] - source["y_min"])
        boxes = boxes.assign(**dict.fromkeys(FRAME, np.nan))
    else:
        return None
    boxes = boxes[[*OWN, *FRAME]]
    return boxes[boxes[[*OWN[2:]]].notna().any(axis=1)].reset_index(drop=True)
