"""Films stored turned, mirrored or with oblong pixels come out as they are hung; published presets leave them alone."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from medlt.data.convert.presets import Rendered
from medlt.data.convert.upright import MIRRORED, ODD_ASPECT, SQUARED, hanging, turned_note, upright
from medlt.data.deidentify import Profile

Film, Run = Callable[..., bytes], Callable[..., Any]
FILM = np.add.outer(60 * np.arange(40), 28 * np.arange(56)).astype(np.uint16)
FULL = {"WindowCenter": 2048, "WindowWidth": 4096}
SHOWN = np.rint(FILM / 4095 * 255)
STORED = [(turns, mirror) for turns in range(4) for mirror in (False, True)]


def stored_as(pixels: np.ndarray, turns: int, mirror: bool) -> np.ndarray:
    """One of the eight ways to store an upright film."""
    return np.rot90(pixels[:, ::-1] if mirror else pixels, turns)


def orientation(turns: int, mirror: bool, side: str = "LR") -> list[str]:
    """Patient Orientation of a film stored so: the coordinate that grows along a row, and down a column.

    On the upright film, `side` left of the patient grows along a row, and feet down a column.
    """
    down, along = (stored_as(grid, turns, mirror) for grid in np.indices((5, 5)))
    names = {"along": side, "down": "FH"}
    out = []
    for axis in (1, 0):
        steps = {"along": np.diff(along, axis=axis).ravel()[0], "down": np.diff(down, axis=axis).ravel()[0]}
        out += [names[name][0 if step > 0 else 1] for name, step in steps.items() if step]
    return out


def test_the_orientations_of_this_test_are_those_of_the_standard() -> None:
    """C.7.6.1.1.1: an upright frontal film is L and F."""
    assert orientation(0, False) == ["L", "F"]
    assert orientation(0, True) == ["R", "F"]
    assert orientation(2, False) == ["R", "H"]
    assert len({tuple(orientation(*kind)) for kind in STORED}) == 8


@pytest.mark.parametrize(("turns", "mirror"), STORED)
def test_a_frontal_film_is_hung_with_the_head_up_and_left_at_the_right(turns: int, mirror: bool) -> None:
    data = Dataset()
    data.PatientOrientation = orientation(turns, mirror)
    made, spacing = upright(Rendered(stored_as(FILM, turns, mirror).copy(), ""), None, data)
    np.testing.assert_array_equal(made.pixels, FILM)
    assert made.pixels.flags.c_contiguous
    assert spacing is None
    assert (MIRRORED in made.notes) == mirror
    assert bool(made.notes) == bool(turns or mirror)


@pytest.mark.parametrize(("turns", "mirror"), STORED)
def test_a_lateral_film_is_turned_and_never_mirrored(turns: int, mirror: bool) -> None:
    """It may face either side."""
    data = Dataset()
    data.PatientOrientation = orientation(turns, mirror, side="AP")
    made, _ = upright(Rendered(stored_as(FILM, turns, mirror), ""), None, data)
    np.testing.assert_array_equal(made.pixels, FILM[:, ::-1] if mirror else FILM)
    assert MIRRORED not in made.notes


@pytest.mark.parametrize(
    "text", ["", "L", "L\\", "\\F", "L\\L", "L\\R", "H\\F", "F\\H", "X\\Y", "L\\P", "A\\L", "1\\0", "L\\F\\H\\A"]
)
def test_an_unusable_orientation_turns_nothing(text: str) -> None:
    assert hanging(text) == (0, False)


@pytest.mark.parametrize("text", ["l\\f", " L \\ F ", "LA\\FP", "LH\\F"])
def test_oblique_and_small_letters_count_by_their_first(text: str) -> None:
    assert hanging(text) == (0, False)
    assert hanging(text.upper().replace("L", "R", 1).replace("F", "H", 1)) == (2, False)


@pytest.mark.parametrize(
    ("spacing", "ratio", "factors"),
    [((0.2, 0.1), None, (1, 2)), ((0.1, 0.3), None, (3, 1)), (None, [2, 1], (1, 2)), (None, [1, 4], (4, 1))],
)
def test_oblong_pixels_are_averaged_to_square_ones(
    spacing: tuple[float, float] | None, ratio: list[int] | None, factors: tuple[int, int]
) -> None:
    """Each pixel of the film repeated `factors` times, with noise that averages to nothing."""
    noise = np.array({2: [7, -7], 3: [7, 0, -7], 4: [7, -7, 3, -3]}[max(factors)])
    stored = np.repeat(np.repeat(FILM.astype(int), factors[0], 0), factors[1], 1) + 10
    stored += np.tile(noise, 56)[None, :] if factors[1] > 1 else np.tile(noise, 40)[:, None]
    data = Dataset()
    if ratio:
        data.PixelAspectRatio = ratio
    made, after = upright(Rendered(stored.astype(np.uint16), ""), spacing, data)
    np.testing.assert_array_equal(made.pixels, FILM + 10)
    assert made.notes == (SQUARED,)
    assert after == (None if spacing is None else (max(spacing), max(spacing)))


def test_a_turned_film_keeps_its_spacing_with_its_sides() -> None:
    """Stored 56 x 80, rows 0.1 mm and columns 0.2 mm apart; upright 56 rows would be 0.2 mm, so they are averaged."""
    data = Dataset()
    data.PatientOrientation = orientation(1, False)
    tall = np.repeat(FILM, 2, 1)
    made, spacing = upright(Rendered(stored_as(tall, 1, False), ""), (0.1, 0.2), data)
    np.testing.assert_array_equal(made.pixels, FILM)
    assert spacing == (0.2, 0.2)
    assert made.notes == (turned_note(3), SQUARED)
    assert upright(Rendered(stored_as(FILM, 1, False), ""), (0.143, 0.1431), data)[1] == (0.1431, 0.143)


@pytest.mark.parametrize(
    ("spacing", "ratio", "notes"),
    [
        ((0.143, 0.1431), None, ()),
        ((1e40, 1.0), None, (ODD_ASPECT,)),
        (None, [1, 60000], (ODD_ASPECT,)),
        (None, [0, 1], ()),
        (None, [-1, 1], ()),
        (None, [1], ()),
        ((0.1, 0.1), [2, 1], ()),
    ],
)
def test_nearly_square_and_implausible_pixels_are_left(
    spacing: tuple[float, float] | None, ratio: list[int] | None, notes: tuple[str, ...]
) -> None:
    data = Dataset()
    if ratio:
        data.PixelAspectRatio = ratio
    made, after = upright(Rendered(FILM, ""), spacing, data)
    np.testing.assert_array_equal(made.pixels, FILM)
    assert (made.notes, after) == (notes, spacing)


TURNED = {"PatientOrientation": orientation(1, False), "PixelSpacing": [0.1, 0.2], **FULL}


def folder(place: Path, raw: bytes) -> Path:
    place.mkdir()
    (place / "a").write_bytes(raw)
    return place


def test_the_manifest_and_the_nifti_agree_with_the_picture(film: Film, run: Run, tmp_path: Path) -> None:
    raw = film(np.ascontiguousarray(stored_as(np.repeat(FILM, 2, 1), 1, False)), **TURNED)
    source = folder(tmp_path / "in", raw)
    result = run(source, tmp_path / "png")
    np.testing.assert_allclose(result.pixels("a"), SHOWN, atol=0.51)
    row = result.rows["a"]
    sides = ("rows", "columns", "row_spacing_mm", "column_spacing_mm", "out_rows", "out_columns")
    assert [row[name] for name in sides] == [40, 56, 0.2, 0.2, 40, 56]
    assert row["notes"] == f"{turned_note(3)}; {SQUARED}"
    small = run(source, tmp_path / "nifti", preset="linear16", format="nifti", size=20).rows["a"]
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress((tmp_path / "nifti" / small["path"]).read_bytes()))
    assert image.shape == (28, 20, 1)
    np.testing.assert_allclose(image.header.get_zooms(), (0.4, 0.4, 1), rtol=1e-6)


@pytest.mark.parametrize("preset", ["mimic-cxr-jpg", "chexpert"])
def test_published_procedures_turn_nothing(film: Film, run: Run, tmp_path: Path, preset: str) -> None:
    stored = np.ascontiguousarray(stored_as(FILM, 1, False))
    plain = run(folder(tmp_path / "plain", film(stored, **FULL)), tmp_path / "a", preset=preset)
    turned = run(folder(tmp_path / "turned", film(stored, **TURNED)), tmp_path / "b", preset=preset)
    np.testing.assert_array_equal(turned.pixels("a"), plain.pixels("a"))
    assert [turned.rows["a"][k] for k in ("rows", "columns", "row_spacing_mm", "notes")] == [56, 40, 0.1, ""]


def test_a_de_identified_file_and_its_picture_agree(film: Film, run: Run, tmp_path: Path) -> None:
    """The file keeps its pixels with its Patient Orientation; the picture is what these two say."""
    raw = film(np.ascontiguousarray(stored_as(FILM, 1, False)), PatientOrientation=orientation(1, False), **FULL)
    result = run(folder(tmp_path / "in", raw), tmp_path / "out", profile=Profile.parse("basic"), key=b"k" * 32)
    (path,) = (tmp_path / "out/release/dicom").iterdir()
    released = dcmread(path)
    turns, mirror = hanging("\\".join(released.get("PatientOrientation") or []))
    np.testing.assert_allclose(
        result.pixels("a"), np.rot90(np.rint(released.pixel_array / 4095 * 255), turns), atol=0.51
    )
    assert mirror is False
