"""De-identifiers compared: the share of the standard's actions that each gets right, and planted identifiers that
survive.

    python benchmarks/deidentify.py [--patients 4] [--peers PYTHON] [--images FOLDER] [--keep FOLDER]

The benchmark writes a corpus of DX, CR and SC files. Every attribute of PS3.15 Table E.1-1 in the DICOM dictionary
has a value of its own, once at the top and once inside a kept sequence; there are also private attributes, curves,
overlays, file meta information and the preamble. Each tool de-identifies the corpus, and the output is scored.
`--peers` names a Python that can import deid, dicognito and dicom-anonymizer; those that it cannot import are left
out with a line. The scorer reads the table and the types itself and shares no code with the tools. `--images` is a
folder of 8-bit PNG radiographs for the burned-in text; without it that part is left out.

One planted element is one action. These results are right: X: absent. Z: present and empty, or another value that its
value representation allows. D: present, not empty, another valid value. U: another valid UID, the same wherever the
same UID occurred in any file. K: unchanged. C (dates, only under the modified-dates option): DA and DT shifted by one
number of days, not 0, throughout a patient, TM unchanged; elements without a cleaner absent or with another value. A
compound allows any of its letters that the type of the attribute in the IOD allows: type 1 the last, type 2 all but
X, type 3 or unknown all.
"""

from __future__ import annotations

import argparse
import csv
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from common import table
from pydicom import config
from pydicom.datadict import dictionary_keyword, dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import PersonName, validate_value

from medlt.data.deidentify import Profile, deidentify, text_boxes, write_deidentified

TABLE = Path(__file__).parents[1] / "medlt" / "data" / "deidentify" / "actions.csv"
CLASSES = {"dx": "1.2.840.10008.5.1.4.1.1.1.1", "cr": "1.2.840.10008.5.1.4.1.1.1", "sc": "1.2.840.10008.5.1.4.1.1.7"}
KEPT = {
    "BodyPartExamined": "CHEST",
    "ViewPosition": "PA",
    "ImageLaterality": "U",
    "PatientOrientation": ["L", "F"],
    "KVP": "110",
    "ExposureTime": "9",
    "PixelSpacing": ["0.14", "0.14"],
    "WindowCenter": "2048",
    "WindowWidth": "4096",
    "ImageType": ["ORIGINAL", "PRIMARY"],
    "PresentationLUTShape": "IDENTITY",
    "Manufacturer": "Maker of Machines",
    "ManufacturerModelName": "Model Q",
    "InstanceNumber": "1",
    "SeriesNumber": "2",
    "LossyImageCompression": "00",
}
CHARACTERISTICS = {
    "PatientAge": "061Y",
    "PatientSex": "F",
    "PatientSize": "1.71",
    "PatientWeight": "70.5",
    "EthnicGroup": "Martian",
    "SmokingStatus": "NO",
    "PatientSexNeutered": "UNALTERED",
    "PregnancyStatus": 4,
}
TEXT = {"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT"}
HOLDER = "AnatomicRegionSequence"
OPTIONS = "basic,retain-dates-modified,retain-patient-characteristics"

Key = tuple[str, str]  # place ("top", "nested"), keyword


