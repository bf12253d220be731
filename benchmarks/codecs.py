"""All available decoders of every transfer syntax: exactness, speed and licence.

    [PYTHONPATH=FOLDER] python benchmarks/codecs.py [--rounds 5]

The image is one 2048x2500 radiograph with 12 bits stored. Times are CPU milliseconds of one decode on one core, the
best of the rounds. 'exact' means that the decoded pixels equal the encoded ones bit for bit. FOLDER is a
site-packages with decoders that medlt does not install, such as python-gdcm and pylibjpeg-libjpeg.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import convert_files
import numpy as np
from common import table
from pydicom import dcmread
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder, pixel_array

LICENCE = {
    "gdcm": "python-gdcm (BSD-3)",
    "pyjpegls": "pyjpegls (MIT)",
    "pydicom": "pydicom (MIT)",
    "pillow": "Pillow (MIT-CMU)",
    "imagecodecs": "imagecodecs (BSD-3)",
}
PYLIBJPEG = {
    "RLE": "pylibjpeg-rle (MIT)",
    "JPEG 2000": "pylibjpeg-openjpeg (MIT)",
    "HTJ2K": "pylibjpeg-openjpeg (MIT)",
    "JPEG lossless": "pylibjpeg-libjpeg (GPL-3)",
    "JPEG-LS": "pylibjpeg-libjpeg (GPL-3)",
}


def ways(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Name -> a decode of the file's first frame."""
    from medlt.data.dicom import codecs

    data = dcmread(path)
    syntax = data.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return {"numpy": lambda: pixel_array(data, view_only=True, correct_unused_bits=False).copy()}
    decoders = {
        name: lambda name=name: pixel_array(data, index=0, decoding_plugin=name)
        for name in get_decoder(syntax).available_plugins
        if name != "medlt"
    }
    frame = get_frame(data.PixelData, 0, number_of_frames=1)
    if str(syntax) in codecs._DIRECT:
        decoders["imagecodecs"] = lambda: codecs.direct(frame, data)
    return decoders


def best(decode: Callable[[], np.ndarray], rounds: int) -> float:
    """CPU milliseconds."""
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        decode()
        spent.append(time.process_time() - began)
    return 1000 * min(spent)


def main() -> None:
    """One table."""
    read = argparse.ArgumentParser()
    read.add_argument("--rounds", type=int, default=5)
    args = read.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    lines = ["| transfer syntax | decoder | exact | CPU ms |", "|---|---|---|---:|"]
    pixels = convert_files.picture(np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as place:
        for name in convert_files.SYNTAXES:
            file = convert_files.build(Path(place, name), name, 1) / "0000.dcm"
            for way, decode in ways(file).items():
                licence = PYLIBJPEG[name] if way == "pylibjpeg" else LICENCE.get(way, way)
                try:
                    exact = "yes" if np.array_equal(decode(), pixels) else "NO"
                    lines.append(f"| {name} | {licence} | {exact} | {best(decode, args.rounds):.1f} |")
                except Exception as error:
                    lines.append(f"| {name} | {licence} | fails: {type(error).__name__} | |")
    packages = ("imagecodecs", "pydicom", "pyjpegls", "pylibjpeg-openjpeg", "pylibjpeg-rle")
    table("codecs", [*lines, "", ", ".join(f"{p} {metadata.version(p)}" for p in packages)])


if __name__ == "__main__":
    main()
