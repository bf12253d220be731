"""Encodes a film as a DICOM Digital X-Ray Image for presentation (PS3.3 A.26), 12 bits in 16, as in hospitals.

Half are uncompressed, the others JPEG 2000 lossless, JPEG-LS lossless or RLE; a quarter are MONOCHROME1. Every file is
marked as synthetic (PS3.3 C.12.1, (0008,001C)) and without a patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO

import imagecodecs
import numpy as np
import pydicom
from pydicom import uid as syntax
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sr.codedict import codes

from medlt._version import __version__
from medlt.data.dicom.synthetic import dicom_uid
from medlt.data.phantom.projection import TOP
from medlt.data.phantom.render import Film
from medlt.rng import numpy_generator

TRANSFER_SYNTAXES: Mapping[str, float] = {
    syntax.ExplicitVRLittleEndian: 0.5,
    syntax.JPEG2000Lossless: 0.2,
    syntax.JPEGLSLossless: 0.15,
    syntax.RLELossless: 0.15,
}
"""Transfer syntax: share of the files."""
_PLUGINS = {syntax.JPEGLSLossless: "pyjpegls", syntax.RLELossless: "pylibjpeg"}
MONOCHROME1_SHARE = 0.25
_DATE, _TIME = "20000101", "120000"


def encoding(uid: str, seed: int) -> tuple[str, str]:
    """Return the transfer syntax and photometric interpretation of one file."""
    draw = numpy_generator(seed, "encoding", uid)
    shares = list(TRANSFER_SYNTAXES.values())
    chosen = list(TRANSFER_SYNTAXES)[int(draw.choice(len(shares), p=shares))]
    return chosen, "MONOCHROME1" if draw.random() < MONOCHROME1_SHARE else "MONOCHROME2"


def _code(concept: object) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = concept[:3]  # type: ignore[index]
    return item


def _patient_and_study(data: Dataset, row: Mapping[str, object], seed: int) -> None:
    patient, study = str(row["patient_id"]), str(row["uid"])
    data.PatientName = patient.replace("-", "^")
    data.PatientID = patient
    data.PatientBirthDate = ""
    data.PatientSex = str(row["sex"])
    data.PatientAge = f"{int(str(row['age'])):03d}Y"
    data.PatientIdentityRemoved = "YES"
    data.DeidentificationMethod = "Synthetic image: no patient exists"
    data.StudyInstanceUID = dicom_uid(seed, study, "study")
    data.SeriesInstanceUID = dicom_uid(seed, study, "series")
    data.StudyID = data.AccessionNumber = data.ReferringPhysicianName = ""
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = _DATE
    data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = _TIME
    data.SeriesNumber = int(str(row.get("study", 1)))
    data.InstanceNumber = 1
    data.StudyDescription = "Chest radiograph"
    data.SeriesDescription = f"SYNTHETIC chest {row['view']}"


def _equipment(data: Dataset) -> None:
    maker = Dataset()
    maker.PurposeOfReferenceCodeSequence = [_code(("109100", "DCM", "Synthesizing Equipment"))]
    maker.Manufacturer = "medlt"
    maker.ManufacturerModelName = "parametric thorax"
    maker.SoftwareVersions = __version__
    data.ContributingEquipmentSequence = [maker]
    data.Manufacturer, data.ManufacturerModelName = maker.Manufacturer, maker.ManufacturerModelName
    data.SoftwareVersions = __version__


def _projection(data: Dataset, row: Mapping[str, object], film: Film) -> None:
    """Fill DX Series, Anatomy, Positioning and Detector modules."""
    view = str(row["view"])
    data.Modality = "DX"
    data.PresentationIntentType = "FOR PRESENTATION"
    data.BodyPartExamined = "CHEST"
    data.AnatomicRegionSequence = [_code(("51185008", "SCT", "Chest"))]
    data.ImageLaterality = "U"
    data.ViewPosition = view
    concept = codes.cid4010.AnteroPosterior if view == "AP" else codes.cid4010.PosteroAnterior
    data.ViewCodeSequence = [_code((concept.value, concept.scheme_designator, concept.meaning))]
    data.PatientOrientation = ["L", "F"]
    data.PositionerType = "NONE"
    data.DetectorType = "SCINTILLATOR"
    data.ImagerPixelSpacing = [round(film.spacing_mm, 6)] * 2
    data.AcquisitionContextSequence = []


def _pixels(data: Dataset, film: Film, photometric: str) -> None:
    """Fill DX Image and VOI LUT modules. MONOCHROME1 stores the complement, with the window of the same display."""
    inverse = photometric == "MONOCHROME1"
    stored = TOP - film.pixels if inverse else film.pixels
    data.ImageType = ["DERIVED", "SECONDARY"]
    data.DerivationDescription = "Beer-Lambert projection of a parametric thorax"
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = photometric
    data.Rows, data.Columns = stored.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelIntensityRelationship = "LOG"
    data.PixelIntensityRelationshipSign = 1 if inverse else -1
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = 0, 1, "US"
    data.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    data.WindowCenter = TOP + 1 - film.centre if inverse else film.centre
    data.WindowWidth = film.width
    data.VOILUTFunction = "LINEAR"
    data.LossyImageCompression = "00"
    data.BurnedInAnnotation = "NO"
    data.SyntheticData = "YES"
    data.PixelData = np.ascontiguousarray(stored, "<u2").tobytes()


def dataset(row: Mapping[str, object], film: Film, seed: int, transfer_syntax: str, photometric: str) -> Dataset:
    """Return the data set in this transfer syntax. Its SOP Instance UID depends on the seed and the row's uid."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = syntax.DigitalXRayImageStorageForPresentation
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = dicom_uid(seed, row["uid"], "instance")
    data.file_meta.TransferSyntaxUID = syntax.ExplicitVRLittleEndian
    data.file_meta.ImplementationClassUID = dicom_uid("medlt")
    data.file_meta.ImplementationVersionName = "MEDLT"
    data.SpecificCharacterSet = "ISO_IR 192"
    _patient_and_study(data, row, seed)
    _equipment(data)
    _projection(data, row, film)
    _pixels(data, film, photometric)
    _compress(data, transfer_syntax)
    return data


def _compress(data: Dataset, transfer_syntax: str) -> None:
    """Compress without loss, in place.

    imagecodecs encodes JPEG 2000: pylibjpeg-openjpeg 2.6 corrupts memory when it encodes in several threads.
    """
    if transfer_syntax == syntax.JPEG2000Lossless:
        stream = imagecodecs.jpeg2k_encode(
            data.pixel_array, level=0, reversible=True, codecformat="j2k", bitspersample=12
        )
        data.PixelData = encapsulate([bytes(stream)])
        data["PixelData"].is_undefined_length = True
        data["PixelData"].VR = "OB"
        data.file_meta.TransferSyntaxUID = transfer_syntax
    elif transfer_syntax != syntax.ExplicitVRLittleEndian:
        data.compress(transfer_syntax, encoding_plugin=_PLUGINS[transfer_syntax], generate_instance_uid=False)


def encode(row: Mapping[str, object], film: Film, seed: int) -> bytes:
    """Return the bytes of one DICOM file; equal for equal arguments."""
    buffer = BytesIO()
    content = dataset(row, film, seed, *encoding(str(row["uid"]), seed))
    pydicom.dcmwrite(buffer, content, enforce_file_format=True)
    return buffer.getvalue()
