"""The paired bootstrap equals a slow loop, covers a null, and its words follow what was planted."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import cauchy  # Student t of one degree of freedom
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, recall_score, roc_auc_score

from medlt.metrics import bootstrap
from medlt.metrics.bootstrap import difference, interval, metric_table, metrics_per_draw, verdict_of
from medlt.metrics.decisions import decided
from medlt.metrics.draws import DIFFERENCE_RANGE, inside, patient_weights, run_noise, spread
from medlt.metrics.ranking import auroc
from medlt.metrics.reasons import missing
from medlt.metrics.several import holm
from medlt.types import InputError

FINDINGS = ("Mass", "Hernia")
FREE = (-np.inf, np.inf)


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
    return set(table.query("level == @level")["verdict"])


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
    table = difference(truth, a, b, patients, FINDINGS, n_bootstrap=40, rng=np.random.default_rng(5))
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
    whole = difference(truth, a, b, patients, FINDINGS, n_bootstrap=30, rng=np.random.default_rng(8))
    monkeypatch.setattr(bootstrap, "_CHUNK", 4 * len(truth))
    pieces = difference(truth, a, b, patients, FINDINGS, n_bootstrap=30, rng=np.random.default_rng(8))
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
    table = difference(truth, a, b, patients, FINDINGS, n_bootstrap=300, rng=rng)
    assert words(table) == {said}
    assert words(table, "finding") == {said}


def test_identical_scores_are_no_evidence_with_an_empty_interval() -> None:
    truth, patients = cohort(11)
    a = scored(truth, 1.0, 3, np.random.default_rng(12))
    table = difference(truth, a, a, patients, FINDINGS, n_bootstrap=100, rng=np.random.default_rng(13))
    assert set(table["verdict"]) == {"no evidence"}
    assert (table[["difference", "low", "high"]] == 0).all(axis=None)


def test_arms_change_sign_with_their_roles() -> None:
    truth, patients = cohort(14)
    rng = np.random.default_rng(15)
    a, b = scored(truth, 1.4, 1, rng), scored(truth, 1.0, 1, rng)
    one = difference(truth, a, b, patients, FINDINGS, n_bootstrap=60, rng=np.random.default_rng(16))
    two = difference(truth, b, a, patients, FINDINGS, n_bootstrap=60, rng=np.random.default_rng(16))
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
        table = difference(truth, a, b, patients, ("x",), n_bootstrap=100, rng=rng, level=0.9)
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
    noisy = difference(truth, a, b, patients, ("x",), n_bootstrap=200, rng=rng)
    agreed = difference(truth, b + 0.1 * truth, b, patients, ("x",), n_bootstrap=200, rng=rng)
    assert words(noisy) == {"no evidence"}
    assert words(agreed) == {"helps"}


def test_an_interval_stays_in_the_possible_range() -> None:
    """Two seeds that disagree give Student t of one degree of freedom, whose percentiles go beyond [-1, 1]."""
    noise = run_noise(2, 2000, np.random.default_rng(0))
    drawn = np.full((2000, 2), [0.0, 0.2])
    free, cut = (spread(np.array([0.0, 0.2]), drawn, noise, 0.95, within=w) for w in (FREE, DIFFERENCE_RANGE))
    assert free.low < -1 < free.high - 2  # 0.1 +- 0.1 * 12.7
    assert np.isnan([cut.low, cut.high]).all()
    assert cut.unbounded
    assert (cut.p, cut.se, cut.df) == (free.p, free.se, free.df)
    held = spread(np.array([0.5, 0.6]), np.full((2000, 2), [0.5, 0.6]), noise, 0.95, within=DIFFERENCE_RANGE)
    open_ended = spread(np.array([0.5, 0.6]), np.full((2000, 2), [0.5, 0.6]), noise, 0.95)
    assert open_ended.high > 1
    assert (held.low, held.high) == (open_ended.low, 1.0)


def test_a_difference_of_two_disagreeing_seeds_has_a_reason_instead_of_an_interval() -> None:
    truth, patients = cohort(17, patients=300, findings=1, rate=0.5)
    rng = np.random.default_rng(18)
    base = scored(truth, 0.5, 1, rng)
    a = np.concatenate([base + 3 * truth, base - 3 * truth])
    row = difference(truth, a, np.repeat(base, 2, axis=0), patients, ("x",), n_bootstrap=200, rng=rng).iloc[0]
    assert row["metric"] == "AP"
    assert np.isnan([row["low"], row["high"], row["p"]]).all()
    assert (row["verdict"], np.isfinite(row["se"])) == ("no evidence", True)
    assert row["reason"].startswith("too few patients or seeds for an interval")


@given(st.floats(-3, 3), st.floats(0, 5))
def test_cutting_an_interval_changes_no_verdict_and_loses_no_possible_value(low: float, width: float) -> None:
    whole, cut = (low, low + width), inside(low, low + width, DIFFERENCE_RANGE)
    if np.isnan(cut[0]):
        assert verdict_of(*whole) == "no evidence"
        return
    if whole[0] <= 1 and whole[1] >= -1:
        assert verdict_of(*cut) == verdict_of(*whole)
    for value in np.linspace(-1, 1, 9):
        assert (cut[0] <= value <= cut[1]) == (whole[0] <= value <= whole[1])


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
        table = difference(truth, better, control, patients, ("x",), n_bootstrap=200, rng=np.random.default_rng(0))
        assert (table["low"] > 0).all()
        assert set(table["verdict"]) == {said}


def test_a_finding_without_positives_has_no_number_and_leaves_the_macro_alone() -> None:
    truth, patients = cohort(19)
    rng = np.random.default_rng(20)
    a, b = scored(truth, 1.5, 1, rng), scored(truth, 1.0, 1, rng)
    one = difference(
        truth[:, :1], a[..., :1], b[..., :1], patients, ("Mass",), n_bootstrap=50, rng=np.random.default_rng(1)
    )
    truth[:, 1] = 0
    two = difference(truth, a, b, patients, FINDINGS, n_bootstrap=50, rng=np.random.default_rng(1))
    empty = two.query("name == 'Hernia'")
    assert empty[["value", "difference", "low", "high"]].isna().all(axis=None)
    assert set(empty["verdict"]) == {"no evidence"}
    same = ["value", "difference", "low", "high"]
    np.testing.assert_allclose(two.query("level == 'macro'")[same], one.query("level == 'macro'")[same])


def test_groups_are_means_over_their_findings() -> None:
    truth, patients = cohort(21, findings=3)
    rng = np.random.default_rng(22)
    a, b = scored(truth, 1.2, 2, rng), scored(truth, 1.0, 2, rng)
    names = ("Mass", "Hernia", "Edema")
    groups = {"tail": ("Hernia", "Edema"), "head": ()}
    table = difference(truth, a, b, patients, names, groups=groups, n_bootstrap=20, rng=rng)
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
    assert verdict_of(low, high) == said


def test_shapes_must_agree() -> None:
    truth, patients = cohort(23)
    good = np.zeros((1, *truth.shape))
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="shapes"):
        difference(truth, good[0], good[0], patients, FINDINGS, rng=rng)
    with pytest.raises(InputError, match="one patient_id for each row"):
        difference(truth, good, good, patients[1:], FINDINGS, rng=rng)


METRICS = ("AP", "AUROC", "sensitivity", "balanced accuracy", "F1", "ECE")
NUMBERS = ["value", "difference", "low", "high", "se", "p", "smallest"]


def probable(truth: np.ndarray, signal: float, seeds: int, rng: np.random.Generator) -> np.ndarray:
    """Probabilities in single precision, as classifiers give them."""
    return (1 / (1 + np.exp(1 - scored(truth, signal, seeds, rng)))).astype(np.float32)


def plain(truth: np.ndarray, score: np.ndarray) -> float:
    """Calibration error in 15 bins, bin by bin; the definition is tested in test_calibration."""
    at = np.floor(score.astype(float) * 15)
    return sum(abs((score - truth)[at == b].sum(dtype=float)) for b in range(15)) / len(truth)


def line(table: pd.DataFrame, name: str, metric: str) -> pd.Series:
    [found] = np.flatnonzero((table["name"] == name) & (table["metric"] == metric))
    return table.iloc[found]


def slowly(metric: str, truth: np.ndarray, score: np.ndarray) -> float:
    """One metric of one finding by scikit-learn, decisions at 0.4."""
    said = score >= 0.4
    by = {"AP": average_precision_score, "AUROC": roc_auc_score, "ECE": plain}
    decisions = {"sensitivity": recall_score, "balanced accuracy": balanced_accuracy_score, "F1": f1_score}
    return float(by[metric](truth, score) if metric in by else decisions[metric](truth, said))


def test_every_metric_of_the_table_is_scikit_learns_and_its_error_that_of_the_draws() -> None:
    truth, patients = cohort(30, patients=40)
    truth[:4, 0] = np.nan
    draw = np.random.default_rng(31)
    a, b = probable(truth, 1.0, 2, draw), probable(truth, 0.5, 2, draw)
    said = decided(a, np.full((2, 2), 0.4)), decided(b, np.full((2, 2), 0.4))
    found = difference(truth, a, b, patients, FINDINGS, n_bootstrap=16, rng=np.random.default_rng(32), decided=said)
    assert tuple(dict.fromkeys(found["metric"])) == METRICS
    weights = patient_weights(patients, 16, np.random.default_rng(32))
    for (k, finding), metric in [(one, m) for one in enumerate(FINDINGS) for m in METRICS]:
        known = np.flatnonzero(~np.isnan(truth[:, k]))
        drawn = np.zeros((17, 2, 2))
        for d, arm, s in np.ndindex(17, 2, 2):
            rows = known if d == 16 else np.repeat(known, weights[d, known])
            drawn[d, arm, s] = slowly(metric, truth[rows, k], (a, b)[arm][s, rows, k])
        row = line(found, finding, metric)
        assert [row["value"], row["control_value"]] == pytest.approx(drawn[16].mean(1).tolist(), abs=1e-7)
        gain = drawn[:, 0] - drawn[:, 1]
        within = np.var(gain[:16] - gain[:16].mean(1, keepdims=True), axis=0).sum()
        runs = max(0.0, gain[16].var(ddof=1) - within)
        assert row["se"] == pytest.approx(np.sqrt(gain[:16].mean(1).var() + runs / 2), rel=1e-5)
        if metric == "ECE" and runs == 0:
            ends = np.quantile(gain[:16].mean(1), [0.025, 0.975]) - gain[:16].mean() + gain[16].mean()
            np.testing.assert_allclose([row["low"], row["high"]], ends, atol=1e-7)


def test_a_smaller_calibration_error_helps() -> None:
    truth, patients = cohort(33)
    rate = np.full((1, *truth.shape), 0.3) + 0.001 * np.random.default_rng(34).random((1, *truth.shape))
    for a, b, said in ((rate, rate + 0.4, "helps"), (rate + 0.4, rate, "harms"), (rate, rate, "no evidence")):
        found = difference(truth, a, b, patients, FINDINGS, n_bootstrap=100, rng=np.random.default_rng(35))
        row = found.query("metric == 'ECE' and level == 'macro'").iloc[0]
        assert row["verdict"] == said
        assert (row["high"] < 0) == (said == "helps")


def test_scores_that_are_no_probabilities_have_no_calibration() -> None:
    truth, patients = cohort(36)
    a = scored(truth, 1.0, 1, np.random.default_rng(37))
    found = difference(truth, a, a, patients, FINDINGS, n_bootstrap=5, rng=np.random.default_rng(0))
    assert set(found["metric"]) == {"AP", "AUROC"}
    assert set(metric_table(truth, a[0], FINDINGS)["metric"]) == {"AP", "AUROC"}


def test_p_holm_is_over_the_findings_of_one_metric() -> None:
    truth, patients = cohort(38, findings=4)
    draw = np.random.default_rng(39)
    names = ("a", "b", "c", "d")
    a, b = probable(truth, 1.3, 1, draw), probable(truth, 1.0, 1, draw)
    found = difference(truth, a, b, patients, names, groups={"tail": names[:2]}, n_bootstrap=200, rng=draw)
    assert found.query("level != 'finding'")["p_holm"].isna().all()
    for _, part in found.query("level == 'finding'").groupby("metric"):
        np.testing.assert_array_equal(part["p_holm"], holm(part["p"].to_numpy()))
    assert (found["p"] > 0).all()
    excluded = (found["low"] > 0) | (found["high"] < 0)
    assert (excluded == (found["p"] < 0.05)).mean() > 0.9


def planted(reason: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Truth [N,2], thresholds [2] and patients; what `reason` says is wrong with the second finding."""
    truth, patients = cohort(40, patients=200)
    cut = np.full(2, 0.4)
    if reason == "no known test label":
        truth[:, 1] = np.nan
    elif reason == "no positive test image":
        truth[:, 1] = np.where(np.arange(len(truth)) % 3, 0, np.nan)
    elif reason == "no negative test image":
        truth[:, 1] = 1
    elif reason.startswith("no validation positive"):
        cut[1] = np.nan
    elif reason:
        one = int(reason.split()[2]) - 1 if reason.startswith("fewer") else 1
        truth[:, 1] = [int(name[1:]) < one for name in patients]
    return truth, cut, patients


