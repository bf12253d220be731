"""What a folder really holds, and the right answer: every row is a file in one folder that is converted once."""

import os
import stat
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from medlt.data.deidentify import Profile

Film, Stream, Run = Callable[..., bytes], Callable[[np.ndarray, str], bytes], Callable[..., Any]
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
SMALL = (RAMP >> 4).astype(np.uint8)
RGB = np.stack([SMALL, SMALL[::-1], SMALL.T], axis=-1)
FULL = {"WindowCenter": 2048, "WindowWidth": 4096}
COLOUR = {"SamplesPerPixel": 3, "BitsStored": 8, "Rows": 64, "Columns": 64}
SHOWN = np.rint(RAMP / 4095 * 255)


def _meta_end(whole: bytes) -> int:
    return 144 + int(struct.unpack("<I", whole[140:144])[0])


def _bare(whole: bytes) -> bytes:
    """Without preamble and file meta: the data set alone."""
    return whole[_meta_end(whole) :]


def _without_syntax(whole: bytes) -> bytes:
    data = dcmread(BytesIO(whole))
    del data.file_meta.TransferSyntaxUID
    buffer = BytesIO()
    data.save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=False)
    return buffer.getvalue()


def _palette(film: Film) -> bytes:
    """Entry i is (i, 255 - i, 0), 8 bits."""
    table = np.arange(256, dtype=np.uint8)
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR", "BitsStored": 8}
    for name, entries in (("Red", table), ("Green", table[::-1]), ("Blue", table * 0)):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        tags[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    return film(SMALL, **tags)


def _zip(film: Film) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("film.dcm", film())
    return buffer.getvalue()


def _object(film: Film, **tags: Any) -> bytes:
    nothing = dict.fromkeys(("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"))
    return film(**{**nothing, "SamplesPerPixel": None, "PhotometricInterpretation": None, "PixelData": None, **tags})


def _cut_stream(film: Film, stream: Stream, syntax: str, share: float) -> bytes:
    """A frame that lacks its end, in an encapsulation that is whole."""
    pixels = SMALL if syntax == uid.JPEGBaseline8Bit else RAMP
    frame = stream(pixels, syntax)
    return film(pixels, syntax, PixelData=[frame[: int(len(frame) * share)]])


CUT = {
    "JPEG baseline": uid.JPEGBaseline8Bit,
    "JPEG extended": uid.JPEGExtended12Bit,
    "JPEG lossless": uid.JPEGLossless,
    "JPEG lossless SV1": uid.JPEGLosslessSV1,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG 2000": uid.JPEG2000Lossless,
    "HTJ2K": uid.HTJ2KLossless,
    "RLE": uid.RLELossless,
}

CONVERTED: dict[str, tuple[str, str, Callable[[Film, Stream], bytes]]] = {
    # row: (file name, a note it must carry or "", its bytes)
    "no extension": ("film", "", lambda f, s: f(**FULL)),
    "extension .ima": ("film.ima", "", lambda f, s: f(**FULL)),
    "the name I000001": ("I000001", "", lambda f, s: f(**FULL)),
    "a wrong extension": ("film.txt", "", lambda f, s: f(**FULL)),
    "no preamble, no file meta": ("bare", "no preamble", lambda f, s: _bare(f(**FULL))),
    "no preamble": ("bare_meta", "no preamble", lambda f, s: f(**FULL)[132:]),
    "no TransferSyntaxUID": ("no_syntax", "no transfer syntax", lambda f, s: _without_syntax(f(**FULL))),
    "3 frames": (
        "frames3",
        "first of 3 frames",
        lambda f, s: f(PixelData=RAMP.tobytes() * 3, NumberOfFrames=3, **FULL),
    ),
    "frame count 0": ("frames0", "no frame count", lambda f, s: f(NumberOfFrames=0, **FULL)),
    "frame count 3, one compressed frame": (
        "frames_of_j2k",
        "first of 3 frames",
        lambda f, s: f(RAMP, uid.JPEG2000Lossless, PixelData=[s(RAMP, uid.JPEG2000Lossless)], NumberOfFrames=3, **FULL),
    ),
    "a UID with ../": ("escape", "", lambda f, s: f(SOPInstanceUID="../../../escape", PatientID="../x", **FULL)),
    "an executable preamble": ("preamble", "", lambda f, s: b"MZ" + b"\x90" * 126 + f(**FULL)[128:]),
    "a unicode name": ("Müller-レントゲン.dcm", "", lambda f, s: f(**FULL)),
    "a newline in the name": ("a\nb,\"c'.dcm", "", lambda f, s: f(**FULL)),
    "a name of 255 bytes": ("x" * 255, "", lambda f, s: f(**FULL)),
    "a name that is not UTF-8": (os.fsdecode(b"R\xf6ntgen.dcm"), "", lambda f, s: f(**FULL)),
    "a modality that is no film": ("ct", "modality CT", lambda f, s: f(Modality="CT", **FULL)),
    **{
        f"{name}, whole": (
            f"whole_{name}",
            "",
            lambda f, s, syntax=syntax: f(RAMP, syntax, PixelData=[s(RAMP, syntax)], **FULL),
        )
        for name, syntax in CUT.items()
        if syntax not in (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)
    },
}

REFUSED: dict[str, tuple[str, set[str], Callable[[Film, Stream], bytes]]] = {
    # row: (file name, the reasons that are right, its bytes)
    "DICOMDIR": (
        "DICOMDIR",
        {"not_an_image"},
        lambda f, s: _object(f, Modality=None, DirectoryRecordSequence=[Dataset()]),
    ),
    "SR": ("sr", {"not_an_image"}, lambda f, s: _object(f, Modality="SR")),
    "KO": ("ko", {"not_an_image"}, lambda f, s: _object(f, Modality="KO")),
    "PR": ("pr", {"not_an_image"}, lambda f, s: _object(f, Modality="PR")),
    "RT plan": ("rtplan", {"not_an_image"}, lambda f, s: _object(f, Modality="RTPLAN")),
    "RT structure set": ("rtstruct", {"not_an_image"}, lambda f, s: _object(f, Modality="RTSTRUCT")),
    "RT dose with pixels": ("rtdose", {"not_an_image"}, lambda f, s: f(Modality="RTDOSE")),
    "PDF in DICOM": (
        "doc",
        {"not_an_image"},
        lambda f, s: _object(f, Modality="DOC", EncapsulatedDocument=b"%PDF-1.4"),
    ),
    "PDF": ("report.pdf", {"document"}, lambda f, s: b"%PDF-1.4\n%%EOF"),
    "an archive": ("films.7z", {"archive"}, lambda f, s: b"7z\xbc\xaf\x27\x1c" + bytes(99)),
    "a zip without its name": ("films.zip.part", {"archive"}, lambda f, s: _zip(f)),
    "a damaged zip": ("films.zip", {"corrupt"}, lambda f, s: _zip(f)[:-30]),
    "text": ("readme.txt", {"not_dicom"}, lambda f, s: b"These are films.\n" * 40),
    "an empty file": ("zero", {"empty"}, lambda f, s: b""),
    "no PixelData": ("nopixels", {"no_pixels"}, lambda f, s: f(PixelData=None)),
    "truncated, native": ("cut_native", {"truncated"}, lambda f, s: f()[:-100]),
    "truncated inside the header": ("cut_header", {"truncated", "no_pixels", "corrupt"}, lambda f, s: f()[:420]),
    "truncated, encapsulated": (
        "cut_file",
        {"truncated"},
        lambda f, s: f(RAMP, uid.JPEGLSLossless, PixelData=[s(RAMP, uid.JPEGLSLossless)])[:-60],
    ),
    "frame count 3, one frame of native data": ("frames_missing", {"truncated"}, lambda f, s: f(NumberOfFrames=3)),
    "no decoder (MPEG-2)": ("video", {"codec_missing"}, lambda f, s: f(RAMP, uid.MPEG2MPML, PixelData=[b"\0\0\1\xb3"])),
    "no decoder (private)": ("private", {"codec_missing"}, lambda f, s: f(RAMP, "1.2.3.4.5", PixelData=[b"1234"])),
    "giant rows x columns": ("giant", {"too_large"}, lambda f, s: f(Rows=60000, Columns=60000)),
    "giant frames": ("giant_frames", {"too_large"}, lambda f, s: f(NumberOfFrames=2**31 - 1)),
    "a stream of another size": (
        "other_size",
        {"corrupt"},
        lambda f, s: f(RAMP, uid.JPEG2000Lossless, PixelData=[s(np.tile(RAMP, (8, 8)), uid.JPEG2000Lossless)]),
    ),
    "compressed, but no transfer syntax": (
        "compressed_bare",
        {"corrupt"},
        lambda f, s: _bare(f(RAMP, uid.JPEGLSLossless, PixelData=[s(RAMP, uid.JPEGLSLossless)])),
    ),
    **{
        f"{name}, its stream cut to {share:.0%}": (
            f"cut_{name}_{share}",
            {"truncated", "corrupt"},
            lambda f, s, syntax=syntax, share=share: _cut_stream(f, s, syntax, share),
        )
        for name, syntax in CUT.items()
        for share in (0.3, 0.6, 0.95)
    },
}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory, film: Film, stream: Stream, run: Run) -> Any:
    """All rows in one folder, converted once; each is a film of its own PatientAge, so none is a duplicate file."""
    source, out = tmp_path_factory.mktemp("hospital") / "in", tmp_path_factory.mktemp("hospital_out") / "out"
    source.mkdir()
    for table in (CONVERTED, REFUSED):
        for name, _, build in table.values():
            (source / name).write_bytes(build(film, stream))
    (source / "link").symlink_to(source / "film")
    (source / "link_to_folder").symlink_to(source.parent)
    (source / "loop").symlink_to(source / "loop")
    (source / "below").mkdir()
    (source / "below" / "up").symlink_to(source)
    os.mkfifo(source / "pipe")
    return run(source, out, workers=2)


