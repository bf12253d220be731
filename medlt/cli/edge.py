"""What every command shares: options, the edge where errors become exit codes, and how results are printed."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from medlt.types import InputError

UNWRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EFBIG,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; everything else goes to stderr.")]
Recipe = Annotated[Path, typer.Argument(help="A recipe's YAML, such as pipelines/nih14_fusion.yaml.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="section.key=value")]
Out = Annotated[Path | None, typer.Option(help="Run folder; takes the place of the config's `out`.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bars (they are off in a pipe anyway).")]


@contextmanager
def edge() -> Iterator[None]:
    """A user's mistake, or a place without room, becomes one line and exit 2; an interrupt says how to go on."""
    try:
        yield
    except InputError as error:
        typer.echo(f"medlt: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        place = error.filename or "the disk"
        typer.echo(f"medlt: {place}: {error.strerror}; give a place with room that you may read and write", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("medlt: interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None


def say(value: dict[str, Any], table: Callable[[], object], as_json: bool) -> None:
    """Print `value` as JSON, or the rich table that `table` builds."""
    if as_json:
        typer.echo(json.dumps(value, default=str))
        return
    from rich.console import Console

    Console().print(table())
