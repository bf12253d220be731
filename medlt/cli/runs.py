"""Commands on finished runs and on the installation: audit, report, doctor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from medlt.cli.app import app
from medlt.cli.edge import Json, NoProgress, edge, say


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(help="A run folder that `medlt augment` or `medlt run` finished.")],
    shadows: Annotated[
        int, typer.Option(min=0, help="Shadow denoisers to train for the likelihood-ratio test; each costs a training.")
    ] = 0,
    canaries: Annotated[
        int, typer.Option(min=0, help="Canary patients of one more training, which bounds epsilon from below.")
    ] = 0,
    false_positive: Annotated[
        float, typer.Option(min=0.0001, max=0.2, help="Share of strangers' images that may be taken for copies.")
    ] = 0.01,
    show_pairs: Annotated[
        bool, typer.Option("--show-pairs", help="Also write RUN/audit_pairs.png: nearest REAL images beside synthetic.")
    ] = False,
    embedding_steps: Annotated[
        int, typer.Option(min=1, help="Training of the embedding that images are compared in; it tells if too little.")
    ] = 250,
    as_json: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """What a run gives away: copies, membership, identity. Works for every method, private or not.

    Writes RUN/audit.json with its tables, and the report anew. Exit 1 if a leak was found, or could not be ruled out.
    """
    with edge():
        from medlt.progress import Progress
        from medlt.recipes import audit as recipe

        options = recipe.AuditOptions(shadows=shadows, canaries=canaries, false_positive=false_positive,
                                      show_pairs=show_pairs, embedding_steps=embedding_steps)  # fmt: skip
        with Progress(enabled=not no_progress and sys.stderr.isatty()) as progress:
            told = recipe.main(run, options, progress)
        say(told, lambda: _table(told), as_json)
    if any(one["passed"] is not True for one in told["findings"]):
        typer.echo(f"medlt: {told['conclusion']}", err=True)
        raise typer.Exit(1)


def _table(told: dict[str, Any]) -> object:
    """One row a finding."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="audit", caption=Text(told["conclusion"]))
    for name in ("looked for", "found", "passed"):
        table.add_column(name)
    words = {True: "yes", False: "no", None: "cannot say"}
    for one in told["findings"]:
        table.add_row(one["name"], Text(one["sentence"]), words[one["passed"]])
    return table


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
