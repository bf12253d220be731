"""A collection of radiographs with labels, from a table, a manifest, a published layout or a folder of DICOM files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from medlt.api.messages import in_python
from medlt.data.layouts import read_layout
from medlt.data.layouts.reading import open_table
from medlt.data.manifest import RESERVED, SPLITS, Manifest
from medlt.files import digest, write_table
from medlt.metrics.auroc_power import smallest_visible_gains
from medlt.metrics.groups import group
from medlt.names import did_you_mean
from medlt.remote import AnyFile
from medlt.types import InputError

if TYPE_CHECKING:
    import numpy as np

    from medlt.data.loaders import Radiographs

FOLDERS = ("images", "labels", "masks")
"""Options of layouts that are paths."""
CARRIED = ("sex", "age")
"""Columns that describe a patient; never inferred to be findings."""


@dataclass(frozen=True, eq=False)
class CollectionSummary:
    """What a collection holds and what an experiment on it could show. Print it.

    findings: index finding; columns train, val, test (positives), group (head, medium, tail), and smallest_gain: the
    least gain in AUROC that the test images would show four times in five, NaN where they are too few to show any.
    """

    images: int
    patients: int
    splits: Mapping[str, int]
    findings: pd.DataFrame
    tail: tuple[str, ...]
    rule: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {count}" for name, count in self.splits.items())
        table = self.findings.assign(
            smallest_gain=[f"{gain:.2f}" if gain == gain else "none" for gain in self.findings["smallest_gain"]]
        )
        lines = [
            f"{self.images} images of {self.patients} patients ({parts})",
            table.rename(columns={"smallest_gain": "smallest gain"}).to_string(),
            f"tail: {', '.join(self.tail) or 'none'} ({self.rule})",
            "smallest gain: in AUROC, shown by the test images four times in five; none: they are too few to show any",
            *self.notes,
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"CollectionSummary({self.images} images of {self.patients} patients, {len(self.tail)} tail findings)"


@dataclass(frozen=True, eq=False)
class Collection:
    """Images of patients, their labels and their splits. Open one with `from_csv` or one of its siblings.

    manifest: the rows; file: the manifest.parquet that holds them, None for rows in memory; notes: remarks of the
    layout that was read.

    Examples:
        >>> collection = medlt.Collection.from_csv("labels.csv", images="png/")
        >>> text = str(collection.summary())
        >>> item = collection.dataset(size=64, split="train")[0]
    """

    manifest: Manifest
    file: Path | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_manifest(cls, path: str | Path) -> Self:
        """Read a manifest.parquet, such as `medlt manifest` writes. Raises InputError for any other file."""
        file = Path(path).expanduser().absolute()
        return cls(Manifest.read(file), file)

    @classmethod
    def from_csv(
        cls, table: str | Path, images: str | Path | None = None, findings: Sequence[str] | None = None, **options: Any
    ) -> Self:
        """Read a table with one row an image.

        table: columns path (or uid, the file's name), patient_id, optionally split and view, and one column a finding
        with 1, 0 or blank; images: the folder that paths start from, by default the table's; findings: the label
        columns, by default every column that holds only 0, 1 and blanks, with at least one 1.
        options: those of the layout csv, such as column={"patient_id": "pid"}, patient="(p[0-9]+)",
        label_column="finding", value={"2": 1}, all_zero="keep". Raises InputError for what does not fit.
        """
        table = Path(table).expanduser()
        chosen = tuple(findings or ())
        if findings is None and not options.get("label_column") and not options.get("label_spec"):
            chosen = _label_columns(table, options.get("column") or {}, sheet=options.get("sheet"))
        options.setdefault("all_zero", "keep")
        return cls.from_layout("csv", table, images=images, findings=chosen, **options)

    @classmethod
    def from_mimic_cxr_lt(cls, folder: str | Path, images: str | Path | None = None, **options: Any) -> Self:
        """Read MIMIC-CXR-LT, or MIMIC-CXR-JPG with its own labels; images: the folder of the files, if elsewhere."""
        return cls.from_layout("mimic-cxr-lt", folder, images=images, **options)

    @classmethod
    def from_dicom_folder(
        cls, folder: str | Path, labels: str | Path, key: str | None = None, findings: Sequence[str] | None = None,
        **options: Any,
    ) -> Self:  # fmt: skip
        """Read a folder of DICOM (or PNG, JPEG) files and a table of labels.

        key: the column of the table that names the image; findings and options as for `from_csv`.
        """
        known = dict(options.get("column") or {})
        labels = Path(labels).expanduser()
        chosen = tuple(findings or ())
        if findings is None and not options.get("label_column") and not options.get("label_spec"):
            chosen = _label_columns(labels, known, (key,), options.get("sheet"))
        options.setdefault("all_zero", "keep")
        return cls.from_layout("folder", folder, labels=labels, key=key, findings=chosen, **options)

    @classmethod
    def from_layout(cls, layout: str, source: str | Path, **options: Any) -> Self:
        """Read a published layout, or one of a plug-in (`medlt.layouts`), with the layout's own options."""
        paths = {name: Path(value).expanduser() if isinstance(value, str | Path) and name in FOLDERS else value
                 for name, value in options.items()}  # fmt: skip
        try:
            result = read_layout(layout, Path(source).expanduser(), paths)
        except InputError as error:
            raise InputError(in_python(str(error))) from None
        result.write_files()
        return cls(result.manifest, None, tuple(result.notes))

    @classmethod
    def from_phantom(cls, folder: str | Path, patients: int = 400, seed: int = 0, **options: Any) -> Self:
        """Write synthetic radiographs as DICOM files below `folder`, or find them there: data to try medlt with.

        options: size (pixels), imbalance (most frequent finding over the rarest), shares (train, val, test).
        Raises InputError for an option that does not fit.
        """
        from pydantic import ValidationError

        from medlt.config import PhantomData
        from medlt.config.messages import explain
        from medlt.data.source import open_data

        given = {"patients": patients, **options}
        try:
            settings = PhantomData(**given)
        except ValidationError as error:
            raise InputError(f"from_phantom: {explain(error, PhantomData, given)}") from None
        manifest = open_data(settings, seed=seed, folder=Path(folder).expanduser())
        manifest.require_positives()
        return cls(manifest)

    def with_boxes(self, table: str | Path) -> Self:
        """Return the collection with boxes around findings: BBox_List_2017.csv, or uid, finding, x, y, width, height.

        Boxes of other images are left out. Raises InputError for a finding that the collection does not have, and for a
        box outside its image.
        """
        from medlt.data.boxes import with_boxes

        return type(self)(with_boxes(self.manifest, Path(table).expanduser()), None, self.notes)

    def with_reports(self, table: str | Path) -> Self:
        """Return the collection with the side of each finding that its report names, and nothing else of the text.

        table: uid, study_id or study, and report, text, findings or impression (`medlt.data.sides`). Raises InputError
        for a table without these columns, or without a report of any image.
        """
        from medlt.data.sides import with_sides

        return type(self)(with_sides(self.manifest, Path(table).expanduser()), None, self.notes)

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings, in the order of every label vector."""
        return self.manifest.findings

    def digest(self) -> str:
        """Return 16 hex digits of the rows: uids, labels, splits and paths, and not the bytes of the images."""
        return digest(self.manifest.absolute().to_csv())

    def summary(self, tail_below: int = 100, head_above: int = 1000) -> CollectionSummary:
        """Return counts, groups and what an experiment could show; a finding with fewer train positives is tail."""
        counts = {split: self.manifest.split(split).counts() for split in SPLITS}
        table = pd.DataFrame({split: count["positive"] for split, count in counts.items()})
        groups = group(dict(table["train"]), above=head_above, below=tail_below)
        table["group"] = [groups.of[name] for name in table.index]
        table["smallest_gain"] = smallest_visible_gains(counts["test"])
        rows = self.manifest.rows
        return CollectionSummary(
            images=len(rows),
            patients=int(rows["patient_id"].nunique()),
            splits={split: int((rows["split"] == split).sum()) for split in SPLITS},
            findings=table,
            tail=tuple(name for name in groups.members("tail") if name != self.manifest.no_finding),
            rule=groups.rule,
            notes=self.notes,
        )

    def dataset(self, size: int = 224, split: str = "train") -> Radiographs:
        """Return a torch Dataset of the real images of one split; for its items see `Run.dataset`."""
        from medlt.data.loaders import dataset

        return dataset(self.manifest.split(split), size)

    def paths(self, finding: str | None = None, split: str = "train") -> tuple[AnyFile, ...]:
        """Return the files of one split: of the positives of a finding, or all. Raises InputError if it is unknown."""
        part = self.manifest.split(split)
        if finding is not None and finding not in self.findings:
            close = did_you_mean(finding, self.findings) or ";"
            raise InputError(f"no finding {finding!r}{close} the collection has {', '.join(self.findings)}")
        rows = part.rows if finding is None else part.rows[part.rows[finding] == 1]
        return tuple(part.file(str(uid)) for uid in rows.index)

    def mask(self, uid: str, finding: str, size: int = 224) -> np.ndarray:
        """Return where a finding is in an image by its mask or box, bool [size,size].

        Raises InputError for an image without one, and for a mask that does not fit its image.
        """
        from medlt.data.regions import Regions

        regions = Regions.of(self.manifest.where(self.manifest.rows.index.to_series() == uid))
        if regions.kind(uid, finding) is None:
            raise InputError(f"{finding}: image {uid!r} has no mask or box of it; see the columns mask_{finding}")
        return regions.pixels(uid, finding, size)

    def place(self, folder: Path) -> Path:
        """Return where the manifest lies: its file, or FOLDER/collection-DIGEST.parquet for rows in memory."""
        return self.file or Path(folder).expanduser().absolute() / f"collection-{self.digest()}.parquet"

    def saved(self, folder: Path) -> Path:
        """Return `place` of the folder; rows in memory are written there first, unless they are there."""
        path = self.place(folder)
        if not path.exists():
            rows = self.manifest.absolute()
            rows.attrs = {"findings": list(self.findings)}
            write_table(path, rows)
        return path

    def __len__(self) -> int:
        return len(self.manifest.rows)

    def __repr__(self) -> str:
        patients = self.manifest.rows["patient_id"].nunique()
        return f"Collection({len(self)} images of {patients} patients, {len(self.findings)} findings)"


def as_collection(given: Collection | str | Path) -> Collection:
    """Return a collection, or that of a file: a manifest.parquet, or a table that `Collection.from_csv` reads.

    Raises InputError for a folder, or a file that is no table.
    """
    if isinstance(given, Collection):
        return given
    path = Path(given).expanduser()
    if path.suffix == ".parquet":
        return Collection.from_manifest(path)
    if path.is_dir():
        raise InputError(
            f"{path.absolute()}: is a folder; open it with medlt.Collection.from_dicom_folder(FOLDER, LABELS)"
        )
    if path.suffix in (".yaml", ".yml"):
        raise InputError(
            f"{path.absolute()}: is a config; run it with `medlt augment {path}`, or give the collection that it names"
        )
    return Collection.from_csv(path)


def _label_columns(
    table: Path, column: Mapping[str, str], other: Sequence[str | None] = (), sheet: str | None = None
) -> tuple[str, ...]:
    """Return the columns that hold only 0, 1 and blanks, with a 1 among them. Raises InputError if there is none."""
    source = open_table(table, sheet=sheet).rows
    excluded = {*RESERVED, *CARRIED, *column.values(), *other}
    numbers = {str(name): pd.to_numeric(source[name], errors="coerce") for name in source if name not in excluded}
    labels = [
        name
        for name, values in numbers.items()
        if values.notna().eq(source[name].notna()).all() and values.dropna().isin((0, 1)).all() and (values == 1).any()
    ]
    if not labels:
        raise InputError(
            f"{table.absolute()}: no column holds only 0, 1 and blanks; name the label columns with findings=[...]"
        )
    return tuple(labels)
