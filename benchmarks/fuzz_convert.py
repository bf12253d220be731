"""Damaged files and the converter: does any crash it, hang it, or give a wrong image without a mark?

    python benchmarks/fuzz_convert.py [--files 20000] [--seed 0] [--workers 2] [--timeout 20] [--keep FOLDER]
        [--deidentify SHARE]

The benchmark mutates small real files (those that come with pydicom, and those of MEDLT_DATA/dicom if it is set) and
one radiograph written in every compressed transfer syntax. It converts them by `medlt.data.convert`, and compares
every image with that of a second decoder of the same bytes. `--keep` copies every file that crashed, timed out or
differs. `--deidentify SHARE` then searches for identifiers in what leaves, see benchmarks/fuzz_deidentify.py, with this
share of `--files`.
"""

from __future__ import annotations

import argparse
import os
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
import fuzz_deidentify
import imagecodecs
import numpy as np
import pandas as pd
import pydicom
from common import table
from fuzz_mutations import mutated, seeds
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import pixel_array

from medlt.data.convert import PRESETS, ConversionSettings, convert
from medlt.data.convert.presets import to_uint8
from medlt.data.convert.upright import upright
from medlt.data.dicom.cells import bits_below, cleared
from medlt.data.dicom.guard import open_bytes
from medlt.data.dicom.read import spacing
from medlt.data.dicom.streams import frame_bits
from medlt.engine import Pool

CHUNK = 1000


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
    parser.add_argument("--deidentify", type=float, default=0.0, metavar="SHARE")
    args = parser.parse_args()
    tally = fuzz(args.files, args.seed, args.workers, args.timeout, args.keep)
    table("fuzz_convert", lines(tally, args.files, len(seeds())))
    if count := round(args.files * args.deidentify):
        leaks = fuzz_deidentify.fuzz(count, args.seed, args.workers, args.timeout, args.keep)
        table("fuzz_deidentify", fuzz_deidentify.lines(leaks, count))


if __name__ == "__main__":
    main()
