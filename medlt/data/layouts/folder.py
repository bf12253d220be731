"""Layout `folder`: a folder of images with one sub-folder per class, or with a table of labels.

The output folder of `medlt convert` has this layout too: its manifest.parquet lists images, patients, studies and
series, and each of its columns can be the key of the label table. Images that were de-identified are joined to the
hospital's own labels through the crosswalk of their conversion, of which nothing reaches the result.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from medlt.csv_text import unescaped
from medlt.data.columns import IDENTIFIERS, MASK, region_columns
from medlt.data.layouts import tree
from medlt.data.layouts.csv_table import ALONE, ROLES, alone, by_role, identified, joint_patients, uids_of
from medlt.data.layouts.labelled import REPEATED, one_row_each, table_labels
from medlt.data.layouts.layout_result import PARTS, Draft, LayoutResult, finish
from medlt.data.layouts.options import FolderOptions
from medlt.data.layouts.reading import open_table, read_table, require
from medlt.remote import AnyFile
from medlt.types import InputError

NAMES = ("name", "source file", "source name", "source stem")
"""Columns of an image that labels can be joined by. File names may hold patient names, so the manifest has none."""
SOURCE = "source's "
"""Prefix of the columns with identifiers of the source: labels can be joined by them, the manifest has none."""
_KEY = "key of the labels"


class JoinTable(NamedTuple):
    """A table of labels for images.

    rows: by key; the columns `roles`, further columns and labels; theirs: the images' column that matches the key;
    lost: line numbers of the rows of no image.
    """

    table: Path
    rows: pd.DataFrame
    findings: tuple[str, ...]
    roles: tuple[str, ...]
    theirs: str
    notes: tuple[str, ...]
    lost: tuple[int, ...]


def folder(src: Path, options: FolderOptions) -> LayoutResult:
    """Read the folder `src`. Raises InputError in one line."""
    root = options.images or src
    files = tree.images(tree.listing(root), root)
    known = _converted(src / "manifest.parquet", options.crosswalk)
    if known is not None:  # its DICOM files are the same images again
        files = files[~files["path"].str.startswith("dicom/")]
    rows = _bare(files, root) if known is None else known
    if options.labels is None:
        if known is not None:
            raise InputError(f"{src}: manifest.parquet has no labels; give them with --labels TABLE.csv")
        return finish(_classes(rows, files, src, options), options)
    return finish(_joined(rows, files, root, options), options)


def _converted(path: Path, crosswalk: Path | None) -> pd.DataFrame | None:
    """Return the rows of a converted folder's manifest; None if there is none, or one that already has labels.

    Raises InputError for a crosswalk without a converted folder, or one of other images.
    """
    if not path.is_file():
        if crosswalk is None:
            return None
        raise InputError(f"{path}: no such file, and --crosswalk needs one; give OUT/release of `medlt convert` as SRC")
    try:
        rows = pd.read_parquet(path)
    except (OSError, ValueError):
        raise InputError(f"{path}: not readable as parquet; restore it from a copy, or make it again") from None
    if rows.attrs.get("findings"):
        return None
    rows = rows.reset_index() if rows.index.name else rows
    require(rows, ("uid", "path"), path)
    rows = rows.assign(**{c: pd.NA for c in ROLES if c not in rows})
    return _sourced(rows, path.with_name("sources.csv")) if crosswalk is None else _crossed(rows, crosswalk)


def _sourced(rows: pd.DataFrame, table: Path) -> pd.DataFrame:
    """Add the names of the source files from sources.csv, if it exists."""
    if "source" not in rows or not table.is_file():
        return rows
    sources = unescaped(read_table(table, ("source", "file")))
    require(sources, ("source", "file"), table)
    return _named(rows, rows["source"].map(sources.drop_duplicates("source").set_index("source")["file"]))


def _named(rows: pd.DataFrame, file: pd.Series) -> pd.DataFrame:
    """Add the names of the source files, for a join only."""
    name = file.str.rsplit("/", n=1).str[-1]
    return rows.assign(**dict(zip(NAMES[1:], (file, name, tree.stems(name)), strict=True)))


def _crossed(rows: pd.DataFrame, table: Path) -> pd.DataFrame:
    """Add the identifiers and file names of the source from a crosswalk, for a join only."""
    source = unescaped(read_table(table, None))
    require(source, ("uid", "file", *IDENTIFIERS), table)
    known = source.drop_duplicates("uid").set_index("uid")
    if not rows["uid"].isin(known.index).all():
        raise InputError(f"{table}: lacks images of SRC; give private/crosswalk.csv of the same conversion")
    rows = _named(rows, rows["uid"].map(known["file"]))
    return rows.assign(**{SOURCE + name: rows["uid"].map(known[name]) for name in IDENTIFIERS})


def _bare(files: pd.DataFrame, root: AnyFile) -> pd.DataFrame:
    """Return one row per image file; the uid is its name, or its path with '__' for '/' if names repeat."""
    if not len(files):
        raise InputError(f"{root}: no PNG, JPEG or DICOM file below it; check SRC and --images")
    names = files["path"].str.rsplit("/", n=1).str[-1]
    rows = pd.DataFrame({"uid": uids_of(files["path"]), "path": files["path"], "name": names})
    return rows.assign(patient_id=pd.NA, split=_part(files["path"]), view=pd.NA)


def _part(paths: pd.Series) -> pd.Series:
    """Return the split named by the topmost folder, if every file is in such a folder."""
    parts = paths.str.split("/", n=1).str[0].str.lower().map(PARTS)
    return parts if parts.notna().all() else pd.Series(pd.NA, paths.index, dtype="str")


def _classes(rows: pd.DataFrame, files: pd.DataFrame, src: Path, options: FolderOptions) -> Draft:
    """Return one finding per class folder: 1 for its images, 0 for the others."""
    root = options.images or src
    if options.key or options.findings or options.patient_key:
        raise InputError(f"{root}: --key, --findings and --patient-key need a table of labels; give it with --labels")
    below = rows["path"].str.rsplit("/", n=1).str[0]
    inner = below.where(rows["path"].str.contains("/"), "")
    name = inner.str.rsplit("/", n=1).str[-1]
    unnamed = (name == "") | (rows["split"].notna() & ~inner.str.contains("/"))
    if unnamed.any():
        stray = f"{rows['path'][unnamed].iloc[0]} is in no class folder"
        raise InputError(f"{root}: {stray}; sort images into CLASS/ or SPLIT/CLASS/, or give a table with --labels")
    labels = pd.get_dummies(name, dtype="float64")
    rows = identified(rows, options.patient, src).drop(columns=NAMES[0]).join(labels)
    rows = rows.set_index(rows.pop("uid").rename("uid"))
    note = f"{labels.shape[1]} classes by folder: {', '.join(labels.columns)}"
    return Draft(tree.by_path(rows, files, root), tuple(labels.columns), root, src, (note,))


def _joined(rows: pd.DataFrame, files: pd.DataFrame, root: AnyFile, options: FolderOptions) -> Draft:
    """Join labels by key. One row of the table may belong to several images, such as those of a study."""
    read = _read_labels(rows, options)
    known, findings = read.rows, read.findings
    for role in read.roles:
        rows[role] = rows[read.theirs].map(known[role]).where(lambda v: v.notna(), rows[role])
    labels = known.drop(columns=[*read.roles])
    mine = rows.drop(columns=[c for c in labels if c in rows])
    mine = mine[mine[read.theirs].isin(known.index)].join(labels, on=read.theirs)
    joined_by = [c for c in mine if c in NAMES or c.startswith(SOURCE)]
    mine = identified(mine, options.patient, read.table).drop(columns=joined_by)
    masks = [*region_columns(known, findings, MASK).values()]
    files = tree.without(files, known[masks])
    matched = tree.by_path(mine.set_index(mine.pop("uid").rename("uid")), files, root)
    paths = [f"{read.table.name} line {n}" for n in read.lost]
    orphans = pd.DataFrame({"kind": tree.LABEL, "uid": "", "path": paths}, dtype="str")
    notes = (*read.notes, *((ALONE,) if alone(mine["patient_id"], options.patient) else ()))
    return Draft(matched, findings, root, read.table, notes, orphans)


def _read_labels(rows: pd.DataFrame, options: FolderOptions) -> JoinTable:
    """Return the table of labels for these images. Raises InputError for one that does not fit them."""
    assert options.labels is not None
    table, named = options.labels, {str(role): name for role, name in options.column.items()}
    key = options.key or named.get("uid") or _key_column(rows, options)
    text = (
        key,
        *(named.get(role, role) for role in ROLES),
        *options.patient_key,
        *filter(None, [options.label_column, options.reader_column]),
    )
    opened = open_table(table, text, options.sheet)
    require(opened.rows, (key, *named.values()), table)
    source = opened.rows[opened.rows[key].notna()]
    source = source.assign(**{key: source[key].str.strip()})
    read = table_labels(source, source[key], options, table, {key, *named.values()})
    theirs = _their_key(rows, source[key], key, table)
    _refuse_identities(options)
    taken = {"uid", "path", *read.findings, *(IDENTIFIERS if options.crosswalk else ())}
    roles = {role: values for role, values in by_role(source, named).items() if role not in taken}
    if options.patient_key:
        roles["patient_id"] = joint_patients(source, options, table)
    released = (*rows,) if options.crosswalk else ()  # a sex or an age as the profile left it
    more = (*options.extra_columns, *region_columns(source, read.findings, MASK).values())
    carried = [c for c in more if c in source and c not in (*ROLES, *read.findings, *released)]
    joined = pd.DataFrame({_KEY: source[key], **roles}).join(source[carried]).join(read.labels)
    known, repeated = one_row_each(joined, _KEY, table, key, read.findings)
    notes = [*opened.notes, *read.notes]
    notes.append(f"labels of {table.name} joined by {key}" + ("" if theirs == key else f" = {theirs}"))
    if repeated and options.label_column is None and options.reader_column is None:
        notes.append(REPEATED.format(repeated))
    lost = source.index[~source[key].isin(rows[theirs])] + 2  # line numbers: a key may be an accession or a name
    return JoinTable(table, known.set_index(_KEY), read.findings, tuple(roles), theirs, tuple(notes), tuple(lost))


def _refuse_identities(options: FolderOptions) -> None:
    """Raise InputError if a crosswalk is given and another option would carry an identifier of the source."""
    if options.crosswalk and options.patient_key:
        raise InputError("--patient-key: identifies patients of the source, which --crosswalk keeps out; leave it out")
    if options.crosswalk and (kept := sorted({*options.extra_columns} & {*IDENTIFIERS})):
        raise InputError(f"--extra-columns {kept[0]}: identifies the source, which --crosswalk keeps out; leave it out")


def _key_column(rows: pd.DataFrame, options: FolderOptions) -> str:
    """Return the column of the table that names images: uid, else the one whose distinct values fit most images.

    Raises InputError if no column fits.
    """
    assert options.labels is not None
    table = options.labels
    source = open_table(table, None, options.sheet).rows.drop_duplicates()
    if "uid" in source:
        return "uid"
    labels = (*options.findings, options.label_column, options.value_column, options.reader_column)
    others = [str(c) for c in source.columns if c not in (*ROLES[2:], *labels)]
    if options.label_column is None and options.reader_column is None:
        others = [c for c in others if source[c].dropna().is_unique]
    fits = {c: max(map(_rank, _fits(rows, source[c].dropna(), c).items())) for c in others}
    if not any(images for _, images in fits.values()):
        header = (
            "" if "accession" in rows else "; to join by accession number or UID, run medlt convert on the folder first"
        )
        raise InputError(
            f"{table}: no column names the images; give the column with --key, the "
            f"table has {', '.join(map(str, source.columns))}{header}"
        )
    return max(fits, key=lambda c: fits[c])


def _rank(fit: tuple[str, int]) -> tuple[bool, int]:
    """Return the order of a column of images that fits so many: the patient last, it would label all its studies."""
    column, images = fit
    return images > 0 and not column.endswith("patient_id"), images


def _fits(rows: pd.DataFrame, keys: pd.Series, key: str) -> dict[str, int]:
    """Return how many images each column that `key` may match has one of the `keys` for."""
    if SOURCE + key in rows:
        columns = [SOURCE + key]
    elif key in rows and key not in ("uid", "path"):
        columns = [key]
    else:
        columns = ["uid", "path", *NAMES, *IDENTIFIERS, *(SOURCE + name for name in IDENTIFIERS)]
    return {c: int(rows[c].isin(keys).sum()) for c in columns if c in rows}


def _their_key(rows: pd.DataFrame, keys: pd.Series, key: str, table: Path) -> str:
    """Return the column of the images that matches the key: the column of that name, else the name with most matches.

    Raises InputError if no image has any of the keys, or if two images share a key.
    """
    fits = _fits(rows, keys, key)
    best = max(fits, key=lambda c: _rank((c, fits[c])))
    if not fits[best]:
        message = f"column {key} (such as {keys.iloc[0]!r}) holds no image's {' or '.join(fits)}"
        raise InputError(f"{table}: {message}; name another column with --key")
    shared = rows.loc[rows[best].isin(keys) & rows[best].duplicated(), best]
    if best in NAMES and len(shared):
        raise InputError(f"{table}: {key} {shared.iloc[0]!r} is the {best} of more than one image; use the path as key")
    return best
