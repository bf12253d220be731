"""Burned-in text: how much of it the detector reports and `clean-pixel` paints over, by direction, size and contrast.

    python benchmarks/deidentify_text.py IMAGES [--count 40]

IMAGES is a folder of 8-bit PNG radiographs of 256 px; larger ones are made from these by bicubic enlargement. A text is
one of five names, dates and numbers in one of four fonts of OpenCV, at the top, the bottom or a random height of the
image turned by the direction. It is detected if boxes cover more than half of its strokes. Intervals are Wilson's, of
95 %.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from common import table
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medlt.data.deidentify import Box, Profile, deidentify, text_boxes
from medlt.data.deidentify.pixels import seen
from medlt.metrics.calibration import wilson

FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX)
WORDS = ("SMITH JOHN", "12345678", "1950-03-14", "ID 4471-A", "Mueller, Anna")
SIZES = {256: (8, 12, 20), 1024: (8, 12, 20, 40, 80), 2048: (12, 16, 20, 40, 80)}
FAINT_SIZES = {1024: (12, 20, 30), 2048: (12, 20, 40, 60)}
CONTRASTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
LEGIBLE = 0.3
KEY = b"benchmark key of 32 bytes length"


class Planted(NamedTuple):
    """An image with a text, uint8 or 12 bits [H,W], and the mask of the text's strokes."""

    image: np.ndarray
    strokes: np.ndarray


Plant = Callable[[np.ndarray, int, np.random.Generator], Planted | None]


class Place(NamedTuple):
    """A text in an image: arguments of putText, and the rectangle of its bar."""

    word: str
    foot: tuple[int, int]
    font: int
    scale: float
    thick: int
    bar: tuple[tuple[int, int], tuple[int, int]]

    def drawn(self, image: np.ndarray, value: int, smooth: bool = True) -> np.ndarray:
        """Draw the text in place."""
        kind = cv2.LINE_AA if smooth else cv2.LINE_8
        return cv2.putText(image, self.word, self.foot, self.font, self.scale, value, self.thick, kind)


def place(shape: tuple[int, int], height: int, draw: np.random.Generator) -> Place | None:
    """A random text of letters of `height` px; None if it does not fit."""
    font, word, thick = int(draw.choice(FONTS)), WORDS[draw.integers(len(WORDS))], max(1, round(height / 10))
    scale = cv2.getFontScaleFromHeight(font, height, thick)
    (width, tall), below = cv2.getTextSize(word, font, scale, thick)
    if width + 4 > shape[1]:
        return None
    left = int(draw.integers(2, shape[1] - width - 1))
    foot = int(draw.choice([tall + 4, shape[0] - below - 4, draw.integers(tall + 4, shape[0] - below - 4)]))
    bar = (left - 2, foot - tall - 2), (left + width + 2, foot + below + 2)
    return Place(word, (left, foot), font, scale, thick, bar)


def plain(image: np.ndarray, height: int, draw: np.random.Generator) -> Planted | None:
    """White, black, or white on a black bar; None where its contrast is under `LEGIBLE`."""
    at = place(image.shape, height, draw)
    if at is None:
        return None
    style, out = draw.integers(3), image.copy()
    if style == 2:
        cv2.rectangle(out, *at.bar, 0, -1)
    value = 0 if style == 1 else 255
    strokes = at.drawn(np.zeros_like(image), 1, smooth=False) > 0
    legible = style == 2 or abs(float(np.median(image[strokes])) - value) / 255 >= LEGIBLE
    return Planted(at.drawn(out, value), strokes) if legible else None


def faint(contrast: float) -> Plant:
    """Return a way to plant text that differs from what is below it by `contrast` of 12 bits, brighter on dark."""

    def plant(image: np.ndarray, height: int, draw: np.random.Generator) -> Planted | None:
        at = place(image.shape, height, draw)
        if at is None:
            return None
        strokes = at.drawn(np.zeros_like(image), 1, smooth=False) > 0
        sign = 1 if np.median(image[strokes]) < 128 else -1
        out = image / 255 + sign * contrast * at.drawn(np.zeros_like(image), 255) / 255
        outside = np.mean((out[strokes] < 0) | (out[strokes] > 1)) > 0.1
        return None if outside else Planted(np.rint(out.clip(0, 1) * 4095).astype(np.uint16), strokes)

    return plant


