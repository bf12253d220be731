"""LiRA: the likelihood-ratio attack with shadow models (Carlini et al., arXiv 2112.03570).

Some images are learnt easily by every model. Models trained on random halves of all images say what an image's score is
like where it was in, N(mu_in, sd_in), and where it was out, N(mu_out, sd_out); the target's score s of it is read as

    online:   log N(s; mu_in, sd_in^2) - log N(s; mu_out, sd_out^2)            (Algorithm 1)
    offline:  log Phi((s - mu_out) / sd_out)                                    (sec. IV-C: only models without it)

The standard deviations are pooled over all images, as the paper does where shadows are few (sec. VI). Halves are drawn
by patient. Models that a patient was in and out of are the same number for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from scipy import stats

from medlt.metrics.draws import owners
from medlt.rng import numpy_generator, seed_of
from medlt.types import InputError

Shadow: TypeAlias = Callable[[np.ndarray, int], np.ndarray]
"""(which images to train on, bool [N], seed) -> the trained shadow's score of every image, [N]."""


def halves(patients: Sequence[str], models: int, seed: int) -> np.ndarray:
    """Return which images each shadow is trained on, bool [models,N]; every patient is in half of them, all images
    together.

    Raises InputError for an odd number of models, or fewer than 2.
    """
    if models < 2 or models % 2:
        raise InputError(f"{models} shadow models; give an even number, so that each patient is in half of them")
    of = owners([str(one) for one in patients])
    rng = numpy_generator(seed, "shadow halves")
    order = rng.random((models, int(of.max(initial=-1)) + 1)).argsort(0)
    inside: np.ndarray = (order < models // 2)[:, of]
    return inside


def lira(target: np.ndarray, shadows: np.ndarray, inside: np.ndarray, *, online: bool = True) -> np.ndarray:
    """Return LiRA scores [N] of `target` [N] from scores of shadows [M,N] trained where `inside`, bool [M,N], is true.

    Raises InputError for shapes that do not fit, scores that are not finite, or an image that no shadow was trained
    without (or, online, with).
    """
    target, shadows, inside = np.asarray(target, float), np.asarray(shadows, float), np.asarray(inside, bool)
    if shadows.shape != inside.shape or target.shape != shadows.shape[1:] or not np.isfinite(shadows).all():
        raise InputError(f"scores {target.shape}, shadows {shadows.shape} and masks {inside.shape}: [N], [M,N], [M,N]")
    mean_out, sd_out = _gaussian(shadows, ~inside, "without")
    if not online:
        return np.asarray(stats.norm.logcdf(target, mean_out, sd_out))
    mean_in, sd_in = _gaussian(shadows, inside, "with")
    return np.asarray(stats.norm.logpdf(target, mean_in, sd_in) - stats.norm.logpdf(target, mean_out, sd_out))


def _gaussian(shadows: np.ndarray, chosen: np.ndarray, how: str) -> tuple[np.ndarray, float]:
    """Return the mean of each image's chosen scores [N], and their standard deviation about it, pooled over images."""
    count = chosen.sum(0)
    if not count.all():
        raise InputError(f"{(count == 0).sum()} images have no shadow model trained {how} them; draw masks by halves()")
    mean = np.where(chosen, shadows, 0).sum(0) / count
    squares = np.where(chosen, shadows - mean, 0) ** 2
    free = max(1, int((count - 1).sum()))
    return mean, max(float(np.sqrt(squares.sum() / free)), 1e-12)


def attack(
    target: np.ndarray, shadow: Shadow, patients: Sequence[str], *, models: int, seed: int, online: bool = True
) -> np.ndarray:
    """Return LiRA scores [N] of `target` [N]: trains `models` shadows on halves of `patients` [N], one after another."""
    inside = halves(patients, models, seed)
    shadows = np.stack([shadow(mask, seed_of(seed, "shadow", k)) for k, mask in enumerate(inside)])
    return lira(target, shadows, inside, online=online)
