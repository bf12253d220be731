"""Zip files and exam CDs: members are read in place, and nothing of a hostile zip reaches the disk or the memory."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread, uid
from pydicom.fileset import FileSet

from medlt.data.convert import archives
from medlt.data.convert.archives import Member, with_members
from medlt.data.convert.scan import scan
from medlt.data.dicom import guard
from medlt.data.dicom.guard import Unreadable

Film, Run, Tree = Callable[..., bytes], Callable[..., Any], Callable[[Path], dict[str, bytes]]
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
VIEWER = {
    "AUTORUN.INF": b"[autorun]\nopen=VIEWER.EXE\n",
    "VIEWER.EXE": b"MZ" + bytes(range(256)) * 40,
    "INDEX.HTM": b"<!doctype html><html><body>Your images</body></html>" * 9,
    "help/README.TXT": b"Open VIEWER.EXE\n",
    "help/logo.ico": b"\0\0\1\0" + bytes(60),
}


def entries(path: Path) -> dict[str, str]:
    """{name: reason} of a zip file and its members."""
    found = [one for file in scan(path) for one in with_members(path.parent, file)]
    assert len({one.relative for one in found}) == len(found)
    return {one.relative: one.reason for one in found}


def packed(path: Path, files: dict[str, bytes], **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, raw in files.items():
            archive.writestr(name, raw)
    return path


@pytest.fixture(scope="module")
def disc(film: Film, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exam CD: a DICOMDIR with the files it lists, which have no extension, and the viewer of its maker."""
    folder = tmp_path_factory.mktemp("disc")
    made = FileSet()
    for at in range(3):
        tags = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "SOPInstanceUID": f"1.2.3.4.{at}"}
        dates = {
            "StudyDate": "20200102",
            "StudyTime": "101112",
            "StudyID": "1",
            "AccessionNumber": "",
            "SeriesNumber": 1,
        }
        raw = film(np.roll(RAMP, at), InstanceNumber=at, PatientName="Doe^Jane", **tags, **dates)
        made.add(dcmread(io.BytesIO(raw)))
    made.write(folder)
    made._stage["t"].cleanup()  # pydicom leaves its temporary folder to the garbage collector
    for name, raw in VIEWER.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(raw)
    return folder


def expected(result: Any, prefix: str) -> None:
    """Three films; everything else is skipped, and nothing failed."""
    assert len(result.rows) == 3
    assert all(name.startswith(f"{prefix}PT000000/ST000000/SE000000/IM") for name in result.rows)
    reasons = {
        name.removeprefix(prefix): reason for name, reason in result.reasons.items() if "!" in name or not prefix
    }
    assert reasons == {"DICOMDIR": "not_an_image", **dict.fromkeys(VIEWER, "not_dicom")}
    assert (result.counts["converted"], result.counts["failed"]) == (3, 0)


def test_an_exam_cd_gives_its_films_and_no_failure(disc: Path, run: Run, tmp_path: Path) -> None:
    expected(run(disc, tmp_path / "out"), "")


def test_a_zipped_exam_cd_gives_the_same_images(disc: Path, run: Run, tree: Tree, tmp_path: Path) -> None:
    """As the source itself, and inside a folder; with any number of workers; nothing but the output is written."""
    files = {str(path.relative_to(disc)): path.read_bytes() for path in sorted(disc.rglob("*")) if path.is_file()}
    (tmp_path / "in").mkdir()
    packed(tmp_path / "in/CD.ZIP", files)
    plain = run(disc, tmp_path / "plain")
    alone, inside = (
        run(tmp_path / "in/CD.ZIP", tmp_path / "alone"),
        run(tmp_path / "in", tmp_path / "inside", workers=2),
    )
    for result in (alone, inside):
        expected(result, "CD.ZIP!/")
        assert result.reasons["CD.ZIP"] == "unzipped"
        assert {row["uid"] for row in result.rows.values()} == {row["uid"] for row in plain.rows.values()}
    images = [{name: raw for name, raw in tree(out).items() if "images" in name} for out in (plain.out, alone.out)]
    assert images[0] == images[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "in", "inside", "plain"]


