"""Conditional sampling: images from noise alone, under the label vector of a real train row.

Methods that only guide this sampler or choose its label vectors are small subclasses. All timesteps are run from unit
noise; no pixel of a real image is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from medlt.diffusion.sampler import Start, from_noise
from medlt.rng import noise_like
from medlt.synthesis.conditional import ABOUT, Conditional, Key

COLUMNS = ("finding", "slot", "candidate", "label_source", "parents", "seed", "fold", *ABOUT)


@dataclass(kw_only=True)
class FromNoise(Conditional):
    """The method.

    shape: (C,h,w) of the backbone's latents; initial_noise_scale, skip_steps: as in
    `medlt.diffusion.sampler.from_noise`, which refuses contradictory values; other arguments are as in `Conditional`.
    """

    shape: tuple[int, int, int]
    initial_noise_scale: float = 1.0
    skip_steps: int = 0
    name: ClassVar[str] = "noise"
    columns: ClassVar[tuple[str, ...]] = COLUMNS
    reads: ClassVar[tuple[str, ...]] = ("label_source",)

    def __post_init__(self) -> None:
        self._start(self.scheduler(), torch.zeros(1, *self.shape))
        super().__post_init__()

    def _own_columns(self, key: Key, source: str) -> dict[str, Any]:
        return {"label_source": source, "parents": []}

    def _start_tensors(self, rows: pd.DataFrame, seeds: list[int]) -> tuple[Tensor, ...]:
        return (noise_like(seeds, self.shape),)

    def _start(self, scheduler: Any, *tensors: Tensor) -> Start:
        return from_noise(tensors[0], scheduler, self.initial_noise_scale, self.skip_steps)
