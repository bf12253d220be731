"""Canaries in the space of gradients: a strong attack on the noise and the sampling of an audit's own private training.

A gradient canary is a made-up unit whose clipped gradient is a fixed direction of the clipping norm, whatever the
weights. If its coin says so, it is a unit like others, and each step samples it with their probability. The attacker
sees the noised sum of every step, as the accountant assumes (Nasr et al., arXiv 2302.07956; Steinke, Nasr & Jagielski,
arXiv 2305.08846; Mahloujifar, Melis & Chaudhuri, arXiv 2410.22235).

Each of the m directions is Gaussian on its own random part of the P trainable weights, and zero elsewhere. So all of
them are orthogonal, and together they need two numbers a weight instead of m.

In units of the clipping norm C, a step with noise multiplier sigma shows the canary x = <noised sum, direction> / C,
which is N(1, sigma^2) if the step sampled it, and else N(0, sigma^2), but for what other units add. With sampling
probability q, the score is the logarithm of the likelihood ratio between a canary that is in the training and one that
is not, summed over steps:

    log(1 - q + q exp((x - 1/2) / sigma^2)).

It is linear in x for q = 1. The score tests noise, sampling and steps, not how gradients of patients are clipped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medlt.files import digest, write_json
from medlt.privacy.dpsgd.randomness import Randomness
from medlt.rng import numpy_generator, torch_generator
from medlt.types import InputError

SCORES = "gradient_canaries.json"
LEAST_WEIGHTS = 10  # of a direction
LEAST_NOISE = 0.1  # noise multiplier of the scores; other units add as much where there is less noise


@dataclass(frozen=True)
class GradientCanaries:
    """Canaries of one training: whether each is in it, bool [m], and the seed of their directions."""

    included: np.ndarray
    seed: int

    @classmethod
    def flipped(cls, m: int, seed: int) -> GradientCanaries:
        """Return m canaries with fair coins. Raises InputError for none."""
        if m < 1:
            raise InputError(f"{m} gradient canaries; give at least 1, and some hundreds for a bound above 1")
        return cls(numpy_generator(seed, "gradient canary coins").random(m) < 0.5, seed)

    @property
    def digest(self) -> str:
        """Digest of coins and directions, part of the key of the training."""
        return digest("gradient canaries", self.included.tolist(), self.seed)

    def sampled(self, drawn: Randomness, rate: float) -> Tensor:
        """Return 1 for each canary of one step and 0 for the others, float32 [m]."""
        return torch.from_numpy((drawn.uniform(len(self.included)) < rate) & self.included).float()


@dataclass
class Directions:
    """Orthogonal unit directions in the space of weights, by weight: `owner` int32 and `value` float32, as the weight.

    Element j of a weight is `value[j]` in the direction of canary `owner[j]`, and 0 in all others.
    """

    owner: list[Tensor]
    value: list[Tensor]
    m: int

    @classmethod
    def of(cls, canaries: GradientCanaries, weights: Sequence[Tensor]) -> Directions:
        """Return the directions of canaries for trainable weights, on their devices, a function of the seed.

        Raises InputError for more canaries than a tenth of the weights.
        """
        m, sizes = len(canaries.included), [weight.numel() for weight in weights]
        if sum(sizes) < LEAST_WEIGHTS * m:
            raise InputError(
                f"{m} gradient canaries for {sum(sizes)} trainable weights; give at most a tenth as many canaries"
            )
        rng = torch_generator(canaries.seed, "gradient canary directions")
        owner = torch.randperm(sum(sizes), generator=rng).remainder_(m).int()
        value = torch.randn(sum(sizes), generator=rng)
        value /= torch.zeros(m).index_add_(0, owner, value.square()).sqrt_()[owner]
        parts = zip(weights, torch.split(owner, sizes), torch.split(value, sizes), strict=True)
        placed = [(o.to(w.device).view(w.shape), v.to(w.device).view(w.shape)) for w, o, v in parts]
        return cls([one for one, _ in placed], [one for _, one in placed], m)

    def add(self, sums: Sequence[Tensor], amounts: Tensor) -> None:
        """Add the directions times `amounts` [m] to sums of gradients, in place."""
        for total, owner, value in zip(sums, self.owner, self.value, strict=True):
            total += amounts.to(total.device)[owner] * value

    def project(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the inner product of gradients with each direction, float64 [m], on the CPU."""
        out = torch.zeros(self.m, dtype=torch.float64)
        for gradient, owner, value in zip(gradients, self.owner, self.value, strict=True):
            there = torch.zeros(self.m, dtype=torch.float64, device=gradient.device)
            out += there.index_add_(0, owner.flatten(), (gradient * value).flatten().double()).cpu()
        return out


@dataclass
class Observer:
    """Puts canaries into the steps of a private training, and scores them by what each step publishes."""

    canaries: GradientCanaries
    weights: Mapping[str, Tensor]
    rate: float
    noise_multiplier: float
    max_grad_norm: float
    directions: Directions = field(init=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.max_grad_norm):
            raise InputError("gradient canaries have norm max_grad_norm, which is infinite; give a finite one")
        self.directions = Directions.of(self.canaries, list(self.weights.values()))

    def insert(self, sums: Sequence[Tensor], drawn: Randomness) -> None:
        """Add the gradients of the canaries that this step samples to the sums of clipped gradients."""
        self.directions.add(sums, self.max_grad_norm * self.canaries.sampled(drawn, self.rate))

    def scores(self, noised: Sequence[Tensor], units: float) -> Tensor:
        """Return the score of each canary in one step, float64 [m], of noised sums over the expected number `units`."""
        x = self.directions.project(noised) * units / self.max_grad_norm
        variance, rate = max(self.noise_multiplier, LEAST_NOISE) ** 2, torch.tensor(self.rate, dtype=torch.float64)
        return torch.logaddexp(torch.log1p(-rate), rate.log() + (x - 0.5) / variance)


def write_scores(folder: Path, canaries: GradientCanaries, scores: Sequence[float]) -> None:
    """Write the scores of a finished training to `folder`."""
    write_json(folder / SCORES, {"digest": canaries.digest, "scores": list(scores)})


def read_scores(folder: Path, canaries: GradientCanaries) -> np.ndarray:
    """Return the scores of a finished training, float64 [m]. Raises InputError if it had other canaries, or none."""
    path = folder / SCORES
    record = json.loads(path.read_text()) if path.is_file() else {}
    if record.get("digest") != canaries.digest:
        raise InputError(f"{path}: is not of a training with these canaries; delete {folder} and audit again")
    return np.asarray(record["scores"], np.float64)
