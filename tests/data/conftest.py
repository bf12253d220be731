"""Radiographs and tables of a few bytes, made by the tests that read them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid


def header(pixels: np.ndarray, **tags: Any) -> Dataset:
    """A DX data set in memory: 16 bits allocated, 12 stored, MONOCHROME2, unless `tags` say otherwise."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = DigitalXRayImageStorageForPresentation
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    signed = int(np.issubdtype(pixels.dtype, np.signedinteger))
    bits = pixels.dtype.itemsize * 8
    given = {
        "Modality": "DX",
        "PatientID": "p1",
        "ViewPosition": "PA",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": min(bits, 12),
        "PixelRepresentation": signed,
        "PixelData": pixels.tobytes(),
        **tags,
    }
    given.setdefault("HighBit", given["BitsStored"] - 1)
    for name, value in given.items():
        if value is not None:
            setattr(data, name, value)
    return data


@pytest.fixture(name="header")
def header_fixture() -> Callable[..., Dataset]:
    """header(pixels, **tags) -> Dataset."""
    return header


@pytest.fixture
def write_dicom(tmp_path: Path) -> Callable[..., Path]:
    """write_dicom(pixels, **tags) -> path of the file."""

    def write(pixels: np.ndarray, name: str = "image.dcm", **tags: Any) -> Path:
        path = tmp_path / name
        header(pixels, **tags).save_as(path, enforce_file_format=True)
        return path

    return write


@pytest.fixture
def table() -> pd.DataFrame:
    """Six images of five patients, findings A and B and No_Finding."""
    return pd.DataFrame(
        {
            "path": [f"images/{i}.png" for i in range(6)],
            "uid": [f"u{i}" for i in range(6)],
            "patient_id": ["p0", "p0", "p1", "p2", "p3", "p4"],
            "split": ["train", "train", "train", "train", "val", "test"],
            "view": ["PA", "AP", "PA", "LL", "PA", None],
            "sex": ["F", "F", "M", "M", "F", "M"],
            "age": [60.0, 61.0, 40.0, np.nan, 33.0, 71.0],
            "A": [1.0, 1.0, 0.0, np.nan, 1.0, 0.0],
            "B": [0.0, 0.0, 1.0, 0.0, 0.0, 1.0],
            "No_Finding": [0.0, 0.0, 0.0, 1.0, 0.0, 0.0],
        }
    )


@pytest.fixture
def folder(tmp_path: Path, table: pd.DataFrame) -> Path:
    """The table as labels.csv with its six 12 x 20 PNG files: bright top-left corner, one level a file elsewhere."""
    (tmp_path / "images").mkdir()
    for i, path in enumerate(table["path"]):
        pixels = np.full((12, 20), 20 * i + 10, np.uint8)
        pixels[:4, :6] = 255
        Image.fromarray(pixels).save(tmp_path / path)
    table.to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path
