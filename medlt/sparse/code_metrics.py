"""Quality of a simplicial code on validation latents: sparsity, use, reconstruction, information, learnability.

| column | meaning | range |
|---|---|---|
| mean_max_probability | mean over pixels and groups of the largest token probability | 1/V (uniform) .. 1 (one-hot) |
| entropy | mean entropy of a token, nats | 0 .. ln V |
| tokens_used | exp of the entropy of how often each token is the likeliest, mean over groups | 1 .. V |
| agreement | share of pixels and groups where student and teacher choose the same token, after imitation | 1/V .. 1 |
| reconstruction_l1 | mean abs(D(s) - z), in standard deviations of the latent | >= 0 |
| val_macro_ap | mean average precision of C over findings with a known positive | 0 .. 1 |
| probe_ap | mean average precision of a logistic regression on the mean code, fitted on train | 0 .. 1 |
| topographic_similarity | Spearman correlation of pair distances: latents (Euclidean) with tokens (Hamming) | -1 .. 1 |

Read sparsity together with `tokens_used`: a code with a single token is perfectly sparse. `medlt.sparse.collapse` adds
the columns `collapsed` and `chosen`; `retry` is 1 in the row of a generation that was trained again with another seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from medlt.rng import numpy_generator, torch_generator
from medlt.rows import Rows, chunks
from medlt.sparse.embedding import SimplicialCoder, evaluating

COLUMNS = (
    "generation",
    "retry",
    "mean_max_probability",
    "entropy",
    "tokens_used",
    "agreement",
    "reconstruction_l1",
    "val_macro_ap",
    "probe_ap",
    "topographic_similarity",
    "collapsed",
    "chosen",
)
CHUNK = 64
MOST_ROWS = 2000


def macro_ap(truth: np.ndarray, score: np.ndarray) -> float:
    """Return the mean average precision over the findings (columns) with a known positive; NaN truths are ignored."""
    values = []
    for y, p in zip(truth.T, score.T, strict=True):
        known = ~np.isnan(y)
        if (y[known] == 1).any():
            values.append(average_precision_score(y[known], p[known]))
    return float(np.mean(values)) if values else float("nan")


@torch.no_grad()
def tokens(coder: SimplicialCoder, latents: Rows) -> np.ndarray:
    """Return the likeliest token of each group and pixel, uint16 [N,L,h,w]."""
    with evaluating(coder):
        device = next(coder.parameters()).device
        parts = [
            coder.logits(z.float().to(device)).argmax(2).cpu().numpy().astype(np.uint16) for z in chunks(latents, CHUNK)
        ]
    return np.concatenate(parts)


def blank_code(latents: Rows, labels: np.ndarray) -> dict[str, float]:
    """Return the reconstruction L1 and the macro AP of a code that says nothing.

    Its decoder returns 0, the mean of standardised latents [N,C,h,w]. Its classifier gives all rows the same score, so
    its AP is the share of positives among the known labels [N,K]; NaN if no finding has a positive.
    """
    total = sum(float(z.double().abs().mean((1, 2, 3)).sum()) for z in chunks(latents, CHUNK))
    guessing = macro_ap(labels, np.zeros_like(labels))
    return {"reconstruction_l1": total / len(latents), "val_macro_ap": guessing}


def tokens_on_noise(coder: SimplicialCoder, shape: Sequence[int], *key: object) -> float:
    """Return `tokens_used` on 64 latents of standard normal noise of this shape (C, h, w): no row is read."""
    z = torch.randn(64, *shape, generator=torch_generator("noise", *key))
    return read_code(coder, z)[0]["tokens_used"]


def agreement(student: SimplicialCoder, teacher: SimplicialCoder, latents: Rows) -> float:
    """Return the share of (sample, group, pixel) with the same token in both coders."""
    equal = [(tokens(student, z) == tokens(teacher, z)).mean() for z in chunks(latents, CHUNK)]
    return float(np.average(equal, weights=[len(z) for z in chunks(latents, CHUNK)]))


@torch.no_grad()
def read_code(coder: SimplicialCoder, latents: Rows) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Return sparsity and reconstruction, the classifier's probabilities [N,K], and the mean codes [N,L*V]."""
    total, pixels, scores, pooled = np.zeros(3), 0, [], []
    used = torch.zeros(coder.groups, coder.vocabulary, dtype=torch.float64)
    device = next(coder.parameters()).device
    with evaluating(coder):
        for z in chunks(latents, CHUNK):
            z = z.float().to(device)
            s = coder.code(z)
            entropy = -(s * s.clamp_min(1e-12).log()).sum(2)
            error = (coder.decode(s) - z).abs().mean((1, 2, 3))
            total += [float(s.amax(2).double().mean((1, 2, 3)).sum()), float(entropy.double().mean((1, 2, 3)).sum()),
                      float(error.double().sum())]  # fmt: skip
            chosen = torch.nn.functional.one_hot(s.argmax(2), coder.vocabulary)
            used += chosen.sum((0, 2, 3)).cpu()
            pixels += len(z)
            scores.append(coder.classify(s).sigmoid().cpu().numpy())
            pooled.append(s.mean((3, 4)).flatten(1).cpu().numpy())
    share = used / used.sum(1, keepdim=True)
    perplexity = torch.special.entr(share).sum(1).exp().mean()
    means = dict(zip(("mean_max_probability", "entropy", "reconstruction_l1"), (total / pixels).tolist(), strict=True))
    return means | {"tokens_used": float(perplexity)}, np.concatenate(scores), np.concatenate(pooled)


