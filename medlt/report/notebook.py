"""The verdict in a notebook cell: `VerdictView("runs/x")` as the last line of it."""

from __future__ import annotations

from html import escape
from pathlib import Path

from medlt.report.collect import collect
from medlt.report.verdict import render

ROOM, ROW = 820, 70
"""px of the frame: for the words, and for an arm in two plots and the table. What does not fit can be scrolled."""


class VerdictView:
    """The top of an experiment's page: the verdict, the differences of all arms, and their table.

    Read when it is made. Raises InputError if `folder` is no run folder of `medlt evaluate`.
    """

    def __init__(self, folder: Path | str) -> None:
        run = collect(Path(folder))
        self.page = render(run, whole=False)
        self.height = ROOM + ROW * (0 if run.arms is None else len(run.arms))
        told = run.verdict or {}
        self.text = f"{told.get('verdict', 'no verdict yet')}. {told.get('sentence', '')}".strip()

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its style and the notebook's do not meet; no script may run in it."""
        style = f"width:100%;height:{self.height}px;border:0"
        return f'<iframe sandbox title="verdict" style="{style}" srcdoc="{escape(self.page)}"></iframe>'
