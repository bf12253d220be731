"""Every tile of a grid is where its row and column say, with the pixels of its image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medlt.report.grid import GAP, grid, titles_of
from medlt.types import InputError

SIDE = 16


def tile(picture: Image.Image, row: int, column: int, top: int = 0, names: tuple[str, ...] = ("A", "B")) -> np.ndarray:
    """The pixels at a place of a grid."""
    left = titles_of(names, SIDE).shape[1] + column * (SIDE + GAP)
    y = top + row * (SIDE + GAP)
    return np.asarray(picture)[y : y + SIDE, left : left + SIDE]


def test_each_tile_is_its_image(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
    Image.fromarray(numbers[2]).save(tmp_path / "image.png")
    rows = {"A": [numbers[0], torch.from_numpy(numbers[1])[None] / 255], "B": [tmp_path / "image.png"]}
    picture = grid(rows, side=SIDE)
    assert picture.mode == "L"
    for i, (row, column) in enumerate([(0, 0), (0, 1), (1, 0)]):
        np.testing.assert_array_equal(tile(picture, row, column), numbers[i])
    assert not tile(picture, 1, 1).any()


def test_small_images_are_enlarged_by_whole_pixels_and_large_ones_averaged() -> None:
    checks = np.kron([[0, 255], [255, 0]], np.ones((8, 8))).astype(np.uint8)
    picture = grid({"A": [checks[::8, ::8], np.kron(checks, np.ones((2, 2))).astype(np.uint8)]}, side=SIDE)
    for column in range(2):
        np.testing.assert_array_equal(tile(picture, 0, column, names=("A",)), checks)


def test_colours_and_names_of_columns() -> None:
    red = np.zeros((SIDE, SIDE, 3), np.float32)
    red[..., 0] = 1
    picture = grid({"A": [red], "B": [np.full((SIDE, SIDE), 0.5)]}, side=SIDE, columns=["red"])
    assert picture.mode == "RGB"
    top = picture.height - 2 * SIDE - GAP
    assert top > 0
    assert (tile(picture, 0, 0, top) == [255, 0, 0]).all()
    assert (tile(picture, 1, 0, top) == 128).all()
    assert np.asarray(picture)[:top].any()


@pytest.mark.parametrize(
    ("rows", "problem"), [({}, "no image"), ({"A": []}, "no image"), ({"A": [np.zeros((2, 3, 4))]}, r"\(2, 3, 4\)")]
)
def test_what_cannot_be_shown_is_refused(rows: dict[str, list[np.ndarray]], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        grid(rows)