@pytest.mark.parametrize("row", CONVERTED)
def test_is_converted(hospital: Any, row: str) -> None:
    name, note, _ = CONVERTED[row]
    assert name in hospital.rows, hospital.reasons.get(name)
    np.testing.assert_allclose(hospital.pixels(name), SHOWN, atol=0.51)
    assert note in hospital.rows[name]["notes"]
    if not note:
        assert hospital.rows[name]["notes"] == ""


@pytest.mark.parametrize("row", REFUSED)
def test_is_refused_with_its_reason(hospital: Any, row: str) -> None:
    name, reasons, _ = REFUSED[row]
    assert name not in hospital.rows
    assert hospital.reasons[name] in reasons


@pytest.mark.parametrize("name", ["link", "link_to_folder", "loop", "below/up", "pipe"])
def test_links_and_pipes_are_not_followed(hospital: Any, name: str) -> None:
    assert hospital.reasons[name] == "symlink"


def test_every_file_is_accounted_for_once(hospital: Any) -> None:
    assert len(hospital.rows) == hospital.counts["converted"] == len(CONVERTED)
    assert len(hospital.reasons) == hospital.counts["skipped"] + hospital.counts["failed"] == len(REFUSED) + 5
    assert not set(hospital.rows) & set(hospital.reasons)


