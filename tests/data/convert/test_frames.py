"""Every frame of a multi-frame image, against the array it was written from; the first alone by default."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from medlt.data.convert import ConversionSettings
from medlt.data.convert import source as sources
from medlt.data.convert.one import frame_uid
from medlt.data.deidentify import Profile
from medlt.types import InputError

Film, Stream, Run, Tree = Callable[..., bytes], Callable[..., bytes], Callable[..., Any], Callable[..., Any]
FULL = {"WindowCenter": 2048, "WindowWidth": 4096}
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
CINE = np.stack([np.roll(RAMP, 1000 * at) for at in range(5)])


def cine(film: Film, stream: Stream, kind: str) -> bytes:
    """CINE as one file."""
    tags = {"NumberOfFrames": 5, **FULL}
    if kind == "native":
        return film(RAMP, PixelData=CINE.tobytes(), **tags)
    syntax = {"rle": uid.RLELossless, "JPEG 2000": uid.JPEG2000Lossless}.get(kind, uid.JPEGLSLossless)
    streams = [stream(one, syntax) for one in CINE]
    if kind == "offsets":
        return film(RAMP, syntax, PixelData=streams, **tags)
    pixels = encapsulate(streams, has_bot=False, fragments_per_frame=2 if kind == "fragments" else 1)
    return film(RAMP, syntax, PixelData=pixels, **tags)


def frames(result: Any) -> list[dict[str, Any]]:
    """The manifest's rows, as they are ordered there."""
    import pandas as pd

    rows = pd.read_parquet(result.release / "manifest.parquet").reset_index().to_dict("records")
    return rows


def picture(result: Any, row: dict[str, Any]) -> np.ndarray:
    from PIL import Image

    with Image.open(result.out / row["path"]) as image:
        return np.asarray(image)


