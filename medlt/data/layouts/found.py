"""From rows as a layout found them to a Manifest, by the policies the user chose, and what to tell about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from medlt.data.layouts import tree
from medlt.data.layouts.options import Options
from medlt.data.layouts.reading import canonical
from medlt.data.layouts.tables import SHARES, UNCERTAIN, patient_split
from medlt.data.manifest import REQUIRED, SPLITS, Manifest
from medlt.types import InputError

if TYPE_CHECKING:
    from rich.console import Group

PARTS = {  # what published tables call the three splits
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "development", "balanced-val"), "val"),
    **dict.fromkeys(("test", "testing", "balanced-test"), "test"),
}


@dataclass(frozen=True)
class Draft:
    """What a layout read. `placed.rows`: index uid; path, found, patient_id, split, view, raw labels, what is carried.

    A blank `split` column means that none is published. `orphans` are those the layout saw itself.
    """

    placed: tree.Placed
    findings: tuple[str, ...]
    root: Path
    source: Path
    notes: tuple[str, ...] = ()
    orphans: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["kind", "uid", "path"], dtype="str"))


@dataclass(frozen=True)
class Found:
    """The manifest; `orphans` (kind, uid, path): labels without an image, images without a label; `notes` to tell."""

    manifest: Manifest
    orphans: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def failures(self) -> int:
        """Labels whose image is not there. An image that no published list names is no failure."""
        return int((self.orphans["kind"] == tree.LABEL).sum())

    def write(self, out: Path) -> Path | None:
        """Write `out` and, if there are orphans, OUT.orphans.csv beside it, whose path is returned.

        A file that is there with the same content stays. Raises InputError, and writes nothing, if another is there.
        """
        out = Path(out)
        if out.suffix != ".parquet":
            raise InputError(f"{out}: a manifest's name ends in .parquet")
        table = out.with_suffix(".orphans.csv")
        writers: dict[Path, Callable[[Path], object]] = {out: self.manifest.write}
        if len(self.orphans):
            writers[table] = lambda path: self.orphans.to_csv(path, index=False)
        try:
            _write_new(writers)
        except OSError as error:
            raise InputError(f"{out}: {error.strerror}; choose another OUT") from None
        return table if table in writers else None

    def told(self) -> dict[str, Any]:
        """Everything as JSON knows it; of the orphans their numbers and up to three examples."""
        rows = self.manifest.rows
        kinds = {kind: self.orphans.loc[self.orphans["kind"] == kind] for kind in (tree.LABEL, tree.IMAGE)}
        return {
            "rows": len(rows),
            "patients": int(rows["patient_id"].nunique()),
            "splits": {s: int((rows["split"] == s).sum()) for s in SPLITS},
            "findings": self.manifest.counts().to_dict("index"),
            "orphans": {k: {"count": len(t), "examples": t["path"].head(3).tolist()} for k, t in kinds.items()},
            "notes": list(self.notes),
        }

    def table(self) -> Group:
        """For a terminal: present / absent / unknown a finding and split, then what to know."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        told = self.told()
        counts = {s: self.manifest.split(s).counts() for s, n in told["splits"].items() if n}
        heads = [f"{s} ({told['splits'][s]})" for s in counts]
        table = Table(
            "finding", *heads, title=f"{told['rows']} images of {told['patients']} patients (present / absent / ?)"
        )
        for finding in self.manifest.findings:
            table.add_row(finding, *("{} / {} / {}".format(*t.loc[finding]) for t in counts.values()))
        lines = [
            f"{kind.replace('_', ' ')}: {o['count']}, such as {', '.join(o['examples'])}"
            for kind, o in told["orphans"].items()
            if o["count"]
        ]
        return Group(table, *(Text(line) for line in (*self.notes, *lines)))


