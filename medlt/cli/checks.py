"""Commands that check images, and the codec of a config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medlt.cli.app import Commands, app
from medlt.cli.edge import ConfigFile, Json, Out, Overrides, Volume, edge, example, path
from medlt.cli.reviews import Against, Labels, Verdicts

if TYPE_CHECKING:
    from medlt.checks.outcome import CheckSummary
    from medlt.recipes.check_codec import Checked


class CheckCommands(Commands):
    """A group that takes `medlt check RUN` for `medlt check synthetic RUN`."""

    usual = "synthetic"

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that was typed, else the usual one."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = [self.usual, *args]
        return super().resolve_command(ctx, args)


HELP = "Check the images of a run or of a folder, or the codec of a config."
check = typer.Typer(
    cls=CheckCommands,
    help=HELP,
    epilog=example("medlt check runs/mine", "medlt check codec mine.yaml"),
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(check, name="check")


@check.callback()
def group() -> None:
    """Check the images of a run or of a folder, or the codec of a config."""


@check.command(
    epilog=example(
        "medlt check runs/mine",
        "medlt check runs/mine --verdicts report-anna.csv",
        "medlt check elsewhere --against runs/mine",
        "medlt check elsewhere --against runs/mine --labels labels.csv --out results",
    )
)
def synthetic(
    run: Annotated[Path, typer.Argument(metavar="RUN|FOLDER", help="A finished run, or a folder of images.")],
    against: Against = None,
    labels: Labels = None,
    verdicts: Verdicts = None,
    out: Annotated[Path | None, path("Folder of the results, instead of RUN.", "--out")] = None,
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Check synthetic images: sanity, copies, labels, fingerprint and readers, as `medlt check RUN`.

    Labels are compared with the verifiers of the run. Images made elsewhere are compared with the real rows and the
    verifiers of --against. Writes check.json and check.parquet. Exit code 1: a check failed.
    """
    with edge(as_json, volume) as terminal:
        with terminal.stage("loading libraries"):
            from medlt.recipes import check as recipe

        done = recipe.main(run, recipe.CheckOptions(against, labels, verdicts, out), terminal)
        where = str(out or run)
        terminal.show({"out": where, **done.record()}, lambda: _outcomes(done))
        terminal.mention(f"results: {where}/check.json, {where}/check.parquet")
    if done.failed:
        raise typer.Exit(1)


def _outcomes(done: CheckSummary) -> object:
    """Return one row a check, and the uids that failed."""
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "status", "images", "failed", "conclusion", title="check")
    for one in done.outcomes:
        uids = f" ({', '.join(one.uids[:3])}{', ...' if len(one.uids) > 3 else ''})" if one.uids else ""
        table.add_row(one.check, one.status, str(one.images), str(len(one.uids)), Text(one.conclusion + uids))
    return table


@check.command(epilog=example("medlt check codec mine.yaml", "medlt check codec mine.yaml --try codec.levels=3"))
def codec(
    config: ConfigFile,
    overrides: Overrides = None,
    try_others: Annotated[
        bool, typer.Option("--try", help="Also train and measure codecs that keep more; each takes a training.")
    ] = False,
    out: Out = None,
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Measure what the codec keeps of each finding.

    AUROC of verifiers on decoded against real validation images, and the contrast of lesions that are known by masks,
    by boxes, or because the radiographs are synthetic. Only codec and verifiers are trained; `medlt run` with the same
    config goes on from there. Exit code 1: the codec loses a finding.
    """
    with edge(as_json, volume) as terminal:
        from medlt.config import load_config

        given = [*(overrides or []), *([f"output_dir={json.dumps(str(out))}"] if out else [])]
        settings = load_config(Path(config), given)
        with terminal.stage("loading libraries"):
            from medlt.recipes import check_codec as recipe

        checked = recipe.main(settings, terminal, try_others=try_others)
        terminal.show(_summary(checked), lambda: _table(checked))
    if checked.result.lost:  # the recipe has warned of them
        raise typer.Exit(1)


def _summary(checked: Checked) -> dict[str, Any]:
    """Return the result as one object."""
    rows = checked.result.table.reset_index().to_dict("records")
    others = {name: {**one.metadata(), "findings": one.table.reset_index().to_dict("records")}
              for name, one in checked.others.items()}  # fmt: skip
    return {"out": str(checked.folder), **checked.result.metadata(), "findings": rows, "others": others}


def _table(checked: Checked) -> object:
    """Return one row a finding, with the status under each other codec."""
    from rich.table import Table

    rows, others = checked.result.table, checked.others
    table = Table(title="what the codec keeps")
    for name in ("finding", "contrast kept", "AUROC, real to decoded", "status"):
        table.add_column(name, no_wrap=True)
    for name in others:
        table.add_column(name)
    for name, row in rows.iterrows():
        change = _interval("", row["auroc_low"], row["auroc_high"], "+")
        auroc = f"{_number(row['auroc_real'])} to {_number(row['auroc_decoded'])}{change}"
        kept = _interval(_number(row["contrast"]), row["contrast_low"], row["contrast_high"])
        status = [str(one.table.loc[name, "status"]) for one in others.values()]
        table.add_row(str(name), kept, auroc, row["status"], *status)
    return table


def _number(value: float) -> str:
    """Return a number with two digits, a dash for none."""
    return "-" if value != value else f"{value:.2f}"


def _interval(value: str, low: float, high: float, sign: str = "") -> str:
    """Return a number with its interval, if it has one."""
    return value + ("" if low != low else f" [{low:{sign}.2f}, {high:{sign}.2f}]")
