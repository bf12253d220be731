"""How a run knows its own output: a keyed proof in DeidentificationMethod (0012,0063), over everything in the data set.

PatientIdentityRemoved is a claim anyone can write, so it is not asked. The proof holds for one key, one profile and
exactly these values; whatever was edited since, or came from elsewhere, is de-identified from the start.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from pydicom.dataset import Dataset

from medlt.data.deidentify.keyed import mac
from medlt.data.deidentify.profile import Profile

METHOD = "DeidentificationMethod"
MARK = "proof "


def sign(data: Dataset, method: str, profile: Profile, key: bytes) -> None:
    """Write the method and its proof into `data`, in place."""
    data.DeidentificationMethod = [method, MARK + _proof(data, profile, key)]


def holds(data: Dataset, profile: Profile, key: bytes) -> bool:
    """Whether `data` is, unchanged, what was signed with this key for this profile."""
    said = data.get(METHOD)
    if said is None or isinstance(said, str) or not str(said[-1]).startswith(MARK):
        return False
    return hmac.compare_digest(str(said[-1]), MARK + _proof(data, profile, key))


def _proof(data: Dataset, profile: Profile, key: bytes) -> str:
    state = hashlib.sha256(str(profile).encode())
    _feed(data, state)
    return mac(key, "proof", state.digest()).hex()[:40]


def _feed(data: Dataset, state: Any) -> None:
    """Tags and values in a form that writing and reading keep: text without padding, numbers as they print."""
    for element in data:
        if element.keyword == METHOD:
            continue
        state.update(f"\x1e{int(element.tag):08x}".encode())
        if element.VR == "SQ":
            for item in element.value or []:
                state.update(b"\x1d")
                _feed(item, state)
            state.update(b"\x1c")
        elif isinstance(element.value, bytes):
            state.update(element.value.rstrip(b"\0"))
        else:
            values = [] if element.is_empty else element.value if element.VM > 1 else [element.value]
            state.update("\x1f".join(str(v).strip(" \0") for v in values).encode())
