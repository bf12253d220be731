"""The paired bootstrap equals a slow loop, covers a null, and its words follow what was planted."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import cauchy  # Student t of one degree of freedom
from sklearn.metrics import average_precision_score, roc_auc_score

from medlt.metrics import bootstrap
from medlt.metrics.bootstrap import difference, metrics_per_draw, patient_weights, word
from medlt.types import InputError

FINDINGS = ("Mass", "Hernia")


def cohort(seed: int, patients: int = 120, findings: int = 2, rate: float = 0.3) -> tuple[np.ndarray, list[str]]:
    """Truth [N,K] and patient of each row; patients have 1-3 images that share their labels."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    truth = (rng.random((patients, findings)) < rate).astype(float)
    return truth[owner], [f"p{n}" for n in owner]


def scored(truth: np.ndarray, signal: float, seeds: int, rng: np.random.Generator) -> np.ndarray:
    """Scores [S,N,K] of `seeds` runs that see the truth with `signal` against unit noise."""
    return signal * truth + rng.normal(size=(seeds, *truth.shape))


def words(table: pd.DataFrame, level: str = "macro") -> set[str]:
    return set(table.query("level == @level")["word"])


def test_draws_equal_a_loop_over_resampled_patients() -> None:
    truth, patients = cohort(0, patients=25)
    truth[3:6, 0] = np.nan
    scores = np.random.default_rng(1).integers(0, 6, size=(2, *truth.shape)) / 5  # many ties
    weights = patient_weights(patients, 20, np.random.default_rng(2))
    fast = metrics_per_draw(truth, scores, weights)
    for d, counts in enumerate(weights):
        rows = np.repeat(np.arange(len(truth)), counts)
        for s, k in np.ndindex(2, 2):
            y, p = truth[rows, k], scores[s, rows, k]
            y, p = y[~np.isnan(y)], p[~np.isnan(y)]
            assert fast[0, d, s, k] == pytest.approx(average_precision_score(y, p))
            assert fast[1, d, s, k] == pytest.approx(roc_auc_score(y, p))


def test_the_table_equals_a_slow_loop() -> None:
    """Same draws, written as loops: the difference of seed means, its percentiles, for macro and one finding."""
    truth, patients = cohort(3, patients=30)
    rng = np.random.default_rng(4)
    a, b = scored(truth, 1.0, 2, rng), scored(truth, 0.5, 2, rng)
    table = difference(truth, a, b, patients, FINDINGS, draws=40, rng=np.random.default_rng(5))
    same = np.random.default_rng(5)
    weights, noise = patient_weights(patients, 40, same), cauchy.ppf((np.arange(40) + 0.5) / 40)
    same.shuffle(noise)
    drawn, point = np.zeros((40, 2, 2)), np.zeros((2, 2))
    for s, k in np.ndindex(2, 2):
        for d in range(-1, 40):
            rows = np.arange(len(truth)) if d < 0 else np.repeat(np.arange(len(truth)), weights[d])
            gain = average_precision_score(truth[rows, k], a[s, rows, k])
            gain -= average_precision_score(truth[rows, k], b[s, rows, k])
            (point if d < 0 else drawn[d])[s, k] = gain
    for line, each, at in (
        ("macro", drawn.mean(2), point.mean(1)),
        ("Hernia", drawn[:, :, 1], point[:, 1]),
    ):
        explained = sum(np.var(each[:, s] - each.mean(1)) for s in range(2)) / (2 - 1)
        runs = max(0.0, (at[0] - at[1]) ** 2 / 2 - explained)
        moved = each.mean(1) + noise * np.sqrt(runs / 2)
        assert line in set(table["name"])
        row = table.query("name == @line and metric == 'AP'").iloc[0]
        np.testing.assert_allclose([row["low"], row["high"]], np.quantile(moved, [0.025, 0.975]), atol=1e-12)
        assert row["difference"] == pytest.approx(at.mean())
        assert row["difference"] == pytest.approx(row["value"] - row["control_value"])


def test_chunks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, patients = cohort(6, patients=20)
    rng = np.random.default_rng(7)
    a, b = scored(truth, 1.0, 1, rng), scored(truth, 1.0, 1, rng)
    whole = difference(truth, a, b, patients, FINDINGS, draws=30, rng=np.random.default_rng(8))
    monkeypatch.setattr(bootstrap, "_CHUNK", 4 * len(truth))
    pieces = difference(truth, a, b, patients, FINDINGS, draws=30, rng=np.random.default_rng(8))
    pd.testing.assert_frame_equal(whole, pieces)


