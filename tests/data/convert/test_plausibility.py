"""The second opinion: images that a person would doubt get one note, plausible ones none; the summary counts them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medlt.data.convert.plausibility import BLACK, FAR, FLAT, WHITE, doubt
from medlt.data.convert.terminal import conversion_table

Film, Run = Callable[..., bytes], Callable[..., Any]
TOP = 65535
STORED = np.arange(60_000, dtype=np.uint16).reshape(200, 300)
SHOWN = np.rint(STORED / 59_999 * TOP).astype(np.uint16)


def mixed(share: float, level: int) -> np.ndarray:
    """A ramp in which this share of the pixels has one level, spread over the image."""
    rng = np.random.default_rng(0)
    return np.where(rng.random(STORED.shape) < share, level, SHOWN).astype(np.uint16)


@pytest.mark.parametrize(
    ("pixels", "note"),
    [
        (SHOWN, ""),
        (TOP - SHOWN, ""),
        ((SHOWN >> 8).astype(np.uint8), ""),
        (mixed(0.995, 0), BLACK),
        (mixed(0.96, 0), FAR),
        (mixed(0.995, TOP), WHITE),
        (mixed(0.3, TOP), ""),
        (mixed(0.5, 0), ""),
        ((SHOWN * 0.09 + 3000).astype(np.uint16), FLAT),
        ((SHOWN * 0.3 + 3000).astype(np.uint16), ""),
        ((SHOWN.astype(float) * 977 % TOP).astype(np.uint16), ""),
        (np.where(STORED < 6000, SHOWN, TOP).astype(np.uint16), FAR),
    ],
)
def test_the_note_of_a_rendering(pixels: np.ndarray, note: str) -> None:
    assert doubt(pixels, STORED, Dataset()) == note


def test_padding_is_no_ground_for_doubt() -> None:
    """99 % padding, black in the image: what is left is a ramp."""
    data = Dataset()
    data.PixelPaddingValue, data.PixelRepresentation, data.BitsAllocated, data.PixelData = 65000, 0, 16, b""
    padded = np.random.default_rng(0).random(STORED.shape) < 0.99
    stored, shown = np.where(padded, 65000, STORED).astype(np.uint16), np.where(padded, 0, SHOWN).astype(np.uint16)
    assert doubt(shown, stored, data) == ""
    assert doubt(shown, stored, Dataset()) == BLACK
    assert doubt(np.zeros_like(shown), np.full_like(stored, 65000), data) == ""


def test_colour_and_small_images_have_an_opinion_too() -> None:
    assert doubt(np.zeros((5, 4), np.uint8), np.zeros((5, 4, 3), np.uint8), Dataset()) == BLACK
    assert doubt(SHOWN, np.zeros((*SHOWN.shape, 3), np.uint8), Dataset()) == ""


def test_the_summary_counts_them(film: Film, run: Run, tmp_path: Path) -> None:
    """A window far above all values, one far below, one that holds them."""
    (tmp_path / "in").mkdir()
    windows = {"dark": (60000, 100), "white": (-5000, 100), "right": (2048, 4096), "dark too": (50000, 10)}
    for name, (centre, width) in windows.items():
        (tmp_path / "in" / name).write_bytes(
            film(WindowCenter=centre, WindowWidth=width, PatientAge=f"{centre % 99:03}Y")
        )
    result = run(tmp_path / "in", tmp_path / "out")
    assert result.counts["implausible"] == {BLACK: 2, WHITE: 1}
    assert BLACK in result.rows["dark"]["notes"]
    assert WHITE in result.rows["white"]["notes"]
    assert result.rows["right"]["notes"] == ""
    from io import StringIO

    from rich.console import Console

    console = Console(file=StringIO(), width=200)
    console.print(conversion_table(tmp_path, result.counts))
    assert f"converted: {BLACK}" in console.file.getvalue()  # type: ignore[attr-defined]