class Planter:
    """Values that occur nowhere else in the corpus; none of them may be in the output."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.planted: set[str] = set()
        self.used: set[str] = set()

    def word(self) -> str:
        """Twelve letters and digits that stand nowhere else."""
        text = "Q" + "".join(self.random.choices("BCDFGHJKLMNPRSTVWXZ23456789", k=11))
        self.planted.add(text)
        return text

    def day(self) -> str:
        """A date within sixty years that stands nowhere else."""
        while (text := (date(1960, 1, 1) + timedelta(self.random.randrange(20000))).strftime("%Y%m%d")) in self.used:
            pass
        self.used.add(text)
        return text

    def value(self, vr: str) -> Any:
        """A value valid for `vr`."""
        clock = f"{self.random.randrange(24):02d}{self.random.randrange(60):02d}{self.random.randrange(60):02d}"
        if vr in TEXT:
            return self.word() if vr != "PN" else f"{self.word()}^{self.word()}"
        if vr == "SQ":
            item = Dataset()
            item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = self.word(), "99PLANT", self.word()
            return [item]
        plain = {
            "DA": self.day(),
            "DT": self.day() + clock,
            "TM": clock,
            "UI": f"1.2.826.0.1.{self.random.randrange(10**14, 10**15)}",
            "UR": f"http://{self.word()}.org",
            "AS": f"{self.random.randrange(1, 99):03d}Y",
            "DS": f"{self.random.randrange(10**6, 10**7)}",
            "IS": f"{self.random.randrange(10**6, 10**7)}",
            "CS": self.word().upper(),
        }
        return plain.get(vr) or (self.word().encode() if vr[0] in "OU" and vr not in ("UL", "US") else 60001)


def rows() -> dict[str, dict[str, str]]:
    """The rows of the table that a data set can hold, by keyword."""
    attributes = {}
    with TABLE.open(newline="") as handle:
        for row in csv.DictReader(handle):
            if "X" in row["tag"] or int(row["tag"][:4], 16) in (0, 2, 4):
                continue
            try:
                attributes[dictionary_keyword(int(row["tag"], 16))] = row
            except KeyError:
                continue
    return attributes


def fill(data: Dataset, planter: Planter, names: list[str], uids: dict[str, str]) -> None:
    """Plant a value in every attribute of `names`; UIDs in `uids` are given."""
    for name in names:
        tag = tag_for_keyword(name)
        vr = dictionary_VR(tag).split(" ")[0]
        value = uids.get(name) or CHARACTERISTICS.get(name) or planter.value(vr)
        data[tag] = DataElement(tag, vr, value)


def sample(planter: Planter, family: str, shared: dict[str, str], before: str | None) -> Dataset:
    """One file of the corpus. `shared` holds what the patient's files have in common, `before` another file's UID."""
    data, nested, names = Dataset(), Dataset(), [n for n in rows() if n not in (HOLDER, "ContentSequence")]
    own = {"SOPInstanceUID": planter.value("UI")}
    fill(data, planter, names, {**shared, **own})
    fill(nested, planter, [n for n in names if n != "SOPInstanceUID"], {"PatientID": shared["PatientID"]})
    if before:
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = CLASSES[family], before
        nested.ReferencedInstanceSequence = [reference]
    for name, value in KEPT.items():
        setattr(data, name, value)
    nested.CodeValue, nested.CodingSchemeDesignator, nested.CodeMeaning = "816094009", "SCT", "Chest"
    data.SOPClassUID, data.Modality = CLASSES[family], {"dx": "DX", "cr": "CR", "sc": "OT"}[family]
    data.AnatomicRegionSequence = [nested]
    data.FilterMaterial, data.WindowCenterWidthExplanation = "COPPER", f"window of {data.PatientName.family_name}"
    _hide(data, nested, planter)
    _pixels(data)
    _file_meta(data, planter)
    return data


def _hide(data: Dataset, nested: Dataset, planter: Planter) -> None:
    """Private attributes, curves and overlays."""
    for level in (data, nested):
        block = level.private_block(0x0029, "PLANTED 1.0", create=True)
        block.add_new(0x10, "LO", planter.word())
        block.add_new(0x11, "UN", planter.word().encode())
    data.add_new(0x50000030, "SH", planter.word())
    data.add_new(0x50003000, "OW", planter.word().encode())
    for element, vr, value in ((0x10, "US", 8), (0x11, "US", 8), (0x40, "CS", "G"), (0x50, "SS", [1, 1])):
        data.add_new(0x60000000 + element, vr, value)
    data.add_new(0x60000100, "US", 1)
    data.add_new(0x60000102, "US", 0)
    data.add_new(0x60003000, "OW", planter.word().encode())
    data.add_new(0x60004000, "LT", planter.word())
    data.add_new(0x60001500, "LO", planter.word())


def _pixels(data: Dataset, image: np.ndarray | None = None) -> None:
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) if image is None else image.astype(np.uint16) * 16
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.add_new("PixelData", "OW", values.tobytes())


def _file_meta(data: Dataset, planter: Planter) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.SourceApplicationEntityTitle = planter.word()
    meta.PrivateInformationCreatorUID, meta.PrivateInformation = "1.2.3.4", planter.word().encode()
    data.file_meta = meta
    data.preamble = planter.word().encode() * 10 + b"\0" * 8


def corpus(folder: Path, patients: int) -> tuple[dict[str, Dataset], set[str]]:
    """Write the files; what they hold by name, and every planted text."""
    planter, files = Planter(7), {}
    for patient in range(patients):
        shared = {"PatientID": planter.word(), "StudyInstanceUID": planter.value("UI")}
        before = None
        for family in CLASSES:
            data = sample(planter, family, shared, before)
            name, before = f"p{patient}_{family}.dcm", str(data.SOPInstanceUID)
            data.save_as(folder / name, enforce_file_format=True)
            files[name] = pydicom.dcmread(folder / name)
    return files, planter.planted


def wanted(row: dict[str, str], family: str | None, options: bool) -> tuple[set[str], str]:
    """Letters that are right for this attribute, and the letter it is booked under."""
    if options and row["dates"]:
        return {"C"}, "C"
    if options and row["characteristics"] == "K":
        return {"K"}, "K"
    choices = row["basic"].replace("*", "").split("/")
    kind = row[family] if family else ""
    if len(choices) > 1 and kind.startswith("1"):
        choices = choices[-1:]
    elif len(choices) > 1 and kind.startswith("2"):
        choices = [c for c in choices if c != "X"]
    return set(choices), row["basic"]


def texts(value: Any) -> list[str]:
    """What a value says, flattened."""
    if isinstance(value, Dataset):
        return [t for e in value for t in texts(e.value)]
    if isinstance(value, bytes):
        return [value.decode("latin1")]
    if isinstance(value, (str, PersonName)) or not hasattr(value, "__iter__"):
        return [str(value)]
    return [t for v in value for t in texts(v)]


def valid(vr: str, value: Any) -> bool:
    """Whether pydicom's own validator takes the value."""
    if vr == "SQ" or isinstance(value, bytes):
        return True
    try:
        for one in value if hasattr(value, "__iter__") and not isinstance(value, str) and vr != "PN" else [value]:
            validate_value(vr, str(one) if vr in ("UI", "DA", "DT", "TM", "PN") else one, config.RAISE)
    except (ValueError, TypeError):
        return False
    return True


