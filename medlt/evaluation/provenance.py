"""May this source be added to these train rows? Asked before any arm is trained.

A source is a run's synthetic images and the real rows it learnt from. Whatever it was made of must be train rows of the
experiment: neither a model nor an image may have seen a patient of the validation or test split, or real rows that no
arm is given. Models may be stopped by validation rows, as the arms are, never by test rows. Messages count patients and
name images, never patients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from medlt.checks.apart import parents_of
from medlt.data.manifest import Manifest
from medlt.types import InputError

HELD = ("val", "test")
PLANNED = ("finding", "slot", "fold")
"""Columns of a plan that say for which finding an image was made, as which one, and which judge knows no parent."""


def require_fit(
    name: str, made: Manifest, learnt: Manifest, real: Manifest, stopped_by: Manifest | None = None
) -> None:
    """Raise InputError, one line, unless the images of source `name` may be added to the train rows of `real`.

    made: its synthetic rows; learnt: the real rows its models were trained on; real: the experiment's rows, all splits;
    stopped_by: the real rows its models were chosen on, if there were any.
    """
    require_findings(name, made.findings, real.findings)
    require_rows(name, made, real)
    held = {split: real.split(split).rows for split in HELD}
    parents = {uid for uids in parents_of(made.rows) for uid in uids}
    patients = {*learnt.rows["patient_id"], *real.rows["patient_id"].reindex(sorted(parents)).dropna()}
    require_disjoint(name, patients, {split: rows["patient_id"] for split, rows in held.items()})
    require_disjoint(name, learnt.rows.index, {split: rows.index for split, rows in held.items()}, "images")
    if stopped_by is not None:
        test = {"test": held["test"]["patient_id"]}
        require_disjoint(name, stopped_by.rows["patient_id"], test, "patients, as validation rows,")
    train = real.split("train").rows.index
    require_parents(name, made.rows, train)
    if len(more := learnt.rows.index.difference(train)):
        mend = "its gain could be theirs; make it from the experiment's own train rows"
        raise InputError(f"source {name}: learnt from {len(more)} real images that no arm is given, so {mend}")
    names = list(real.findings)
    own, now = learnt.rows[names], real.rows.loc[learnt.rows.index, names]
    if other := int((~(own.eq(now) | (own.isna() & now.isna()))).any(axis=1).sum()):
        mend = "what differs could be theirs; make it again from the experiment's labels"
        raise InputError(f"source {name}: learnt from other labels of {other} train images, so {mend}")


def require_findings(name: str, own: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise InputError unless the findings of a source are the experiment's, in the same order."""
    if lost := [finding for finding in wanted if finding not in own]:
        raise InputError(f"source {name}: its labels lack {lost[0]!r}; make it with the experiment's findings")
    if more := [finding for finding in own if finding not in wanted]:
        raise InputError(f"source {name}: it has labels of {more[0]!r}, the experiment has not; use the same findings")
    if tuple(own) != tuple(wanted):
        at = next(i for i, pair in enumerate(zip(own, wanted, strict=True)) if pair[0] != pair[1])
        told = f"finding {at + 1} is {own[at]!r} there and {wanted[at]!r} in the experiment"
        raise InputError(f"source {name}: {told}; give data.findings in one order, label vectors go by it")


def require_rows(name: str, made: Manifest, real: Manifest) -> None:
    """Raise InputError unless all rows are synthetic, new, labelled, and there with their files.

    That labels are in [0,1] or NaN and uids distinct a Manifest has seen to. A source that kept no image passes: its
    arms are empty, and the verdict says so.
    """
    rows = made.rows
    if rows.empty:
        return
    if lost := [column for column in PLANNED if column not in rows]:
        raise InputError(f"source {name}: no column {lost[0]}; use the manifest.parquet that `medlt augment` left")
    flag = rows["synthetic"] if "synthetic" in rows else pd.Series(False, rows.index)
    checks = {
        "is not marked synthetic; give only rows that a run made": ~flag.fillna(False).astype(bool),
        "is a real row's uid too; make the source again with another seed": rows.index.isin(real.rows.index),
        "is made for no finding of the experiment; make it again": ~rows["finding"].isin(real.findings),
        "has no known label, so nothing is said of it; leave it out": rows[list(made.findings)].isna().all(axis=1),
    }
    for what, mask in checks.items():
        if len(bad := rows.index[mask]):
            raise InputError(f"source {name}: image {bad[0]!r}{_more(len(bad))} {what}")
    try:
        made.check_files()
    except InputError as error:
        raise InputError(f"source {name}: {error}") from None


def require_parents(name: str, rows: pd.DataFrame, train: pd.Index) -> None:
    """Raise InputError unless every image names what it was made of, and that is in `train`.

    By `parent_a`, or `like`, its control is made: duplicated real images, count for count.
    """
    if rows.empty:
        return
    if not {"parent_a", "like"} & set(rows.columns):
        raise InputError(f"source {name}: no column parent_a or like, so no control can be made; use rows of a run")
    parents, known = parents_of(rows), set(train)
    alone = [uid for uid, named in parents.items() if not named]
    strange = [uid for uid, named in parents.items() if not known.issuperset(named)]
    for bad, what in ((alone, "names no real parent"), (strange, "has a parent that is no train row here")):
        if bad:
            mend = "make the source from the experiment's own train rows"
            raise InputError(f"source {name}: image {bad[0]!r}{_more(len(bad))} {what}; {mend}")


def require_disjoint(
    name: str, learnt: Iterable[str], held: Mapping[str, Iterable[str]], what: str = "patients"
) -> None:
    """Raise InputError where a source was learnt from what is held out; learnt: ids; held: split -> ids.

    Only counts are told: an id may say who somebody is.
    """
    known = {str(one) for one in learnt}
    both = {split: len(known & {str(one) for one in ids}) for split, ids in held.items()}
    if any(both.values()):
        told = " and ".join(f"{split} ({count})" for split, count in both.items() if count)
        raise InputError(f"source {name}: learnt from {what} of split {told}; make it again from train rows alone")


def _more(count: int) -> str:
    return f" (and {count - 1} more)" if count > 1 else ""
