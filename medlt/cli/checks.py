"""Commands that check a part of a run: codec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medlt.cli.app import Commands, app
from medlt.cli.edge import ConfigFile, Json, Out, Overrides, Volume, edge, example

if TYPE_CHECKING:
    from medlt.recipes.check_codec import Checked

check = typer.Typer(
    cls=Commands,
    help="Check a part of a run before the rest is trained.",
    epilog=example("medlt check codec mine.yaml"),
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(check, name="check")


@check.callback()
def group() -> None:
    """Check a part of a run before the rest is trained."""


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
