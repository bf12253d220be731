"""What a conversion came to, for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlt.data.convert.reasons import HINTS, kind_of_reason

if TYPE_CHECKING:
    from rich.table import Table


def table(out: Path, told: dict[str, Any]) -> Table:
    """Counts by transfer syntax, then by reason with its hint."""
    from pydicom.uid import UID
    from rich.table import Table

    made = Table("what", "files", "hint", title=f"{out}: {told['converted']} converted", title_justify="left")
    for syntax, count in told["transfer_syntaxes"].items():
        made.add_row(UID(syntax).name, str(count), "")
    made.add_section()
    for code, count in told["reasons"].items():
        made.add_row(f"{kind_of_reason(code)}: {code}", str(count), HINTS[code])
    for what, count in told.get("duplicates", {}).items():
        made.add_row(f"duplicate: same {what}", str(count), "see duplicates.csv")
    return made
