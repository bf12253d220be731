"""The command with which radiologists read images: review."""

from __future__ import annotations

import shlex
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medlt.cli.app import app
from medlt.cli.edge import Json, Volume, edge, example, number, path, text
from medlt.types import InputError

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from medlt.cli.terminal import Terminal
    from medlt.review.results import ReviewResults

Against = Annotated[Path | None, path("Run whose real images a FOLDER made elsewhere is compared with.", "--against")]
Labels = Annotated[Path | None, path("CSV of the labels of FOLDER, in place of its metadata.csv.", "--labels")]
Verdicts = Annotated[
    Path | None, path("CSV with uid, verdict (accept, reject), comment and reader, as reports give.", "--verdicts")
]


Reader = Annotated[str | None, text("Name of the reader; the answers are in RUN/review/NAME.csv.", "--reader")]
Images = Annotated[int, number("Images of each kind, real and synthetic.", "--images", min=1)]
Seed = Annotated[int, number("Seed of the images; readers of one seed read the same ones.", "--seed", min=0)]
Split = Annotated[str, text("Splits of the real images.", "--split")]
Questions = Annotated[
    str, text("Questions of each image: whether it is real, plausible, shows a finding.", "--questions")
]
Size = Annotated[int | None, number("Side of the images, px; default: that of the run.", "--size", min=8)]
Port = Annotated[int, number("Port of the page; 0 takes a free one.", "--port", min=0, max=65535)]
Browser = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]
PrivateTrain = Annotated[bool, typer.Option("--show-private-train", help="Allow --split train in a private run.")]
Results = Annotated[bool, typer.Option("--results", help="Show what all readers answered; no page.")]


@app.command(
    epilog=example(
        "medlt review demo --reader anna",
        "medlt review demo --reader ben --images 40 --seed 1",
        "medlt review demo --results",
        "medlt review elsewhere --against demo --reader anna",
    )
)
def review(
    run: Annotated[Path, typer.Argument(metavar="RUN|FOLDER", help="A finished run, or a folder of images.")],
    reader: Reader = None,
    images: Images = 20,
    seed: Seed = 0,
    split: Split = "val,test",
    questions: Questions = "origin,plausibility,presence",
    size: Size = None,
    port: Port = 0,
    browser: Browser = False,
    show_private_train: PrivateTrain = False,
    show_results: Results = False,
    verdicts: Verdicts = None,
    against: Against = None,
    labels: Labels = None,
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Serve a page on this machine where a reader answers whether images are real, plausible, and show a finding.

    Real images are of the validation and test splits: no image was made from them. The page does not show which image
    is real. Every answer is saved at once, and the same command goes on where the reader stopped. The page is at
    127.0.0.1 and needs the token of the printed address.
    """
    with edge(as_json, volume) as terminal:
        if show_results:
            _show(terminal, run, against, labels, verdicts)
            return
        if reader is None:
            raise InputError("give the reader's name with --reader NAME, or --results")
        with terminal.stage("loading libraries"):
            from medlt.recipes import review as recipe

        splits, wanted = (tuple(one.split(",")) for one in (split, questions))
        options = recipe.ReviewOptions(reader, images, seed, splits, wanted, show_private_train, size, port)
        done = recipe.main(run, options, terminal, against=against, labels=labels, opened=_announce(terminal, browser))
        count = {"reader": reader, "answers": str(done.file), "answered": done.answered, "images": done.images}
        terminal.show_lines(count, [f"{done.answered} of {done.images} images answered: {done.file}"])
        terminal.mention(f"next: medlt review {shlex.quote(str(run))} --results")


def _show(terminal: Terminal, run: Path, against: Path | None, labels: Path | None, verdicts: Path | None) -> None:
    """Print the results of all readers."""
    with terminal.stage("loading libraries"):
        from medlt.recipes import review as recipe

    read = recipe.show_results(run, terminal, against=against, labels=labels, verdicts=verdicts)
    terminal.show(read.summary(), lambda: _tables(read))


def _announce(terminal: Terminal, browser: bool) -> Callable[[str], None]:
    """Return what prints the address of the page on stderr, and opens it if that is wanted."""

    def announce(address: str) -> None:
        typer.echo(f"review: {address}", err=True)
        terminal.mention(
            "Open this address in a browser on this machine. Ctrl-C or the page's button stops the review."
        )
        if browser:
            webbrowser.open(address)

    return announce


def _tables(given: ReviewResults) -> object:
    """Return the tables of rates and of kappa, and the images that readers reject or contradict."""
    from rich.console import Group
    from rich.table import Table

    rates = Table("reader", "question", "kind", "finding", "count", "of", "rate", "95 % interval", title="readings")
    each = given.rates["finding"].eq("all") & (len(given.readers) > 1)
    shown = given.rates[given.rates["reader"].eq("all") | each]
    for row in shown.to_dict("records"):
        interval = f"{row['low']:.2f} to {row['high']:.2f}"
        cells = [row[name] for name in ("reader", "question", "kind", "finding", "count", "of")]
        rates.add_row(*map(str, cells), f"{row['value']:.2f}", interval)
    kappas = Table("readers", "question", "images", "agreement", "kappa", title="agreement between readers")
    for row in given.kappas.to_dict("records"):
        value = row["reason"] or f"{row['kappa']:.2f}"
        readers = f"{row['first']}, {row['second']}"
        kappas.add_row(readers, row["question"], str(row["images"]), f"{row['agreement']:.2f}", value)
    listed = [("rejected", given.rejected), ("contradictions", given.contradictions)]
    return Group(rates, *([kappas] if len(given.kappas) else []), *(_listed(*one) for one in listed if len(one[1])))


def _listed(title: str, rows: pd.DataFrame) -> Table:
    """Return a table of images by uid."""
    from rich.table import Table
    from rich.text import Text

    table = Table("uid", "reader", "finding", "reason", "comment", title=title)
    for row in rows.to_dict("records"):
        table.add_row(*(Text(str(row[name])) for name in ("uid", "reader", "finding", "reason", "comment")))
    return table
