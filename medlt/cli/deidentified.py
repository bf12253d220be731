"""Commands on de-identified files: verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medlt.cli.app import Commands, app
from medlt.cli.edge import Json, Volume, edge, example

deidentify = typer.Typer(
    cls=Commands,
    help="Examine de-identified files before they leave.",
    epilog=example("medlt deidentify verify OUT/release"),
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(deidentify, name="deidentify")


@deidentify.callback()
def group() -> None:
    """Examine de-identified files before they leave."""


@deidentify.command(epilog=example("medlt deidentify verify OUT/release"))
def verify(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that is about to leave; only read.")],
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Search every file of a folder for places where an identity can hide.

    Attributes, comments in streams, unused bits, further frames, bytes behind the data, chunks of pictures, text in
    images, identifiers in tables; whoever made the files. The result names places, not contents. Exit code 1: there
    are some. It cannot prove that nothing is left: no program recognises every face, marker or handwritten name.
    """
    with edge(as_json, volume) as terminal:
        from medlt.data.verify import verify as examine

        result = examine(folder, progress=terminal)
        terminal.show(result.summary(), result.table)
    if result.leaks:
        typer.echo(f"medlt: {len(result.leaks)} place(s) to see to before {folder} leaves", err=True)
        raise typer.Exit(1)
