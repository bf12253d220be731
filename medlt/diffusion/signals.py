"""Signals: scalar fields over clean estimates; larger means rarer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medlt.types import Denoiser, Signal


def minority(denoiser: Denoiser, noise: Callable[[Tensor], Tensor], abar: Tensor, t_probe: int) -> Signal:
    """Distance between x0 and its own re-noised, re-denoised copy: rare content is pulled back to the modes.

    `noise` gives unit noise of the shape of its argument; `t_probe` is the timestep noised to. The gradient is taken
    through x0 alone. Um and Ye, arXiv 2301.12334, Eq. 7, in the latent form of arXiv 2410.07838.
    """

    def signal(x0: Tensor, t: int) -> Tensor:
        z = abar[t_probe].sqrt() * x0.detach() + (1 - abar[t_probe]).sqrt() * noise(x0)
        gap: Tensor = x0 - denoiser(z, t_probe).detach()
        distance: Tensor = torch.linalg.vector_norm(gap.flatten(1), dim=1)
        return distance

    return signal
