"""Damaged files under `--deidentify basic`: does a planted identifier leave in any released byte?

A part of benchmarks/fuzz_convert.py, which runs it with `--deidentify SHARE`.

The patient's name, their ID and the accession number are planted in every readable seed: in their own attributes, in a
free text, in a nested sequence, in private attributes, in the preamble, in a comment marker of each JPEG, JPEG-LS and
JPEG 2000 stream, behind the end of each stream or of the pixels, and behind the data set. The files are then damaged,
or left whole, and converted. Everything that may be released is searched: the bytes of files, the pixels of images, and
the tables.

An identifier in the stored values themselves is counted apart: damage can move any bytes into the pixels, where no
program knows them from grey levels.
"""

from __future__ import annotations

import struct
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
from blake3 import blake3
from fuzz_mutations import MUTATIONS, is_image, seeds
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames

from medlt.data.convert import ConversionSettings, convert
from medlt.data.convert.one import image_uid
from medlt.data.deidentify import Profile

KEY = bytes(range(32))
NAME, PATIENT, ACCESSION = "Quimbleton^Wandarella", "MRN90210QX", "ACCQX778899"
TOKENS = tuple(word.lower().encode() for word in (*NAME.split("^"), PATIENT, ACCESSION))
TEXT = f"{NAME} {PATIENT} {ACCESSION}"
PRIVATE = ("quarantine", ".convert", "private", "sources.csv")
"""What does not leave."""
JPEG = (*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes)
JPEG2000 = (*uid.JPEG2000TransferSyntaxes, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)


# the identifiers


def planted(raw: bytes) -> bytes | None:
    """This file with the identifiers everywhere; None if it cannot be written."""
    try:
        data = pydicom.dcmread(BytesIO(raw), force=True)
        data.PatientName, data.PatientID, data.AccessionNumber = NAME, PATIENT, ACCESSION
        data.StudyDescription, data.ImageComments = f"Chest of {PATIENT}", TEXT
        data.RequestAttributesSequence = [Dataset()]
        data.RequestAttributesSequence[0].ScheduledProcedureStepDescription = TEXT
        block = data.private_block(0x0009, "MAKER", create=True)
        block.add_new(1, "LO", TEXT)
        block.add_new(2, "UN", TEXT.encode() + b" ")
        _plant_in_pixels(data)
        data.preamble = TEXT.encode().ljust(128, b"\0")
        buffer = BytesIO()
        data.save_as(buffer, enforce_file_format=True)
    except Exception:
        return None
    return buffer.getvalue() + TEXT.encode()


def _plant_in_pixels(data: Dataset) -> None:
    """A comment in each stream and text behind it, or text behind uncompressed pixels."""
    syntax = data.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        text = TEXT.encode()
        data.PixelData = data.PixelData + text + bytes(len(text) % 2)
        return
    count = int(data.get("NumberOfFrames") or 1)
    frames = list(generate_frames(data.PixelData, number_of_frames=count))
    data.PixelData = encapsulate([commented(frame, syntax) + TEXT.encode() for frame in frames])
    data["PixelData"].VR = "OB"


def commented(stream: bytes, syntax: str) -> bytes:
    """This stream with a comment: COM behind SOI (ISO 10918-1 B.2.4.5), or behind SIZ (ISO 15444-1 A.9.2)."""
    text = TEXT.encode()
    if syntax in JPEG and stream[:2] == b"\xff\xd8":
        return stream[:2] + b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text + stream[2:]
    if syntax in JPEG2000 and stream[:4] == b"\xff\x4f\xff\x51":
        at = 4 + struct.unpack(">H", stream[4:6])[0]
        return stream[:at] + b"\xff\x64" + struct.pack(">HH", len(text) + 4, 1) + text + stream[at:]
    return stream


