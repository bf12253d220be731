"""The gallery of a report: synthetic images, kept and rejected, each with its strip, its checks and its labels.

The page stays bounded. At most KEPT and REJECTED images are in it, every finding in turn. Kept images are embedded as
they are until FULL bytes are used, the others as thumbnails; strips until STRIPS bytes are used. What is left out is
counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlt.checks.outcome import read_check
from medlt.files import digest
from medlt.report.figures import data_uri, opened, thumbnail
from medlt.report.formatting import beside_limit
from medlt.report.panels import NAMES
from medlt.report.summary import kind_of
from medlt.types import InputError

if TYPE_CHECKING:
    import pandas as pd

    from medlt.report.collect import Collected

KEPT, REJECTED = 192, 64
FULL, STRIPS = 6 << 20, 12 << 20
SAMPLE = 6
COPIES = ("duplicate", "near_copy", "real_copy")
"""Checks that reject an image for being close to a real one: a page without real images leaves it out."""
THUMBNAIL, STRIP = 160, 256
"""Heights, px."""


@dataclass
class Sheet:
    """Pictures of one page, and what they take: bytes of whole images and of strips, and what had no room."""

    run: Collected
    real_images: bool
    whole: int = 0
    strips: int = 0
    thumbnails: int = 0
    without_strip: int = 0

    def image(self, file: Path) -> str:
        """Return an image as a data URI: as it is while there is room, then as a thumbnail."""
        opened(file)
        content = file.read_bytes()
        if self.whole + len(content) > FULL:
            self.thumbnails += 1
            return thumbnail(file, height=THUMBNAIL)
        self.whole += len(content)
        return data_uri(content)

    def strip(self, file: Path) -> str | None:
        """Return a strip as a data URI, without its real images unless they are wanted; None if there is no room."""
        uri = thumbnail(file, None if self.real_images else 2, STRIP)
        if self.strips + len(uri) > STRIPS:
            self.without_strip += 1
            return None
        self.strips += len(uri)
        return uri


def section(run: Collected, real_images: bool) -> dict[str, Any] | None:
    """Return the variables of the template gallery.html.j2, or None without any image.

    groups: (finding, its images); an image has uid, finding, method, source, kept, real, run, failed (names of checks),
    checks, labels, parents, src, strip (or None) and tiles. sample: up to SAMPLE kept ones, every finding and source in
    turn. Also what is shown, of how many, and what was left out.
    """
    sheet = Sheet(run, real_images)
    rows, copies = list(_candidates(run, real_images)), frozenset[str]() if real_images else _copies(run)
    shown_rows = [row for row in rows if row["uid"] not in copies]
    parts = [_some(sheet, shown_rows, kept, most) for kept, most in ((True, KEPT), (False, REJECTED))]
    shown = sorted(chain(*parts), key=lambda row: (row["finding"], not row["kept"], row["source"], row["uid"]))
    if not shown:
        return None
    findings = dict.fromkeys(row["finding"] for row in shown)
    return {
        "groups": [(name, [row for row in shown if row["finding"] == name]) for name in findings],
        "choices": _choices(shown),
        "shown": [len(part) for part in parts],
        "total": [_made(run, True), _made(run, False)],
        "copies": len(rows) - len(shown_rows),
        "sample": in_turn([row for row in shown if row["kept"]])[:SAMPLE],
        "thumbnails": sheet.thumbnails,
        "without_strip": sheet.without_strip,
        "sources": run.source_images is not None,
        "real": real_images and (any(row["real"] for row in shown) or any(row["strip"] for row in shown)),
        "page": str(run.run.get("id") or digest(run.config)),
    }


def _copies(run: Collected) -> frozenset[str]:
    """Return the images that a check of the run, or `medlt check`, calls a copy of a real image."""
    checked = read_check(run.folder)
    named = [] if checked is None else [uid for one in checked.outcomes if one.check in COPIES for uid in one.uids]
    if run.checks is not None:
        failed = run.checks["check"].isin(COPIES) & ~run.checks["passed"].astype(bool)
        named += list(run.checks.loc[failed, "uid"].astype(str))
    return frozenset(named)


def _some(sheet: Sheet, rows: list[dict[str, Any]], kept: bool, most: int) -> list[dict[str, Any]]:
    """Return at most `most` of the kept or of the rejected images, every finding in turn, with their pictures."""
    filled: list[dict[str, Any]] = []
    for row in in_turn([row for row in rows if row["kept"] == kept]):
        if len(filled) < most and (whole := _filled(sheet, row)) is not None:
            filled.append(whole)
    return filled


def in_turn(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows in another order: the first of every finding and source, then the second of each, and so on."""
    turn: dict[tuple[str, str], int] = {}
    numbered = []
    for row in rows:
        key = (row["finding"], row["source"])
        turn[key] = turn.get(key, -1) + 1
        numbered.append((turn[key], *key, row))
    return [row for *_, row in sorted(numbered, key=lambda entry: entry[:3])]


