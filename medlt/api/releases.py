"""The calls on what leaves: release, verify_release."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medlt.api.run import Run, load


def release(
    run: Run | str | Path, out: str | Path, *, sign: str | Path | None = None, signer: str = ""
) -> Mapping[str, Any]:
    """Write what may leave a run, images, labels, weights and cards, to a new folder; returns its release.json.

    It does what `medlt release RUN OUT` does. A run without a privacy claim is released too, and the record says so.

    Args:
        run: a finished `Run`, or its folder; only read.
        out: the folder to make.
        sign: private ed25519 key (PEM) that signs release.json.
        signer: who signs, for the comment of the signature.

    Raises:
        InputError: for a run that has nothing to release, for bytes that the run did not make, and for a folder that is
            not empty.

    Examples:
        >>> record = medlt.release(run, "release")
        >>> sentence = record["claim"]["sentence"]
    """
    from medlt.export.release import build_release

    folder = run.folder if isinstance(run, Run) else load(run).folder
    key = None if sign is None else Path(sign).expanduser()
    return build_release(folder, Path(out).expanduser(), key, signer)


def verify_release(folder: str | Path, key: str | None = None) -> Mapping[str, Any]:
    """Check every file of a release, that there is no other, and that claim, ledger and record agree.

    It does what `medlt release verify OUT` does, and needs nothing but the folder.

    Args:
        folder: the folder of a release; only read.
        key: public key of the signer, that of minisign or a file; checks who signed.

    Returns:
        problems (one line each, none if all agrees), files (their number), sentence (of the claim), epsilon, signed
        (the comment of a signature by this key), and signature (whether there is one).

    Raises:
        InputError: for a folder without a readable release.json.

    Examples:
        >>> record = medlt.release(run, "other_release")
        >>> problems = medlt.verify_release("other_release")["problems"]
    """
    from medlt.export.release_check import verify_release as check

    return check(Path(folder), key)
