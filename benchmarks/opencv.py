"""OpenCV against Pillow, imagecodecs and scikit-image, for the hot calls of conversion and de-identification.

    python benchmarks/opencv.py [--rounds 7]

A 2048x2500 image of 12 bits, made of smooth noise, is reduced to 512x625 by area, stored as an 8-bit PNG and as a JPEG
of quality 95, and filtered by the top hat that the search for text begins with. Times are CPU milliseconds of one call
on one thread, the best of the rounds. "Difference" is the largest to OpenCV's pixels, in grey levels of the image; a
PNG has none, and a JPEG is compared with its source. The bundled libraries are listed by their size.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from common import table
from PIL import Image
from scipy import ndimage
from skimage import morphology, transform

from medlt.data.convert.encode import jpeg, png
from medlt.rng import numpy_generator

Call = Callable[[np.ndarray], object]


def radiograph() -> np.ndarray:
    """An image uint16 [2500,2048] of 12 bits: coarse structure, and noise of a detector."""
    rng = numpy_generator(0, "opencv benchmark")
    coarse = cv2.resize(rng.normal(2000, 600, (25, 20)).astype(np.float32), (2048, 2500), interpolation=cv2.INTER_CUBIC)
    return np.clip(coarse + rng.normal(0, 12, coarse.shape), 0, 4095).astype(np.uint16)


def pil_jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def pil_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


SQUARE = np.ones((15, 15), np.uint8)
SIZE = (512, 625)
REDUCE16: dict[str, Call] = {
    "OpenCV INTER_AREA": lambda x: cv2.resize(x, SIZE, interpolation=cv2.INTER_AREA),
    "Pillow BOX, float32": lambda x: np.asarray(
        Image.fromarray(x.astype(np.float32)).resize(SIZE, Image.Resampling.BOX)
    ),
    "scikit-image local mean": lambda x: transform.downscale_local_mean(x, (4, 4)),
}
REDUCE8: dict[str, Call] = {
    "OpenCV INTER_AREA": lambda x: cv2.resize(x, SIZE, interpolation=cv2.INTER_AREA),
    "Pillow BOX": lambda x: np.asarray(Image.fromarray(x).resize(SIZE, Image.Resampling.BOX)),
}
JPEG: dict[str, Call] = {
    "OpenCV imencode": lambda x: cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes(),
    "Pillow": pil_jpeg,
    "medlt (imagecodecs)": lambda x: jpeg(x, 95),
}
PNG: dict[str, Call] = {
    "medlt (Up filter, libdeflate)": png,
    "OpenCV imencode": lambda x: cv2.imencode(".png", x, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes(),
    "Pillow": pil_png,
    "imagecodecs": lambda x: imagecodecs.png_encode(x, level=1),
}
TOPHAT: dict[str, Call] = {
    "OpenCV morphologyEx": lambda x: cv2.morphologyEx(x, cv2.MORPH_TOPHAT, SQUARE),
    "SciPy white_tophat": lambda x: ndimage.white_tophat(x, size=15),
    "scikit-image white_tophat": lambda x: morphology.white_tophat(x, SQUARE),
}


def milliseconds(call: Call, pixels: np.ndarray, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begun = time.process_time()
        call(pixels)
        times.append(time.process_time() - begun)
    return 1000 * min(times)


def difference(one: object, other: object) -> str:
    """The largest difference of two images; of files that they are files, and their size."""
    if isinstance(one, bytes | bytearray):
        return f"{len(one) / 1000:.0f} kB"
    return f"{np.abs(np.asarray(one, float) - np.asarray(other, float)).max():.2f}"


def rows(name: str, calls: dict[str, Call], pixels: np.ndarray, rounds: int) -> list[str]:
    first = next(iter(calls.values()))(pixels)
    return [
        f"| {name} | {library} | {milliseconds(call, pixels, rounds):.1f} | {difference(call(pixels), first)} |"
        for library, call in calls.items()
    ]


def bundled() -> list[str]:
    """The shared libraries that the wheel of OpenCV holds beside its own module."""
    files = [
        Path(str(file.locate())) for file in distribution("opencv-python-headless").files or [] if ".so" in file.name
    ]
    return [
        f"| {file.name} | {file.stat().st_size / 1e6:.1f} |" for file in sorted(files, key=lambda f: -f.stat().st_size)
    ]


def loaded() -> list[str]:
    """The libraries of that wheel which importing cv2 has loaded into this process."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    return sorted({line.split("/")[-1] for line in lines if "opencv_python_headless.libs" in line})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    cv2.setNumThreads(1)
    deep = radiograph()
    grey = (deep >> 4).astype(np.uint8)
    lines = ["| call | library | CPU ms | difference, or size |", "|---|---|---:|---:|"]
    for name, calls, pixels in (
        ("reduce by area, 16 bit", REDUCE16, deep),
        ("reduce by area, 8 bit", REDUCE8, grey),
        ("JPEG, quality 95", JPEG, grey),
        ("PNG, level 1", PNG, grey),
        ("top hat, 15x15", TOPHAT, grey),
    ):
        lines += rows(name, calls, pixels, rounds)
        sys.stderr.write(f"{name}\n")
    lines += [
        "",
        "| library in the wheel | MB |",
        "|---|---:|",
        *bundled(),
        "",
        f"Loaded by `import cv2`: {', '.join(loaded())}.",
    ]
    table("opencv", lines)
