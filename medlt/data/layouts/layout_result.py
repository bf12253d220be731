"""Makes a Manifest from the rows of a layout by the user's policies, with notes and orphans."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from medlt.csv_text import as_csv
from medlt.data.columns import BOX, region_columns
from medlt.data.layouts import tree
from medlt.data.layouts.label_spec import policy
from medlt.data.layouts.labels import LabelReport, apply_labels
from medlt.data.layouts.options import Options
from medlt.data.layouts.reading import few
from medlt.data.manifest import REQUIRED, SPLITS, Manifest
from medlt.data.splits import complete_split, patient_split
from medlt.data.views import of_views
from medlt.names import no_finding
from medlt.remote import AnyFile, is_url
from medlt.types import InputError

if TYPE_CHECKING:
    from rich.console import Group

PARTS = {  # names of the three splits in published tables
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "development", "balanced-val"), "val"),
    **dict.fromkeys(("test", "testing", "balanced-test"), "test"),
}

Writer = Callable[[Path], object]
"""Writes one file to a path."""


@dataclass(frozen=True)
class Draft:
    """Rows that a layout read. `matched.rows`: index uid; path, exists, patient_id, split, view, labels, extra columns.

    A blank `split` column means that no split is published. `orphans` are those that the layout itself detected.
    `labels` says in words where the labels come from, by default the name of `source`; `labeler` is a preset of
    `label_spec` for what they mean.
    """

    matched: tree.MatchedImages
    findings: tuple[str, ...]
    root: AnyFile
    source: Path
    notes: tuple[str, ...] = ()
    orphans: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["kind", "uid", "path"], dtype="str"))
    labels: str = ""
    labeler: str | None = None


@dataclass(frozen=True)
class LayoutResult:
    """The manifest; `orphans` (kind, uid, path): labels without an image, images without a label, and boxes without
    an image, whose `path` is the image's name in the table of boxes; `notes`; what the `labels` mean; `files` that
    belong to the manifest and do not exist yet, such as masks, by what writes each of them to a path.
    """

    manifest: Manifest
    orphans: pd.DataFrame
    notes: tuple[str, ...]
    labels: LabelReport | None = None
    files: Mapping[Path, Writer] = field(default_factory=dict)

    @property
    def failures(self) -> int:
        """Return the number of labels without an image. An image that is in no list, or a box, is not a failure."""
        return int((self.orphans["kind"] == tree.LABEL).sum())

    def write(self, out: Path, part_rows: int | None = None) -> Path | None:
        """Write `out`, its `files` and, if there are orphans, OUT.orphans.csv; return the path of the latter, or None.

        With `part_rows`, `out` is a folder of parts of this many rows.

        A file that exists with the same contents stays. Raises InputError, and writes nothing, if it has others.
        """
        out = Path(out)
        if out.suffix != ".parquet":
            raise InputError(f"{out}: the name of a manifest must end in .parquet; rename OUT")
        table = out.with_suffix(".orphans.csv")
        writers: dict[Path, Writer] = {**self.files, out: partial(self.manifest.write, part_rows=part_rows)}
        if len(self.orphans):
            writers[table] = lambda path: path.write_bytes(as_csv(self.orphans).encode(errors="surrogateescape"))
        _write_new(writers)
        return table if table in writers else None

    def write_files(self) -> None:
        """Write the `files` alone. Raises InputError as `write`."""
        _write_new(self.files)

    def summary(self) -> dict[str, Any]:
        """Return the result as values that JSON can hold; of the orphans, the numbers and up to three examples."""
        rows = self.manifest.rows
        kinds = {kind: self.orphans.loc[self.orphans["kind"] == kind] for kind in tree.KINDS}
        return {
            "rows": len(rows),
            "patients": int(rows["patient_id"].nunique()),
            "splits": {s: int((rows["split"] == s).sum()) for s in SPLITS},
            "labels": self.labels and self.labels.summary(),
            "findings": self.manifest.counts().to_dict("index"),
            "orphans": {k: {"count": len(t), "examples": t["path"].head(3).tolist()} for k, t in kinds.items()},
            "boxes": self._boxes(),
            "notes": list(self.notes),
        }

    def _boxes(self) -> dict[str, int]:
        """Return the numbers of boxes and of images that have one."""
        columns = region_columns(self.manifest.rows, self.manifest.findings, BOX).values()
        per_image = self.manifest.rows[[*columns]].map(lambda corners: len(corners or ()) // 4).sum(axis=1)
        return {"count": int(per_image.sum()), "images": int((per_image > 0).sum())}

    def table(self) -> Group:
        """Return the result for a terminal: present / absent / unknown per finding and split, then notes and boxes."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        summary = self.summary()
        counts = {s: self.manifest.split(s).counts() for s, n in summary["splits"].items() if n}
        heads = [f"{s} ({summary['splits'][s]})" for s in counts]
        title = f"{summary['rows']} images of {summary['patients']} patients (present / absent / ?)"
        table = Table("finding", *heads, title=title)
        for finding in self.manifest.findings:
            table.add_row(finding, *("{} / {} / {}".format(*t.loc[finding]) for t in counts.values()))
        lines = [
            f"{kind.replace('_', ' ')}: {o['count']}, such as {', '.join(o['examples'])}"
            for kind, o in summary["orphans"].items()
            if o["count"]
        ]
        if (boxes := summary["boxes"])["count"]:
            lines.insert(0, f"boxes: {boxes['count']}, of {boxes['images']} images")
        meaning = self.labels.lines() if self.labels else ()
        return Group(table, *(Text(line) for line in (*meaning, *self.notes, *lines)))