@pytest.mark.parametrize("kind", ["native", "rle", "JPEG 2000", "offsets", "no offsets", "fragments"])
def test_every_frame_becomes_an_image(film: Film, stream: Stream, run: Run, tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/cine").write_bytes(cine(film, stream, kind))
    first = run(tmp_path / "in", tmp_path / "first")
    result = run(tmp_path / "in", tmp_path / "out", frames="all")
    rows = frames(result)
    assert [row["frame"] for row in rows] == [1, 2, 3, 4, 5]
    assert {row["frames"] for row in rows} == {5}
    for row, one in zip(rows, CINE, strict=True):
        np.testing.assert_allclose(picture(result, row), one / 4095 * 255, atol=0.51)
    assert len({row["uid"] for row in rows}) == 5
    assert [row["notes"] for row in rows] == ["first of 5 frames", *(f"frame {at} of 5" for at in (2, 3, 4, 5))]
    assert result.counts["converted"] == 5
    only = frames(first)
    assert [(row["uid"], row["frame"], row["sha256_out"]) for row in only] == [
        (rows[0]["uid"], 1, rows[0]["sha256_out"])
    ]


def test_the_uid_of_a_frame_is_that_of_its_image_and_number() -> None:
    made = [frame_uid(image, number) for image in ("a" * 24, "b" * 24) for number in (1, 2, 3)]
    assert len(set(made)) == 6
    assert (made[0], made[3]) == ("a" * 24, "b" * 24)
    assert all(len(one) == 24 and set(one) <= set("0123456789abcdef") for one in made)


def test_each_frame_has_its_own_window(film: Film, run: Run, tmp_path: Path) -> None:
    """PS3.3 C.7.6.16.2.10: a window in the functional group of each frame; the second has centre 1000, width 2000."""
    groups = []
    for centre, width in ((2048, 4096), (1000, 2000)):
        item, window = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = centre, width
        item.FrameVOILUTSequence = [window]
        groups.append(item)
    pixels = np.stack([RAMP, RAMP]).tobytes()
    raw = film(RAMP, NumberOfFrames=2, PixelData=pixels, PerFrameFunctionalGroupsSequence=groups)
    (tmp_path / "cine").write_bytes(raw)
    result = run(tmp_path / "cine", tmp_path / "out", frames="all")
    one, two = (picture(result, row) for row in frames(result))
    np.testing.assert_allclose(one, RAMP / 4095 * 255, atol=0.51)
    np.testing.assert_allclose(two, np.clip(RAMP / 1999 * 255, 0, 255), atol=0.51)  # C.11.2.1.2.1
    assert len({row["window"] for row in frames(result)}) == 2


def test_a_bad_frame_fails_its_file_and_leaves_no_image(film: Film, stream: Stream, run: Run, tmp_path: Path) -> None:
    streams = [stream(one, uid.JPEGLSLossless) for one in CINE]
    streams[3] = streams[3][:100]
    (tmp_path / "cine").write_bytes(film(RAMP, uid.JPEGLSLossless, PixelData=streams, NumberOfFrames=5))
    result = run(tmp_path / "cine", tmp_path / "out", frames="all")
    assert set(result.reasons.values()) <= {"truncated", "corrupt"}
    assert (result.counts["converted"], list((tmp_path / "out/images").iterdir())) == (0, [])
    assert run(tmp_path / "cine", tmp_path / "first").counts["converted"] == 1


def test_a_run_with_all_frames_resumes(film: Film, stream: Stream, run: Run, tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/cine").write_bytes(cine(film, stream, "native"))
    (tmp_path / "in/film").write_bytes(film(RAMP.T.copy(), **FULL))
    (tmp_path / "in/again").write_bytes(cine(film, stream, "native").replace(b"CHEST ", b"THORAX"))
    result = run(tmp_path / "in", tmp_path / "out", frames="all", workers=2)
    assert result.counts["converted"] == 11
    whole = tree(tmp_path / "out")
    gone = sorted((tmp_path / "out/images").rglob("*.png"))[4]
    gone.unlink()
    run(tmp_path / "in", tmp_path / "out", frames="all")
    assert tree(tmp_path / "out") == whole
    with pytest.raises(InputError, match="frames 'all', now 'first'"):
        run(tmp_path / "in", tmp_path / "out")


def test_duplicates_are_files_and_pixels_and_not_frames_of_one_file(film: Film, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    raw = film(RAMP, NumberOfFrames=3, PixelData=CINE[:3].tobytes(), SOPInstanceUID="1.2.3", **FULL)
    (tmp_path / "in/a").write_bytes(raw)
    (tmp_path / "in/b").write_bytes(raw)
    (tmp_path / "in/c").write_bytes(film(CINE[2], SOPInstanceUID="1.2.4", **FULL))
    result = run(tmp_path / "in", tmp_path / "out", frames="all")
    assert result.reasons == {"b": "duplicate"}
    assert {(name, what) for name, _, what in result.duplicates} == {("b", "file"), ("c", "pixels")}
    assert result.counts["converted"] == 4


def test_frames_of_de_identified_files_stay_in_quarantine(film: Film, stream: Stream, run: Run, tmp_path: Path) -> None:
    (tmp_path / "cine").write_bytes(cine(film, stream, "native"))
    result = run(tmp_path / "cine", tmp_path / "out", frames="all", profile=Profile.parse("basic"), key=b"k" * 32)
    assert result.reasons == {"cine": "quarantined"}
    assert list((tmp_path / "out/release/images").iterdir()) == []


def test_a_file_of_too_many_frames_is_refused(film: Film, tmp_path: Path) -> None:
    raw = film(np.zeros((1, 1), np.uint8), NumberOfFrames=10_001, PixelData=bytes(10_002))
    with pytest.raises(InputError, match="10001 frames exceed") as error:
        list(sources.open_source(raw).frames(raw))
    assert error.value.code == "too_large"  # type: ignore[attr-defined]


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(InputError, match="--frames al: unknown; did you mean 'all'"):
        ConversionSettings(frames="al")
