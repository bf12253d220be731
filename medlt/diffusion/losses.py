"""The loss of a denoiser: weighted squared error under noise, and extra losses, which are plain callables.

The weight is a clamped SNR (arXiv 2303.09556, 2202.00512). Conditions are dropped at random for classifier-free
guidance (arXiv 2207.12598).

| symbol | meaning |
|---|---|
| x0, n, x_t | clean latent, noise, noisy latent, [B,C,h,w]; x_t = sqrt(a) x0 + sqrt(1 - a) n |
| t | timestep, int64 [B] |
| a | abar at t, the cumulative signal share, [B,1,1,1] |
| SNR | a / (1 - a) |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from medlt.diffusion.backbone import About
from medlt.diffusion.noise import NEARLY_ZERO, STABLE_DIFFUSION, NoiseSchedule, Prediction, target_of, x0_of
from medlt.training.settings import WHOLE, BatchPart

WeightingScheme: TypeAlias = Literal["min_snr", "uniform", "edm"]
LOG_SIGMA = (math.log(2) - 0.4, 1.0)
"""Mean and deviation of log sigma over the deviation of the data, for 64 px latents (EDM2, arXiv 2312.02696, table 6:
P_mean -0.4, P_std 1, sigma_data 0.5). The mean moves with the shift of the schedule."""


def snr_weight(a: Tensor, prediction: Prediction, low: float = 1.0, high: float = 5.0) -> Tensor:
    """Return the weight of the squared error that equals clamp(SNR, low, high) on x0, for a = abar, SNR = a / (1 - a).

    `high` is gamma of min-SNR. `low` is the truncation of arXiv 2202.00512: without it the noisiest steps, where a
    network learns the effect of the label, have no weight under v and x0 prediction. low 0 is min-SNR as published;
    with high inf the error of an eps network has weight 1.
    """
    return (snr := _snr(a)).clamp(low, high) / _unit(snr, prediction)


def edm_weight(a: Tensor, prediction: Prediction) -> Tensor:
    """Return the weight of the squared error that equals SNR + 1 on x0, that of EDM (arXiv 2206.00364, table 1).

    Latents have unit spread, so this is 1 / c_out^2 in EDM's terms, and 1 for v prediction.
    """
    return (1 + (snr := _snr(a))) / _unit(snr, prediction)


def _snr(a: Tensor) -> Tensor:
    return (a / (1 - a)).clamp_min(1e-8)


def _unit(snr: Tensor, prediction: Prediction) -> Tensor:
    """Return the squared error of the output for one of x0."""
    return {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}[prediction]


@dataclass(frozen=True)
class Rows:
    """Metadata of the images in a batch: uids, labels [B,K] with NaN = unknown, attributes."""

    uids: Sequence[str] = ()
    labels: Tensor | None = None
    about: Sequence[About] = ()

    def take(self, part: BatchPart) -> Rows:
        """Return the metadata of a part of the batch."""
        labels = None if self.labels is None else part.take(self.labels)
        return Rows(part.take(self.uids), labels, part.take(self.about))


NO_ROWS = Rows()


@dataclass(frozen=True)
class Noised:
    """Inputs and output of one forward pass of a training step, from which extra losses are computed.

    `condition` [B,...] is the network's condition after dropout; `dropped` [B] marks rows with the null condition;
    `out` [B,C,h,w] float32 is the output, with its graph; `weight` [B] is the main loss's weight of the squared error
    of `out`. Tensors are on the network's device.
    """

    network: nn.Module
    x0: Tensor
    n: Tensor
    t: Tensor
    a: Tensor
    x_t: Tensor
    condition: Tensor
    dropped: Tensor
    out: Tensor
    weight: Tensor
    prediction: Prediction
    rows: Rows
    part: BatchPart

    @property
    def estimate(self) -> Tensor:
        """The network's estimate of x0 [B,C,h,w]."""
        return x0_of(self.out, self.x_t, self.a, self.prediction)

    def draw_part(self, draw: Callable[[int], Any]) -> Any:
        """Return this part's rows of draw(number of rows of the whole batch).

        Random numbers therefore do not depend on how the batch is cut into parts.
        """
        return self.part.take(draw(len(self.x0) * self.part.of))


ExtraLoss: TypeAlias = Callable[[Noised, torch.Generator], Tensor]
"""A loss that is added to the main one: a scalar, or one value per row [B], which is averaged. Its random numbers come
from the step's generator by `Noised.draw_part`; the extra losses use that generator one after the other."""