def changed(old: DataElement, new: DataElement) -> bool:
    """Another value, and nothing of the old one inside the new."""
    before, after = set(texts(old.value)) - {"99PLANT", ""}, "\n".join(texts(new.value))
    return not any(text in after for text in before)


def days(old: str, new: str) -> int | None:
    """How far a date moved; None where either is none, or the clock behind it changed."""
    try:
        ends = [date(int(t[:4]), int(t[4:6]), int(t[6:8])) for t in (old, new)]
    except ValueError:
        return None
    return (ends[1] - ends[0]).days if old[8:] == new[8:] else None


def right(letter: str, old: DataElement, new: DataElement | None, shift: int | None) -> bool:
    """Return whether `new` is what `letter` requires of `old`. The consistency of U is checked across files."""
    if letter == "X":
        return new is None
    if letter == "K":
        return new is not None and new.value == old.value
    if letter == "C" and old.VR not in ("DA", "DT", "TM"):
        return new is None or changed(old, new)
    if new is None:
        return False
    if letter == "C":
        moved = days(str(old.value), str(new.value))
        return str(new.value) == str(old.value) if old.VR == "TM" else bool(moved) and moved == shift
    if letter == "Z" and new.is_empty:
        return True
    return not new.is_empty and changed(old, new) and valid(new.VR, new.value)


def patient_shift(old: Dataset, new: Dataset) -> int | None:
    """Days the study date moved: the yardstick for every other date of the patient."""
    return days(str(old.StudyDate), str(new.get("StudyDate") or ""))


def score_actions(files: dict[str, Dataset], out: Path, options: bool) -> tuple[Counter[str], Counter[str], list[str]]:
    """Right and all actions by letter, and the first wrong ones."""
    good, every, wrong = Counter[str](), Counter[str](), []
    mapped: dict[str, set[str]] = defaultdict(set)
    uses: list[tuple[str, str]] = []
    shifts: dict[str, int | None] = {}

    def book(letter: str, fine: bool, where: str) -> None:
        every[letter] += 1
        every["nested"] += " nested " in where
        good[letter] += fine
        if not fine:
            wrong.append(f"{where} ({letter})")

    for name, old in files.items():
        new, family = read(out / name), name.split("_")[1].removesuffix(".dcm")
        shift = shifts.setdefault(name.split("_")[0], patient_shift(old, new))
        inner = (new.get(HOLDER) or [Dataset()])[0]
        for place, before, after in (("top", old, new), ("nested", old[HOLDER][0], inner)):
            for keyword, row in rows().items():
                if keyword not in before:
                    continue
                letters, booked = wanted(row, family if place == "top" else None, options)
                was, now = before[keyword], after[keyword] if keyword in after else None
                fine = any(right(letter, was, now, shift) for letter in letters)
                if letters == {"U"} and fine and now is not None:
                    mapped[str(was.value)].add(str(now.value))
                    uses.append((str(was.value), f"{name} {place} {keyword}"))
                    continue
                book(booked, fine, f"{name} {place} {keyword}")
        _beyond(old, new, name, book)
        reference = old[HOLDER][0].get("ReferencedInstanceSequence")
        if reference:
            now = inner.get("ReferencedInstanceSequence") or [Dataset()]
            mapped[str(reference[0].ReferencedSOPInstanceUID)].add(str(now[0].get("ReferencedSOPInstanceUID")))
            uses.append((str(reference[0].ReferencedSOPInstanceUID), f"{name} nested reference"))
    for uid, where in uses:
        book("U", len(mapped[uid]) == 1, where)
    return good, every, wrong


