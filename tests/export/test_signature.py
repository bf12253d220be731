"""Signatures of minisign: its own examples verify, ours round-trip, and nothing else passes."""

from pathlib import Path

import pytest

from medlt.types import InputError

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from medlt.export.signature import sign_file, verify_file

MINISIGN = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"
"""The public key of minisign's author, and two signatures over the file `test` that holds the text "test"."""
EXAMPLES = {
    "of the hash": (
        "RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=\n"
        "trusted comment: timestamp:1556193335\tfile:test\n"
        "y/rUw2y8/hOUYjZU71eHp/Wo1KZ40fGy2VJEDl34XMJM+TX48Ss/17u3IvIfbVR1FkZZSNCisQbuQY+bHwhEBg=="
    ),
    "of the file": (
        "RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSbXxwA=\n"
        "trusted comment: timestamp:1555779966\tfile:test\n"
        "QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA=="
    ),
}


def key(folder: Path, private: object = None) -> Path:
    private = private or ed25519.Ed25519PrivateKey.generate()
    encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private.private_bytes(*encoding))  # type: ignore[attr-defined]
    return folder / "key.pem"


@pytest.mark.parametrize("name", EXAMPLES)
def test_signatures_that_minisign_made_verify_over_their_file_alone(tmp_path: Path, name: str) -> None:
    (file := tmp_path / "test").write_bytes(b"test")
    place = tmp_path / "test.minisig"
    place.write_text(f"untrusted comment: any\n{EXAMPLES[name]}\n")
    assert verify_file(file, MINISIGN).endswith("file:test")
    place.write_text(place.read_text().replace("file:test", "file:best"))
    with pytest.raises(InputError, match="is not a signature of this key"):
        verify_file(file, MINISIGN)
    place.write_text(f"untrusted comment: any\n{EXAMPLES[name]}\n")
    file.write_bytes(b"Test")
    with pytest.raises(InputError, match="is not a signature of this key"):
        verify_file(file, MINISIGN)


def test_a_signature_says_who_and_over_what_and_passes_for_its_key_alone(tmp_path: Path) -> None:
    (file := tmp_path / "release.json").write_text("{}")
    private = ed25519.Ed25519PrivateKey.generate()
    public = sign_file(file, key(tmp_path, private), "City  Hospital\nRadiology")
    comment = "file:release.json\tsigner:City Hospital Radiology"
    assert verify_file(file, public) == comment
    (tmp_path / "key.pub").write_text(f"untrusted comment: minisign public key\n{public}\n")
    assert verify_file(file, str(tmp_path / "key.pub")) == comment
    pem = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "pub.pem").write_bytes(private.public_key().public_bytes(*pem))
    assert verify_file(file, str(tmp_path / "pub.pem")) == comment
    with pytest.raises(InputError, match="is not a signature of this key"):
        verify_file(file, MINISIGN)
    file.with_name("release.json.minisig").unlink()
    with pytest.raises(InputError, match="there is no signature"):
        verify_file(file, public)


def test_other_keys_are_refused(tmp_path: Path) -> None:
    (file := tmp_path / "file").write_text("x")
    for private in (ec.generate_private_key(ec.SECP256R1()), None):
        place = key(tmp_path, private) if private else tmp_path / "none"
        with pytest.raises(InputError, match="is no ed25519 key"):
            sign_file(file, place)
    for public in ("x", str(tmp_path), str(key(tmp_path))):
        with pytest.raises(InputError, match="is no public ed25519 key"):
            verify_file(file, public)