def topographic_similarity(coder: SimplicialCoder, latents: Rows, *key: object, pairs: int = 2000) -> float:
    """Return the Spearman correlation, over random pairs, of latent distance with the share of tokens that differ."""
    if len(latents) < 3:
        return float("nan")
    rng = numpy_generator("pairs", *key)
    some = latents[np.sort(rng.permutation(len(latents))[:256])]
    first, second = np.triu_indices(len(some), 1)
    drawn = rng.permutation(len(first))[:pairs]
    chosen, flat = tokens(coder, some), some.flatten(1).numpy()
    distance = [np.linalg.norm(flat[i] - flat[j]) for i, j in zip(first[drawn], second[drawn], strict=True)]
    differ = [(chosen[i] != chosen[j]).mean() for i, j in zip(first[drawn], second[drawn], strict=True)]
    if np.ptp(differ) == 0 or np.ptp(distance) == 0:
        return float("nan")
    return float(spearmanr(distance, differ).statistic)


def probe_ap(train: np.ndarray, truth: np.ndarray, test: np.ndarray, test_truth: np.ndarray) -> float:
    """Return the macro AP on `test` codes [M,L*V] of a logistic regression per finding, fitted on `train` [N,L*V]."""
    train, test = train.astype(np.float64), test.astype(np.float64)  # the sd of an unused token underflows in float32
    scale = StandardScaler().fit(train)
    scores = np.zeros_like(test_truth)
    for k, y in enumerate(truth.T):
        known = ~np.isnan(y)
        if len(np.unique(y[known])) > 1:
            probe = LogisticRegression(C=0.01, class_weight="balanced", max_iter=500)
            probe.fit(scale.transform(train[known]), y[known] > 0.5)
            scores[:, k] = probe.decision_function(scale.transform(test))
    return macro_ap(test_truth, scores)


def measure(
    coder: SimplicialCoder, latents: Rows, labels: np.ndarray, val_latents: Rows, val_labels: np.ndarray, seed: int
) -> dict[str, float]:
    """Return all columns of the table above except `agreement`. The probe uses at most 2,000 seeded train rows."""
    rows = np.sort(numpy_generator(seed, "probe").permutation(len(latents))[:MOST_ROWS])
    values, scores, pooled = read_code(coder, val_latents)
    _, _, seen = read_code(coder, latents[rows])
    return values | {
        "val_macro_ap": macro_ap(val_labels, scores),
        "probe_ap": probe_ap(seen, labels[rows], pooled, val_labels),
        "topographic_similarity": topographic_similarity(coder, val_latents, seed),
    }
