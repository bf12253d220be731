"""What benchmarks/fuzz_convert.py feeds the converter: small real files, and eight ways to damage them."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from pydicom import uid
from pydicom.data import get_testdata_files
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from medlt.data.dicom.guard import open_bytes

LARGEST_SEED = 64 << 10
Mutation = Callable[[np.random.Generator, bytes, list[bytes]], bytes]


# the seeds


def seeds() -> dict[str, bytes]:
    """Real files of up to 64 KiB by name, and one radiograph in every compressed transfer syntax."""
    folders = [Path(p) for p in get_testdata_files() if not str(p).endswith((".zip", ".json", ".xml", ".txt"))]
    if place := os.environ.get("MEDLT_DATA"):
        folders += [p for p in sorted((Path(place) / "dicom").rglob("*")) if p.is_file() and p.suffix in (".dcm", "")]
    files = {p.name: p for p in folders if p.is_file() and 0 < p.stat().st_size <= LARGEST_SEED}
    return {name: path.read_bytes() for name, path in sorted(files.items())} | made()


def is_image(raw: bytes) -> bool:
    """Whether it opens; reports, plans and text files are mutated as well, but seldom."""
    try:
        open_bytes(raw, Path("seed"))
    except ValueError:
        return False
    return True


def made() -> dict[str, bytes]:
    """A 12-bit 96 x 96 gradient with noise, as JPEG extended, lossless, JPEG-LS, JPEG 2000, HTJ2K, RLE and deflated."""
    noise = np.random.default_rng(0).integers(0, 64, (96, 96))
    image = (np.add.outer(np.arange(96), 2 * np.arange(96)) * 14 + noise).astype(np.uint16)
    streams = {
        uid.JPEGExtended12Bit: imagecodecs.jpeg8_encode(image, level=95, bitspersample=12),
        uid.JPEGLosslessSV1: imagecodecs.jpeg8_encode(image, lossless=True, predictor=1, bitspersample=12),
        uid.JPEGLSLossless: imagecodecs.jpegls_encode(image),
        uid.JPEG2000Lossless: imagecodecs.jpeg2k_encode(image, level=0, codecformat="J2K", reversible=True),
        uid.HTJ2KLossless: imagecodecs.htj2k_encode(image),
        uid.RLELossless: None,
        uid.DeflatedExplicitVRLittleEndian: None,
    }
    return {f"made {syntax.name}": _file(image, syntax, stream) for syntax, stream in streams.items()}


def _file(image: np.ndarray, syntax: uid.UID, stream: bytes | None) -> bytes:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if stream is None else syntax
    data.SOPClassUID, data.SOPInstanceUID = uid.DigitalXRayImageStorageForPresentation, "1.2.3"
    data.Modality, data.PatientID, data.ViewPosition, data.BodyPartExamined = "DX", "p1", "PA", "CHEST"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME1"
    (data.Rows, data.Columns), data.PixelRepresentation = image.shape, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.WindowCenter, data.WindowWidth = 2048, 4096
    data.PixelData = image.tobytes() if stream is None else encapsulate([stream])
    data["PixelData"].VR = "OW" if stream is None else "OB"
    if syntax == uid.RLELossless:
        data.compress(syntax, generate_instance_uid=False)
    data.file_meta.TransferSyntaxUID = syntax
    buffer = BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


# the mutations


def flip(rng: np.random.Generator, raw: bytes, _: list[bytes]) -> bytes:
    """1 to 8 bits."""
    out = bytearray(raw)
    for at in rng.integers(len(raw), size=rng.integers(1, 9)):
        out[at] ^= 1 << int(rng.integers(8))
    return bytes(out)


def overwrite(rng: np.random.Generator, raw: bytes, _: list[bytes]) -> bytes:
    """Up to 32 bytes at one place: random, all 0 or all 255."""
    at, count = int(rng.integers(len(raw))), int(rng.integers(1, 33))
    piece = (rng.bytes(count), bytes(count), b"\xff" * count)[int(rng.integers(3))]
    return (raw[:at] + piece + raw[at + count :])[: len(raw)]


def cut(rng: np.random.Generator, raw: bytes, _: list[bytes]) -> bytes:
    """Everything after some place is gone."""
    return raw[: int(rng.integers(len(raw)))]


def splice(rng: np.random.Generator, raw: bytes, others: list[bytes]) -> bytes:
    """A piece of another file in place of, or between, bytes of this one."""
    other = others[int(rng.integers(len(others)))]
    start, at = int(rng.integers(len(other))), int(rng.integers(len(raw)))
    piece = other[start : start + int(rng.integers(1, 2049))]
    return raw[:at] + piece + raw[at + (len(piece) if rng.integers(2) else 0) :]


def value(rng: np.random.Generator, raw: bytes, _: list[bytes]) -> bytes:
    """The value of one element."""
    at, length = _element(rng, raw)
    hostile = (b"\xff", b"\0", b"\\", b"9", b"-", b"../", b"\x1b$B", b"\xe2\x82\xac", b"1e308 ")
    piece = rng.bytes(length) if rng.integers(2) else (hostile[int(rng.integers(len(hostile)))] * length)[:length]
    return raw[:at] + piece + raw[at + length :]


def length(rng: np.random.Generator, raw: bytes, _: list[bytes]) -> bytes:
    """The length field before the value of one element."""
    at, _size = _element(rng, raw)
    number = (0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 2, 2**32 - 1, int(rng.integers(2**32)))[int(rng.integers(7))]
    field = struct.pack("<I", number)[: 2 if rng.integers(2) else 4]
    return raw[: at - len(field)] + field + raw[at:]


def kind(rng: np.random.Generator, raw: bytes, _: list[bytes]) -> bytes:
    """The value representation of one element (explicit VR)."""
    at, _size = _element(rng, raw)
    known = [b"US", b"SS", b"FD", b"IS", b"DS", b"SQ", b"UN", b"OB", b"OW", b"AT", b"LO", b"UI", b"ZZ", b"\0\0", b"PN"]
    return raw[: at - 4] + known[int(rng.integers(len(known)))] + raw[at - 2 :]


def swap(rng: np.random.Generator, raw: bytes, others: list[bytes]) -> bytes:
    """The header of this file before the pixel data of another."""
    other = others[int(rng.integers(len(others)))]
    mark = b"\xe0\x7f\x10\x00"
    return raw[: raw.rfind(mark)] + other[other.rfind(mark) :] if mark in raw and mark in other else flip(rng, raw, [])


MUTATIONS: tuple[Mutation, ...] = (flip, overwrite, cut, splice, value, length, kind, swap)
_ELEMENTS: dict[bytes, list[tuple[int, int]]] = {}


def _element(rng: np.random.Generator, raw: bytes) -> tuple[int, int]:
    """(offset, length) of the value of a random element; of random bytes if there is none."""
    if raw not in _ELEMENTS:
        data = pydicom.dcmread(BytesIO(raw), force=True)
        elements = [e for part in (data.file_meta, data) for e in part._dict.values() if isinstance(e, RawDataElement)]
        places = [(e.value_tell, min(e.length, 64)) for e in elements if e.length and 8 <= e.value_tell < len(raw)]
        _ELEMENTS[raw] = places or [(min(8, len(raw)), 4)]
    places = _ELEMENTS[raw]
    return places[int(rng.integers(len(places)))]


def mutated(count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """(seed file, mutation, bytes), the same ones for the same seed."""
    rng, known = np.random.default_rng(seed), seeds()
    others = [known[name] for name in sorted(known)]
    images = [name for name in sorted(known) if is_image(known[name])]
    rest = sorted(set(known) - set(images))
    for _ in range(count):
        names = images if rng.random() < 0.95 or not rest else rest
        name = names[int(rng.integers(len(names)))]
        mutation = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
        yield name, mutation.__name__, mutation(rng, known[name], others)
