"""Commands on finished runs and on the installation: audit, report, export, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medlt.cli.app import app
from medlt.cli.edge import Json, Volume, edge, example
from medlt.types import InputError

if TYPE_CHECKING:
    from medlt.cli.terminal import Terminal

EmbeddingSteps = Annotated[int, typer.Option(min=1, help="Training steps of the embedding that compares images.")]
Planted = Annotated[
    int, typer.Option(min=1, help="Copies of each kind that are planted to measure the recall of the search.")
]

Encoder = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Folder of a public vision model, whose features the copy search compares too."),
]


@app.command(epilog=example("medlt audit demo", "medlt audit demo --shadow-models 8 --canaries 200"))
def audit(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder that `medlt augment` or `medlt run` finished.")
    ],
    shadow_models: Annotated[
        int, typer.Option(min=0, help="Shadow denoisers to train for the likelihood-ratio test; each costs a training.")
    ] = 0,
    canaries: Annotated[
        int, typer.Option(min=0, help="Canary patients of one more training, which bounds epsilon from below.")
    ] = 0,
    fpr: Annotated[
        float, typer.Option(min=0.0001, max=0.2, help="Share of unseen patients' images that may count as copies.")
    ] = 0.01,
    show_pairs: Annotated[
        bool, typer.Option("--show-pairs", help="Also write RUN/audit_pairs.png: nearest REAL images beside synthetic.")
    ] = False,
    embedding_steps: EmbeddingSteps = 250,
    planted: Planted = 100,
    encoder: Encoder = None,
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Measure what a run reveals of its patients.

    Tests copies, membership and identity, for every method, private or not.

    Writes RUN/audit.json and the report. Exit code 1: there is a leak, or it could not be ruled out.
    """
    with edge(as_json, volume) as terminal:
        _require_finished(run)
        with terminal.stage("loading libraries"):
            from medlt.recipes import audit as recipe

        options = recipe.AuditOptions(shadow_models=shadow_models, canaries=canaries, fpr=fpr, show_pairs=show_pairs,
                                      embedding_steps=embedding_steps, planted=planted, encoder=encoder)  # fmt: skip
        summary = recipe.main(run, options, terminal)
        terminal.show(summary, lambda: _table(summary))
    if any(one["passed"] is not True for one in summary["results"]):
        typer.echo(f"medlt: {summary['conclusion']}", err=True)
        raise typer.Exit(1)


def _require_finished(run: Path) -> None:
    """Raise InputError for a folder that is no finished run, before any library is loaded."""
    for name in ("config.yaml", "run.json", "manifest.parquet"):
        if not (run / name).is_file():
            raise InputError(f"{run.absolute()}: is not a finished run: it has no {name}; give the folder of a run")


def _table(summary: dict[str, Any]) -> object:
    """Return one row a result."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="audit", caption=Text(summary["conclusion"]))
    for name in ("test", "result", "passed"):
        table.add_column(name, no_wrap=name != "result")
    words = {True: "yes", False: "no", None: "unknown"}
    for one in summary["results"]:
        table.add_row(one["name"], Text(one["sentence"]), words[one["passed"]])
    return table


@app.command(epilog=example("medlt report demo", "medlt report demo --no-real-images"))
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    real_images: Annotated[
        bool | None,
        typer.Option(
            "--real-images/--no-real-images",
            help="Whether the page may hold real images, the parents of synthetic ones; default: as the last report "
            "if that has none, else yes, but not in a private run.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Write RUN/report.html again, one self-contained page, and RUN/SCORECARD.md.

    The page states whether it holds real images. Before you hand it out, write it with --no-real-images.
    """
    with edge(as_json, volume) as terminal:
        from medlt.recipes._sealed import require_sealed
        from medlt.report.html import write_report
        from medlt.report.scorecard import write_scorecard

        require_sealed(run)
        path, card = write_report(run, real_images=real_images), write_scorecard(run)
        written = {"report": str(path)} | ({"scorecard": str(card)} if card else {})
        terminal.show_lines(written, [f"{name}: {place}" for name, place in written.items()])


def _formats(incomplete: str) -> list[str]:
    from medlt.export import FORMATS

    return [name for name in FORMATS if name.startswith(incomplete)]


@app.command(
    epilog=example(
        "medlt export demo images --format imagefolder",
        "medlt export demo bundle --format monai-bundle",
        "medlt export demo s3://bucket/demo --format webdataset",
    )
)
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Annotated[
        str,
        typer.Argument(metavar="OUT", help="Folder to make, or a URL such as s3://bucket/run; nothing is overwritten."),
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            help="Images: imagefolder, monai, cxr-lt, longtailcxr, torchxrayvision, parquet or webdataset; "
            "generator: monai-bundle or diffusers.",
            autocompletion=_formats,
        ),
    ],
    real: Annotated[
        bool, typer.Option("--real", help="Also write the real images, which are of patients; formats of images alone.")
    ] = False,
    labels: Annotated[
        str | None, typer.Option(metavar="TEXT", help="longtailcxr: hard (default), one finding an image, or soft.")
    ] = None,
    shard_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="parquet and webdataset: images in a shard; default: 1000.")
    ] = None,
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Write a run's images or its generator in another tool's format, to a folder or to an object store.

    OUT/provenance.json says that they are synthetic, by which run, and its privacy claim. An interrupted upload is
    resumed by the same command.
    """
    with edge(as_json, volume) as terminal:
        summary = _export(run, kind, out, (real, labels, shard_size), terminal)
        terminal.show_lines(summary, [f"{kind}: {summary['out']}"])


def _export(
    run: Path, kind: str, out: str, options: tuple[bool, str | None, int | None], terminal: Terminal
) -> dict[str, Any]:
    """Export to a folder or a URL, and return what --json shows."""
    from medlt.export import export as write
    from medlt.export import export_to_url
    from medlt.remote import is_url, public

    if not is_url(out):
        return {"out": str(write(run, kind, Path(out), *options)), "format": kind}
    record = export_to_url(run, kind, out, *options, terminal)
    return {"out": public(out), "format": kind, "files": record["count"], "digest": record["digest"]}


@app.command(epilog=example("medlt doctor", "medlt doctor --json > doctor.json"))
def doctor(as_json: Json = False, volume: Volume = None) -> None:
    """Check what this installation can do.

    Versions, device, free disk, extras, DICOM decoders (each decodes a small frame), ready-made configs, and whether
    downloads are forbidden. Exit code 1: there is a problem.
    """
    with edge(as_json, volume) as terminal:
        from medlt.doctor import examine

        report = examine()
        terminal.show(report.summary(), report.table)
    if report.problems:
        raise typer.Exit(1)
