"""Class-balancing loss: it pulls the network's estimate under a rare label towards that under other labels.

Qin et al., "Class-Balancing Diffusion Models", CVPR 2023, arXiv 2305.00562, with the published code's two terms:

    L = tau t/T (1 - J(y, y')) w [ mse(h, sg h') + 1/4 mse(sg h, h') ]      sg: no gradient

| symbol | meaning |
|---|---|
| y, y' | label vector of the row; one drawn from a pool of real label vectors, [K] |
| h, h' | the network's outputs for x_t under y and y', [B,C,h,w]; eps, v or x0 |
| w | weight of the squared error of h in the row's own main loss, [B] |
| J | Jaccard similarity of the findings of y and y' |
| t/T | timestep over the number of training timesteps |
| n_c, q | pool rows with finding c; a row of the pool has weight max_c n_c^-q over its findings |

With one label per row, J is 1 if y = y' (then h = h' too) and 0 otherwise. q = 0 draws y' from the training
frequencies, as in the paper's loss for training from scratch; q = 1 draws it evenly, as in its loss for fine-tuning.

The published main loss has w = 1 in eps. At equal x_t, differences of eps, v and x0 differ by a factor of abar only, so
w makes the ratio of pull and main loss that of the paper, for every prediction type and every weight of timesteps. With
q = 0 and one label per row, both losses together are stationary where the share 1 / (1 + 5/4 tau t/T) of the gap
between a class and the mean of all classes is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from medlt.diffusion.backbone import Conditioner
from medlt.diffusion.losses import Noised
from medlt.diffusion.noise import STABLE_DIFFUSION, NoiseSchedule
from medlt.files import digest, tensor_bytes
from medlt.types import InputError

FORMAT = 2  # of the digest: increase it if the same settings would train other weights

REVERSE_WEIGHT = 0.25
"""Weight of the pull on h', the paper's 1/4."""


def pool_weights(labels: np.ndarray, power: float) -> np.ndarray:
    """Return weights [N], sum 1, of rows with labels [N,K]: max_c n_c^-power over the findings of a row.

    Labels are 1, 0, NaN = unknown; positive from 0.5 upward. Rows without a finding form one more class. A row without
    any known label has weight 0.
    """
    labels = np.asarray(labels, np.float64)
    positive = np.nan_to_num(labels) >= 0.5
    known = ~np.isnan(labels).all(1)
    classes = np.column_stack([positive, ~positive.any(1) & known])
    rarity = np.maximum(classes.sum(0), 1.0) ** -power
    weight: np.ndarray = (classes * rarity).max(1)
    return weight / weight.sum() if weight.any() else weight


def similarity(y: Tensor, other: Tensor) -> Tensor:
    """Return the Jaccard similarity [B] of label vectors [B,K], over the findings known in both; soft by min and max.

    It is 1 if neither has a known finding, because no known label differs.
    """
    known = ~(y.isnan() | other.isnan())
    y, other = y.nan_to_num(0) * known, other.nan_to_num(0) * known
    union = torch.maximum(y, other).sum(1)
    return torch.where(union > 0, torch.minimum(y, other).sum(1) / union.clamp_min(1e-12), 1.0)


@dataclass(frozen=True, eq=False)
class ClassBalancing:
    """The loss above as an `ExtraLoss`: one value per row, 0 for rows with the null condition, as published.

    labels: the pool [N,K] of train rows, 1, 0 or NaN; tau: 0 switches the loss off, without drawing random numbers;
    power: q. View, sex and age of a row stay the same. The loss costs one more forward and backward pass of the rows
    whose weight is above 0. Raises InputError for a pool without a known label and for values below 0.
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
            raise InputError("class balancing: the pool has no row with a known label; give labelled train rows")

    @property
    def digest(self) -> str:
        """Digest of pool, settings and conditioner."""
        settings = (self.tau, self.power, self.noise.train_steps, self.condition.digest)
        return digest("class balancing", FORMAT, *settings, list(self._pool.shape), tensor_bytes(self._pool))

    @cached_property
    def _pool(self) -> Tensor:
        return torch.from_numpy(np.asarray(self.labels, np.float32))

    @cached_property
    def _edges(self) -> Tensor:
        return torch.from_numpy(pool_weights(self.labels, self.power).cumsum())

    def __call__(self, noised: Noised, rng: torch.Generator) -> Tensor:
        """Return the loss of each row [B], on the network's device."""
        value = noised.out.new_zeros(len(noised.out))
        if self.tau == 0:
            return value
        other = noised.draw_part(lambda rows: self.draw(rows, rng))
        weight = self.weight(noised, other)
        rows = weight.nonzero().flatten()
        if not len(rows):  # all processes must make as many forward passes, or they wait for each other for ever
            rows = rows.new_zeros(1)
        return value.index_put((rows,), weight[rows] * self._pull(noised, other, rows))

    def draw(self, rows: int, rng: torch.Generator) -> Tensor:
        """Return y' [rows,K], drawn from the pool."""
        u = torch.rand(rows, generator=rng, dtype=torch.float64) * self._edges[-1]
        return self._pool[torch.searchsorted(self._edges, u, right=True)]

    def weight(self, noised: Noised, other: Tensor) -> Tensor:
        """Return tau t/T (1 - J) w, [B]; 0 for rows with the null condition."""
        if noised.rows.labels is None:
            raise ValueError("class balancing needs the labels of the rows")
        far = (1 - similarity(noised.rows.labels, other)).to(noised.out)
        late = noised.t.to(noised.out) / self.noise.train_steps
        weight = self.tau * late * far * noised.weight
        return torch.where(noised.dropped, torch.zeros_like(weight), weight)

    def _pull(self, noised: Noised, other: Tensor, rows: Tensor) -> Tensor:
        """Return the sum of both terms for these rows [n] -> [n], of network outputs."""
        at = rows.cpu()
        condition = self.condition(other[at], [noised.rows.about[int(i)] for i in at] if noised.rows.about else ())
        h = noised.out[rows]
        h_other = noised.network(noised.x_t[rows], noised.t[rows], condition.to(noised.condition)).float()
        forward, reverse = (h - h_other.detach()).pow(2), (h.detach() - h_other).pow(2)
        both: Tensor = forward + REVERSE_WEIGHT * reverse
        return both.flatten(1).mean(1)
