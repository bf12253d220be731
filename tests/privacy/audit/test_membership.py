"""TPR at low FPR by hand, LiRA against its formula, and a model that was trained too long against one that was not."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from medlt.privacy.audit.lira import attack, halves, lira
from medlt.privacy.audit.membership import calibrated, loss_scores, membership, some_patients, tpr_at
from medlt.privacy.audit.rates import auroc_difference
from medlt.rng import noise_like, seed_of
from medlt.testing import label_backbone
from medlt.types import InputError


@given(st.lists(st.integers(0, 20), min_size=1), st.lists(st.integers(0, 20), min_size=1), st.floats(0, 0.9))
def test_tpr_is_the_best_threshold_that_keeps_the_rate(inside: list[int], outside: list[int], fpr: float) -> None:
    a, b = np.array(inside, float), np.array(outside, float)
    found = tpr_at(a, b, fpr)
    allowed = [t for t in [*b, *a, -1.0] if (b > t).sum() <= fpr * len(b) + 1e-9]
    assert found.tpr == max((a > t).mean() for t in allowed)
    assert found.false_positives <= fpr * len(b) + 1e-9
    assert found.resolved is (int(fpr * len(b) + 1e-9) >= 1)
    assert found.low <= found.tpr <= found.high


def test_what_cannot_be_resolved_is_said_with_its_bound() -> None:
    """287 others, none above: the true FPR may still be 1 - 0.025^(1/287), 1.28 %."""
    found = tpr_at(np.array([2.0] * 30 + [0.0] * 70), np.zeros(287), 0.001)
    assert found.tpr == 0.3
    assert not found.resolved
    assert found.fpr_high == pytest.approx(1 - 0.025 ** (1 / 287))
    assert tpr_at(np.ones(5), np.zeros(287), 0.01).resolved


def test_exact_intervals_cover() -> None:
    rng, cover = np.random.default_rng(0), []
    for _ in range(200):
        found = tpr_at(rng.normal(1, 1, 60), np.full(10, 0.5), 0.0)  # the threshold is known: 0.5
        cover.append(found.low <= stats.norm.sf(-0.5) <= found.high)
    assert np.mean(cover) >= 0.95


def test_calibration_ignores_the_scale_of_a_timestep() -> None:
    scores = np.random.default_rng(0).normal(size=(50, 3))
    assert np.allclose(calibrated(scores), calibrated(scores * [1, 10, 1000] + [5, 0, -7]))


def test_scores_are_the_loss_under_one_noise_for_all() -> None:
    """A denoiser that answers zero has the error mean(x0^2), whatever the noise; one that scales, the same by hand."""
    x0 = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    zero = label_backbone(lambda x, t, c: x * 0, 2)
    expected = -x0.square().flatten(1).mean(1).double().numpy()
    assert np.allclose(loss_scores(zero, x0, seed=0, timesteps=(10, 400), noises=3), expected[:, None], atol=1e-6)
    half = label_backbone(lambda x, t, c: 0.5 * x, 2)
    noise = noise_like([seed_of(4, "membership noise", k) for k in range(2)], (1, 4, 4))
    a = half.noise.abar()[200]
    by_hand = [(0.5 * (a.sqrt() * x0 + (1 - a).sqrt() * n) - x0).square().flatten(1).mean(1) for n in noise]
    found = loss_scores(half, x0, seed=4, timesteps=(200,), noises=2, batch=2)
    assert np.allclose(found[:, 0], -torch.stack(by_hand).mean(0).numpy(), atol=1e-6)


def test_conditions_reach_the_network_row_by_row() -> None:
    said = label_backbone(lambda x, t, c: c[:, :1, None, None].expand_as(x), 1)
    condition = torch.arange(5.0)[:, None].repeat(1, 3)
    found = loss_scores(said, torch.zeros(5, 1, 2, 2), condition, seed=0, timesteps=(9,), batch=2)
    assert np.allclose(found[:, 0], -(np.arange(5.0) ** 2))


def test_an_overtrained_model_tells_its_members_and_nobody_else(overtrained: Any) -> None:
    scores = calibrated(loss_scores(overtrained.backbone, overtrained.latents, seed=0))
    names = [f"p{i}" for i in range(200)]
    caught = membership(scores, np.arange(200) < 11, names, seed=0)
    assert caught.passed is False
    assert caught.auc.low > 0.95
    assert caught.rates.loc[("patient", 0.01), "tpr"] > 0.8
    assert "CAN be distinguished" in caught.sentence
    rest = slice(11, None)  # of these it was shown none
    never = membership(scores[rest], np.arange(189) < 95, names[rest], seed=0)
    assert never.passed is True
    assert never.auc.low < 0.5 < never.auc.high
    assert never.rates.loc[("patient", 0.01), "tpr"] < 0.1
    assert "cannot resolve 0.1%" in never.sentence


@pytest.mark.parametrize("learnt", [0.0, 3.0])
def test_a_control_takes_out_the_kind_and_leaves_what_was_learnt(learnt: float) -> None:
    """Members are easier images: a model that learnt nothing is accused, but not where a control stands beside it."""
    rng, member = np.random.default_rng(0), np.arange(400) < 200
    easy, names = rng.normal(size=400) + 0.5 * member, [f"p{i}" for i in range(400)]
    scores = easy + learnt * member + 0.1 * rng.normal(size=400)
    assert membership(scores, member, names, seed=0).passed is False
    fair = membership(scores, member, names, seed=0, control=easy)
    assert fair.passed is (learnt == 0)
    assert fair.control is not None
    assert fair.control.low > 0.5
    assert "untrained model" in fair.sentence


def test_two_images_of_a_patient_are_one_member() -> None:
    rng = np.random.default_rng(0)
    names = [f"p{i // 2}" for i in range(120)]
    member = np.arange(120) < 60
    found = membership(rng.normal(size=120) + 2 * member, member, names, seed=0)
    assert len(found.patients) == 60
    assert found.rates.loc["patient"]["tpr"].max() > found.rates.loc["image"]["tpr"].max() - 0.2
    assert found.auc.value > found.image_auc.value
    few = membership(rng.normal(size=12), np.arange(12) < 6, [str(i) for i in range(12)], seed=0)
    assert few.passed is None or few.passed is False


def test_false_alarms_are_rare() -> None:
    said = []
    for seed in range(60):
        scores = np.random.default_rng(seed).normal(size=160)
        said.append(
            membership(scores, np.arange(160) < 80, [str(i) for i in range(160)], seed=seed, n_bootstrap=200).passed
        )
    assert said.count(False) <= 7


def test_bad_input() -> None:
    with pytest.raises(InputError, match="1 patients are on both sides"):
        membership(np.zeros(2), np.array([True, False]), ["a", "a"], seed=0)
    with pytest.raises(InputError, match="finite"):
        membership(np.array([np.nan, 0]), np.array([True, False]), ["a", "b"], seed=0)
    with pytest.raises(InputError, match="0 others"):
        membership(np.zeros(2), np.array([True, True]), ["a", "b"], seed=0)
    with pytest.raises(InputError, match="even number"):
        halves(["a", "b"], 3, 0)
    with pytest.raises(InputError, match="1 images have no shadow model trained with "):
        lira(np.zeros(2), np.zeros((2, 2)), np.array([[True, False], [False, False]]))


def test_halves_keep_patients_whole_and_balanced() -> None:
    inside = halves(["b", "a", "b", "c"], 6, 1)
    assert (inside[:, 0] == inside[:, 2]).all()
    assert (inside.sum(0) == 3).all()
    assert not (halves(["b", "a", "b", "c"], 6, 2) == inside).all()


def test_lira_is_the_log_likelihood_ratio() -> None:
    shadows = np.array([[1.0, 5], [3, 7], [0, 2], [2, 0]])
    inside = np.array([[True, True], [True, True], [False, False], [False, False]])
    out = np.sqrt((1 + 1 + 1 + 1) / 2)  # deviations of both images pooled, one degree of freedom each
    expected = stats.norm.logpdf([2.0, 3], [2, 6], out) - stats.norm.logpdf([2.0, 3], [1, 1], out)
    assert np.allclose(lira(np.array([2.0, 3]), shadows, inside), expected)
    offline = lira(np.array([2.0, 3]), shadows, inside, online=False)
    assert np.allclose(offline, stats.norm.logcdf([2.0, 3], [1, 1], out))


def test_lira_finds_what_the_plain_score_does_not() -> None:
    """Images differ in difficulty far more than membership adds: shadows take the difficulty out."""
    rng = np.random.default_rng(0)
    hard, member = rng.normal(0, 10, 300), np.arange(300) < 150
    names = [f"p{i}" for i in range(300)]

    def shadow(mask: np.ndarray, seed: int) -> np.ndarray:
        return hard + 1.5 * mask + np.random.default_rng(seed).normal(0, 0.5, 300)

    target = shadow(member, 99)
    plain = membership(target, member, names, seed=0)
    read = membership(attack(target, shadow, names, models=8, seed=0), member, names, seed=0, name="LiRA")
    assert plain.auc.value < 0.65
    assert read.auc.low > 0.9
    assert read.rates.loc[("patient", 0.01), "tpr"] > 0.5
    assert read.sentence.startswith("LiRA")


def test_a_difference_of_areas_is_that_of_the_two_areas_and_of_itself_nothing() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(80) % 2
    one, other = truth + rng.normal(size=80), rng.normal(size=80)
    found = auroc_difference(truth, one, other, np.random.default_rng(1))
    assert found.value == pytest.approx(roc_auc_score(truth, one) - roc_auc_score(truth, other))
    assert found.low < found.value < found.high
    assert auroc_difference(truth, one, one, np.random.default_rng(1)) == (0, 0, 0)


def test_what_a_model_that_saw_nobody_tells_as_well_is_no_leak() -> None:
    """Members of another kind than the others: the target's score is the control's, so nothing is above it."""
    member = np.arange(200) < 100
    kind = member + np.random.default_rng(2).normal(size=200)
    names = [f"p{i}" for i in range(200)]
    assert membership(kind, member, names, seed=0).passed is False
    alike = membership(kind, member, names, seed=0, control=kind, fprs=(0.0,))
    assert alike.above == (0, 0, 0)
    worse = membership(kind + member, member, names, seed=0, control=kind)
    assert worse.passed is False


def test_some_patients_are_all_rows_of_as_many_of_each_side() -> None:
    patients = [f"p{i // 2}" for i in range(40)]
    member = np.arange(40) < 30  # 15 members and 5 others
    rows = some_patients(member, patients, np.random.default_rng(0), most=7)
    chosen = [patients[i] for i in rows]
    assert all(chosen.count(one) == 2 for one in chosen)
    assert (int(member[rows].sum()), int((~member[rows]).sum())) == (14, 10)
    assert list(rows) == sorted(set(rows))
    assert list(some_patients(member, patients, np.random.default_rng(0))) == list(range(40))
