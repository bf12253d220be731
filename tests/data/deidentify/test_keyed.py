"""Keyed replacements: consistent, patient by patient, and worth nothing without the key."""

import copy
import pickle
from collections.abc import Callable
from datetime import date
from itertools import pairwise
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from medlt.data.deidentify import Profile, deidentify, read_key, write_deidentified
from medlt.data.deidentify.keyed import Keyed
from medlt.data.deidentify.values import shifted
from medlt.types import InputError

Make = Callable[..., Dataset]
ALL = Profile.parse("basic,retain-dates-modified,retain-patient-characteristics,clean-pixel")


def _day(text: str) -> date:
    return date(int(text[:4]), int(text[4:6]), int(text[6:8]))


def test_a_reference_still_points_at_its_file(make: Make, key: bytes) -> None:
    first, second = make(SOPInstanceUID="1.2.826.0.1.1"), make(SOPInstanceUID="1.2.826.0.1.99")
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = first.SOPClassUID, first.SOPInstanceUID
    second.SourceImageSequence = [reference]
    holder = Dataset()
    holder.ReferencedInstanceSequence = [reference]
    second.ViewCodeSequence = [holder]
    one, two = (deidentify(d, ALL, key, None).dataset for d in (first, second))
    assert one.SOPInstanceUID != two.SOPInstanceUID
    assert one.StudyInstanceUID == two.StudyInstanceUID
    assert two.SourceImageSequence[0].ReferencedSOPInstanceUID == one.SOPInstanceUID
    assert two.ViewCodeSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == one.SOPInstanceUID
    assert two.SourceImageSequence[0].ReferencedSOPClassUID == first.SOPClassUID
    assert one.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID
    assert all(pydicom.uid.UID(u).is_valid for u in (one.SOPInstanceUID, one.StudyInstanceUID))


def test_intervals_hold_within_a_patient_and_not_across(make: Make, key: bytes) -> None:
    dates = ("20180228", "20191231", "20200301")
    moved = [_day(deidentify(make(StudyDate=d), ALL, key, None).dataset.StudyDate) for d in dates]
    assert [(b - a).days for a, b in pairwise(moved)] == [(_day(b) - _day(a)).days for a, b in pairwise(dates)]
    shifts = {Keyed(key, f"patient {i}").days for i in range(60_000)}
    assert (min(shifts), max(shifts)) == (-3652, -1)
    assert len(shifts) == 3652


@pytest.mark.parametrize(
    ("vr", "old", "days", "new"),
    [
        ("DA", "20200301", -1, "20200229"),
        ("DA", "2020.03.01", -1, "20200229"),
        ("DT", "20200301", -366, "20190301"),
        ("DT", "202003", -31, "202001"),
        ("DT", "2020", -1, "2019"),
        ("DT", "20200301101112.123456-0500", -1, "20200229101112.123456-0500"),
        ("TM", "101112.5", -9, "101112.5"),
        ("DA", "00010101", -1, None),
        ("DA", "20200230", -1, None),
        ("DA", "soon", -1, None),
        ("TM", "noon", -1, None),
    ],
)
def test_dates_move_in_their_own_precision(vr: str, old: str, days: int, new: str | None) -> None:
    assert shifted(vr, old, days) == new


def test_another_key_gives_another_patient(make: Make, key: bytes) -> None:
    ours, theirs = (deidentify(make(), ALL, k, None).dataset for k in (key, key[::-1]))
    for keyword in ("PatientID", "PatientName", "SOPInstanceUID", "AccessionNumber", "StudyDate"):
        assert ours[keyword].value != theirs[keyword].value
        assert ours[keyword].value == deidentify(make(), ALL, key, None).dataset[keyword].value


def test_the_source_is_not_touched_and_the_result_travels(make: Make, key: bytes) -> None:
    source = make(RequestAttributesSequence=[Dataset()])
    before = copy.deepcopy(source)
    result = deidentify(source, ALL, key, None)
    assert source == before
    assert source.file_meta == before.file_meta
    again = pickle.loads(pickle.dumps(result))  # as a worker process hands it back
    assert (again.dataset, again.codes, again.quarantine) == (result.dataset, result.codes, result.quarantine)
    assert pickle.loads(pickle.dumps(ALL)) == ALL


def test_a_key_is_read_as_hex_or_bytes(tmp_path: Path) -> None:
    (tmp_path / "hex").write_text("00ff" * 16 + "\n")
    (tmp_path / "raw").write_bytes(bytes(range(200, 240)))
    assert read_key(tmp_path / "hex") == bytes.fromhex("00ff" * 16)
    assert read_key(tmp_path / "raw") == bytes(range(200, 240))


@pytest.mark.parametrize("content", [None, b"", b"too short", b"00" * 31])
def test_a_weak_key_is_refused_with_how_to_make_one(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(InputError, match="token_hex") as error:
        read_key(tmp_path / "key")
    assert "\n" not in str(error.value)


def test_a_short_key_is_refused_by_the_function_too(make: Make) -> None:
    with pytest.raises(InputError, match="at least 32"):
        deidentify(make(), ALL, b"short", None)


def test_the_file_has_nothing_of_the_old_one_around_the_data_set(make: Make, key: bytes, tmp_path: Path) -> None:
    source = make()
    source.preamble = b"MZ" + b"Quimby" * 21
    source.file_meta.SourceApplicationEntityTitle = "QUIMBY_AE"
    source.file_meta.PrivateInformationCreatorUID, source.file_meta.PrivateInformation = "1.2", b"Quimby"
    write_deidentified(tmp_path / "a" / "out.dcm", deidentify(source, ALL, key, None))
    raw = (tmp_path / "a" / "out.dcm").read_bytes()
    assert raw[:132] == b"\0" * 128 + b"DICM"
    assert b"QUIMBY" not in raw.upper()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out.dcm"]
    read = pydicom.dcmread(tmp_path / "a" / "out.dcm")
    assert read.file_meta.MediaStorageSOPInstanceUID == read.SOPInstanceUID
    assert str(read.file_meta.ImplementationVersionName).startswith("MEDLT")
