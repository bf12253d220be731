"""Small radiographs that carry a patient, and a key."""

from collections.abc import Callable

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

KEY = bytes(range(32))
DX = "1.2.840.10008.5.1.4.1.1.1.1"


@pytest.fixture
def key() -> bytes:
    return KEY


def radiograph(pixels: np.ndarray | None = None, sop_class: str = DX, **attributes: object) -> Dataset:
    """A 12-bit DX image of 64 x 64 smooth pixels, or of `pixels`, with a patient; `attributes` by keyword."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = sop_class, "1.2.826.0.1.1"
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.826.0.1.2", "1.2.826.0.1.3"
    data.Modality, data.StudyDate, data.StudyTime, data.BodyPartExamined = "DX", "20190304", "101112", "CHEST"
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = (
        "Quimby^Wanda",
        "MRN-90210",
        "19480517",
        "F",
    )
    data.AccessionNumber, data.InstitutionName = "ACC778899", "Springfield General"
    values = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint16) * 16 if pixels is None else pixels
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.add_new("PixelData", "OW", values.astype("<u2").tobytes())
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword, value in attributes.items():
        setattr(data, keyword, value)
    return data


@pytest.fixture
def make() -> Callable[..., Dataset]:
    return radiograph
