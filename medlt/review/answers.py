"""The answers of a reader: one CSV file a reader, keyed by seed and uid, written whole after every answer.

FOLDER/review/READER.csv    seed, uid, finding, origin, plausibility, presence, comment; a blank is no answer
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from medlt.csv_text import unescape, write_rows
from medlt.files import write_bytes
from medlt.types import InputError

FOLDER = "review"
QUESTIONS: dict[str, tuple[str, ...]] = {
    "origin": ("real", "synthetic"),
    "plausibility": ("plausible", "implausible"),
    "presence": ("present", "absent", "unsure"),
}
"""Question -> its answers."""
COLUMNS = ("seed", "uid", "finding", *QUESTIONS, "comment")
LONGEST_COMMENT = 2000
READER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


@dataclass(frozen=True)
class ReaderAnswer:
    """A reader's answers to one image. A blank is no answer."""

    seed: int
    uid: str
    finding: str
    origin: str = ""
    plausibility: str = ""
    presence: str = ""
    comment: str = ""

    def answered(self, questions: Iterable[str]) -> bool:
        """Return whether every one of these questions has an answer."""
        return all(getattr(self, question) for question in questions)


class ChangedFileError(RuntimeError):
    """Another program changed the file of a reader, so it is not overwritten."""


def reader_file(folder: Path, reader: str) -> Path:
    """Return FOLDER/review/READER.csv. Raises InputError for a name that is no plain file name on every system."""
    if not READER.fullmatch(reader):
        raise InputError(f"--reader {reader!r}: give a short name of letters, digits, _ and -, such as reader-1")
    file = Path(folder) / FOLDER / f"{reader}.csv"
    if file.parent.is_symlink():
        raise InputError(
            f"{file.parent}: is a link, and answers are not written behind one; move it away, and run again"
        )
    same = [one.name for one in file.parent.glob("*.csv") if one.name.lower() == file.name.lower()]
    if same and file.name not in same:
        raise InputError(f"--reader {reader}: {same[0]} exists; write the name as it is there, or choose another")
    return file


def clean_comment(text: str) -> str:
    """Return a comment on one line: control characters become blanks. Raises ValueError if it is too long."""
    line = "".join(" " if unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") else one for one in text).strip()
    if len(line) > LONGEST_COMMENT:
        raise ValueError(f"a comment has at most {LONGEST_COMMENT} characters")
    return line


def read_answers(file: Path) -> dict[tuple[int, str], ReaderAnswer]:
    """Return the answers in a reader's file by seed and uid; {} for a missing file.

    Raises InputError, with the line, for a file that is none.
    """
    return _parsed(file, file.read_bytes()) if file.is_file() else {}


def _parsed(file: Path, data: bytes) -> dict[tuple[int, str], ReaderAnswer]:
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: not readable as CSV ({error}); restore it, or move it away") from None
    answers: dict[tuple[int, str], ReaderAnswer] = {}
    for number, row in enumerate(rows, 2):
        answer = _answer(file, number, row)
        answers[answer.seed, answer.uid] = answer
    return answers


def _answer(file: Path, number: int, row: Mapping[str, str | None]) -> ReaderAnswer:
    """Return one line as an answer. Raises InputError for a missing column or an unknown value."""
    if missing := [name for name in COLUMNS if row.get(name) is None]:
        raise InputError(f"{file}, line {number}: no value of {missing[0]!r}; it is not a file of `medlt review`")
    for question, values in QUESTIONS.items():
        if row[question] not in ("", *values):
            what = f"{question} is {row[question]!r}; write {', '.join(values)} or nothing"
            raise InputError(f"{file}, line {number}: {what}")
    if not str(row["seed"]).isdecimal():
        raise InputError(f"{file}, line {number}: seed is {row['seed']!r}; write a whole number")
    return ReaderAnswer(int(str(row["seed"])), **{name: unescape(str(row[name])) for name in COLUMNS if name != "seed"})


@dataclass
class AnswerFile:
    """The file of one reader, open for new answers. Each `save` writes all of it to a temporary file and renames it."""

    path: Path
    answers: dict[tuple[int, str], ReaderAnswer] = field(default_factory=dict)
    _written: bytes | None = None
    _lock: Lock = field(default_factory=Lock, repr=False)

    @classmethod
    def open(cls, path: Path) -> AnswerFile:
        """Read the answers that exist. Raises InputError for a file that is none."""
        data = path.read_bytes() if path.is_file() else None
        return cls(path, {} if data is None else _parsed(path, data), data)

    def save(self, answer: ReaderAnswer) -> None:
        """Write an answer, in place of one to the same image. Raises ChangedFileError if another program wrote the
        file.
        """
        with self._lock:
            now = self.path.read_bytes() if self.path.is_file() else None
            if now != self._written:
                raise ChangedFileError(f"{self.path.name} was changed by another program; start `medlt review` again")
            after = {**self.answers, (answer.seed, answer.uid): answer}
            data = as_csv(after.values())
            write_bytes(self.path, data)
            self.answers, self._written = after, data


def as_csv(answers: Iterable[ReaderAnswer]) -> bytes:
    """Return answers as the bytes of a reader's file, in UTF-8."""
    out = io.StringIO(newline="")
    write_rows(out, [COLUMNS, *([getattr(answer, name) for name in COLUMNS] for answer in answers)])
    return out.getvalue().encode()
