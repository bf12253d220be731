"""Commands that run recipes: demo, run, train, augment, evaluate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medlt.cli.app import app
from medlt.cli.edge import Json, NoProgress, Out, Overrides, Recipe, edge, say
from medlt.types import InputError

if TYPE_CHECKING:
    from medlt.config import RunConfig


def _finish(run: Path, as_json: bool) -> None:
    """Print what a run came to; exit 1 if some of its input failed or none of its images was kept."""
    from medlt.report.terminal import table

    told = json.loads((run / "run.json").read_text())
    judged = run / "verdict.json"
    verdict = json.loads(judged.read_text()) if judged.is_file() else None
    say({"out": str(run), "verdict": verdict, **told}, lambda: table(run), as_json)
    if not as_json and (run / "report.html").is_file():
        typer.echo(f"report: {run / 'report.html'}")
    counts = told["counts"]
    lines = []
    if counts.get("failed", 0):
        lines.append(f"{counts['failed']} images could not be read; see {run / 'failures.csv'}")
    if counts.get("planned", 0) and not counts.get("kept", 0):
        lines.append(f"none of {counts['planned']} images passed the checks; see {run / 'findings.parquet'}")
    for line in lines:
        typer.echo(f"medlt: {line}", err=True)
    if lines:
        raise typer.Exit(1)


def _settings(config: Path, overrides: list[str] | None, out: Path | None, method: str | None = None) -> RunConfig:
    """The YAML with its overrides, made by `method`; --out is the last of them."""
    from medlt.config import load

    return load(config, [*(overrides or []), *([f"out={json.dumps(str(out))}"] if out else [])], method)


def _run(config: RunConfig, no_progress: bool, as_json: bool) -> None:
    from medlt.progress import Progress
    from medlt.recipes import ablate, run

    recipe = ablate if config.recipe == "ablation" else run
    with Progress(enabled=not no_progress and sys.stderr.isatty()) as progress:
        folder = recipe.main(config, progress)
    _finish(folder, as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder to make, or to go on with.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Decides every image, split and batch.")] = 0,
    as_json: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """The whole job on built-in synthetic radiographs: DICOM in, a filled tail, a verdict and a report out."""
    with edge():
        from medlt.config import catalogue, load

        config = load(catalogue.path("demo/demo"), [f"out={json.dumps(str(out))}", f"seed={seed}"])
        _run(config, no_progress, as_json)


@app.command()
def run(
    config: Recipe,
    overrides: Overrides = None,
    out: Out = None,
    as_json: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """Run one recipe end to end. Run it again to resume; a finished stage is not repeated."""
    with edge():
        _run(_settings(config, overrides, out), no_progress, as_json)


@app.command()
def augment(
    config: Recipe,
    overrides: Overrides = None,
    method: Annotated[
        str | None, typer.Option(help="fusion, edit, noise, diffult, minority or longtail, not the config's recipe.")
    ] = None,
    out: Out = None,
    engine: Annotated[str, typer.Option(help="local.")] = "local",
    as_json: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """Learn, fill the tail, check, report; as `run`, but without the arms that say whether it helps.

    With another --method than the config's, that method's defaults are used, the run goes to OUT-METHOD, and what was
    learnt for OUT is used again.
    """
    with edge():
        if engine != "local":
            raise InputError(f"--engine {engine}: not known; use local")
        settings = _settings(config, overrides, out, method)
        if settings.recipe == "ablation":
            raise InputError(f"{config}: an ablation makes no data set; use `medlt run`")
        from medlt.progress import Progress
        from medlt.recipes import augment as recipe

        with Progress(enabled=not no_progress and sys.stderr.isatty()) as progress:
            folder = recipe.main(settings, progress)
        _finish(folder, as_json)


@app.command()
def train(
    part: Annotated[str, typer.Argument(metavar="PART", help="codec, sparse, denoiser, classifier or epistemic.")],
    config: Recipe,
    overrides: Overrides = None,
    out: Out = None,
    as_json: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """Train one part of a recipe, and what it stands on, into the run folder. `medlt run` then goes on from there."""
    with edge():
        from medlt.progress import Progress
        from medlt.recipes import train as recipe

        settings = _settings(config, overrides, out)
        with Progress(enabled=not no_progress and sys.stderr.isatty()) as progress:
            made = recipe.main(settings, part, progress)
        told = json.loads((settings.out / "run.json").read_text())
        say({"out": str(settings.out), "part": part, "made": str(made), **told}, lambda: f"{part}: {made}", as_json)


@app.command()
def evaluate(
    config: Annotated[Path, typer.Argument(help="An experiment's YAML, or a name from `medlt config list`.")],
    overrides: Overrides = None,
    out: Out = None,
    as_json: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """The experiment that decides: does the augmentation help, by how much, how sure. Run it again to go on.

    Every arm is trained alike with several seeds; one is chosen on validation and tested once, against duplicated real
    images. An arm that is trained already is not trained again, so adding one trains one.
    """
    with edge():
        from medlt.config import load_verdict
        from medlt.progress import Progress
        from medlt.recipes import evaluate as recipe

        settings = load_verdict(config, [*(overrides or []), *([f"out={json.dumps(str(out))}"] if out else [])])
        with Progress(enabled=not no_progress and sys.stderr.isatty()) as progress:
            folder = recipe.main(settings, progress)
        _finish(folder, as_json)
