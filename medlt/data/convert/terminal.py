"""The result of a conversion, for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlt.data.convert.reasons import HINTS, kind_of_reason

if TYPE_CHECKING:
    from rich.table import Table


def conversion_table(out: Path, counts: dict[str, Any]) -> Table:
    """Return counts by transfer syntax, then by reason with its hint."""
    from pydicom.config import IGNORE
    from pydicom.uid import UID
    from rich.table import Table

    unlabelled = counts["unlabelled_body_part"]
    hinted = counts["reasons"] or counts.get("duplicates") or counts.get("implausible") or unlabelled
    hints = ("hint",) if hinted else ()
    title = f"{counts['converted']} images in {out}"
    made = Table("what", "files", *hints, title=title, title_justify="left")
    made.columns[0].no_wrap = True
    for syntax, count in counts["transfer_syntaxes"].items():  # png, jpeg and nifti are none, and pydicom would warn
        made.add_row(UID(syntax, IGNORE).name, str(count))
    made.add_section()
    for code, count in counts["reasons"].items():
        made.add_row(f"{kind_of_reason(code)}: {code}", str(count), HINTS[code])
    for what, count in counts.get("duplicates", {}).items():
        made.add_row(f"duplicate: same {what}", str(count), "see duplicates.csv")
    for note, count in counts.get("implausible", {}).items():
        made.add_row(f"converted: {note}", str(count), "see manifest.parquet")
    if unlabelled:
        made.add_row("converted: no body part", str(unlabelled), "kept by --body-part; see manifest.parquet")
    return made
