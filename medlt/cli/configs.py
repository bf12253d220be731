"""Commands on the configs that ship with medlt: list, copy, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from medlt.cli.app import app
from medlt.cli.edge import Json, edge, say

config = typer.Typer(help="The configs that ship with medlt: list, copy, schema.", no_args_is_help=True)
app.add_typer(config, name="config")


@config.command("list")
def names(as_json: Json = False) -> None:
    """Names of the configs that ship with medlt, and their recipes. `medlt run NAME` runs one as it is."""
    with edge():
        from medlt.config import catalogue

        found = {name: catalogue.recipe(name) for name in catalogue.names()}
        if as_json:
            say({"configs": found}, str, as_json)
            return
        for name, recipe in found.items():
            typer.echo(f"{name:26}{recipe}")


@config.command()
def copy(
    name: Annotated[str, typer.Argument(help="Such as nih14/fusion; `medlt config list` shows all.")],
    to: Annotated[Path | None, typer.Argument(help="Folder, or file ending in .yaml; default: here.")] = None,
    as_json: Json = False,
) -> None:
    """Copy a shipped config, and the configs that its sources name. Nothing is overwritten."""
    with edge():
        from medlt.config import catalogue

        written = [str(path) for path in catalogue.copy(name, to)]
        if as_json:
            say({"written": written}, str, as_json)
            return
        for path in written:
            typer.echo(path)


@config.command()
def schema(
    kind: Annotated[Literal["run", "verdict"], typer.Argument(help="A recipe's config, or an experiment's.")] = "run",
) -> None:
    """The JSON schema of a config on stdout, for editors that complete and check YAML."""
    with edge():
        from medlt.config import schema as made

        typer.echo(json.dumps(made(kind), indent=2))
