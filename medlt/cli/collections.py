"""Commands on a hospital's files and tables: manifest, convert, validate."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medlt.cli.app import app
from medlt.cli.edge import Json, Volume, edge, example, number, pairs, path, text
from medlt.cli.layout_options import LAYOUT_OPTIONS, with_options
from medlt.plugins import LAYOUTS
from medlt.types import InputError

if TYPE_CHECKING:
    from medlt.cli.terminal import Terminal
    from medlt.data.convert import Places
    from medlt.data.layouts import LayoutResult
    from medlt.engine import EngineChoice

NO_SETTINGS = ("src", "out", "query", "auth_file", "ca", "workers", "engine", "ray_address", "as_json", "volume")
"""Parameters of `convert` that do not belong to its settings."""


def layouts(incomplete: str) -> list[str]:
    """Return the layouts that a name may be completed to."""
    return [name for name in LAYOUTS if name.startswith(incomplete)]


PartRows = Annotated[
    int | None, number("Write OUT.parquet as a folder of parts of N rows each; readers take it for one table.", min=1)
]
Layout = Annotated[str, typer.Argument(metavar="LAYOUT", help=f"One of {', '.join(LAYOUTS)}.", autocompletion=layouts)]


def _pairs(option: list[str] | None) -> dict[str, str]:
    """Return NAME=VALUE options as a mapping. Raises InputError for one without '='."""
    for one in option or ():
        if "=" not in one:
            raise InputError(f"--option {one!r} has no '='; write it as NAME=VALUE")
    return {one.partition("=")[0].replace("-", "_"): one.partition("=")[2] for one in option or ()}


@app.command(
    epilog=example(
        "medlt manifest csv labels.csv own.parquet --images png --findings A,B",
        "medlt manifest folder converted labelled.parquet --labels labels.csv",
        "medlt manifest folder release a.parquet --labels b.csv --crosswalk walk.csv",
        "medlt manifest mimic-cxr-lt MIMIC-CXR-JPG mimic.parquet --release 2023",
        "medlt manifest nih-cxr-lt Data_Entry_2017.csv nih.parquet --boxes b.csv",
    )
)
@with_options(LAYOUT_OPTIONS, before="boxes")
def manifest(
    layout: Layout,
    src: Annotated[Path, typer.Argument(metavar="SRC", help="The collection's folder, or the table.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.parquet", help="File to write, with OUT.orphans.csv beside it.")],
    boxes: Annotated[Path | None, path("Table of boxes: BBox_List_2017.csv, or your own.")] = None,
    reports: Annotated[Path | None, path("Table of reports: the side of each finding is read, no text kept.")] = None,
    option: Annotated[list[str] | None, pairs("An option of a plug-in's layout.")] = None,
    part_rows: PartRows = None,
    as_json: Json = False,
    volume: Volume = None,
    **given: object,
) -> None:
    """Write a collection's tables and files as one manifest.

    Labels and boxes without image, and images without label, are listed beside it. Exit code 1: labels lack an image.
    """
    with edge(as_json, volume) as terminal:
        read = _read(layout, src, given | _pairs(option), boxes, reports)
        _write(read, out, part_rows, terminal)
    if read.failures:
        raise typer.Exit(1)


def _write(read: LayoutResult, out: Path, part_rows: int | None, terminal: Terminal) -> None:
    """Write the manifest and the list of orphans, and show them."""
    orphans = read.write(out, part_rows)
    terminal.show({"out": str(out), "orphans_file": orphans and str(orphans), **read.summary()}, read.table)
    terminal.mention(f"manifest: {out}" + (f", orphans: {orphans}" if orphans else ""))
    terminal.mention(f"next: medlt validate {shlex.quote(str(out))}")


def _read(
    layout: str, src: Path, given: Mapping[str, object], boxes: Path | None, reports: Path | None
) -> LayoutResult:
    """Return what a layout reads, with the boxes of a table and the sides in reports if there are any."""
    from medlt.data.boxes import add_boxes
    from medlt.data.layouts import read_layout
    from medlt.data.sides import add_sides

    result = read_layout(layout, src, given)
    if boxes is not None:
        result = add_boxes(result, boxes)
    return result if reports is None else add_sides(result, reports)


@app.command(
    epilog=example(
        "medlt join nih.parquet mimic.parquet both.parquet",
        "medlt join a.parquet b.parquet c.parquet --alias 'Pleural Effusion=Effusion'",
    )
)
def join(
    manifests: Annotated[list[Path], typer.Argument(metavar="A.parquet B.parquet ...", help="Manifests to join.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.parquet", help="File to write.")],
    names: Annotated[str | None, text("Names of the collections, A,B (default: of the files).")] = None,
    alias: Annotated[list[str] | None, pairs("Another name of a finding: 'Pleural Effusion=Effusion'.")] = None,
    same_patients: Annotated[
        bool, typer.Option("--same-patients", help="Equal ids of patients and images mean the same ones.")
    ] = False,
    resplit: Annotated[bool, typer.Option("--resplit", help="Split patients again, 70/10/20 of each finding.")] = False,
    seed: Annotated[int, number("Seed of the new split.", min=0)] = 0,
    part_rows: PartRows = None,
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Join manifests of several collections into one.

    A finding that a collection does not have is unknown in its images. Patient 1 of A is not patient 1 of B. The column
    `source` names the collection of each image.
    """
    options: dict[str, object] = {
        "names": names,
        "alias": alias,
        "same_patients": same_patients,
        "resplit": resplit,
        "seed": seed,
    }
    with edge(as_json, volume) as terminal:
        from medlt.data.join import JoinOptions, join_manifests
        from medlt.data.layouts.options import parse

        given = {name: value for name, value in options.items() if value is not None}
        _write(join_manifests(manifests, parse(JoinOptions, "join", given)), out, part_rows, terminal)


Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="A folder of DICOM, PNG, JPEG or NIfTI files, a zip, or one file; only read. Or a DICOMweb URL, or s3://...",
    ),
]
Converted = Annotated[
    Path, typer.Argument(metavar="OUT", help="Folder to make or to resume: images/, manifest.parquet, ...")
]


