"""The corpus of the de-identification benchmark: a planted value in every attribute of the standard's table."""

from __future__ import annotations

import csv
import random
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import dictionary_keyword, dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

TABLE = Path(__file__).parents[1] / "medlt" / "data" / "deidentify" / "actions.csv"
CLASSES = {"dx": "1.2.840.10008.5.1.4.1.1.1.1", "cr": "1.2.840.10008.5.1.4.1.1.1", "sc": "1.2.840.10008.5.1.4.1.1.7"}
KEPT = {
    "BodyPartExamined": "CHEST",
    "ViewPosition": "PA",
    "ImageLaterality": "U",
    "PatientOrientation": ["L", "F"],
    "KVP": "110",
    "ExposureTime": "9",
    "PixelSpacing": ["0.14", "0.14"],
    "WindowCenter": "2048",
    "WindowWidth": "4096",
    "ImageType": ["ORIGINAL", "PRIMARY"],
    "PresentationLUTShape": "IDENTITY",
    "Manufacturer": "Maker of Machines",
    "ManufacturerModelName": "Model Q",
    "InstanceNumber": "1",
    "SeriesNumber": "2",
    "LossyImageCompression": "00",
}
CHARACTERISTICS = {
    "PatientAge": "061Y",
    "PatientSex": "F",
    "PatientSize": "1.71",
    "PatientWeight": "70.5",
    "EthnicGroup": "Martian",
    "SmokingStatus": "NO",
    "PatientSexNeutered": "UNALTERED",
    "PregnancyStatus": 4,
}
TEXT = {"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT"}
HOLDER = "AnatomicRegionSequence"


class Planter:
    """Values that occur nowhere else in the corpus; none of them may be in the output."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.planted: set[str] = set()
        self.used: set[str] = set()

    def word(self) -> str:
        """Twelve letters and digits that stand nowhere else."""
        text = "Q" + "".join(self.random.choices("BCDFGHJKLMNPRSTVWXZ23456789", k=11))
        self.planted.add(text)
        return text

    def day(self) -> str:
        """A date within sixty years that stands nowhere else."""
        while (text := (date(1960, 1, 1) + timedelta(self.random.randrange(20000))).strftime("%Y%m%d")) in self.used:
            pass
        self.used.add(text)
        return text

    def value(self, vr: str) -> Any:
        """A value valid for `vr`."""
        clock = f"{self.random.randrange(24):02d}{self.random.randrange(60):02d}{self.random.randrange(60):02d}"
        if vr in TEXT:
            return self.word() if vr != "PN" else f"{self.word()}^{self.word()}"
        if vr == "SQ":
            item = Dataset()
            item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = self.word(), "99PLANT", self.word()
            return [item]
        plain = {
            "DA": self.day(),
            "DT": self.day() + clock,
            "TM": clock,
            "UI": f"1.2.826.0.1.{self.random.randrange(10**14, 10**15)}",
            "UR": f"http://{self.word()}.org",
            "AS": f"{self.random.randrange(1, 99):03d}Y",
            "DS": f"{self.random.randrange(10**6, 10**7)}",
            "IS": f"{self.random.randrange(10**6, 10**7)}",
            "CS": self.word().upper(),
        }
        return plain.get(vr) or (self.word().encode() if vr[0] in "OU" and vr not in ("UL", "US") else 60001)


def rows() -> dict[str, dict[str, str]]:
    """The rows of the table that a data set can hold, by keyword."""
    attributes = {}
    with TABLE.open(newline="") as handle:
        for row in csv.DictReader(handle):
            if "X" in row["tag"] or int(row["tag"][:4], 16) in (0, 2, 4):
                continue
            try:
                attributes[dictionary_keyword(int(row["tag"], 16))] = row
            except KeyError:
                continue
    return attributes


def fill(data: Dataset, planter: Planter, names: list[str], uids: dict[str, str]) -> None:
    """Plant a value in every attribute of `names`; UIDs in `uids` are given."""
    for name in names:
        tag = tag_for_keyword(name)
        vr = dictionary_VR(tag).split(" ")[0]
        value = uids.get(name) or CHARACTERISTICS.get(name) or planter.value(vr)
        data[tag] = DataElement(tag, vr, value)


def sample(planter: Planter, family: str, shared: dict[str, str], before: str | None) -> Dataset:
    """One file of the corpus. `shared` holds what the patient's files have in common, `before` another file's UID."""
    data, nested, names = Dataset(), Dataset(), [n for n in rows() if n not in (HOLDER, "ContentSequence")]
    own = {"SOPInstanceUID": planter.value("UI")}
    fill(data, planter, names, {**shared, **own})
    fill(nested, planter, [n for n in names if n != "SOPInstanceUID"], {"PatientID": shared["PatientID"]})
    if before:
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = CLASSES[family], before
        nested.ReferencedInstanceSequence = [reference]
    for name, value in KEPT.items():
        setattr(data, name, value)
    nested.CodeValue, nested.CodingSchemeDesignator, nested.CodeMeaning = "816094009", "SCT", "Chest"
    data.SOPClassUID, data.Modality = CLASSES[family], {"dx": "DX", "cr": "CR", "sc": "OT"}[family]
    data.AnatomicRegionSequence = [nested]
    data.FilterMaterial, data.WindowCenterWidthExplanation = "COPPER", f"window of {data.PatientName.family_name}"
    _hide(data, nested, planter)
    _pixels(data)
    _file_meta(data, planter)
    return data


def _hide(data: Dataset, nested: Dataset, planter: Planter) -> None:
    """Private attributes, curves and overlays."""
    for level in (data, nested):
        block = level.private_block(0x0029, "PLANTED 1.0", create=True)
        block.add_new(0x10, "LO", planter.word())
        block.add_new(0x11, "UN", planter.word().encode())
    data.add_new(0x50000030, "SH", planter.word())
    data.add_new(0x50003000, "OW", planter.word().encode())
    for element, vr, value in ((0x10, "US", 8), (0x11, "US", 8), (0x40, "CS", "G"), (0x50, "SS", [1, 1])):
        data.add_new(0x60000000 + element, vr, value)
    data.add_new(0x60000100, "US", 1)
    data.add_new(0x60000102, "US", 0)
    data.add_new(0x60003000, "OW", planter.word().encode())
    data.add_new(0x60004000, "LT", planter.word())
    data.add_new(0x60001500, "LO", planter.word())


def _pixels(data: Dataset) -> None:
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.add_new("PixelData", "OW", values.tobytes())


def _file_meta(data: Dataset, planter: Planter) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.SourceApplicationEntityTitle = planter.word()
    meta.PrivateInformationCreatorUID, meta.PrivateInformation = "1.2.3.4", planter.word().encode()
    data.file_meta = meta
    data.preamble = planter.word().encode() * 10 + b"\0" * 8


def corpus(folder: Path, patients: int) -> tuple[dict[str, Dataset], set[str]]:
    """Write the files; what they hold by name, and every planted text."""
    planter, files = Planter(7), {}
    for patient in range(patients):
        shared = {"PatientID": planter.word(), "StudyInstanceUID": planter.value("UI")}
        before = None
        for family in CLASSES:
            data = sample(planter, family, shared, before)
            name, before = f"p{patient}_{family}.dcm", str(data.SOPInstanceUID)
            data.save_as(folder / name, enforce_file_format=True)
            files[name] = pydicom.dcmread(folder / name)
    return files, planter.planted
