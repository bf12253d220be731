"""The program itself, to which the modules of this folder add their commands."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from medlt.cli.result import print_error
from medlt.names import did_you_mean

ORDER = ("doctor", "demo", "convert", "init", "deidentify", "manifest", "join", "validate", "config", "check",
         "run", "augment", "evaluate", "train", "calibrate", "review", "audit", "release", "report",
         "export")  # fmt: skip
"""The commands in the order in which a new user needs them."""
HELP = "Fill the long tail of a radiograph collection with synthetic images, and measure whether they help."


class Commands(TyperGroup):
    """A group of commands. A mistake in what was typed becomes one line on stderr and exit code 2.

    With --json it becomes one JSON object on stdout as well, like every other error of a command.
    """

    def main(self, args: Sequence[str] | None = None, *others: Any, **settings: Any) -> Any:
        """Run the program, and exit."""
        typed = sys.argv[1:] if args is None else list(args)
        try:
            code = super().main(typed, *others, **{**settings, "standalone_mode": False})
        except Exception as error:
            if not hasattr(error, "format_message"):  # typer and click each have a base class of their own
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                typer.echo(error.format_message(), err=True)
            else:
                print_error(_usage(error), 2, "--json" in typed)
            code = 2
        sys.exit(code or 0)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in the order of a new user's work."""
        return sorted(self.commands, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that was typed. Raise a usage error that names the closest one and all there are."""
        name, known = args[0], self.list_commands(ctx)
        if name in known or name.startswith("-"):
            return super().resolve_command(ctx, args)
        close = did_you_mean(name, known) or ";"
        ctx.fail(f"{ctx.command_path} has no command {name!r}{close} use one of {', '.join(known)}")


def _usage(error: Any) -> str:
    """Return a usage error as one line: what is wrong, and what to type."""
    line = " ".join(str(error.format_message()).split()).rstrip(".").replace("Value error, ", "")
    line = re.sub(r"Input should be ([^,;]*)(, unable to parse[^;]*)?", r"must be \1", line)
    line = line[:1].lower() + line[1:]
    context = getattr(error, "ctx", None)
    if context is None:
        return line
    if (option := getattr(error, "option_name", None)) and hasattr(error, "possibilities"):
        line = _unknown_option(str(option), context.command)
    return line if "use one of" in line else f"{line}; see `{context.command_path} --help`"


def _unknown_option(option: str, command: Any) -> str:
    """Return that a command has no such option, with the closest one, or the way to write a setting."""
    known = [name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)]
    long = [name for name in known if name.startswith("--")]
    begun = [name for name in long if option.startswith(name) or name.startswith(option)]
    close = f"; did you mean {begun[0]!r}?" if begun else did_you_mean(option, long)
    if not close and any(parameter.name == "overrides" for parameter in command.params):
        close = f"; write a setting of the config without dashes: {option.strip('-')}=VALUE"
    return f"no such option: {option}{close}"


app = typer.Typer(
    name="medlt",
    cls=Commands,
    help=HELP,
    epilog="\b\nExamples:\n  medlt demo\n  medlt doctor\n  medlt --install-completion",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    """Print the version and stop, if it is wanted."""
    if wanted:
        from medlt._version import __version__

        typer.echo(f"medlt {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Fill the long tail of a radiograph collection with synthetic images, and measure whether they help."""
