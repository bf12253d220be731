"""Small films in memory, and what `convert` wrote about each source file."""

import csv
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pandas as pd
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame

from medlt.data.convert import ConversionSettings, Places, convert

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def film(pixels: np.ndarray = RAMP, syntax: str = uid.ExplicitVRLittleEndian, **tags: Any) -> bytes:
    """A DX file, 12 of 16 bits or 8 of 8, MONOCHROME2; PixelData as given in `tags`, a list of streams encapsulated."""
    data, bits = Dataset(), pixels.dtype.itemsize * 8
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.UID(syntax)
    given = {
        "SOPClassUID": uid.DigitalXRayImageStorageForPresentation,
        "SOPInstanceUID": uid.generate_uid(),
        "Modality": "DX",
        "PatientID": "p1",
        "ViewPosition": "PA",
        "BodyPartExamined": "CHEST",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": min(bits, 12),
        "PixelRepresentation": int(np.issubdtype(pixels.dtype, np.signedinteger)),
        "PixelData": pixels.tobytes(),
        **tags,
    }
    given.setdefault("HighBit", (given["BitsStored"] or 1) - 1)
    compressed = isinstance(given["PixelData"], list)
    if compressed:
        given["PixelData"] = encapsulate(given["PixelData"])
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hostile values are the point
        for name, value in given.items():
            if value is not None:
                setattr(data, name, value)
        if given["PixelData"] is not None:
            data["PixelData"].VR = "OB" if compressed or bits == 8 else "OW"
        private = {"implicit_vr": False, "little_endian": True} if uid.UID(syntax).is_private else {}
        data.save_as(buffer, enforce_file_format=True, **private)
    return buffer.getvalue()


def stream(pixels: np.ndarray, syntax: str) -> bytes:
    """One frame of uint8 or 12-bit uint16 pixels, compressed."""
    bits = 8 if pixels.dtype == np.uint8 else 12
    if syntax == uid.RLELossless:
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        (data.Rows, data.Columns), data.SamplesPerPixel, data.PixelRepresentation = pixels.shape, 1, 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 8 * pixels.itemsize, bits, bits - 1
        data.PhotometricInterpretation, data.PixelData = "MONOCHROME2", pixels.tobytes()
        data["PixelData"].VR = "OW"
        data.set_original_encoding(False, True)
        data.compress(syntax, generate_instance_uid=False)
        return get_frame(data.PixelData, 0)
    encoders: dict[str, Callable[[], bytes]] = {
        uid.JPEGBaseline8Bit: lambda: imagecodecs.jpeg8_encode(pixels, level=90),
        uid.JPEGExtended12Bit: lambda: imagecodecs.jpeg8_encode(pixels, level=90, bitspersample=bits),
        uid.JPEGLossless: lambda: imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=4, bitspersample=bits),
        uid.JPEGLosslessSV1: lambda: imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=bits),
        uid.JPEGLSLossless: lambda: imagecodecs.jpegls_encode(pixels),
        uid.JPEG2000Lossless: lambda: imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="J2K", reversible=True),
        uid.HTJ2KLossless: lambda: imagecodecs.htj2k_encode(pixels),
    }
    return bytes(encoders[syntax]())


def bomb(mebibytes: int) -> bytes:
    """Raw deflate of that many MiB of zeros, made in no time: one block, repeated."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = deflater.compress(bytes(1 << 20)) + deflater.flush(zlib.Z_FULL_FLUSH)
    return block * mebibytes + b"\x03\x00"


def deflated(body: bytes, **tags: Any) -> bytes:
    """A deflated file's preamble and file meta, with `body` for its deflated data set."""
    whole = film(syntax=uid.DeflatedExplicitVRLittleEndian, **tags)
    return whole[: 144 + struct.unpack("<I", whole[140:144])[0]] + body


@dataclass
class Result:
    """Result of a run: its counts, the manifest's rows and the failures' reasons by source file, the duplicates."""

    counts: dict[str, Any]
    rows: dict[str, dict[str, Any]]
    reasons: dict[str, str]
    duplicates: list[tuple[str, str, str]]
    places: Places

    @property
    def out(self) -> Path:
        """The folder of the conversion."""
        return self.places.out

    @property
    def release(self) -> Path:
        """The folder of images and manifest."""
        return self.places.release

    def pixels(self, name: str) -> np.ndarray:
        """The PNG that a source file became."""
        from PIL import Image

        with Image.open(self.release / self.rows[name]["path"]) as image:
            return np.asarray(image)


def read_result(places: Places, counts: dict[str, Any]) -> Result:
    with places.sources.open(encoding="utf-8", errors="surrogateescape", newline="") as handle:
        names = {row["source"]: row["file"] for row in csv.DictReader(handle)}
    manifest = pd.read_parquet(places.release / "manifest.parquet").reset_index()
    failures = pd.read_csv(places.out / "failures.csv", dtype=str)
    duplicates = pd.read_csv(places.out / "duplicates.csv", dtype=str)
    return Result(
        counts,
        {names[row["source"]]: row for row in manifest.to_dict("records")},
        {names[row["source"]]: row["reason"] for row in failures.to_dict("records")},
        [(names[d["source"]], d["same_as_uid"], d["what"]) for d in duplicates.to_dict("records")],
        places,
    )


@pytest.fixture(scope="session", name="film")
def film_fixture() -> Callable[..., bytes]:
    """film(pixels, syntax, **tags) -> the bytes of a file."""
    return film


@pytest.fixture(scope="session", name="stream")
def stream_fixture() -> Callable[[np.ndarray, str], bytes]:
    """stream(pixels, syntax) -> one compressed frame."""
    return stream


@pytest.fixture(scope="session", name="bomb")
def bomb_fixture() -> Callable[[int], bytes]:
    """bomb(MiB) -> raw deflate."""
    return bomb


@pytest.fixture(scope="session", name="deflated")
def deflated_fixture() -> Callable[..., bytes]:
    """deflated(body) -> a file marked deflated, with this body."""
    return deflated


@pytest.fixture(scope="session")
def run() -> Callable[..., Result]:
    """run(source, out, workers=1, **settings) -> Result."""

    def go(source: Path, out: Path, workers: int = 1, **settings: Any) -> Result:
        made = ConversionSettings(**settings)
        places = Places(out, made.profile is not None)
        return read_result(places, convert(source, out, made, workers=workers))

    return go


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes]]:
    """tree(folder) -> {path: bytes} of the outputs, without the journal and temporary names."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (p for p in sorted(folder.rglob("*")) if p.is_file() and ".convert" not in p.parts)
        return {os.fsdecode(os.path.relpath(p, folder)): p.read_bytes() for p in files}

    return read
