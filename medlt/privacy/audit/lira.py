"""LiRA: the likelihood-ratio attack with shadow models (Carlini et al., arXiv 2112.03570).

Some images are easy for every model. So shadow models are trained on random halves of all images. They give the
distribution of the score of an image if it was in the training, N(mu_in, sd_in), and if not, N(mu_out, sd_out). The
score s of the target model becomes

    online:   log N(s; mu_in, sd_in^2) - log N(s; mu_out, sd_out^2)            (Algorithm 1)
    offline:  log Phi((s - mu_out) / sd_out)                                    (sec. IV-C: only models without it)

The standard deviations are pooled over all images, as in the paper for few shadow models (sec. VI). Halves are drawn by
patient, and every patient is in half of the models.
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
"""(images to train on, bool [N], seed) -> score [N] of every image by the trained shadow model."""


def halves(patients: Sequence[str], models: int, seed: int) -> np.ndarray:
    """Return the training images of each shadow model, bool [models,N].

    Every patient is, with all images, in half of the models. Raises InputError for an odd number of models, or fewer
    than 2.
    """
    if models < 2 or models % 2:
        raise InputError(f"{models} shadow models; give an even number, so that each patient is in half of them")
    of = owners([str(one) for one in patients])
    rng = numpy_generator(seed, "shadow halves")
    order = rng.random((models, int(of.max(initial=-1)) + 1)).argsort(0)
    inside: np.ndarray = (order < models // 2)[:, of]
    return inside


def lira(target: np.ndarray, shadows: np.ndarray, inside: np.ndarray, *, online: bool = True) -> np.ndarray:
    """Return the LiRA scores [N] of `target` [N].

    shadows: scores [M,N] of shadow models; inside: bool [M,N], the training images of each. Raises InputError for
    shapes that do not fit, scores that are not finite, or an image without a shadow model trained without it (or, if
    online, with it).
    """
    target, shadows, inside = np.asarray(target, float), np.asarray(shadows, float), np.asarray(inside, bool)
    if shadows.shape != inside.shape or target.shape != shadows.shape[1:] or not np.isfinite(shadows).all():
        raise InputError(
            f"scores {target.shape}, shadows {shadows.shape}, masks {inside.shape}; give finite [N], [M,N] and [M,N]"
        )
    mean_out, sd_out = _gaussian(shadows, ~inside, "without")
    if not online:
        return np.asarray(stats.norm.logcdf(target, mean_out, sd_out))
    mean_in, sd_in = _gaussian(shadows, inside, "with")
    return np.asarray(stats.norm.logpdf(target, mean_in, sd_in) - stats.norm.logpdf(target, mean_out, sd_out))


def _gaussian(shadows: np.ndarray, chosen: np.ndarray, how: str) -> tuple[np.ndarray, float]:
    """Return the mean [N] of the chosen scores of each image, and their standard deviation, pooled over images."""
    count = chosen.sum(0)
    if not count.all():
        raise InputError(f"{(count == 0).sum()} images have no shadow model trained {how} them; use masks of halves()")
    mean = np.where(chosen, shadows, 0).sum(0) / count
    squares = np.where(chosen, shadows - mean, 0) ** 2
    free = max(1, int((count - 1).sum()))
    return mean, max(float(np.sqrt(squares.sum() / free)), 1e-12)


def attack(
    target: np.ndarray, shadow: Shadow, patients: Sequence[str], *, models: int, seed: int, online: bool = True
) -> np.ndarray:
    """Train `models` shadow models on halves of `patients` [N], and return the LiRA scores [N] of `target` [N]."""
    inside = halves(patients, models, seed)
    shadows = np.stack([shadow(mask, seed_of(seed, "shadow", k)) for k, mask in enumerate(inside)])
    return lira(target, shadows, inside, online=online)
