"""A keyed proof over the whole data set, in DeidentificationMethod (0012,0063), by which a run recognises its output.

PatientIdentityRemoved is ignored, because anyone can write it. The proof holds for one key, one profile and exactly
these values; an edited or foreign file is de-identified from the start.
"""

from __future__ import annotations

import hmac
from typing import Any

from blake3 import blake3
from pydicom.dataset import Dataset

from medlt.data.deidentify.keyed import mac
from medlt.data.deidentify.profile import Profile

METHOD = "DeidentificationMethod"
MARK = "proof "


def sign(data: Dataset, method: str, profile: Profile, key: bytes) -> None:
    """Write the method and its proof into `data`, in place."""
    data.DeidentificationMethod = [method, MARK + _proof(data, profile, key)]


def holds(data: Dataset, profile: Profile, key: bytes) -> bool:
    """Return whether `data` is unchanged since it was signed with this key for this profile."""
    method = data.get(METHOD)
    if method is None or isinstance(method, str) or not str(method[-1]).startswith(MARK):
        return False
    return hmac.compare_digest(str(method[-1]), MARK + _proof(data, profile, key))


def _proof(data: Dataset, profile: Profile, key: bytes) -> str:
    state = blake3(str(profile).encode())
    _feed(data, state)
    return mac(key, "proof", state.digest()).hex()[:40]


def _feed(data: Dataset, state: Any) -> None:
    """Hash tags and values in a form that survives writing and reading: text without padding, numbers as printed."""
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
