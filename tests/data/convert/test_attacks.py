"""Files and folders made to break a converter: each ends in an image or a reason, and the run goes on."""

import gzip
import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image, PngImagePlugin
from pydicom import uid
from pydicom.dataelem import RawDataElement

from medlt.data.convert import ConversionSettings, convert
from medlt.data.convert.one import convert_one
from medlt.data.convert.reasons import HINTS
from medlt.data.convert.scan import scan
from medlt.data.dicom import Unreadable, bombs
from medlt.data.dicom.guard import open_bytes
from medlt.data.images import read_picture
from medlt.types import InputError

Film, Run, Tree = Callable[..., bytes], Callable[..., Any], Callable[[Path], dict[str, bytes]]
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
FULL = {"WindowCenter": 2048, "WindowWidth": 4096}
SHOWN = np.rint(RAMP / 4095 * 255)
KNOWN = set(HINTS)


def folder(place: Path, files: dict[str, bytes]) -> Path:
    place.mkdir()
    for name, raw in files.items():
        (place / name).write_bytes(raw)
    return place


# inside a file


def with_element(whole: bytes, tag: int, element: bytes) -> bytes:
    """An explicit little-endian file with this element in place of, or inserted for, the one of that tag."""
    data = pydicom.dcmread(BytesIO(whole))
    places = []
    for at, raw in data._dict.items():
        assert isinstance(raw, RawDataElement)
        assert raw.value_tell is not None
        head = 12 if raw.VR in ("OB", "OW", "SQ", "UN", "UT", "OF", "OD") else 8
        places.append((int(at), raw.value_tell - head, raw.value_tell + raw.length))
    for at, start, end in sorted(places):
        if at >= tag:
            return whole[:start] + element + whole[end if at == tag else start :]
    return whole + element


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    if vr in (b"OB", b"UN", b"UT", b"SQ"):
        return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def nested(depth: int, defined: bool) -> bytes:
    """A sequence in a sequence in a sequence: (0008,1140), explicit VR."""
    body = b""
    for _ in range(depth):
        if defined:
            body = struct.pack("<HHI", 0xFFFE, 0xE000, len(body)) + body
            body = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, len(body)) + body
    if not defined:
        opened = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 2**32 - 1) + struct.pack(
            "<HHI", 0xFFFE, 0xE000, 2**32 - 1
        )
        closed = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        body = opened * depth + closed * depth
    return body


