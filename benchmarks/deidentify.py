"""De-identifiers compared: the share of the standard's actions that each gets right, and planted identifiers that
survive.

    python benchmarks/deidentify.py [--patients 4] [--peers PYTHON] [--keep FOLDER]

The benchmark writes a corpus of DX, CR and SC files. Every attribute of PS3.15 Table E.1-1 in the DICOM dictionary
has a value of its own, once at the top and once inside a kept sequence; there are also private attributes, curves,
overlays, file meta information and the preamble. Each tool de-identifies the corpus, and the output is scored.
`--peers` names a Python that can import deid, dicognito and dicom-anonymizer; those that it cannot import are left
out with a line. The scorer reads the table and the types itself and shares no code with the tools. The text in pixels
has a benchmark of its own, `deidentify_text.py`.

One planted element is one action. These results are right: X: absent. Z: present and empty, or another value that its
value representation allows. D: present, not empty, another valid value. U: another valid UID, the same wherever the
same UID occurred in any file. K: unchanged. C (dates, only under the modified-dates option): DA and DT shifted by one
number of days, not 0, throughout a patient, TM unchanged; elements without a cleaner absent or with another value. A
compound allows any of its letters that the type of the attribute in the IOD allows: type 1 the last, type 2 all but
X, type 3 or unknown all.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pydicom
from common import table
from deidentify_corpus import HOLDER, KEPT, corpus, rows
from deidentify_peers import RUNNERS, peer
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.valuerep import PersonName, validate_value

from medlt.data.deidentify import Profile, deidentify, write_deidentified

OPTIONS = "basic,retain-dates-modified,retain-patient-characteristics"


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


def main() -> None:
    """Run, print and keep the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, default=4)
    parser.add_argument("--peers", help="a Python that imports deid, dicognito, dicom-anonymizer")
    parser.add_argument("--keep", type=Path, help="keep the files here")
    args = parser.parse_args()
    lines = [f"pydicom {version('pydicom')}. {__doc__.split(chr(10) * 2)[-1].strip()}", ""]
    lines += scores(args.patients, args.peers, args.keep)
    table("deidentify", lines)


if __name__ == "__main__":
    sys.exit(main())
