"""Where the images and labels come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from medlt.config.base import FilePath, Strict

BOXES = "table of boxes of findings: BBox_List_2017.csv, or uid, finding, x, y, width, height; null: none"
REPORTS = (
    "table of reports, from which the side of a finding is read, and nothing else kept: uid, study_id or study, and "
    "report, text, findings or impression; null: none"
)


class CsvData(Strict):
    """A table with one row per image and one 0/1/blank column per finding."""

    kind: Literal["csv"] = Field("csv", description="a table of your own")
    table: FilePath = Field(description="the CSV file, plain or gzipped")
    root: FilePath | None = Field(
        None, description="folder that the paths of the table start from; null: the folder of the table"
    )
    findings: tuple[str, ...] = Field(description="the label columns, in the order of every label vector")
    path: str = Field("path", description="column with the image's path")
    uid: str = Field("uid", description="column with the image's unique name")
    patient_id: str = Field("patient_id", description="column with the patient's identifier")
    split: str = Field("split", description="column with train, val or test")
    view: str | None = Field("view", description="column with the view, such as PA; null: no such column")
    extra_columns: tuple[str, ...] = Field(("sex", "age"), description="further columns to keep, where they exist")
    train_flag: str | None = Field(None, description="column that is 1 for the train rows to keep; null: keep all")
    uncertain: Literal["unknown", "positive", "negative"] = Field("unknown", description="meaning of a label of -1")
    boxes: FilePath | None = Field(None, description=BOXES)
    reports: FilePath | None = Field(None, description=REPORTS)


class NihData(Strict):
    """The table of NIH ChestX-ray14 (Data_Entry_2017*.csv) and its image folders."""

    kind: Literal["nih"] = Field("nih", description="NIH ChestX-ray14 as published")
    table: FilePath = Field(description="Data_Entry_2017*.csv")
    images: FilePath = Field(description="folder of the images; sub-folders are searched too")
    test_list: FilePath | None = Field(
        None, description="the official test_list.txt; null: the seed splits the patients"
    )
    boxes: FilePath | None = Field(None, description=BOXES)
    reports: FilePath | None = Field(None, description=REPORTS)


class ManifestData(Strict):
    """A manifest.parquet of `medlt manifest` or `medlt convert`."""

    kind: Literal["manifest"] = Field("manifest", description="a manifest that medlt wrote")
    path: FilePath = Field(description="the manifest.parquet")
    boxes: FilePath | None = Field(None, description=BOXES)
    reports: FilePath | None = Field(None, description=REPORTS)


class PhantomData(Strict):
    """Synthetic radiographs of drawn patients, written as DICOM into the run folder and read from there."""

    kind: Literal["phantom"] = Field("phantom", description="built-in synthetic radiographs; no data needed")
    patients: int = Field(600, ge=20, description="number of drawn patients")
    size: int = Field(256, ge=64, description="rows and columns of the DICOM images, pixels")
    imbalance: float = Field(50.0, ge=1, description="prevalence of the most frequent finding over that of the rarest")
    shares: tuple[float, float, float] = Field(
        (0.6, 0.15, 0.25), description="shares of the patients in train, val and test"
    )


Data = Annotated[CsvData | NihData | ManifestData | PhantomData, Field(discriminator="kind")]
