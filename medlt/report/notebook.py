"""The verdict in a notebook cell: `VerdictView("runs/x")` as the last line of it."""

from __future__ import annotations

from html import escape
from pathlib import Path

from medlt.report.collect import collect
from medlt.report.verdict import render

ROOM, ROW = 820, 70
"""Height of the frame in px: of the text, and of each arm in the plots and the table. The rest scrolls."""


class VerdictView:
    """The top of an experiment's page: the verdict, the differences of all arms, and their table.

    The constructor reads the folder. It raises InputError if `folder` is no run folder of `medlt evaluate`.
    """

    def __init__(self, folder: Path | str) -> None:
        run = collect(Path(folder))
        self.page = render(run, whole=False)
        self.height = ROOM + ROW * (0 if run.arms is None else len(run.arms))
        verdict = run.verdict or {}
        self.text = f"{verdict.get('verdict', 'no verdict yet')}. {verdict.get('sentence', '')}".strip()

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """Return the page in a frame that separates its style from the notebook's. The frame allows no script."""
        style = f"width:100%;height:{self.height}px;border:0"
        return f'<iframe sandbox title="verdict" style="{style}" srcdoc="{escape(self.page)}"></iframe>'
