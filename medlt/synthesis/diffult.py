"""DiffuLT: images from noise, of label vectors that fill every tail finding (arXiv 2403.05170).

The sampler is `FromNoise`; what is the method's own is around it: two further losses of its denoiser
(medlt.diffusion.cbdm, medlt.diffusion.aid), the fill rule (medlt.synthesis.fill), and the check that drops what is out
of distribution (medlt.checks.bands), whose slots the recipe then fills again with further candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from medlt.synthesis.fill import fill
from medlt.synthesis.from_noise import FromNoise


@dataclass(kw_only=True)
class DiffuLT(FromNoise):
    """The method; parts as in `FromNoise`, its backbone trained with the two losses."""

    name: ClassVar[str] = "diffult"

    def _slots(self, need: Mapping[str, int], seed: int) -> Iterator[tuple[str, int, str]]:
        """By the fill rule; need[finding] = N_t - n_c. A finding's slots are those made for it: where images made for
        others carry it too it has fewer than its need."""
        slots = Counter[str]()
        for finding, like in fill(self.collection.table, need, seed):
            yield finding, slots[finding], like
            slots[finding] += 1