def _write_new(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write all files or none; one that is there must hold the same. Raises InputError if it does not, or OSError."""
    temporary = {path: path.with_name(f".{path.name}.new") for path in writers}
    try:
        for path, write in writers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary[path])
            if path.exists() and (not path.is_file() or path.read_bytes() != temporary[path].read_bytes()):
                raise InputError(f"{path}: something else is there; nothing is overwritten, choose another OUT")
        for path in (p for p in writers if not p.exists()):
            temporary[path].rename(path)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def finish(draft: Draft, options: Options) -> Found:
    """Apply the policies for missing files, -1, blanks, rows of zeros and splits. Raises InputError in one line."""
    rows = draft.placed.rows
    if repeated := rows.index[rows.index.duplicated()].unique().tolist():
        raise InputError(
            f"{draft.source}: uid {repeated[0]} has {len(rows.loc[repeated[0]])} rows; each image needs one"
        )
    orphans = pd.concat([tree.orphans(draft.placed), draft.orphans], ignore_index=True)
    if options.missing == "drop" and len(rows):
        rows = rows[rows["found"]]
        if not len(rows):
            told = f"none of the {len(draft.placed.rows)} labelled images is below it"
            raise InputError(f"{draft.root}: {told}; name their folder with --images, or --missing keep")
    labels = settled(rows[list(draft.findings)], options)
    rows = rows.drop(columns=[*draft.findings, "found"]).join(labels)
    rows, findings, zeros = without_zeros(rows, draft.findings, options.all_zero, draft.source)
    if not len(rows):
        raise InputError(f"{draft.source}: no row is left; check the table and what was asked to be left out")
    rows, split = _split(rows, options)
    carried = [c for c in rows.columns if c not in (*REQUIRED, *findings)]
    try:
        manifest = Manifest(rows[[*REQUIRED, *carried, *findings]], findings, draft.root)
    except InputError as error:
        raise InputError(f"{draft.source}: {error}{_way_out(str(error), split)}") from None
    unknown = int(np.isnan(manifest.labels()).all(axis=1).sum())
    blank = (f"{unknown} image(s) without any known label",) if unknown else ()
    return Found(manifest, orphans, (*draft.notes, *draft.placed.notes, *split, *zeros, *blank))


def settled(labels: pd.DataFrame, options: Options) -> pd.DataFrame:
    """Labels with blanks and -1 as the options say; text that is no number is left for the Manifest to refuse."""
    labels = labels.apply(_as_numbers)
    if options.blank == "negative":
        labels = labels.fillna(0.0)
    return labels.mask(labels == -1, UNCERTAIN[options.uncertain])


def without_zeros(
    rows: pd.DataFrame, findings: tuple[str, ...], choice: str | None, source: Path
) -> tuple[pd.DataFrame, tuple[str, ...], tuple[str, ...]]:
    """Rows, findings and notes after the `choice` for rows whose every finding, no-finding included, is 0."""
    zero = (rows[list(findings)] == 0).all(axis=1)
    if not (count := int(zero.sum())):
        return rows, findings, ()
    if choice is None:
        ways = "--all-zero keep, drop or no-finding"
        raise InputError(f"{source}: {count} of {len(rows)} rows have every finding at 0; say what they are: {ways}")
    if choice == "keep":
        return rows, findings, (f"{count} row(s) with every finding at 0, kept",)
    if choice == "drop":
        return rows[~zero], findings, (f"{count} row(s) with every finding at 0, left out",)
    nothing = next((f for f in findings if canonical(f) in ("nofinding", "normal")), None)
    if nothing is None:
        some = (rows[list(findings)] == 1).any(axis=1)
        nothing, findings = "No_Finding", (*findings, "No_Finding")
        rows = rows.assign(**{nothing: pd.Series(np.nan, rows.index).mask(some, 0.0)})
    rows = rows.assign(**{nothing: rows[nothing].mask(zero, 1.0)})
    return rows, findings, (f"{count} row(s) with every finding at 0, called {nothing}",)


def renamed_parts(split: pd.Series) -> pd.Series:
    """train, val or test for what tables call them; anything else as it is."""
    names = split.str.strip().str.lower().map(PARTS)
    return names.where(names.notna(), split)


def _split(rows: pd.DataFrame, options: Options) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The published split, or one by a hash of seed and patient where there is none, or it is not wanted."""
    if not options.resplit and rows["split"].notna().any():
        return rows, ()
    split = pd.Series(patient_split(rows["patient_id"].astype(str).tolist(), SHARES, options.seed), rows.index)
    return rows.assign(split=split), (f"split by a hash of patient and seed {options.seed}: 70/10/20",)


def _way_out(told: str, by_hash: tuple[str, ...]) -> str:
    return ", or split anew with --resplit" if " is in splits " in told and not by_hash else ""


def _as_numbers(column: pd.Series) -> pd.Series:
    try:
        return pd.to_numeric(column).astype(np.float64)
    except (ValueError, TypeError):
        return column
