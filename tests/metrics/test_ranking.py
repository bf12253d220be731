"""AP and AUROC are scikit-learn's on any labels and ties, and are left undefined where they have no meaning."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from medlt.metrics import ranking
from medlt.metrics.ranking import (
    Ranking,
    macro,
    macro_average_precision,
    per_finding,
)
from medlt.types import InputError


def average_precision(truth: np.ndarray, score: np.ndarray) -> float:
    return float(Ranking.of(truth, score).metrics(np.ones((1, len(truth))))[0, 0])


def auroc(truth: np.ndarray, score: np.ndarray) -> float:
    return float(Ranking.of(truth, score).metrics(np.ones((1, len(truth))))[1, 0])


LABEL = st.sampled_from([0.0, 1.0, np.nan])
TIED = st.integers(0, 4).map(lambda n: n / 7)
FREE = st.floats(-1e6, 1e6, allow_nan=False, width=32)


@st.composite
def rankings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels with unknowns, scores with many ties, at least one known positive and one known negative."""
    pairs = draw(st.lists(st.tuples(LABEL, TIED | FREE), min_size=0, max_size=40))
    pairs = draw(st.permutations([*pairs, (0.0, draw(TIED)), (1.0, draw(TIED))]))
    truth, score = np.array(pairs).T
    return truth, score


@given(rankings())
def test_equals_scikit_learn_on_known_labels(case: tuple[np.ndarray, np.ndarray]) -> None:
    truth, score = case
    known = ~np.isnan(truth)
    assert average_precision(truth, score) == pytest.approx(average_precision_score(truth[known], score[known]))
    assert auroc(truth, score) == pytest.approx(roc_auc_score(truth[known], score[known]))


