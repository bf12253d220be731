"""The AID-biased loss of DiffuLT: it keeps estimates at 1.5 times the band limit from their image in feature space.

Shao et al., "DiffuLT", NeurIPS 2024, arXiv 2403.05170. A generator helps recognition most if its images lie just
outside the real ones of a class, approximately in distribution (AID): at d_f < d <= 2 d_f. The loss aims at 1.5 d_f.

    d_t = sqrt(1 - abar_T) / sqrt(1 - abar_t) || phi(x0) - phi(x0_hat) || / unit
    L   = alpha (d_t - 1.5 d_f / unit)^2

| symbol | meaning |
|---|---|
| x0, x0_hat | clean latent, and the network's estimate of it, [B,C,h,w] |
| phi | features of latents, [B,C,h,w] -> [B,D] |
| d_f | band limit of the row's finding in the space of phi (medlt.checks.bands) |
| abar_t, T | signal share at timestep t; the last timestep |

The published x0_hat is x0 + eps - eps_theta, or n - n_hat for short. Ours is the denoiser's estimate of the clean
latent, x0 + sqrt((1 - abar) / abar) (n - n_hat), which the sampler decodes. As t falls to 0 the factor of d_t grows to
about 30 on Stable Diffusion's schedule and to 100 on the paper's, so timesteps below `low` are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from medlt.diffusion.losses import Noised
from medlt.diffusion.noise import STABLE_DIFFUSION, NoiseSchedule
from medlt.files import digest
from medlt.types import InputError

Features: TypeAlias = Callable[[Tensor], Tensor]
"""Function latents [B,C,h,w] -> [B,D], differentiable in the latents. Its weights must not require gradients."""

AIM = 1.5


def rarest(labels: Tensor, counts: Tensor) -> Tensor:
    """Return the column, int64 [B], of the rarest finding of each row [B,K], or -1 for a row without findings.

    `counts` [K] decide rarity; of equal counts the first. Labels are positive from 0.5 upward.
    """
    positive = labels.nan_to_num(0) >= 0.5
    column = torch.where(positive, counts.double(), torch.inf).argmin(1)
    return torch.where(positive.any(1), column, -1)


@dataclass(frozen=True, eq=False)
class AidLoss:
    """The loss above as an `ExtraLoss`: one value per row [B].

    phi: see Features, on the network's device; phi_digest: its digest. limits: d_f of each finding, NaN if it has none;
    counts: its train positives, which decide the rarest finding of a row. The loss uses only a `share` of batches, the
    same for all parts of a batch, and in them the rows with t from `low` up to `high` T, a known finding with a limit,
    and a condition that was not dropped; other rows have loss 0. alpha 0 switches the loss off, without drawing random
    numbers. `unit` is the unit of distances: the published one is 1; with the median of the limits, alpha does not
    depend on the scale of phi. Raises InputError for invalid values.
    """

    phi: Features = field(repr=False)
    phi_digest: str
    limits: Sequence[float]
    counts: Sequence[float]
    alpha: float = 0.02
    share: float = 0.25
    low: int = 20
    high: float = 0.6
    unit: float = 1.0
    estimate: Literal["clean", "published"] = "clean"
    noise: NoiseSchedule = STABLE_DIFFUSION

    def __post_init__(self) -> None:
        if len(self.limits) != len(self.counts):
            raise InputError(f"AID loss: {len(self.limits)} limits for {len(self.counts)} findings; give one each")
        if self.alpha < 0 or not 0 <= self.share <= 1 or not self.unit > 0:
            values = f"alpha is {self.alpha}, share is {self.share}, unit is {self.unit}"
            raise InputError(f"AID loss: {values}; give alpha from 0, a share from 0 to 1 and a unit above 0")

    @property
    def digest(self) -> str:
        """Digest of phi, limits and settings."""
        numbers = (self.alpha, self.share, self.low, self.high, self.unit, self.estimate, self.noise)
        return digest("AID", self.phi_digest, list(map(float, self.limits)), list(map(float, self.counts)), *numbers)

    def __call__(self, noised: Noised, rng: torch.Generator) -> Tensor:
        """Return the loss of each row [B], on the network's device."""
        value = noised.out.new_zeros(len(noised.out))
        if self.alpha == 0 or float(torch.rand((), generator=rng)) >= self.share:
            return value
        limit = self._limits(noised)
        last = int(self.high * self.noise.train_steps)
        used = limit.isfinite() & (noised.t >= self.low) & (noised.t <= last) & ~noised.dropped
        rows = used.nonzero().flatten()
        if not len(rows):
            return value
        gap = self.distance(noised, rows) - AIM * limit[rows] / self.unit
        return value.index_put((rows,), self.alpha * gap.square())

    def distance(self, noised: Noised, rows: Tensor) -> Tensor:
        """Return d_t of these rows [n] -> [n]."""
        x0, a = noised.x0[rows], noised.a[rows]
        with torch.no_grad():
            real = self.phi(x0)
        error = noised.estimate[rows] - x0
        if self.estimate == "published":
            error = (a / (1 - a)).sqrt() * error
        gap = torch.linalg.vector_norm(real - self.phi(x0 + error), dim=1)
        factor = (1 - self.noise.abar()[-1]).sqrt() / (1 - a.flatten()).sqrt()
        d: Tensor = factor * gap / self.unit
        return d

    def _limits(self, noised: Noised) -> Tensor:
        """Return d_f of each row's rarest finding [B]; NaN if it has none."""
        if noised.rows.labels is None:
            raise ValueError("the AID loss needs the labels of the rows")
        column = rarest(noised.rows.labels, torch.tensor(list(self.counts)))
        limits = torch.tensor([*self.limits, torch.nan])
        return limits[column].to(noised.out)
