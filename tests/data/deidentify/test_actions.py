"""The actions of PS3.15 Table E.1-1, held against facts of the standard and against what each letter demands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import config
from pydicom.datadict import dictionary_keyword, dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.valuerep import validate_value

from medlt.data.deidentify import Profile, deidentify, write_deidentified
from medlt.data.deidentify.kept import attributes
from medlt.data.deidentify.profile import letters, settle, standard_table
from medlt.types import InputError

Make = Callable[..., Dataset]
BASIC = Profile.parse("basic")
ALL = Profile.parse("basic,retain-dates-modified,retain-patient-characteristics,clean-pixel")
OLD = {
    "DA": "19991231",
    "DT": "19991231235959",
    "TM": "235959",
    "UI": "1.2.826.77.88.99",
    "AS": "044Y",
    "DS": "12.5",
    "IS": "77",
    "PN": "Sought^After",
    "UR": "http://soughtafter.org",
    "CS": "SOUGHTAFTER",
}


@pytest.mark.parametrize(
    ("keyword", "basic", "dates", "characteristics"),
    [  # read from PS3.15 Table E.1-1 itself
        ("AccessionNumber", "Z", "", ""),
        ("AcquisitionComments", "X", "", ""),
        ("AcquisitionDate", "X/Z", "C", ""),
        ("AcquisitionDateTime", "X/Z/D", "C", ""),
        ("AcquisitionDeviceProcessingDescription", "X/D", "", ""),
        ("AcquisitionUID", "U", "", ""),
        ("Allergies", "X", "", "C"),
        ("ContentDate", "Z/D", "C", ""),
        ("ContentSequence", "D", "", ""),
        ("DeviceSerialNumber", "X/Z/D", "", ""),
        ("EthnicGroup", "X", "", "K"),
        ("PatientAge", "X", "", "K"),
        ("PatientBirthDate", "Z", "", ""),
        ("PatientName", "Z", "", ""),
        ("PatientSex", "Z", "", "K"),
        ("PatientSexNeutered", "X/Z", "", "K"),
        ("ReferencedImageSequence", "X/Z/U*", "", ""),
        ("SOPInstanceUID", "U", "", ""),
        ("StudyDate", "Z", "C", ""),
        ("TimezoneOffsetFromUTC", "X", "C", ""),
        ("VerifyingObserverName", "D", "", ""),
    ],
)
def test_the_table_says_what_the_standard_says(keyword: str, basic: str, dates: str, characteristics: str) -> None:
    row = standard_table()[f"{tag_for_keyword(keyword):08X}"]
    assert (row.name, row.basic, row.dates, row.characteristics) == (keyword, basic, dates, characteristics)


def test_the_table_is_whole() -> None:
    rows = standard_table()
    assert len(rows) == 655  # 652 attributes, curve data, overlay data, overlay comments; private ones are a rule
    assert {r.basic for r in rows.values()} == {
        *("D", "Z", "X", "U", "X/Z", "X/D", "Z/D", "X/Z/D", "X/Z/U*"),
    }
    for tag, row in rows.items():
        if "X" not in tag and row.basic == "U":
            assert dictionary_VR(int(tag, 16)) == "UI"


@pytest.mark.parametrize(
    ("action", "kind", "letter"),
    [
        *((a, k, a) for a in ("D", "Z", "X", "U") for k in ("1", "2", "3", "", None)),
        *(("X/Z", k, w) for k, w in (("1", "Z"), ("1C", "Z"), ("2", "Z"), ("3", "X"), ("", "X"), (None, "Z"))),
        *(("X/D", k, w) for k, w in (("1", "D"), ("1C", "D"), ("2", "D"), ("3", "X"), ("", "X"), (None, "D"))),
        *(("Z/D", k, w) for k, w in (("1", "D"), ("2", "Z"), ("2C", "Z"), ("3", "Z"), ("", "Z"), (None, "D"))),
        *(("X/Z/D", k, w) for k, w in (("1", "D"), ("2", "Z"), ("3", "X"), ("", "X"), (None, "D"))),
        *(("X/Z/U*", k, "U*") for k in ("1", "2", "3", "", None)),
    ],
)
def test_compound_actions_are_settled_by_type(action: str, kind: str | None, letter: str) -> None:
    assert settle(action, kind) == letter


def _old(vr: str) -> Any:
    if vr == "SQ":
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "SOUGHT", "99X", "soughtafter"
        return [item]
    numeric = ("US", "SS", "UL", "SL", "FL", "FD", "SV", "UV")
    return 60001 if vr in numeric else b"soughtafter!" if vr[0] == "O" or vr == "UN" else OLD.get(vr, "soughtafter")


def _demanded(letter: str, vr: str, old: Any, new: DataElement | None) -> bool:
    """PS3.15 Table E.1-1a, letter by letter."""
    if letter == "X":
        return new is None
    if new is None:
        return False
    if letter == "K":
        return bool(new.value == old)
    if letter == "Z" and new.is_empty:
        return True
    if letter == "U*":
        return "sought" not in str(new.value).lower()
    valid = vr in ("SQ", "OB", "UN") or validate_value(vr, new.value, config.RAISE) is None
    return valid and not new.is_empty and new.value != old and "sought" not in str(new.value).lower()


@pytest.mark.parametrize("family", ["dx", None])
def test_every_row_is_done_as_its_letter_demands(make: Make, key: bytes, family: str | None) -> None:
    wrong = []
    wanted = letters(BASIC, family)
    data, olds = make(), {}
    inner = Dataset()
    level = data if family else inner
    for tag in wanted:
        try:
            keyword, vr = dictionary_keyword(tag), dictionary_VR(tag).split(" ")[0]
        except KeyError:
            continue
        if tag >> 16 not in (0, 2, 4):
            olds[tag] = keyword, vr, _old(vr)
            level[tag] = DataElement(tag, vr, _old(vr))
    data.AnatomicRegionSequence = [inner]
    out = deidentify(data, BASIC, key, None).dataset
    result = out if family else out.AnatomicRegionSequence[0]
    for tag, (keyword, vr, old) in olds.items():
        if not _demanded(wanted[tag], vr, old, result[tag] if tag in result else None):
            wrong.append(f"{keyword} {wanted[tag]}: {result.get(tag)}")
    assert len(olds) > 600
    assert wrong == []


def test_dates_move_and_characteristics_stay(make: Make, key: bytes) -> None:
    source = make(PatientAge="070Y", AcquisitionDateTime="20190304101112.5+0100", PatientWeight="61")
    source.add_new("DateOfSecondaryCapture", "DA", ["20190304", "20190310"])
    out = deidentify(source, ALL, key, None).dataset
    assert (out.PatientAge, out.PatientSex, str(out.PatientWeight), out.StudyTime) == ("070Y", "F", "61", "101112")
    first, second = out.DateOfSecondaryCapture
    assert first == out.StudyDate != "20190304"
    assert out.AcquisitionDateTime == f"{first}101112.5+0100"
    assert int(second[6:]) - int(first[6:]) in (6, 6 - 28, 6 - 29, 6 - 30, 6 - 31)
    assert out.PatientBirthDate == ""
    assert out.LongitudinalTemporalInformationModified == "MODIFIED"


def test_a_date_that_is_none_falls_back_on_the_basic_profile(make: Make, key: bytes) -> None:
    source = make()
    for keyword, vr, value in (("StudyDate", "DA", "MARCH"), ("SeriesDate", "DA", "20191301")):
        source[keyword] = DataElement(tag_for_keyword(keyword), vr, value, already_converted=True)
    out = deidentify(source, ALL, key, None).dataset
    assert out.StudyDate == ""
    assert out.SeriesDate == "19000101"


def test_what_the_table_does_not_list(make: Make, key: bytes) -> None:
    source = make(KVP="120", EvaluatorName="Quimby^W", ContextUID="1.2.3", Manufacturer="Maker")
    source.OtherStudyNumbers, source.RetrieveURL = "190304", "https://pacs/Quimby"
    source.private_block(0x0011, "ACME", create=True).add_new(1, "LO", "Quimby")
    source.add_new(0x00081FFF, "LO", "unknown tag")
    source.add_new(0x50003000, "OW", b"curve")
    source.add_new(0x60001500, "LO", "overlay of Quimby")
    source.add_new(0x00100000, "UL", 12)
    source.add_new("ModelGroupUID", "UI", "1.2.826.5")
    source.MultiFrameSourceSOPInstanceUID = "1.2.826.6"
    source.PatientBirthDateInAlternativeCalendar = "Showa 23"
    result = deidentify(source, BASIC, key, None)
    out = result.dataset
    assert (str(out.KVP), out.ContextUID, out.Manufacturer) == ("120", "1.2.3", "Maker")
    assert out.MultiFrameSourceSOPInstanceUID.startswith("2.25.")
    gone = [0x00110010, 0x00111001, 0x00081FFF, 0x50003000, 0x60001500, 0x00100000, 0x00100033, 0x00201070]
    gone += [tag_for_keyword(name) for name in ("EvaluatorName", "ModelGroupUID", "RetrieveURL")]
    assert [tag for tag in gone if tag in out] == []
    assert {f"{tag:08X}": 1 for tag in gone}.items() <= result.dropped.items()


def test_the_list_holds_no_attribute_of_the_table_and_no_free_text() -> None:
    named = {"Manufacturer", "ManufacturerModelName", "DetectorManufacturerName", "DetectorManufacturerModelName"}
    named |= {"SoftwareVersions", "PlateType", "RescaleType", "ModalityLUTType"}
    codes = {"CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning"}
    free = {"LO", "SH", "LT", "ST", "UT", "UC", "UR", "PN", "AE", "UN", "OB", "DA", "DT", "TM"}
    assert not attributes() & set(letters(BASIC, None))
    texts = {dictionary_keyword(tag) for tag in attributes() if dictionary_VR(tag) in free}
    assert texts == named | codes


@pytest.mark.parametrize(
    ("keyword", "value", "stays"),
    [
        ("FilterMaterial", "COPPER", True),
        ("FilterMaterial", ["COPPER", "ALUMINUM"], True),
        ("VOILUTFunction", "Sigmoid ", True),
        ("FilterMaterial", "Smith, John", False),
        ("FilterMaterial", "a sentence that is no term", False),
        ("FilterMaterial", ["COPPER", "SMITH^JOHN"], False),
        ("PixelSpacing", [0.1, 0.1], True),
        ("PixelSpacing", [19480517, 1, 2], False),
        ("KVP", "110", True),
        ("KVP", [110, 19480517], False),
    ],
)
def test_a_kept_attribute_has_the_form_of_its_kind(
    make: Make, key: bytes, keyword: str, value: object, stays: bool
) -> None:
    """CS (PS3.5 6.2) and the value multiplicity of PS3.6: a sentence is no term, a third spacing no spacing."""
    with config.disable_value_validation():
        out = deidentify(make(**{keyword: value}), BASIC, key, None).dataset
    assert (keyword in out) is stays


CODES = [
    (("272479007", "SCT", "see Quimby"), ("272479007", "SCT", "postero-anterior")),
    (("R-10206", "SRT", "Quimby"), ("R-10206", "SRT", "antero-posterior")),
    (("816094009", "SCT", "Thorax"), ("816094009", "SCT", "Thorax")),
    (("R-10214", "SRT", "Postero-anterior"), ("272479007", "SCT", "postero-anterior")),
    (("QUIMBY", "99LOCAL", "antero-posterior"), ("399348003", "SCT", "antero-posterior")),
    (("QUIMBY", "99LOCAL", "Quimby"), ("ANONYMIZED", "99MEDLT", "ANONYMIZED")),
    (("90210", "SCT", "Chest"), ("816094009", "SCT", "Chest")),
    (("90210", "SCT", "Chest of Quimby"), ("ANONYMIZED", "99MEDLT", "ANONYMIZED")),
]


@pytest.mark.parametrize(("code", "kept"), CODES)
def test_a_code_is_one_of_the_standard_or_a_dummy(
    make: Make, key: bytes, code: tuple[str, str, str], kept: tuple[str, str, str]
) -> None:
    """PS3.16 CID 4010 and 4031: (272479007, SCT), (R-10206, SRT) and (816094009, SCT) are its codes and meanings."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code
    item.LongCodeValue, item.CodingSchemeVersion = "of Quimby", "Quimby"
    (out,) = deidentify(make(ViewCodeSequence=[item]), BASIC, key, None).dataset.ViewCodeSequence
    assert (out.CodeValue, out.CodingSchemeDesignator, out.CodeMeaning) == kept
    assert len(out) == 3