def samples(
    paths: list[Path], plant: Plant, size: tuple[int, int, int], count: int, seed: int = 3
) -> Iterator[Planted]:
    """Yield `count` images of (side, letters, quarter turns) with a text."""
    side, height, turns = size
    draw, made = np.random.default_rng([seed, *size]), 0
    while made < count:
        image = cv2.imread(str(paths[draw.integers(len(paths))]), cv2.IMREAD_GRAYSCALE)
        if side != image.shape[0]:
            image = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
        planted = plant(np.ascontiguousarray(np.rot90(image, -turns)), height, draw)
        if planted is not None:
            made += 1
            yield Planted(*(np.ascontiguousarray(np.rot90(plane, turns)) for plane in planted))


def covers(boxes: list[Box] | tuple[Box, ...], strokes: np.ndarray) -> bool:
    """Whether boxes cover more than half of the strokes."""
    mask = np.zeros(strokes.shape, bool)
    for box in boxes:
        mask[box.top : box.top + box.height, box.left : box.left + box.width] = True
    return bool(mask[strokes].mean() > 0.5)


def wrapped(values: np.ndarray, **attributes: object) -> Dataset:
    """A DX image of 12 or 16 bits."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3", "DX"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    for keyword, value in attributes.items():
        setattr(data, keyword, value)
    data.add_new("PixelData", "OW", values.astype("<u2").tobytes())
    return data


def cleaned_share(image: np.ndarray, strokes: np.ndarray) -> tuple[float, bool]:
    """Share of the strokes' edges that `basic,clean-pixel` left flat, and whether it released the image."""
    made = deidentify(wrapped(image.astype(np.uint16) * 16), Profile.parse("basic,clean-pixel"), KEY)
    after, square = made.dataset.pixel_array, np.ones((3, 3), np.uint8)
    edges = strokes & (cv2.morphologyEx(image, cv2.MORPH_GRADIENT, square) > 0)
    flat = cv2.morphologyEx(after, cv2.MORPH_GRADIENT, square) == 0
    return float(np.mean(flat[edges])), made.quarantine is None


def share(hits: list[bool]) -> str:
    """A share with its interval."""
    low, high = wilson(float(np.mean(hits)), len(hits))
    return f"{np.mean(hits):.3f} ({low:.3f} to {high:.3f})"


def directions(paths: list[Path], count: int) -> list[str]:
    """Recall of plain text by direction, side and letter height, and what cleaning left."""
    head = ["side, px", "letters, px", "planted", *(f"{90 * turns}°" for turns in range(4))]
    head += ["gone by 95 %", "released with half left", "ms to detect"]
    lines = ["| " + " | ".join(head) + " |", "|---:" * len(head) + "|"]
    by_direction: list[list[bool]] = [[], [], [], []]
    for side, height in ((side, height) for side, heights in SIZES.items() for height in heights):
        rates, left, spent = [], [], []
        for turns in range(4):
            hits = []
            for image, strokes in samples(paths, plain, (side, height, turns), count):
                began = time.process_time()
                hits.append(covers(text_boxes(image), strokes))
                spent.append(1e3 * (time.process_time() - began))
                left.append(cleaned_share(image, strokes))
            rates.append(f"{np.mean(hits):.3f}")
            by_direction[turns] += hits if height >= 12 else []
        full = np.mean([flat >= 0.95 for flat, _ in left])
        loose = np.mean([flat < 0.5 and released for flat, released in left])
        cells = [str(side), str(height), str(4 * count), *rates, f"{full:.2f}", f"{loose:.3f}"]
        lines.append(f"| {' | '.join(cells)} | {np.median(spent):.1f} |")
    ends = [f"{90 * turns}°: {share(hits)}" for turns, hits in enumerate(by_direction)]
    return [*lines, "", f"Letters of 12 px and more, {len(by_direction[0])} in each direction: {'; '.join(ends)}."]


