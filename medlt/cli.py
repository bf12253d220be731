"""The command line: a thin edge over the recipes. Heavy imports live inside the commands.

Exit codes: 0 all done, 1 done with some failures listed, 2 nothing done (bad input or usage), 130 interrupted.
"""

from __future__ import annotations

import errno
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


def _say(value: dict[str, Any], table: Callable[[], object], as_json: bool) -> None:
    """Print `value` as JSON, or the rich table that `table` builds."""
    if as_json:
        typer.echo(json.dumps(value, default=str))
        return
    from rich.console import Console

    Console().print(table())


def _finish(run: Path, as_json: bool) -> None:
    """Print what a run came to; exit 1 if some of its input failed or none of its images was kept."""
    from medlt.report.terminal import table

    told = json.loads((run / "run.json").read_text())
    judged = run / "verdict.json"
    verdict = json.loads(judged.read_text()) if judged.is_file() else None
    _say({"out": str(run), "verdict": verdict, **told}, lambda: table(run), as_json)
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


def _settings(config: Path, overrides: list[str] | None, out: Path | None) -> RunConfig:
    """The YAML with its overrides; --out is the last of them."""
    from medlt.config import load

    return load(config, [*(overrides or []), *([f"out={json.dumps(str(out))}"] if out else [])])


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
    config: Recipe,
    overrides: Overrides = None,
    out: Out = None,
    as_json: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """Run one recipe end to end. Run it again to resume; a finished stage is not repeated."""
    with _edge():
        _recipe(_settings(config, overrides, out), no_progress, as_json)


@app.command()
def train(
    part: Annotated[str, typer.Argument(metavar="PART", help="codec, sparse, denoiser or classifier.")],
    config: Recipe,
    overrides: Overrides = None,
    out: Out = None,
    as_json: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """Train one part of a recipe, and what it stands on, into the run folder. `medlt run` then goes on from there."""
    with _edge():
        from medlt.progress import Progress
        from pipelines.training import main

        settings = _settings(config, overrides, out)
        with Progress(enabled=not no_progress and sys.stderr.isatty()) as progress:
            made = main(settings, part, progress)
        told = json.loads((settings.out / "run.json").read_text())
        _say({"out": str(settings.out), "part": part, "made": str(made), **told}, lambda: f"{part}: {made}", as_json)


@app.command()
def manifest(
    layout: Annotated[str, typer.Argument(help="mimic-cxr-lt, nih-cxr-lt, cxr-lt, csv or folder.")],
    src: Annotated[Path, typer.Argument(help="The collection's folder, or the table.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.parquet", help="Orphans go to OUT.orphans.csv beside it.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the images, if it is not SRC.")] = None,
    release: Annotated[str | None, typer.Option(help="2022, 2023, 2024, chexpert, negbio, nih14.")] = None,
    task: Annotated[str | None, typer.Option(help="CXR-LT 2024: all, 1, 2 or 3.")] = None,
    findings: Annotated[str | None, typer.Option(help="csv, folder: the label columns, A,B,...")] = None,
    labels: Annotated[Path | None, typer.Option(help="folder: the table of labels.")] = None,
    key: Annotated[str | None, typer.Option(help="folder: its column that names an image or a study.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="csv, folder: uid=NAME, patient_id=NAME, ...")] = None,
    patient: Annotated[str | None, typer.Option(help="csv, folder: regular expression on the path.")] = None,
    keep: Annotated[str | None, typer.Option(help="csv, folder: columns to carry along; sex,age")] = None,
    train_flag: Annotated[str | None, typer.Option(help="csv: train rows only where this is 1.")] = None,
    uncertain: Annotated[str | None, typer.Option(help="-1 is: unknown (default), positive, negative.")] = None,
    blank: Annotated[str | None, typer.Option(help="A blank label is: unknown (default), negative.")] = None,
    all_zero: Annotated[str | None, typer.Option(help="Rows of zeros: keep, drop, no-finding.")] = None,
    missing: Annotated[str | None, typer.Option(help="Rows without their file: drop (default), keep.")] = None,
    resplit: Annotated[bool, typer.Option("--resplit", help="Split patients anew, by hash.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of that hash; 0.")] = None,
    as_json: Json = False,
) -> None:
    """A collection's tables and files as one manifest; labels without image and images without label are told."""
    given = {name: value for name, value in locals().items() if name not in ("layout", "src", "out", "as_json")}
    with _edge():
        from medlt.data.layouts import read_layout

        found = read_layout(layout, src, given)
        orphans = found.write(out)
        _say({"out": str(out), "orphans_file": orphans and str(orphans), **found.told()}, found.table, as_json)
        typer.echo(f"manifest: {out}" + (f", orphans: {orphans}" if orphans else ""), err=True)
    if found.failures:
        raise typer.Exit(1)


@app.command()
def convert(
    src: Annotated[Path, typer.Argument(help="A folder of DICOM, PNG, JPEG or NIfTI files, or one file; only read.")],
    out: Annotated[Path, typer.Argument(help="Folder to make, or to go on with: images/, manifest.parquet, ...")],
    preset: Annotated[str, typer.Option(help="viewer, mimic-cxr-jpg, chexpert or linear16.")] = "viewer",
    size: Annotated[int | None, typer.Option(help="Short side in pixels, area-averaged; as it is if left out.")] = None,
    kind: Annotated[str | None, typer.Option("--format", help="png (default), png16, jpeg or nifti.")] = None,
    quality: Annotated[int, typer.Option(help="Of JPEG; recorded.")] = 95,
    modality: Annotated[str, typer.Option(help="Only these, such as CR,DX.")] = "",
    body_part: Annotated[str, typer.Option(help="Only these, such as CHEST,THORAX.")] = "",
    deidentify: Annotated[str | None, typer.Option(help="basic[,retain-dates-modified][,...]: PS3.15.")] = None,
    key: Annotated[Path | None, typer.Option(help="A secret, for consistent pseudonyms.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 is one a core. No effect on the bytes.")] = 0,
    engine: Annotated[str, typer.Option(help="local.")] = "local",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one file.")] = 60.0,
    memory: Annotated[int, typer.Option(min=0, help="MiB of address space a worker may use; 0 is no cap.")] = 4096,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read the headers, say what a run would do.")] = False,
    digest: Annotated[bool, typer.Option(help="Without it inputs are not hashed whole: faster, no sha256_in.")] = True,
    as_json: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """A hospital's folder to upright images and a manifest. Run it again to resume; nothing is overwritten.

    Exit code 0: every image was converted; 1: some failed, see failures.csv; 2: none was, or a wrong option.
    """
    with _edge():
        from medlt.data.convert import convert as work
        from medlt.data.convert.settings import asked
        from medlt.data.convert.terminal import table
        from medlt.progress import Progress

        if engine != "local":
            raise InputError(f"--engine {engine}: not known; use local")
        given = (preset, size, kind, quality, deidentify, key, modality, body_part, timeout, memory, dry_run, digest)
        with Progress(enabled=not no_progress and sys.stderr.isatty()) as progress:
            told = work(src, out, asked(*given), workers=workers, progress=progress)
        _say({"out": str(out), **told}, lambda: table(out, told), as_json)
    if told["failed"] or not told["converted"]:
        raise typer.Exit(1 if told["converted"] else 2)


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
