"""Damaged files and the converter: does any crash it, hang it, or give a wrong image without a mark?

    python benchmarks/fuzz_convert.py [--files 20000] [--seed 0] [--workers 2] [--timeout 20] [--keep FOLDER]

The benchmark mutates small real files (those that come with pydicom, and those of MEDLT_DATA/dicom if it is set) and
one radiograph written in every compressed transfer syntax. It converts them by `medlt.data.convert`, and compares
every image with that of a second decoder of the same bytes. `--keep` copies every file that crashed, timed out or
differs.
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pandas as pd
import pydicom
from common import table
from pydicom import uid
from pydicom.data import get_testdata_files
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import pixel_array

from medlt.data.convert import PRESETS, ConversionSettings, convert
from medlt.data.convert.pool import Pool
from medlt.data.convert.presets import to_uint8
from medlt.data.convert.upright import upright
from medlt.data.dicom.cells import bits_below, cleared
from medlt.data.dicom.guard import open_bytes
from medlt.data.dicom.read import spacing
from medlt.data.dicom.streams import frame_bits

LARGEST_SEED = 64 << 10
CHUNK = 1000
Mutation = Callable[[np.random.Generator, bytes, list[bytes]], bytes]


# the seeds


def seeds() -> dict[str, bytes]:
    """Real files of up to 64 KiB by name, and one radiograph in every compressed transfer syntax."""
    folders = [Path(p) for p in get_testdata_files() if not str(p).endswith((".zip", ".json", ".xml", ".txt"))]
    if place := os.environ.get("MEDLT_DATA"):
        folders += [p for p in sorted((Path(place) / "dicom").rglob("*")) if p.is_file() and p.suffix in (".dcm", "")]
    files = {p.name: p for p in folders if p.is_file() and 0 < p.stat().st_size <= LARGEST_SEED}
    return {name: path.read_bytes() for name, path in sorted(files.items())} | made()


def _is_image(raw: bytes) -> bool:
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
    images = [name for name in sorted(known) if _is_image(known[name])]
    rest = sorted(set(known) - set(images))
    for _ in range(count):
        names = images if rng.random() < 0.95 or not rest else rest
        name = names[int(rng.integers(len(names)))]
        mutation = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
        yield name, mutation.__name__, mutation(rng, known[name], others)


# the second decoder


def second_decoder() -> Callable[[tuple[str, str]], str]:
    """Runs in a process of its own, as a second decoder may crash as well."""
    import logging
    import resource

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    cv2.setNumThreads(1)
    return lambda pair: verdict(Path(pair[0]).read_bytes(), Path(pair[1]))


def verdict(raw: bytes, image: Path) -> str:
    """'same' as another decoder makes it, 'differs', 'refused' by the other decoder, or 'no other' decoder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = cv2.imread(str(image), cv2.IMREAD_UNCHANGED)
        if raw[128:132] != b"DICM" and raw[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0"):
            return "no other"
        data, _ = open_bytes(raw, Path("file"))
        try:
            values = second(data)
        except Exception:
            return "refused"
        if values is None:
            return "no other"
        expected = to_uint8(upright(PRESETS["viewer"](values, data), spacing(data), data)[0].pixels)
    same = expected.shape == pixels.shape and np.array_equal(expected, pixels)
    return ("flat" if np.ptp(pixels) == 0 and np.ptp(values) else "same") if same else "differs"


def second(data: Dataset) -> np.ndarray | None:
    """Stored values by other code than the converter's; None where there is none."""
    syntax = data.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return _native(data)
    if data.SamplesPerPixel != 1 or data.PixelRepresentation:
        return None
    frame = get_frame(data.PixelData, 0, number_of_frames=int(data.get("NumberOfFrames") or 1))
    if syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        values = imagecodecs.ljpeg_decode(frame)
    elif syntax == uid.RLELossless:
        values = pixel_array(data, index=0, decoding_plugin="pydicom", correct_unused_bits=False)
    elif syntax in uid.JPEGLSTransferSyntaxes:
        values = pixel_array(data, index=0, decoding_plugin="pyjpegls")
    else:
        return None
    if values.shape != (data.Rows, data.Columns):
        raise ValueError("another size")
    return cleared(np.asarray(values), data, bits_below(data, frame_bits(frame)))


def _native(data: Dataset) -> np.ndarray | None:
    """Uncompressed gray samples straight from the bytes (PS3.5 8.1); None for colour, bits and floats."""
    bits = int(data.BitsAllocated)
    if data.SamplesPerPixel != 1 or "PixelData" not in data or bits not in (8, 16, 32):
        return None
    if data.PhotometricInterpretation == "PALETTE COLOR":
        return None
    order = ">" if data.file_meta.TransferSyntaxUID == uid.ExplicitVRBigEndian else "<"
    kind = f"{order}{'i' if data.PixelRepresentation else 'u'}{bits // 8}"
    count = int(data.Rows) * int(data.Columns)
    values = np.frombuffer(data.PixelData, kind, count).reshape(int(data.Rows), int(data.Columns))
    return cleared(values.astype(kind[1:]), data, bits_below(data))


# the run


@contextmanager
def heard(lines: list[str]) -> Iterator[None]:
    """What any process prints on stderr meanwhile, decoders in C and Rust as well."""
    with tempfile.TemporaryFile() as place:
        before = os.dup(2)
        os.dup2(place.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            place.seek(0)
            lines += place.read().decode(errors="replace").splitlines()


class Tally:
    """Counts over all chunks."""

    def __init__(self) -> None:
        self.reasons: dict[str, Counter[str]] = {}
        self.verdicts: dict[str, Counter[str]] = {}
        self.lost: list[str] = []
        self.faults: list[str] = []
        self.silence, self.seconds = 0.0, 0.0


def chunk(files: list[tuple[str, str, bytes]], tally: Tally, workers: int, timeout: float, keep: Path | None) -> None:
    """Write these files, convert them, and compare the result with that of a second decoder."""
    with tempfile.TemporaryDirectory() as place:
        source, out = Path(place) / "in", Path(place) / "out"
        source.mkdir()
        for i, (_, _, raw) in enumerate(files):
            (source / f"{i:06d}").write_bytes(raw)
        started = last = time.monotonic()

        def answered(*_: object) -> None:
            nonlocal last
            tally.silence, last = max(tally.silence, time.monotonic() - last), time.monotonic()

        with heard(tally.faults):
            convert(source, out, ConversionSettings(timeout_s=timeout), workers=workers, progress=answered)
        tally.seconds += time.monotonic() - started
        _count(files, source, out, tally, timeout, keep)


def _count(
    files: list[tuple[str, str, bytes]], source: Path, out: Path, tally: Tally, timeout: float, keep: Path | None
) -> None:
    names = pd.read_csv(out / "sources.csv", dtype=str).set_index("source")["file"]
    failures = pd.read_csv(out / "failures.csv", dtype=str).set_index("source")["reason"]
    rows = pd.read_parquet(out / "manifest.parquet")
    everything = [*(names[s] for s in failures.index), *(names[s] for s in rows["source"])]
    if sorted(everything) != sorted(p.name for p in source.iterdir()):
        raise SystemExit("a file was lost or counted twice")
    for at, reason in failures.items():
        _, mutation, raw = files[int(names[at])]
        tally.reasons.setdefault(mutation, Counter())[reason] += 1
        if reason in ("crashed", "timeout", "out_of_memory"):
            _keep(f"{reason} {syntax_of(raw)} from {files[int(names[at])][0]}", raw, tally, keep)
    pairs = [(str(source / names[row.source]), str(out / row.path)) for row in rows.itertuples()]
    syntaxes = dict(zip((p[0] for p in pairs), rows["transfer_syntax"], strict=True))
    with heard([]), Pool(second_decoder, (), lambda task, how: how, workers=1, timeout_s=timeout) as pool:
        for pair, verdict in pool.run(pairs):
            name, mutation, raw = files[int(Path(pair[0]).name)]
            tally.reasons.setdefault(mutation, Counter())["converted"] += 1
            syntax = uid.UID(syntaxes[pair[0]]).name
            tally.verdicts.setdefault(syntax, Counter())[verdict] += 1
            if verdict in ("differs", "refused"):
                _keep(f"{verdict} {syntax} from {name} by {mutation}", raw, tally, keep)


def _keep(name: str, raw: bytes, tally: Tally, keep: Path | None) -> None:
    tally.lost.append(name)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{len(tally.lost):04d} {name}".replace("/", "-")).write_bytes(raw)


def syntax_of(raw: bytes) -> str:
    """Return the transfer syntax, as far as it can be read."""
    try:
        return str(pydicom.dcmread(BytesIO(raw), force=True, stop_before_pixels=True).file_meta.TransferSyntaxUID.name)
    except Exception:
        return "unknown"


def fuzz(files: int, seed: int, workers: int, timeout: float, keep: Path | None = None) -> Tally:
    """Mutate, convert and compare. Raises if the run fails or a file is missing from its record."""
    tally, waiting = Tally(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for at, file in enumerate(mutated(files, seed), 1):
            waiting.append(file)
            if len(waiting) == CHUNK or at == files:
                chunk(waiting, tally, workers, timeout, keep)
                print(f"{at} files, {tally.seconds:.0f} s", file=sys.stderr, flush=True)
                waiting = []
    return tally


def lines(tally: Tally, files: int, seed_files: int) -> list[str]:
    """The result as Markdown."""
    kinds = ["converted", *sorted({r for c in tally.reasons.values() for r in c} - {"converted"})]
    total: Counter[str] = sum(tally.reasons.values(), Counter())
    loud = Counter(_noise(line) for line in tally.faults)
    out = [
        f"{seed_files} seed files, {files:,} mutated files in {tally.seconds:.0f} s of conversion; "
        f"longest wait for an answer {tally.silence:.1f} s; timeouts {total['timeout']}, crashes {total['crashed']}.",
        "",
        "| outcome | " + " | ".join(sorted(tally.reasons)) + " | all |",
        "|---|" + "---:|" * (len(tally.reasons) + 1),
        *(f"| {r} | " + " | ".join(str(tally.reasons[m][r]) for m in sorted(tally.reasons)) + f" | {total[r]} |"
          for r in kinds),
        "",
        "Images that came out, against a second decoder of the same bytes (`flat`: the same, and without contrast "
        "under its window although its stored values vary; `refused`: the second decoder refuses the stream):",
        "",
        "| transfer syntax | same | flat | differs | refused | no other decoder | second decoder failed |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for syntax, counted in sorted(tally.verdicts.items()):
        cells = [counted[v] for v in ("same", "flat", "differs", "refused", "no other")]
        out.append(f"| {syntax} | " + " | ".join(map(str, cells)) + f" | {counted['timeout'] + counted['crashed']} |")
    shown = [f"{n} x {what}" for what, n in loud.most_common(6) if what]
    out += ["", "Printed on stderr by decoders: " + ("; ".join(shown) or "nothing") + "."]
    lost = Counter(name for name in tally.lost if not name.startswith("refused"))
    return out + (["", *(f"- {n} x {name}" for name, n in lost.most_common(20))] if lost else [])


def _noise(line: str) -> str:
    """What kind of line it is; most of a trace says nothing."""
    for known in ("panicked", "Exception ignored", "Traceback", "[ERROR]", "[WARNING]"):
        if known in line:
            return known
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=20.0)
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    tally = fuzz(args.files, args.seed, args.workers, args.timeout, args.keep)
    table("fuzz_convert", lines(tally, args.files, len(seeds())))


if __name__ == "__main__":
    main()