def _write_new(writers: Mapping[Path, Writer]) -> None:
    """Write all files or none. Raises InputError if a file exists with other contents or cannot be written."""
    temporary = {path: path.with_name(f".{path.name}.new") for path in writers}
    path = next(iter(writers), Path())
    try:
        for path, write in writers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove(temporary[path])
            write(temporary[path])
            if path.exists() and not _is_equal(path, temporary[path]):
                raise InputError(f"{path}: exists with other contents; choose another OUT, or move the file away")
        for path in (p for p in writers if not p.exists()):
            temporary[path].rename(path)
    except OSError as error:
        raise InputError(f"{path.absolute()}: {error.strerror}; choose another OUT") from None
    finally:
        for one in temporary.values():
            with suppress(OSError):  # its folder may be a file
                _remove(one)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_equal(one: Path, other: Path) -> bool:
    """Return whether two files have equal bytes, or two folders equal files."""
    if one.is_dir() and other.is_dir():
        names = {path.name for path in (*one.iterdir(), *other.iterdir())}
        return all(_is_equal(one / name, other / name) for name in names)
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def finish(draft: Draft, options: Options) -> LayoutResult:
    """Apply the options for views, missing files, labels, rows of zeros and splits. Raises InputError in one line."""
    spec = policy(options, draft.labeler)
    chosen, views = of_views(draft.matched.rows, spec.view, draft.source)
    draft = replace(draft, matched=replace(draft.matched, rows=chosen), notes=(*draft.notes, *views))
    rows = _existing(draft, options)
    orphans = pd.concat([tree.orphans(draft.matched), draft.orphans], ignore_index=True)
    rows, findings, report = apply_labels(
        rows.drop(columns="exists"), draft.findings, spec, draft.source, draft.labels or draft.source.name
    )
    rows, findings, zeros = resolve_all_zero(rows, findings, spec.all_zero, draft.source)
    if not len(rows):
        raise InputError(f"{draft.source}: no row is left; check the table and the options that drop rows")
    rows, split = _split(rows, findings, options)
    carried = [c for c in rows.columns if c not in (*REQUIRED, *findings)]
    try:
        manifest = _below(draft.root, rows[[*REQUIRED, *carried, *findings]], findings)
    except InputError as error:
        raise InputError(f"{draft.source}: {error}{_resplit_hint(str(error))}") from None
    notes = (*draft.notes, *draft.matched.notes, *split, *zeros, *_label_notes(manifest))
    return LayoutResult(manifest, orphans, notes, report)


