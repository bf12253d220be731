"""The options of each layout: one closed, frozen model per layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, create_model, field_validator

from medlt.config import Strict, expected, load_settings
from medlt.data.layouts.label_spec import LabelSpec, Names
from medlt.data.layouts.readers import Readers
from medlt.names import did_you_mean
from medlt.remote import RemoteFile, as_file
from medlt.types import InputError

Model = TypeVar("Model", bound=BaseModel)


def _pairs(value: object) -> object:
    """Return ['role=name', ...] as a mapping."""
    if isinstance(value, dict) or not isinstance(value, list | tuple):
        return value
    return {str(pair).partition("=")[0]: str(pair).partition("=")[2] for pair in value}


def _rules(value: object) -> object:
    """Return ['2=1', '>=0.5=1'] as {'2': '1', '>=0.5': '1'}: the last '=' is the one before the label."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, dict):
        return {str(cell): str(label) for cell, label in value.items()}
    if not isinstance(value, list | tuple):
        return value
    if wrong := [rule for rule in value if "=" not in str(rule)]:
        raise ValueError(f"{wrong[0]!r} is no VALUE=LABEL")
    return {str(rule).rpartition("=")[0].strip(): str(rule).rpartition("=")[2].strip() for rule in value}


Role = Literal["uid", "path", "patient_id", "split", "view"]
Roles = Annotated[dict[Role, str], BeforeValidator(_pairs)]
Rules = Annotated[dict[str, str], BeforeValidator(_rules)]


class Options(LabelSpec):
    """Options of every layout, besides what the labels mean."""

    images: Path | RemoteFile | None = Field(
        None, description="folder of the images, or its URL; default: SRC, or the folder of the table"
    )
    label_spec: Path | None = Field(
        None, description="YAML file of these options but paths; an option replaces its key"
    )
    missing: Literal["drop", "keep"] = Field("drop", description="action on rows whose image file does not exist")
    resplit: bool = Field(False, description="split patients again, 70/10/20, stratified by finding")
    seed: int = Field(0, ge=0, description="seed of a new split")

    @field_validator("images", mode="before")
    @classmethod
    def _at_url(cls, value: object) -> object:
        return as_file(value) if isinstance(value, str) else value


class MimicOptions(Options):
    """Options of MIMIC-CXR-LT and of the tables of MIMIC-CXR-JPG."""

    release: Literal["2022", "2023", "chexpert", "negbio"] | None = Field(None, description="release of the labels")
    test_labels: Literal["labeler", "radiologist"] = Field(
        "labeler", description="labels of the test studies, with release chexpert or negbio"
    )


class NihOptions(Options):
    """Options of NIH-CXR-LT and of the ChestX-ray14 table."""

    release: Literal["2022", "2023", "nih14"] | None = Field(None, description="release of the labels")


class CxrLtOptions(Options):
    """Options of the CXR-LT challenges."""

    release: Literal["2023", "2024"] | None = Field(None, description="year of the challenge")
    task: Literal["all", "1", "2", "3"] = Field("all", description="2024 only: 45 findings, or the 40, 26, 5 of a task")


class OwnOptions(Options):
    """Options of a collection without a published layout."""

    findings: Names = Field((), description="the label columns; all: every column of 0, 1, -1 and blanks only")
    column: Roles = Field(default_factory=dict, description="columns with other names: uid, path, patient_id, ...")
    patient: str | None = Field(None, description="regular expression that matches the patient in the path")
    patient_key: Names = Field((), description="columns that name a patient together, such as site,patient_id")
    extra_columns: Names = Field(("sex", "age"), description="further columns to keep, if present")
    label_column: str | None = Field(
        None, description="column that holds names of findings, several joined by '|', in place of one column each"
    )
    value_column: str | None = Field(None, description="column of the label of that finding, in a row per finding")
    reader_column: str | None = Field(None, description="column that names the reader, if several read an image")
    readers: Readers = Field("majority", description="how the labels of several readers become one: majority or any")
    value: Rules = Field(default_factory=dict, description="meaning of other label values: 2=1, severe=1, >=0.5=1")
    sheet: str | None = Field(None, description="sheet of an .xlsx table; default: the first one")


class TableOptions(OwnOptions):
    """Options of a table with one row per image."""

    train_flag: str | None = Field(None, description="column that is 1 for the train rows to keep")


class FolderOptions(OwnOptions):
    """Options of a folder of images."""

    labels: Path | None = Field(None, description="table of labels; default: each sub-folder is a class")
    key: str | None = Field(
        None, description="column of that table that names an image or a study; default: the one that fits most images"
    )
    crosswalk: Path | None = Field(
        None, description="private/crosswalk.csv of a de-identified conversion: `key` is an identifier of the source"
    )


def file_model(model: type[BaseModel]) -> type[Strict]:
    """Return what a file of --label-spec may hold: the options but paths, which start elsewhere on each machine."""
    fields: dict[str, Any] = {
        name: (field.annotation, field)
        for name, field in model.model_fields.items()
        if Path not in get_args(field.annotation)
    }
    return create_model("LabelSpecFile", __base__=Strict, **fields)


def _with_file(model: type[BaseModel], given: dict[str, object]) -> dict[str, object]:
    """Return the options, and behind them what the file of --label-spec says. Raises InputError for an invalid one."""
    if not isinstance(file := given.get("label_spec"), str | Path):
        return given
    spec = load_settings(Path(file), file_model(model))
    read = {name: getattr(spec, name) for name in spec.model_fields_set}
    return read | {name: value for name, value in given.items() if value not in (None, (), [], {})}


def parse(model: type[Model], layout: str, given: dict[str, object]) -> Model:
    """Return the options of `layout`, also those of the file `label_spec`.

    Raises InputError in one line on an unknown option, an invalid value or an invalid file.
    """
    try:
        return model(**_with_file(model, given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, value = "--" + str(first["loc"][0]).replace("_", "-"), first["input"]
        if first["type"] == "extra_forbidden":
            known = ["--" + field.replace("_", "-") for field in model.model_fields]
            close = did_you_mean(name, known) or ";"
            raise InputError(f"layout {layout} has no option {name}{close} it has {', '.join(known)}") from None
        if first["type"] == "value_error":
            raise InputError(f"{name}: {first['ctx']['error']}") from None
        if first["type"] == "literal_error":
            choices = re.findall(r"'([^']*)'", str(first["ctx"]["expected"]))
            close = did_you_mean(str(value), choices) or ";"
            raise InputError(f"{name}: {value!r} is not valid{close} use {', '.join(choices)}") from None
        raise InputError(f"{name}: {value!r} is not valid; it must be {expected(first)}") from None
