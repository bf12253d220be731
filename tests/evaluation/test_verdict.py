"""The verdict follows from a planted truth: a better arm helps, a worse one harms, an equal one is no evidence."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from medlt.evaluation.arms import Arm, ArmScores
from medlt.evaluation.verdict import (
    SENTENCES,
    compare_arms,
    comparison_pairs,
    decide,
    score_table,
    select_arm,
    selection_rule,
)
from medlt.types import InputError

FINDINGS = ("Common", "Rare")
GROUPS = {"head": ("Common",), "medium": (), "tail": ("Rare",)}


def arms(synthetic: float, control: float, n: int = 600) -> ArmScores:
    """Scores = truth * strength + noise, two seeds."""
    draw = np.random.default_rng(0)
    truth = (draw.random((n, 2)) < [0.4, 0.1]).astype(np.float32)

    def scores(strength: float) -> np.ndarray:
        return np.stack([truth * strength + draw.normal(size=truth.shape) for _ in range(2)])

    patients = [f"p{i // 2}" for i in range(n)]
    named = {"real": scores(control), "duplicated": scores(control), "fusion": scores(synthetic)}
    return ArmScores(named, truth, patients, FINDINGS)


@pytest.mark.parametrize(("synthetic", "word"), [(3.0, "helps"), (0.0, "harms")])
def test_a_planted_effect_gets_its_word(synthetic: float, word: str) -> None:
    tested = arms(synthetic, control=1.0)
    verdict = decide(
        compare_arms(tested, [("fusion", "duplicated")], GROUPS, n_bootstrap=300, seed=0),
        tested,
        "fusion",
        "duplicated",
    )
    assert verdict["verdict"] == word
    assert verdict["sentence"].startswith(f"{SENTENCES[word]}: difference in tail macro AP ")
    low, high = verdict["comparison"]["low"], verdict["comparison"]["high"]
    assert f"95 % interval [{low:+.4f}, {high:+.4f}] (600 test images of 300 patients, 2 seeds" in verdict["sentence"]
    assert low <= verdict["comparison"]["difference"] <= high
    assert (low > 0) == (word == "helps")


@pytest.mark.parametrize("metric", ["AP", "AUROC"])
def test_the_chosen_metric_decides(metric: str) -> None:
    """Of a better order at the top alone and a worse one below it, AP says one thing and AUROC another."""
    n = 400
    truth = np.zeros((n, 2), np.float32)
    truth[:80] = 1
    control = np.tile(np.linspace(1, 0, n)[:, None], (1, 2))
    control[:80] = control[np.linspace(60, 340, 80).astype(int)] + 1e-6  # spread over the middle
    arm = control.copy()
    arm[:40], arm[40:80] = 2.0, 0.0  # half of the positives first, the others last
    patients = [str(row) for row in range(n)]
    scores = {"duplicated": np.stack([control] * 2), "fusion": np.stack([arm] * 2)}
    tested = ArmScores(scores, truth, patients, FINDINGS, metric=metric)
    verdict = decide(
        compare_arms(tested, [("fusion", "duplicated")], GROUPS, n_bootstrap=300, seed=0),
        tested, "fusion", "duplicated",
    )  # fmt: skip
    measure = {"AP": average_precision_score, "AUROC": roc_auc_score}[metric]
    expected = measure(truth[:, 1], arm[:, 1]) - measure(truth[:, 1], control[:, 1])
    assert verdict["comparison"]["metric"] == metric
    assert verdict["comparison"]["difference"] == pytest.approx(expected)
    assert (verdict["verdict"] == "helps") == (metric == "AP")
    assert f"difference in tail macro {metric} " in verdict["sentence"]


def test_identical_scores_show_nothing() -> None:
    tested = arms(1.0, 1.0)
    scores = {"duplicated": tested.scores["real"], "fusion": tested.scores["real"]}
    same = ArmScores(scores, tested.truth, tested.patients, FINDINGS)
    verdict = decide(
        compare_arms(same, [("fusion", "duplicated")], GROUPS, n_bootstrap=300, seed=0), same, "fusion", "duplicated"
    )
    assert verdict["verdict"] == "no evidence"
    assert verdict["comparison"]["difference"] == 0
    assert verdict["sentence"].startswith("No evidence that the synthetic images are better or worse than duplicated")
    assert "difference in tail macro AP +0.0000" in verdict["sentence"]


def test_the_sentence_counts_simulated_patients_as_such() -> None:
    tested = replace(arms(1.0, 1.0), simulated=True)
    table = compare_arms(tested, [("fusion", "duplicated")], GROUPS, n_bootstrap=50, seed=0)
    verdict = decide(table, tested, "fusion", "duplicated")
    assert "600 test images of 300 simulated patients" in verdict["sentence"]


def test_the_sentence_gives_the_reason_where_an_interval_allows_no_word() -> None:
    tested = arms(3.0, control=0.0, n=12)
    truth = np.zeros_like(tested.truth)
    truth[:4, 1] = 1
    few = ArmScores({name: truth * k + 0.1 for k, name in enumerate(tested.scores)}, truth, tested.patients, FINDINGS)
    few = ArmScores({name: np.stack([s, s]) for name, s in few.scores.items()}, truth, tested.patients, FINDINGS)
    table = compare_arms(few, [("fusion", "real")], GROUPS, n_bootstrap=200, seed=0)
    verdict = decide(table, few, "fusion", "real")
    assert verdict["verdict"] == "no evidence"
    assert verdict["comparison"]["difference"] > 0
    assert verdict["sentence"].endswith(". Reason: fewer than 6 positive patients.")
    assert "nan" not in verdict["sentence"]


def test_the_table_holds_sklearns_numbers_and_the_group_means() -> None:
    tested = arms(1.0, 0.5)
    table = score_table(tested, GROUPS).set_index(["arm", "seed", "finding", "metric"])["value"]
    expected = average_precision_score(tested.truth[:, 1], tested.scores["fusion"][1][:, 1])
    assert table["fusion", 1, "Rare", "AP"] == pytest.approx(expected)
    assert table["fusion", 1, "tail", "AP"] == pytest.approx(expected)
    both = [table["real", 0, f, "AUROC"] for f in FINDINGS]
    assert table["real", 0, "macro", "AUROC"] == pytest.approx(np.mean(both))


def test_a_table_without_the_pair_is_an_error() -> None:
    table = pd.DataFrame(columns=["arm", "control", "metric", "finding"])
    with pytest.raises(InputError, match="no tail row"):
        decide(table, arms(1, 1), "fusion", "duplicated")


def test_one_seed_is_no_verdict_whatever_it_measures() -> None:
    two = arms(3.0, control=0.0)
    one = ArmScores({name: scores[:1] for name, scores in two.scores.items()}, two.truth, two.patients, FINDINGS)
    verdict = decide(
        compare_arms(one, [("fusion", "duplicated")], GROUPS, n_bootstrap=200, seed=0), one, "fusion", "duplicated"
    )
    assert verdict["verdict"] == "no verdict"
    assert "one seed" in verdict["sentence"]
    assert verdict["comparison"]["difference"] > 0


@pytest.mark.parametrize("synthetic", [3.0, 0.0, -3.0])
def test_an_experiment_that_cannot_see_gives_no_other_word(synthetic: float) -> None:
    tested = arms(synthetic, control=0.0)
    table = compare_arms(tested, [("fusion", "duplicated")], GROUPS, n_bootstrap=200, seed=0)
    verdict = decide(table, tested, "fusion", "duplicated", ["first; type a", "second; type b"])
    assert verdict["verdict"] == "cannot see"
    assert verdict["sentence"].startswith("Cannot see: first; type a; and second; type b. Measured: difference in")
    assert verdict["comparison"] == decide(table, tested, "fusion", "duplicated")["comparison"]


def test_a_tail_without_test_positives_is_no_verdict() -> None:
    tested = arms(3.0, control=0.0)
    truth = tested.truth.copy()
    truth[:, 1] = 0
    empty = ArmScores(tested.scores, truth, tested.patients, FINDINGS)
    verdict = decide(
        compare_arms(empty, [("fusion", "duplicated")], GROUPS, n_bootstrap=200, seed=0), empty, "fusion", "duplicated"
    )
    assert verdict["verdict"] == "no verdict"
    assert verdict["comparison"]["difference"] is None


def chosen_from(strengths: dict[str, float]) -> ArmScores:
    draw = np.random.default_rng(1)
    truth = (draw.random((400, 2)) < 0.2).astype(np.float32)
    val = {"real": truth[None], **{n: (truth * s + draw.normal(size=truth.shape))[None] for n, s in strengths.items()}}
    return ArmScores(val, truth, [f"p{i}" for i in range(400)], FINDINGS, val, truth)


def test_the_arm_is_selected_on_validation_alone() -> None:
    tested = chosen_from({"weak": 0.1, "strong": 2.0, "middle": 0.7})
    assert select_arm(tested, ["weak", "strong", "middle"], ["Rare"]) == "strong"
    assert select_arm(tested, ["weak", "middle"], ["Rare"]) == "middle"
    assert select_arm(tested, [], ["Rare"]) is None
    reversed_test = ArmScores(
        {"weak": tested.val["strong"], "strong": tested.val["weak"]}, tested.truth, tested.patients, FINDINGS,
        tested.val, tested.val_truth,
    )  # fmt: skip
    assert select_arm(reversed_test, ["weak", "strong"], ["Rare"]) == "strong"


def test_without_a_validation_positive_the_first_arm_is_selected_and_the_rule_says_so() -> None:
    tested = chosen_from({"weak": 0.1, "strong": 2.0})
    assert selection_rule(tested, ["Rare"]).startswith("validation")
    blank = np.where([False, True], 0, tested.truth)
    empty = ArmScores(tested.scores, tested.truth, tested.patients, FINDINGS, tested.val, blank)
    assert select_arm(empty, ["weak", "strong"], ["Rare"]) == "weak"
    assert "no tail finding" in selection_rule(empty, ["Rare"])


def test_every_arm_is_compared_with_its_control_and_with_real_rows_once() -> None:
    whole = [
        Arm("real", "real", {}), Arm("focal", "reweighted", {}, control="real"),
        Arm("fusion", "synthetic", {}, control="copies"), Arm("copies", "control", {}, control="real"),
    ]  # fmt: skip
    compared = comparison_pairs(whole, "fusion", "focal")
    assert compared == [
        ("focal", "real"), ("fusion", "copies"), ("copies", "real"), ("fusion", "real"), ("fusion", "focal"),
    ]  # fmt: skip
    assert comparison_pairs(whole, None, "focal") == compared[:-1]
    assert comparison_pairs(whole, "fusion", "real") == compared[:-1]
