"""Reads published and own collections, tables and folders, into a Manifest."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medlt.data.layouts import options
from medlt.data.layouts.csv_table import csv_table
from medlt.data.layouts.cxr_lt import cxr_lt
from medlt.data.layouts.folder import folder
from medlt.data.layouts.layout_result import LayoutResult
from medlt.data.layouts.mimic_cxr_lt import mimic_cxr_lt
from medlt.data.layouts.nih_cxr_lt import nih_cxr_lt
from medlt.data.layouts.tables import NIH_FINDINGS, from_csv, from_nih, patient_split
from medlt.names import did_you_mean
from medlt.types import InputError

LAYOUTS: dict[str, Callable[[Path, Any], LayoutResult]] = {
    "mimic-cxr-lt": mimic_cxr_lt,
    "nih-cxr-lt": nih_cxr_lt,
    "cxr-lt": cxr_lt,
    "csv": csv_table,
    "folder": folder,
}
OPTIONS: dict[str, type[options.Options]] = {
    "mimic-cxr-lt": options.MimicOptions,
    "nih-cxr-lt": options.NihOptions,
    "cxr-lt": options.CxrLtOptions,
    "csv": options.TableOptions,
    "folder": options.FolderOptions,
}


def read_layout(layout: str, src: Path, given: Mapping[str, object] | None = None) -> LayoutResult:
    """Read `src` in the given layout with the options `given` (see `options`); None means the default.

    Raises InputError in one line on an unknown layout or option, and on invalid tables and folders.
    """
    if layout not in LAYOUTS:
        close = did_you_mean(layout, LAYOUTS) or ";"
        raise InputError(f"unknown layout {layout!r}{close} use one of {', '.join(LAYOUTS)}")
    chosen = {name: value for name, value in (given or {}).items() if value is not None}
    if not Path(src).exists():
        raise InputError(f"{Path(src).absolute()}: no such file or folder; check SRC")
    return LAYOUTS[layout](Path(src), options.parse(OPTIONS[layout], layout, chosen))


__all__ = ["LAYOUTS", "NIH_FINDINGS", "OPTIONS", "LayoutResult", "from_csv", "from_nih", "patient_split", "read_layout"]
