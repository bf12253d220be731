"""Detects burned-in text in an image, by shape or by OCR (optional).

Text drawn over a radiograph is a row of small strokes of one height on one line, each much brighter or much darker than
its surroundings. White and black top-hats (the image minus its opening or closing by a square wider than a stroke) at
several scales give the strokes; their connected components are selected by shape and joined into lines. A single
letter, such as a side marker, is not a line and is not detected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from math import ceil
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np

from medlt.types import InputError

STROKE = 9  # px, side of a square wider than any stroke at its scale
CONTRASTS = (0.2, 0.35, 0.55)  # of the range from the 0.1 to the 99.9 percentile; higher ones separate touching letters
HEIGHT = (5, 64)  # px of one letter, at its scale; at most a tenth of the shorter side
MIN_LETTERS = 3
GAP = 1.5  # heights between two letters of a line, at most
SMALLEST_SIDE = 96  # px, shorter side of the coarsest scale
SMALL_IMAGE = 1200  # px, shorter side up to which the image is also enlarged twice, for letters of 5 px


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


Detector: TypeAlias = Callable[[np.ndarray], list[Box]]
"""Stored values [H,W] or [H,W,3] -> boxes around text."""


def text_boxes(image: np.ndarray) -> list[Box]:
    """Return boxes around lines of at least three letters that are brighter or darker than their surroundings.

    Letters may be from about 6 px to a tenth of the shorter side in height.
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
    """Return boxes around words with a Tesseract confidence of 50 or more. Raises InputError without pytesseract."""
    try:
        tesseract = import_module("pytesseract")
    except ImportError:
        raise InputError("OCR needs pytesseract and the tesseract program; pip install 'medlt[ocr]'") from None
    table = tesseract.image_to_data(_grey(image), output_type=tesseract.Output.DICT)
    sides = zip(table["top"], table["left"], table["height"], table["width"], strict=True)
    words = zip(sides, table["conf"], table["text"], strict=True)
    return [Box(*map(int, side)) for side, sure, word in words if float(sure) >= 50 and len(word.strip()) >= 2]


def painted(image: np.ndarray, boxes: Sequence[Box], value: int) -> np.ndarray:
    """Return a copy of the image with `value` in all boxes."""
    out = image.copy()
    for top, left, height, width in boxes:
        out[top : top + height, left : left + width] = value
    return out


def _grey(image: np.ndarray) -> np.ndarray:
    """Return uint8 [H,W], scaled to the range from the 0.1 to the 99.9 percentile; 0 for a flat image."""
    plane = image if image.ndim == 2 else image.mean(axis=2, dtype=np.float32)
    low, high = map(int, np.percentile(plane[::4, ::4], (0.1, 99.9)))
    if high <= low:
        low, high = int(plane.min()), int(plane.max())
    gain = 255.0 / (high - low) if high > low else 0.0
    return np.asarray(cv2.convertScaleAbs(np.clip(plane, low, high), alpha=gain, beta=-low * gain))


def _letters(mask: np.ndarray) -> np.ndarray:
    """Return connected strokes of the mask [H,W] that may be letters: int rows of left, top, width, height."""
    strokes = mask.astype(np.uint8)
    contours, kinds = cv2.findContours(strokes, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outer = [cv2.boundingRect(c) for c, kind in zip(contours, kinds[0], strict=True) if kind[3] < 0] if contours else []
    shapes = np.array(outer, dtype=np.intp).reshape(-1, 4)
    width, height = shapes[:, 2], shapes[:, 3]
    tallest = min(HEIGHT[1], min(mask.shape) // 10)
    shapes = shapes[(height >= HEIGHT[0]) & (height <= tallest) & (width <= 1.6 * height) & (width >= 0.08 * height)]
    filled = [cv2.countNonZero(strokes[y : y + h, x : x + w]) / (w * h) for x, y, w, h in shapes]
    return np.asarray(shapes[[0.15 <= share <= 0.95 for share in filled]] if filled else shapes)


def _lines(letters: np.ndarray) -> list[Box]:
    """Return boxes around letters of similar height on one line, with gaps of at most `GAP` heights."""
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
    """Return the indices of the letters that continue the line from `start`, left to right."""
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
    """Return the box at full size, grown by half a height above and below and by 2.5 at the ends, inside the image."""
    above, beside = 0.5 * box.height + 1, 2.5 * box.height + 1
    top, left = max(0, int((box.top - above) * scale)), max(0, int((box.left - beside) * scale))
    bottom = min(shape[0], ceil((box.top + box.height + above) * scale))
    right = min(shape[1], ceil((box.left + box.width + beside) * scale))
    return Box(top, left, bottom - top, right - left)