def test_sequences_10000_deep(film: Film, run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = film(**FULL)
    files = {f"defined {d}": with_element(whole, 0x00081140, nested(10_000, d)) for d in (True, False)}
    files["cut"] = files["defined False"][:90_000]
    result = run(folder(tmp_path / "in", files), tmp_path / "out")
    for name in files:
        assert name in result.rows or result.reasons[name] in ("corrupt", "truncated")
        if name in result.rows:
            np.testing.assert_allclose(result.pixels(name), SHOWN, atol=0.51)
    assert "cut" not in result.rows
    assert capfd.readouterr().err == ""


READ = {
    0x00080016: "SOPClassUID",
    0x00080018: "SOPInstanceUID",
    0x00080050: "AccessionNumber",
    0x00080060: "Modality",
    0x00080068: "PresentationIntentType",
    0x00080070: "Manufacturer",
    0x00081032: "ProcedureCodeSequence",
    0x00082218: "AnatomicRegionSequence",
    0x00100020: "PatientID",
    0x00100040: "PatientSex",
    0x00101010: "PatientAge",
    0x00180015: "BodyPartExamined",
    0x00181164: "ImagerPixelSpacing",
    0x00181600: "ShutterShape",
    0x00185101: "ViewPosition",
    0x0020000D: "StudyInstanceUID",
    0x0020000E: "SeriesInstanceUID",
    0x00200020: "PatientOrientation",
    0x00200060: "Laterality",
    0x00200062: "ImageLaterality",
    0x00280002: "SamplesPerPixel",
    0x00280004: "PhotometricInterpretation",
    0x00280006: "PlanarConfiguration",
    0x00280008: "NumberOfFrames",
    0x00280010: "Rows",
    0x00280011: "Columns",
    0x00280030: "PixelSpacing",
    0x00280034: "PixelAspectRatio",
    0x00280100: "BitsAllocated",
    0x00280101: "BitsStored",
    0x00280102: "HighBit",
    0x00280103: "PixelRepresentation",
    0x00280120: "PixelPaddingValue",
    0x00281050: "WindowCenter",
    0x00281051: "WindowWidth",
    0x00281052: "RescaleIntercept",
    0x00281053: "RescaleSlope",
    0x00281056: "VOILUTFunction",
    0x00283000: "ModalityLUTSequence",
    0x00283010: "VOILUTSequence",
    0x00540220: "ViewCodeSequence",
    0x20500020: "PresentationLUTShape",
    0x52009229: "SharedFunctionalGroupsSequence",
    0x52009230: "PerFrameFunctionalGroupsSequence",
}
HARMLESS = frozenset(
    "AccessionNumber PatientID PatientSex PatientAge ViewPosition Modality PresentationIntentType Manufacturer "
    "ProcedureCodeSequence AnatomicRegionSequence ShutterShape PatientOrientation Laterality ViewCodeSequence "
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence".split()
)
LENIENT = HARMLESS - frozenset(["AccessionNumber", "PatientID", "PatientSex", "PatientAge", "Modality"])
"""Tags whose damage loses no image."""
HOSTILE = {
    "empty": (b"LO", b""),
    "huge text": (b"UT", b"A" * 300_000),
    "many values": (b"LO", b"\\".join([b"1"] * 5000)),
    "backslashes": (b"LO", b"\\" * 64),
    "NULs": (b"LO", b"\0" * 64),
    "control characters": (b"LO", b"\x1b\x07\r\n\t\x1b$B\x00\x7f"),
    "not the character set": (b"LO", bytes(range(128, 256))),
    "formula": (b"LO", b"=cmd|' /C calc'!A0"),
    "path": (b"LO", b"../../../../tmp/x\0"),
    "huge number": (b"IS", b"9" * 40),
    "minus": (b"IS", b"-1"),
    "not a number": (b"DS", b"nan "),
    "infinite": (b"DS", b"1e999\\-1e999 "),
    "float": (b"FD", struct.pack("<d", float("nan"))),
    "float of wrong length": (b"FD", b"\0\0"),
    "short": (b"US", b"\xff\xff"),
    "shorts": (b"US", b"\xff\xff" * 9),
    "tag": (b"AT", b"\x10\0\x20\0"),
    "bytes": (b"OB", b"\xff" * 64),
    "unknown": (b"UN", b"\0\1\2\3"),
    "no such VR": (b"ZZ", b"12"),
    "no VR": (b"\0\0", b"12"),
    "person": (b"PN", b"A^B=C=D=E "),
    "date": (b"DA", b"31122020"),
    "sequence of nothing": (b"SQ", b"\xfe\xff\x00\xe0\0\0\0\0"),
    "sequence of noise": (b"SQ", b"\1\2\3\4\5\6\7\x08"),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, film: Film) -> Path:
    """Every tag that is read, with every hostile value: one file each."""
    place, whole = tmp_path_factory.mktemp("hostile") / "in", film(**FULL)
    return folder(
        place,
        {
            f"{name} {what}": with_element(whole, tag, element(tag, vr, value))
            for tag, name in READ.items()
            for what, (vr, value) in HOSTILE.items()
        },
    )


def test_hostile_values_in_every_tag_that_is_read(
    hostile: Path, run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """All are accounted for, no worker dies, nothing is printed, the tables load, and texts change no pixel."""
    result = run(hostile, tmp_path / "out")
    assert len(result.rows) + len(result.reasons) == len(READ) * len(HOSTILE)
    assert set(result.reasons.values()) <= KNOWN - {"crashed", "timeout", "write_failed", "out_of_memory"}
    assert capfd.readouterr().err == ""
    for name, row in result.rows.items():
        assert row["path"] == f"images/{row['uid']}.png"
        if name.split()[0] in HARMLESS:
            np.testing.assert_allclose(result.pixels(name), SHOWN, atol=0.51)
    assert len(result.rows) > 100
    lost = {name: reason for name, reason in result.reasons.items() if name.split()[0] in LENIENT}
    assert lost == {}


def test_hostile_values_in_a_dry_run_and_under_filters(hostile: Path, tmp_path: Path) -> None:
    result = convert(
        hostile,
        tmp_path / "out",
        ConversionSettings(dry_run=True, modalities=("DX",), body_parts=("CHEST",)),
        workers=1,
    )
    assert result["converted"] + result["skipped"] + result["failed"] == len(READ) * len(HOSTILE)
    assert set(result["reasons"]) <= KNOWN - {"crashed", "timeout"}


@pytest.mark.parametrize("preset", ["mimic-cxr-jpg", "chexpert", "linear16"])
@pytest.mark.slow
def test_hostile_values_under_every_preset(hostile: Path, run: Run, tmp_path: Path, preset: str) -> None:
    result = run(hostile, tmp_path / "out", preset=preset, format="nifti", size=32)
    assert len(result.rows) + len(result.reasons) == len(READ) * len(HOSTILE)
    assert set(result.reasons.values()) <= KNOWN - {"crashed", "timeout", "write_failed"}


def test_numbers_beyond_64_bits_do_not_end_the_run_at_its_tables(film: Film, run: Run, tmp_path: Path) -> None:
    """Float pixels need no BitsStored, so nothing but the table meets it."""
    floats = film(np.zeros((4, 4), np.uint32), PixelData=None, FloatPixelData=np.arange(16, dtype="<f4").tobytes())
    files = {"big": with_element(floats, 0x00280101, element(0x00280101, b"IS", b"9" * 40)), "good": film(**FULL)}
    result = run(folder(tmp_path / "in", files), tmp_path / "out")
    assert "good" in result.rows
    assert set(result.rows) | set(result.reasons) == set(files)


@pytest.mark.slow
def test_a_patient_id_of_40_megabytes_is_no_row_of_that_size(film: Film, run: Run, tmp_path: Path) -> None:
    raw = with_element(film(**FULL), 0x00100020, element(0x00100020, b"UT", b"A" * 40_000_000))
    result = run(folder(tmp_path / "in", {"long": raw, "good": film(**FULL)}), tmp_path / "out")
    assert "good" in result.rows
    assert len(result.rows.get("long", {}).get("patient_id", "")) <= 1_000_000


DAMAGED = {
    "photometric": {"PhotometricInterpretation": "MONOCHROMF1"},
    "bits stored": {"BitsStored": 10321, "HighBit": 11},
    "bits stored 0": {"BitsStored": 0, "HighBit": 11},
    "sign": {"PixelRepresentation": 5},
    "rows": {"Rows": 61},
    "columns": {"Columns": 65},
}
SYNTAXES = (uid.ExplicitVRLittleEndian, uid.JPEGLossless, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.RLELossless)


def test_a_damaged_tag_of_the_pixels_is_refused_in_every_syntax(
    film: Film, stream: Callable[[np.ndarray, str], bytes], run: Run, tmp_path: Path
) -> None:
    """One wrong byte in one of these and the picture is another one: inverted, cut, or of other levels."""
    files = {}
    for name, tags in DAMAGED.items():
        for syntax in SYNTAXES:
            pixels = RAMP.tobytes() if syntax == uid.ExplicitVRLittleEndian else [stream(RAMP, syntax)]
            files[f"{name}, {uid.UID(syntax).name}"] = film(RAMP, syntax, PixelData=pixels, **{**FULL, **tags})
    result = run(folder(tmp_path / "in", files), tmp_path / "out")
    unmarked = {name for name, row in result.rows.items() if not row["notes"]}
    assert unmarked == set()


def test_an_rle_stream_of_more_rows_than_told_is_marked(
    film: Film, stream: Callable[[np.ndarray, str], bytes], run: Run, tmp_path: Path
) -> None:
    raw = film(RAMP, uid.RLELossless, PixelData=[stream(RAMP, uid.RLELossless)], Rows=61, **FULL)
    result = run(folder(tmp_path / "in", {"long": raw}), tmp_path / "out")
    assert result.reasons or result.rows["long"]["notes"]


# bombs


def without_preamble(whole: bytes) -> bytes:
    return whole[132:]


def lying_length(whole: bytes) -> bytes:
    length = struct.unpack("<I", whole[140:144])[0]
    return whole[:140] + struct.pack("<I", length + 7) + whole[144:]


def no_length(whole: bytes) -> bytes:
    return whole[:132] + whole[144:]


def long_meta(whole: bytes) -> bytes:
    """70,000 bytes of file meta version before the transfer syntax."""
    return whole[:144] + struct.pack("<HH2sHI", 2, 1, b"OB", 0, 70_000) + bytes(70_000) + whole[144:]


def command_set(whole: bytes) -> bytes:
    """A command element between file meta and data set, which a reader steps over."""
    end = 144 + struct.unpack("<I", whole[140:144])[0]
    return whole[:end] + struct.pack("<HHI", 0, 0x0100, 2) + b"\1\0" + whole[end:]


def implicit_meta(whole: bytes) -> bytes:
    """File meta written as implicit VR, which pydicom reads on a second try."""
    syntax = b"1.2.840.10008.1.2.1.99"
    end = 144 + struct.unpack("<I", whole[140:144])[0]
    head = struct.pack("<HHI", 2, 0, 4) + struct.pack("<I", 8 + len(syntax))
    return whole[:132] + head + struct.pack("<HHI", 2, 0x10, len(syntax)) + syntax + whole[end:]


@pytest.mark.parametrize(
    "trick", [bytes, without_preamble, lying_length, no_length, long_meta, command_set, implicit_meta]
)
def test_a_deflate_bomb_is_refused_however_its_file_meta_lies(
    deflated: Callable[..., bytes],
    bomb: Callable[[int], bytes],
    monkeypatch: pytest.MonkeyPatch,
    trick: Callable[[bytes], bytes],
) -> None:
    """With a limit of 4 MiB and 16 MiB behind it, nothing may inflate more than a few MiB at once."""
    monkeypatch.setattr(bombs, "LIMIT_INFLATED_BYTES", 4 << 20)
    inflated: list[int] = []

    def watched(data: bytes, *rest: Any, **named: Any) -> bytes:
        inflated.append(len(out := zlib.decompress(data, *rest, **named)))
        return out

    monkeypatch.setattr(pydicom.filereader, "zlib", type("watched", (), {"decompress": watched, "MAX_WBITS": 15}))
    with pytest.raises(Unreadable):
        open_bytes(trick(deflated(bomb(16))), Path("file"))
    assert inflated == []


def nifti(shape: tuple[int, ...], body: bytes, kind: int = 2, packed: bool = True) -> bytes:
    header = nibabel.Nifti1Header()
    header["sizeof_hdr"], header["magic"], header["vox_offset"] = 348, b"n+1", 352
    header["dim"] = [len(shape), *shape, *[1] * (7 - len(shape))]
    header["datatype"], header["bitpix"], header["pixdim"] = kind, {2: 8, 16: 32}[kind], 1
    raw = header.binaryblock + bytes(4) + body
    return gzip.compress(raw, 1) if packed else raw


def test_nifti_bombs_series_and_damage(run: Run, tmp_path: Path) -> None:
    floats = np.full(12, np.nan, "<f4").tobytes()
    files = {
        "4d": (nifti((4, 4, 4, 5), bytes(320)), {"not_an_image"}),
        "giant": (nifti((32000, 32000, 32000), b""), {"too_large"}),
        "negative": (nifti((-4, 4), b""), {"not_an_image", "corrupt"}),
        "none": (nifti((0, 4), b""), {"not_an_image", "corrupt"}),
        "cut": (nifti((40, 40), bytes(80)), {"corrupt"}),
        "cut gzip": (nifti((40, 40), bytes(1600))[:-12], {"corrupt", "truncated"}),
        "nan": (nifti((3, 4), floats, kind=16), {"corrupt"}),
        "film": (nifti((4, 3), bytes(range(12))), set()),
        "film, not packed": (nifti((4, 3), bytes(range(12)), packed=False), set()),
    }
    result = run(folder(tmp_path / "in", {name: raw for name, (raw, _) in files.items()}), tmp_path / "out")
    for name, (_, reasons) in files.items():
        assert (name in result.rows) if not reasons else (result.reasons.get(name) in reasons), (
            name,
            result.reasons.get(name),
        )


@pytest.mark.slow
def test_a_gzip_bomb_is_refused(run: Run, tmp_path: Path) -> None:
    """A NIfTI header, then 1,200 MiB of zeros in 1.2 MB."""
    head = nifti((4, 3), b"", packed=False)
    deflater = zlib.compressobj(9, zlib.DEFLATED, 31)
    raw = deflater.compress(head) + b"".join(deflater.compress(bytes(1 << 24)) for _ in range(75)) + deflater.flush()
    assert run(folder(tmp_path / "in", {"bomb": raw}), tmp_path / "out").reasons == {"bomb": "too_large"}


def png(columns: int, rows: int, body: bytes) -> bytes:
    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">2I5B", columns, rows, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", body) + part(b"IEND", b"")


def test_png_bombs_and_damage(run: Run, tmp_path: Path) -> None:
    told_text, buffer = PngImagePlugin.PngInfo(), BytesIO()
    told_text.add_text("Comment", "A" * (80 << 20), zip=True)
    Image.fromarray(np.eye(5, dtype=np.uint8)).save(buffer, "PNG", pnginfo=told_text)
    files = {
        "giant": (png(60000, 60000, zlib.compress(bytes(1000))), {"too_large"}),
        "text": (buffer.getvalue(), {"corrupt", "too_large"}),
        "cut": (png(100, 100, zlib.compress(bytes(5000))), {"corrupt"}),
        "noise": (png(100, 100, b"noise"), {"corrupt"}),
        "none": (png(0, 0, b""), {"corrupt"}),
        "head only": (b"\x89PNG\r\n\x1a\n", {"not_dicom", "corrupt"}),
        "jpeg head only": (b"\xff\xd8\xff\xe0", {"corrupt"}),
        "film": (png(4, 3, zlib.compress(b"".join(b"\0" + bytes([i] * 4) for i in (0, 9, 99)))), set()),
    }
    result = run(folder(tmp_path / "in", {name: raw for name, (raw, _) in files.items()}), tmp_path / "out")
    for name, (_, reasons) in files.items():
        assert (name in result.rows) if not reasons else (result.reasons.get(name) in reasons), (
            name,
            result.reasons.get(name),
        )
    assert result.pixels("film")[:, 0].tolist() == [0, 9, 99]


def test_a_giant_picture_is_refused_from_its_header() -> None:
    with pytest.raises(Unreadable) as error:
        read_picture(png(60000, 60000, zlib.compress(bytes(1000))), Path("file"))
    assert error.value.code == "too_large"


# around the files


def deep(source: Path, depth: int) -> None:
    here = os.open(source, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_folders_deeper_than_python_recurses(film: Film, tmp_path: Path) -> None:
    source = folder(tmp_path / "in", {"film": film(**FULL)})
    deep(source, 1050)
    try:
        assert [entry.relative for entry in scan(source)] == ["film"]
    finally:
        subprocess.run(["rm", "-rf", str(source)], check=True)


@pytest.mark.slow
def test_folders_2500_deep(film: Film, run: Run, tmp_path: Path) -> None:
    """Deeper than Python recurses and than a path may be long: reported as unreadable, the rest is converted."""
    source = folder(tmp_path / "in", {"film": film(**FULL)})
    deep(source, 2500)
    try:
        result = run(source, tmp_path / "out")
        assert list(result.rows) == ["film"]
        assert list(result.reasons.values()) == ["missing"]
    finally:
        subprocess.run(["rm", "-rf", str(source)], check=True)


def test_a_folder_that_cannot_be_written_is_one_clear_line(film: Film, tmp_path: Path) -> None:
    source = folder(tmp_path / "in", {"film": film()})
    (tmp_path / "shut").mkdir(mode=0o555)
    if os.geteuid() == 0:
        pytest.skip("permissions do not bind root")
    with pytest.raises(InputError) as error:
        convert(source, tmp_path / "shut/out", ConversionSettings(), workers=1)
    assert "\n" not in str(error.value)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True)
    if made.returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_stops_the_run_and_it_goes_on(
    small_disk: Path, film: Film, run: Run, tree: Tree, tmp_path: Path
) -> None:
    """No half image, one clear line, and with more room the same command ends with the bytes of an unbroken run."""
    rng = np.random.default_rng(0)
    noise = {f"{i:02}": film(rng.integers(0, 4096, (128, 128)).astype(np.uint16), **FULL) for i in range(30)}
    source = folder(tmp_path / "in", noise)
    run(source, tmp_path / "whole")
    whole = tree(tmp_path / "whole")
    with pytest.raises(InputError, match="free some space") as error:
        convert(source, small_disk / "out", ConversionSettings(), workers=2)
    assert "\n" not in str(error.value)
    left = tree(small_disk / "out")
    assert 0 < len(left) < 30
    assert all(whole[name] == data for name, data in left.items())
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    run(source, small_disk / "out")
    assert tree(small_disk / "out") == whole


def test_a_read_only_disk_is_one_clear_line(small_disk: Path, film: Film, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(InputError) as error:
        convert(folder(tmp_path / "in", {"film": film()}), small_disk / "out", ConversionSettings(), workers=1)
    assert "\n" not in str(error.value)


def test_a_write_that_fails_leaves_no_file(film: Film, tmp_path: Path) -> None:
    """The target is a folder that is not there: a reason, no exception, nothing beside it."""
    path = tmp_path / "film"
    path.write_bytes(film())
    assert convert_one(path, tmp_path / "none", ConversionSettings()).reason == "write_failed"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["film"]


def test_the_tables_hold_no_formula_or_path_of_a_tag(film: Film, run: Run, tmp_path: Path) -> None:
    """failures.csv and duplicates.csv hold ids and fixed words only."""
    files = {
        "=1+1": film(PatientID="=cmd()", SOPInstanceUID="1.2"),
        "@x": film(RAMP.T.copy(), SOPInstanceUID="1.2"),
        "-2": b"x" * 900,
    }
    result = run(folder(tmp_path / "in", files), tmp_path / "out")
    for table in ("failures.csv", "duplicates.csv"):
        frame = pd.read_csv(result.release / table, dtype=str)
        assert len(frame) == 1
        assert all(str(value)[0].isalnum() for value in frame.to_numpy().ravel())
    assert uid.UID("1.2").is_valid
