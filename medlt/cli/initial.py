"""The command that looks at a collection and writes a config for it: init."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medlt.cli.app import app
from medlt.cli.edge import Json, Volume, edge, example, path, text

if TYPE_CHECKING:
    from medlt.api.drafting import FirstConfig
    from medlt.cli.terminal import Terminal
    from medlt.data.layouts.layout_result import LayoutResult


@app.command(
    epilog=example(
        "medlt init converted --labels labels.csv",
        "medlt init labels.csv --images png --out mine.yaml",
        "medlt init /data/mimic-cxr-jpg",
        "medlt init manifest.parquet",
    )
)
def init(
    src: Annotated[Path, typer.Argument(metavar="SRC", help="A folder, a table of labels, or a manifest.parquet.")],
    out: Annotated[Path, path("Config to write; a new manifest lies beside it.")] = Path("medlt.yaml"),
    labels: Annotated[Path | None, path("Table of labels of a folder of images.")] = None,
    images: Annotated[str | None, path("Folder of the images of a table, or its URL.")] = None,
    findings: Annotated[str | None, text("Label columns, A,B,... (default: every column of 0, 1 and blanks).")] = None,
    patient: Annotated[str | None, text("Regular expression that matches the patient in the path.")] = None,
    column: Annotated[list[str] | None, text("A column's name in the table, such as patient_id=PID.")] = None,
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Look at a collection, measure this machine, and write a config with the reasons as comments.

    It shows the rare findings, the smallest gain that an experiment could show for each, and how long the run would
    take. Folders of DICOM files are converted first, by `medlt convert`.
    """
    with edge(as_json, volume) as terminal:
        given = {"images": images, "findings": findings, "patient": patient, "column": column or None}
        _init(src, out, labels, {name: value for name, value in given.items() if value is not None}, terminal)


def _init(src: Path, out: Path, labels: Path | None, given: dict[str, Any], terminal: Terminal) -> None:
    from medlt.api.drafting import draft, write_draft
    from medlt.data.layouts.sniff import sniff

    seen = sniff(src, labels)
    terminal.mention(f"{src}: {seen.reason} (layout {seen.layout})")
    collection, table = _read(seen, out, given)
    made = draft(collection, table, out, f"{src} ({seen.reason})")
    write_draft(made, out)
    terminal.show_lines(_as_json(made, out, seen.layout), _lines(made, out))


def _read(seen: Any, out: Path, given: dict[str, Any]) -> tuple[Any, Path]:
    """Return the collection and the file of its manifest, which is written unless the source is one."""
    from medlt.api.collection import Collection
    from medlt.data.layouts import read_layout
    from medlt.types import InputError

    if seen.layout == "manifest":
        if given:
            raise InputError(f"{seen.source}: is a manifest with labels; leave out --{next(iter(given))}")
        return Collection.from_manifest(seen.source), seen.source
    options = {**seen.options, **given}
    if seen.layout == "csv" or "labels" in options:
        options = {"findings": "all", "all_zero": "keep", **options}
    read, table = read_layout(seen.layout, seen.source, options), out.with_suffix(".parquet")
    read = _without_absent(read)
    orphans = read.write(table)
    listed = () if orphans is None else (f"{_counted(read.orphans)}: {orphans}",)
    return Collection(read.manifest, table, (*read.notes, *listed)), table


def _without_absent(read: LayoutResult) -> LayoutResult:
    """Return the collection without the findings that no train image has: nothing can be learned of them."""
    positive = read.manifest.split("train").counts()["positive"]
    here, absent = positive.index[positive > 0].tolist(), positive.index[positive == 0].tolist()
    if not (here and absent):
        return read
    note = f"left out, since no train image has it: {', '.join(absent)}"
    return replace(read, manifest=read.manifest.with_findings(here), notes=(*read.notes, note))


def _counted(orphans: Any) -> str:
    """Return how many labels have no image, and images no label."""
    return ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in orphans["kind"].value_counts().items())


def _lines(made: FirstConfig, out: Path) -> list[str]:
    """Return the result for a terminal: the comment at the top of the config, and the next command."""
    head = [line.removeprefix("#").removeprefix(" ") for line in made.text.splitlines() if line.startswith("#")]
    until = next(i for i, line in enumerate(head) if line.strip().startswith("medlt run"))
    return [*head[: until - 1], f"config: {out}", f"next: medlt run {shlex.quote(str(out))}"]


def _as_json(made: FirstConfig, out: Path, layout: str) -> dict[str, Any]:
    """Return the result as values that JSON can hold."""
    took, tail = made.estimate, made.summary.findings.loc[list(made.summary.tail)]
    return {
        "out": str(out),
        "manifest": str(made.config.data.path),  # type: ignore[union-attr]
        "layout": layout,
        "method": made.config.method.kind,
        "images": made.summary.images,
        "patients": made.summary.patients,
        "splits": dict(made.summary.splits),
        "tail": {
            name: {
                "train": int(row["train"]),
                "planned": made.planned.get(str(name), 0),
                "smallest_gain": row["smallest_gain"],
            }
            for name, row in tail.iterrows()
        },
        "seconds": dict(took.seconds),
        "memory_mb": took.memory_mb,
        "disk_mb": took.disk_mb,
        "notes": list(made.notes),
    }
