"""Remove identifying marks, and words so rare that they identify a patient, from the input of a text encoder.

A diffusion model can reproduce a training image for a caption that occurs once (arXiv 2301.13188). So a name, a date or
an accession number in a prompt is a key to the radiograph of one patient. The filler of de-identification ("___") is
noise. Both are removed before training and before sampling.

`scrub` matches patterns, not names; it does not de-identify. Names are removed by their rarity only, best by counting
patients (`shared_words`), because vocabularies from the web have common family names as single tokens.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from medlt.files import digest
from medlt.types import InputError

_MONTH = (  # may is a verb
    r"(?:(?i:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|june?|july?|aug(?:ust)?|sep(?:t(?:ember)?)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)|May|MAY)\b\.?"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_PATTERNS = (
    r"<\|.*?\|>|<\||\|>",  # a tokenizer's own marks: <|endoftext|>
    r"\[\*\*.*?\*\*\]",  # MIMIC-III: [**Known lastname 123**]
    r"</?[A-Za-z][A-Za-z_ ]*\d*\s*/?>",  # <PERSON>, <DATE_1>
    r"\[[A-Z][A-Z_ ]+\d*\]",  # [REDACTED]
    r"\[?\*{2,}\]?|_{2,}",  # MIMIC-CXR: ___
    r"X{3,}|\bx{3,}\b",  # Open-i: XXXX
    r"\S{0,64}@\S*",
    r"\b(?:https?://|www\.)\S+",
    r"\b\d+(?:\.\d+){3,}",  # a DICOM UID, an IP address
    r"\b(?i:mrn|accession|dob|ssn|patient id)\b\W*(?:(?i:no|number)\b\W*)?[\w-]*\d[\w-]*",
    r"\b(?:Dr|Mr|Mrs|Ms|Prof)\b\.?\s+[A-Z][\w'’-]*(?:\s+[A-Z][\w'’-]*)*",
    r"\b\d{1,4}([-/.])\d{1,2}\1\d{1,4}\b",  # 2019-03-12, 3/12/19, 12.03.2019
    rf"\b(?:{_MONTH}\s+{_DAY}|{_DAY}\s+(?:of\s+)?{_MONTH})(?!\w)(?:,?\s+\d{{4}}\b)?",
    r"\b\d{1,2}:\d{2}(?::\d{2})?(?:\s*(?i:[ap]\.?m\b\.?))?",  # a time of day
    r"[+(]{0,2}(?:\d[\s().-]*){6,}\d",  # seven digits however parted: a telephone number
    r"[\w-]{0,32}\d{4,}[\w-]*",  # an accession number, a year
)
_MARKS = re.compile("|".join(_PATTERNS), re.DOTALL)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def scrub(text: str) -> str:
    """Remove fillers of de-identification, dates, times, numbers of four digits or more, addresses and titles.

    White space is collapsed, and punctuation that is left over is removed. scrub(scrub(x)) is scrub(x).
    """
    while (cleaned := _once(text)) != text:
        text = cleaned
    return text


def _once(text: str) -> str:
    """Remove all marks once."""
    return _tidied(_MARKS.sub(" ", "".join(c if c.isprintable() else " " for c in text)))


def _tidied(text: str) -> str:
    """Remove empty brackets, repeated spaces, spaces before stops, repeated stops and stops at the start."""
    text = re.sub(r"[(\[{]\s*[)\]}]", " ", text)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"\s+([,.;:])", r"\1", text)
    return re.sub(r"([,.;:])[,;:]+", r"\1", text).lstrip(",.;:- ").rstrip(",;: ")


@dataclass(frozen=True)
class RareWords:
    """Remove words that the tokenizer cuts into more than `pieces` pieces and that are not in `allowed`.

    A byte-pair vocabulary (arXiv 1508.07909) keeps frequent words whole. A word of many pieces is rare: a name, a
    typing error, a code. CLIP's vocabulary cuts long medical terms into up to 8 pieces ("pneumomediastinum": 6) and
    many names into fewer. So the default 6 removes codes; put your terms into `allowed`, in lower case. With pieces=0
    only `allowed` is kept, which is stricter if it comes from `shared_words`.
    """

    tokenizer: Any
    pieces: int = 6
    allowed: frozenset[str] = frozenset()

    @property
    def digest(self) -> str:
        """Digest of the settings; the tokenizer has its own digest."""
        return digest("rare words", self.pieces, sorted(self.allowed))

    def __call__(self, text: str) -> str:
        """Return `text` without its rare words."""
        return _tidied(_WORD.sub(lambda word: " " if self._rare(word[0]) else word[0], text))

    def _rare(self, word: str) -> bool:
        return word.lower() not in self.allowed and len(self.tokenizer.tokenize(word)) > self.pieces


def shared_words(texts: Iterable[str], patients: Iterable[str], at_least: int = 5) -> frozenset[str]:
    """Return the words, in lower case, that occur in the texts of at least `at_least` patients, as in k-anonymity.

    patients: the patient of each text. Use it as `RareWords(tokenizer, 0, shared_words(...))`. Raises InputError unless
    there is one patient for each text.
    """
    texts, patients = list(texts), list(patients)
    if len(texts) != len(patients):
        raise InputError(f"{len(texts)} texts but {len(patients)} patients; give one patient for each text")
    owners = defaultdict[str, set[str]](set)
    for text, patient in zip(texts, patients, strict=True):
        for word in _WORD.findall(text.lower()):
            owners[word].add(patient)
    return frozenset(word for word, who in owners.items() if len(who) >= at_least)
