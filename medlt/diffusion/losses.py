"""The loss of a denoiser: weighted squared error under noise, and further losses that are plain callables.

The weight is a clamped SNR (arXiv 2303.09556, 2202.00512); conditions are dropped at random for classifier-free
guidance (arXiv 2207.12598).

| symbol | meaning |
|---|---|
| x0, n, x_t | clean latent, noise, noisy latent, [B,C,h,w]; x_t = sqrt(a) x0 + sqrt(1 - a) n |
| t | timestep, int64 [B] |
| a | abar at t, signal share, [B,1,1,1] |
| SNR | a / (1 - a) |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from medlt.diffusion.backbone import About
from medlt.diffusion.noise import STABLE_DIFFUSION, NoiseSchedule, Prediction, target_of, x0_of
from medlt.training.settings import WHOLE, Part


def snr_weight(a: Tensor, prediction: Prediction, low: float = 1.0, high: float = 5.0) -> Tensor:
    """Weight of the squared error that makes it clamp(SNR, low, high) on x0, for a = abar and SNR = a / (1 - a).

    `high` is min-SNR's gamma; `low` is the truncation of arXiv 2202.00512, without which the noisiest steps weigh
    nothing under v or x0, and those are where a network has to learn what the label says. low 0 is min-SNR as
    published; with high inf too the error of an eps network is not weighted at all.
    """
    snr = (a / (1 - a)).clamp_min(1e-8)
    unit = {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}[prediction]
    return snr.clamp(low, high) / unit


@dataclass(frozen=True)
class Rows:
    """What is known of some images beside their latents: uids, labels [B,K] with NaN = unknown, circumstances."""

    uids: Sequence[str] = ()
    labels: Tensor | None = None
    about: Sequence[About] = ()


UNTOLD = Rows()


@dataclass(frozen=True)
class Noised:
    """One forward of a training step, all there is to know of it: what a further loss is made from.

    `condition` [B,...] is what the network was told, after drops; `dropped` [B] says which rows were told nothing;
    `out` [B,C,h,w] float32 is its answer, with its graph. Tensors are on the network's device.
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
    prediction: Prediction
    rows: Rows
    part: Part

    @property
    def estimate(self) -> Tensor:
        """The network's x0 [B,C,h,w]."""
        return x0_of(self.out, self.x_t, self.a, self.prediction)

    def drawn(self, draw: Callable[[int], Any]) -> Any:
        """This part's rows of draw(rows of the whole batch): so a draw does not depend on how the batch was cut."""
        return self.part.take(draw(len(self.x0) * self.part.of))


Extra: TypeAlias = Callable[[Noised, torch.Generator], Tensor]
"""A further loss, added to the first: a scalar, or one value a row [B], which is averaged. Its chance comes from the
step's generator, through `Noised.drawn`; each extra finds it where the one before it left it."""


@dataclass(frozen=True)
class NoisedLoss:
    """Weighted squared error on x0 [B,C,h,w] under conditions [B,...], plus `extra` losses.

    Timesteps, noise and drops come from `draw`, for the whole batch of which x0 is `part`. `offset` adds that much of
    one normal number a channel to the noise (offset noise; 0 is off). `low` and `high` clamp the SNR (`snr_weight`).
    """

    prediction: Prediction
    null: Tensor
    noise: NoiseSchedule = STABLE_DIFFUSION
    offset: float = 0.0
    low: float = 1.0
    high: float = 5.0
    extra: tuple[Extra, ...] = ()

    def __call__(
        self, net: nn.Module, x0: Tensor, condition: Tensor, drop: float, draw: torch.Generator,
        rows: Rows = UNTOLD, part: Part = WHOLE,
    ) -> Tensor:  # fmt: skip
        noised = self.forward(net, x0, condition, drop, draw, rows, part)
        loss = self.each(noised).mean()
        for extra in self.extra:
            loss = loss + extra(noised, draw).mean()
        return loss

    def each(self, noised: Noised) -> Tensor:
        """Weighted squared error of each row by itself [B], without further losses."""
        target = target_of(noised.x0, noised.n, noised.a, self.prediction)
        error = (noised.out - target).pow(2).flatten(1).mean(1)
        return error * snr_weight(noised.a.flatten(), self.prediction, self.low, self.high)

    def forward(
        self, net: nn.Module, x0: Tensor, condition: Tensor, drop: float, draw: torch.Generator, rows: Rows, part: Part
    ) -> Noised:
        """Draw, add noise, and ask the network."""
        count = len(x0) * part.of
        t = part.take(torch.randint(0, self.noise.train_steps, (count,), generator=draw))
        n = part.take(torch.randn((count, *x0.shape[1:]), generator=draw))
        dropped = part.take(torch.rand(count, generator=draw) < drop)
        if self.offset:
            n = n + self.offset * part.take(torch.randn((count, x0.shape[1], 1, 1), generator=draw))
        a = self.noise.abar()[t].reshape(-1, 1, 1, 1)
        where = next(net.parameters()).device
        x0, n, t, a, dropped, condition = (tensor.to(where) for tensor in (x0, n, t, a, dropped, condition))
        said = torch.where(dropped.reshape(-1, *[1] * self.null.ndim), self.null.to(condition), condition)
        x_t = a.sqrt() * x0 + (1 - a).sqrt() * n
        out = net(x_t, t, said).float()
        return Noised(net, x0, n, t, a, x_t, said, dropped, out, self.prediction, rows, part)
