"""Ways to hide an identity in a radiograph, as public bug reports and audits describe them, in every transfer syntax.

A way takes a clean film of a syntax and hides WORD in it. The stream of a compressed film, its data set, or the bytes
of its file are changed; `WAYS` says for which syntaxes each makes sense.
"""

import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import imagecodecs
import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import UID

WORD = b"SMITH^JOHN 19610203"
WIDE = WORD.decode().encode("utf-16-le")
NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless)
J2K = (uid.JPEG2000Lossless, uid.HTJ2KLossless)
COMPRESSED = (*JPEG, *J2K, uid.RLELossless)
EVERY = (*NATIVE, *COMPRESSED)


def pixels(syntax: str) -> np.ndarray:
    """A smooth film of 64 x 64, 8 bits for baseline JPEG, else 12 in 16, without anything that looks like text."""
    y, x = np.mgrid[:64, :64]
    plane = 1800 + 1500 * np.sin(x / 21) * np.cos(y / 17)
    return plane.astype(np.uint16) if syntax != uid.JPEGBaseline8Bit else (plane / 16).astype(np.uint8)


def stream(values: np.ndarray, syntax: str, bits: int) -> bytes:
    """One frame, compressed, without comments."""
    if syntax == uid.RLELossless:
        data = Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        (data.Rows, data.Columns), data.SamplesPerPixel, data.PixelRepresentation = values.shape, 1, 0
        data.BitsAllocated = data.BitsStored = 8 * values.itemsize
        data.HighBit = data.BitsStored - 1
        data.PhotometricInterpretation, data.PixelData = "MONOCHROME2", values.tobytes()
        data["PixelData"].VR = "OW"
        data.set_original_encoding(False, True)
        data.compress(syntax, generate_instance_uid=False)
        return get_frame(data.PixelData, 0)
    encoders: dict[str, Callable[[], bytes]] = {
        uid.JPEGBaseline8Bit: lambda: imagecodecs.jpeg8_encode(values, level=95),
        uid.JPEGExtended12Bit: lambda: imagecodecs.jpeg8_encode(values, level=95, bitspersample=12),
        uid.JPEGLossless: lambda: imagecodecs.jpeg8_encode(values, lossless=True, predictor=4, bitspersample=bits),
        uid.JPEGLosslessSV1: lambda: imagecodecs.jpeg8_encode(values, lossless=True, predictor=1, bitspersample=bits),
        uid.JPEGLSLossless: lambda: imagecodecs.jpegls_encode(values),
        uid.JPEG2000Lossless: lambda: imagecodecs.jpeg2k_encode(values, level=0, codecformat="J2K", reversible=True),
        uid.HTJ2KLossless: lambda: imagecodecs.htj2k_encode(values),
    }
    made = bytes(encoders[syntax]())
    return _without(_without(made, 0x64 if made[:2] == b"\xff\x4f" else 0xFE), 0xE8)


def _without(made: bytes, marker: int) -> bytes:
    """The stream without the segments of this marker in its main header."""
    at, out = 2, made[:2]
    while made[at + 1] not in (0xDA, 0x90):
        end = at + 2 + struct.unpack_from(">H", made, at + 2)[0]
        out += made[at:end] if made[at + 1] != marker else b""
        at = end
    return out + made[at:]


def film(clean: Dataset, syntax: str, values: np.ndarray | None = None, bits: int | None = None) -> Dataset:
    """The data set of `clean` with the film's pixels, or `values` of `bits`, in this syntax."""
    values = pixels(syntax) if values is None else values
    data = pydicom.dcmread(BytesIO(written(clean)))
    list(data.iterall())  # decoded, so that they can be written in another byte order
    data.Rows, data.Columns = values.shape
    data.BitsAllocated = 8 * values.itemsize
    data.BitsStored = bits or min(12, data.BitsAllocated)
    data.HighBit = data.BitsStored - 1
    data.file_meta.TransferSyntaxUID = UID(syntax)
    if UID(syntax).is_encapsulated:
        put(data, [stream(values, syntax, int(data.BitsAllocated if bits else data.BitsStored))])
    else:
        order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
        data.add_new("PixelData", "OW", values.astype(values.dtype.newbyteorder(order)).tobytes())
        data.set_original_encoding(syntax == uid.ImplicitVRLittleEndian, order == "<")
    return data


def put(data: Dataset, frames: list[bytes]) -> None:
    """Set the items of encapsulated pixels."""
    data.add_new("PixelData", "OB", encapsulate(frames))
    data["PixelData"].is_undefined_length = True


def written(data: Dataset) -> bytes:
    """The bytes of the file."""
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


def frame(data: Dataset) -> bytes:
    """The only stream of a compressed film."""
    return get_frame(data.PixelData, 0, number_of_frames=1)