def damaged(count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """(seed file, mutation, bytes), the same ones for the same seed; every eighth or so is left whole."""
    rng = np.random.default_rng(seed)
    made = {name: file for name, raw in seeds().items() if is_image(raw) and (file := planted(raw)) is not None}
    others = [made[name] for name in sorted(made)]
    for _ in range(count):
        name = sorted(made)[int(rng.integers(len(made)))]
        at = int(rng.integers(len(MUTATIONS) + 1))
        if at == len(MUTATIONS):
            yield name, "none", made[name]
        else:
            yield name, MUTATIONS[at].__name__, MUTATIONS[at](rng, made[name], others)


# the search


def tokens_in(data: bytes) -> bool:
    """Whether an identifier is in these bytes, in whatever case."""
    return any(token in lower for lower in (data.lower(),) for token in TOKENS)


def leak(path: Path) -> str:
    """Where a released file holds an identifier: 'pixels', 'bytes', or '' for nowhere."""
    raw = path.read_bytes()
    if path.suffix == ".parquet":
        raw = pd.read_parquet(path).reset_index().to_csv().encode()
    pixels = _pixels(raw, path.suffix)
    if not tokens_in(raw):
        return "pixels" if tokens_in(pixels) else ""
    return "pixels" if tokens_in(pixels) and not tokens_in(raw.replace(pixels, b"")) else "bytes"


def _pixels(raw: bytes, suffix: str) -> bytes:
    """The stored values of an image, as bytes."""
    if suffix == ".dcm":
        data = pydicom.dcmread(BytesIO(raw))
        return bytes(data.PixelData) if not data.file_meta.TransferSyntaxUID.is_encapsulated else _decoded(data)
    if suffix == ".png":
        return cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED).tobytes()
    return b""


def _decoded(data: Dataset) -> bytes:
    try:
        return data.pixel_array.tobytes()
    except Exception:
        return b""


# the run


def fuzz(count: int, seed: int, workers: int, timeout: float, keep: Path | None, chunk: int = 1000) -> Counter[str]:
    """Convert that many damaged files with planted identifiers; count outcomes and leaks, as 'leak in ...'."""
    tally: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = list(damaged(count, seed))
        for start in range(0, count, chunk):
            _convert(files[start : start + chunk], workers, timeout, keep, tally)
    return tally


def _convert(
    files: list[tuple[str, str, bytes]], workers: int, timeout: float, keep: Path | None, tally: Counter[str]
) -> None:
    with tempfile.TemporaryDirectory() as place:
        source, out = Path(place) / "in", Path(place) / "out"
        source.mkdir()
        for i, (_, _, raw) in enumerate(files):
            (source / f"{i:06d}").write_bytes(raw)
        settings = ConversionSettings(timeout_s=timeout, profile=Profile.parse("basic"), key=KEY)
        counts = convert(source, out, settings, workers=workers)
        tally.update({"converted": counts["converted"], **counts["reasons"]})
        named = {image_uid(blake3(raw).digest(), KEY): (name, kind, raw) for name, kind, raw in files}
        for path in sorted(out.rglob("*")):
            inside = path.relative_to(out)
            if inside.parts[0] in PRIVATE or not path.is_file():
                continue
            tally["released files searched"] += 1
            if tokens_in(str(inside).encode()) or (where := leak(path)):
                where = "the name" if tokens_in(str(inside).encode()) else where
                _keep(where, path, named.get(path.stem), keep, tally)


def _keep(where: str, path: Path, of: tuple[str, str, bytes] | None, keep: Path | None, tally: Counter[str]) -> None:
    name, kind, raw = of or (path.name, "", b"")
    tally[f"leak in {where} of {path.suffix[1:]} by {kind}"] += 1
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        stem = f"{sum(tally.values()):06d} leak in {where} by {kind} of {name}".replace("/", "-")
        (keep / stem).write_bytes(raw)
        (keep / f"{stem} released{path.suffix}").write_bytes(path.read_bytes())


def lines(tally: Counter[str], count: int) -> list[str]:
    """The result as Markdown."""
    leaks = sorted(name for name in tally if name.startswith("leak "))
    rest = [f"| {name} | {n} |" for name, n in sorted(tally.items()) if name not in leaks]
    return [
        f"{count:,} files with planted identifiers under `--deidentify basic`; released files with an identifier "
        f"outside the pixels: {sum(tally[name] for name in leaks if ' pixels ' not in name)}, in the pixels: "
        f"{sum(tally[name] for name in leaks if ' pixels ' in name)}.",
        "",
        "| outcome | files |",
        "|---|---:|",
        *rest,
        *(["", *(f"- {tally[name]} x {name}" for name in leaks)] if leaks else []),
    ]
