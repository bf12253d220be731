"""What every command shares: options, the edge where errors become exit codes, and how results are printed."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from medlt.types import InputError

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
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
Recipe = Annotated[Path, typer.Argument(help="A recipe's YAML, or a name from `medlt config list`.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="section.key=value")]
Out = Annotated[Path | None, typer.Option(help="Run folder; takes the place of the config's `out`.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bars (they are off in a pipe anyway).")]


@contextmanager
def edge() -> Iterator[None]:
    """A user's mistake, or a place without room, becomes one line and exit 2.

    Ctrl-C and SIGTERM become one line that says how to go on, and exit 130 or 143, as a shell counts signals.
    """
    try:
        with _terminable():
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
    except Terminated:
        typer.echo("medlt: terminated; the same command goes on from here", err=True)
        raise typer.Exit(TERMINATED) from None
    except KeyboardInterrupt:
        typer.echo("medlt: interrupted; the same command goes on from here", err=True)
        raise typer.Exit(INTERRUPTED) from None


class Terminated(KeyboardInterrupt):
    """SIGTERM, as `kill`, a scheduler at its time limit or a container's stop send it."""


def _terminate(owner: int) -> None:
    """End the process `owner` as Ctrl-C does, once; a process that was forked from it dies as ever."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN if os.getpid() == owner else signal.SIG_DFL)
    if os.getpid() == owner:
        raise Terminated
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _terminable() -> Iterator[None]:
    """Inside, SIGTERM raises Terminated; outside it does what it did before."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may say what signals do
        yield
        return
    owner = os.getpid()
    before = signal.signal(signal.SIGTERM, lambda *_: _terminate(owner))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say(value: dict[str, Any], table: Callable[[], object], as_json: bool) -> None:
    """Print `value` as JSON, or the rich table that `table` builds."""
    if as_json:
        typer.echo(json.dumps(value, default=str))
        return
    from rich.console import Console

    Console().print(table())
