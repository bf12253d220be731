"""DiffuLT: images from noise, of label vectors that fill every tail finding (arXiv 2403.05170).

The sampler is `FromNoise`; what is the method's own is around it: two further losses of its denoiser
(medlt.diffusion.cbdm, medlt.diffusion.aid), the fill rule (medlt.synthesis.fill), and the check that drops what is out
of distribution (medlt.checks.bands), whose slots the recipe then fills again with further candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from medlt.synthesis.fill import fill
from medlt.synthesis.from_noise import COLUMNS, FromNoise
from medlt.types import InputError


@dataclass(kw_only=True)
class DiffuLT(FromNoise):
    """The method; parts as in `FromNoise`, its backbone trained with the two losses."""

    name: ClassVar[str] = "diffult"

    def plan(self, need: Mapping[str, int], seed: int) -> pd.DataFrame:
        """need[finding] = N_t - n_c: slots of `candidates` rows each, index uid, until every finding has its need.

        A finding's slots are those made for it; where images made for others carry it too it has fewer than its need.
        All candidates of a slot share the label vector. Raises InputError as `FromNoise.plan` does.
        """
        if strange := [name for name in need if name not in self.collection.tail]:
            raise InputError(f"{self.name}: {strange[0]!r} is wanted but is not a tail finding; correct the need")
        made, slots = list[dict[str, Any]](), Counter[str]()
        for finding, like in fill(self.collection.table, need, seed):
            slot = slots[finding]
            made += [self._row((seed, finding, slot, n), like) for n in range(self.candidates)]
            slots[finding] += 1
        return pd.DataFrame(made, columns=["uid", *COLUMNS]).set_index("uid")
