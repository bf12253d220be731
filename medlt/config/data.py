"""Where the images and labels come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from medlt.config.base import Strict


class CsvData(Strict):
    """A table with one row an image and one 0/1/blank column a finding."""

    kind: Literal["csv"] = "csv"
    table: Path
    root: Path | None = Field(None, description="folder the paths are relative to; default: the table's folder")
    findings: tuple[str, ...]
    path: str = "path"
    uid: str = "uid"
    patient_id: str = "patient_id"
    split: str = "split"
    view: str | None = "view"
    extra_columns: tuple[str, ...] = Field(("sex", "age"), description="further columns to carry along when present")
    train_flag: str | None = Field(None, description="train rows are kept only where this column is 1")
    uncertain: Literal["unknown", "positive", "negative"] = Field("unknown", description="what a label of -1 becomes")


class NihData(Strict):
    """The NIH ChestX-ray14 table (Data_Entry_2017*.csv) and its image folder(s)."""

    kind: Literal["nih"] = "nih"
    table: Path
    images: Path
    test_list: Path | None = Field(None, description="the official test_list.txt; else patients are split by the seed")


class ManifestData(Strict):
    """A manifest.parquet written earlier."""

    kind: Literal["manifest"] = "manifest"
    path: Path


class PhantomData(Strict):
    """Synthetic radiographs, written as DICOM into the run folder and read back from there."""

    kind: Literal["phantom"] = "phantom"
    patients: int = Field(600, ge=20)
    size: int = Field(256, ge=64, description="rows and columns of the DICOM images")
    imbalance: float = Field(50.0, ge=1, description="prevalence of the most frequent finding over the rarest")
    shares: tuple[float, float, float] = Field((0.6, 0.15, 0.25), description="of the patients, in train, val, test")


Data = Annotated[CsvData | NihData | ManifestData | PhantomData, Field(discriminator="kind")]