def test_a_zip_resumes(film: Film, run: Run, tree: Tree, tmp_path: Path) -> None:
    """Only new and changed members are read again; a repaired zip is no failure any more."""
    (tmp_path / "in").mkdir()
    files = {name: film(np.roll(RAMP, at)) for at, name in enumerate("abc")}
    whole = packed(tmp_path / "in/x.zip", files).read_bytes()
    (tmp_path / "in/x.zip").write_bytes(whole[:-40])
    assert run(tmp_path / "in", tmp_path / "out").reasons == {"x.zip": "corrupt"}
    (tmp_path / "in/x.zip").write_bytes(whole)
    assert run(tmp_path / "in", tmp_path / "out").counts["failed"] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/images").iterdir()}
    assert len(before) == 3
    packed(tmp_path / "in/x.zip", {**files, "b": film(RAMP.T.copy()), "d": film(RAMP[::-1].copy())})
    result = run(tmp_path / "in", tmp_path / "out")
    assert sorted(result.rows) == [f"x.zip!/{name}" for name in "abcd"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list((tmp_path / "out/images").iterdir())) == 5
    lines = (tmp_path / "out/.convert/files.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 4 + 3  # x.zip; it and a, b, c; it and b, d


def test_names_of_members_are_never_paths(film: Film, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    names = ("../../up", "/etc/top", "C:\\x", "deep/../../../x", "a!/b", "line\nbreak", "Müller")
    packed(tmp_path / "in/x.zip", {name: film(np.roll(RAMP, at)) for at, name in enumerate(names)})
    result = run(tmp_path / "in", tmp_path / "out")
    assert sorted(result.rows) == sorted(f"x.zip!/{name}" for name in names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert not [path for path in tmp_path.parent.rglob("up")]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_one_name_are_two_files(film: Film, run: Run, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for at in range(2):
            archive.writestr("a", film(np.roll(RAMP, at)))
        archive.writestr("folder/", b"")
    assert sorted(run(tmp_path / "x.zip", tmp_path / "out").rows) == ["x.zip!/a", "x.zip!/a!1"]


def test_what_a_zip_holds_besides_films(film: Film, run: Run, tmp_path: Path) -> None:
    """Nested archives stay shut; a changed byte is seen by the CRC; an unusual method is no crash."""
    (tmp_path / "in").mkdir()
    inner = packed(tmp_path / "inner.zip", {"a": film()}).read_bytes()
    whole = film(np.roll(RAMP, 7))
    with zipfile.ZipFile(tmp_path / "in/x.zip", "w") as archive:
        archive.writestr("inner.zip", inner)
        archive.writestr("empty", b"")
        archive.writestr("lzma", film(np.roll(RAMP, 3)), zipfile.ZIP_LZMA)
        archive.writestr("flipped", whole)
    raw = bytearray((tmp_path / "in/x.zip").read_bytes())
    raw[raw.index(whole) + 2000] ^= 1
    (tmp_path / "in/x.zip").write_bytes(raw)
    (tmp_path / "in/film.zip").write_bytes(film())
    packed(tmp_path / "in/nothing.zip", {})
    result = run(tmp_path / "in", tmp_path / "out")
    assert list(result.rows) == ["film.zip"]
    assert result.reasons == {
        "x.zip": "unzipped",
        "nothing.zip": "unzipped",
        "x.zip!/inner.zip": "archive",
        "x.zip!/empty": "empty",
        "x.zip!/lzma": "not_unpacked",
        "x.zip!/flipped": "corrupt",
    }


def test_an_encrypted_member_is_a_reason(film: Film, run: Run, tmp_path: Path) -> None:
    """Bit 0 of the general purpose flag (APPNOTE 4.4.4), in both headers."""
    raw = bytearray(packed(tmp_path / "x.zip", {"a": film()}).read_bytes())
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(signature) + at] |= 1
    (tmp_path / "x.zip").write_bytes(raw)
    assert run(tmp_path / "x.zip", tmp_path / "out").reasons == {"x.zip": "unzipped", "x.zip!/a": "not_unpacked"}


def test_a_zip_that_would_grow_too_far_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of 1 MiB: 40 members of 64 KiB zeros are refused, 15 are not, nor 40 of noise, which do not grow."""
    monkeypatch.setattr(guard, "LIMIT_FILE_BYTES", 1 << 20)
    rng = np.random.default_rng(0)
    for count, content, reason in (
        (40, bytes(1 << 16), "too_large"),
        (15, bytes(1 << 16), "unzipped"),
        (40, rng.bytes(1 << 16), "unzipped"),
    ):
        path = packed(tmp_path / "x.zip", {str(at): content for at in range(count)})
        assert entries(path)["x.zip"] == reason
        assert len(entries(path)) == (1 if reason == "too_large" else 1 + count)


def test_members_that_overlap_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many directory entries for one local file, as in the bombs of Fifield (WOOT 2019)."""
    monkeypatch.setattr(guard, "LIMIT_FILE_BYTES", 1 << 20)
    raw = packed(tmp_path / "x.zip", {"a": bytes(1 << 19)}).read_bytes()
    start = raw.index(b"PK\x01\x02")
    entry, count = raw[start : raw.index(b"PK\x05\x06")], 300
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(entry) * count, start, 0)
    (tmp_path / "x.zip").write_bytes(raw[:start] + entry * count + end)
    assert entries(tmp_path / "x.zip") == {"x.zip": "too_large"}


def test_a_directory_beyond_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path / "x.zip", {f"name{at}": b"" for at in range(100)})
    assert len(entries(path)) == 101
    monkeypatch.setattr(archives, "LIMIT_INDEX_BYTES", 1000)
    assert entries(path) == {"x.zip": "too_large"}


def test_a_member_larger_than_declared_is_cut_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header declares 1,000 bytes and the CRC of those, the stream inflates to 64 MiB."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    stream = deflater.compress(bytes(64 << 20)) + deflater.flush()
    raw = bytearray(packed(tmp_path / "x.zip", {"a": b"?"}).read_bytes())
    local, central = raw.index(b"PK\x03\x04"), raw.index(b"PK\x01\x02")
    sizes = struct.pack("<3I", zlib.crc32(bytes(1000)), len(stream), 1000)
    head = bytes(raw[local : local + 14]) + sizes + bytes(raw[local + 26 : local + 31])
    body = bytes(raw[central : central + 16]) + sizes + bytes(raw[central + 28 : raw.index(b"PK\x05\x06")])
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(body), len(head) + len(stream), 0)
    (tmp_path / "x.zip").write_bytes(head + stream + body + end)
    most: list[int] = []
    inflate = zipfile.ZipExtFile._read1  # type: ignore[attr-defined]
    monkeypatch.setattr(zipfile.ZipExtFile, "_read1", lambda s, n: most.append(n) or inflate(s, n))
    assert Member(tmp_path / "x.zip", 0).read() == bytes(1000)
    assert max(most) <= 1 << 20
    monkeypatch.setattr(guard, "LIMIT_FILE_BYTES", 999)
    with pytest.raises(Unreadable) as error:
        Member(tmp_path / "x.zip", 0).read()
    assert error.value.code == "too_large"
    archives._kept_open.cache_clear()


