"""JPEG 2000 at a lower resolution: the low-pass image of its wavelet, computed here by lifting."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
from pydicom import uid

from medlt.data.convert import ConversionSettings
from medlt.data.dicom.guard import Unreadable, frame, open_bytes
from medlt.types import InputError

Film, Stream, Run = Callable[..., bytes], Callable[..., bytes], Callable[..., Any]
FULL = {"WindowCenter": 2048, "WindowWidth": 4096}
PLACE = Path("file")


def smooth(rows: int, columns: int, bits: int = 12) -> np.ndarray:
    """Blobs that use the middle of the range, so that no filter leaves it."""
    coarse = np.random.default_rng(rows + columns).integers(2**bits // 4, 3 * 2**bits // 4, (9, 9)).astype(np.float32)
    values = cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return values.astype(np.uint8 if bits <= 8 else np.uint16)


def low_pass(signal: np.ndarray) -> np.ndarray:
    """Even outputs of the reversible 5/3 filter along the first axis (ISO 15444-1 F.4.8.1), symmetric at the ends."""
    x = np.pad(signal, [(4, 4)] + [(0, 0)] * (signal.ndim - 1), mode="reflect").astype(int)  # x[4] is the first
    end = 4 + len(signal)
    high = {at: x[at] - (x[at - 1] + x[at + 1]) // 2 for at in range(3, end + 1, 2)}
    return np.stack([x[at] + (high[at - 1] + high[at + 1] + 2) // 4 for at in range(4, end, 2)])


def halved(pixels: np.ndarray, bits: int) -> np.ndarray:
    """The image at half the resolution: columns, then rows, around the middle of the range (F.4.2, G.1)."""
    shifted = pixels.astype(int) - 2 ** (bits - 1)
    return low_pass(low_pass(shifted).T).T + 2 ** (bits - 1)


def packed(film: Film, pixels: np.ndarray, bits: int = 12, **tags: Any) -> bytes:
    stream = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="J2K", reversible=True, bitspersample=bits)
    return film(pixels, uid.JPEG2000Lossless, PixelData=[bytes(stream)], BitsStored=bits, **{**FULL, **tags})


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("shape", [(64, 96), (63, 70), (66, 61)])
def test_half_the_resolution_is_the_low_pass_image(film: Film, bits: int, shape: tuple[int, int]) -> None:
    pixels = smooth(*shape, bits)
    raw = packed(film, pixels, bits)
    data, _ = open_bytes(raw, PLACE)
    values, _ = frame(data, PLACE, 0, 2)
    assert values.dtype == pixels.dtype
    np.testing.assert_array_equal(values, halved(pixels, bits))
    np.testing.assert_array_equal(frame(data, PLACE)[0], pixels)


def test_a_quarter_is_the_half_of_the_half(film: Film) -> None:
    pixels = smooth(64, 96)
    data, _ = open_bytes(packed(film, pixels), PLACE)
    np.testing.assert_array_equal(frame(data, PLACE, 0, 4)[0], halved(halved(pixels, 12), 12))


def test_a_size_that_cannot_be_quartered_is_halved(film: Film) -> None:
    """Pillow expects 16 rows of 65, and the stream has 17."""
    pixels = smooth(65, 96)
    data, _ = open_bytes(packed(film, pixels), PLACE)
    np.testing.assert_array_equal(frame(data, PLACE, 0, 4)[0], halved(pixels, 12))


def test_the_film_stays_at_the_size_or_above(film: Film, run: Run, tmp_path: Path) -> None:
    """For a size of 40, 160 rows may be quartered, 100 halved, 60 not; nor 80 columns that are 40 after squaring.

    The images are those of uncompressed films with the reduced pixels.
    """
    (tmp_path / "in").mkdir()
    (tmp_path / "plain").mkdir()
    levels = {"quarter": 2, "half": 1, "whole": 0, "oblong": 0}
    for name, shape, tags in (
        ("quarter", (160, 200), {}),
        ("half", (100, 200), {}),
        ("whole", (60, 200), {}),
        ("oblong", (200, 80), {"PixelSpacing": [0.4, 0.2]}),
    ):
        (tmp_path / "in" / name).write_bytes(packed(film, pixels := smooth(*shape), **tags))
        for _ in range(levels[name]):
            pixels = halved(pixels, 12).astype(np.uint16)
        (tmp_path / "plain" / name).write_bytes(film(pixels, **FULL, **tags))
    result = run(tmp_path / "in", tmp_path / "out", size=40, reduce=4)
    notes = {name: row["notes"] for name, row in result.rows.items()}
    assert notes["quarter"] == "JPEG 2000 decoded at 1/4 of its resolution"
    assert notes["half"] == "JPEG 2000 decoded at 1/2 of its resolution"
    assert notes["whole"] == ""
    assert notes["oblong"] == "averaged to square pixels"
    assert {min(row["out_rows"], row["out_columns"]) for row in result.rows.values()} == {40}
    plain = run(tmp_path / "plain", tmp_path / "plain_out", size=40)
    for name in levels:
        np.testing.assert_array_equal(result.pixels(name), plain.pixels(name))


def test_spacing_is_that_of_the_reduced_image(film: Film, run: Run, tmp_path: Path) -> None:
    """The film is as wide in mm as before."""
    raw = packed(film, smooth(101, 160), PixelSpacing=[0.2, 0.2])
    (tmp_path / "film").write_bytes(raw)
    row = run(tmp_path / "film", tmp_path / "out", size=50, reduce=2).rows["film"]
    assert (row["rows"], row["columns"]) == (51, 80)
    assert row["rows"] * row["row_spacing_mm"] == pytest.approx(101 * 0.2)
    assert row["columns"] * row["column_spacing_mm"] == pytest.approx(160 * 0.2)


def test_other_syntaxes_colours_and_signs_are_not_reduced(film: Film, stream: Stream, run: Run, tmp_path: Path) -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    colours = np.stack([smooth(64, 64, 8)] * 3, axis=-1)
    rgb = {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PlanarConfiguration": 0, "BitsStored": 8}
    files = {
        "native": film(ramp, **FULL),
        "jpegls": film(ramp, uid.JPEGLSLossless, PixelData=[stream(ramp, uid.JPEGLSLossless)], **FULL),
        "htj2k": film(ramp, uid.HTJ2KLossless, PixelData=[stream(ramp, uid.HTJ2KLossless)], **FULL),
        "signed": film(
            (ramp - 2048).astype(np.int16),
            uid.JPEG2000Lossless,
            PixelData=[imagecodecs.jpeg2k_encode((ramp - 2048).astype(np.int16), level=0, codecformat="J2K")],
            BitsStored=16,
        ),
        "colour": film(
            colours,
            uid.JPEG2000Lossless,
            PixelData=[imagecodecs.jpeg2k_encode(colours, level=0, codecformat="J2K", mct=False)],
            **rgb,
        ),
    }
    (tmp_path / "in").mkdir()
    for name, raw in files.items():
        (tmp_path / "in" / name).write_bytes(raw)
    reduced = run(tmp_path / "in", tmp_path / "reduced", size=16, reduce=4)
    whole = run(tmp_path / "in", tmp_path / "whole", size=16)
    assert (reduced.reasons, sorted(reduced.rows)) == ({}, sorted(files))
    for name in files:
        assert "resolution" not in reduced.rows[name]["notes"]
        np.testing.assert_array_equal(reduced.pixels(name), whole.pixels(name))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95, 0.999])
def test_a_stream_that_is_cut_is_refused_as_without_reduction(film: Film, share: float) -> None:
    pixels = smooth(128, 128)
    stream = bytes(imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="J2K", reversible=True, bitspersample=12))
    raw = film(pixels, uid.JPEG2000Lossless, PixelData=[stream[: int(len(stream) * share)]])
    data, _ = open_bytes(raw, PLACE)
    with pytest.raises(Unreadable) as error:
        frame(data, PLACE, 0, 2)
    assert error.value.code in ("truncated", "corrupt")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reduce": 3, "size": 8}, "--reduce 3: use 2 or 4"),
        ({"reduce": 2}, "needs --size"),
        ({"reduce": 2, "size": 8, "preset": "chexpert"}, "--preset viewer or linear16"),
    ],
)
def test_what_cannot_be_reduced_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ConversionSettings(**given)


def test_a_run_with_another_resolution_is_refused(film: Film, run: Run, tmp_path: Path) -> None:
    (tmp_path / "film").write_bytes(packed(film, smooth(64, 64)))
    run(tmp_path / "film", tmp_path / "out", size=16)
    with pytest.raises(InputError, match="reduce 1, now 2"):
        run(tmp_path / "film", tmp_path / "out", size=16, reduce=2)
