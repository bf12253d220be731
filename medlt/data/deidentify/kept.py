"""What stays of the attributes that Table E.1-1 does not list: an allow-list, kept.csv, and standard codes.

kept.csv has the attributes that the IODs of radiography and secondary capture hold (PS3.3 A.2, A.8, A.14, A.16, A.26 to
A.28, A.47), as highdicom 0.28.2 lists them, without free text, URLs and binary values other than pixels and look-up
tables. Of text it has the names of makers and models, and codes, which are then reduced to those of the standard.
"""

from __future__ import annotations

import csv
import re
from functools import cache
from importlib.resources import files

from pydicom.datadict import dictionary_has_tag, dictionary_VM
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from medlt.data.deidentify import values

CODED = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning", "CodingSchemeVersion", "LongCodeValue", "URNCodeValue")
_TERM = re.compile(r"[A-Za-z0-9_ ]{0,16}")
_LONGEST = 16  # characters of a Code Value (SH)
_OLD_SNOMED = ("SRT", "SNM3", "99SDM")  # PS3.16 table 8.1-1: retired designators of the same codes


@cache
def attributes() -> frozenset[int]:
    """Return the tags of kept.csv."""
    lines = (files(__package__) / "kept.csv").read_text(encoding="utf-8").splitlines()
    return frozenset(int(row["tag"], 16) for row in csv.DictReader(lines))


def stays(element: DataElement) -> bool:
    """Return whether an attribute outside the table stays.

    It must be on the list, with no more values than the dictionary allows, and its defined terms must be spelled as
    such (CS, PS3.5 6.2): a sentence in a place for a term is no term.
    """
    if int(element.tag) not in attributes() or not dictionary_has_tag(element.tag):
        return False
    most = dictionary_VM(element.tag).split(" ")[-1].split("-")[-1]
    if most.isdigit() and element.VR not in ("SQ", "OB", "OW") and element.VM > int(most):
        return False
    terms = [] if element.VR != "CS" else element.value if element.VM > 1 else [element.value or ""]
    return all(_TERM.fullmatch(str(term).strip(" \0")) for term in terms)


def standardise(item: Dataset) -> None:
    """Reduce a code to one of PS3.16, with a meaning of the standard; any other becomes a dummy. In place.

    Local codes and their meanings are free text of a hospital. A code that PS3.16 lacks, with a meaning that it has,
    becomes the code of that meaning. Items without a code are left as they are.
    """
    if not any(name in item for name in CODED):
        return
    value, scheme, meaning = (str(item.get(name) or "").strip(" \0") for name in CODED[:3])
    if meanings := _meanings().get((scheme.upper(), value)):
        known = (value, scheme, meaning if meaning in meanings else meanings[0])
    else:
        known = _codes().get(meaning.lower(), (values.WORD, values.SCHEME, values.WORD))
    for name in CODED:
        item.pop(name, None)
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = known


def is_standard(item: Dataset) -> bool:
    """Return whether a code, its scheme and its meaning are those of PS3.16, or medlt's dummy."""
    value, scheme, meaning = (str(item.get(name) or "").strip(" \0") for name in CODED[:3])
    dummy = (value, scheme, meaning) == (values.WORD, values.SCHEME, values.WORD)
    return dummy or meaning in _meanings().get((scheme.upper(), value), ())


@cache
def _meanings() -> dict[tuple[str, str], tuple[str, ...]]:
    """Return {(scheme, code): meanings} of PS3.16, those of a context group first, with older SNOMED codes of each."""
    from pydicom.sr._concepts_dict import concepts
    from pydicom.sr._snomed_dict import mapping

    known: dict[tuple[str, str], tuple[str, ...]] = {}
    for scheme, terms in concepts.items():
        for code, (meaning, groups) in (entry for codes in terms.values() for entry in codes.items()):
            others = known.get((scheme.upper(), code), ())
            known[scheme.upper(), code] = (meaning, *others) if groups else (*others, meaning)
    for old, new in mapping["SRT"].items():
        known |= {(scheme, old): known[("SCT", new)] for scheme in _OLD_SNOMED if ("SCT", new) in known}
    return known


@cache
def _codes() -> dict[str, tuple[str, str, str]]:
    """Return {meaning in lower case: (code, scheme, meaning)}, the SNOMED CT code if several schemes have one."""
    ordered = sorted(_meanings().items(), key=lambda known: known[0][0] == "SCT")
    current = [(code, known) for code, known in ordered if code[0] not in _OLD_SNOMED and len(code[1]) <= _LONGEST]
    return {text.lower(): (value, scheme, text) for (scheme, value), known in current for text in reversed(known)}
