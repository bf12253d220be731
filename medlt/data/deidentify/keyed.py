"""Replacements that depend on a secret key only: equal values get equal replacements in every file and every run.

All are HMAC-SHA256 (RFC 2104) under the key, each in its own domain. Without the key they can be neither reversed nor
guessed; with the key both are possible, so keep it away from the output.
"""

from __future__ import annotations

import base64
import hmac
import uuid
from dataclasses import dataclass
from pathlib import Path

from medlt.types import InputError

MIN_KEY_BYTES = 32
MAX_SHIFT_DAYS = 3652
_HOW = "make one with: python -c 'import secrets; print(secrets.token_hex(32))' > KEYFILE"


def read_key(path: Path) -> bytes:
    """Return the key in a file: hex text decoded, other bytes unchanged. Raises InputError if shorter than 32 bytes."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise InputError(f"{Path(path).absolute()}: no key ({reason}); {_HOW}") from None
    try:
        key = bytes.fromhex(raw.decode("ascii"))
    except ValueError:
        key = raw
    if len(key) < MIN_KEY_BYTES:
        raise InputError(f"{path}: a key of {len(key)} bytes; it needs at least {MIN_KEY_BYTES}; {_HOW}")
    return key


@dataclass(frozen=True)
class Keyed:
    """Replacements for the files of one patient: all dates shift by the same `days`, from -3652 to -1."""

    key: bytes
    patient: str

    @property
    def days(self) -> int:
        """Return the days added to every date of this patient; always negative."""
        return -1 - int.from_bytes(mac(self.key, "days", self.patient)[:8], "big") % MAX_SHIFT_DAYS

    def uid(self, original: str) -> str:
        """Return the UID under 2.25 (PS3.5 B.2) that replaces `original` everywhere."""
        return f"2.25.{uuid.UUID(bytes=mac(self.key, 'uid', original)[:16], version=5).int}"

    def pseudonym(self, kind: str, original: str) -> str:
        """Return 16 characters A-Z and 2-7 (fits SH) that replace `original` as a `kind` of identifier."""
        return base64.b32encode(mac(self.key, kind, original)[:10]).decode()


def mac(key: bytes, domain: str, text: str | bytes) -> bytes:
    """Return 32 bytes of HMAC-SHA256 over `text` in its `domain`. Raises InputError on a key that is too short."""
    if len(key) < MIN_KEY_BYTES:
        raise InputError(f"a key of {len(key)} bytes; it needs at least {MIN_KEY_BYTES}; {_HOW}")
    data = text if isinstance(text, bytes) else text.encode()
    return hmac.digest(key, domain.encode() + b"\x1f" + data, "sha256")
