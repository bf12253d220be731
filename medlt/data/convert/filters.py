"""Chooses files and manifest columns by DICOM keyword, for `--include`, `--exclude` and `--tags`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from pydicom.datadict import dictionary_VR, keyword_dict
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items

from medlt.data.dicom.attributes import is_mammogram, meaning, region_of, text
from medlt.data.dicom.guard import Unreadable
from medlt.names import did_you_mean
from medlt.types import InputError

if TYPE_CHECKING:
    from medlt.data.convert.settings import ConversionSettings

Filter: TypeAlias = tuple[str, tuple[str, ...]]
"""A DICOM keyword, and values in upper case; an empty value is that of a file without the attribute."""
UNLABELLED = "no body part"


def refuse_filtered(data: Dataset, settings: ConversionSettings) -> None:
    """Raise Unreadable if a filter excludes the file; a mammography SOP class counts as MG, whatever Modality is.

    A file without a body part is kept: hospitals leave it empty too often for a filter to mean anything else.
    """
    modality = "MG" if is_mammogram(data) else text(data, "Modality").upper()
    region = region_of(data).upper()
    refused = bool(settings.modalities) and modality not in settings.modalities
    refused |= bool(settings.body_parts and region) and region not in settings.body_parts
    refused |= not all(_matches(data, one) for one in settings.include)
    refused |= any(_matches(data, one) for one in settings.exclude)
    if refused:
        raise Unreadable("filtered", "excluded by a filter")


def unlabelled(data: Dataset, settings: ConversionSettings) -> tuple[str, ...]:
    """Return a note if the body part is filtered and the file has none."""
    return (UNLABELLED,) if settings.body_parts and not region_of(data) else ()


def values(data: Dataset, keyword: str) -> list[str]:
    """Return the values of an attribute as stripped text, without empty ones; [] if it is absent or unreadable.

    The value of a sequence is the meaning of its first code (PS3.3 8.8). Group 0002 is in the file meta information.
    """
    if keyword_dict[keyword] >> 16 == 2:
        data = getattr(data, "file_meta", Dataset())
    try:
        value = data.get(keyword)
        if isinstance(value, Items):
            value = meaning(data, keyword)
        many = value if isinstance(value, MultiValue | list | tuple) else [] if value is None else [value]
        return [stripped for one in many if (stripped := str(one).strip())]
    except Exception:  # hostile bytes may raise any exception
        return []


def _matches(data: Dataset, one: Filter) -> bool:
    keyword, wanted = one
    return any(value.upper() in wanted for value in values(data, keyword) or [""])


def parsed(option: str, given: Iterable[str]) -> tuple[Filter, ...]:
    """Return the filters of an option `Keyword=VALUE[,VALUE]` that may be repeated. Raises InputError without '='."""
    filters: dict[str, set[str]] = {}
    for one in given:
        keyword, sign, listed = one.partition("=")
        if not sign:
            raise InputError(f"{option} {one!r} has no '='; write it as Keyword=VALUE, such as Manufacturer=ACME")
        filters.setdefault(keyword.strip(), set()).update(value.strip().upper() for value in listed.split(","))
    return tuple((keyword, tuple(sorted(filters[keyword]))) for keyword in sorted(filters))


def require_keywords(option: str, keywords: Sequence[str]) -> None:
    """Raise InputError unless each keyword is one of PS3.6 whose value is text, a number or a code."""
    for keyword in keywords:
        if keyword not in keyword_dict:
            close = did_you_mean(keyword, keyword_dict) or ";"
            raise InputError(f"{option} {keyword}: no DICOM keyword{close} write it as in PS3.6, such as StationName")
        if (kind := dictionary_VR(keyword_dict[keyword])).startswith(("O", "UN")):
            raise InputError(f"{option} {keyword}: holds bytes ({kind}), not text; leave it out")