def outcome(place: Member) -> str:
    try:
        place.read()
    except Unreadable as error:
        return error.code
    return ""


def test_random_damage_is_a_reason_and_never_an_error(film: Film, tmp_path: Path) -> None:
    whole = packed(tmp_path / "x.zip", {"a": film(RAMP[:8]), "b": film(RAMP[8:16])}).read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(300):
        raw = bytearray(whole)
        for at in rng.integers(0, len(raw), 3):
            raw[at] = rng.integers(256)
        end = rng.integers(len(raw) // 2, len(raw)) if rng.random() < 0.3 else len(raw)
        (tmp_path / "x.zip").write_bytes(raw[:end])
        archives._kept_open.cache_clear()
        members = [one for file in scan(tmp_path / "x.zip") for one in with_members(tmp_path, file) if one.archive]
        codes = {outcome(Member(tmp_path / one.archive, one.member)) for one in members}
        assert codes <= {"", "corrupt", "truncated", "too_large", "not_unpacked"}
    archives._kept_open.cache_clear()


def test_syntaxes_are_those_of_the_members(film: Film, run: Run, tmp_path: Path) -> None:
    packed(tmp_path / "x.zip", {"a": film(syntax=uid.ImplicitVRLittleEndian)})
    assert run(tmp_path / "x.zip", tmp_path / "out").counts["transfer_syntaxes"] == {"1.2.840.10008.1.2": 1}
