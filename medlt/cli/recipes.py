"""Commands that run recipes: demo, run, augment, train, calibrate, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medlt import processes
from medlt.cli.app import app
from medlt.cli.edge import ConfigFile, Json, Out, Overrides, PerhapsConfigFile, Volume, edge, example, number, text
from medlt.cli.terminal import Terminal
from medlt.names import did_you_mean
from medlt.plugins import METHODS
from medlt.recipes._parts import PARTS
from medlt.types import InputError

LADDER = "phantom/ladder"

if TYPE_CHECKING:
    from medlt.config import RunConfig


def _finish(run: Path, terminal: Terminal) -> None:
    """Print the result of a run.

    Exit 1 if some of its input failed, none of its images was kept, or a verdict is not the expected one.
    """
    from medlt.evaluation.expected import lines as unexpected
    from medlt.report.terminal import report_table

    summary = json.loads((run / "run.json").read_text())
    file = run / "verdict.json"
    verdict = json.loads(file.read_text()) if file.is_file() else None
    terminal.show({"out": str(run), "verdict": verdict, **summary}, lambda: report_table(run))
    if not terminal.as_json and (run / "report.html").is_file():
        terminal.line(f"report: {run / 'report.html'}")
    counts = summary["counts"]
    lines = []
    if counts.get("failed", 0):
        lines.append(f"{counts['failed']} images could not be read; see {run / 'failures.csv'}")
    if counts.get("planned", 0) and not counts.get("kept", 0):
        lines.append(f"none of {counts['planned']} images passed the checks; see {run / 'checks.parquet'}")
    lines += unexpected(summary.get("expected", ()))
    for line in lines:
        typer.echo(f"medlt: {line}", err=True)
    if lines:
        raise typer.Exit(1)


def _with_out(overrides: list[str] | None, out: Path | None) -> list[str]:
    """Return the overrides; --out is the last of them."""
    return [*(overrides or []), *([f"output_dir={json.dumps(str(out))}"] if out else [])]


def _settings(config: str, overrides: list[str] | None, out: Path | None, method: str | None = None) -> RunConfig:
    """Return the YAML with its overrides, for `method` if given."""
    from medlt.config import load_config

    return load_config(Path(config), _with_out(overrides, out), method)


def _run(config: RunConfig, terminal: Terminal) -> None:
    """Run a config from end to end, and print its result."""
    with terminal.stage("loading libraries"):
        from medlt.recipes import ablate, run

    recipe = ablate if config.ablation is not None else run
    _finish(recipe.main(config, terminal), terminal)


@app.command(epilog=example("medlt demo --out demo --seed 0"))
def demo(
    out: Annotated[Path, typer.Option(metavar="PATH", help="Run folder to make or to resume.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Decides every image, split and batch.")] = 0,
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Run the whole job on built-in synthetic radiographs.

    DICOM goes in; a filled tail, a verdict and a report come out, in about 4 minutes on 2 CPU cores.
    """
    with edge(as_json, volume) as terminal:
        from medlt.config import catalogue, load_config

        config = load_config(catalogue.path("demo/demo"), _with_out([f"seed={seed}"], out))
        _run(config, terminal)


@app.command(
    epilog=example(
        "medlt run dicom_folder/quick data.path=labelled.parquet --out quick",
        "medlt run mine.yaml targets.count=200 seed=1",
    )
)
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Out = None,
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Fill the tail, and measure whether the images help.

    Classifiers trained with and without the synthetic images are compared on the test split. Run it again to resume; a
    finished stage is not repeated.
    """
    with edge(as_json, volume) as terminal:
        _run(_settings(config, overrides, out), terminal)


def _methods(incomplete: str) -> list[str]:
    return [name for name in METHODS if name.startswith(incomplete)]


@app.command(
    epilog=example(
        "medlt augment mine.yaml",
        "medlt augment mine.yaml --method edit",
        "medlt augment mine.yaml --engine ray --workers 16 --ray-address auto",
    )
)
def augment(
    config: ConfigFile,
    overrides: Overrides = None,
    method: Annotated[
        str | None,
        typer.Option(help=f"Instead of the config's: {', '.join(METHODS)}.", autocompletion=_methods),
    ] = None,
    out: Out = None,
    engine: Annotated[str | None, text("Where the workers are that make images: local, or ray.")] = None,
    workers: Annotated[int | None, number("Number of processes that make images.", min=1)] = None,
    gpus: Annotated[int | None, number("Number of GPUs that the workers share, one worker each at least.")] = None,
    ray_address: Annotated[str | None, text("Address of a Ray cluster; default: Ray on this machine.")] = None,
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Fill the tail, check and report, without a verdict.

    The same as `run` without the comparison of classifiers.

    With another --method than the config's, that method's defaults are used, the run goes to OUT-METHOD, and what was
    trained for OUT is used again.
    """
    with edge(as_json, volume) as terminal:
        given = {"kind": engine, "gpus": gpus, "address": ray_address}
        own = {name: value for name, value in given.items() if value is not None}
        chosen = [f"workers={workers}"] * (workers is not None) + [f"engine={json.dumps(own)}"] * bool(own)
        settings = _settings(config, [*(overrides or ()), *chosen], out, method)
        if settings.ablation is not None:
            raise InputError(f"{config}: an ablation makes no data set; use `medlt run`")
        with terminal.stage("loading libraries"):
            from medlt.recipes import augment as recipe

        _finish(recipe.main(settings, terminal), terminal)


