"""Layout `mimic-cxr-lt`: MIMIC-CXR-LT, and MIMIC-CXR-JPG with its own labels.

Images are `files/p10/p10000032/s50414267/<dicom_id>.jpg`, or `.dcm` as in MIMIC-CXR (Johnson et al., Sci Data 2019;
PhysioNet mimic-cxr-jpg), or what `medlt convert` made of these (see `converted`). The lists of MIMIC-CXR-LT (see
`lists`) hold one row per image: subject_id, study_id, dicom_id, path and 19 findings.

MIMIC-CXR-JPG's `mimic-cxr-2.0.0-chexpert.csv.gz` and `-negbio.csv.gz` hold one row per study, 14 findings, each 1, 0,
-1 or blank; `-metadata.csv.gz` has ViewPosition by image, `-split.csv.gz` train, validate or test.
`mimic-cxr-2.1.0-test-set-labeled.csv` has a radiologist's labels of the reports of 687 test studies, by study_id, where
Lung Opacity is Airspace Opacity.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from medlt.data.layouts import converted, tree
from medlt.data.layouts.layout_result import Draft, LayoutResult, finish, renamed_parts
from medlt.data.layouts.lists import lists, not_read, one_release, read_lists, unread
from medlt.data.layouts.options import MimicOptions
from medlt.data.layouts.reading import known_findings, only_table, read_table, require
from medlt.remote import AnyFile
from medlt.types import InputError

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
    "Pneumoperitoneum",
    "Pneumomediastinum",
    "Subcutaneous Emphysema",
    "Tortuous Aorta",
    "Calcification of the Aorta",
)
"""The last five are new in MIMIC-CXR-LT; the others are those of CheXpert."""

IDS = ("dicom_id", "subject_id", "study_id")
STUDY_LABELS = ("chexpert", "negbio")
READ = "test-set-labeled"
OWN = re.compile(
    r"mimic-cxr-[\d.]+-(?P<kind>chexpert|negbio|split|metadata|test-set-labeled)\.csv(?:\.gz)?", re.IGNORECASE
)
_PLACE = r"(?:^|/)p(?P<subject_id>\d+)/s(?P<study_id>\d+)/[^/]+$"


def mimic_cxr_lt(src: Path, options: MimicOptions) -> LayoutResult:
    """Read the folder `src` with the tables, and with the images unless `images` is given.

    The labels are those of the lists; those of a labeler only if `release` names it. Raises InputError.
    """
    files = tree.listing(src)
    root = options.images or src
    image_files = tree.listing(root) if root != src else files
    pictures = converted.pictures(root, image_files)
    own = own_tables([*tree.paths(src, files), *tree.paths(root, image_files)])
    strange = unread(files, "mimic", OWN, converted.TABLES)
    if options.release in ("chexpert", "negbio"):
        draft = _by_study(own, options.release, root, pictures)
        draft = _by_radiologist(draft, own, options.test_labels == "radiologist")
        return finish(replace(draft, notes=(*draft.notes, *not_read(strange))), options)
    if options.test_labels != "labeler":
        raise InputError("--test-labels radiologist: needs --release chexpert or negbio, whose findings that table has")
    studies = [f"--release {kind} for the study labels of {own[kind].name}" for kind in STUDY_LABELS if kind in own]
    release, parts = one_release(lists(files, src, "mimic"), options.release, src, strange, " or ".join(studies))
    source, notes = read_lists(parts, IDS)
    rows, findings = labelled(source, FINDINGS, src)
    rows, views = with_views(rows, own, pictures)
    notes = (*notes, *views, *not_read(strange))
    draft = Draft(tree.by_stem(rows, pictures), findings, root, src, notes, labels=f"the lists of {release}")
    return finish(draft, options)


def own_tables(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the tables of MIMIC-CXR-JPG among `paths`, by 'chexpert', 'negbio', 'split' and 'metadata'."""
    kinds: dict[str, list[Path]] = {}
    for path in paths:
        if match := OWN.fullmatch(path.name):
            kinds.setdefault(match["kind"].lower(), []).append(path)
    return {kind: only_table(tables) for kind, tables in kinds.items()}


