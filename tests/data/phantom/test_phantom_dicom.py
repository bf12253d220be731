"""A written file is a DX image with its 12 bits, and is displayed alike in every encoding."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from medlt.data.dicom import read_dicom
from medlt.data.phantom.cohort import cohort
from medlt.data.phantom.dicom import TRANSFER_SYNTAXES, dataset, dicom_uid, encode, encoding
from medlt.data.phantom.projection import TOP
from medlt.data.phantom.render import film


def written(row, exposed, *encoded: str) -> bytes:
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset(row, exposed, 1, *encoded), enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("syntax", list(TRANSFER_SYNTAXES))
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_twelve_bits_come_back_and_the_picture_is_the_same(row, tmp_path, syntax, photometric):
    study = row(2, "Effusion", "Support_Device")
    exposed = film(study, 1, 97)
    path = tmp_path / "one.dcm"
    path.write_bytes(written(study, exposed, syntax, photometric))
    data = pydicom.dcmread(path)
    assert data.file_meta.TransferSyntaxUID == syntax
    assert data.PhotometricInterpretation == photometric
    stored = data.pixel_array.astype(np.uint16)
    assert np.array_equal(TOP - stored if photometric == "MONOCHROME1" else stored, exposed.pixels)
    assert exposed.pixels.max() > 255
    seen = read_dicom(path)
    assert seen.notes == ()
    assert np.allclose(seen.pixels, exposed.image, atol=1e-6)


def test_the_header_tells_what_it_is(row):
    study = row(1, "Mass", view="AP", sex="F", age=7)
    exposed = film(study, 1, 64)
    data = pydicom.dcmread(BytesIO(encode(study, exposed, 1)))
    expected = {
        "Modality": "DX",
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1",
        "PresentationIntentType": "FOR PRESENTATION",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "AP",
        "PatientSex": "F",
        "PatientAge": "007Y",
        "BurnedInAnnotation": "NO",
        "PatientIdentityRemoved": "YES",
        "SyntheticData": "YES",
        "LossyImageCompression": "00",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelIntensityRelationship": "LOG",
        "PatientOrientation": ["L", "F"],
        "ImageType": ["DERIVED", "SECONDARY"],
    }
    assert {name: data[name].value for name in expected} == expected
    assert data.SeriesDescription.startswith("SYNTHETIC")
    assert [float(v) for v in data.ImagerPixelSpacing] == pytest.approx([exposed.spacing_mm] * 2, abs=1e-5)
    assert data.ViewCodeSequence[0].CodeMeaning.lower().replace("-", "") == "anteroposterior"
    assert data.SOPInstanceUID == data.file_meta.MediaStorageSOPInstanceUID


def test_uids_are_valid_and_hang_on_their_key():
    uids = [dicom_uid(seed, uid, "instance") for seed in range(3) for uid in ("a", "b")]
    assert len(set(uids)) == 6
    assert all(pydicom.uid.UID(uid).is_valid and uid.startswith("2.25.") and len(uid) <= 64 for uid in uids)
    assert dicom_uid(0, "a", "instance") == uids[0]


def test_all_encodings_occur_at_their_shares():
    drawn = [encoding(uid, 0) for uid in cohort(1500, 0)["uid"]]
    for syntax, share in TRANSFER_SYNTAXES.items():
        assert np.mean([s == syntax for s, _ in drawn]) == pytest.approx(share, abs=0.03)
    assert np.mean([p == "MONOCHROME1" for _, p in drawn]) == pytest.approx(0.25, abs=0.03)


def test_compression_makes_the_file_smaller(row):
    exposed = film(row(), 1, 128)
    plain, packed = (
        written(row(), exposed, s, "MONOCHROME2") for s in (next(iter(TRANSFER_SYNTAXES)), JPEG2000Lossless)
    )
    assert len(packed) < 0.8 * len(plain)


def test_bytes_are_the_same_every_time(row):
    exposed = film(row(), 1, 64)
    for syntax in (JPEG2000Lossless, RLELossless):
        assert written(row(), exposed, syntax, "MONOCHROME1") == written(row(), exposed, syntax, "MONOCHROME1")
