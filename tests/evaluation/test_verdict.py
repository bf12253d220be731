"""The word must follow from planted truth: a better arm helps, a worse one harms, an equal one shows nothing."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from medlt.evaluation.arms import Arms
from medlt.evaluation.verdict import compare, decide, score_table

FINDINGS = ("Common", "Rare")
GROUPS = {"head": ("Common",), "medium": (), "tail": ("Rare",)}


def arms(synthetic: float, control: float, n: int = 600) -> Arms:
    """Scores = truth * strength + noise, two seeds."""
    draw = np.random.default_rng(0)
    truth = (draw.random((n, 2)) < [0.4, 0.1]).astype(np.float32)

    def scores(strength: float) -> np.ndarray:
        return np.stack([truth * strength + draw.normal(size=truth.shape) for _ in range(2)])

    patients = [f"p{i // 2}" for i in range(n)]
    named = {"real": scores(control), "duplicated": scores(control), "fusion": scores(synthetic)}
    return Arms(named, truth, patients, FINDINGS)


@pytest.mark.parametrize(("synthetic", "word"), [(3.0, "helps"), (0.0, "harms")])
def test_a_planted_effect_gets_its_word(synthetic: float, word: str) -> None:
    tested = arms(synthetic, control=1.0)
    told = decide(compare(tested, [("fusion", "duplicated")], GROUPS, draws=300, seed=0), tested, "fusion")
    assert told["verdict"] == word
    assert told["sentence"].startswith(word)
    low, high = told["comparison"]["low"], told["comparison"]["high"]
    assert low <= told["comparison"]["difference"] <= high
    assert (low > 0) == (word == "helps")


def test_identical_scores_show_nothing() -> None:
    tested = arms(1.0, 1.0)
    scores = {"duplicated": tested.scores["real"], "fusion": tested.scores["real"]}
    same = Arms(scores, tested.truth, tested.patients, FINDINGS)
    told = decide(compare(same, [("fusion", "duplicated")], GROUPS, draws=300, seed=0), same, "fusion")
    assert told["verdict"] == "no evidence"
    assert told["comparison"]["difference"] == 0


def test_the_table_holds_sklearns_numbers_and_the_group_means() -> None:
    tested = arms(1.0, 0.5)
    table = score_table(tested, GROUPS).set_index(["arm", "seed", "finding", "metric"])["value"]
    expected = average_precision_score(tested.truth[:, 1], tested.scores["fusion"][1][:, 1])
    assert table["fusion", 1, "Rare", "AP"] == pytest.approx(expected)
    assert table["fusion", 1, "tail", "AP"] == pytest.approx(expected)
    both = [table["real", 0, f, "AUROC"] for f in FINDINGS]
    assert table["real", 0, "macro", "AUROC"] == pytest.approx(np.mean(both))


def test_a_table_without_the_question_is_an_error() -> None:
    table = pd.DataFrame(columns=["arm", "control", "metric", "finding"])
    with pytest.raises(ValueError, match="no tail row"):
        decide(table, arms(1, 1), "fusion")
