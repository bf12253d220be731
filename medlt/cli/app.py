"""The program itself, to which the modules of this room add their commands."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    name="medlt",
    help="Fill the long tail of a radiograph collection with synthetic images, and measure whether they help.",
    epilog="\b\nExamples:\n  medlt demo\n  medlt --install-completion",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    """Print the version and stop, if it is wanted."""
    if wanted:
        from medlt import __version__

        typer.echo(f"medlt {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Fill the long tail of a radiograph collection with synthetic images, and measure whether they help."""
