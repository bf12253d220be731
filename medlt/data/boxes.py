"""Reads tables of boxes around findings into the columns `box_FINDING` of a manifest (`medlt.data.regions`).

Four formats, plain or gzipped CSV, one row a box, in pixels from the top left:

    BBox_List_2017.csv   Image Index, Finding Label, x, y, w, h of the 1024 x 1024 px images of ChestX-ray14
                         (Wang et al., CVPR 2017); "Infiltrate" is the finding Infiltration
    stage_2_train_labels.csv  patientId, x, y, width, height, Target of the 1024 x 1024 px images of RSNA; rows without
                         a box are images without Lung Opacity
    annotations_train.csv  image_id, rad_id, class_name, x_min, y_min, x_max, y_max of VinDr-CXR, of each reader; rows
                         without a box are readings without a finding
    a table of your own  uid, finding, x, y, width, height; image_width, image_height if the boxes were drawn on an
                         image of another size than the file
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from medlt.data.box_tables import FRAME, OWN, published_boxes
from medlt.data.columns import BOX, more
from medlt.data.images import image_shape
from medlt.data.layouts import LayoutResult, tree
from medlt.data.layouts.reading import canonical, read_table, require
from medlt.data.manifest import Manifest
from medlt.data.regions import Regions
from medlt.names import did_you_mean
from medlt.types import InputError

NIH = ("Image Index", "Finding Label")
NIH_SIDE = 1024
NIH_NAMES = {"Infiltrate": "Infiltration"}
OVER = 1.0
"""A box may end this many pixels outside, by rounding; it is cut."""


class MatchedBoxes(NamedTuple):
    """The boxes of a table beside a collection.

    boxes: those of its images and findings, columns uid, finding, corners; strangers: the image names of the boxes
    whose image it does not have; others: number of boxes whose finding it does not have.
    """

    boxes: pd.DataFrame
    strangers: pd.Series
    others: int


def with_boxes(manifest: Manifest, table: Path, aliases: Mapping[str, Sequence[str]] | None = None) -> Manifest:
    """Return the rows with the boxes of `table` beside those that they have; boxes of other images are ignored.

    aliases: finding of the manifest -> its other names, which the table may use. An image is named by its uid or by
    its file name. Findings of the NIH table that the manifest does not have are ignored. Raises InputError for a table
    in no known format, a finding that the manifest does not have, a box that is not inside its image, and a table
    without any box of these images.
    """
    return _joined(manifest, _matched(manifest, Path(table), aliases or {}).boxes)


def add_boxes(result: LayoutResult, table: Path) -> LayoutResult:
    """Return what a layout read, with the boxes of `table`; those of other images are orphans, one row a box.

    Names that the option `alias` of the layout gives a finding count in the table too. Raises InputError as
    `with_boxes`.
    """
    aliases = result.labels.spec.alias if result.labels else {}
    boxes, strangers, others = _matched(result.manifest, Path(table), aliases)
    lost = pd.DataFrame({"kind": tree.BOX, "uid": tree.stems(strangers), "path": strangers}, dtype="str")
    ignored = (f"{others} box(es) of findings that the collection does not have, ignored",) if others else ()
    return replace(
        result,
        manifest=_joined(result.manifest, boxes),
        orphans=pd.concat([result.orphans, lost], ignore_index=True),
        notes=(*result.notes, *ignored),
    )


def atlas(table: Path, findings: Sequence[str]) -> Regions:
    """Return the boxes of `table` by the names of its images, which need not exist: where findings usually are.

    Raises InputError as `with_boxes`, and for a table that does not have the size of each image.
    """
    boxes = _read(Path(table), findings, {}).dropna(subset="finding")
    if boxes[list(FRAME)].isna().any(axis=None):
        raise InputError(f"{table}: has no size of the images; add {' and '.join(FRAME)} to use boxes without images")
    boxes = boxes.assign(corners=list(_corners(boxes, Path(table))))
    by_name = {
        str(finding): {str(uid): np.stack(list(one["corners"])) for uid, one in part.groupby("uid")}
        for finding, part in boxes.groupby("finding")
    }
    return Regions(boxes=by_name)


def _matched(manifest: Manifest, table: Path, aliases: Mapping[str, Sequence[str]]) -> MatchedBoxes:
    """Return the boxes of `table` that are of the manifest's images. Raises InputError if there is none."""
    read = _read(table, manifest.findings, aliases)
    known = read.dropna(subset="finding")
    uids = _uids(manifest, known["uid"], table)
    boxes, strangers = known.assign(uid=uids)[uids.notna()], known.loc[uids.isna(), "uid"].astype(str)
    if not len(boxes):
        example = f", such as {strangers.iloc[0]}" if len(strangers) else ""
        problem = "no box is of an image and a finding of this collection"
        raise InputError(f"{table}: {problem}; check the names of its images{example}")
    corners = list(_corners(_framed(boxes, manifest), table))
    return MatchedBoxes(boxes[["uid", "finding"]].assign(corners=corners), strangers, len(read) - len(known))


def _joined(manifest: Manifest, boxes: pd.DataFrame) -> Manifest:
    """Return the rows with these boxes behind those that they have."""
    rows = manifest.rows.copy()
    for finding, part in boxes.groupby("finding"):
        column = f"{BOX}{finding}"
        corners = dict(rows[column].dropna()) if column in rows else dict[str, list[float]]()
        for uid, one in zip(part["uid"], part["corners"], strict=True):
            corners[uid] = [*corners.get(uid, ()), *map(float, one)]
        joined = [corners.get(uid) for uid in rows.index]
        rows[column] = pd.Series(joined, rows.index, dtype=object)
    return Manifest(rows, manifest.findings, manifest.root)