def _beyond(old: Dataset, new: Dataset, name: str, book: Any) -> None:
    """What Table E.1-1 says of groups, what the profile says of file meta, and attributes that must stay."""
    for keyword in [*KEPT, "Rows", "Columns", "PixelData", "FilterMaterial", "Modality"]:
        book("kept", keyword in new and new[keyword].value == old[keyword].value, f"{name} {keyword}")
    inner = (new.get(HOLDER) or [Dataset()])[0]
    book("kept", inner.get("CodeValue") == "816094009", f"{name} nested code")
    for level, where in ((new, "top"), (inner, "nested")):
        book("private", not any(tag.is_private for tag in level.keys()), f"{name} {where} private")
    book("X", not any(tag.group & 0xFF00 == 0x5000 for tag in new.keys()), f"{name} curve")
    for tag in (0x60003000, 0x60004000):
        book("X", tag not in new, f"{name} overlay {tag:08x}")
    meta = new.file_meta
    book("meta", meta.get("MediaStorageSOPInstanceUID") == new.get("SOPInstanceUID"), f"{name} file meta UID")
    for keyword in ("SourceApplicationEntityTitle", "PrivateInformation"):
        book("meta", meta.get(keyword) != old.file_meta.get(keyword), f"{name} {keyword}")
    book("meta", not new.preamble or new.preamble == b"\0" * 128, f"{name} preamble")


def read(path: Path) -> Dataset:
    """A tool's output; an empty data set where it wrote none."""
    if not path.exists():
        empty = Dataset()
        empty.file_meta, empty.preamble = FileMetaDataset(), b""
        return empty
    return pydicom.dcmread(path)


def leaks(out: Path, planted: set[str]) -> int:
    """Return how many planted texts are in the bytes of a file, or in its decoded values."""
    leaked: set[str] = set()
    for path in sorted(out.glob("*.dcm")):
        everything = path.read_bytes().decode("latin1") + "\n".join(texts(pydicom.dcmread(path)))
        leaked |= {text for text in planted if text.upper() in everything.upper()}
    return len(leaked)


RUNNERS = {
    "dicognito": """
from dicognito.anonymizer import Anonymizer
tool = Anonymizer(seed="bench")
def run(a, b):
    d = pydicom.dcmread(a); tool.anonymize(d); d.save_as(b)
""",
    "deid": """
from deid.dicom import get_identifiers, replace_identifiers
def run(a, b):
    ids = get_identifiers([str(a)], expand_sequences=True)
    replace_identifiers([str(a)], ids=ids, save=True, output_folder=str(b.parent), overwrite=True)
""",
    "dicom-anonymizer": """
from dicomanonymizer import anonymize_dicom_file
from dicomanonymizer.simpledicomanonymizer import initialize_actions
def run(a, b):
    anonymize_dicom_file(str(a), str(b), base_rules_gen=lambda: initialize_actions("dicomfields_2026c"))
""",
}
SHELL = """
import sys, time, warnings, logging, pydicom
from importlib.metadata import version
from pathlib import Path
warnings.simplefilter("ignore"); logging.disable(logging.CRITICAL)
{}
source, out = map(Path, sys.argv[1:3])
bad, spent = 0, []
for path in sorted(source.glob("*.dcm")):
    began = time.perf_counter()
    try:
        run(path, out / path.name)
    except Exception as error:
        bad += 1; print("failed", repr(error)[:300], file=sys.stderr)
    spent.append(time.perf_counter() - began)
print("\\nRESULT", version("{}"), bad, sorted(spent)[len(spent) // 2])
"""


