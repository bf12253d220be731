"""Variants differ from the cohort in what their kind says, and in nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medlt.config import PhantomData
from medlt.data.loaders import images
from medlt.data.phantom.cohort import NO_FINDING
from medlt.data.phantom.render import FINDINGS, film, lesion
from medlt.data.phantom.variants import Drawing, Kind, variants
from medlt.data.source import open_data
from medlt.types import InputError

SEED, SIZE, TAIL = 5, 64, ("Pneumothorax", "Mass")
DATA = PhantomData(kind="phantom", patients=40, size=SIZE, imbalance=10)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    manifest = open_data(DATA, seed=SEED, folder=tmp_path_factory.mktemp("phantom"))
    return manifest.rows.query("split == 'train'")


def test_a_row_without_a_change_is_the_image_that_the_cohort_reads(tmp_path: Path) -> None:
    """Drawn pixels take the path of the files: 12 bits, window, square, 8 bits."""
    manifest = open_data(PhantomData(kind="phantom", patients=20, size=SIZE, imbalance=4), seed=SEED, folder=tmp_path)
    first = manifest.rows.head(4)
    read = images(manifest, 64, list(first.index)).numpy()[:, 0]
    drawn = [Drawing(row, SEED, {}).draw(SIZE, 64) for row in first.rename_axis("uid").reset_index().to_dict("records")]
    np.testing.assert_array_equal(read, np.stack(drawn))


def test_the_same_lesion_is_the_lesion_of_its_parent_in_another_patient(train: pd.DataFrame) -> None:
    table, drawn = variants("same_lesion", train, TAIL, 1, SEED)
    for uid, row in table.iterrows():
        one, finding = drawn[str(uid)], str(row["finding"])
        parent = train.loc[row["tail_parent"]]
        assert one.row["patient_id"] != parent["patient_id"]
        assert one.row["view"] == parent["view"]
        own = film({**parent.to_dict(), "uid": row["tail_parent"]}, SEED, SIZE).masks[finding]
        moved = film(one.row, SEED, SIZE, one.lesions).masks[finding]
        assert own.any()
        assert moved.any()
    first = drawn[str(table.index[0])]
    plain = film({**first.row, table["finding"].iloc[0]: 0.0}, SEED, SIZE)
    with_it = film(first.row, SEED, SIZE, first.lesions)
    other = film(first.row, SEED, SIZE)
    assert not np.array_equal(plain.pixels, with_it.pixels)
    assert not np.array_equal(other.pixels, with_it.pixels), "its own lesion would look otherwise"


def test_a_lesion_in_its_own_patient_is_the_real_image(train: pd.DataFrame) -> None:
    uid = str(train.index[train["Mass"] == 1][0])
    row = {**train.loc[uid].to_dict(), "uid": uid}
    same = film(row, SEED, SIZE, {"Mass": lesion(row, "Mass", SEED)})
    np.testing.assert_array_equal(same.pixels, film(row, SEED, SIZE).pixels)


@pytest.mark.parametrize("kind", ["fresh", "same_lesion", "new_lesion"])
def test_counts_parents_and_labels(train: pd.DataFrame, kind: Kind) -> None:
    table, drawn = variants(kind, train, TAIL, 3, SEED)
    for name in TAIL:
        mine = table[table["finding"] == name]
        positives = list(train.index[train[name] == 1])
        assert Counter(mine["tail_parent"]) == dict.fromkeys(positives, 3)
        assert list(mine["slot"]) == list(range(3 * len(positives)))
        assert (mine[name] == 1).all()
    assert (table[NO_FINDING] == 0).all()
    for uid, row in table.iterrows():
        assert [row[name] for name in FINDINGS] == [drawn[str(uid)].row[name] for name in FINDINGS]
    again, _ = variants(kind, train, TAIL, 3, SEED)
    pd.testing.assert_frame_equal(table, again)


def test_heads_have_no_tail_finding_and_take_turns(train: pd.DataFrame) -> None:
    table, drawn = variants("new_lesion", train, TAIL, 4, SEED)
    for name in TAIL:
        mine = [drawn[str(uid)].row for uid in table.index[table["finding"] == name]]
        assert all(row[other] == 0 for row in mine for other in TAIL if other != name)
        used = Counter((row["view"], row["uid"]) for row in mine)
        for view in ("PA", "AP"):
            times = [n for (own, _), n in used.items() if own == view]
            free = train[(train["view"] == view) & (train[list(TAIL)] == 0).all(axis=1)]
            assert not times or max(times) <= -(-sum(times) // max(1, len(free) - 4)) + 1


def test_new_lesions_differ_from_those_of_the_parents(train: pd.DataFrame) -> None:
    _, same = variants("same_lesion", train, TAIL, 1, SEED)
    table, new = variants("new_lesion", train, TAIL, 2, SEED)
    keys = [one.lesions[finding] for one, finding in zip(new.values(), table["finding"], strict=True)]
    assert len(set(keys)) == len(keys)
    assert not {one.lesions[name] for one in same.values() for name in one.lesions} & set(keys)


def test_fresh_patients_are_of_another_cohort_and_each_once_a_finding(train: pd.DataFrame) -> None:
    table, drawn = variants("fresh", train, TAIL, 3, SEED)
    for name in TAIL:
        mine = [drawn[str(uid)] for uid in table.index[table["finding"] == name]]
        assert len({one.row["patient_id"] for one in mine}) == len(mine)
        assert {one.seed for one in mine} != {SEED}


def test_a_finding_without_a_positive_is_an_error(train: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="Mass has no positive train row"):
        variants("fresh", train.assign(Mass=0.0), ("Mass",), 1, SEED)