@pytest.mark.parametrize(
    ("reason", "which"),
    [
        ("no known test label", METRICS),
        ("no positive test image", METRICS),
        ("no negative test image", ("AUROC", "balanced accuracy")),
        ("no validation positive to choose a threshold by", ("sensitivity", "balanced accuracy", "F1")),
        ("fewer than 6 positive patients: no evidence", METRICS),
        ("", ()),
    ],
)
def test_what_is_missing_has_a_reason_and_leaves_the_macro_alone(reason: str, which: tuple[str, ...]) -> None:
    truth, cut, patients = planted(reason)
    draw = np.random.default_rng(41)
    a, b = probable(np.nan_to_num(truth), 1.5, 2, draw), probable(np.nan_to_num(truth), 0.8, 2, draw)
    said = decided(a, np.stack([cut, cut])), decided(b, np.stack([cut, cut]))
    found = difference(truth, a, b, patients, FINDINGS, n_bootstrap=60, rng=np.random.default_rng(1), decided=said)
    second = found.query("name == 'Hernia'").set_index("metric")
    assert {metric for metric in METRICS if second.loc[metric, "reason"]} == set(which)
    assert set(second.loc[list(which), "reason"]) <= {reason}
    assert set(second.loc[list(which), "verdict"]) <= {"no evidence"}
    assert second.loc[list(which), ["p", "p_holm", "smallest"]].isna().all(axis=None)
    rest = second.loc[[m for m in METRICS if m not in which]]
    assert rest[[*NUMBERS, "p_holm"]].notna().all(axis=None)
    if not reason.startswith("fewer"):
        assert second.loc[list(which), NUMBERS].isna().all(axis=None)
        alone = [x[..., :1] for x in (truth, a, b, *said)]
        one = difference(
            *alone[:3], patients, FINDINGS[:1], n_bootstrap=60, rng=np.random.default_rng(1), decided=alone[3:]
        )
        for metric in which:
            both = [line(one, "macro", metric), line(found, "macro", metric)]
            np.testing.assert_allclose(*[row[NUMBERS].to_numpy(float) for row in both])
            assert both[0]["verdict"] == both[1]["verdict"]