def _segment(marker: int, body: bytes) -> Callable[[Dataset], None]:
    """Put a segment behind the start of a JPEG stream, or behind the SIZ segment of a JPEG 2000 stream."""

    def hide(data: Dataset) -> None:
        made = frame(data)
        at = 2 if made[:2] == b"\xff\xd8" else 4 + struct.unpack_from(">H", made, 4)[0]
        put(data, [made[:at] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + made[at:]])

    return hide


def _behind(data: Dataset) -> None:
    put(data, [frame(data) + WORD + b" "])


def _second_stream(data: Dataset) -> None:
    """A second film with the word in its pixels behind the first, in a fragment of its own."""
    values = pixels(str(data.file_meta.TransferSyntaxUID)).copy()
    values[0, : len(WORD)] = np.frombuffer(WORD, np.uint8)
    put(data, [frame(data)])
    second = stream(values, str(data.file_meta.TransferSyntaxUID), int(data.BitsStored))
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(second) + len(second) % 2)
    data.PixelData = data.PixelData + item + second + b"\0" * (len(second) % 2)
    data["PixelData"].is_undefined_length = True


def _more_cells(data: Dataset) -> None:
    data.PixelData = data.PixelData + WORD + b" "


def _header(keyword: str, value: object) -> Callable[[Dataset], None]:
    def hide(data: Dataset) -> None:
        with pydicom.config.disable_value_validation():
            setattr(data, keyword, value)

    return hide


def _private(data: Dataset) -> None:
    data.private_block(0x0029, "ACME", create=True).add_new(0x10, "LO", WORD.decode())


def _nested(data: Dataset) -> None:
    inner, outer = Dataset(), Dataset()
    inner.ImageComments, outer.FrameAnatomySequence = WORD.decode(), [inner]
    data.AnatomicRegionSequence = [outer]


def _overlay(data: Dataset) -> None:
    data.add_new(0x60004000, "LT", WORD.decode())


def _code(data: Dataset) -> None:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "1", "99ACME", WORD.decode()
    data.ViewCodeSequence = [item]


def _meta(data: Dataset) -> None:
    data.file_meta.SourceApplicationEntityTitle = WORD.decode()[:16]


def _preamble(raw: bytes) -> bytes:
    return WORD + raw[len(WORD) :]


def _end_of_file(raw: bytes) -> bytes:
    return raw + struct.pack("<HH2sHI", 0xFFFC, 0xFFFC, b"OB", 0, len(WORD) + 1) + WORD + b" "


@dataclass(frozen=True)
class Way:
    """A way to hide WORD: a change of the data set, or of the file's bytes, and the syntaxes in which it is one."""

    name: str
    syntaxes: tuple[str, ...]
    data: Callable[[Dataset], None] = lambda data: None
    raw: Callable[[bytes], bytes] = lambda raw: raw

    def hidden(self, clean: Dataset, syntax: str) -> bytes:
        """The file of a clean film in this syntax, with WORD."""
        made = film(clean, syntax)
        self.data(made)
        return self.raw(written(made))


WAYS = (
    Way("comment in a JPEG stream", JPEG, _segment(0xFE, b"Patient " + WORD)),
    Way("short comment in a JPEG stream", JPEG, _segment(0xFE, WORD[:10])),
    Way("EXIF in a JPEG stream", JPEG, _segment(0xE1, b"Exif\0\0" + WORD)),
    Way("UTF-16 in an application segment", JPEG, _segment(0xEF, WIDE)),
    Way("comment in a JPEG 2000 stream", J2K, _segment(0x64, b"\0\x01" + WORD)),
    Way("text behind the stream", COMPRESSED, _behind),
    Way("a second stream", COMPRESSED, _second_stream),
    Way("more pixel data than declared", NATIVE, _more_cells),
    Way("an address", EVERY, _header("RetrieveURL", "https://pacs/" + WORD.decode())),
    Way("another study number", EVERY, _header("OtherStudyNumbers", "19610203")),
    Way("a private attribute", EVERY, _private),
    Way("free text in a sequence", EVERY, _nested),
    Way("free text of the table", EVERY, _header("ImageComments", WORD.decode())),
    Way("free text outside the table", EVERY, _header("LUTExplanation", WORD.decode())),
    Way("a sentence as a term", EVERY, _header("FilterMaterial", WORD.decode())),
    Way("a local code", EVERY, _code),
    Way("an overlay's comment", EVERY, _overlay),
    Way("a profile of colours", EVERY, _header("ICCProfile", WORD + b" ")),
    Way("file meta information", EVERY, _meta),
    Way("the preamble", EVERY, raw=_preamble),
    Way("padding behind the data set", tuple(s for s in EVERY if s in (*COMPRESSED, NATIVE[1])), raw=_end_of_file),
)
CASES = [(way, syntax) for way in WAYS for syntax in way.syntaxes]
