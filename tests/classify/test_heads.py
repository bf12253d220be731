"""Heads: cosines in float32; tau-normalisation as published, and why it can do nothing for sigmoids."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from medlt.classify.heads import TAUS, Cosine, best_tau, classifier_network, redraw, tau_normalise
from medlt.classify.networks import network


def head(seed: int, width: int = 5, findings: int = 3) -> torch.nn.Linear:
    result = torch.nn.Linear(width, findings)
    redraw(result, seed)
    return result


def test_a_head_of_cosines_ignores_lengths_and_half_precision() -> None:
    features = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    cosine = Cosine.of(head(1))
    logits = cosine(features)
    want = [
        [30 * np.dot(h, w) / np.linalg.norm(h) / np.linalg.norm(w) for w in cosine.weight.detach()] for h in features
    ]
    torch.testing.assert_close(logits, torch.tensor(np.array(want, np.float32)))
    torch.testing.assert_close(cosine(7 * features), logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cosine(features), logits)
    assert [name for name, _ in cosine.named_parameters()] == ["weight"]


def test_a_network_for_ldam_has_the_same_start_and_a_head_of_cosines() -> None:
    state = torch.get_rng_state()
    plain, ldam = classifier_network("small", "plain", 3, 5), classifier_network("small", "ldam", 3, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(ldam.head, Cosine)
    assert all(torch.equal(part, plain.state_dict()[name]) for name, part in ldam.state_dict().items())
    for name, part in network("small", 3, 5).state_dict().items():
        assert torch.equal(part, plain.state_dict()[name])


@pytest.mark.parametrize("tau", TAUS)
def test_rows_are_divided_by_their_norm_to_tau_and_the_bias_goes(tau: float) -> None:
    before, after = head(2), head(2)
    tau_normalise(after, tau)
    for w, v in zip(before.weight.detach(), after.weight.detach(), strict=True):
        torch.testing.assert_close(v, w / float(w.norm()) ** tau)
    assert (after.bias == 0).all()
    if tau == 1:
        torch.testing.assert_close(after.weight.norm(dim=1), torch.ones(3))


def test_tau_is_the_first_with_the_best_balanced_accuracy() -> None:
    """By scikit-learn's metric, one tau after the other; the rare class has the short weights."""
    g = torch.Generator().manual_seed(0)
    truth = np.repeat([0, 1, 2], (60, 30, 10))
    centres = torch.eye(3, 8)
    features = centres[truth] + 0.6 * torch.randn(100, 8, generator=g)
    trained = torch.nn.Linear(8, 3)
    trained.weight.data = torch.diag(torch.tensor([3.0, 1.5, 0.4])) @ centres
    labels = np.eye(3)[truth]
    labels[5] = np.nan
    known = ~np.isnan(labels[:, 0])
    scores = []
    for tau in TAUS:
        copy = torch.nn.Linear(8, 3)
        copy.load_state_dict(trained.state_dict())
        tau_normalise(copy, tau)
        scores.append(balanced_accuracy_score(truth[known], copy(features).argmax(1).numpy()[known]))
    assert best_tau(trained, features, labels) == TAUS[int(np.argmax(scores))] > 0
    assert max(scores) > scores[0] + 0.05
    assert best_tau(trained, features, labels * np.nan) == 0


@settings(max_examples=30)
@given(seed=st.integers(0, 2**16), tau=st.sampled_from(TAUS))
def test_of_sigmoids_it_changes_no_ranking_and_no_decision(seed: int, tau: float) -> None:
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(40, 5, generator=g, dtype=torch.float64)
    labels = (torch.rand(40, 3, generator=g) < 0.3).numpy()
    labels[:2] = [[True] * 3, [False] * 3]
    before, after = head(seed).double(), head(seed).double()
    tau_normalise(after, tau)
    with torch.no_grad():
        z, normed = before(features).numpy(), after(features).numpy()
    for metric in (average_precision_score, roc_auc_score):
        was, now = (metric(labels, scores, average=None) for scores in (z, normed))
        np.testing.assert_allclose(now, was, rtol=1e-12)
    np.testing.assert_array_equal(z - before.bias.detach().numpy() > 0, normed > 0)
