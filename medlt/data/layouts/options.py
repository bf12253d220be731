"""What a user may choose when a layout is read: one closed, frozen model a layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from medlt.config import Strict
from medlt.types import InputError


def _listed(value: object) -> object:
    """'A, B' as ('A', 'B')."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _pairs(value: object) -> object:
    """['role=name', ...] as a mapping."""
    if isinstance(value, dict) or not isinstance(value, list | tuple):
        return value
    return {str(pair).partition("=")[0]: str(pair).partition("=")[2] for pair in value}


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Role = Literal["uid", "path", "patient_id", "split", "view"]
Roles = Annotated[dict[Role, str], BeforeValidator(_pairs)]


class Options(Strict):
    """Choices that every layout knows."""

    images: Path | None = Field(None, description="folder of the images; default: SRC, or the folder of the table")
    uncertain: Literal["unknown", "positive", "negative"] = Field("unknown", description="what a label of -1 becomes")
    blank: Literal["unknown", "negative"] = Field("unknown", description="what a blank label becomes")
    all_zero: Literal["keep", "drop", "no-finding"] | None = Field(
        None, description="what becomes of a row with every finding at 0; None: an error if there is such a row"
    )
    missing: Literal["drop", "keep"] = Field("drop", description="rows whose image file is not there")
    resplit: bool = Field(False, description="split patients by a hash of the seed and their id, 70/10/20")
    seed: int = Field(0, ge=0, description="of that hash")


class MimicOptions(Options):
    """MIMIC-CXR-LT, or the tables of MIMIC-CXR-JPG."""

    release: Literal["2022", "2023", "chexpert", "negbio"] | None = Field(None, description="whose labels")


class NihOptions(Options):
    """NIH-CXR-LT, or the ChestX-ray14 table."""

    release: Literal["2022", "2023", "nih14"] | None = Field(None, description="whose labels")


class CxrLtOptions(Options):
    """The CXR-LT challenges."""

    release: Literal["2023", "2024"] | None = Field(None, description="which challenge")
    task: Literal["all", "1", "2", "3"] = Field("all", description="of 2024: 45 findings, or the 40, 26, 5 of a task")


class OwnOptions(Options):
    """A collection that follows no published layout."""

    findings: Names = Field((), description="the label columns")
    column: Roles = Field(default_factory=dict, description="columns with other names: uid, path, patient_id, ...")
    patient: str | None = Field(None, description="regular expression that finds the patient in the path")
    keep: Names = Field(("sex", "age"), description="further columns to carry along when present")


class TableOptions(OwnOptions):
    """A table with a row an image."""

    train_flag: str | None = Field(None, description="train rows are kept only where this column is 1")


class FolderOptions(OwnOptions):
    """A folder of images."""

    labels: Path | None = Field(None, description="table of labels; default: each sub-folder is a class")
    key: str | None = Field(None, description="column of that table that names an image, a study or an accession")


def checked(model: type[Options], layout: str, given: dict[str, object]) -> Options:
    """The options of `layout`; raises InputError in one line on one it does not know or a value it cannot use."""
    try:
        return model(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + str(first["loc"][0]).replace("_", "-")
        if first["type"] == "extra_forbidden":
            known = ", ".join("--" + field.replace("_", "-") for field in model.model_fields)
            raise InputError(f"{name} has no meaning for layout {layout}; it takes {known}") from None
        raise InputError(f"{name}: {first['msg']}, got {first['input']!r}") from None