def test_only_metrics_that_need_negatives_are_missing_for_want_of_them() -> None:
    truth = np.array([[1.0, np.nan], [1, 0]])
    assert missing("AUROC", truth[:, :1]) == "no negative test image"
    assert missing("F1", truth[:, :1]) == "no validation positive to choose a threshold by"
    assert missing("AUROC", truth) == "no finding has a value"


def test_without_a_positive_in_half_of_the_draws_there_is_no_interval() -> None:
    truth, names = np.zeros((30, 1)), [str(n) for n in range(30)]
    truth[0], lost = 1, []
    for seed in range(20):
        few = difference(
            truth, truth[None] / 2, 1 - truth[None], names, ("x",), n_bootstrap=11, rng=np.random.default_rng(seed)
        )
        usable = (np.random.default_rng(seed).multinomial(30, [1 / 30] * 30, size=11)[:, 0] > 0).sum()
        lost.append(2 * usable <= 11)
        assert set(few["reason"] == "most draws hold no positive: no interval") == {lost[-1]}
        assert set(few[["low", "high", "se"]].isna().all(axis=1)) == {lost[-1]}
        assert few["value"].notna().all()
        assert few[["p", "smallest"]].isna().all(axis=None)
    assert len(set(lost)) == 2


def test_one_patient_says_nothing_and_breaks_nothing() -> None:
    truth, draw = np.array([[1.0], [0], [1], [0]]), np.random.default_rng(42)
    a, b = probable(truth, 3.0, 2, draw), probable(truth, 0.0, 2, draw)
    found = difference(truth, a, b, ["p"] * 4, ("x",), n_bootstrap=20, rng=draw)
    assert set(found["verdict"]) == {"no evidence"}
    assert set(found["reason"]) == {"fewer than 6 positive patients: no evidence"}