def _below(root: AnyFile, rows: pd.DataFrame, findings: tuple[str, ...]) -> Manifest:
    """Return the manifest of images and masks below a folder; below a URL they get URLs."""
    if isinstance(root, Path):
        return Manifest(rows, findings, root)
    moved = Manifest(rows, findings, Path()).moved(
        lambda path: path if is_url(path) or Path(path).is_absolute() else (root / path).url
    )
    return Manifest(moved, findings, Path())


def _existing(draft: Draft, options: Options) -> pd.DataFrame:
    """Return the rows whose file exists, or all by the option. Raises InputError for a repeated uid or no file."""
    rows = draft.matched.rows
    if repeated := rows.index[rows.index.duplicated()].unique().tolist():
        raise InputError(
            f"{draft.source}: uid {repeated[0]} has {len(rows.loc[repeated[0]])} rows; each image needs one"
        )
    if options.missing == "keep" or not len(rows):
        return rows
    if not rows["exists"].any():
        message = f"none of the {len(rows)} labelled images is below it"
        folder = draft.root.absolute()
        raise InputError(f"{folder}: {message}; give their folder with --images, or use --missing keep")
    return rows[rows["exists"]]


def _label_notes(manifest: Manifest) -> tuple[str, ...]:
    """Return notes on images without a label, and on findings that no image is known not to have."""
    unknown = int(np.isnan(manifest.labels()).all(axis=1).sum())
    blank = (f"{unknown} image(s) without any known label",) if unknown else ()
    counts = manifest.counts()
    never = counts.index[(counts["positive"] > 0) & (counts["negative"] == 0)].tolist()
    hint = "a classifier learns nothing of it; see --labeler and --blank"
    return (*blank, *((f"never absent: {few(never)}: {hint}",) if never else ()))


def resolve_all_zero(
    rows: pd.DataFrame, findings: tuple[str, ...], choice: str | None, source: Path
) -> tuple[pd.DataFrame, tuple[str, ...], tuple[str, ...]]:
    """Return rows, findings and notes after the `choice` for rows whose every finding, no-finding included, is 0."""
    zero = (rows[list(findings)] == 0).all(axis=1)
    if not (count := int(zero.sum())):
        return rows, findings, ()
    if choice is None:
        ways = "--all-zero no-finding (these images are normal), keep (they show something else) or drop"
        raise InputError(f"{source}: {count} of {len(rows)} rows have every finding at 0; choose {ways}")
    if choice == "keep":
        return rows, findings, (f"{count} row(s) with every finding at 0, kept",)
    if choice == "drop":
        return rows[~zero], findings, (f"{count} row(s) with every finding at 0, left out",)
    name = no_finding(findings)
    if name is None:
        some = (rows[list(findings)] == 1).any(axis=1)
        name, findings = "No_Finding", (*findings, "No_Finding")
        rows = rows.assign(**{name: pd.Series(np.nan, rows.index).mask(some, 0.0)})
    rows = rows.assign(**{name: rows[name].mask(zero, 1.0)})
    return rows, findings, (f"{count} row(s) with every finding at 0, labelled {name}",)


def renamed_parts(split: pd.Series) -> pd.Series:
    """Return train, val or test for the names in published tables; other values unchanged."""
    names = split.str.strip().str.lower().map(PARTS)
    return names.where(names.notna(), split)


def _split(rows: pd.DataFrame, findings: tuple[str, ...], options: Options) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return rows with a complete split, and notes: as published, filled where it is blank, or a new one."""
    patients, labels, blank = rows["patient_id"], rows[list(findings)], rows["split"].isna()
    if options.resplit or blank.all():
        note = f"split by patient with seed {options.seed}, 70/10/20, stratified by finding"
        return rows.assign(split=patient_split(patients, labels, options.seed)), (note,)
    if not blank.any():
        return rows, ()
    filled = complete_split(rows["split"], patients, labels, options.seed)
    others = int(patients[blank & ~patients.isin(patients[~blank])].nunique())
    note = f"{int(blank.sum())} row(s) had no split: {others} patient(s) got a new one, the others keep theirs"
    return rows.assign(split=filled), (note,)


def _resplit_hint(message: str) -> str:
    return ", or split again with --resplit" if " is in splits " in message else ""
