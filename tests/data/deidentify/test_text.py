"""The detector sees what was written over an image, at its place, and is silent on images without text."""

import cv2
import numpy as np
import pytest

from medlt.data.deidentify import Box, ocr_boxes, text_boxes
from medlt.data.deidentify.text import painted
from medlt.rng import numpy_generator
from medlt.types import InputError

FONTS = [cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX]


def anatomy(side: int, seed: int) -> np.ndarray:
    """Something like a radiograph without text: smooth, noisy, a bright disc and a wire. uint16, 12 bits."""
    draw = numpy_generator("text", seed)
    coarse = cv2.resize(draw.random((6, 6)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    image = 800 + 2000 * coarse + draw.normal(0, 25, (side, side))
    cv2.circle(image, (side // 2, side // 2), side // 8, 3500, -1)
    cv2.line(image, (0, side // 3), (side, side // 2), 3300, max(1, side // 200))
    return np.clip(image, 0, 4095).astype(np.uint16)


def lettered(
    image: np.ndarray, text: str, foot: tuple[int, int], height: int, font: int = FONTS[0], value: int = 4095
) -> np.ndarray:
    """Write `text` into the image, in place; the mask of its strokes."""
    mask = np.zeros(image.shape, np.uint8)
    thick = max(1, height // 10)
    cv2.putText(mask, text, foot, font, cv2.getFontScaleFromHeight(font, height, thick), 1, thick)
    image[mask > 0] = value
    return mask > 0


def covered(boxes: list[Box], strokes: np.ndarray) -> float:
    mask = painted(np.zeros(strokes.shape, np.uint8), boxes, 1)
    return float(mask[strokes].mean())


@pytest.mark.parametrize("side", [256, 700, 2048])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_silent_without_text(side: int, seed: int) -> None:
    assert text_boxes(anatomy(side, seed)) == []


@pytest.mark.parametrize("font", FONTS)
@pytest.mark.parametrize("value", [4095, 0])
@pytest.mark.parametrize(("side", "height"), [(256, 14), (700, 20), (2048, 40), (2048, 120)])
def test_text_is_found_where_it_stands(font: int, value: int, side: int, height: int) -> None:
    image = anatomy(side, 4)
    strokes = lettered(image, "DOE JANE", (side // 20, side // 5), height, font, value)
    boxes = text_boxes(image)
    assert covered(boxes, strokes) > 0.9
    assert covered(boxes, np.ones((side, side), bool)) < 0.4


def test_colour_sign_and_flat_images() -> None:
    image = anatomy(256, 5)
    lettered(image, "DOE JANE", (20, 40), 14)
    assert text_boxes(np.repeat((image // 16).astype(np.uint8)[..., None], 3, axis=2))
    assert text_boxes(image.astype(np.int16) - 2048) == text_boxes(image)
    assert text_boxes(np.full((300, 200), 7, np.uint16)) == []
    assert text_boxes(np.zeros((5, 3), np.uint8)) == []


def test_a_single_letter_is_not_seen() -> None:
    """The known limit: a side marker is no line of text."""
    image = anatomy(512, 6)
    lettered(image, "L", (20, 60), 30)
    assert text_boxes(image) == []


def test_painting_fills_boxes_of_a_copy() -> None:
    image = np.ones((6, 6), np.uint8)
    out = painted(image, [Box(1, 2, 2, 3)], 0)
    assert image.all()
    assert np.argwhere(out == 0).tolist() == [[r, c] for r in (1, 2) for c in (2, 3, 4)]


def test_ocr_without_its_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pytesseract", None)
    with pytest.raises(InputError, match="medlt\\[ocr\\]"):
        ocr_boxes(np.zeros((8, 8), np.uint8))
