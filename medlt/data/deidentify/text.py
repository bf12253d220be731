"""Detects burned-in text in an image, by shape or by OCR (optional).

Text drawn over a radiograph is a row of small strokes of one height on one line, each brighter or darker than its
surroundings. White and black top-hats (the image minus its opening or closing by a square wider than a stroke) at
several scales give the strokes; their connected components are selected by shape and joined into lines. A square does
not change when it is turned, so one top-hat serves text in all four directions: along the rows, and along the columns
with width and height exchanged; text that is upside down is a row, too. A single letter, such as a side marker, is not
a line and is not detected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from math import ceil
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np

from medlt.types import InputError

STROKE = 9  # px, side of a square wider than any stroke at its scale
HEIGHT = (5, 64)  # px of one letter, at its scale
GAP = 1.5  # heights between two letters of a line, at most
SMALLEST_SIDE = 96  # px, shorter side of the coarsest scale
SMALL_IMAGE = 1200  # px, shorter side up to which the image is also enlarged twice, for letters of 5 px
BUSY = 0.12  # of the range, strength of a stroke that makes a tile worth twice the resolution
TILE = 16  # px, side of such a tile
NOISE = 3.0  # mean strengths of an image that faint strokes must exceed: about six standard deviations of white noise
_FEW_LETTERS = 512  # rows of the pairwise comparison at a time, which bounds its memory


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


Detector: TypeAlias = Callable[[np.ndarray], list[Box]]
"""Stored values [H,W] or [H,W,3], or displayed values [H,W] -> boxes around text."""


class LineRule(NamedTuple):
    """What is a line among strokes of at least `contrast`, a share of the range from the 0.1 to the 99.9 percentile.

    At least `letters` letters, whose height is at most a `tallest`-th of the shorter side. From one letter to the next,
    the height changes at most by the factor `alike` and the middle by `offset` heights.
    """

    contrast: float
    letters: int
    alike: float
    offset: float
    tallest: int


FAINT = tuple(LineRule(contrast, 4, 0.75, 0.15, 32) for contrast in (0.05, 0.08, 0.12))
"""Stricter, because vertebrae and ribs are vertical rows of faint strokes; they are larger than text and uneven."""
PLAIN = tuple(LineRule(contrast, 3, 0.6, 0.35, 10) for contrast in (0.2, 0.35, 0.55))
"""Higher contrasts separate letters that touch."""


def text_boxes(image: np.ndarray) -> list[Box]:
    """Return boxes around lines of letters in any of four directions, brighter or darker than their surroundings.

    Letters may be from about 6 px to a tenth of the shorter side in height. Three make a line; four, of at most 1/32 of
    the shorter side, where the contrast is under 0.2 of the range.
    """
    boxes: set[Box] = set()
    for view in _views(image):
        for strength in view.strengths:
            for turned, line in _lines(strength, view):
                moved = line._replace(top=line.top + view.corner[turned], left=line.left + view.corner[not turned])
                box = _grown(moved, view.scale, image.shape[1::-1] if turned else image.shape[:2])
                boxes.add(_exchanged(box) if turned else box)
    return sorted(boxes)


def ocr_boxes(image: np.ndarray) -> list[Box]:
    """Return boxes around words with a Tesseract confidence of 50 or more. Raises InputError without pytesseract."""
    try:
        tesseract = import_module("pytesseract")
    except ImportError:
        raise InputError("OCR needs pytesseract and the tesseract program; pip install 'medlt[ocr]'") from None
    table = tesseract.image_to_data(_grey(_plane(image), grey_range(_plane(image))), output_type=tesseract.Output.DICT)
    sides = zip(table["top"], table["left"], table["height"], table["width"], strict=True)
    words = zip(sides, table["conf"], table["text"], strict=True)
    return [Box(*map(int, side)) for side, sure, word in words if float(sure) >= 50 and len(word.strip()) >= 2]


def painted(image: np.ndarray, boxes: Sequence[Box], value: int) -> np.ndarray:
    """Return a copy of the image with `value` in all boxes."""
    out = image.copy()
    for top, left, height, width in boxes:
        out[top : top + height, left : left + width] = value
    return out


def grey_range(image: np.ndarray) -> tuple[float, float]:
    """Return the 0.1 and the 99.9 percentile of every 16th pixel or fewer; the extremes if they are equal."""
    step = max(4, min(image.shape[:2]) // 256)
    low, high = map(float, np.percentile(image[::step, ::step], (0.1, 99.9)))
    return (low, high) if high > low else (float(image.min()), float(image.max()))


def _plane(image: np.ndarray) -> np.ndarray:
    """Return one plane [H,W] of a type that OpenCV can resize."""
    if image.ndim == 3:
        return np.asarray(image.mean(axis=2, dtype=np.float32))
    return image if image.dtype in (np.uint8, np.uint16, np.int16, np.float32) else image.astype(np.float32)


def _grey(plane: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """Return uint8 [h,w], scaled from `ends`; 0 for a flat image."""
    gain = 255.0 / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.0
    low, high = np.array(ends).astype(plane.dtype)
    return np.asarray(cv2.convertScaleAbs(np.clip(plane, low, high), alpha=gain, beta=-float(low) * gain))


class _ScaledView(NamedTuple):
    """White and black top-hats, uint8 [h,w], of the image or a region of it at one scale.

    `scale`: a pixel in pixels of the full size; `side`: the shorter side of the image at this scale; `corner`: top and
    left of the region at this scale; `rules`: which lines are sought.
    """

    strengths: tuple[np.ndarray, np.ndarray]
    scale: float
    side: int
    corner: tuple[int, int]
    rules: tuple[LineRule, ...]


def _views(image: np.ndarray) -> Iterator[_ScaledView]:
    """Yield the image in halving sizes, and before that, at twice the first of them, the regions that have strokes."""
    full = _plane(image)
    ends, side, small = grey_range(full), min(full.shape), min(full.shape) <= SMALL_IMAGE
    plane, scale = (_softened(_grey(full, ends)), 1.0) if small else (_grey(_resized(full, 0.5), ends), 2.0)
    strengths = _top_hats(plane)
    rules = _rules(strengths, 1 if small else 2)
    for top, left, height, width in _busy(np.maximum(*strengths)):
        rows, columns = slice(top, top + height), slice(left, left + width)
        fine = _resized(full[rows, columns], 2) if small else full[_twice(rows), _twice(columns)]
        yield _ScaledView(_top_hats(_grey(fine, ends)), scale / 2, int(side * 2 / scale), (2 * top, 2 * left), rules)
    while min(plane.shape) >= SMALLEST_SIDE:
        yield _ScaledView(strengths, scale, min(plane.shape), (0, 0), _rules(strengths, 1))
        plane, scale = _resized(plane, 0.5), scale * 2
        strengths = _top_hats(plane)


def _rules(strengths: tuple[np.ndarray, np.ndarray], factor: float) -> tuple[LineRule, ...]:
    """Return the rules whose contrast exceeds the noise, by `factor` larger than in these top-hats of the image."""
    noise = NOISE / 255 * factor * float(np.mean([strength[::4, ::4] for strength in strengths]))
    return (*(rule for rule in FAINT if rule.contrast > noise), *PLAIN)


def _top_hats(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    square = np.ones((STROKE, STROKE), np.uint8)
    white, black = (cv2.morphologyEx(grey, kind, square) for kind in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT))
    return np.asarray(white), np.asarray(black)


def _resized(grey: np.ndarray, factor: float) -> np.ndarray:
    kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(grey, None, fx=factor, fy=factor, interpolation=kind))


def _softened(grey: np.ndarray) -> np.ndarray:
    """Return the image as bilinear enlargement to twice its size, averaged back, would leave it."""
    weights = np.array([1, 6, 1]) / 8
    return np.asarray(cv2.sepFilter2D(grey, -1, weights, weights))


def _twice(part: slice) -> slice:
    return slice(2 * part.start, 2 * part.stop)


def _busy(strength: np.ndarray) -> list[Box]:
    """Return boxes around tiles with a stroke of at least `BUSY` and a margin of one tile; near ones share a box."""
    _, mask = cv2.threshold(strength, ceil(BUSY * 255) - 1, 1, cv2.THRESH_BINARY)
    rows, columns = (-(-size // TILE) for size in mask.shape)
    padded = np.zeros((rows * TILE, columns * TILE), np.uint8)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    tiles = padded.reshape(rows, TILE, -1).max(axis=1).reshape(rows, columns, TILE).max(axis=2)
    near = cv2.dilate(tiles, np.ones((3, 3), np.uint8))
    _, _, regions, _ = cv2.connectedComponentsWithStats(near, connectivity=8)
    return [Box(*(TILE * int(n) for n in (y, x, h, w))) for x, y, w, h, _ in regions[1:]]


def _lines(strength: np.ndarray, view: _ScaledView) -> Iterator[tuple[bool, Box]]:
    """Yield the lines in one top-hat of a view, in its pixels: whether one runs along the columns, and its box.

    Such a box has its sides exchanged, as if the line ran along the rows.
    """
    for rule in view.rules:
        _, mask = cv2.threshold(strength, ceil(rule.contrast * 255) - 1, 1, cv2.THRESH_BINARY)
        if cv2.countNonZero(mask) < rule.letters * HEIGHT[0]:  # higher contrasts leave even less
            return
        boxes = _strokes(mask)
        for turned in (False, True):
            letters = _letters(boxes, mask, view.side // rule.tallest, turned)
            yield from ((turned, line) for line in _joined(letters, rule))


def _strokes(mask: np.ndarray) -> np.ndarray:
    """Return the bounding boxes of connected strokes of a mask of 0 and 1: rows of left, top, width, height."""
    contours, kinds = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outer = kinds[0][:, 3] < 0 if contours else ()
    boxes = [cv2.boundingRect(c) for c, out in zip(contours, outer, strict=True) if out and len(c) >= HEIGHT[0]]
    return np.array(boxes, dtype=np.intp).reshape(-1, 4)


def _letters(boxes: np.ndarray, mask: np.ndarray, tallest: int, turned: bool) -> np.ndarray:
    """Return the boxes with the shape of a letter, neither full nor nearly empty, in the order of reading.

    For lines along the columns, these have their sides exchanged: rows of top, left, height, width.
    """
    boxes, mask = (boxes[:, [1, 0, 3, 2]], mask.T) if turned else (boxes, mask)
    width, height = boxes[:, 2], boxes[:, 3]
    tall = (height >= HEIGHT[0]) & (height <= min(HEIGHT[1], tallest))
    shaped = boxes[tall & (width <= 1.6 * height) & (width >= 0.08 * height)]
    shares = np.array([np.count_nonzero(mask[y : y + h, x : x + w]) / (w * h) for x, y, w, h in shaped.tolist()])
    letters = shaped[(shares >= 0.15) & (shares <= 0.95)]
    return np.asarray(letters[np.argsort(letters[:, 0], kind="stable")])


def _joined(letters: np.ndarray, rule: LineRule) -> list[Box]:
    """Return boxes around lines of letters, each of which is followed by the next similar one within `GAP` heights."""
    count = len(letters)
    if count < rule.letters:
        return []
    following = _following(letters, rule)
    if (following[following] == count).all():  # no three letters
        return []
    first = np.ones(count + 1, bool)
    first[following] = False
    starts = np.flatnonzero(first)
    left, top, width, height = letters.T
    none = np.iinfo(np.intp)
    tops, bottoms = np.append(top, none.max), np.append(top + height, none.min)
    rights, lengths = np.append(left + width, none.min), np.append(np.ones(count, np.intp), 0)
    for _ in range(count.bit_length()):  # each pass doubles the letters that a start has taken in
        tops, bottoms = np.minimum(tops, tops[following]), np.maximum(bottoms, bottoms[following])
        rights, lengths = np.maximum(rights, rights[following]), lengths + lengths[following]
        following = following[following]
    lines = starts[lengths[starts] >= rule.letters]
    sides = tops[lines], left[lines], bottoms[lines] - tops[lines], rights[lines] - left[lines]
    return [Box(*map(int, line)) for line in zip(*sides, strict=True)]


def _following(letters: np.ndarray, rule: LineRule) -> np.ndarray:
    """Return, for each letter and then for none, the index of the one that follows it; len(letters) means none."""
    count = len(letters)
    following = np.full(count + 1, count, np.intp)
    left, top, width, height = letters.T
    middle, reach = top + height / 2, left + width + GAP * height
    for first in range(0, count, _FEW_LETTERS):
        rows = slice(first, first + _FEW_LETTERS)
        last = int(np.searchsorted(left, reach[rows].max(), "right"))
        x, size, at = left[first:last], height[first:last], middle[first:last]
        of = height[rows, None]
        near = (x > left[rows, None]) & (x <= reach[rows, None]) & (abs(at - middle[rows, None]) <= rule.offset * of)
        follows = near & (size >= rule.alike * of) & (size * rule.alike <= of)
        some = follows.any(axis=1)
        following[:count][rows][some] = first + follows.argmax(axis=1)[some]
    return following


def _exchanged(box: Box) -> Box:
    return Box(box.left, box.top, box.width, box.height)


def _grown(box: Box, scale: float, shape: tuple[int, ...]) -> Box:
    """Return the box at full size, grown by half a height above and below and by 2.5 at the ends, inside the image."""
    above, beside = 0.5 * box.height + 1, 2.5 * box.height + 1
    top, left = max(0, int((box.top - above) * scale)), max(0, int((box.left - beside) * scale))
    bottom = min(shape[0], ceil((box.top + box.height + above) * scale))
    right = min(shape[1], ceil((box.left + box.width + beside) * scale))
    return Box(top, left, bottom - top, right - left)
