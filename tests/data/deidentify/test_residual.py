"""No identifier survives: planted by hand where it hurts, and by hypothesis anywhere at any depth."""

import logging
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medlt.data.deidentify import Profile, deidentify, write_deidentified

Make = Callable[..., Dataset]
BASIC = Profile.parse("basic")
ALL = Profile.parse("basic,retain-dates-modified,retain-patient-characteristics,clean-pixel")
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # shrinking data sets of this size takes minutes
TEXT = ("LO", "SH", "ST", "LT", "UT", "UC", "PN", "CS", "AE")
FREE = {k: sorted(t for t, v in DicomDictionary.items() if v[0] == k and t >> 16 not in (0, 2, 4)) for k in TEXT}
SEQUENCES = sorted(t for t, v in DicomDictionary.items() if v[0] == "SQ" and t >> 16 not in (0, 2, 4))


def written(data: Dataset) -> bytes:
    """The bytes of the file."""
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a planted word is no character set, and pydicom says so
        pydicom.dcmwrite(buffer, data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("Manufacturer", "best for quimby"),
        ("FilterMaterial", "WANDA"),
        ("PlateType", "MRN-90210 raw"),
        ("SoftwareVersions", "b. 1948-05-17"),
        ("SoftwareVersions", "b. 17.05.1948"),
        ("DetectorManufacturerName", "made at Springfield General"),
        ("RescaleType", "see ACC778899"),
        ("ManufacturerModelName", "of_Quimby_"),
        ("ModalityLUTType", "x1.2.826.0.1.2x"),
    ],
)
def test_an_identifier_in_an_attribute_that_stays_is_replaced_and_counted(
    make: Make, key: bytes, keyword: str, text: str
) -> None:
    nested = Dataset()
    setattr(nested, keyword, text)
    source = make(**{keyword: text, "AnatomicRegionSequence": [nested], "StudyInstanceUID": "1.2.826.0.1.2"})
    result = deidentify(source, BASIC, key, None)
    assert result.actions["residual"] == 2
    assert text.encode() not in written(result.dataset)


def test_words_that_merely_look_alike_stay(make: Make, key: bytes) -> None:
    out = deidentify(make(PatientName="Rad^Ann", FilterMaterial="RADIUM"), BASIC, key, None)
    assert out.dataset.FilterMaterial == "RADIUM"
    assert out.actions["residual"] == 0


def test_a_name_in_kept_binary_data_goes(make: Make, key: bytes) -> None:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [12, 0, 16], "US"
    table.add_new("LUTData", "OW", b"table of Quimby^Wanda!!!")
    out = deidentify(make(ModalityLUTSequence=[table]), BASIC, key, None).dataset
    assert b"Quimby" not in out.ModalityLUTSequence[0].LUTData


def test_values_that_break_the_standard_are_not_logged(
    key: bytes, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = make()
    source["StudyTime"] = DataElement(0x00080030, "TM", "Quimby", already_converted=True)
    source["SeriesInstanceUID"] = DataElement(0x0020000E, "UI", "1.2.Quimby", already_converted=True)
    (tmp_path / "in.dcm").write_bytes(written(source))
    caplog.set_level("DEBUG")
    read = pydicom.dcmread(tmp_path / "in.dcm", force=True)
    caplog.clear()
    write_deidentified(tmp_path / "out.dcm", deidentify(read, ALL, key))
    assert "Quimby" not in caplog.text
    assert not logging.getLogger("pydicom").disabled


def test_names_of_other_alphabets(make: Make, key: bytes) -> None:
    source = make(SpecificCharacterSet="ISO_IR 192", PatientName="山田^太郎", Manufacturer="für 太郎")
    out = deidentify(source, BASIC, key, None).dataset
    assert "太郎".encode() not in written(out)


class Planter:
    """Data sets drawn at random in which every text identifies."""

    def __init__(self, draw: Any) -> None:
        self.draw, self.words = draw, 0

    def word(self) -> str:
        self.words += 1
        return f"ZQX{self.words:04d}JVK"

    def dataset(self, depth: int) -> Dataset:
        data = Dataset()
        for vr in TEXT:
            for tag in self.draw(st.lists(st.sampled_from(FREE[vr]), max_size=3)):
                data[tag] = DataElement(tag, vr, f"{self.word()}^{self.word()}" if vr == "PN" else self.word())
        for group in self.draw(st.lists(st.sampled_from([0x0009, 0x0029, 0x7FE1]), max_size=2)):
            block = data.private_block(group, self.word(), create=True)
            block.add_new(1, "LO", self.word())
            block.add_new(2, "UN", self.word().encode())
        for tag in self.draw(st.lists(st.sampled_from(SEQUENCES), max_size=3)) if depth else ():
            data[tag] = DataElement(tag, "SQ", [self.dataset(depth - 1)])
        return data


@st.composite
def planted(draw: Any) -> Dataset:
    """A data set whose attributes of the table, at any depth, hold words of the form ZQX0001JVK."""
    data = Planter(draw).dataset(3)
    data.SOPClassUID = draw(st.sampled_from(["1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.7", "1.2.3"]))
    data.SOPInstanceUID = "1.2.826.0.1.7"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = draw(st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian]))
    return data


def listed(data: Dataset) -> set[str]:
    """Words planted in person names, private attributes and attributes of the table, the words to be gone."""
    from medlt.data.deidentify.profile import standard_table

    words: set[str] = set()
    for element in data:
        if element.VR == "SQ":
            inside = {w for item in element.value for w in listed(item)}
            words |= inside
        elif element.tag.is_private or element.VR == "PN" or f"{int(element.tag):08X}" in standard_table():
            words |= {w for w in str(element.value).strip("b'").split("^") if w.startswith("ZQX")}
    return words


@settings(max_examples=40, derandomize=True, phases=PHASES, suppress_health_check=list(HealthCheck))
@given(data=planted(), profile=st.sampled_from([BASIC, ALL]))
def test_nothing_planted_survives_and_a_second_run_changes_nothing(data: Dataset, profile: Profile) -> None:
    key = bytes(range(32))
    before = written(data)
    first = deidentify(data, profile, key)
    assert written(data) == before
    raw = written(first.dataset)
    kept = {"EthnicGroup", "SmokingStatus", "PatientSex", "PatientSexNeutered"} if profile is ALL else set()
    spared = {str(e.value) for e in data.iterall() if e.keyword in kept}
    assert [w for w in listed(data) - spared if w.encode() in raw] == []
    again = pydicom.dcmread(BytesIO(raw), force=True)
    second = deidentify(again, profile, key)
    assert written(second.dataset) == raw
    assert second.codes == first.codes


@settings(max_examples=15, derandomize=True, phases=PHASES, suppress_health_check=list(HealthCheck))
@given(data=planted())
def test_equal_inputs_give_equal_bytes(data: Dataset) -> None:
    first, second = (written(deidentify(data, ALL, bytes(range(32))).dataset) for _ in range(2))
    assert first == second