def test_an_element_that_cannot_be_read_goes(make: Make, key: bytes, tmp_path: Path) -> None:
    source = make()
    source["NumberOfFrames"] = DataElement(0x00280008, "LO", "1A")
    source["NumberOfFrames"].VR = "IS"
    path = tmp_path / "bad.dcm"
    path.write_bytes(b"")
    write_deidentified(path, deidentify(source, BASIC, key, None))
    assert path.stat().st_size > 0


@pytest.mark.parametrize(
    "text", ["", "basic,retain-uids", "retain-dates-modified", "basic,", "basic,retain-safe-private"]
)
def test_unknown_profiles_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError) as error:
        Profile.parse(text)
    assert "\n" not in str(error.value)
    assert "basic" in str(error.value)


def test_one_number_of_two_issuers_is_two_patients(make: Make, key: bytes) -> None:
    """IssuerOfPatientID (0010,0021): a PatientID is unique within its issuer."""
    sources = [
        make(IssuerOfPatientID=issuer, **more) for issuer in ("North", "South") for more in ({}, {"StudyID": "2"})
    ]
    out = [deidentify(source, BASIC, key, None).dataset for source in [*sources, make()]]
    names = [(str(one.PatientID), str(one.PatientName)) for one in out]
    assert names[0] == names[1]
    assert names[2] == names[3]
    assert len({names[0], names[2], names[4]}) == 3
    assert len({name[0] for name in names}) == 3


@pytest.mark.parametrize(("age", "kept"), [("090Y", "090Y"), ("103Y", "090Y"), ("089Y", "089Y"), ("101W", "101W")])
def test_ages_of_ninety_and_more_are_one(make: Make, key: bytes, age: str, kept: str) -> None:
    profile = Profile.parse("basic,retain-patient-characteristics")
    assert deidentify(make(PatientAge=age), profile, key, None).dataset.PatientAge == kept
