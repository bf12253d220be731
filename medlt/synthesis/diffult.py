"""DiffuLT: images from noise, with label vectors that bring every tail finding to its target (arXiv 2403.05170).

Sampling is that of `FromNoise`. The method's own parts are two extra losses of its denoiser (`medlt.diffusion.cbdm`,
`medlt.diffusion.in_band_loss`), the fill rule (`medlt.synthesis.fill`), and the check that drops images out of
distribution (`medlt.checks.bands`). The recipe fills their slots again with further candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from medlt.synthesis.fill import fill_targets
from medlt.synthesis.from_noise import FromNoise


@dataclass(kw_only=True)
class DiffuLT(FromNoise):
    """The method; arguments as in `FromNoise`, with a backbone that was trained with the two extra losses."""

    name: ClassVar[str] = "diffult"

    def _slots(self, targets: Mapping[str, int], seed: int) -> Iterator[tuple[str, int, str]]:
        """Yield slots by the fill rule; targets[finding] = N_t - n_c.

        A finding has fewer slots than its target if images made for other findings have it too.
        """
        slots = Counter[str]()
        for finding, source in fill_targets(self.train.table, targets, seed):
            yield finding, slots[finding], source
            slots[finding] += 1