def test_no_tag_and_no_source_name_becomes_a_path(hospital: Any) -> None:
    assert {p.name for p in hospital.release.parent.iterdir()} == {"out"}
    made = {p.name for p in hospital.release.rglob("*") if p.is_file()}
    images = {Path(row["path"]).name for row in hospital.rows.values()}
    tables = {f"{name}.csv" for name in ("failures", "duplicates", "objects", "sources")}
    tables |= {"manifest.parquet", "settings.json", "files.jsonl"}
    assert made == images | tables
    assert all(len(Path(name).stem) == 24 and int(Path(name).stem, 16) >= 0 for name in images)


@pytest.mark.parametrize(
    ("claimed", "tags"),
    [("1", {"NumberOfFrames": 1}), ("no", {})],
    ids=["frame count 1, three frames of data", "no frame count, three frames of data"],
)
def test_more_frames_than_the_header_says_are_marked(
    film: Film, run: Run, tmp_path: Path, claimed: str, tags: dict[str, Any]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").write_bytes(film(PixelData=RAMP.tobytes() * 3, **tags, **FULL))
    result = run(tmp_path / "in", tmp_path / "out")
    assert result.reasons or result.rows["a"]["notes"] != ""


@pytest.mark.slow
def test_a_real_deflate_bomb_is_refused(
    deflated: Callable[..., bytes], bomb: Callable[[int], bytes], run: Run, tmp_path: Path
) -> None:
    """1,100 MiB behind one; the ratio is that of deflate at its best, about 1,000 to 1."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bomb").write_bytes(deflated(bomb(1100)))
    result = run(tmp_path / "in", tmp_path / "out", memory_mb=3072)
    assert result.reasons == {"bomb": "too_large"}


def test_duplicates_are_reported(film: Film, run: Run, tmp_path: Path) -> None:
    """a and b: the same file. c: the same instance UID, other pixels. d: the same pixels, another UID. e: neither."""
    one, other = film(SOPInstanceUID="1.2.3", **FULL), RAMP[::-1].copy()
    files = {
        "a": one,
        "b": one,
        "c": film(other, SOPInstanceUID="1.2.3", **FULL),
        "d": film(SOPInstanceUID="1.2.4", **FULL),
        "e": film(RAMP.T.copy(), SOPInstanceUID="1.2.5", **FULL),
    }
    (tmp_path / "in").mkdir()
    for name, raw in files.items():
        (tmp_path / "in" / name).write_bytes(raw)
    result = run(tmp_path / "in", tmp_path / "out")
    first = result.rows["a"]["uid"]
    assert sorted(result.duplicates) == [("b", first, "file"), ("c", first, "sop_uid"), ("d", first, "pixels")]
    assert sorted(result.rows) == ["a", "c", "d", "e"]
    assert result.reasons == {"b": "duplicate"}
    assert result.counts["duplicates"] == {"file": 1, "pixels": 1, "sop_uid": 1}


def test_names_in_paths_reach_the_owner_only(
    film: Film, run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of good and bad files alike; in no table, no file name, nothing printed but in sources.csv and .convert/."""
    place = tmp_path / "in" / "DOE^JANE 19600101"
    place.mkdir(parents=True)
    for name, raw in {
        "good": film(**FULL),
        "cut": film()[:-100],
        "text": b"DOE^JANE" * 99,
        "flip": film()[:600],
    }.items():
        (place / f"doe_{name}").write_bytes(raw)
    (place / "doe_link").symlink_to(place)
    result = run(tmp_path / "in", tmp_path / "out")
    assert len(result.rows) == 1
    printed = "".join(capfd.readouterr())
    assert "doe" not in printed.lower()
    private = {"sources.csv", ".convert"}
    for path in (tmp_path / "out").rglob("*"):
        assert "doe" not in path.name.lower()
        if path.is_file() and not private & {path.name, *path.relative_to(tmp_path / "out").parts}:
            assert b"doe" not in path.read_bytes().lower(), path.name
    assert b"DOE^JANE" in (tmp_path / "out/sources.csv").read_bytes()


def test_what_names_sources_is_readable_by_its_owner_only(film: Film, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").write_bytes(film())
    run(tmp_path / "in", tmp_path / "out")
    modes = {name: stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) for name in ("sources.csv", ".convert")}
    assert modes == {"sources.csv": 0o600, ".convert": 0o700}
    assert stat.S_IMODE((tmp_path / "out/.convert/files.jsonl").stat().st_mode) == 0o600


def test_input_is_never_written_to(film: Film, run: Run, tmp_path: Path) -> None:
    """A read-only folder is enough, and nothing in it changes."""
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    for name in ("a", "deep/b"):
        (source / name).write_bytes(film(SOPInstanceUID=f"1.{len(name)}"))
    (source / "bad").write_bytes(film()[:-9])
    for path in (*source.rglob("*"), source):
        path.chmod(0o555 if path.is_dir() else 0o444)

    def state() -> list[tuple[str, int, int, int]]:
        states = [(str(p), p.lstat()) for p in (source, *sorted(source.rglob("*")))]
        return [(name, s.st_mode, s.st_size, s.st_mtime_ns) for name, s in states]

    before = state()
    assert run(source, tmp_path / "out").counts["converted"] == 2
    assert state() == before
    for path in (source, source / "deep"):
        path.chmod(0o755)


def test_a_flat_image_is_kept_and_flat(film: Film, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/flat").write_bytes(film(np.full((8, 9), 7, np.uint16)))
    result = run(tmp_path / "in", tmp_path / "out")
    assert result.pixels("flat").shape == (8, 9)
    assert np.ptp(result.pixels("flat")) == 0


def test_signed_sixteen_bits(film: Film, run: Run, tmp_path: Path) -> None:
    """-32768..32767 under a window of the full range: x -> (x + 32768) / 65535."""
    values = np.linspace(-32768, 32767, 4096).astype(np.int16).reshape(64, 64)
    window = {"WindowCenter": 0, "WindowWidth": 65536}
    (tmp_path / "in").mkdir()
    (tmp_path / "in/signed").write_bytes(film(values, BitsStored=16, **window))
    shown = run(tmp_path / "in", tmp_path / "out").pixels("signed")
    np.testing.assert_allclose(shown, (values.astype(float) + 32768) / 65535 * 255, atol=0.51)


def _ybr(rgb: np.ndarray) -> np.ndarray:
    """PS3.3 C.7.6.3.1.2, YBR_FULL."""
    r, g, b = (rgb[..., i].astype(float) for i in range(3))
    planes = (
        0.299 * r + 0.587 * g + 0.114 * b,
        -0.168736 * r - 0.331264 * g + 0.5 * b + 128,
        0.5 * r - 0.418688 * g - 0.081312 * b + 128,
    )
    return np.clip(np.rint(np.stack(planes, -1)), 0, 255).astype(np.uint8)


def test_colours_become_their_luminance(film: Film, run: Run, tmp_path: Path) -> None:
    rgb = {**COLOUR, "PhotometricInterpretation": "RGB"}
    files = {
        "planar 0": film(RGB, PlanarConfiguration=0, **rgb),
        "planar 1": film(RGB, PlanarConfiguration=1, PixelData=RGB.transpose(2, 0, 1).tobytes(), **rgb),
        "ybr": film(_ybr(RGB), PlanarConfiguration=0, **{**COLOUR, "PhotometricInterpretation": "YBR_FULL"}),
        "palette": _palette(film),
    }
    (tmp_path / "in").mkdir()
    for name, raw in files.items():
        (tmp_path / "in" / name).write_bytes(raw)
    result = run(tmp_path / "in", tmp_path / "out")
    expected = RGB @ np.array([0.299, 0.587, 0.114])
    for name, slack in {"planar 0": 0.51, "planar 1": 0.51, "ybr": 2.0}.items():
        np.testing.assert_allclose(result.pixels(name), expected, atol=slack)
    np.testing.assert_allclose(result.pixels("palette"), 0.299 * SMALL + 0.587 * (255 - SMALL.astype(float)), atol=0.51)
    assert all("colour" in row["notes"] for row in result.rows.values())


def test_grayscale_recipes_refuse_colour(film: Film, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/rgb").write_bytes(film(RGB, PlanarConfiguration=0, PhotometricInterpretation="RGB", **COLOUR))
    assert run(tmp_path / "in", tmp_path / "out", preset="mimic-cxr-jpg").reasons == {"rgb": "colour"}


def test_lateral_views_are_kept_and_labelled(film: Film, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for view in ("PA", "LL", "RL", "LATERAL", None):
        (tmp_path / "in" / f"v{view}").write_bytes(film(ViewPosition=view))
    rows = run(tmp_path / "in", tmp_path / "out").rows
    assert {name: row["view"] for name, row in rows.items()} == {
        "vPA": "PA",
        "vLL": "LL",
        "vRL": "RL",
        "vLATERAL": "LATERAL",
        "vNone": "",
    }


def test_the_preamble_of_de_identified_files_is_zero(film: Film, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/film").write_bytes(b"MZ" + b"\x90" * 126 + film(**FULL)[128:])
    run(tmp_path / "in", tmp_path / "out", profile=Profile.parse("basic"), key=b"k" * 32)
    made = [*(tmp_path / "out/release/dicom").iterdir(), *(tmp_path / "out/private/quarantine").iterdir()]
    assert [path.read_bytes()[:132] for path in made] == [bytes(128) + b"DICM"]


def test_a_stream_may_be_cut_into_fragments(film: Film, stream: Stream, run: Run, tmp_path: Path) -> None:
    """One frame in four fragments and no frame count is still one frame."""
    frame = stream(RAMP, uid.JPEGLSLossless)
    (tmp_path / "in").mkdir()
    pixels = encapsulate([frame], fragments_per_frame=4)
    (tmp_path / "in/a").write_bytes(film(RAMP, uid.JPEGLSLossless, PixelData=pixels, **FULL))
    np.testing.assert_allclose(run(tmp_path / "in", tmp_path / "out").pixels("a"), SHOWN, atol=0.51)