def peer(name: str, python: str, source: Path, out: Path) -> tuple[str, float] | None:
    """Run another tool in its own interpreter: its version and median seconds a file, or None if it is not there."""
    code = SHELL.format(RUNNERS[name], name)
    done = subprocess.run([python, "-c", code, str(source), str(out)], capture_output=True, text=True, check=False)
    last = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not last:
        print(f"{name}: left out, {(done.stderr.splitlines() or ['no output'])[-1]}")
        return None
    if done.stderr:
        print(f"{name}: {done.stderr.splitlines()[-1]}")
    _, release, failed, spent = last[-1].split()
    return f"{name} {release}" + (f" ({failed} files failed)" if failed != "0" else ""), float(spent)


def ours(source: Path, out: Path, profile: str) -> float:
    """Run medlt without looking at the pixels: median seconds a file, reading and writing included."""
    spent = []
    for path in sorted(source.glob("*.dcm")):
        began = time.perf_counter()
        result = deidentify(pydicom.dcmread(path), Profile.parse(profile), b"benchmark key of 32 bytes length", None)
        write_deidentified(out / path.name, result)
        spent.append(time.perf_counter() - began)
    return sorted(spent)[len(spent) // 2]


def line(name: str, files: dict[str, Dataset], out: Path, planted: set[str], seconds: float, options: bool) -> str:
    """One row of the result table."""
    good, every, wrong = score_actions(files, out, options)
    kinds = ("X", "Z", "D", "U", "C", "K", "kept", "private", "meta")
    mixed = [k for k in every if "/" in k]
    parts = [f"{good[k]}/{every[k]}" if every[k] else "-" for k in kinds]
    parts.append(f"{sum(good[k] for k in mixed)}/{sum(every[k] for k in mixed)}")
    shares = [100 * (1 - bad / all_) for bad, all_ in _by_place(every, wrong)]
    if wrong:
        print(f"{name}: wrong, the first of {len(wrong)}: {', '.join(wrong[:6])}")
    cells = " | ".join(f"{share:.2f}" for share in shares)
    return f"| {name} | {cells} | {leaks(out, planted)} | {' | '.join(parts)} | {1e3 * seconds:.1f} |"


def _by_place(every: Counter[str], wrong: list[str]) -> list[tuple[int, int]]:
    """Wrong and all actions: everywhere, outside sequences, inside them."""
    total, nested = sum(every.values()), every["nested"]
    total -= nested
    bad = sum(" nested " in where for where in wrong)
    return [(len(wrong), total), (len(wrong) - bad, total - nested), (bad, nested)]


def scores(patients: int, python: str | None, keep: Path | None) -> list[str]:
    """The table of actions, for the Basic Profile and with our two header options."""
    with tempfile.TemporaryDirectory() as temporary:
        root = keep or Path(temporary)
        source = root / "source"
        source.mkdir(parents=True, exist_ok=True)
        files, planted = corpus(source, patients)
        head = [
            "tool",
            "right %",
            "outside sequences",
            "inside",
            "planted, leaked",
            "X",
            "Z",
            "D",
            "U",
            "C",
            "K",
            "kept",
            "private",
            "meta",
            "compound",
        ]
        lines_of = {False: [], True: []}
        for options, profile in ((False, "basic"), (True, OPTIONS)):
            out = root / f"medlt_{options}"
            out.mkdir(exist_ok=True)
            lines_of[options].append(line("medlt", files, out, planted, ours(source, out, profile), options))
        for name in RUNNERS if python else ():
            out = root / name
            out.mkdir(exist_ok=True)
            if ran := peer(name, str(python), source, out):
                for options in lines_of:
                    lines_of[options].append(line(ran[0], files, out, planted, ran[1], options))
    top = ["| " + " | ".join([*head, "ms a file"]) + " |", "|---|" + "---:|" * 15]
    about = f"{len(files)} files, {len(planted)} planted texts, {len(rows())} rows of the table in each, twice."
    return [about, "", "Basic Profile:", "", *top, *lines_of[False], "", f"`{OPTIONS}`:", "", *top, *lines_of[True]]


FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX)
WORDS = ("SMITH JOHN", "12345678", "1950-03-14", "ID 4471-A", "Mueller, Anna")


