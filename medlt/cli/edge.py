"""What all commands share: options, examples, and the block in which errors become exit codes."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from medlt import processes
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
def edge(as_json: bool = False, volume: bool | None = None, several: bool = False) -> Iterator[Terminal]:
    """Yield the command's terminal, and turn an error into one line on stderr and an exit code.

    A user's mistake, a folder that cannot be used and a lack of memory exit with 2, Ctrl-C with 130, SIGTERM with 143.
    With `as_json` stdout gets one object {"error": ..., "exit_code": ...}, also for a fault of medlt itself, whose
    traceback follows on stderr. several: torchrun may start the command; one of its processes then reports an error.
    """
    if not processes.first():
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
        as_json, volume = False, False
    terminal = Terminal(as_json, volume)
    try:
        _require_one_process(several)
        with _terminable(), terminal:
            yield terminal
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt) as error:
        line, code = _ending(error)
        if not processes.speaks(error):
            processes.end_later()
            raise typer.Exit(code) from None
        if not line:
            _print_fault(error, terminal)
            raise
        print_error(processes.named(line), code, as_json and not terminal.printed)
        raise typer.Exit(code) from None


def _ending(error: BaseException) -> tuple[str, int]:
    """Return the line and the exit code of an error; no line for a fault of medlt."""
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, OSError) and error.errno in UNUSABLE:
        where = error.filename or "the disk"
        return f"{where}: {error.strerror}; use a folder with free space that you may read and write", 2
    if isinstance(error, MemoryError | RuntimeError) and _memory(error):
        return "out of memory; lower batch_size, or raise gradient_accumulation_steps, with another --out", 2
    if isinstance(error, Terminated):
        return f"terminated; {RESUME}", TERMINATED
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; {RESUME}", INTERRUPTED
    return "", 1


def _require_one_process(several: bool) -> None:
    """Raise InputError for several processes, which would do the same work in one folder, unless a command allows it.

    On CPUs `accelerate launch` without mpirun starts one process for any --num_processes, and says nothing.
    """
    if (size := os.environ.get("WORLD_SIZE", "1")).isdecimal() and int(size) > 1:
        if not (several and processes.started() > 1):
            raise InputError(
                f"a command of medlt is one process, and {size} were started (WORLD_SIZE={size}); start it without "
                "torchrun, `accelerate launch` or mpirun. torchrun may start `medlt train`, and this command then uses "
                "what was trained"
            )
    elif several and os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ:
        raise InputError(
            "on CPUs `accelerate launch` starts one process in place of several; use torchrun --nproc_per_node N "
            "-m medlt train"
        )


def _print_fault(error: BaseException, terminal: Terminal) -> None:
    """Print an unexpected error as JSON, if it is wanted and no result is printed yet."""
    if terminal.as_json and not terminal.printed:
        terminal.line(as_json_text({"error": f"{type(error).__name__}: {error}", "exit_code": 1}))


def _memory(error: BaseException) -> bool:
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
