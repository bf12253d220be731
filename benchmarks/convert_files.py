"""Radiographs for the conversion benchmarks: 2048x2500, 12 bits stored, smooth anatomy with detector noise."""

from __future__ import annotations

from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

SYNTAXES = {
    "uncompressed": ExplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG lossless": JPEGLosslessSV1,
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000": JPEG2000Lossless,
    "HTJ2K": HTJ2KLossless,
}
DISTINCT = 10


def picture(rng: np.random.Generator, rows: int = 2500, columns: int = 2048) -> np.ndarray:
    """uint16 [rows, columns] from 0 to 4095."""
    coarse = rng.random((6, 5), dtype=np.float32)  # finer structures look like letters to the text detector
    smooth = cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth * 3000 + 500 + rng.normal(0, 20, smooth.shape), 0, 4095).astype(np.uint16)


def header(name: str, at: int, pixels: np.ndarray) -> Dataset:
    """A DX data set without its pixels; instance `at` of a set."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = SYNTAXES[name]
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = DigitalXRayImageStorageForPresentation
    uid = generate_uid(entropy_srcs=[name, str(at)])
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid
    data.Modality, data.PatientID, data.ViewPosition = "DX", f"p{at}", "PA"
    data.Rows, data.Columns, data.SamplesPerPixel = *pixels.shape, 1
    data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.WindowCenter, data.WindowWidth = 2048, 3500
    return data


def encoded(name: str, pixels: np.ndarray) -> bytes:
    """Pixel data in the syntax, encapsulated where it is compressed."""
    if name == "uncompressed":
        return pixels.tobytes()
    encode = {
        "JPEG lossless": lambda x: imagecodecs.ljpeg_encode(x, bitspersample=12),
        "JPEG-LS": imagecodecs.jpegls_encode,
        "JPEG 2000": lambda x: imagecodecs.jpeg2k_encode(x, codecformat="j2k", reversible=True, bitspersample=12),
        "HTJ2K": imagecodecs.htj2k_encode,
    }[name]
    return encapsulate([bytes(encode(pixels))])


def build(folder: Path, name: str, count: int) -> Path:
    """`count` files of one syntax; ten different pictures, every file with identifiers of its own."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    streams = []
    for at in range(min(DISTINCT, count)):
        pixels = picture(rng)
        if name == "RLE":
            data = header("uncompressed", at, pixels)
            data.PixelData = pixels.tobytes()
            data.compress(RLELossless, generate_instance_uid=False)
            streams.append((pixels, data.PixelData))
        else:
            streams.append((pixels, encoded(name, pixels)))
    for at in range(count):
        pixels, stream = streams[at % len(streams)]
        data = header(name, at, pixels)
        data.PixelData = stream
        data["PixelData"].VR = "OW" if name == "uncompressed" else "OB"
        data.save_as(folder / f"{at:04d}.dcm", enforce_file_format=True)
    return folder