def test_images_of_one_patient_are_drawn_together() -> None:
    weights = patient_weights(["a", "b", "a", "c", "b", "a"], 50, np.random.default_rng(0))
    assert (weights[:, [2, 5]] == weights[:, [0, 0]]).all()
    assert (weights[:, 4] == weights[:, 1]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()


@pytest.mark.parametrize(("better", "said"), [(2.0, "helps"), (0.2, "harms")])
def test_a_planted_change_is_found(better: float, said: str) -> None:
    truth, patients = cohort(9)
    rng = np.random.default_rng(10)
    a, b = scored(truth, better, 3, rng), scored(truth, 1.0, 3, rng)
    table = difference(truth, a, b, patients, FINDINGS, draws=300, rng=rng)
    assert words(table) == {said}
    assert words(table, "finding") == {said}


def test_identical_scores_are_no_evidence_with_an_empty_interval() -> None:
    truth, patients = cohort(11)
    a = scored(truth, 1.0, 3, np.random.default_rng(12))
    table = difference(truth, a, a, patients, FINDINGS, draws=100, rng=np.random.default_rng(13))
    assert set(table["word"]) == {"no evidence"}
    assert (table[["difference", "low", "high"]] == 0).all(axis=None)


def test_arms_change_sign_with_their_roles() -> None:
    truth, patients = cohort(14)
    rng = np.random.default_rng(15)
    a, b = scored(truth, 1.4, 1, rng), scored(truth, 1.0, 1, rng)
    one = difference(truth, a, b, patients, FINDINGS, draws=60, rng=np.random.default_rng(16))
    two = difference(truth, b, a, patients, FINDINGS, draws=60, rng=np.random.default_rng(16))
    for left, right in (("difference", "difference"), ("low", "high"), ("high", "low")):
        np.testing.assert_allclose(one[left], -two[right], atol=1e-12)


@pytest.mark.parametrize(("seeds", "luck"), [(1, 0.0), (3, 0.0), (3, 0.6)])
def test_coverage_of_a_null(seeds: int, luck: float) -> None:
    """Two arms of one quality: a 90 % interval misses the true difference, 0, about one time in ten.

    luck: how much one training differs from the next as a whole. 100 experiments: with a true rate of 0.1 the count
    lies outside 3..19 less than one time in a hundred.
    """
    missed = 0
    for trial in range(100):
        rng = np.random.default_rng(1000 * seeds + trial)
        truth, patients = cohort(trial, patients=80, findings=1, rate=0.4)
        shifts = luck * rng.normal(size=(2, seeds, 1, 1)) * truth
        a, b = (scored(truth, 1.0, seeds, rng) + shift for shift in shifts)
        table = difference(truth, a, b, patients, ("x",), draws=100, rng=rng, level=0.9)
        row = table.query("level == 'macro' and metric == 'AUROC'").iloc[0]
        missed += not row["low"] <= 0 <= row["high"]
    assert 3 <= missed <= 19


def test_training_noise_is_in_the_interval() -> None:
    """On a test set so large that patients add nothing, three lucky runs are still no evidence if they disagree."""
    truth, patients = cohort(17, patients=1000, findings=1, rate=0.5)
    rng = np.random.default_rng(18)
    base = scored(truth, 1.0, 1, rng)
    a = np.concatenate([base + shift * truth for shift in (0.5, -0.4, 0.1)])
    b = np.repeat(base, 3, axis=0)
    spread = difference(truth, a, b, patients, ("x",), draws=200, rng=rng)
    agreed = difference(truth, b + 0.1 * truth, b, patients, ("x",), draws=200, rng=rng)
    assert words(spread) == {"no evidence"}
    assert words(agreed) == {"helps"}


def test_few_positive_patients_never_decide() -> None:
    """Five patients, all better ranked: the interval excludes 0, chance alone does so one time in sixteen."""
    truth, scores = np.zeros((60, 1)), np.zeros((1, 60, 1))
    scores[0, :, 0] = np.linspace(0, 1, 60)
    control = scores.copy()
    for n, said in ((5, "no evidence"), (6, "helps")):
        truth[:] = 0
        truth[10 : 10 + n] = 1
        better = scores + 2 * truth
        patients = [str(i) for i in range(60)]
        table = difference(truth, better, control, patients, ("x",), draws=200, rng=np.random.default_rng(0))
        assert (table["low"] > 0).all()
        assert set(table["word"]) == {said}


def test_a_finding_without_positives_has_no_number_and_leaves_the_macro_alone() -> None:
    truth, patients = cohort(19)
    rng = np.random.default_rng(20)
    a, b = scored(truth, 1.5, 1, rng), scored(truth, 1.0, 1, rng)
    one = difference(truth[:, :1], a[..., :1], b[..., :1], patients, ("Mass",), draws=50, rng=np.random.default_rng(1))
    truth[:, 1] = 0
    two = difference(truth, a, b, patients, FINDINGS, draws=50, rng=np.random.default_rng(1))
    empty = two.query("name == 'Hernia'")
    assert empty[["value", "difference", "low", "high"]].isna().all(axis=None)
    assert set(empty["word"]) == {"no evidence"}
    same = ["value", "difference", "low", "high"]
    np.testing.assert_allclose(two.query("level == 'macro'")[same], one.query("level == 'macro'")[same])


def test_groups_are_means_over_their_findings() -> None:
    truth, patients = cohort(21, findings=3)
    rng = np.random.default_rng(22)
    a, b = scored(truth, 1.2, 2, rng), scored(truth, 1.0, 2, rng)
    names = ("Mass", "Hernia", "Edema")
    groups = {"tail": ("Hernia", "Edema"), "head": ()}
    table = difference(truth, a, b, patients, names, groups=groups, draws=20, rng=rng)
    assert set(table.query("level == 'group'")["name"]) == {"tail"}
    by = table.query("metric == 'AP'").set_index("name")["difference"]
    assert by["tail"] == pytest.approx((by["Hernia"] + by["Edema"]) / 2)
    assert by["macro"] == pytest.approx(by[list(names)].mean())


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.1, 0.2, "helps"),
        (-0.2, -0.1, "harms"),
        (-0.1, 0.2, "no evidence"),
        (0.0, 0.1, "no evidence"),
        (np.nan, np.nan, "no evidence"),
    ],
)
def test_the_interval_decides(low: float, high: float, said: str) -> None:
    assert word(low, high) == said


def test_shapes_must_agree() -> None:
    truth, patients = cohort(23)
    good = np.zeros((1, *truth.shape))
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="shapes"):
        difference(truth, good[0], good[0], patients, FINDINGS, rng=rng)
    with pytest.raises(InputError, match="one patient_id a row"):
        difference(truth, good, good, patients[1:], FINDINGS, rng=rng)
