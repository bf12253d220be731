"""The command that converts a hospital's folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medlt.cli.app import app
from medlt.cli.edge import Json, Volume, edge, example, number, pairs, path, text
from medlt.types import InputError

if TYPE_CHECKING:
    from medlt.cli.terminal import Terminal
    from medlt.data.convert import Places
    from medlt.engine import EngineChoice

NO_SETTINGS = ("src", "out", "query", "auth_file", "ca", "workers", "engine", "ray_address", "as_json", "volume")
"""Parameters of `convert` that do not belong to its settings."""

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
