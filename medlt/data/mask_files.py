"""Digests of the mask files of a row."""

from __future__ import annotations

from collections.abc import Mapping

from medlt.data.columns import MASK
from medlt.files import digest
from medlt.remote import AnyFile, digest_of
from medlt.types import InputError


def digest_masks(contents: Mapping[str, str]) -> str:
    """Return the digest of the masks of one row, from finding -> digest of the file."""
    return digest("masks", dict(contents))


def digest_mask_files(uid: str, masks: Mapping[str, AnyFile]) -> str:
    """Return `digest_masks` of a row's files. Raises InputError for one that cannot be read."""
    contents: dict[str, str] = {}
    for finding, file in masks.items():
        try:
            contents[finding] = digest_of(file)
        except OSError as error:
            place, reason = file.absolute(), error.strerror or "no such object"
            raise InputError(f"{place}: {reason} (mask of uid {uid}); check the columns {MASK}...") from None
    return digest_masks(contents)
