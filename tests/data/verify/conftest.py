"""A DICOM file that another tool calls de-identified."""

from io import BytesIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian


def stranger() -> bytes:
    """A small DX file with PatientIdentityRemoved YES, and a patient."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.826.0.1.1"
    data.PatientIdentityRemoved, data.DeidentificationMethod = "YES", "by hand, for Smith"
    data.PatientName, data.PatientBirthDate, data.StudyDate = "Smith^John", "19610203", "20190304"
    data.OtherPatientIDs, data.PatientAge, data.Modality = "1961-77", "093Y", "DX"
    data.private_block(0x0029, "ACME", create=True).add_new(0x10, "LO", "Smith")
    pixels = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint16) * 16
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.add_new("PixelData", "OW", pixels.tobytes())
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()
