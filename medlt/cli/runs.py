"""Commands on finished runs and on the installation: report, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medlt.cli.app import app
from medlt.cli.edge import Json, edge, say


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    as_json: Json = False,
) -> None:
    """Write RUN/report.html anew from the run's files: one self-contained page."""
    with edge():
        from rich.text import Text

        from medlt.report.html import write

        path = write(run)
        say({"report": str(path)}, lambda: Text(f"report: {path}"), as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this installation can do: versions, device, image codecs, whether it may reach the network."""
    with edge():
        from medlt.doctor import examine, table

        found = examine()
        say(found, lambda: table(found), as_json)
