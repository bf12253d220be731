"""Commands on a hospital's tables: manifest, join, validate."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medlt.cli.app import app
from medlt.cli.edge import Json, Volume, edge, example, number, pairs, path, text
from medlt.cli.layout_options import LAYOUT_OPTIONS, with_options
from medlt.plugins import LAYOUTS
from medlt.types import InputError

if TYPE_CHECKING:
    from medlt.cli.terminal import Terminal
    from medlt.data.layouts import LayoutResult


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
