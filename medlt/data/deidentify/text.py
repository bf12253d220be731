"""Burned-in text in an image: a detector that knows no alphabet, and OCR for those who install it.

Text drawn over a radiograph is a row of small strokes, each far brighter or far darker than what lies beside it, of one
height and on one line. White and black top-hats (the stroke against the image opened or closed by a square wider than
it) at several scales give the strokes; their connected components are kept by shape and joined into lines. A single
letter, such as a side marker, is no line and is not found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from math import ceil
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np

from medlt.types import InputError

STROKE = 9  # px, side of the square that no stroke fills at the scale it is found on
CONTRASTS = (0.2, 0.35, 0.55)  # of the range between the 0.1 and 99.9 percentiles; the higher part what touches
HEIGHT = (5, 64)  # px of one letter, at its scale; never over a tenth of the shorter side
MIN_LETTERS = 3
GAP = 1.5  # heights between two letters of a line, at most
SMALLEST_SIDE = 96  # px, below which no further scale is looked at
SMALL_IMAGE = 1200  # px, shorter side up to which a scale of twice the size comes first, for letters of 5 px


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


Detector: TypeAlias = Callable[[np.ndarray], list[Box]]
"""Stored values [H,W] or [H,W,3] -> boxes round what reads as text."""


def text_boxes(image: np.ndarray) -> list[Box]:
    """Boxes round lines of at least three letters, brighter or darker than what is beside.

    Letters may be about 6 px high to a tenth of the shorter side.
    """
    grey, scale, boxes = _grey(image), 1.0, []
    if min(grey.shape) <= SMALL_IMAGE:
        grey, scale = cv2.resize(grey, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR), 0.5
    while min(grey.shape) >= SMALLEST_SIDE:
        for operation in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
            strength = cv2.morphologyEx(grey, operation, np.ones((STROKE, STROKE), np.uint8))
            lines = [line for contrast in CONTRASTS for line in _lines(_letters(strength >= contrast * 255))]
            boxes += [_grown(line, scale, image.shape) for line in lines]
        grey, scale = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), scale * 2
    return sorted(set(boxes))


def ocr_boxes(image: np.ndarray) -> list[Box]:
    """Boxes round words that Tesseract reads with at least half confidence. Raises InputError without pytesseract."""
    try:
        tesseract = import_module("pytesseract")
    except ImportError:
        raise InputError("OCR needs pytesseract and the tesseract program; pip install 'medlt[ocr]'") from None
    found = tesseract.image_to_data(_grey(image), output_type=tesseract.Output.DICT)
    sides = zip(found["top"], found["left"], found["height"], found["width"], strict=True)
    words = zip(sides, found["conf"], found["text"], strict=True)
    return [Box(*map(int, side)) for side, sure, word in words if float(sure) >= 50 and len(word.strip()) >= 2]


def painted(image: np.ndarray, boxes: Sequence[Box], value: int) -> np.ndarray:
    """A copy of the image with `value` in all boxes."""
    out = image.copy()
    for top, left, height, width in boxes:
        out[top : top + height, left : left + width] = value
    return out


def _grey(image: np.ndarray) -> np.ndarray:
    """uint8 [H,W], its range that of all but the extreme 0.1 % on either side; flat is 0."""
    plane = image if image.ndim == 2 else image.mean(axis=2, dtype=np.float32)
    low, high = map(int, np.percentile(plane[::4, ::4], (0.1, 99.9)))
    if high <= low:
        low, high = int(plane.min()), int(plane.max())
    gain = 255.0 / (high - low) if high > low else 0.0
    return np.asarray(cv2.convertScaleAbs(np.clip(plane, low, high), alpha=gain, beta=-low * gain))


def _letters(mask: np.ndarray) -> np.ndarray:
    """Connected strokes of the mask [H,W] that may be letters: int rows of left, top, width, height."""
    strokes = mask.astype(np.uint8)
    contours, kinds = cv2.findContours(strokes, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outer = [cv2.boundingRect(c) for c, kind in zip(contours, kinds[0], strict=True) if kind[3] < 0] if contours else []
    found = np.array(outer, dtype=np.intp).reshape(-1, 4)
    width, height = found[:, 2], found[:, 3]
    tallest = min(HEIGHT[1], min(mask.shape) // 10)
    found = found[(height >= HEIGHT[0]) & (height <= tallest) & (width <= 1.6 * height) & (width >= 0.08 * height)]
    filled = [cv2.countNonZero(strokes[y : y + h, x : x + w]) / (w * h) for x, y, w, h in found]
    return np.asarray(found[[0.15 <= share <= 0.95 for share in filled]] if filled else found)


def _lines(letters: np.ndarray) -> list[Box]:
    """Rows of letters alike in height, on one line, with gaps of at most `GAP` heights."""
    boxes: list[Box] = []
    rest = letters[np.argsort(letters[:, 0], kind="stable")] if len(letters) else letters
    used = np.zeros(len(rest), bool)
    for start in range(len(rest)):
        if not used[start]:
            line = _followed(rest, start, used)
            if len(line) >= MIN_LETTERS:
                used[line] = True
                boxes.append(_around(rest[line]))
    return boxes


def _followed(letters: np.ndarray, start: int, used: np.ndarray) -> list[int]:
    """Indices of the letters that continue the line begun at `start`, left to right."""
    line = [start]
    left, top, width, height = letters[:, 0], letters[:, 1], letters[:, 2], letters[:, 3]
    middle = top + height / 2
    while True:
        last = line[-1]
        size = height[last]
        gap = left - (left[last] + width[last])
        near = (gap <= GAP * size) & (left > left[last]) & ~used
        alike = (height >= 0.6 * size) & (height <= 1.67 * size) & (abs(middle - middle[last]) <= 0.35 * size)
        following = np.flatnonzero(near & alike)
        if not len(following):
            return line
        line.append(int(following[0]))


def _around(line: np.ndarray) -> Box:
    left, top = line[:, 0].min(), line[:, 1].min()
    right, bottom = (line[:, 0] + line[:, 2]).max(), (line[:, 1] + line[:, 3]).max()
    return Box(int(top), int(left), int(bottom - top), int(right - left))


def _grown(box: Box, scale: float, shape: tuple[int, ...]) -> Box:
    """The box at full size, with half a height more above and below and 2.5 at the ends, inside the image."""
    above, beside = 0.5 * box.height + 1, 2.5 * box.height + 1
    top, left = max(0, int((box.top - above) * scale)), max(0, int((box.left - beside) * scale))
    bottom = min(shape[0], ceil((box.top + box.height + above) * scale))
    right = min(shape[1], ceil((box.left + box.width + beside) * scale))
    return Box(top, left, bottom - top, right - left)
