"""The detector sees what was written over an image, at its place, and is silent on images without text."""

from collections.abc import Callable
from functools import cache

import cv2
import numpy as np
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from medlt.data.deidentify import Box, Profile, deidentify, ocr_boxes, text, text_boxes
from medlt.data.deidentify.pixels import _is_linear, inspect, seen
from medlt.data.deidentify.text import painted
from medlt.data.dicom.display import DisplayLut, apply_display
from medlt.rng import numpy_generator
from medlt.types import InputError

FONTS = [cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX]


def anatomy(side: int, seed: int) -> np.ndarray:
    """Something like a radiograph without text: smooth, noisy, a bright disc and a wire. uint16, 12 bits."""
    return _anatomy(side, seed).copy()


@cache
def _anatomy(side: int, seed: int) -> np.ndarray:
    draw = numpy_generator("text", seed)
    coarse = cv2.resize(draw.random((6, 6)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    image = 800 + 2000 * coarse + draw.normal(0, 25, (side, side))
    cv2.circle(image, (side // 2, side // 2), side // 8, 3500, -1)
    cv2.line(image, (0, side // 3), (side, side // 2), 3300, max(1, side // 200))
    return np.clip(image, 0, 4095).astype(np.uint16)


def written(
    shape: tuple[int, int], height: int, turns: int = 0, font: int = FONTS[0], words: str = "DOE JANE"
) -> np.ndarray:
    """The mask of the strokes of `words`, turned by quarter turns, near the edge of an image of this shape."""
    mask = np.zeros(shape if turns % 2 == 0 else shape[::-1], np.uint8)
    thick = max(1, height // 10)
    foot = mask.shape[1] // 20, mask.shape[0] // 5
    cv2.putText(mask, words, foot, font, cv2.getFontScaleFromHeight(font, height, thick), 1, thick)
    return np.rot90(mask > 0, turns)


def lettered(image: np.ndarray, height: int, turns: int = 0, font: int = FONTS[0], value: int = 4095) -> np.ndarray:
    """Write a name into the image, in place; the mask of its strokes."""
    strokes = written(image.shape[:2], height, turns, font)
    image[strokes] = value
    return strokes


def covered(boxes: list[Box] | tuple[Box, ...], strokes: np.ndarray) -> float:
    mask = painted(np.zeros(strokes.shape, np.uint8), boxes, 1)
    return float(mask[strokes].mean())


def ribs(side: int) -> np.ndarray:
    """Two columns of curved bright bars of equal size and distance, and a column of plates, smooth at the edges."""
    image = np.full((side, side), 1000, np.float32)
    for row in range(8):
        middle = round(side * (0.15 + 0.09 * row))
        for column in (0.3, 0.7):
            centre = round(side * column), middle
            cv2.ellipse(image, centre, (side // 8, side // 16), 0, 200, 340, 1700, side // 70)
        plate = round(side * 0.48), middle - side // 50
        cv2.rectangle(image, plate, (plate[0] + side // 25, plate[1] + side // 25), 1500, side // 100)
    image[: side // 16], image[-side // 16 :] = 0, 4095
    noise = numpy_generator("ribs", side).normal(0, 20, image.shape)
    return (cv2.GaussianBlur(image, (0, 0), side / 300) + noise).clip(0, 4095).astype(np.uint16)


@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("side", [256, 700, 2048])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_silent_without_text(side: int, seed: int, turns: int) -> None:
    assert text_boxes(np.rot90(anatomy(side, seed), turns)) == []


@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("side", [256, 1024, 2048])
def test_rows_of_ribs_and_vertebrae_are_no_text(side: int, turns: int) -> None:
    assert text_boxes(np.rot90(ribs(side), turns)) == []


@pytest.mark.parametrize("side", [256, 1024, 1500])
@pytest.mark.parametrize("share", [0.01, 0.03])
def test_noise_is_no_text(side: int, share: float) -> None:
    noise = numpy_generator("noise", side).normal(2000, 4095 * share, (side, side))
    image = np.clip(noise, 0, 4095).astype(np.uint16)
    image[: side // 4], image[-side // 4 :] = 0, 4095
    assert text_boxes(image) == []


@pytest.mark.parametrize(("share", "faintest"), [(0.002, 0.05), (0.01, 0.08), (0.03, 0.2)])
def test_contrasts_within_the_noise_are_left_out(share: float, faintest: float) -> None:
    noise = numpy_generator("noise", 1).normal(128, 255 * share, (512, 512))
    strengths = text._top_hats(np.clip(np.rint(noise), 0, 255).astype(np.uint8))
    assert text._rules(strengths, 1)[0].contrast == faintest


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("font", FONTS)
@pytest.mark.parametrize("value", [4095, 0])
@pytest.mark.parametrize(("side", "height"), [(256, 14), (700, 20), (1024, 12), (2048, 12), (2048, 40), (2048, 120)])
def test_text_is_found_where_it_stands(font: int, value: int, side: int, height: int, turns: int) -> None:
    image = anatomy(side, 4)
    strokes = lettered(image, height, turns, font, value)
    boxes = text_boxes(image)
    assert covered(boxes, strokes) > 0.9
    assert covered(boxes, np.ones((side, side), bool)) < 0.4


@pytest.mark.parametrize("side", [256, 1024, 2048])
def test_a_mirrored_image_has_the_mirrored_boxes(side: int) -> None:
    """Also where the line runs to the edge of an image that is not square."""
    image = anatomy(side, 4)[:, : side // 2]
    strokes = written(image.shape, side // 24, words="DOE JANE 1950-03-14")
    image[strokes] = 4095
    boxes = text_boxes(image)
    assert covered(boxes, strokes) > 0.9
    assert max(b.left + b.width for b in boxes) == side // 2
    assert text_boxes(image.T) == sorted(Box(b.left, b.top, b.width, b.height) for b in boxes)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize(("side", "height"), [(512, 12), (1024, 16), (2048, 40)])
def test_faint_text_is_seen(side: int, height: int, turns: int) -> None:
    """A tenth of the range; at a hundredth it is within the noise."""
    faint, fainter = anatomy(side, 4), anatomy(side, 4)
    strokes = written(faint.shape, height, turns)
    faint[strokes] += 410
    fainter[strokes] += 41
    assert covered(text_boxes(faint), strokes) > 0.9
    assert text_boxes(fainter) == []


@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("height", [16, 30, 60])
def test_what_a_smaller_image_shows_is_seen_at_full_size(height: int, turns: int) -> None:
    image = anatomy(2048, 4)
    strokes = lettered(image, height, turns)
    smaller = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for side in (1024, 512, 256)]
    assert any(text_boxes(one) for one in smaller)
    assert covered(text_boxes(image), strokes) > 0.9


def narrow(side: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Values of 16 bits, most of them in a hundredth of the range, with a name that differs by a thousandth."""
    values = (anatomy(side, 7) // 8 + 20000).astype(np.uint16)
    values[-side // 8 :], values[-side // 4 : -side // 8] = 65535, 0
    strokes = written(values.shape, 20)
    values[strokes] += 300
    return values, strokes


def wide(make: Callable[..., Dataset], values: np.ndarray, **attributes: object) -> Dataset:
    return make(values, BitsStored=16, HighBit=15, **attributes)


@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1"])
def test_text_that_only_the_window_shows_is_seen_and_painted(
    make: Callable[..., Dataset], key: bytes, kind: str
) -> None:
    values, strokes = narrow()
    window = {"WindowCenter": 20400, "WindowWidth": 1000, "PhotometricInterpretation": kind}
    data = wide(make, values, **window)
    assert text_boxes(values) == []
    assert deidentify(wide(make, values), Profile.parse("basic"), key).quarantine is None

    held = deidentify(data, Profile.parse("basic"), key)
    assert held.quarantine is not None
    assert covered(held.risk.detected, strokes) > 0.9

    clean = deidentify(data, Profile.parse("basic,clean-pixel"), key)
    assert clean.quarantine is None
    after = clean.dataset.pixel_array
    assert len(np.unique(after[strokes])) == 1
    rendering = apply_display(after, clean.dataset)
    assert rendering.unit()[strokes].max() == 0  # black as displayed
    assert text_boxes(after) == [] == text_boxes(rendering.uint16())
    assert seen(after, clean.dataset, text_boxes) == ()


def test_text_that_stays_in_the_display_alone_holds_the_pixels_back(make: Callable[..., Dataset], key: bytes) -> None:
    data = make(anatomy(256, 5), WindowCenter=1000, WindowWidth=1000)
    result = deidentify(
        data, Profile.parse("basic,clean-pixel"), key, lambda view: [Box(0, 0, 8, 8)] if view.max() > 4095 else []
    )
    assert result.risk.remaining == (Box(0, 0, 8, 8),)
    assert result.quarantine is not None


def test_text_that_only_the_stored_values_show_is_seen(make: Callable[..., Dataset], key: bytes) -> None:
    """A window that ends below the text leaves it white on white, and the released values would still hold it."""
    image = anatomy(512, 4)
    image[:256] = 3000 + image[:256] // 100
    strokes = lettered(image, 20)
    data = make(image, WindowCenter=1000, WindowWidth=2000)
    assert text_boxes(apply_display(image, data).uint16()) == []
    assert covered(deidentify(data, Profile.parse("basic"), key).risk.detected, strokes) > 0.9


@pytest.mark.parametrize(
    ("attributes", "views"),
    [
        ({}, 1),
        ({"WindowCenter": 2048, "WindowWidth": 4096}, 1),
        ({"WindowCenter": 2048, "WindowWidth": 4096, "PhotometricInterpretation": "MONOCHROME1"}, 1),
        ({"WindowCenter": 5000, "WindowWidth": 20000}, 1),
        ({"WindowCenter": 1000, "WindowWidth": 1000}, 2),
        ({"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTFunction": "SIGMOID"}, 2),
        ({"WindowCenter": 2048, "WindowWidth": 4096, "PixelPaddingValue": 0}, 2),
    ],
)
def test_a_display_that_only_scales_is_not_examined_twice(
    make: Callable[..., Dataset], attributes: dict[str, object], views: int
) -> None:
    image = anatomy(256, 5)
    lettered(image, 14)
    data, examined = make(image, **attributes), list[np.ndarray]()

    def detector(view: np.ndarray) -> list[Box]:
        examined.append(view)
        return text_boxes(view)

    boxes = seen(image, data, detector)
    assert len(examined) == views
    assert boxes
    assert set(text_boxes(apply_display(image, data).uint16())) <= set(boxes)


def test_a_display_that_falls_again_above_most_values_is_not_linear() -> None:
    stored = np.full((64, 64), 1000, np.uint16)
    stored[:, 32:], stored[1, 1] = 3000, 4095
    levels = np.linspace(0, 1, 4096)
    assert _is_linear(DisplayLut(stored, levels, 0, None, "", ()))
    levels[4000:] = 0
    assert not _is_linear(DisplayLut(stored, levels, 0, None, "", ()))


def test_display_tags_are_repaired_on_a_copy(make: Callable[..., Dataset]) -> None:
    values, _ = narrow()
    right = wide(make, values, WindowCenter=20400, WindowWidth=1000)
    wrong = wide(make, values)
    for keyword, number in (("WindowCenter", b"20400,0 "), ("WindowWidth", b"1000 ")):
        tag = Tag(keyword)
        wrong[tag] = RawDataElement(tag, "DS", len(number), number, 0, False, True)
    assert seen(values, wrong, text_boxes) == seen(values, right, text_boxes) != ()
    assert wrong.get_item("WindowCenter").value == b"20400,0 "


def test_display_tags_that_cannot_be_applied_hold_the_pixels_back(make: Callable[..., Dataset]) -> None:
    data = make(PixelPaddingValue=[90210, 2])
    result = inspect(data, True, text_boxes)
    assert result.quarantine == "its display tags cannot be applied; export the file again"
    assert not result.risk.inspected


@pytest.mark.parametrize("count", [1, 60, 1500])
def test_the_next_letter_is_the_nearest_similar_one_to_the_right(count: int) -> None:
    draw = numpy_generator("letters", count)
    sides = [
        draw.integers(0, 40 * int(count**0.5), (count, 2)),
        draw.integers(2, 20, count),
        draw.integers(5, 30, count),
    ]
    letters = np.column_stack(sides)
    letters = letters[np.argsort(letters[:, 0], kind="stable")]
    rule = text.PLAIN[0]

    def follows(one: np.ndarray, other: np.ndarray) -> bool:
        near = one[0] < other[0] <= one[0] + one[2] + text.GAP * one[3]
        level = abs(one[1] + one[3] / 2 - other[1] - other[3] / 2) <= rule.offset * one[3]
        return bool(near and level and rule.alike * one[3] <= other[3] <= one[3] / rule.alike)

    expected = [next((j for j in range(count) if follows(one, letters[j])), count) for one in letters]
    assert text._following(letters, rule).tolist() == [*expected, count]


def test_colour_sign_and_flat_images() -> None:
    image = anatomy(256, 5)
    lettered(image, 14)
    assert text_boxes(np.repeat((image // 16).astype(np.uint8)[..., None], 3, axis=2))
    assert text_boxes(image.astype(np.int16) - 2048) == text_boxes(image)
    assert text_boxes(np.full((300, 200), 7, np.uint16)) == []
    assert text_boxes(np.zeros((5, 3), np.uint8)) == []


def test_a_single_letter_is_not_seen() -> None:
    """The known limit: a side marker is no line of text."""
    image = anatomy(512, 6)
    image[written(image.shape, 30, words="L")] = 4095
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
