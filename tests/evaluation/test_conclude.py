"""Conclusions from predictions with a planted truth, beside files of an earlier call, and without images."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medlt.evaluation.arms import REAL, Arm, ExperimentRows
from medlt.evaluation.conclude import Conclusion, conclude, experiment
from medlt.evaluation.design import ArmSpec, build_arms
from medlt.evaluation.engine import TrainedArms
from medlt.evaluation.length import Curve, TrainingLength
from medlt.evaluation.sources import SourceImages
from medlt.evaluation.tables import Setup
from medlt.types import InputError

MakeSource = Callable[..., SourceImages]
SHARED = {"steps": 2, "batch_size": 4, "synthetic_fraction": 0.2}
METHODS = ("fusion", "edit", "noise", "minority", "longtail", "diffult", "a new one")


def built(rows: ExperimentRows, source: SourceImages, **specs: ArmSpec) -> list[Arm]:
    return build_arms(specs, rows, {"x": source}, settings=SHARED, weight=0.3)


def predicted(
    rows: ExperimentRows, arms: Sequence[Arm], val: Mapping[str, float], test: Mapping[str, float]
) -> TrainedArms:
    """Probabilities of two seeds, truth * strength + noise through a logistic; strength 1 where none is given."""
    draw = np.random.default_rng(0)

    def of(truth: np.ndarray, strength: float) -> np.ndarray:
        noisy = np.stack([truth * strength + draw.normal(size=truth.shape) for _ in range(2)])
        return np.asarray(1 / (1 + np.exp(-noisy)))

    names = [arm.name for arm in arms if not arm.empty]
    return TrainedArms(
        (0, 1),
        {name: of(rows.val.labels, val.get(name, 1.0)) for name in names},
        {name: of(rows.test.labels, test.get(name, 1.0)) for name in names},
    )


@pytest.fixture
def many(rows: ExperimentRows) -> ExperimentRows:
    """Ten times the test rows, so that a planted effect is seen."""
    test = rows.test
    wide = replace(
        test,
        images=test.images.repeat(10, 1, 1, 1),
        labels=np.tile(test.labels, (10, 1)),
        weights=np.tile(test.weights, 10),
        uids=tuple(f"{uid}-{n}" for n in range(10) for uid in test.uids),
    )
    about = pd.concat([rows.attributes] * 10, ignore_index=True)
    return replace(rows, test=wide, patients=[str(i) for i in range(400)], attributes=about)


def concluded(rows: ExperimentRows, arms: Sequence[Arm], folder: Path, **more: Any) -> Conclusion:
    strength = {name: more.pop(name, {}) for name in ("val", "test")}
    options = {"n_bootstrap": 200, "seed": 0} | more
    return conclude(rows, arms, predicted(rows, arms, **strength), folder, **options)


@pytest.mark.parametrize(("strength", "verdict"), [(6.0, "helps"), (-2.0, "harms")])
@pytest.mark.parametrize("method", METHODS)
def test_the_verdict_compares_the_arm_with_its_control_whatever_its_name(
    many: ExperimentRows, source: MakeSource, tmp_path: Path, method: str, strength: float, verdict: str
) -> None:
    arms = built(many, source(), **{method: ArmSpec("x", control="duplicated")})
    conclusion = concluded(many, arms, tmp_path, test={method: strength})
    assert (conclusion.verdict, conclusion.primary) == (verdict, method)
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert (verdict["comparison"]["arm"], verdict["comparison"]["control"]) == (method, "duplicated")
    assert (verdict["comparison"]["finding"], verdict["comparison"]["metric"]) == ("tail", "AP")
    assert verdict["against_real"]["control"] == REAL
    assert verdict["chosen_by"] == "the only candidate"
    assert verdict["smallest"] > 0
    larger = {(one["patients"], one["seeds"]): one["smallest"] for one in verdict["power_curve"]}
    own = verdict["test_patients"], verdict["seeds"]
    assert larger[own] == pytest.approx(verdict["smallest"])
    assert all(gain <= larger[own] * (1 + 1e-9) for gain in larger.values())
    assert (verdict["test_images"], verdict["test_patients"], verdict["seeds"]) == (400, 400, 2)
    table = pd.read_parquet(tmp_path / "arms.parquet").set_index("arm")
    assert table["role"].to_dict() == {REAL: "real", method: "synthetic", "duplicated": "control"}
    assert table.index[table["primary"]].tolist() == [method]


def test_every_table_is_there_with_its_arms(rows: ExperimentRows, source: MakeSource, tmp_path: Path) -> None:
    arms = built(
        rows, source(), fusion=ArmSpec("x"), half=ArmSpec("x", synthetic_ratio=0.5), focal=ArmSpec(loss="focal")
    )
    conclusion = concluded(rows, arms, tmp_path, val={"half": 9.0, "focal": 5.0})
    assert conclusion.primary == "half"
    read = {name: pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("arms", "scores", "comparisons")}
    read |= {name: pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("reliability", "subgroups")}
    names = [arm.name for arm in arms]
    assert list(read["arms"]["arm"]) == names
    assert set(read["scores"]["arm"]) == set(names)
    assert set(read["reliability"]["arm"]) == set(read["subgroups"]["arm"]) == {REAL, "half", "duplicated for half"}
    assert set(read["subgroups"]["attribute"]) == {"view", "sex"}
    pairs = set(zip(read["comparisons"]["arm"], read["comparisons"]["control"], strict=True))
    controls = {("fusion", "duplicated for fusion"), ("half", "duplicated for half"), ("half", "focal")}
    assert pairs == controls | {(name, REAL) for name in names if name != REAL}
    assert conclusion.record["against_real"]["control"] == "focal"  # the best without images, on validation
    assert conclusion.record["chosen_by"] == "validation tail macro AP"
    assert {line["arm"] for line in conclusion.record["arms"]} == set(names) - {REAL}
    assert {"AP", "AUROC", "balanced accuracy", "F1", "ECE"} <= set(read["scores"]["metric"])
    assert conclusion.tables is not None
    pd.testing.assert_frame_equal(conclusion.tables.scores, read["scores"])
    given = concluded(rows, arms, tmp_path / "given", val={"half": 9.0}, primary_arm="fusion")
    assert (given.primary, given.record["chosen_by"]) == ("fusion", "the config")


def test_a_chosen_arm_without_images_is_refused(rows: ExperimentRows, source: MakeSource, tmp_path: Path) -> None:
    arms = built(rows, source(), fusion=ArmSpec("x"), focal=ArmSpec(loss="focal"))
    for name in ("focal", "nobody", "duplicated for fusion"):
        with pytest.raises(
            InputError, match=f"arm '{name}' has no synthetic images; set primary_arm to one of: fusion"
        ):
            concluded(rows, arms, tmp_path, primary_arm=name)


def empty(source: MakeSource) -> SourceImages:
    return source(kept=pd.DataFrame(index=pd.Index([], name="uid")))


def test_without_a_kept_image_there_is_nothing_to_compare(
    rows: ExperimentRows, source: MakeSource, tmp_path: Path
) -> None:
    """The same from one source as from an experiment that has another arm beside it."""
    alone = built(rows, empty(source), fusion=ArmSpec("x", control="duplicated"))
    beside = built(rows, empty(source), fusion=ArmSpec("x"), focal=ArmSpec(loss="focal"))
    conclusion = [concluded(rows, arms, tmp_path / str(n)) for n, arms in enumerate((alone, beside))]
    for one in conclusion:
        assert (one.verdict, one.primary) == ("no evidence", None)
        assert one.record["sentence"].startswith("No evidence: no synthetic image passed the checks")
        assert one.record["comparison"] is None
        assert pd.read_parquet(tmp_path / "0" / "arms.parquet")["val_tail_ap"].isna().all()
    assert (conclusion[0].tables, conclusion[0].experiments) == (None, ())  # the test set was not used
    assert conclusion[1].tables is not None
    assert set(conclusion[1].tables.scores["arm"]) == {REAL, "focal"}
    assert len(conclusion[1].experiments) == 1


def test_an_empty_arm_does_not_stop_another_from_being_chosen(
    rows: ExperimentRows, source: MakeSource, tmp_path: Path
) -> None:
    specs = {"fusion": ArmSpec("x"), "edit": ArmSpec("y")}
    arms = build_arms(specs, rows, {"x": empty(source), "y": source()}, settings=SHARED, weight=0.3)
    assert concluded(rows, arms, tmp_path).primary == "edit"
    conclusion = concluded(rows, arms, tmp_path, primary_arm="fusion")
    assert (conclusion.verdict, conclusion.primary) == ("no evidence", None)


def test_reweighted_arms_alone_are_no_verdict(rows: ExperimentRows, source: MakeSource, tmp_path: Path) -> None:
    conclusion = concluded(rows, built(rows, source(), focal=ArmSpec(loss="focal")), tmp_path)
    assert (conclusion.verdict, conclusion.primary) == ("no verdict", None)
    assert conclusion.tables is not None


def test_tables_of_an_earlier_comparison_do_not_stay(rows: ExperimentRows, source: MakeSource, tmp_path: Path) -> None:
    first = concluded(rows, built(rows, source(), fusion=ArmSpec("x")), tmp_path)
    conclusion = concluded(
        rows, built(rows, empty(source), fusion=ArmSpec("x")), tmp_path, experiments=first.experiments
    )
    tables = ("scores", "comparisons", "reliability", "subgroups")
    assert [name for name in tables if (tmp_path / f"{name}.parquet").exists()] == []
    assert [name for name in tables if not (tmp_path / "superseded" / f"{name}-1.parquet").is_file()] == []
    assert conclusion.experiments == first.experiments
    kept = json.loads((tmp_path / "superseded" / f"verdict-{first.experiments[0]}.json").read_text())
    assert kept == first.record


def test_each_other_experiment_on_the_test_set_counts(rows: ExperimentRows, source: MakeSource, tmp_path: Path) -> None:
    one, other = (
        built(rows, source(), fusion=ArmSpec("x")),
        built(rows, source(), fusion=ArmSpec("x", synthetic_ratio=0.5)),
    )
    first = concluded(rows, one, tmp_path)
    again = concluded(rows, one, tmp_path, experiments=first.experiments)
    assert first.record["test_set_evaluations"] == again.record["test_set_evaluations"] == 1
    assert not (tmp_path / "superseded").exists()
    second = concluded(rows, other, tmp_path, experiments=again.experiments)
    assert second.record["test_set_evaluations"] == 2
    assert len(list((tmp_path / "superseded").glob("verdict-*.json"))) == 1
    back = concluded(rows, one, tmp_path, experiments=second.experiments)
    assert back.record["test_set_evaluations"] == 2  # it was counted before
    assert back.experiments == second.experiments


def test_an_experiment_is_named_by_contents(rows: ExperimentRows, source: MakeSource) -> None:
    arms = built(rows, source(), fusion=ArmSpec("x"))
    options: dict[str, Any] = {"n_bootstrap": 100, "seed": 0, "primary_arm": None}
    named = experiment(rows, arms, [0, 1], **options)
    assert experiment(rows, built(rows, source(), fusion=ArmSpec("x")), [0, 1], **options) == named
    pixels = rows.test.images.clone()
    pixels[0, 0, 0, 0] ^= 1
    others = [
        experiment(replace(rows, test=replace(rows.test, images=pixels)), arms, [0, 1], **options),
        experiment(rows, arms, [0], **options),
        experiment(rows, arms, [0, 1], **options | {"primary_arm": "fusion"}),
        experiment(rows, arms, [0, 1], **options | {"seed": 1}),
        experiment(rows, arms, [0, 1], **options | {"metric": "AUROC"}),
        experiment(rows, built(rows, source(), fusion=ArmSpec("x", synthetic_weight=0.4)), [0, 1], **options),
    ]
    assert len({named, *others}) == 7


@pytest.mark.parametrize("left", [b"{[", b"", b"[]", b'{"verdict": "helps"}', b"\xff\xfe"])
def test_a_damaged_verdict_is_named_and_set_aside(
    rows: ExperimentRows, source: MakeSource, tmp_path: Path, left: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "verdict.json").write_bytes(left)
    with caplog.at_level(logging.WARNING):
        conclusion = concluded(rows, built(rows, source(), fusion=ArmSpec("x")), tmp_path)
    assert "verdict.json is damaged" in caplog.text
    assert (tmp_path / "superseded" / "verdict-1.json").read_bytes() == left
    assert json.loads((tmp_path / "verdict.json").read_text()) == conclusion.record


def test_arms_that_were_not_trained_are_refused(rows: ExperimentRows, source: MakeSource, tmp_path: Path) -> None:
    arms = built(rows, source(), fusion=ArmSpec("x"))
    with pytest.raises(InputError, match="'duplicated for fusion' was not trained"):
        conclude(rows, arms, predicted(rows, arms[:2], {}, {}), tmp_path, n_bootstrap=100, seed=0)


BRIEF = TrainingLength(30, 30, "config")
RISING, LEVEL = ((10, 0.1), (30, 0.2)), ((10, 0.2), (30, 0.1))


@pytest.mark.parametrize(("curve", "verdict"), [(RISING, "cannot see"), (LEVEL, "another")])
def test_a_real_arm_that_still_improves_refuses_every_verdict(
    many: ExperimentRows, source: MakeSource, tmp_path: Path, curve: Curve, verdict: str
) -> None:
    arms = built(many, source(), fusion=ArmSpec("x"), focal=ArmSpec(loss="focal"))
    trained = replace(
        predicted(many, arms, {}, {"fusion": 6.0}), curves={REAL: (curve, curve), "fusion": (RISING,) * 2}
    )
    conclusion = conclude(many, arms, trained, tmp_path, n_bootstrap=200, seed=0, setup=Setup(length=BRIEF))
    assert (conclusion.verdict == "cannot see") == (verdict == "cannot see")
    assert conclusion.record["training_length"]["best_steps"] == [curve[curve == RISING][0]] * 2
    table = pd.read_parquet(tmp_path / "comparisons.parquet")
    assert (set(table["verdict"]) == {"cannot see"}) == (verdict == "cannot see")
    assert {entry["verdict"] for entry in conclusion.record["arms"]} <= {"cannot see", "helps", "harms", "no evidence"}
    assert ("set evaluation.steps" in conclusion.record["sentence"]) == (verdict == "cannot see")


def test_a_real_arm_at_chance_refuses_every_verdict(many: ExperimentRows, source: MakeSource, tmp_path: Path) -> None:
    arms = built(many, source(), fusion=ArmSpec("x"))
    conclusion = concluded(many, arms, tmp_path, test={"fusion": 6.0, REAL: 0.0})
    assert conclusion.verdict == "cannot see"
    assert conclusion.record["above_random"]["low"] < 0
    assert len(conclusion.record["cannot_see"]) == 1


def test_a_tail_finding_that_is_a_source_is_named_with_what_is_left_within(
    many: ExperimentRows, source: MakeSource, tmp_path: Path
) -> None:
    tail = many.test.labels[:, 1] == 1
    known = replace(many, attributes=pd.DataFrame({"source": np.where(tail, "one", "other")}))
    arms = built(known, source(), fusion=ArmSpec("x"))
    conclusion = concluded(known, arms, tmp_path, test={"fusion": 6.0})
    (sentence,) = conclusion.record["confounded"]
    assert sentence.startswith("Hernia goes with the source: 100% of its")
    table = pd.read_parquet(tmp_path / "confounding.parquet")
    assert set(table["arm"]) == {REAL, "fusion", "duplicated for fusion"}
    own = table[(table["finding"] == "Hernia") & (table["column"] == "source")]
    assert own["confounded"].all()
    assert own["within_auroc"].isna().all()  # no source has both
    apart = concluded(many, arms, tmp_path / "apart")
    assert apart.record["confounded"] == []


def test_learning_curves_hold_every_arm_seed_and_the_pilot(
    rows: ExperimentRows, source: MakeSource, tmp_path: Path
) -> None:
    arms = built(rows, source(), fusion=ArmSpec("x"))
    trained = replace(predicted(rows, arms, {}, {}), curves={REAL: (RISING, LEVEL), "fusion": (LEVEL, LEVEL)})
    setup = Setup(length=TrainingLength(10, 30, "plateau", (LEVEL,)))
    conclude(rows, arms, trained, tmp_path, n_bootstrap=100, seed=0, setup=setup)
    table = pd.read_parquet(tmp_path / "learning_curves.parquet")
    assert list(dict.fromkeys(table["arm"])) == ["pilot", REAL, "fusion"]
    real = table[(table["arm"] == REAL) & (table["seed"] == 0)]
    assert list(zip(real["step"], real["val_macro_ap"], strict=True)) == list(RISING)
    assert len(table) == 10