def test_labels_unknown_everywhere_are_a_table_without_numbers() -> None:
    truth, draw = np.full((6, 2), np.nan), np.random.default_rng(43)
    a = probable(np.zeros((6, 2)), 1.0, 2, draw)
    found = difference(truth, a, a, [*"aabbcc"], FINDINGS, n_bootstrap=10, rng=draw, decided=(a > 0.5, a > 0.5))
    assert len(found) == 3 * 6
    assert found[[*NUMBERS, "p_holm"]].isna().all(axis=None)
    assert set(found["reason"]) == {"no known test label"}
    alone = interval(truth, a, [*"aabbcc"], FINDINGS, n_bootstrap=10, rng=draw)
    assert alone[["value", "low", "high", "se"]].isna().all(axis=None)


def test_a_threshold_missing_in_one_seed_leaves_the_finding_out_of_all() -> None:
    """Else the mean of one arm would be over other findings than that of the other."""
    truth, patients = cohort(44)
    draw = np.random.default_rng(45)
    a, b = probable(truth, 1.0, 2, draw), probable(truth, 1.0, 2, draw)
    cut = np.full((2, 2), 0.4)
    whole = decided(b, cut)
    cut[1, 1] = np.nan
    found = difference(truth, a, b, patients, FINDINGS, n_bootstrap=20, rng=draw, decided=(decided(a, cut), whole))
    f1 = found.query("metric == 'F1'").set_index("name")
    assert np.isnan(f1.loc["Hernia", "control_value"])
    np.testing.assert_allclose(*f1.loc[["macro", "Mass"], NUMBERS].to_numpy(float))


