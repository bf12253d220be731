"""The options of `medlt manifest` that belong to a layout."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from medlt.cli.edge import number, pairs, path, text

Command = TypeVar("Command", bound=Callable[..., Any])
LAYOUT_OPTIONS: dict[str, Any] = {
    "images": Annotated[str | None, path("Folder of the images, or its URL, if it is not SRC.")],
    "release": Annotated[str | None, text("Labels: 2022, 2023, 2024, chexpert, negbio, nih14.")],
    "test_labels": Annotated[str | None, text("MIMIC, chexpert or negbio: labeler (default), radiologist.")],
    "task": Annotated[str | None, text("CXR-LT 2024: all, 1, 2 or 3.")],
    "findings": Annotated[str | None, text("csv, folder, padchest: the label columns, A,B,..., or all.")],
    "labels": Annotated[Path | None, path("folder: the table of labels; chexpert: a *_fixed.json.")],
    "key": Annotated[str | None, text("folder: column of the label table with image names.")],
    "crosswalk": Annotated[Path | None, path("folder: private/crosswalk.csv, if de-identified.")],
    "column": Annotated[list[str] | None, pairs("csv, folder: a column's name here, patient_id=PID.")],
    "patient": Annotated[str | None, text("Expression for the patient in the path, if no column has it.")],
    "patient_key": Annotated[str | None, text("csv, folder: columns that name a patient together: site,pid.")],
    "extra_columns": Annotated[str | None, text("csv, folder: other columns to keep: sex,age.")],
    "label_column": Annotated[str | None, text("csv, folder: column of finding names, A|B.")],
    "value_column": Annotated[str | None, text("csv, folder: label of that finding, one row each.")],
    "value": Annotated[list[str] | None, pairs("csv, folder: a label's meaning, 2=1 or '>=0.5=1'.")],
    "sheet": Annotated[str | None, text("csv, folder: sheet of an .xlsx table (default: the first).")],
    "reader_column": Annotated[str | None, text("csv, folder: column that names the reader.")],
    "readers": Annotated[str | None, text("Several readers of an image: majority (default) or any.")],
    "masks": Annotated[Path | None, path("siim: folder to write the masks to, as PNG.")],
    "tree": Annotated[str | None, text("padchest: labels above a label are implied (default) or ignored.")],
    "train_flag": Annotated[str | None, text("csv: column that is 1 for train rows.")],
    "label_spec": Annotated[Path | None, path("YAML file of these options but paths.")],
    "labeler": Annotated[str | None, text("Program that labelled reports: chexpert-labeler, chexbert, negbio.")],
    "uncertain": Annotated[str | None, text("Labels of -1 mean unknown (default), positive, negative.")],
    "blank": Annotated[str | None, text("Blank labels mean unknown (default) or negative.")],
    "alias": Annotated[list[str] | None, pairs("Another name of a finding: 'Pleural Effusion=Effusion'.")],
    "implies": Annotated[list[str] | None, pairs("A finding and one that it implies: 'Pneumonia=Lung Opacity'.")],
    "view": Annotated[str | None, text("Views to keep: frontal (PA, AP), lateral, unknown, or PA,...")],
    "all_zero": Annotated[str | None, text("Rows with only 0: keep, drop, no-finding (normal).")],
    "missing": Annotated[str | None, text("Rows without their file: drop (default) or keep.")],
    "resplit": Annotated[
        bool | None, typer.Option("--resplit", help="Split patients again, 70/10/20 of each finding.")
    ],
    "seed": Annotated[int | None, number("Seed of the new split (default 0).", min=0)],
}
"""Name of the option -> its type and help. A layout has some of them; without a value the layout's default counts."""


def with_options(options: Mapping[str, Any], before: str) -> Callable[[Command], Command]:
    """Return a decorator that offers `options` on the command line, before a parameter, for the command's **given."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        added = [inspect.Parameter(name, kind, default=None, annotation=one) for name, one in options.items()]
        own = [one for one in signature.parameters.values() if one.kind is kind]
        at = [one.name for one in own].index(before)
        command.__signature__ = signature.replace(parameters=[*own[:at], *added, *own[at:]])  # type: ignore[attr-defined]
        return command

    return decorate