def _read(table: Path, findings: Sequence[str], aliases: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return columns uid (as the table names the image), finding, x, y, width, height and FRAME (NaN if unknown).

    The finding is NaN in rows of the NIH table whose finding is not among `findings`.
    """
    source = read_table(table, ("uid", "Image Index", "patientId", "image_id"))
    others = {canonical(other): name for name in findings for other in aliases.get(name, ())}
    known = others | {canonical(name): name for name in findings}
    if NIH[0] in source:
        return _nih(source, table, known)
    if (published := published_boxes(source, table)) is not None:
        named = published["finding"].map(canonical).map(known)
        return _numbers(published.assign(finding=named), table)
    require(source, OWN, table)
    named = source["finding"].astype(str).map(canonical).map(known)
    if (strange := source.loc[named.isna(), "finding"].astype(str)).size:
        close = did_you_mean(strange.iloc[0], findings) or ";"
        message = f"finding {strange.iloc[0]!r} of a box is not in the collection{more(strange)}{close}"
        raise InputError(f"{table}: {message} use {', '.join(findings)}")
    frame = source.reindex(columns=list(FRAME))
    return _numbers(source[list(OWN)].join(frame).assign(finding=named), table)


def _nih(source: pd.DataFrame, table: Path, known: Mapping[str, str]) -> pd.DataFrame:
    """Return the boxes of ChestX-ray14; the header of columns 3 to 6 is 'Bbox [x,y,w,h]'."""
    require(source, NIH, table)
    if source.shape[1] < 6:
        raise InputError(
            f"{table}: a box needs x, y, w and h behind 'Finding Label'; give the table as NIH published it"
        )
    boxes = source.iloc[:, :6].set_axis(list(OWN), axis=1)
    named = boxes["finding"].replace(NIH_NAMES).map(canonical).map(known)
    boxes = boxes.assign(finding=named, **dict.fromkeys(FRAME, NIH_SIDE))
    return _numbers(boxes, table)


def _numbers(boxes: pd.DataFrame, table: Path) -> pd.DataFrame:
    """Return the boxes with numbers. Raises InputError for a row with a blank or a text."""
    columns = [*OWN[2:], *FRAME]
    numbers = boxes[columns].apply(pd.to_numeric, errors="coerce").astype(np.float64)
    wrong = (numbers.isna() & (boxes[columns].notna() | [name in OWN for name in columns])).any(axis=1)
    if wrong.any():
        first, others = boxes.loc[wrong, "uid"].iloc[0], more(boxes[wrong])
        raise InputError(f"{table}: a box of {first} has a side that is no number{others}; correct it")
    return boxes.assign(**{name: numbers[name] for name in columns})


def _uids(manifest: Manifest, names: pd.Series, table: Path) -> pd.Series:
    """Return the uid of each name, NaN for other images. A name is a uid or a file name, with its suffix or not."""
    uids = manifest.rows.index.to_series()
    files = pd.Series(uids.to_numpy(), index=tree.stems(manifest.rows["path"]).to_numpy())
    stem = tree.stems(names.astype(str))
    twice = set(files.index[files.index.duplicated()])
    if shared := [name for name, whole in zip(stem, names, strict=True) if name in twice and whole not in uids.index]:
        raise InputError(f"{table}: {shared[0]} is the file name of several images{more(shared)}; name boxes by uid")
    files = files[~files.index.duplicated()]
    return names.astype(str).map(uids).fillna(stem.map(uids)).fillna(stem.map(files))


def _framed(boxes: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """Return the boxes with the size of the image that they were drawn on: the file's, where the table has none."""
    if not (lacking := boxes[list(FRAME)].isna().any(axis=1)).any():
        return boxes
    uids = boxes["uid"].where(lacking)
    shapes = {uid: image_shape(manifest.file(uid)) for uid in uids.dropna().unique()}
    high, wide = (uids.map({uid: float(shape[axis]) for uid, shape in shapes.items()}) for axis in (0, 1))
    return boxes.assign(image_width=wide.fillna(boxes[FRAME[0]]), image_height=high.fillna(boxes[FRAME[1]]))


def _corners(boxes: pd.DataFrame, table: Path) -> np.ndarray:
    """Return left, top, right, bottom as shares of the square, float64 [N,4]. Raises InputError for one outside."""
    low, size, frame = (boxes[list(names)].to_numpy(np.float64) for names in (OWN[2:4], OWN[4:], FRAME))
    wrong = (low < -OVER).any(1) | (low + size > frame + OVER).any(1) | (size <= 0).any(1) | (low >= frame).any(1)
    if wrong.any():
        row = boxes[wrong].iloc[0]
        box = ", ".join(f"{row[name]:g}" for name in OWN[2:])
        image = f"{row[FRAME[0]]:g} x {row[FRAME[1]]:g} px"
        raise InputError(
            f"{table}: the box {box} of {row['finding']} (uid {row['uid']}) is not inside its image of "
            f"{image}{more(boxes[wrong])}; correct it, or give {' and '.join(FRAME)} of the image it was drawn on"
        )
    side = frame.max(axis=1, keepdims=True)
    margin = (side - frame) / 2
    return np.hstack([(np.maximum(low, 0) + margin) / side, (np.minimum(low + size, frame) + margin) / side])