def labelled(source: pd.DataFrame, known: Sequence[str], table: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return rows by dicom_id from a table with one row per image, and its findings under their published names."""
    require(source, IDS, table)
    names = known_findings(source.columns, known)
    if not names:
        raise InputError(f"{table}: none of the {len(known)} findings is a column; is this the published table?")
    rows = source[list(names)].rename(columns=names)
    for name, columns in (
        ("path", ("path", "fpath")),
        ("view", ("ViewPosition",)),
        ("balanced_test", ("balanced_test",)),
    ):
        for column in (c for c in columns if c in source):
            rows[name] = source[column]
    rows["patient_id"] = _number(source["subject_id"])
    rows["study_id"] = _number(source["study_id"])
    rows["split"] = renamed_parts(source["split"])
    if "path" not in rows:
        rows["path"] = _published(rows["patient_id"], rows["study_id"], source["dicom_id"])
    return rows.set_axis(pd.Index(source["dicom_id"], name="uid")), tuple(names.values())


def with_views(
    rows: pd.DataFrame, own: dict[str, Path], pictures: pd.DataFrame
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Add `view` if the rows lack it, from the metadata table or else a conversion; return the rows and notes."""
    if "view" in rows:
        return rows, ()
    if "metadata" in own:
        return rows.assign(view=rows.index.map(_by_dicom(own["metadata"], "ViewPosition"))), ()
    views = pictures.drop_duplicates("stem").set_index("stem")["view"]
    return rows.assign(view=rows.index.map(views)), (_no_metadata(pictures),)


def _no_metadata(pictures: pd.DataFrame) -> str:
    """Return the note on views where there is no metadata table."""
    view = "is that of the DICOM files that were converted" if pictures["view"].notna().any() else "is blank"
    return f"no mimic-cxr-2.0.0-metadata.csv: view {view}"


def _by_study(own: dict[str, Path], kind: str, root: AnyFile, pictures: pd.DataFrame) -> Draft:
    """Return study-level labels on every image of the study; images are those of the metadata table and the tree."""
    if kind not in own:
        raise InputError(f"{root}: no mimic-cxr-2.0.0-{kind}.csv in it or in SRC; choose another --release")
    labels = read_table(own[kind], IDS)
    require(labels, IDS[1:], own[kind])
    names = known_findings(labels.columns, FINDINGS)
    labels = labels.set_index(_number(labels["study_id"]))[list(names)].rename(columns=names)
    if labels.index.has_duplicates:
        raise InputError(f"{own[kind]}: study {labels.index[labels.index.duplicated()][0]} has two rows; remove one")
    records, notes = _records(own, pictures)
    rows = records[records["study_id"].isin(labels.index)].join(labels, on="study_id")
    rows = rows.assign(split=pd.NA)
    if "split" in own:
        rows["split"] = renamed_parts(rows.index.to_series().map(_by_dicom(own["split"], "split")))
    lost = labels.index[~labels.index.isin(records["study_id"])]
    orphans = pd.DataFrame({"kind": tree.LABEL, "uid": "", "path": [f"study {s}" for s in lost]}, dtype="str")
    labeler = {"chexpert": "chexpert-labeler"}.get(kind, kind)
    source = f"{own[kind].name}, by study"
    return Draft(tree.by_stem(rows, pictures), tuple(names.values()), root, own[kind], notes, orphans, source, labeler)


def _by_radiologist(draft: Draft, own: dict[str, Path], wanted: bool) -> Draft:
    """Return the draft with the radiologist's labels in the test split, which keeps the studies that have them alone.

    Not `wanted`: the draft, with a note if there is such a table. Raises InputError without the table, a published
    split, or a finding in the table.
    """
    if not wanted:
        note = (
            f"{own[READ].name} is not used; --test-labels radiologist takes the test labels from it"
            if READ in own
            else ""
        )
        return replace(draft, notes=(*draft.notes, *((note,) if note else ())))
    for kind, name in ((READ, "2.1.0-test-set-labeled"), ("split", "2.0.0-split")):
        if kind not in own:
            raise InputError(f"{draft.root}: no mimic-cxr-{name}.csv in it or in SRC, which --test-labels needs")
    source = read_table(own[READ], IDS).rename(columns={"Airspace Opacity": "Lung Opacity"})
    names = known_findings(source.columns, draft.findings)
    require(source.rename(columns=names), ("study_id", *draft.findings), own[READ])
    labels = source.rename(columns=names).set_index(_number(source["study_id"]))[list(draft.findings)]
    if labels.index.has_duplicates:
        raise InputError(f"{own[READ]}: study {labels.index[labels.index.duplicated()][0]} has two rows; remove one")
    rows = draft.matched.rows
    test, known = rows["split"] == "test", rows["study_id"].isin(labels.index)
    read = labels.reindex(rows.loc[test & known, "study_id"]).set_axis(rows.index[test & known])
    rows = rows.assign(**{name: rows[name].where(~(test & known), read[name]) for name in draft.findings})
    left = rows.loc[test & ~known, "study_id"].nunique()
    studies = rows.loc[test & known, "study_id"].nunique()
    note = (
        f"test labels: {studies} of the {len(labels)} studies of {own[READ].name}; {left} other test studies left out"
    )
    rows = rows[~test | known]
    matched, words = replace(draft.matched, rows=rows), f"{draft.labels}; test: {own[READ].name}"
    return replace(draft, matched=matched, notes=(*draft.notes, note), labels=words)


def _records(own: dict[str, Path], pictures: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return path, patient_id, study_id, view by dicom_id: from the metadata table, else from the folders' names."""
    if "metadata" in own:
        source = read_table(own["metadata"], IDS)
        require(source, (*IDS, "ViewPosition"), own["metadata"])
        rows = pd.DataFrame({"patient_id": _number(source["subject_id"]), "study_id": _number(source["study_id"])})
        rows["view"] = source["ViewPosition"]
        rows["path"] = _published(rows["patient_id"], rows["study_id"], source["dicom_id"])
        return rows.set_axis(pd.Index(source["dicom_id"], name="uid")), ()
    ids = pictures["source"].str.extract(_PLACE)
    rows = pd.DataFrame({"patient_id": ids["subject_id"], "study_id": ids["study_id"], "path": pictures["path"]})
    rows = rows.assign(view=pictures["view"]).set_axis(pd.Index(pictures["stem"], name="uid"))
    rows = rows[rows["study_id"].notna().to_numpy() & ~rows.index.duplicated()]
    return rows, (f"{_no_metadata(pictures)}, images are those in the tree",)


def _by_dicom(table: Path, column: str) -> pd.Series:
    source = read_table(table, IDS)
    require(source, ("dicom_id", column), table)
    return source.drop_duplicates("dicom_id").set_index("dicom_id")[column]


def _number(ids: pd.Series) -> pd.Series:
    """Return '50414267' for 's50414267', the form in folders and some tables."""
    return ids.str.replace(r"^[ps](?=\d)", "", regex=True)


def _published(patient: pd.Series, study: pd.Series, dicom: pd.Series) -> pd.Series:
    return "files/p" + patient.str[:2] + "/p" + patient + "/s" + study + "/" + dicom + ".jpg"
