"""A layout: NAME.json is beside each image NAME.png, with the patient, the view and the findings."""

import json
from pathlib import Path

import pandas as pd
from pydantic import Field

from medlt.data.layouts import LayoutResult, Options, tree
from medlt.data.layouts.layout_result import Draft, finish
from medlt.plugins import LayoutPlugin
from medlt.types import InputError


class SidecarOptions(Options):
    """Options of the layout, besides those of every layout."""

    suffix: str = Field(".json", description="suffix of the files with labels")


def sidecar(source: Path, options: SidecarOptions) -> LayoutResult:
    """Read the folder `source`. Raises InputError if no image has labels."""
    files = tree.images(tree.listing(source), source)
    labels = {path: (source / path).with_suffix(options.suffix) for path in files["path"]}
    read = {path: json.loads(file.read_text()) for path, file in labels.items() if file.is_file()}
    if not read:
        raise InputError(f"{source.absolute()}: no image has a {options.suffix} file beside it; check --option suffix")
    findings = tuple(sorted({name for one in read.values() for name in one["findings"]}))
    rows = pd.DataFrame(
        {
            "path": list(read),
            "patient_id": [str(one["patient"]) for one in read.values()],
            "split": pd.NA,
            "view": [one.get("view") for one in read.values()],
            **{name: [float(name in one["findings"]) for one in read.values()] for name in findings},
        },
        index=pd.Index([Path(path).stem for path in read], name="uid"),
    )
    return finish(Draft(tree.by_path(rows, files, source), findings, source, source), options)


PLUGIN = LayoutPlugin(SidecarOptions, sidecar)
