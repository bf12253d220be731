"""The seal of a run folder: digests of the files that other commands read, in run.json when a command has ended.

A finished run is read by `medlt audit`, `check`, `evaluate`, `export`, `release` and `report`, also years later and on
another machine. The seal lets them refuse a table, an image or a config that was damaged, replaced or left half old,
half new by a run that was stopped, before they compute anything from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medlt.config import WORKING
from medlt.files import REAL_ROWS, digest, digest_file
from medlt.records import without_checksum
from medlt.report.collect import COLUMNS
from medlt.types import InputError
from medlt.yaml_text import read_yaml

SEAL = "files"
"""The section of run.json."""
TABLES = (
    *(f"{name}.parquet" for name in sorted(COLUMNS.keys() - {"failures"})),
    *("quality.parquet", "failures.csv", "verdict.json", "images/metadata.csv", REAL_ROWS.as_posix()),
)
"""All that reports and other commands read, but for what `medlt audit` adds to a run that has ended."""
FREE = ("output_dir", "artifacts_dir", "budget_book", "threads", "device", *WORKING)
"""Keys of a config that may change when a run folder moves to another place."""


def seal(folder: Path, *, images: bool = True) -> dict[str, str]:
    """Return name -> digest of the tables, the config and the images of a run folder; "" for what it does not have."""
    tables = {name: digest_file(folder / name) if (folder / name).is_file() else "" for name in TABLES}
    sealed = tables | {"config.yaml": _config(folder / "config.yaml")}
    if images:
        place = folder / "images"  # which has subfolders if there are many
        sums = {path.relative_to(place).as_posix(): digest_file(path) for path in sorted(place.rglob("*.png"))}
        sealed["images"] = digest(sums) if sums else ""
    return sealed


def require_sealed(folder: Path, *, images: bool = True) -> None:
    """Raise InputError for the first file of a run that is not what its seal says, or for a damaged run.json.

    images: False for a caller that compares every image itself.

    A folder without run.json, or of a command that has never ended, has no seal, and nothing is compared.
    """
    wanted = read_record(folder).get(SEAL, {})
    if not wanted:
        return
    for name, checksum in seal(folder, images=images).items():
        if name in wanted and checksum != wanted[name]:
            what = "is missing or damaged" if not checksum else "is not what this run wrote"
            raise InputError(f"{folder / name}: {what}; restore it, or run the command that made the run again")


def read_record(folder: Path) -> dict[str, Any]:
    """Return run.json of a folder, {} if there is none. Raises InputError if it is damaged."""
    file = Path(folder) / "run.json"
    try:
        return without_checksum(file.read_text()) if file.exists() else {}
    except (ValueError, TypeError):
        what = "remove it and run the command that made the run again, which writes it"
        raise InputError(f"{file}: damaged; {what}") from None


def _config(file: Path) -> str:
    """Return a digest of a config without the keys of its place; "" if it is missing or damaged."""
    try:
        tree = dict(read_yaml(file.read_text()))
    except (OSError, InputError, TypeError, ValueError):
        return ""
    return digest({name: value for name, value in tree.items() if name not in FREE})