@app.command(
    epilog=example(
        "medlt convert archive converted --size 512",
        "medlt convert archive converted --deidentify basic --key secret.key",
        "medlt convert https://pacs.example/dicom-web converted --query Modality=DX",
        "medlt convert s3://bucket/archive converted",
        "medlt convert archive converted --include ViewPosition=PA,AP --tags KVP",
    )
)
def convert(
    src: Source,
    out: Converted,
    preset: Annotated[str, text("viewer, mimic-cxr-jpg, chexpert or linear16.")] = "viewer",
    size: Annotated[int | None, number("Short side in pixels, area-averaged; default: unchanged.")] = None,
    kind: Annotated[str | None, text("png (default), png16, jpeg or nifti.", "--format")] = None,
    quality: Annotated[int, number("JPEG quality, 1 to 100.")] = 95,
    modality: Annotated[str, text("Only these, such as CR,DX.")] = "",
    body_part: Annotated[str, text("Only these, such as CHEST,THORAX, and files without one.")] = "",
    include: Annotated[list[str] | None, pairs("Only files with this DICOM value, Keyword=VALUE[,VALUE].")] = None,
    exclude: Annotated[list[str] | None, pairs("No file with this DICOM value, Keyword=VALUE[,VALUE].")] = None,
    tags: Annotated[str, text("More columns of the manifest, by DICOM keyword: StationName,KVP.")] = "",
    reduce: Annotated[int, number("2 or 4: decode JPEG 2000 faster, at less resolution.")] = 1,
    frames: Annotated[str, text("Of a multi-frame file: first or all.")] = "first",
    follow_links: Annotated[bool, typer.Option("--follow-links", help="Follow links, as of DVC and datalad.")] = False,
    deidentify: Annotated[str | None, text("basic[,retain-dates-modified][,...]: PS3.15.")] = None,
    key: Annotated[Path | None, path("File with a secret; equal pseudonyms in every call.")] = None,
    query: Annotated[list[str] | None, pairs("URL: only instances with this value, Modality=DX,CR.")] = None,
    auth_file: Annotated[Path | None, path("URL: file with user:password or a token.")] = None,
    ca: Annotated[Path | None, path("URL: PEM file of your own certificate authority.")] = None,
    workers: Annotated[int, number("Number of processes; 0 is one per core.", min=0)] = 0,
    engine: Annotated[str, text("Where the workers are: local, or ray.")] = "local",
    ray_address: Annotated[str | None, text("Address of a Ray cluster; default: Ray on this machine.")] = None,
    timeout: Annotated[float, number("Most seconds for one file.", min=0.1)] = 60.0,
    memory: Annotated[int, number("Most MiB of memory per process; 0 is no limit.", min=0)] = 4096,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read the headers alone; write nothing.")] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Also write preview.html, thumbnails to check.")] = False,
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Convert a hospital's folder to upright images and a manifest. Run it again to resume; nothing is overwritten.

    Exit code 0: every image was converted; 1: some failed, see failures.csv; 2: none was, or an option is wrong.
    """
    given = {name: value for name, value in locals().items() if name not in NO_SETTINGS}
    with edge(as_json, volume) as terminal:
        online = {"query": query, "auth_file": auth_file, "ca": ca}
        counts = _convert(src, out, given, online, (workers, _engine(engine, ray_address)), terminal)
    _exit_on_failures(counts, None if dry_run else _places(out, deidentify))


def _convert(
    src: str, out: Path, given: Mapping[str, Any], online: Mapping[str, Any], where: tuple[int, EngineChoice],
    terminal: Terminal,
) -> dict[str, Any]:  # fmt: skip
    """Convert a folder, or what a server at a URL holds; show the counts and return them."""
    from medlt.data.convert import convert as work
    from medlt.data.convert.settings import settings_from_options
    from medlt.data.convert.terminal import conversion_table

    settings, (workers, engine) = settings_from_options(**given), where
    if src.lower().startswith(("http://", "https://")):
        from medlt.data.dicomweb import DicomWebServer, convert_server

        with DicomWebServer(src, online["auth_file"], online["ca"]) as server:
            query = online["query"] or ()
            counts = convert_server(
                server, out, settings, query=query, workers=workers, engine=engine, progress=terminal
            )
    elif any(online.values()):
        raise InputError(f"{src}: --query, --auth-file and --ca need the URL of a DICOMweb server, https://...")
    else:
        counts = work(src, out, settings, workers=workers, engine=engine, progress=terminal)
    terminal.show({"out": str(out), **counts}, lambda: conversion_table(out, counts))
    if settings.preview and not settings.dry_run:
        terminal.mention(f"thumbnails: {out / 'preview.html'}")
    if counts["converted"] and not settings.dry_run:
        terminal.mention(_next_command(_places(out, settings.profile)))
    return counts


def _engine(kind: str, address: str | None) -> EngineChoice:
    """Return an engine. Raises InputError for one that does not exist, and for the address of another than Ray."""
    from medlt.engine import EngineChoice

    if kind not in ("local", "ray") or (address and kind != "ray"):
        raise InputError(f"--engine {kind}: use local, or ray, which alone has --ray-address")
    return EngineChoice("ray" if kind == "ray" else "local", address=address)


def _places(out: Path, profile: object) -> Places:
    """Return where a conversion under this profile, or none, writes."""
    from medlt.data.convert import Places

    return Places(out, profile is not None)


def _next_command(places: Places) -> str:
    """Return the line that names the command after a conversion."""
    release = shlex.quote(str(places.release))
    if not places.deidentified:
        return f"next: medlt init {release} --labels TABLE.csv"
    crosswalk = f"--crosswalk {shlex.quote(str(places.crosswalk))} --key accession"
    return f"next: medlt manifest folder {release} labelled.parquet --labels TABLE.csv --findings all {crosswalk}"


def _exit_on_failures(counts: dict[str, int], places: Places | None) -> None:
    """Print how many files failed and end with exit code 1, or with 2 if none was converted."""
    if counts["failed"] or not counts["converted"]:
        what = f"{counts['failed']} file(s) failed" if counts["failed"] else "no file was converted"
        where = f"; reasons are in {places.out / 'failures.csv'}, file names in {places.sources}" if places else ""
        typer.echo(f"medlt: {what}{where}", err=True)
        raise typer.Exit(1 if counts["converted"] else 2)


@app.command(epilog=example("medlt validate manifest.parquet", "medlt validate manifest.parquet --config run.yaml"))
def validate(
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="A manifest.parquet, a file or a folder of parts.")
    ],
    config: Annotated[str | None, path("Config whose image cache this pass also fills.")] = None,
    workers: Annotated[int, number("Number of threads that read images; 0 is one per core.", min=0)] = 0,
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Check a manifest's labels and files before training.

    Shows counts per finding and split, the smallest gain that the test images can show, unreadable images, and images
    that another patient has in another split. Exit code 1: there are such images, or labels that stop an experiment.

    With --config, a run of that config, or of another one with its artifacts_dir, then decodes no image again.
    """
    with edge(as_json, volume) as terminal:
        from medlt.data.manifest import Manifest
        from medlt.data.validate import validate as check

        threads, rows = workers or os.cpu_count() or 1, Manifest.read(manifest)
        if config is None:
            report = check(rows, threads, terminal)
        else:
            from medlt.config import load_any
            from medlt.recipes import validate as recipe

            report = recipe.main(rows, threads, terminal, load_any(Path(config)))
        terminal.show(report.summary(), report.table)
        if not report.failures:
            terminal.mention(f"next: medlt init {shlex.quote(str(manifest))}")
    if report.failures:
        raise typer.Exit(1)