def contrasts(paths: list[Path], count: int) -> list[str]:
    """Recall by contrast and letter size, the directions in equal parts."""
    head = ["side, px", "letters, px", *(f"{contrast:g}" for contrast in CONTRASTS)]
    lines = ["| " + " | ".join(head) + " |", "|---:" * len(head) + "|"]
    every: dict[float, list[bool]] = {contrast: [] for contrast in CONTRASTS}
    for side, height in ((side, height) for side, heights in FAINT_SIZES.items() for height in heights):
        rates = []
        for contrast in CONTRASTS:
            made = (samples(paths, faint(contrast), (side, height, turns), count // 4) for turns in range(4))
            hits = [covers(text_boxes(image), strokes) for one in made for image, strokes in one]
            rates.append(f"{np.mean(hits):.2f}")
            every[contrast] += hits
        lines.append(f"| {side} | {height} | {' | '.join(rates)} |")
    lines.append("| all | | " + " | ".join(share(hits) for hits in every.values()) + " |")
    return [f"{len(FAINT_SIZES[1024] + FAINT_SIZES[2048]) * (count // 4 * 4)} texts for each contrast:", "", *lines]


def windows(paths: list[Path], count: int) -> list[str]:
    """Recall of text of 0.02 of the range that a window around it shows with ten times that contrast or more."""
    stored, both, square = [], [], np.ones((9, 9), np.uint8)
    for side, turns in ((side, turns) for side in (1024, 2048) for turns in range(4)):
        for image, strokes in samples(paths, faint(0.02), (side, 20, turns), count):
            near = image[cv2.dilate(strokes.astype(np.uint8), square) > 0]
            low, high = (float(end) for end in np.percentile(near, (1, 99)))
            if high - low <= 4095 / 10:
                data = wrapped(image, WindowCenter=round((low + high) / 2), WindowWidth=round(high - low) + 1)
                stored.append(covers(text_boxes(image), strokes))
                both.append(covers(seen(image, data, text_boxes), strokes))
    return [f"{len(both)} texts: in the stored values {share(stored)}, in either view {share(both)}."]


def alarms(paths: list[Path]) -> list[str]:
    """Images that make the detector report text as they are, and those that only lines along the columns do."""
    fired = [boxes for path in paths if (boxes := text_boxes(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)))]
    upright = sum(all(box.height > box.width for box in boxes) for boxes in fired)
    rate = f"{len(fired)} of {len(paths)} images ({100 * len(fired) / len(paths):.1f} %)"
    return [f"As they are, {rate} make the detector report text; in {upright} of them all boxes are upright."]


def speed(paths: list[Path]) -> list[str]:
    """Milliseconds for 2048 x 2500 pixels of 12 bits, with noise of 0.6 % of the range."""
    draw, spent = np.random.default_rng(5), []
    for path in paths[:: max(1, len(paths) // 40)]:
        image = cv2.resize(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), (2048, 2500), interpolation=cv2.INTER_CUBIC)
        values = np.clip(image * 16.0 + draw.normal(0, 25, image.shape), 0, 4095).astype(np.uint16)
        times = []
        for _ in range(5):
            began = time.process_time()
            text_boxes(values)
            times.append(1e3 * (time.process_time() - began))
        spent.append(min(times))
    return [
        f"2500 x 2048 pixels of 12 bits: median {np.median(spent):.1f} ms, 95th percentile "
        f"{np.percentile(spent, 95):.1f} ms of processor time ({len(spent)} images, the best of five each)."
    ]


def main() -> None:
    """Run, print and keep the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path, help="a folder of 8-bit PNG radiographs")
    parser.add_argument("--count", type=int, default=40, help="texts planted per direction and size")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    paths = sorted(args.images.rglob("*.png"))
    lines = [f"OpenCV {cv2.__version__}, {len(paths)} images. {' '.join(str(__doc__).split(chr(10) * 2)[-1].split())}"]
    lines += [
        "",
        f"Text planted where it is legible (contrast of at least {LEGIBLE}):",
        "",
        *directions(paths, args.count),
    ]
    lines += ["", "Text that differs from what is below it by a share of the range,", *contrasts(paths, args.count)]
    lines += [
        "",
        "Text of 0.02 of the range, in letters of 20 px, that the file's window shows with 0.2 or more,",
        *windows(paths, args.count),
    ]
    lines += ["", *alarms(paths), "", *speed(paths)]
    table("deidentify_text", lines)


if __name__ == "__main__":
    sys.exit(main())
