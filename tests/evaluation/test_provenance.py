"""Sources that may not be added are refused in one line that says what, where, and how to mend it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medlt.data.manifest import Manifest
from medlt.evaluation.provenance import require_disjoint, require_findings, require_usable
from medlt.types import InputError

FINDINGS = ("Mass", "Hernia")


def real(root: Path) -> Manifest:
    """Two images a patient: patients 0..5 train, 6 and 7 val, 8 and 9 test."""
    splits = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
    rows = pd.DataFrame({"path": "x.png", "patient_id": [f"secret-{i // 2}" for i in range(20)], "split": splits,
                         "view": "PA", "Mass": 0.0, "Hernia": 1.0}, index=[f"u{i:02d}" for i in range(20)])  # fmt: skip
    return Manifest(rows, FINDINGS, root)


def made(root: Path, findings: tuple[str, ...] = FINDINGS, **changed: object) -> Manifest:
    """Three images of the first train rows, one of them between two parents."""
    parents = {"parents": [["u00", "u01"], ["u02"], ["u05"]], "tail_parent": ["u00", "u02", "u05"]}
    rows = pd.DataFrame({"path": ["a.png", "b.png", "c.png"], "split": "train", "view": "PA", "synthetic": True,
                         "patient_id": ["synthetic-s0", "synthetic-s1", "synthetic-s2"], **parents,
                         "finding": findings[0], "slot": [0, 1, 2], "fold": 0},
                        index=["s0", "s1", "s2"]).assign(**{f: [1.0, 0.4, np.nan] for f in findings})  # fmt: skip
    rows.loc["s2", findings[0]] = 0.0
    return Manifest(rows.assign(**changed), findings, root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"")
    return tmp_path


def refused(root: Path, match: str, own: Manifest, trained_on: Manifest | None = None) -> str:
    whole = real(root)
    with pytest.raises(InputError, match=match) as caught:
        require_usable("edits", own, trained_on or whole.split("train"), whole)
    message = str(caught.value)
    assert message.startswith("source edits: ")
    assert "\n" not in message
    assert "secret" not in message
    return message


def test_a_source_of_the_experiments_own_train_rows_passes(root: Path) -> None:
    whole = real(root)
    require_usable("edits", made(root), whole.split("train"), whole)
    part = whole.where(whole.rows["split"].eq("train") & (whole.rows.index < "u08"))
    require_usable("edits", made(root), part, whole)
    likes = Manifest(
        made(root).rows.drop(columns="tail_parent").assign(parents=[[]] * 3, label_source="u03"), FINDINGS, root
    )
    require_usable("noise", likes, whole.split("train"), whole)


@pytest.mark.parametrize(("split", "count"), [("val", 2), ("test", 2)])
def test_models_that_saw_held_out_patients_are_refused_by_count(root: Path, split: str, count: int) -> None:
    whole = real(root)
    leaked = whole.where(whole.rows["split"].isin(("train", split)))
    refused(root, rf"trained on patients of split {split} \({count}\); make it again", made(root), leaked)
    one = whole.where(whole.rows["split"].eq("train") | (whole.rows.index == ("u12" if split == "val" else "u19")))
    refused(root, rf"trained on patients of split {split} \(1\); make it again", made(root), one)


def test_another_image_of_a_test_patient_is_a_leak_too(root: Path) -> None:
    """Other uids, the same patient: an older cut of the collection."""
    old = real(root).split("train").rows.rename(index=lambda uid: f"old-{uid}")
    old = pd.concat([old, old.iloc[[0]].rename(index={"old-u00": "old-u99"}).assign(patient_id="secret-9")])
    refused(root, r"trained on patients of split test \(1\)", made(root), Manifest(old, FINDINGS, root))


def test_the_same_images_under_other_patient_ids_are_a_leak_too(root: Path) -> None:
    whole = real(root).where(real(root).rows["split"].isin(("train", "test"))).rows
    renamed = whole.assign(patient_id=[f"p-{i}" for i in range(len(whole))])
    refused(root, r"trained on images of split test \(4\)", made(root), Manifest(renamed, FINDINGS, root))


def test_a_parent_that_is_held_out_is_a_leak_though_no_model_saw_it(root: Path) -> None:
    parents = {"parents": [["u00", "u18"], ["u02"], ["u05"]]}
    refused(root, r"trained on patients of split test \(1\)", made(root, **parents))


def test_models_may_be_stopped_by_validation_rows_but_not_by_test_rows(root: Path) -> None:
    whole = real(root)
    train, val, test = (whole.split(split) for split in ("train", "val", "test"))
    require_usable("edits", made(root), train, whole, stopped_by=val)
    require_usable("edits", made(root), train, whole, stopped_by=train)
    with pytest.raises(InputError, match=r"trained on patients, as validation rows, of split test \(2\); make it"):
        require_usable("edits", made(root), train, whole, stopped_by=test)


def test_real_images_that_no_arm_is_trained_on_are_refused(root: Path) -> None:
    """They could be the gain: neither the arm nor its control is trained on them."""
    old = real(root).split("train").rows
    more = pd.concat([old, old.iloc[[0]].rename(index={"u00": "w00"}).assign(patient_id="secret-77")])
    refused(root, "trained on 1 real images that no arm is trained on", made(root), Manifest(more, FINDINGS, root))


def test_parents_must_be_train_rows(root: Path) -> None:
    lost = made(root, parents=[["u00"], ["gone"], ["u05"]], tail_parent=["u00", "gone", "away"])
    refused(
        root, r"image 's1' \(and 1 more\) has a parent that is not a train row of the experiment; make the source", lost
    )
    refused(
        root,
        "image 's1' names no real parent",
        made(root, parents=[["u00"], [], ["u05"]], tail_parent=["u00", "", "u05"]),
    )
    bare = Manifest(made(root).rows.drop(columns="tail_parent"), FINDINGS, root)
    refused(root, "no column tail_parent or label_source, so no control can be made", bare)


def test_findings_are_the_experiments_in_its_order(root: Path) -> None:
    refused(root, "its labels lack 'Hernia'; make it with", made(root, ("Mass",)))
    refused(root, "it has labels of 'Edema' and the experiment has none", made(root, (*FINDINGS, "Edema")))
    refused(root, "finding 1 is 'Hernia' in the source and 'Mass' in the experiment; give", made(root, FINDINGS[::-1]))
    require_findings("edits", list(FINDINGS), FINDINGS)


def test_rows_are_synthetic_new_labelled_and_there(root: Path) -> None:
    rows = made(root).rows.assign(Mass=1.0, Hernia=0.0)
    for unmarked in (rows.assign(synthetic=[True, False, True]), rows.assign(synthetic=[True, None, True])):
        refused(root, "image 's1' is not marked synthetic", Manifest(unmarked, FINDINGS, root))
    refused(root, r"'s0' \(and 2 more\) is not marked", Manifest(rows.drop(columns="synthetic"), FINDINGS, root))
    renamed = Manifest(rows.rename(index={"s2": "u03"}), FINDINGS, root)
    refused(root, "image 'u03' has the uid of a real row", renamed)
    refused(root, "image 's2' has no known label", made(root, Mass=[1.0, np.nan, np.nan], Hernia=[1.0, 0.0, np.nan]))
    (root / "b.png").unlink()
    refused(root, r"b\.png: no such file \(uid s1\)", made(root))


def test_a_source_without_kept_images_passes_but_its_training_rows_are_checked(root: Path) -> None:
    own, whole = made(root), real(root)
    none = own.where(pd.Series(False, own.rows.index))
    require_usable("edits", none, whole.split("train"), whole)
    refused(root, "trained on patients of split test", none, whole.where(whole.rows["split"] != "val"))


def test_numbers_and_texts_name_the_same_patient() -> None:
    require_disjoint("edits", ["1", "2"], {"val": ["3"], "test": []})
    with pytest.raises(InputError, match=r"trained on patients of split val \(1\) and test \(2\); make it"):
        require_disjoint("edits", [1, 2, 3], {"val": ["3"], "test": ["1", "2", "2", "9"]})  # type: ignore[list-item]
