"""Every way to hide an identity, in every transfer syntax: none is released, and verify reports each."""

import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array
from pydicom.uid import UID

from medlt.data.convert import ConversionSettings
from medlt.data.convert.one import convert_one
from medlt.data.convert.places import Places
from medlt.data.deidentify import Profile, deidentify
from medlt.data.verify import verify

from .redteam import CASES, EVERY, WIDE, WORD, Way, film, pixels, written

Make = Callable[..., Dataset]
BASIC = Profile.parse("basic")
IDS = [f"{way.name}, {UID(syntax).keyword}" for way, syntax in CASES]


@pytest.fixture(scope="module")
def clean() -> Dataset:
    """A data set that is de-identified, with 12 bits of smooth pixels."""
    from .conftest import KEY, radiograph

    return deidentify(radiograph(pixels("")), BASIC, KEY).dataset


def released(raw: bytes, folder: Path) -> list[bytes]:
    """Every released file of a conversion, as it is and inflated or decoded."""
    (folder / "film").write_bytes(raw)
    settings = ConversionSettings(profile=BASIC, key=bytes(range(32)))
    Places(folder / "out", True).make()
    convert_one(folder / "film", folder / "out", settings)
    files = [path.read_bytes() for path in (folder / "out/release").rglob("*") if path.is_file()]
    inner = [pydicom.dcmread(BytesIO(one)) for one in files if one[128:132] == b"DICM"]
    return [*files, *(np.ascontiguousarray(pixel_array(one)).tobytes() for one in inner)]


@pytest.mark.parametrize(("way", "syntax"), CASES, ids=IDS)
def test_nothing_that_was_hidden_is_released(make: Make, tmp_path: Path, way: Way, syntax: str) -> None:
    source = make(pixels(syntax), PatientName="Quimby^Wanda")
    files = released(way.hidden(source, syntax), tmp_path)
    for part in (WORD, WIDE, WORD[:10], b"19610203", b"Quimby"):
        assert not [one for one in files if part in one]


@pytest.mark.parametrize("syntax", EVERY, ids=lambda s: UID(s).keyword)
def test_a_film_without_anything_hidden_is_released(make: Make, tmp_path: Path, syntax: str) -> None:
    assert len(released(written(film(make(pixels(syntax)), syntax)), tmp_path)) == 3


@pytest.mark.parametrize("syntax", EVERY, ids=lambda s: UID(s).keyword)
def test_verify_is_silent_about_a_clean_film(clean: Dataset, tmp_path: Path, syntax: str) -> None:
    (tmp_path / "film.dcm").write_bytes(written(film(clean, syntax)))
    assert verify(tmp_path).leaks == ()


@pytest.mark.parametrize(("way", "syntax"), CASES, ids=IDS)
def test_verify_reports_what_is_hidden(clean: Dataset, tmp_path: Path, way: Way, syntax: str) -> None:
    (tmp_path / "film.dcm").write_bytes(way.hidden(clean, syntax))
    leaks = [what for _, what in verify(tmp_path).leaks]
    assert [what for what in leaks if "cannot be read" not in what]
    assert not [what for what in leaks if "SMITH" in what]


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("syntax", EVERY, ids=lambda s: UID(s).keyword)
def test_burned_in_text_is_held_back_or_painted_over(
    make: Make, clean: Dataset, tmp_path: Path, syntax: str, turns: int
) -> None:
    """A name of 20 px at the edge of a film of 400 x 400, in four directions, in every transfer syntax."""
    y, x = np.mgrid[:400, :400]
    shown = (1800 + 1500 * np.sin(x / 130) * np.cos(y / 110)).astype(np.uint16)
    strokes = np.zeros(shown.shape, np.uint8)
    cv2.putText(strokes, "SMITH JOHN 1961", (60, 380), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 1, 2)
    strokes = np.rot90(strokes, turns)
    shown = np.where(strokes > 0, 4000, shown).astype(np.uint16)
    shown = (shown // 16).astype(np.uint8) if syntax == uid.JPEGBaseline8Bit else shown
    source = _read(written(film(make(shown), syntax, shown)))
    held = deidentify(source, BASIC, bytes(range(32)))
    assert held.quarantine is not None
    assert held.dataset.PatientIdentityRemoved == "NO"
    painted = deidentify(source, Profile.parse("basic,clean-pixel"), bytes(range(32)))
    assert painted.quarantine is None
    assert painted.values is not None
    assert np.ptp(painted.values[strokes > 0]) == 0
    (tmp_path / "film.dcm").write_bytes(written(film(clean, syntax, shown)))
    assert any("look like text" in what for _, what in verify(tmp_path).leaks)


WHOLE_CELLS = [s for s in EVERY if s not in (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)]


@pytest.mark.parametrize("bit", [12, 15])
@pytest.mark.parametrize("syntax", WHOLE_CELLS, ids=lambda s: UID(s).keyword)
def test_text_in_unused_bits_is_cleared_and_reported(
    make: Make, clean: Dataset, tmp_path: Path, syntax: str, bit: int
) -> None:
    """Above the stored bits, and below them where High Bit is 15."""
    letters = (np.add.outer(np.arange(64) // 9, np.arange(64) // 5) % 2).astype(np.uint16)
    above = film(make(pixels(syntax)), syntax, pixels(syntax) | letters << bit, 16)
    below = film(make(pixels(syntax)), syntax, pixels(syntax) << 4 | letters << bit - 12, 16)
    for name, data in (("above", above), ("below", below)):
        data.BitsStored, data.HighBit = 12, 11 if name == "above" else 15
        out = deidentify(_read(written(data)), BASIC, bytes(range(32)))
        assert out.quarantine is None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = pixel_array(_read(written(out.dataset)), raw=True)
        np.testing.assert_array_equal(values, pixels(syntax))
        assert (out.dataset.BitsStored, out.dataset.HighBit) == (12, 11)
    for high, cells in ((11, pixels(syntax) | letters << bit), (15, pixels(syntax) << 4 | letters << bit - 12)):
        hidden = film(clean, syntax, cells, 16)
        hidden.BitsStored, hidden.HighBit = 12, high
        (tmp_path / "film.dcm").write_bytes(written(hidden))
        assert [what for _, what in verify(tmp_path).leaks] == ["bits beside the stored ones"]


def _read(raw: bytes) -> Any:
    return pydicom.dcmread(BytesIO(raw))