def test_the_order_of_rows_does_not_matter() -> None:
    truth, patients = cohort(46)
    draw = np.random.default_rng(47)
    a, b = probable(truth, 1.0, 2, draw), probable(truth, 0.7, 2, draw)
    mixed = draw.permutation(len(truth))
    one = difference(truth, a, b, patients, FINDINGS, n_bootstrap=20, rng=np.random.default_rng(1))
    other = [np.asarray(patients)[mixed], FINDINGS]
    two = difference(truth[mixed], a[:, mixed], b[:, mixed], *other, n_bootstrap=20, rng=np.random.default_rng(1))
    pd.testing.assert_frame_equal(one, two)


def test_the_table_of_one_seed_holds_what_the_difference_compares() -> None:
    truth, patients = cohort(48, findings=3)
    truth[:, 2] = 0
    draw = np.random.default_rng(49)
    a, names, groups = probable(truth, 1.0, 1, draw), ("a", "b", "c"), {"tail": ("b", "c"), "head": ()}
    said = decided(a, np.full((1, 3), 0.4))
    found = metric_table(truth, a[0], names, groups, said[0])
    assert list(found.columns) == ["finding", "metric", "value"]
    assert set(found["finding"]) == {"macro", "tail", "a", "b", "c"}
    same = difference(truth, a, a, patients, names, groups=groups, n_bootstrap=5, rng=draw, decided=(said, said))
    wanted = same.set_index(["name", "metric"])["value"]
    np.testing.assert_allclose(found["value"], [wanted[row.finding, row.metric] for row in found.itertuples()])
    assert found.query("finding == 'c'")["value"].isna().all()
    by = found.set_index(["finding", "metric"])["value"]
    assert by["tail", "AUROC"] == by["b", "AUROC"] == pytest.approx(auroc(truth[:, 1], a[0, :, 1]))


def test_the_interval_of_one_arm_covers_its_true_value() -> None:
    """AUROC of signal 1 is Phi(1 / sqrt 2); AP and ECE are held against a test set of 200,000."""
    missed, trials = np.zeros(3), 100
    big = (np.random.default_rng(0).random((200_000, 1)) < 0.3).astype(float)
    score = probable(big, 1.0, 1, np.random.default_rng(1))[0, :, 0]
    true = [slowly(metric, big[:, 0], score) for metric in ("AP", "AUROC")]
    for trial in range(trials):
        draw = np.random.default_rng(trial)
        truth, patients = cohort(trial, patients=100, findings=1)
        found = interval(truth, probable(truth, 1.0, 1, draw), patients, ("x",), n_bootstrap=100, rng=draw, level=0.9)
        ends = found.query("level == 'finding'").set_index("metric")[["low", "high"]]
        missed[:2] += [
            not ends.loc[m, "low"] <= v <= ends.loc[m, "high"] for m, v in zip(("AP", "AUROC"), true, strict=True)
        ]
        assert (ends["low"] <= found.query("level == 'finding'")["value"].to_numpy()).all()
    assert ((missed[:2] >= 3) & (missed[:2] <= 19)).all()


def test_the_interval_of_one_arm_stays_between_zero_and_one() -> None:
    truth, patients = cohort(50)
    a = np.stack([probable(truth, signal, 1, np.random.default_rng(51))[0] for signal in (6.0, 0.0)])
    found = interval(
        truth, a, patients, FINDINGS, groups={"tail": FINDINGS[:1]}, n_bootstrap=50, rng=np.random.default_rng(0)
    )
    assert list(found.columns) == ["level", "name", "metric", "value", "low", "high", "se", "patients", "reason"]
    assert found[["low", "high"]].stack().between(0, 1).all()
    assert found["high"].max() == 1
    assert set(found["reason"]) == {""}