@given(rankings(), st.integers(0, 2**32 - 1))
def test_weights_are_repetitions(case: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    """A row of weight n counts as n rows: weighted metrics equal those of the rows written out."""
    truth, score = case
    weights = np.random.default_rng(seed).integers(0, 4, size=(3, len(truth)))
    fast = Ranking.of(truth, score).metrics(weights)
    for draw, counts in enumerate(weights):
        rows = np.repeat(np.arange(len(truth)), counts)
        slow = [average_precision(truth[rows], score[rows]), auroc(truth[rows], score[rows])]
        np.testing.assert_allclose(fast[:, draw], slow, atol=1e-12)


@given(rankings(), st.integers(0, 2**32 - 1))
def test_images_of_one_owner_share_its_weight(case: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    truth, score = case
    draw = np.random.default_rng(seed)
    owner, weights = draw.integers(0, 7, len(truth)), draw.integers(0, 4, size=(5, 7))
    by_owner, by_row = (
        Ranking.of(truth, score, owner).metrics(weights),
        Ranking.of(truth, score).metrics(weights[:, owner]),
    )
    np.testing.assert_array_equal(by_owner, by_row)


def test_more_examples_than_halves_fit_in_single_precision() -> None:
    """Weights of 2^25 are beyond float32's whole numbers; the odd one must still count."""
    truth, score = np.array([1.0, 0, 0, 1]), np.array([0.9, 0.8, 0.4, 0.1])
    weights = np.array([[2**25, 2**25 + 1, 1, 2**25 + 1]])
    p, n = weights[0, [0, 3]].astype(float), weights[0, [1, 2]].astype(float)
    area = (p[0] + p[1] * p.sum() / (p.sum() + n.sum())) / p.sum()
    np.testing.assert_array_equal(Ranking.of(truth, score).metrics(weights)[:, 0], [area, p[0] / p.sum()])


def test_draws_in_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    truth, score, weights = draw.integers(0, 2, 50), draw.integers(0, 20, 50), draw.integers(0, 3, size=(101, 50))
    whole = Ranking.of(truth, score).metrics(weights)
    monkeypatch.setattr(ranking, "_HELD", 1)
    np.testing.assert_array_equal(Ranking.of(truth, score).metrics(weights), whole)


def test_a_row_whose_label_is_unknown_changes_nothing() -> None:
    truth, score = np.array([1.0, 0.0, np.nan, 1.0]), np.array([0.9, 0.5, np.nan, 0.2])
    assert average_precision(truth, score) == pytest.approx((1 + 2 / 3) / 2)
    assert auroc(truth, score) == pytest.approx(0.5)


@pytest.mark.parametrize("truth", [[0.0, 0.0], [np.nan, np.nan], [0.0, np.nan], []])
def test_without_a_positive_both_are_nan_and_no_error(truth: list[float]) -> None:
    score = np.linspace(0, 1, len(truth))
    assert np.isnan(average_precision(np.array(truth), score))
    assert np.isnan(auroc(np.array(truth), score))


def test_without_a_negative_average_precision_is_one_and_auroc_nan() -> None:
    truth, score = np.array([1.0, 1.0]), np.array([0.1, 0.4])
    assert average_precision(truth, score) == 1
    assert np.isnan(auroc(truth, score))


def test_a_constant_score_has_the_prevalence_as_ap_and_one_half_as_auroc() -> None:
    truth = np.array([1.0, 0, 0, 0, 1])
    assert average_precision(truth, np.ones(5)) == pytest.approx(0.4)
    assert auroc(truth, np.ones(5)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("truth", "score", "said"),
    [([0.5, 1], [0, 1], "0, 1 or NaN"), ([0, 1], [0, np.nan], "not finite"), ([0, 1], [0, 1, 2], "one length")],
)
def test_bad_input_is_told(truth: list[float], score: list[float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        average_precision(np.array(truth), np.array(score))


def test_per_finding_counts_and_values() -> None:
    truth = np.array([[1, np.nan], [0, np.nan], [1, 0], [0, 0]])
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.4]])
    table = per_finding(truth, scores, ["Hernia", "Mass"])
    assert table.loc["Hernia", ["positive", "negative", "unknown"]].tolist() == [2, 2, 0]
    assert table.loc["Mass", ["positive", "negative", "unknown"]].tolist() == [0, 2, 2]
    assert table.loc["Hernia", "AP"] == pytest.approx((1 + 2 / 3) / 2)
    assert table.loc["Hernia", "AUROC"] == pytest.approx(0.75)
    assert table.loc["Mass", ["AP", "AUROC"]].isna().all()
    assert macro_average_precision(truth, scores) == pytest.approx((1 + 2 / 3) / 2)
    with pytest.raises(InputError, match="3 findings"):
        per_finding(truth, scores, ["a", "b", "c"])


def test_macro_leaves_undefined_findings_out() -> None:
    np.testing.assert_array_equal(macro(np.array([[0.2, np.nan, 0.4], [np.nan] * 3])), [0.30000000000000004, np.nan])


PUBLISHED = {  # AUROC on the official NIH test set, as the authors of these predictions print it
    "Atelectasis": 0.8180, "Cardiomegaly": 0.9090, "Consolidation": 0.8002, "Edema": 0.8945, "Effusion": 0.8827,
    "Emphysema": 0.9316, "Fibrosis": 0.8251, "Hernia": 0.9175, "Infiltration": 0.7156, "Mass": 0.8377,
    "Nodule": 0.7756, "Pleural_Thickening": 0.7889, "Pneumonia": 0.7617, "Pneumothorax": 0.8776,
}  # fmt: skip


@pytest.mark.real_data
def test_published_auroc_of_a_chexnet_reproduction(real_data: Path) -> None:
    """github.com/jrzech/reproduce-chexnet, README, "retrained auc"; the probabilities here are its, as float16."""
    with np.load(real_data / "predictions" / "chexnet_jrzech_probs_f16.npz", allow_pickle=False) as held:
        truth, scores, names = held["labels"], held["probs"], held["classes"]
    table = per_finding(truth.astype(float), scores.astype(float), [str(name) for name in names])
    assert set(table.index) == set(PUBLISHED)
    for finding, value in PUBLISHED.items():
        assert table.loc[finding, "AUROC"] == pytest.approx(value, abs=1e-4), finding


MACRO = {"searched_nonrec": 0.7305, "densenet121": 0.7025, "resnet18": 0.7007, "mobilenet_v2": 0.6754}


@pytest.mark.real_data
@pytest.mark.parametrize("model", MACRO)
def test_published_macro_auroc_of_models_at_28_px(real_data: Path, model: str) -> None:
    """github.com/INQUIRELAB/casp-chestmnist, code/bench_nih_results.json, seed 0; the logits are its, as float16."""
    folder = real_data / "predictions"
    with np.load(folder / "truth.npz", allow_pickle=False) as held:
        truth = held["test_labels"].astype(float)
    with np.load(folder / f"{model}_seed0_logits_f16.npz", allow_pickle=False) as held:
        scores = held["test_logits"].astype(float)
    table = per_finding(truth, scores, [str(k) for k in range(truth.shape[1])])
    assert table["AUROC"].mean() == pytest.approx(MACRO[model], abs=5.1e-5)
