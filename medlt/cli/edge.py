"""What all commands share: options, examples, and the block in which errors become exit codes."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from medlt.cli.result import as_json_text, print_error
from medlt.cli.terminal import Terminal
from medlt.types import InputError

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
UNUSABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.EFBIG, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
RESUME = "run the same command again to resume"


def configs(incomplete: str) -> list[str]:
    """Return the names and YAML files that complete a config on the command line."""
    from medlt.config import catalogue

    folder = Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent)
    files = [f"{path}/" if path.is_dir() else str(path) for path in sorted(folder.glob("*"))]
    files = [file for file in files if file.endswith(("/", ".yaml", ".yml"))]
    return [one for one in (*catalogue.names(), *files) if one.startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; all else goes to stderr.")]
Volume = Annotated[
    bool | None,
    typer.Option(
        "--verbose/--quiet", "-v/-q", help="Show details, or only warnings and the result.", show_default=False
    ),
]
_CONFIG = typer.Argument(
    metavar="CONFIG", help="YAML file, or a name from `medlt config list`.", autocompletion=configs
)
ConfigFile = Annotated[str, _CONFIG]
PerhapsConfigFile = Annotated[str | None, _CONFIG]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that replace the config's.")]
Out = Annotated[Path | None, typer.Option(metavar="PATH", help="Run folder, instead of the config's.")]


def text(help: str, *names: str) -> Any:
    """Return an option whose value is shown as TEXT in the help."""
    return typer.Option(*names, metavar="TEXT", help=help)


def number(help: str, *names: str, **limits: Any) -> Any:
    """Return an option whose value is shown as N; limits: min and max."""
    return typer.Option(*names, metavar="N", help=help, **limits)


def path(help: str, *names: str) -> Any:
    """Return an option whose value is shown as PATH."""
    return typer.Option(*names, metavar="PATH", help=help)


def pairs(help: str) -> Any:
    """Return an option that may be repeated, whose value is shown as NAME=VALUE."""
    return typer.Option(metavar="NAME=VALUE", help=help)


def example(*commands: str) -> str:
    """Return the examples at the end of a command's help."""
    return "\n".join(("\b", "Example:" if len(commands) == 1 else "Examples:", *(f"  {one}" for one in commands)))


@contextmanager
def edge(as_json: bool = False, volume: bool | None = None) -> Iterator[Terminal]:
    """Yield the command's terminal, and turn an error into one line on stderr and an exit code.

    A user's mistake, a folder that cannot be used and a lack of memory exit with 2, Ctrl-C with 130, SIGTERM with 143.
    With `as_json` stdout gets one object {"error": ..., "exit_code": ...}, also for a fault of medlt itself, whose
    traceback follows on stderr.
    """
    terminal = Terminal(as_json, volume)
    try:
        _require_one_process()
        with _terminable(), terminal:
            yield terminal
    except InputError as error:
        line, code = str(error), 2
    except OSError as error:
        if error.errno not in UNUSABLE:
            _print_fault(error, terminal)
            raise
        where = error.filename or "the disk"
        line, code = f"{where}: {error.strerror}; use a folder with free space that you may read and write", 2
    except (MemoryError, RuntimeError) as error:
        if not _memory(error):
            _print_fault(error, terminal)
            raise
        line, code = "out of memory; lower batch_size, or raise gradient_accumulation_steps, with another --out", 2
    except Terminated:
        line, code = f"terminated; {RESUME}", TERMINATED
    except KeyboardInterrupt:
        line, code = f"interrupted; {RESUME}", INTERRUPTED
    except typer.Exit:
        raise
    except Exception as error:
        _print_fault(error, terminal)
        raise
    else:
        return
    print_error(line, code, as_json and not terminal.printed)
    raise typer.Exit(code)


def _require_one_process() -> None:
    """Raise InputError under torchrun and its like, whose processes would do the same work in the same folder."""
    if (size := os.environ.get("WORLD_SIZE", "1")).isdecimal() and int(size) > 1:
        raise InputError(
            f"a command of medlt is one process, and {size} were started (WORLD_SIZE={size}); start it without "
            "torchrun, `accelerate launch` or mpirun"
        )


def _print_fault(error: Exception, terminal: Terminal) -> None:
    """Print an unexpected error as JSON, if it is wanted and no result is printed yet."""
    if terminal.as_json and not terminal.printed:
        terminal.line(as_json_text({"error": f"{type(error).__name__}: {error}", "exit_code": 1}))


def _memory(error: Exception) -> bool:
    """Return whether an error of Python or of torch is a lack of memory. torch is not imported for this."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


class Terminated(KeyboardInterrupt):
    """SIGTERM, which `kill`, a scheduler at its time limit and the stop of a container send."""


def _terminate(owner: int) -> None:
    """End the process `owner` like Ctrl-C, once. A process that was forked from it dies of the signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN if os.getpid() == owner else signal.SIG_DFL)
    if os.getpid() == owner:
        raise Terminated
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise Terminated inside the block, and restore its handler afterwards."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield
        return
    owner = os.getpid()
    before = signal.signal(signal.SIGTERM, lambda *_: _terminate(owner))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
