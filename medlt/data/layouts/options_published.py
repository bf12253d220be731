"""Options of layouts of published collections beside NIH and MIMIC."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from medlt.data.layouts.label_spec import Names
from medlt.data.layouts.options import Options
from medlt.data.layouts.readers import Readers


class ChexpertOptions(Options):
    """Options of CheXpert and CheXpert Plus."""

    labels: Path | None = Field(
        None, description="CheXpert Plus: one of its label files, such as impression_fixed.json; default: the only one"
    )


class PadChestOptions(Options):
    """Options of PadChest."""

    findings: Names = Field((), description="labels to keep; default: all but notes on the film or the report")
    tree: Literal["implied", "ignored"] = Field(
        "implied", description="whether a label implies the labels above it in the tree of PadChest"
    )


class PatientlessOptions(Options):
    """Options of a collection whose tables name no patient."""

    patient: str | None = Field(
        None, description="regular expression that matches the patient in the path; (.+) if each image is of another"
    )


class VindrOptions(PatientlessOptions):
    """Options of VinDr-CXR and VinDr-PCXR."""

    readers: Readers = Field(
        "majority", description="how several readers become one label; the majority of an even number may be unknown"
    )


class RsnaOptions(PatientlessOptions):
    """Options of the RSNA Pneumonia Detection Challenge."""

    all_zero: Literal["keep", "drop", "no-finding"] | None = Field(
        "keep", description="action on rows with every finding at 0: images that show something else"
    )


class SiimOptions(PatientlessOptions):
    """Options of the SIIM-ACR Pneumothorax Segmentation challenge."""

    all_zero: Literal["keep", "drop", "no-finding"] | None = Field(
        "keep", description="action on images without pneumothorax: there is no other finding"
    )
    masks: Path | None = Field(None, description="folder to write the masks to, as PNG; default: they are not read")
