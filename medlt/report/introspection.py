"""The report's section on the images that the guidance classifier is least sure of: attributes, and image pairs.

It shows RUN/introspection.parquet (`medlt.evaluation.introspection.introspect`) and RUN/introspection_gallery.parquet.
The latter has the index uid and the columns finding, signal, nearest (a uid) and file (a picture of `save_pair`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from medlt.files import write_bytes
from medlt.report.figures import thumbnail
from medlt.report.panels import pair, png

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

SHOWN, PAIRS = 12, 16


def save_pair(run: Path, uid: str, image: Tensor, real: Tensor, side: int = 128) -> str:
    """Write the nearest real image and `image`, both [1,H,W] in [0,1], side by side, and return the path.

    The path is relative to the run folder, for the column `file`. The uid is percent-quoted, so that the file is always
    inside that folder.
    """
    file = f"introspection/{quote(uid, safe='')}.png"
    write_bytes(Path(run) / file, png(pair(real, image, side)))
    return file


def section(
    table: pd.DataFrame | None, gallery: pd.DataFrame | None, find: Callable[[str], Path | None], real_images: bool
) -> dict[str, Any] | None:
    """Return the variables of the template, or None if both tables are missing.

    more, less: values that are more or less frequent among the images of the largest signal, up to `SHOWN` each; pairs:
    up to `PAIRS` pictures, the largest signal first, with the real image only if `real_images`. `find` returns the file
    of the run folder with a name, or None.
    """
    if table is None and gallery is None:
        return None
    table = anonymous(table)
    return {
        "more": [] if table is None else _rows(table[table["z"] > 0], ascending=False),
        "less": [] if table is None else _rows(table[table["z"] < 0], ascending=True),
        "pairs": [] if gallery is None else _pairs(gallery, find, real_images),
        "of": 0 if gallery is None else len(gallery),
    }


def anonymous(table: pd.DataFrame | None) -> pd.DataFrame | None:
    """Return the table without the attribute whose values are uids of real images."""
    return None if table is None else table[table["attribute"] != "nearest real"]


def _rows(table: pd.DataFrame, ascending: bool) -> list[dict[str, Any]]:
    ordered = table.sort_values(["z", "attribute", "value"], ascending=[ascending, True, True], kind="stable")
    return [{str(name): value for name, value in row.items()} for row in ordered.head(SHOWN).to_dict("records")]


def _pairs(gallery: pd.DataFrame, find: Callable[[str], Path | None], real_images: bool) -> list[dict[str, Any]]:
    ordered = gallery.rename_axis("uid").reset_index().sort_values(["signal", "uid"], ascending=[False, True])
    pairs: list[dict[str, Any]] = []
    for row in ordered.to_dict("records"):
        if len(pairs) < PAIRS and (file := find(str(row["file"]))):
            picture = thumbnail(file, None if real_images else 1)
            pairs.append({str(k): row[k] for k in ("uid", "finding", "signal", "nearest")} | {"src": picture})
    return pairs
