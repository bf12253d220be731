"""The command line: a thin edge over the recipes. Heavy imports live inside the commands.

Exit codes: 0 all done, 1 done with some failures listed, 2 nothing done (bad input or usage), 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medlt.types import InputError

if TYPE_CHECKING:
    from medlt.config import RunConfig

app = typer.Typer(
    name="medlt",
    help="Fill the long tail of a radiograph collection with synthetic images, and prove whether it helps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; everything else goes to stderr.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bars (they are off in a pipe anyway).")]


def _version(asked: bool) -> None:
    if asked:
        from medlt import __version__

        typer.echo(f"medlt {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Fill the long tail of a radiograph collection with synthetic images, and prove whether it helps."""


@contextmanager
def _edge() -> Iterator[None]:
    """A user's mistake becomes one line and exit 2; an interrupt says how to go on."""
    try:
        yield
    except InputError as error:
        typer.echo(f"medlt: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("medlt: interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None


def _say(value: dict[str, Any], table: Callable[[], object], as_json: bool) -> None:
    """Print `value` as JSON, or the rich table that `table` builds."""
    if as_json:
        typer.echo(json.dumps(value, default=str))
        return
    from rich.console import Console

    Console().print(table())


def _finish(run: Path, as_json: bool) -> None:
    """Print what a run came to; exit 1 if some of its input failed."""
    from medlt.report.terminal import table

    told = json.loads((run / "run.json").read_text())
    verdict = json.loads((run / "verdict.json").read_text())
    _say({"out": str(run), "verdict": verdict, **told}, lambda: table(run), as_json)
    if not as_json:
        typer.echo(f"report: {run / 'report.html'}")
    if told["counts"].get("failed", 0):
        typer.echo(f"medlt: {told['counts']['failed']} images could not be read; see {run / 'failures.csv'}", err=True)
        raise typer.Exit(1)


def _recipe(config: RunConfig, no_progress: bool, as_json: bool) -> None:
    from medlt.progress import Progress
    from pipelines import RECIPES

    with Progress(enabled=not no_progress and sys.stderr.isatty()) as progress:
        run = RECIPES[config.recipe]()(config, progress)
    _finish(run, as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder to make, or to go on with.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Decides every image, split and batch.")] = 0,
    as_json: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """The whole job on built-in synthetic radiographs: DICOM in, a filled tail, a verdict and a report out."""
    with _edge():
        from medlt.config import load
        from pipelines import FOLDER

        config = load(FOLDER / "demo.yaml", [f"out={json.dumps(str(out))}", f"seed={seed}"])
        _recipe(config, no_progress, as_json)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="A recipe's YAML, such as pipelines/nih14_fusion.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="section.key=value")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; takes the place of the config's `out`.")] = None,
    as_json: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """Run one recipe end to end. Run it again to resume; a finished stage is not repeated."""
    with _edge():
        from medlt.config import load

        place = [f"out={json.dumps(str(out))}"] if out else []
        _recipe(load(config, [*(overrides or []), *place]), no_progress, as_json)


@app.command()
def validate(
    manifest: Annotated[Path, typer.Argument(help="A manifest.parquet.")],
    as_json: Json = False,
) -> None:
    """Look at labels and files before anything is trained: counts per finding and split, unreadable images."""
    with _edge():
        from medlt.data.manifest import Manifest
        from medlt.data.validate import validate as look

        found = look(Manifest.read(manifest))
        _say(found.told(), found.table, as_json)
    if found.failures:
        raise typer.Exit(1)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    as_json: Json = False,
) -> None:
    """Write RUN/report.html anew from the run's files: one self-contained page."""
    with _edge():
        from rich.text import Text

        from medlt.report.html import write

        path = write(run)
        _say({"report": str(path)}, lambda: Text(f"report: {path}"), as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this installation can do: versions, device, image codecs, whether it may reach the network."""
    with _edge():
        from medlt.doctor import examine, table

        found = examine()
        _say(found, lambda: table(found), as_json)
