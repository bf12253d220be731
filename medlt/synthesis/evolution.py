"""Private Evolution: variations of images that noisy votes of patients chose.

Lin et al., "Differentially Private Synthetic Data via Foundation Model APIs 1: Images", arXiv 2305.15560.

    generation 0   n images from noise for each finding (RANDOM_API)
    vote           each patient votes for the nearest images; noise is added (`medlt.privacy.votes`)
    generation t   n images of each finding: draw a winner in proportion to its noisy votes, add noise at the level of
                   the last k of N steps, denoise it under the finding (VARIATION_API: SDEdit, arXiv 2108.01073)

The images of a run are one more generation: each row of the plan draws a winner of the last vote and varies it. So a
row depends on its seed, the last population and the last noisy votes. No patient is read here.

| column of the plan | meaning |
|---|---|
| winner | number of the image in the last population that is varied |

The other columns are those of `medlt.synthesis.from_noise`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medlt.diffusion.sampler import Start, from_latent, last_steps
from medlt.rng import noise_like, numpy_generator
from medlt.synthesis.conditional import Conditional, Key
from medlt.synthesis.from_noise import COLUMNS as FROM_NOISE
from medlt.types import InputError


@dataclass(kw_only=True)
class PrivateEvolution(Conditional):
    """The next generation.

    population: finding -> latents [n,C,h,w] in the backbone's space; shares: finding -> probability of each, float
    [n]; strength: k/N, in (0,1]. The other arguments are as in `Conditional`. Raises InputError for a strength out of
    range.
    """

    population: Mapping[str, Tensor]
    shares: Mapping[str, np.ndarray]
    strength: float = 0.4
    name: ClassVar[str] = "evolution"
    columns: ClassVar[tuple[str, ...]] = (*FROM_NOISE, "winner")
    reads: ClassVar[tuple[str, ...]] = ("label_source",)

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise InputError(f"evolution: strength is {self.strength}; give a value above 0 and at most 1")
        super().__post_init__()
        self._steps = last_steps(self.strength, int(self.scheduler().num_inference_steps))

    def _own_columns(self, key: Key, source: str) -> dict[str, Any]:
        share = self.shares[key[1]]
        winner = int(numpy_generator("winner", *key).choice(len(share), p=share))
        return {"label_source": source, "parents": [], "winner": winner}

    def _start_tensors(self, rows: pd.DataFrame, seeds: list[int]) -> tuple[Tensor, ...]:
        chosen = rows[["finding", "winner"]].itertuples(index=False, name=None)
        z = torch.stack([self.population[finding][winner] for finding, winner in chosen])
        return z, noise_like(seeds, z.shape[1:])

    def _start(self, scheduler: Any, *tensors: Tensor) -> Start:
        z, noise = tensors
        return from_latent(z, noise, scheduler, self._steps)
