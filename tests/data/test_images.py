import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medlt.data.dicom import Unreadable
from medlt.data.images import read_image

RAMP8 = np.arange(240, dtype=np.uint8).reshape(12, 20)


def saved(pixels: np.ndarray, path: Path, mode: str | None = None, **how: object) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **how)
    return path


def test_8_and_16_bit_png_keep_every_level(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(saved(RAMP8, tmp_path / "a.png")), RAMP8.astype(np.float32) / 255)
    deep = np.linspace(0, 65535, 240).astype(np.uint16).reshape(12, 20)
    np.testing.assert_allclose(read_image(saved(deep, tmp_path / "b.png")), deep / 65535, atol=1e-7)


def test_orientation_is_rows_then_columns(tmp_path: Path) -> None:
    pixels = np.zeros((12, 20), np.uint8)
    pixels[1, 17] = 255
    shown = read_image(saved(pixels, tmp_path / "a.png"))
    assert shown.shape == (12, 20)
    assert shown.dtype == np.float32
    assert np.argwhere(shown == 1).tolist() == [[1, 17]]


def test_the_kind_is_told_by_content_not_by_name(tmp_path: Path, write_dicom: Callable[..., Path]) -> None:
    picture = saved(RAMP8, tmp_path / "a.png")
    named = picture.rename(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_image(named), RAMP8.astype(np.float32) / 255)
    radiograph = write_dicom(RAMP8.astype(np.uint16), name="b.png", BitsStored=8)
    np.testing.assert_allclose(read_image(radiograph), RAMP8 / 255, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_gray_saved_as_colour_is_the_same_gray(tmp_path: Path, mode: str) -> None:
    path = saved(RAMP8, tmp_path / "a.png", mode)
    np.testing.assert_allclose(read_image(path), RAMP8 / 255, atol=1.01 / 255)


def test_colour_becomes_luminance(tmp_path: Path) -> None:
    colour = np.zeros((1, 3, 3), np.uint8)
    colour[0] = 255 * np.eye(3, dtype=np.uint8)
    np.testing.assert_allclose(
        read_image(saved(colour, tmp_path / "a.png")), [[0.299, 0.587, 0.114]], atol=0.5 / 255 + 1e-6
    )


def test_jpeg_is_close_and_its_exif_rotation_applied(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(48), np.arange(80)).astype(np.uint8)
    path = saved(smooth, tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(read_image(path), smooth / 255, atol=3 / 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned right by a quarter
    path = saved(smooth, tmp_path / "b.jpg", quality=95, exif=exif)
    np.testing.assert_allclose(read_image(path), np.rot90(smooth, -1) / 255, atol=3 / 255)


def code_of(path: Path) -> str:
    with pytest.raises(Unreadable) as error:
        read_image(path)
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)
    return error.value.code


def test_damaged_and_foreign_files_give_a_reason(tmp_path: Path) -> None:
    whole = saved(RAMP8, tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "head.png").write_bytes(whole[:20])
    (tmp_path / "text.png").write_text("no picture at all " * 20)
    (tmp_path / "a.bmp").write_bytes(b"BM" + bytes(300))
    assert code_of(tmp_path / "cut.png") == "corrupt"
    assert code_of(tmp_path / "head.png") == "corrupt"
    assert code_of(tmp_path / "text.png") == "not_dicom"
    assert code_of(tmp_path / "a.bmp") == "not_dicom"
    assert code_of(tmp_path / "none.png") == "missing"


def test_a_png_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    (tmp_path / "bomb.png").write_bytes(bomb)
    assert code_of(tmp_path / "bomb.png") == "too_large"


def test_the_reason_survives_a_trip_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(Unreadable("corrupt", "a.png: damaged")))
    assert (error.code, str(error)) == ("corrupt", "a.png: damaged")
