"""Check, before any arm is trained, that a source may be added to the train rows of an experiment.

A source is the synthetic images of a run and the real rows that its models were trained on. All of these rows must be
train rows of the experiment: no model may be trained on, and no image made from, a patient of the validation or test
split, or a real row that no arm is trained on. Validation rows may be used for early stopping, as in the arms; test
rows may not. Messages name images and count patients; they never name patients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from medlt.checks.separation import parents_of
from medlt.data.manifest import Manifest
from medlt.types import InputError

HELD_OUT = ("val", "test")
PLANNED = ("finding", "slot", "fold")
"""Columns of a plan: the finding an image was made for, its slot, and the fold of its verifier."""


def require_usable(
    name: str, synthetic: Manifest, trained_on: Manifest, real: Manifest, stopped_by: Manifest | None = None
) -> None:
    """Raise InputError, one line, unless the images of source `name` may be added to the train rows of `real`.

    synthetic: its images; trained_on: the real rows that its models were trained on; real: the rows of the experiment,
    all splits; stopped_by: the real rows that were used for early stopping of its models, if any.
    """
    require_findings(name, synthetic.findings, real.findings)
    require_rows(name, synthetic, real)
    held_out = {split: real.split(split).rows for split in HELD_OUT}
    parents = {uid for uids in parents_of(synthetic.rows) for uid in uids}
    patients = {*trained_on.rows["patient_id"], *real.rows["patient_id"].reindex(sorted(parents)).dropna()}
    require_disjoint(name, patients, {split: rows["patient_id"] for split, rows in held_out.items()})
    require_disjoint(name, trained_on.rows.index, {split: rows.index for split, rows in held_out.items()}, "images")
    if stopped_by is not None:
        test = {"test": held_out["test"]["patient_id"]}
        require_disjoint(name, stopped_by.rows["patient_id"], test, "patients, as validation rows,")
    train = real.split("train").rows.index
    require_parents(name, synthetic.rows, train)
    if len(more := trained_on.rows.index.difference(train)):
        fix = "a gain could come from them; make the source from the experiment's own train rows"
        raise InputError(f"source {name}: trained on {len(more)} real images that no arm is trained on, so {fix}")
    names = list(real.findings)
    own, now = trained_on.rows[names], real.rows.loc[trained_on.rows.index, names]
    if other := int((~(own.eq(now) | (own.isna() & now.isna()))).any(axis=1).sum()):
        fix = "a difference could come from them; make the source again with the experiment's labels"
        raise InputError(f"source {name}: trained with other labels of {other} train images, so {fix}")


def require_findings(name: str, own: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise InputError unless the findings of a source are the experiment's, in the same order."""
    if lost := [finding for finding in wanted if finding not in own]:
        raise InputError(f"source {name}: its labels lack {lost[0]!r}; make it with the experiment's findings")
    if more := [finding for finding in own if finding not in wanted]:
        raise InputError(
            f"source {name}: it has labels of {more[0]!r} and the experiment has none; use the same findings"
        )
    if tuple(own) != tuple(wanted):
        at = next(i for i, pair in enumerate(zip(own, wanted, strict=True)) if pair[0] != pair[1])
        both = f"finding {at + 1} is {own[at]!r} in the source and {wanted[at]!r} in the experiment"
        raise InputError(f"source {name}: {both}; give data.findings in the same order, as label vectors depend on it")


def require_rows(name: str, synthetic: Manifest, real: Manifest) -> None:
    """Raise InputError unless all rows are synthetic, new and labelled, and their files exist.

    Manifest has already checked that labels are in [0,1] or NaN and uids are distinct. A source without kept images
    passes; its arms are empty, and the verdict reports that.
    """
    rows = synthetic.rows
    if rows.empty:
        return
    if lost := [column for column in PLANNED if column not in rows]:
        raise InputError(f"source {name}: no column {lost[0]}; use the manifest.parquet that `medlt augment` wrote")
    flag = rows["synthetic"] if "synthetic" in rows else pd.Series(False, rows.index)
    checks = {
        "is not marked synthetic; give only rows that a run made": ~flag.fillna(False).astype(bool),
        "has the uid of a real row; make the source again with another seed": rows.index.isin(real.rows.index),
        "is made for no finding of the experiment; make it again": ~rows["finding"].isin(real.findings),
        "has no known label; leave it out": rows[list(synthetic.findings)].isna().all(axis=1),
    }
    for what, mask in checks.items():
        if len(bad := rows.index[mask]):
            raise InputError(f"source {name}: image {bad[0]!r}{_more(len(bad))} {what}")
    try:
        synthetic.check_files()
    except InputError as error:
        raise InputError(f"source {name}: {error}") from None


def require_parents(name: str, rows: pd.DataFrame, train: pd.Index) -> None:
    """Raise InputError unless every image names the real rows it was made from, and all of them are in `train`.

    `tail_parent` or `label_source` gives its control: duplicated real images, count for count.
    """
    if rows.empty:
        return
    if not {"tail_parent", "label_source"} & set(rows.columns):
        raise InputError(
            f"source {name}: no column tail_parent or label_source, so no control can be made; use rows of a run"
        )
    parents, known = parents_of(rows), set(train)
    alone = [uid for uid, named in parents.items() if not named]
    strange = [uid for uid, named in parents.items() if not known.issuperset(named)]
    for bad, what in (
        (alone, "names no real parent"),
        (strange, "has a parent that is not a train row of the experiment"),
    ):
        if bad:
            fix = "make the source from the experiment's own train rows"
            raise InputError(f"source {name}: image {bad[0]!r}{_more(len(bad))} {what}; {fix}")


def require_disjoint(
    name: str, trained_on: Iterable[str], held_out: Mapping[str, Iterable[str]], what: str = "patients"
) -> None:
    """Raise InputError if a source was trained on held_out-out ids; trained_on: ids; held_out: split -> ids.

    The message holds counts only, as an id may identify a person.
    """
    known = {str(one) for one in trained_on}
    both = {split: len(known & {str(one) for one in ids}) for split, ids in held_out.items()}
    if any(both.values()):
        counts = " and ".join(f"{split} ({count})" for split, count in both.items() if count)
        raise InputError(f"source {name}: trained on {what} of split {counts}; make it again from train rows alone")


def _more(count: int) -> str:
    return f" (and {count - 1} more)" if count > 1 else ""
