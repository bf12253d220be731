"""Every way to hide an identity, in every transfer syntax: none is released, and verify reports each."""

import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

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