def burned(image: np.ndarray, height: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """A copy with text of `height` px in white, black or white on a black bar, and the mask of its strokes."""
    font, word = FONTS[draw.integers(len(FONTS))], WORDS[draw.integers(len(WORDS))]
    thick = max(1, round(height / 10))
    scale = cv2.getFontScaleFromHeight(font, height, thick)
    (width, tall), below = cv2.getTextSize(word, font, scale, thick)
    if width + 4 > image.shape[1]:
        return None
    left = int(draw.integers(2, image.shape[1] - width - 1))
    foot = int(draw.choice([tall + 4, image.shape[0] - below - 4, draw.integers(tall + 4, image.shape[0] - below - 4)]))
    style, out, mask = draw.integers(3), image.copy(), np.zeros_like(image)
    if style == 2:
        cv2.rectangle(out, (left - 2, foot - tall - 2), (left + width + 2, foot + below + 2), 0, -1)
    cv2.putText(out, word, (left, foot), font, scale, 0 if style == 1 else 255, thick, cv2.LINE_AA)
    cv2.putText(mask, word, (left, foot), font, scale, 255, thick)
    strokes = mask > 0
    legible = abs(float(np.median(image[strokes])) - (0 if style == 1 else 255)) / 255 >= 0.3 or style == 2
    return (out, strokes) if legible else None


def cleaned_share(image: np.ndarray, strokes: np.ndarray) -> tuple[float, bool]:
    """Share of the strokes' edges that `basic,clean-pixel` left flat, and whether it released the image."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = CLASSES["dx"], "1.2.3", "DX"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    _pixels(data, image)
    made = deidentify(data, Profile.parse("basic,clean-pixel"), b"benchmark key of 32 bytes length")
    after = np.frombuffer(made.dataset.PixelData, np.uint16).reshape(image.shape)
    square = np.ones((3, 3), np.uint8)
    edges = strokes & (cv2.morphologyEx(image, cv2.MORPH_GRADIENT, square) > 0)
    flat = cv2.morphologyEx(after, cv2.MORPH_GRADIENT, square) == 0
    return float(np.mean(flat[edges])), made.quarantine is None


def pixels(folder: Path, count: int) -> list[str]:
    """How often text is seen and painted over, by image side and letter height."""
    paths = sorted(folder.rglob("*.png"))
    draw = np.random.default_rng(3)
    head = ["side, px", "letters, px", "planted", "seen", "gone by 95 %", "released with half left", "ms to look"]
    lines = ["| " + " | ".join(head) + " |", "|---:" * len(head) + "|"]
    for side, heights in ((256, (8, 14, 20)), (1024, (8, 12, 20, 40, 80)), (2048, (12, 20, 40, 80))):
        for height in heights:
            seen, shares, spent = [], [], []
            while len(seen) < count:
                image = cv2.imread(str(paths[draw.integers(len(paths))]), cv2.IMREAD_GRAYSCALE)
                image = image if side == 256 else cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
                made = burned(image, height, draw)
                if made is None:
                    continue
                began = time.perf_counter()
                boxes = text_boxes(made[0])
                spent.append(time.perf_counter() - began)
                mask = np.zeros(image.shape, bool)
                for box in boxes:
                    mask[box.top : box.top + box.height, box.left : box.left + box.width] = True
                seen.append(mask[made[1]].mean() > 0.5)
                shares.append(cleaned_share(*made))
            full = np.mean([share >= 0.95 for share, _ in shares])
            loose = np.mean([share < 0.5 and released for share, released in shares])
            times = 1e3 * float(np.median(spent))
            lines.append(
                f"| {side} | {height} | {count} | {np.mean(seen):.2f} | {full:.2f} | {loose:.2f} | {times:.1f} |"
            )
    fired = [bool(text_boxes(cv2.imread(str(p), cv2.IMREAD_GRAYSCALE))) for p in paths]
    rate = f"As they are, {sum(fired)} of {len(fired)} images make the detector fire ({100 * np.mean(fired):.1f} %)."
    return ["", "Burned-in text, planted where it is legible (contrast of at least 0.3):", "", *lines, "", rate]


def main() -> None:
    """Run, print and keep the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, default=4)
    parser.add_argument("--peers", help="a Python that imports deid, dicognito, dicom-anonymizer")
    parser.add_argument("--images", type=Path, help="a folder of 8-bit PNG radiographs")
    parser.add_argument("--count", type=int, default=40, help="texts planted per size")
    parser.add_argument("--keep", type=Path, help="keep the files here")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    lines = [f"pydicom {version('pydicom')}, OpenCV {cv2.__version__}. {__doc__.split(chr(10) * 2)[-1].strip()}", ""]
    lines += scores(args.patients, args.peers, args.keep)
    if args.images:
        lines += pixels(args.images, args.count)
    table("deidentify", lines)


if __name__ == "__main__":
    sys.exit(main())