def _parts(incomplete: str) -> list[str]:
    return [part for part in PARTS if part.startswith(incomplete)]


@app.command(epilog=example("medlt train denoiser mine.yaml"))
def train(
    part: Annotated[str, typer.Argument(metavar="PART", help=f"One of {', '.join(PARTS)}.", autocompletion=_parts)],
    config: ConfigFile,
    overrides: Overrides = None,
    out: Out = None,
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Train one part of a run, and the parts it is built on.

    `medlt run` with the same config then goes on from there. torchrun may start this command in several processes.
    """
    with edge(as_json, volume, several=True) as terminal:
        if part not in PARTS:
            raise InputError(
                f"{part!r} is not a part of a run{did_you_mean(part, PARTS)}; use one of {', '.join(PARTS)}"
            )
        settings = _settings(config, overrides, out)
        with terminal.stage("loading libraries"):
            from medlt.recipes import train as recipe

        made = recipe.main(settings, part, terminal)
        if processes.first():
            summary = json.loads((made / "run.json").read_text())
            terminal.show_lines({"out": str(made), "part": part, **summary}, [f"{part}: {made}"])


@app.command(epilog=example("medlt calibrate phantom/longtail", "medlt calibrate mine.yaml calibration.rows=48"))
def calibrate(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Out = None,
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Measure what guidance does, strength by strength, and choose the strength of each guide.

    The same rows are sampled with and without each guide. For a guide of `weight: auto` the largest weight is chosen
    that keeps the images near real ones and their labels in the eyes of a verifier that did not guide. No test image
    is read.

    `medlt augment` with the same config then goes on from there. Run it again to resume.
    """
    with edge(as_json, volume) as terminal:
        settings = _settings(config, overrides, out)
        with terminal.stage("loading libraries"):
            from medlt.recipes import calibrate as recipe

        made = recipe.main(settings, terminal)
        guides = json.loads((made / "run.json").read_text())["guidance"]
        lines = [_strength(guide) for guide in guides]
        terminal.show_lines({"out": str(made), "guidance": guides}, [*lines, f"report: {made / 'report.html'}"])


def _strength(guide: dict[str, Any]) -> str:
    """Return one line on a guide: its weight and what it does."""
    if not guide["weight"]:
        return f"{guide['kind']}: left out; no weight stays within the bounds"
    how = "chosen" if guide["chosen"] else "given"
    return f"{guide['kind']}: weight {guide['weight']:g}, {how}; it displaces latents by {guide['displacement']:.3f}"


@app.command(
    epilog=example(
        "medlt evaluate phantom/verdict", "medlt evaluate verdict.yaml --out verdict", "medlt evaluate --ladder"
    )
)
def evaluate(
    config: PerhapsConfigFile = None,
    overrides: Overrides = None,
    out: Out = None,
    ladder: Annotated[
        bool, typer.Option("--ladder", help=f"Check the experiment by arms of known effect: CONFIG, or {LADDER}.")
    ] = False,
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Run the experiment that decides whether synthetic images help.

    The verdict says by how much, and with what uncertainty.

    Every arm is trained alike with several seeds; one is chosen on validation data and tested once, against duplicated
    real images. Run it again to resume; an arm that is trained already is not trained again, so adding one trains one.
    Exit code 1: a verdict is not the one that `expect` of the config names.
    """
    with edge(as_json, volume) as terminal:
        from medlt.config import load_verdict

        if ladder and config is not None and "=" in config:
            overrides, config = [config, *(overrides or [])], None
        if config is None and not ladder:
            raise InputError("evaluate: no config; write medlt evaluate CONFIG, or medlt evaluate --ladder")
        settings = load_verdict(Path(config or LADDER), _with_out(overrides, out))
        if ladder and not settings.expect:
            raise InputError(f"{config}: expects no verdict; add a section such as expect: {{paste: helps}}")
        with terminal.stage("loading libraries"):
            from medlt.recipes import evaluate as recipe

        _finish(recipe.main(settings, terminal), terminal)
