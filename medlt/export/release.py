"""A release: the folder that may leave, with a hash of every file, the claim of its privacy, and the record of both.

    images/             synthetic images, and metadata.csv with their labels
    dicom/              the same as DICOM, if the run wrote DICOM
    denoiser/, codec/   weights that the run trained
    MODEL_CARD.md, DATASHEET.md, provenance.json
    release.json        SHA-256 of every other file, claim, public part of the ledger, deployment record
    release.json.minisig    signature over release.json, if it was signed

Only bytes that the run made are released: each image is compared with its shard, each file of weights with its
artifact, after it was copied. Cards and tables are written for it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medlt._version import __version__
from medlt.data.columns import is_synthetic
from medlt.data.manifest import Manifest
from medlt.export.deployment import deployment
from medlt.export.images import gives_parents
from medlt.export.provenance import provenance, public_ledger, run_id
from medlt.export.signature import SUFFIX, sign_file
from medlt.files import digest_file, sha256, whole_folder, write_json, write_text
from medlt.privacy.book import WEIGHTS
from medlt.privacy.card import datasheet, model_card
from medlt.privacy.claims import Claim, claim, private_runs
from medlt.privacy.evidence import denoiser_files
from medlt.privacy.provenance import Provenance
from medlt.privacy.published import image_name, made_images
from medlt.recipes._sealed import require_sealed
from medlt.store import Artifact
from medlt.types import InputError
from medlt.writer import write_dicom, write_metadata

RECORD, FORMAT = "release.json", "medlt release 1"
SIGNATURE = RECORD + SUFFIX


def build_release(run: Path, out: Path, sign: Path | None = None, signer: str = "") -> dict[str, Any]:
    """Write what may leave a finished run to the new folder `out`, and return its record (release.json).

    A run without a privacy claim may be released too; the record says so. sign: private ed25519 key (PEM) of `signer`;
    the record then has the public `key` as well, which is not written. Raises InputError for a folder that is no run or
    has nothing to release, for bytes that the run did not make, and for `out` that is not empty.
    """
    run, out = Path(run).expanduser().absolute(), Path(out).expanduser()
    for name in ("config.yaml", "run.json"):
        if not (run / name).is_file():
            raise InputError(f"{run}: is not a finished run: it has no {name}; give the folder of a run")
    require_sealed(run, images=False)
    seen, claimed = Provenance(run), claim(run)
    with whole_folder(out) as fresh:
        _copy(seen, fresh)
        write_text(fresh / "MODEL_CARD.md", model_card(run))
        write_text(fresh / "DATASHEET.md", datasheet(run))
        write_json(fresh / "provenance.json", provenance(run))
        record = _record(seen, claimed, fresh)
        write_json(fresh / RECORD, record)
        key = {} if sign is None else {"key": sign_file(fresh / RECORD, sign, signer)}
    return record | key


def files_of(folder: Path) -> dict[str, Path]:
    """Return all files of a release but its record and signature, by their name below the folder; links too."""
    inside = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    names = {path.relative_to(folder).as_posix(): path for path in inside}
    return {name: path for name, path in names.items() if name not in (RECORD, SIGNATURE)}


def _record(seen: Provenance, claimed: Claim, folder: Path) -> dict[str, Any]:
    """Return the contents of release.json."""
    made = asdict(claimed) | {"reasons": list(claimed.reasons)}
    return {
        "format": FORMAT,
        "medlt": __version__,
        "run": run_id(seen.folder),
        "claim": made | ({"delta": None} if claimed.epsilon is None else {}),
        "ledger": public_ledger(seen.folder) if claimed.epsilon is not None else None,
        "deployment": deployment(claimed, seen.ledger, private_runs(seen)),
        "files": {name: sha256(path) for name, path in files_of(folder).items()},
    }


def _copy(seen: Provenance, fresh: Path) -> None:
    """Copy images and weights, and write their tables. Raises InputError for no or other bytes."""
    sources = [*_images(seen), *_weights(seen)]
    if not sources:
        raise InputError(f"{seen.folder}: holds neither images nor trained weights; run `medlt augment` for it first")
    for name, source, checksum in sources:
        (target := fresh / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        if digest_file(target) != checksum:
            raise InputError(f"{source}: is not what this run made; restore it, or run `medlt augment` for it again")
    if (made := _synthetic(seen)) is not None:
        write_metadata(fresh, made.rows, made.findings, parents=gives_parents(seen.folder))
        if seen.config.format == "dicom":
            write_dicom(fresh, made.rows, made.findings)


def _synthetic(seen: Provenance) -> Manifest | None:
    """Return the synthetic rows; None if there is none."""
    file = seen.folder / "manifest.parquet"
    if not file.is_file():
        return None
    manifest = Manifest.read(file)
    synthetic = is_synthetic(manifest.rows)
    return manifest.where(synthetic) if synthetic.any() else None


def _images(seen: Provenance) -> Iterator[tuple[str, Path, str]]:
    """Yield name in the release, file, and the checksum in the shard that it was made in, "" if it was made in none."""
    if (made := _synthetic(seen)) is None:
        return
    sums, _ = made_images(seen)
    for uid, path in made.rows["path"].items():
        name = image_name(str(uid), str(path))
        if not (file := seen.folder / name).is_file():
            raise InputError(f"{file}: no such image; restore it, or run the same command again")
        yield name, file, sums.get(file.name, "")


def _weights(seen: Provenance) -> Iterator[tuple[str, Path, str]]:
    """Yield the same of the files of the denoiser and of a trained codec; histories and records of training stay."""
    made, home = seen.denoiser, seen.folder / "denoiser"
    if isinstance(made, Artifact):
        for name, source in denoiser_files(made).items():
            if not (home / name).is_file():
                raise InputError(f"{home / name}: no such file; run `medlt augment` for it again, which writes it")
            yield f"denoiser/{name}", home / name, made.files[source]
    elif "denoiser" in seen.record:
        raise InputError(f"{seen.folder}: its trained denoiser is missing or damaged; restore the folder of artifacts")
    if isinstance(codec := seen.codec, Artifact):
        for name, checksum in sorted(codec.files.items()):
            if name == "config.json" or Path(name).suffix in WEIGHTS:
                yield f"codec/{name}", codec.path(name), checksum
    elif any(name.startswith("codec/") for name in seen.record.get("artifacts", {})):
        raise InputError(f"{seen.folder}: its trained codec is missing or damaged; restore the folder of artifacts")
