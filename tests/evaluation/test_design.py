"""What an arm is trained on, row by row: its images and their control, with the requested labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medlt.evaluation.arms import REAL, Arm, ExperimentRows
from medlt.evaluation.conclude import candidates
from medlt.evaluation.design import ArmSpec, build_arms, check_arms
from medlt.evaluation.engine import trainable_arms
from medlt.evaluation.sources import SourceImages
from medlt.types import InputError

MakeSource = Callable[..., SourceImages]
SHARED = {"steps": 2, "batch_size": 4, "synthetic_fraction": 0.2}


def of(rows: ExperimentRows, given: SourceImages, **specs: ArmSpec) -> dict[str, Arm]:
    """The arms by name."""
    return {arm.name: arm for arm in build_arms(specs, rows, {"x": given}, settings=SHARED, weight=0.3)}


def greys(arm: Arm) -> list[int]:
    assert arm.added is not None
    return [int(grey) for grey in arm.added.images[:, 0, 0, 0]]


def test_slot_by_slot_the_control_holds_the_parent_of_the_image(rows: ExperimentRows, source: MakeSource) -> None:
    found = of(
        rows,
        source(),
        a=ArmSpec("x", synthetic_fraction=0.5, synthetic_weight=0.7, loss="focal"),
        b=ArmSpec(loss="focal"),
    )
    assert list(found) == [REAL, "a", "duplicated for a", "b"]
    arm, control = found["a"], found["duplicated for a"]
    assert greys(arm) == [120, 110, 130, 140]
    assert greys(control) == [10, 40, 40, 20]  # r0, r3, r3, r1
    assert arm.added is not None
    assert control.added is not None
    np.testing.assert_array_equal(control.added.labels, [[1, 0], [0, 1], [0, 1], [1, 1]])
    assert arm.added.weights.tolist() == control.added.weights.tolist() == pytest.approx([0.7] * 4)
    assert arm.settings == control.settings
    assert arm.settings["synthetic_fraction"] == 0.5
    assert (arm.control, control.control, found["b"].control, found[REAL].control) == (control.name, REAL, REAL, "")
    assert (arm.role, control.role, found["b"].role, found[REAL].role) == ("synthetic", "control", "reweighted", "real")


def test_one_arm_of_one_source_may_name_its_control(rows: ExperimentRows, source: MakeSource) -> None:
    found = of(rows, source(), fusion=ArmSpec("x", control="duplicated"))
    assert list(found) == [REAL, "fusion", "duplicated"]
    assert found["fusion"].control == "duplicated"
    named = of(rows, source(), fusion=ArmSpec("x"))
    assert [arm.digest() for arm in found.values()] == [arm.digest() for arm in named.values()]


def test_the_control_of_images_from_noise_is_their_label_source(rows: ExperimentRows, source: MakeSource) -> None:
    kept = source().kept.rename(columns={"tail_parent": "label_source"})
    assert greys(of(rows, source(kept=kept), a=ArmSpec("x"))["duplicated for a"]) == [10, 40, 40, 20]
    with pytest.raises(InputError, match="no column tail_parent or label_source"):
        source(kept=kept.drop(columns="label_source"))


def test_ratio_and_keep_top_select_the_same_rows_for_both(rows: ExperimentRows, source: MakeSource) -> None:
    found = of(rows, source(), a=ArmSpec("x", keep_top=0.5, synthetic_ratio=0.34))
    assert greys(found["a"]) == [120]  # of the surer half, s0 and s1, the first slot; 0.34 x 3 positives are one
    assert greys(found["duplicated for a"]) == [10]
    assert (found["a"].about["added"], found["a"].about["wanted"]) == (1, 1)


def test_labels_soft_hard_or_by_the_verifier_trained_on_no_parent(rows: ExperimentRows, source: MakeSource) -> None:
    kinds = {kind: ArmSpec("x", labels=kind) for kind in ("soft", "hard", "verifier")}  # type: ignore[arg-type]
    found = of(rows, source(), **kinds)
    labels = {kind: found[kind].added.labels for kind in kinds}  # type: ignore[union-attr]
    np.testing.assert_allclose(labels["soft"], [[0.6, 1], [0.2, 1], [np.nan, 1], [0, 1]], rtol=1e-6)
    np.testing.assert_array_equal(labels["hard"], [[1, 1], [0, 1], [np.nan, 1], [0, 1]])
    expected = [[0.1, 120 / 255], [0.2, 110 / 255], [0.2, 130 / 255], [0.2, 140 / 255]]  # folds of r0, r3, r3, r1
    np.testing.assert_allclose(labels["verifier"], expected, rtol=1e-5)
    for kind in kinds:
        control = found[f"duplicated for {kind}"].added
        assert control is not None
        np.testing.assert_array_equal(control.labels, [[1, 0], [0, 1], [0, 1], [1, 1]])


def test_copies_with_labels_of_verifiers_are_an_arm_of_their_own(rows: ExperimentRows, source: MakeSource) -> None:
    found = of(rows, source(), copies=ArmSpec("x", real_duplicates=True, labels="verifier"))
    assert list(found) == [REAL, "copies"]
    arm = found["copies"]
    assert (arm.role, arm.control, greys(arm)) == ("control", REAL, [10, 40, 40, 20])
    assert arm.added is not None
    np.testing.assert_allclose(arm.added.labels, [[0.5, 0], [0.5, 0.03], [0.5, 0.03], [0.5, 0.01]], rtol=1e-6)


def test_a_verifier_trained_without_a_finding_does_not_label_it(rows: ExperimentRows, source: MakeSource) -> None:
    """Verifier 1 is trained on fold 0, rows r0, r2 and r4; if all have Mass, it has no negatives."""
    known = source().verifiers
    assert known is not None
    given = source(verifiers=replace(known, labels=known.labels.assign(Mass=[1.0, 1, 1, 0, 1, 0])))
    found = of(rows, given, a=ArmSpec("x", labels="verifier"), b=ArmSpec("x", labels="verifier", real_duplicates=True))
    for name in ("a", "b"):
        added = found[name].added
        assert added is not None
        assert np.isnan(added.labels).tolist() == [[False, False], [True, False], [True, False], [True, False]]


def test_labels_of_verifiers_need_verifiers(rows: ExperimentRows, source: MakeSource) -> None:
    with pytest.raises(InputError, match="source x has no verifiers"):
        of(rows, source(verifiers=None), a=ArmSpec("x", labels="verifier"))


def test_a_ratio_below_one_image_is_named_in_the_error(rows: ExperimentRows, source: MakeSource) -> None:
    with pytest.raises(InputError, match=r"^arms\.a: synthetic_ratio 0\.001 and .* raise them$"):
        of(rows, source(), a=ArmSpec("x", synthetic_ratio=0.001))


def test_without_a_kept_image_the_arm_and_its_control_are_empty(rows: ExperimentRows, source: MakeSource) -> None:
    none = source(kept=pd.DataFrame(index=pd.Index([], name="uid")))
    found = of(rows, none, a=ArmSpec("x"), copies=ArmSpec("x", real_duplicates=True))
    assert [arm.empty for arm in found.values()] == [False, True, True, True]
    assert found["a"].about["added"] == 0
    assert trainable_arms(list(found.values())) == []
    more = [*found.values(), Arm("focal", "reweighted", {"loss": "focal"}, control=REAL)]
    assert [arm.name for arm in trainable_arms(more)] == [REAL, "focal"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "ldam", "tau_norm": True}, "tau_norm changes nothing"),
        ({"loss": "balanced_softmax"}, "no loss named 'balanced_softmax' for the multi-label task"),
        ({"training_strategy": "drw"}, "1 steps are too few"),
    ],
)
def test_contradictory_settings_are_refused_with_the_arm(changes: dict[str, Any], message: str) -> None:
    steps = {"steps": 1} if "training_strategy" in changes else {}
    with pytest.raises(InputError, match=rf"^arms\.wrong: ({message})"):
        check_arms({"focal": ArmSpec(loss="focal"), "wrong": ArmSpec(**changes)}, SHARED | steps)


def test_a_source_of_other_findings_and_an_unknown_one_are_refused(rows: ExperimentRows, source: MakeSource) -> None:
    with pytest.raises(InputError, match="source x has the findings Hernia, Mass"):
        of(rows, source(labels=source().labels[["Hernia", "Mass"]]), a=ArmSpec("x"))
    with pytest.raises(InputError, match="no source named 'y'; sources: x"):
        of(rows, source(), a=ArmSpec("y"))


def test_an_arm_with_labels_of_verifiers_is_not_a_candidate(rows: ExperimentRows, source: MakeSource) -> None:
    found = of(rows, source(), a=ArmSpec("x", labels="verifier"), b=ArmSpec("x"))
    assert candidates(list(found.values())) == ["b"]


def test_rows_that_do_not_fit_together_are_refused(rows: ExperimentRows) -> None:
    for changes, message in (
        ({"patients": ["p"]}, "1 patients"),
        ({"findings": ("Mass",)}, "train rows have 2 labels for 1 findings"),
        ({"groups": {"head": ()}}, "no group is named tail"),
    ):
        with pytest.raises(InputError, match=message):
            replace(rows, **changes)  # type: ignore[arg-type]
