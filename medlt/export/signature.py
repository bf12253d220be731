"""Signatures of minisign (https://jedisct1.github.io/minisign/): ed25519 over a file and over who signed it.

FILE.minisig holds two signatures. The first is over BLAKE2b-512 of the file, the second over the first and the trusted
comment, so neither can be moved to another file or signer. `minisign -Vm FILE -P KEY` checks the same.

    base64(algorithm, 2 bytes + id of the key, 8 + signature, 64)     algorithm: ED, of the hash; Ed, of the file itself
    base64(signature, 64, of the first signature + comment)
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from medlt.files import write_text
from medlt.types import InputError

SUFFIX = ".minisig"
WHO = "trusted comment: "
LINES = "untrusted comment: signature of medlt, for minisign\n{first}\n" + WHO + "{comment}\n{second}\n"
INSTALL = "signatures need the package cryptography; type `pip install 'medlt[sign]'`"


def sign_file(file: Path, key: Path, signer: str = "") -> str:
    """Write FILE.minisig by a private ed25519 key in PEM form, and return the public key as minisign writes it.

    Raises InputError for a key that cannot be read, one with a password, and another kind of key.
    """
    private = _private_key(key)
    public = private.public_key().public_bytes_raw()
    own = private.sign(hashlib.blake2b(file.read_bytes()).digest())
    comment = f"file:{file.name}" + (f"\tsigner:{' '.join(signer.split())}" if signer else "")
    first = base64.b64encode(b"ED" + _id(public) + own).decode()
    second = base64.b64encode(private.sign(own + comment.encode())).decode()
    write_text(file.with_name(file.name + SUFFIX), LINES.format(first=first, comment=comment, second=second))
    return base64.b64encode(b"Ed" + _id(public) + public).decode()


def verify_file(file: Path, key: str) -> str:
    """Return the trusted comment of FILE.minisig.

    key: the public key, as the text of minisign, or the path of its file or of a PEM file. Raises InputError if there
    is no signature, or if it is not one of this key over this file.
    """
    _, ed25519 = _library()
    named, public = _public_key(key)
    place = file.with_name(file.name + SUFFIX)
    try:
        _, first, comment, second = place.read_text().splitlines()[:4]
        whole, other = base64.b64decode(first, validate=True), base64.b64decode(second, validate=True)
    except FileNotFoundError:
        raise InputError(f"{place}: there is no signature; get the release again, or leave --key out") from None
    except (OSError, ValueError):
        raise InputError(f"{place}: is not a signature of minisign; get the release again") from None
    data, text = file.read_bytes(), comment.removeprefix(WHO)
    signed = hashlib.blake2b(data).digest() if whole[:2] == b"ED" else data
    checker = ed25519.Ed25519PublicKey.from_public_bytes(public)
    right = whole[:2] in (b"ED", b"Ed") and (named is None or named == whole[2:10]) and comment.startswith(WHO)
    if not (right and _valid(checker, whole[10:], signed) and _valid(checker, other, whole[10:] + text.encode())):
        raise InputError(f"{place}: is not a signature of this key over this {file.name}; do not trust the release")
    return text


def _valid(checker: Any, signature: bytes, data: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        checker.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _library() -> tuple[Any, Any]:
    """Return the modules for key files and for ed25519. Raises InputError without the package cryptography."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise InputError(INSTALL) from None
    return serialization, ed25519


def _id(public: bytes) -> bytes:
    """Return the id of a key, 8 bytes, which minisign shows and does not trust."""
    return hashlib.blake2b(public, digest_size=8).digest()


def _private_key(key: Path) -> Any:
    serialization, ed25519 = _library()
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        private = None
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise InputError(
            f"{key}: is no ed25519 key without password; make one: `openssl genpkey -algorithm ed25519 -out KEY`"
        )
    return private


def _public_key(key: str) -> tuple[bytes | None, bytes]:
    """Return the id, None if the key has none, and the 32 bytes of a public key."""
    serialization, ed25519 = _library()
    try:
        data = Path(key).read_bytes() if Path(key).is_file() else key.encode()
        if data.startswith(b"-----BEGIN"):
            public = serialization.load_pem_public_key(data)
            if isinstance(public, ed25519.Ed25519PublicKey):
                return None, public.public_bytes_raw()
        else:
            whole = base64.b64decode(data.split()[-1], validate=True)
            if whole[:2] == b"Ed" and len(whole) == 42:
                return whole[2:10], whole[10:]
    except (OSError, ValueError, IndexError):
        pass
    raise InputError(f"{key}: is no public ed25519 key; give that of minisign, or a PEM file of `openssl pkey -pubout`")
