"""Commands on the configs that ship with medlt: list, copy, schema."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Annotated, Literal

import typer

from medlt.cli.app import Commands, app
from medlt.cli.edge import Json, Volume, edge, example

config = typer.Typer(
    cls=Commands,
    help="List, copy or describe the configs that ship with medlt.",
    epilog=example("medlt config list", "medlt config copy dicom_folder/fusion"),
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(config, name="config")


def names(incomplete: str) -> list[str]:
    """Return the names of shipped configs that complete what is typed."""
    from medlt.config import catalogue

    return [name for name in catalogue.names() if name.startswith(incomplete)]


@config.command("list", epilog=example("medlt config list"))
def list_configs(as_json: Json = False, volume: Volume = None) -> None:
    """List the configs that ship with medlt.

    `medlt run NAME` runs one unchanged, `medlt evaluate NAME` an experiment.
    """
    with edge(as_json, volume) as terminal:
        from medlt.config import catalogue

        listed = catalogue.names()
        shipped = [{"name": one, "kind": catalogue.kind(one), "about": catalogue.description(one)} for one in listed]
        width = max(map(len, listed)) + 2
        lines = [line for one in shipped for line in _described(one["name"], one["about"], width)]
        terminal.show_lines({"configs": shipped}, lines)


def _described(name: str, about: str, width: int) -> list[str]:
    """Return a name and the first sentence about it, in lines of at most 80 characters."""
    sentence = re.split(r"(?<=[.?])\s", about)[0].rstrip(".")
    return textwrap.wrap(
        f"{name:{width}}{sentence}", 80, subsequent_indent=" " * width, break_on_hyphens=False, break_long_words=False
    )


@config.command(epilog=example("medlt config copy demo/demo", "medlt config copy dicom_folder/fusion mine.yaml"))
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `medlt config list`.", autocompletion=names)],
    to: Annotated[
        Path | None, typer.Argument(metavar="TO", help="Folder, or file ending in .yaml; default: here.")
    ] = None,
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Copy a shipped config to change it.

    The configs that its sources name are copied too. Nothing is overwritten.
    """
    with edge(as_json, volume) as terminal:
        from medlt.config import catalogue

        written = [str(path) for path in catalogue.copy(name, to)]
        terminal.show_lines({"written": written}, written)


@config.command(epilog=example("medlt config schema > medlt.schema.json"))
def schema(
    kind: Annotated[
        Literal["run", "verdict"],
        typer.Argument(metavar="KIND", help="run: a config of `medlt run`; verdict: one of `medlt evaluate`."),
    ] = "run",
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Print the JSON schema of a config.

    For editors that complete and check YAML. It is JSON with or without --json.
    """
    with edge(as_json, volume) as terminal:
        from medlt.config import schema as schema_of

        terminal.line(json.dumps(schema_of(kind), indent=2))
