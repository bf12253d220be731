"""Commands on a hospital's files and tables: manifest, convert, validate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from medlt.cli.app import app
from medlt.cli.edge import Json, NoProgress, edge, say
from medlt.types import InputError


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
    with edge():
        from medlt.data.layouts import read_layout

        found = read_layout(layout, src, given)
        orphans = found.write(out)
        say({"out": str(out), "orphans_file": orphans and str(orphans), **found.told()}, found.table, as_json)
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
    with edge():
        from medlt.data.convert import convert as work
        from medlt.data.convert.settings import asked
        from medlt.data.convert.terminal import table
        from medlt.progress import Progress

        if engine != "local":
            raise InputError(f"--engine {engine}: not known; use local")
        given = (preset, size, kind, quality, deidentify, key, modality, body_part, timeout, memory, dry_run, digest)
        with Progress(enabled=not no_progress and sys.stderr.isatty()) as progress:
            told = work(src, out, asked(*given), workers=workers, progress=progress)
        say({"out": str(out), **told}, lambda: table(out, told), as_json)
    if told["failed"] or not told["converted"]:
        raise typer.Exit(1 if told["converted"] else 2)


@app.command()
def validate(
    manifest: Annotated[Path, typer.Argument(help="A manifest.parquet.")],
    as_json: Json = False,
) -> None:
    """Look at labels and files before anything is trained: counts per finding and split, unreadable images."""
    with edge():
        from medlt.data.manifest import Manifest
        from medlt.data.validate import validate as look

        found = look(Manifest.read(manifest))
        say(found.told(), found.table, as_json)
    if found.failures:
        raise typer.Exit(1)
