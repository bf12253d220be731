"""Projections by the name of a view, and the choice of images by it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medlt.names import did_you_mean
from medlt.types import InputError

FRONTAL, LATERAL, UNKNOWN = "frontal", "lateral", "unknown"
PROJECTIONS = dict.fromkeys(("PA", "AP", "FRONTAL"), FRONTAL) | dict.fromkeys(("LATERAL", "LL", "RL"), LATERAL)


def projection(view: object) -> str:
    """Return 'frontal' for PA, AP and FRONTAL, 'lateral' for LATERAL, LL and RL (DICOM View Position), '' for a blank.

    Every other view (an oblique, a decubitus) is its own projection. Case is ignored.
    """
    name = "" if pd.isna(view) else str(view).strip().upper()
    return PROJECTIONS.get(name, name)


def of_views(rows: pd.DataFrame, wanted: Sequence[str], source: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return the rows of the `wanted` views, and a note on what was left out, or on laterals if nothing is wanted.

    wanted: frontal, lateral, unknown (a blank view), or views such as PA; in any case of letters. A blank view is left
    out unless it is wanted by that name. Raises InputError for a view that no row has.
    """
    if not wanted:
        return rows, laterals(rows["view"])
    views = rows["view"].map(lambda view: UNKNOWN if projection(view) == "" else str(view).strip().upper())
    groups = views.map(lambda view: PROJECTIONS.get(view, view.lower()))
    chosen = pd.Series(False, rows.index)
    for name in wanted:
        fits = (groups == name.lower()) | (views == name.upper())
        if not fits.any():
            known = [*dict.fromkeys((*groups, *views))]
            close = did_you_mean(name, known) or ";"
            raise InputError(f"{source}: no image of view {name}{close} the images are {_counts(views)}")
        chosen |= fits
    note = f"view {', '.join(wanted)}: {int(chosen.sum())} of {len(rows)} images"
    left = f"; left out: {_counts(views[~chosen])}" if not chosen.all() else ""
    blank = f"; --view {','.join(wanted)},unknown keeps unknown views" if (groups[~chosen] == UNKNOWN).any() else ""
    return rows[chosen], (note + left + blank,)


def laterals(views: pd.Series) -> tuple[str, ...]:
    """Return a note if frontal and lateral images are mixed."""
    groups = views.map(projection).value_counts()
    if not (groups.get(FRONTAL, 0) and groups.get(LATERAL, 0)):
        return ()
    known = f"{groups[LATERAL]} of {len(views)} images are lateral, {groups.get('', 0)} of unknown view"
    return (f"{known}; `medlt manifest ... --view frontal` leaves both out",)


def _counts(views: pd.Series) -> str:
    return ", ".join(f"{count} {view}" for view, count in views.value_counts().items())