@dataclass(frozen=True)
class NoisedLoss:
    """Weighted squared error on x0 [B,C,h,w] under conditions [B,...], plus `extra_losses`.

    Timesteps, noise and condition dropout are drawn from `rng` for the whole batch of which x0 is `part`. `offset` adds
    that multiple of one normal number per channel to the noise (offset noise; 0 is off). `scheme` "min_snr" draws all
    timesteps alike and clamps the SNR to `low`..`high` (`snr_weight`); "edm" draws sigma from a log-normal distribution
    and has the weight of EDM (`edm_weight`); "uniform" has that weight at timesteps that are all alike.
    """

    prediction: Prediction
    null: Tensor
    noise: NoiseSchedule = STABLE_DIFFUSION
    offset: float = 0.0
    low: float = 1.0
    high: float = 5.0
    extra_losses: tuple[ExtraLoss, ...] = ()
    scheme: WeightingScheme = "min_snr"

    def __call__(
        self, net: nn.Module, x0: Tensor, condition: Tensor, condition_dropout: float, rng: torch.Generator,
        rows: Rows = NO_ROWS, part: BatchPart = WHOLE,
    ) -> Tensor:  # fmt: skip
        noised = self.forward(net, x0, condition, condition_dropout, rng, rows, part)
        loss = self.each(noised).mean()
        for extra in self.extra_losses:
            loss = loss + extra(noised, rng).mean()
        return loss

    def each(self, noised: Noised) -> Tensor:
        """Return the weighted squared error of each row [B], without extra losses."""
        target = target_of(noised.x0, noised.n, noised.a, self.prediction)
        return (noised.out - target).pow(2).flatten(1).mean(1) * noised.weight

    def forward(
        self, net: nn.Module, x0: Tensor, condition: Tensor, condition_dropout: float, rng: torch.Generator,
        rows: Rows, part: BatchPart,
    ) -> Noised:  # fmt: skip
        """Draw timesteps, noise and condition dropout of the whole batch, and run the network on this part."""
        count = len(x0) * part.of
        t = part.take(self.timesteps(count, rng))
        n = part.take(torch.randn((count, *x0.shape[1:]), generator=rng))
        dropped = part.take(torch.rand(count, generator=rng) < condition_dropout)
        if self.offset:
            n = n + self.offset * part.take(torch.randn((count, x0.shape[1], 1, 1), generator=rng))
        return self.run(net, x0, n, t, condition, dropped, rows, part)

    def timesteps(self, count: int, rng: torch.Generator) -> Tensor:
        """Draw timesteps, int64 [count]: all alike, or those nearest to sigma = sqrt(1 / SNR) drawn as EDM draws it."""
        if self.scheme != "edm":
            return torch.randint(0, self.noise.train_steps, (count,), generator=rng)
        log_sigma = LOG_SIGMA[0] + LOG_SIGMA[1] * torch.randn(count, generator=rng) + math.log(self.noise.shift)
        a = self.noise.abar().clamp_min(NEARLY_ZERO)
        levels = ((1 - a) / a).log() / 2
        return torch.searchsorted((levels[1:] + levels[:-1]) / 2, log_sigma)

    def weight(self, a: Tensor) -> Tensor:
        """Return the weight of the squared error of the output at abar = a [B]."""
        if self.scheme == "min_snr":
            return snr_weight(a, self.prediction, self.low, self.high)
        return edm_weight(a, self.prediction)

    def run(
        self, net: nn.Module, x0: Tensor, n: Tensor, t: Tensor, condition: Tensor, dropped: Tensor,
        rows: Rows = NO_ROWS, part: BatchPart = WHOLE,
    ) -> Noised:  # fmt: skip
        """Add noise n at timesteps t to x0, and run the network. It draws nothing."""
        device = next(net.parameters()).device
        a = self.noise.abar()[t].reshape(-1, 1, 1, 1)
        x0, n, t, a, dropped, condition = (tensor.to(device) for tensor in (x0, n, t, a, dropped, condition))
        condition = torch.where(dropped.reshape(-1, *[1] * self.null.ndim), self.null.to(condition), condition)
        x_t = a.sqrt() * x0 + (1 - a).sqrt() * n
        out, weight = net(x_t, t, condition).float(), self.weight(a.flatten())
        return Noised(net, x0, n, t, a, x_t, condition, dropped, out, weight, self.prediction, rows, part)
