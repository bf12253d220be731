"""Class balancing: what the network says under a rare label is pulled towards what it says under others.

Qin et al., "Class-Balancing Diffusion Models", CVPR 2023, arXiv 2305.00562, with the published code's two terms:

    L = tau t/T (1 - J(y, y')) [ mse(h, sg h') + 1/4 mse(sg h, h') ]        sg: no gradient

| symbol | meaning |
|---|---|
| y, y' | label vector of the row; one drawn from a pool of real label vectors, [K] |
| h, h' | noise estimates eps(x_t, y) and eps(x_t, y'), [B,C,h,w] |
| J | Jaccard similarity of the findings of y and y' |
| t/T | timestep over the number of training timesteps |
| n_c, q | pool rows that carry finding c; a row of the pool weighs max_c n_c^-q over its findings |

With one label a row J is 1 where y = y', where h = h' anyway, and 0 elsewhere: q = 0 draws y' from the training
frequencies and is the paper's loss from scratch, q = 1 draws it evenly and is its loss for fine-tuning.

Distances are taken between noise estimates whatever the network predicts, as |eps - eps'|^2 = abar |v - v'|^2 =
abar / (1 - abar) |x0 - x0'|^2 at equal x_t: one tau means one thing, and it is what the paper measured. Distances of
x0 would weigh the noisiest steps, where labels decide most, some 200 times more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from medlt.diffusion.backbone import Conditioner
from medlt.diffusion.losses import Noised
from medlt.diffusion.noise import STABLE_DIFFUSION, NoiseSchedule, Prediction
from medlt.files import digest, tensor_bytes
from medlt.types import InputError

OTHER_WAY = 0.25
"""Weight of the pull on h', the paper's 1/4."""


def pool_weights(labels: np.ndarray, power: float) -> np.ndarray:
    """Weights [N], sum 1, of rows with labels [N,K] (1, 0, NaN = unknown; positive from 0.5 upward): max_c n_c^-power.

    Rows without a finding form one more class; a row of which nothing is known weighs 0.
    """
    labels = np.asarray(labels, np.float64)
    positive = np.nan_to_num(labels) >= 0.5
    known = ~np.isnan(labels).all(1)
    classes = np.column_stack([positive, ~positive.any(1) & known])
    rarity = np.maximum(classes.sum(0), 1.0) ** -power
    weight: np.ndarray = (classes * rarity).max(1)
    return weight / weight.sum() if weight.any() else weight


def similarity(y: Tensor, other: Tensor) -> Tensor:
    """Jaccard similarity [B] of label vectors [B,K], over the findings both know; soft labels by min and max.

    1 where neither has a known finding: they do not differ in anything that is known.
    """
    known = ~(y.isnan() | other.isnan())
    y, other = y.nan_to_num(0) * known, other.nan_to_num(0) * known
    union = torch.maximum(y, other).sum(1)
    return torch.where(union > 0, torch.minimum(y, other).sum(1) / union.clamp_min(1e-12), 1.0)


def to_noise(a: Tensor, prediction: Prediction) -> Tensor:
    """Squared distance of noise estimates over that of a network's outputs, at abar = a of any shape."""
    return {"epsilon": torch.ones_like(a), "v_prediction": a, "sample": a / (1 - a)}[prediction]


@dataclass(frozen=True, eq=False)
class ClassBalancing:
    """The loss above as an `Extra`: one value a row, 0 for rows that are told nothing, as published.

    labels: the pool [N,K], 1 / 0 / NaN, of train rows; tau 0 is off, and then draws nothing; power: q. Circumstances
    (view, sex, age) stay the row's own. Costs one more forward and backward, of the rows that are pulled.
    Raises InputError for a pool without a known row and for values below 0.
    """

    condition: Conditioner
    labels: np.ndarray
    tau: float = 0.1
    power: float = 0.5
    noise: NoiseSchedule = STABLE_DIFFUSION

    def __post_init__(self) -> None:
        if self.tau < 0 or self.power < 0:
            raise InputError(f"class balancing: tau is {self.tau}, power is {self.power}; give 0 or more")
        if not self._edges[-1:] > 0:
            raise InputError("class balancing: no row of the pool has a known label; give labelled train rows")

    @property
    def digest(self) -> str:
        """Names pool, weights and conditioner."""
        told = (self.tau, self.power, self.noise.train_steps, self.condition.digest)
        return digest("class balancing", *told, list(self._pool.shape), tensor_bytes(self._pool))

    @cached_property
    def _pool(self) -> Tensor:
        return torch.from_numpy(np.asarray(self.labels, np.float32))

    @cached_property
    def _edges(self) -> Tensor:
        return torch.from_numpy(pool_weights(self.labels, self.power).cumsum())

    def __call__(self, noised: Noised, draw: torch.Generator) -> Tensor:
        """[B], on the network's device."""
        value = noised.out.new_zeros(len(noised.out))
        if self.tau == 0:
            return value
        other = noised.drawn(lambda rows: self.drawn(rows, draw))
        weight = self.weight(noised, other)
        rows = weight.nonzero().flatten()
        if not len(rows):  # all processes ask as often, or those that wait for each other's buffers wait for ever
            rows = rows.new_zeros(1)
        return value.index_put((rows,), weight[rows] * self._pull(noised, other, rows))

    def drawn(self, rows: int, draw: torch.Generator) -> Tensor:
        """y' [rows,K] from the pool."""
        u = torch.rand(rows, generator=draw, dtype=torch.float64) * self._edges[-1]
        return self._pool[torch.searchsorted(self._edges, u, right=True)]

    def weight(self, noised: Noised, other: Tensor) -> Tensor:
        """tau t/T (1 - J), times what makes distances those of noise estimates; [B], 0 for rows told nothing."""
        if noised.rows.labels is None:
            raise ValueError("class balancing needs the labels of the rows")
        far = (1 - similarity(noised.rows.labels, other)).to(noised.out)
        late = noised.t.to(noised.out) / self.noise.train_steps
        weight = self.tau * late * far * to_noise(noised.a.flatten(), noised.prediction)
        return torch.where(noised.dropped, torch.zeros_like(weight), weight)

    def _pull(self, noised: Noised, other: Tensor, rows: Tensor) -> Tensor:
        """Both terms, of network outputs at these rows [n] -> [n]."""
        at = rows.cpu()
        told = self.condition(other[at], [noised.rows.about[int(i)] for i in at] if noised.rows.about else ())
        h = noised.out[rows]
        again = noised.network(noised.x_t[rows], noised.t[rows], told.to(noised.condition)).float()
        here, there = (h - again.detach()).pow(2), (h.detach() - again).pow(2)
        both: Tensor = here + OTHER_WAY * there
        return both.flatten(1).mean(1)
