"""The options of layouts on the command line. Each names the layouts that have it; the others refuse it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from medlt.cli.edge import number, pairs, path, text

LAYOUT_OPTIONS: dict[str, Any] = {
    "images": Annotated[Path | None, path("Folder of the images, if it is not SRC.")],
    "release": Annotated[str | None, text("Labels: 2022, 2023, 2024, chexpert, negbio, nih14.")],
    "task": Annotated[str | None, text("CXR-LT 2024: all, 1, 2 or 3.")],
    "findings": Annotated[str | None, text("csv, folder, padchest: the label columns, A,B,..., or all.")],
    "labels": Annotated[Path | None, path("folder: the table of labels; chexpert: a *_fixed.json.")],
    "key": Annotated[str | None, text("folder: column of the label table with image names.")],
    "crosswalk": Annotated[Path | None, path("folder: private/crosswalk.csv, if de-identified.")],
    "column": Annotated[list[str] | None, pairs("csv, folder: a column's name here, patient_id=PID.")],
    "patient": Annotated[str | None, text("Expression for the patient in the path, if no column has it.")],
    "extra_columns": Annotated[str | None, text("csv, folder: other columns to keep: sex,age.")],
    "label_column": Annotated[str | None, text("csv, folder: column of finding names, A|B.")],
    "value_column": Annotated[str | None, text("csv, folder: label of that finding, one row each.")],
    "value": Annotated[list[str] | None, pairs("csv, folder: a label's meaning, 2=1 or '>=0.5=1'.")],
    "sheet": Annotated[str | None, text("csv, folder: sheet of an .xlsx table (default: the first).")],
    "readers": Annotated[str | None, text("vindr: several readers: majority (default) or any.")],
    "train_flag": Annotated[str | None, text("csv: column that is 1 for train rows.")],
    "uncertain": Annotated[str | None, text("Labels of -1 mean unknown (default), positive, negative.")],
    "blank": Annotated[str | None, text("Blank labels mean unknown (default) or negative.")],
    "all_zero": Annotated[str | None, text("Rows with only 0: keep, drop, no-finding (normal).")],
    "missing": Annotated[str | None, text("Rows without their file: drop (default) or keep.")],
    "resplit": Annotated[bool, typer.Option("--resplit", help="Assign patients to new splits, by hash.")],
    "seed": Annotated[int | None, number("Seed of the new split (default 0).", min=0)],
}
"""Name of each option and its parameter. None and False mean the default of the layout."""


def with_layout_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add LAYOUT_OPTIONS to a command, in front of its own options; it takes them as keyword arguments."""
    own = [
        one for one in inspect.signature(command, eval_str=True).parameters.values() if one.kind is not one.VAR_KEYWORD
    ]
    arguments = [one for one in own if one.default is one.empty]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in LAYOUT_OPTIONS.items()
    ]
    options = [one.replace(default=False) if one.name == "resplit" else one for one in options]
    options += [one.replace(kind=one.KEYWORD_ONLY) for one in own if one.default is not one.empty]
    command.__signature__ = inspect.Signature([*arguments, *options])  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in (*arguments, *options)}
    return command