def _choices(shown: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the values that the filters offer, for those with at least two."""
    values = {name: {row[name] for row in shown} - {""} for name in ("finding", "method", "source")}
    values["reason"] = {name for row in shown for name in row["failed"]}
    return {name: sorted(given) for name, given in values.items() if len(given) > (name != "reason")}


def _made(run: Collected, kept: bool) -> int:
    """Return how many images of the run were kept, or rejected; of an experiment, how many its folder shows."""
    if run.source_images is not None:
        return len(run.source_images) if kept else 0
    return int(run.run.get("counts", {}).get("kept" if kept else "rejected", 0))


def _candidates(run: Collected, real_images: bool) -> Iterator[dict[str, Any]]:
    """Yield the images that the tables name: kept ones of the manifest, those of panels.parquet and of
    rejected_images.parquet, or the images of an experiment's sources."""
    if run.source_images is not None:
        yield from _of_sources(run.source_images, real_images)
        return
    tables = [table for table in (run.plan, run.manifest, run.panels, run.rejected_images) if table is not None]
    finding = {uid: name for t in reversed(tables) if "finding" in t for uid, name in t["finding"].items()}
    panels, rejected = (_column(table, "file") for table in (run.panels, run.rejected_images))
    kept, drawn = _kept(run), _column(run.panels, "kept")
    for uid in sorted({*kept, *panels, *rejected}):
        files = {"file": kept.get(uid) or rejected.get(uid), "panel": panels.get(uid)}
        about = {"uid": uid, "finding": str(finding.get(uid, "")), "source": "", "real": False}
        yield about | files | {"kept": bool(drawn.get(uid, uid in kept))}


def _column(table: pd.DataFrame | None, name: str) -> dict[str, Any]:
    return {} if table is None else {str(uid): value for uid, value in table[name].items()}


def _kept(run: Collected) -> dict[str, str]:
    """Return the file of each synthetic row of the manifest."""
    from medlt.data.columns import is_synthetic

    if run.manifest is None or "path" not in run.manifest:
        return {}
    return _column(run.manifest[is_synthetic(run.manifest)], "path")


def _of_sources(images: pd.DataFrame, real_images: bool) -> Iterator[dict[str, Any]]:
    for row in images.sort_values(["source", "finding", "uid"], kind="stable").to_dict("records"):
        if real_images or not row["real"]:
            names = {name: str(row[name]) for name in ("uid", "finding", "source", "file")}
            yield names | {"kept": True, "panel": None, "real": bool(row["real"])}


def _filled(sheet: Sheet, row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the row of an image with its pictures and all that the page says about it; None without a picture.

    Raises InputError for a rejected image whose file is missing: rejected_images.parquet names those that are there.
    """
    run, uid = sheet.run, row["uid"]
    panel, file = (run.file(str(row[name])) if row[name] else None for name in ("panel", "file"))
    if file is None and row["file"] and not row["kept"]:
        where = run.folder / row["file"]
        raise InputError(f"{where}: is missing; restore it, or run the command that made the run again")
    if file is not None:
        src = sheet.image(file)
    elif panel is not None:
        src = thumbnail(panel, 1, STRIP)
    else:
        return None
    checks = [] if run.checks is None else run.checks[run.checks["uid"] == uid].to_dict("records")
    plan = {} if run.plan is None or uid not in run.plan.index else run.plan.loc[uid].to_dict()
    return row | {
        "src": src,
        "strip": None if panel is None else sheet.strip(panel),
        "tiles": NAMES if sheet.real_images else NAMES[-2:],
        "checks": [checked(one, sheet.real_images) for one in checks],
        "failed": [str(check["check"]) for check in checks if not check["passed"]],
        "labels": _labels(run, uid),
        "parents": [str(plan[name]) for name in ("tail_parent", "head_parent") if sheet.real_images and name in plan],
        "method": "" if row["source"] else str(run.settings.get("method", {}).get("kind", "")),
        "run": str(run.run.get("id", "")),
    }


def checked(one: dict[str, Any], real_images: bool) -> dict[str, Any]:
    """Return a check result with value and limit as text; its reason may name a real image."""
    value, limit = beside_limit(one["value"], one["limit"])
    reason = str(one["reason"] or "")
    if reason and not real_images:
        reason = kind_of(reason)
    return one | {"value": value, "limit": limit, "reason": reason}


def _labels(run: Collected, uid: str) -> list[tuple[str, float]]:
    """Return the positive labels of an image, soft ones included."""
    if run.manifest is None or uid not in run.manifest.index:
        return []
    row = run.manifest.loc[uid]
    return [(name, float(row[name])) for name in run.findings if row[name] > 0]
