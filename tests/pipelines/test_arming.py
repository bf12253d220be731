"""What an arm is trained on, row by row: its images and their control, under the labels that were asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from medlt.checks.folds import Crossfit, Judge
from medlt.config import Need, VerdictConfig
from medlt.data.manifest import Manifest
from medlt.evaluation.arms import REAL, Arm
from medlt.types import InputError
from pipelines.arming import arms
from pipelines.concluding import candidates
from pipelines.sourcing import Source
from pipelines.stages import Collection, threads

FINDINGS = ("Mass", "Hernia")
FOLDS = [0, 1, 0, 1, 0, 1]
PARENTS = {"s0": "r3", "s1": "r0", "s2": "r3", "s3": "r1"}


def drawn(root: Path, names: dict[str, int]) -> list[str]:
    """A file for each uid, all of one grey."""
    for uid, grey in names.items():
        assert cv2.imwrite(str(root / f"{uid}.png"), np.full((32, 32), grey, np.uint8))
    return [f"{uid}.png" for uid in names]


@pytest.fixture
def real(tmp_path: Path) -> Collection:
    """Train rows r0..r5 of grey 10, 20, ... 60: two with Mass, three with Hernia, the last two with neither."""
    files = drawn(tmp_path, {f"r{n}": 10 * (n + 1) for n in range(6)})
    labels = {"Mass": [1.0, 1, 0, 0, 0, 0], "Hernia": [0.0, 1, 1, 1, 0, 0]}
    rows = pd.DataFrame({"path": files, "patient_id": list("abcdef"), "split": "train", "view": "PA", **labels})
    rows.index = pd.Index([f"r{n}" for n in range(6)])
    return Collection(Manifest(rows, FINDINGS, tmp_path), Need(), tmp_path / "cache")


def judge(k: int) -> Judge:
    """Says of every image k + 1 tenths for Mass, and its grey / 255 for Hernia."""

    def said(images: Tensor) -> Tensor:
        grey = images.float().mean((1, 2, 3)) / 255
        return torch.stack([torch.full_like(grey, (k + 1) / 10), grey], 1)

    return said


def source(real: Collection, **changed: Any) -> Source:
    """Images s0..s3 of grey 110, 120, 130, 140 made for Hernia, of which s1 stands first in slots."""
    root = real.manifest.root
    files = drawn(root, {f"s{n}": 110 + 10 * n for n in range(4)})
    rows = pd.DataFrame({"path": files, "patient_id": [f"synthetic-{n}" for n in range(4)], "split": "train",
                         "view": "PA", "synthetic": True, "Mass": [0.2, 0.6, np.nan, 0], "Hernia": 1.0,
                         "finding": "Hernia", "slot": [1, 0, 2, 3], "parent_a": list(PARENTS.values())},
                        index=list(PARENTS))  # fmt: skip
    fold = pd.Series(FOLDS, index=real.train.rows.index)
    made = Manifest(rows, FINDINGS, root)
    kept = rows.assign(judge=[0.9, 0.8, 0.2, 0.1], fold=fold.loc[rows["parent_a"]].to_numpy())
    held = pd.DataFrame([[0.5, 0.01 * n] for n in range(6)], index=fold.index, columns=list(FINDINGS))
    run: Any = SimpleNamespace(config=SimpleNamespace(classifier=SimpleNamespace(size=32)))
    judges = Crossfit((judge(0), judge(1)), fold, held)
    given = {"judges": judges, "made": made, "kept": kept, "learnt": real.train, **changed}
    return Source("x", run, findings=pd.DataFrame(), planned=4, guiding=(), **given)


def of(real: Collection, given: Source, **rows: dict[str, Any]) -> dict[str, Arm]:
    """The arms of a config by name."""
    told = {"out": "run", "data": {"kind": "manifest", "path": "m.parquet"}, "classifier": {"size": 32},
            "sources": {"x": {"run": "x"}}, "arms": rows}  # fmt: skip
    config = VerdictConfig.model_validate(told)
    return {arm.name: arm for arm in arms(config, real, real.training_set("train", 32), {"x": given})}


def greys(arm: Arm) -> list[int]:
    assert arm.added is not None
    return [int(grey) for grey in arm.added.images[:, 0, 0, 0]]


def test_slot_by_slot_the_control_holds_the_parent_of_the_image(real: Collection) -> None:
    found = of(real, source(real), a={"source": "x", "mix": 0.5, "weight": 0.7, "loss": "focal"}, b={"loss": "focal"})
    assert list(found) == [REAL, "a", "duplicated for a", "b"]
    arm, control = found["a"], found["duplicated for a"]
    assert greys(arm) == [120, 110, 130, 140]
    assert greys(control) == [10, 40, 40, 20]  # r0, r3, r3, r1
    assert arm.added is not None
    assert control.added is not None
    np.testing.assert_array_equal(control.added.labels, [[1, 0], [0, 1], [0, 1], [1, 1]])
    np.testing.assert_array_equal(arm.added.weights, control.added.weights)
    assert arm.added.weights.tolist() == pytest.approx([0.7] * 4)
    assert arm.settings == control.settings
    assert arm.settings["mix"] == 0.5
    assert (arm.control, control.control, found["b"].control, found[REAL].control) == (control.name, REAL, REAL, "")


def test_dose_and_best_choose_the_same_rows_for_both(real: Collection) -> None:
    found = of(real, source(real), a={"source": "x", "best": 0.5, "dose": 0.34})
    assert greys(found["a"]) == [120]  # of the surer half, s0 and s1, the first slot; 0.34 x 3 positives are one
    assert greys(found["duplicated for a"]) == [10]
    assert (found["a"].about["added"], found["a"].about["wanted"]) == (1, 1)


def test_labels_soft_hard_or_by_the_judge_that_saw_no_parent(real: Collection) -> None:
    given = source(real)
    rows: dict[str, dict[str, Any]] = {kind: {"source": "x", "labels": kind} for kind in ("soft", "hard", "judged")}
    found = of(real, given, **rows)
    labels = {kind: found[kind].added.labels for kind in rows}  # type: ignore[union-attr]
    np.testing.assert_allclose(labels["soft"], [[0.6, 1], [0.2, 1], [np.nan, 1], [0, 1]], rtol=1e-6)
    np.testing.assert_array_equal(labels["hard"], [[1, 1], [0, 1], [np.nan, 1], [0, 1]])
    expected = [[0.1, 120 / 255], [0.2, 110 / 255], [0.2, 130 / 255], [0.2, 140 / 255]]  # folds of r0, r3, r3, r1
    np.testing.assert_allclose(labels["judged"], expected, rtol=1e-5)
    for kind in rows:
        control = found[f"duplicated for {kind}"].added
        assert control is not None
        np.testing.assert_array_equal(control.labels, [[1, 0], [0, 1], [0, 1], [1, 1]])


def test_copies_under_judged_labels_are_an_arm_of_their_own(real: Collection) -> None:
    found = of(real, source(real), copies={"source": "x", "duplicate": True, "labels": "judged"})
    assert list(found) == [REAL, "copies"]
    arm = found["copies"]
    assert (arm.role, arm.control, greys(arm)) == ("control", REAL, [10, 40, 40, 20])
    assert arm.added is not None
    np.testing.assert_allclose(arm.added.labels, [[0.5, 0], [0.5, 0.03], [0.5, 0.03], [0.5, 0.01]], rtol=1e-6)


def test_what_a_judge_never_saw_it_does_not_label(real: Collection) -> None:
    """Judge 1 is trained on fold 0, rows r0, r2 and r4; if all have Mass it cannot tell what Mass is."""
    rows = real.train.rows.assign(Mass=[1.0, 1, 1, 0, 1, 0])
    given = source(real, learnt=Manifest(rows, FINDINGS, real.manifest.root))
    found = of(
        real, given, a={"source": "x", "labels": "judged"}, b={"source": "x", "labels": "judged", "duplicate": 1}
    )
    for name in ("a", "b"):
        told = found[name].added
        assert told is not None
        assert np.isnan(told.labels).tolist() == [[False, False], [True, False], [True, False], [True, False]]


def test_an_arm_without_an_image_is_refused(real: Collection) -> None:
    empty = source(real)
    with pytest.raises(InputError, match=r"arms\.a: .* no image"):
        of(real, source(real, kept=empty.kept.iloc[:0]), a={"source": "x"})


def test_a_controls_name_is_taken_and_judges_do_not_speak_of_one_label() -> None:
    least = {"out": "run", "data": {"kind": "manifest", "path": "m"}, "sources": {"x": {"run": "x"}}}
    with pytest.raises(ValueError, match="control's name"):
        VerdictConfig.model_validate({**least, "arms": {"a": {"source": "x"}, "duplicated for a": {"loss": "focal"}}})
    judged = {"a": {"source": "x", "labels": "judged"}}
    VerdictConfig.model_validate({**least, "arms": judged})
    with pytest.raises(ValueError, match="use labels soft"):
        VerdictConfig.model_validate({**least, "arms": judged, "classifier": {"task": "single-label"}})


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    seen = []

    def fail() -> None:
        with threads(before + 1):
            seen.append(torch.get_num_threads())
            raise InputError("no")

    with pytest.raises(InputError):
        fail()
    assert [*seen, torch.get_num_threads()] == [before + 1, before]
    with threads(None):
        assert torch.get_num_threads() == before


def test_an_arm_of_judged_labels_is_not_chosen() -> None:
    whole = [
        Arm("real", "real", {}),
        Arm("a", "synthetic", {}, about={"labels": "judged"}),
        Arm("b", "synthetic", {}, about={"labels": "soft"}),
        Arm("duplicated for b", "control", {}, about={"labels": "soft"}),
    ]
    assert candidates(whole) == ["b"]
