"""Image-guided edits: add a little noise to a real tail image and denoise it under its own label vector.

Meng et al., "SDEdit", arXiv 2108.01073. Of all methods it changes a real positive least, so its labels are the safest.
The fewer steps are run, the less of the finding is lost and the less is new.

    plan    tail finding c; parent a, a real row with c, and its label vector, view, sex and age; k; a seed
    noise   z_t = sqrt(abar) z_a + sqrt(1-abar) eps at the noise level of the last k of N steps
    sample  these k steps, with classifier-free guidance, then the `guidance`
    decode  image = x_a + decode(un-standardised x0) - decode(un-standardised z_a)

x_a are the pixels of a, so what the codec loses stays (`medlt.synthesis.composite`); without `difference` the image is
decode(x0) alone. k/N is the strength; each row draws one of `strength`. If the best of several candidates is kept, the
verifier prefers weak edits, which are nearest to its training images. Optionally z_a is mixed, before noising, with the
latent of another positive b of c: (1-m) z_a + m z_b with m ~ U(0, mixed), which no single parent could give. Pixels and
labels are mixed in the same way, so a finding of one parent alone becomes a soft label; an unknown label stays unknown.

| column of the plan | meaning |
|---|---|
| tail_parent, head_parent, parents | uids of a and b (a again without b); a list of all real rows that are read |
| last_steps, mixing_weight | k; m |

The other columns are those of `medlt.synthesis.plan` and `medlt.synthesis.from_noise`. For equal seed and targets,
finding, slot, seed and label vector are those of `from_noise`, so that both methods can be compared row by row.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medlt.diffusion.sampler import Start, from_latent, last_steps
from medlt.localise.code_explainer import Latents
from medlt.rng import noise_like, numpy_generator
from medlt.synthesis.composite import Difference, difference_decoded
from medlt.synthesis.conditional import ABOUT, Conditional, Key
from medlt.synthesis.pairing import PairRule, pair_rule
from medlt.types import InputError

COLUMNS = (
    "finding", "slot", "candidate", "tail_parent", "head_parent", "parents",
    "last_steps", "mixing_weight", "seed", "fold", *ABOUT,
)  # fmt: skip
LAST_STEPS = 2
"""Position of k among the tensors of `_start_tensors`."""


@dataclass(kw_only=True)
class ImageEdit(Conditional):
    """The method.

    latents: uids -> standardised latents [N,C,h,w]; difference: real pixels, None for decoded ones alone; strength:
    shares of the scheduler's steps in (0,1], of which each row draws one (rows of one strength share calls, so give
    few); mixed: largest weight of a partner, in [0,0.5], 0 for
    none. A partner is a row of another patient with the finding, in the same fold and projection. The other arguments
    are as in `Conditional`. Raises InputError for a strength or a weight out of range.
    """

    latents: Latents
    strength: tuple[float, ...] = (0.2, 0.3, 0.4)
    mixed: float = 0.0
    difference: Difference | None = None
    reads_real_images: bool = field(default=True, init=False)
    _rules: dict[str, tuple[list[str], PairRule]] = field(default_factory=dict, init=False, repr=False, compare=False)
    name: ClassVar[str] = "edit"
    columns: ClassVar[tuple[str, ...]] = COLUMNS
    reads: ClassVar[tuple[str, ...]] = ("tail_parent", "head_parent")

    def __post_init__(self) -> None:
        if not self.strength or not all(0 < one <= 1 for one in self.strength):
            raise InputError(f"edit: strength is {self.strength}; give one or more values above 0 and at most 1")
        if not 0 <= self.mixed <= 0.5:
            raise InputError(f"edit: mixed is {self.mixed}; give 0 (no partner) to 0.5 (half)")
        super().__post_init__()
        self._sample = call_by_group(self._sample, LAST_STEPS)
        self._steps = int(self.scheduler().num_inference_steps)

    def _own_columns(self, key: Key, source: str) -> dict[str, Any]:
        rng = numpy_generator("edit", *key)
        steps = last_steps(self.strength[int(rng.integers(len(self.strength)))], self._steps)
        weight = float(rng.uniform(0, self.mixed))
        others = self._partners(key[1], source) if self.mixed else []
        partner = others[int(rng.integers(len(others)))] if others else source
        parents = {"tail_parent": source, "head_parent": partner, "parents": list(dict.fromkeys((source, partner)))}
        return parents | {"last_steps": steps, "mixing_weight": weight if others else 0.0}

    def _partners(self, finding: str, source: str) -> list[str]:
        """Return uids of the rows that `source` may be mixed with."""
        if finding not in self._rules:
            positive = self.train.positive(finding)
            self._rules[finding] = positive, pair_rule(self.train.table, positive, positive)
        positive, rule = self._rules[finding]
        own = bisect_left(positive, source)
        return [positive[i] for i in np.flatnonzero(rule[own : own + 1][0])]

    def _labels(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return (1-m) y_a + m y_b, unknown if one of them is."""
        a, b = (self._labels_of(rows, column) for column in self.reads)
        return a.where(a == b, a.mul(1 - rows["mixing_weight"], axis=0) + b.mul(rows["mixing_weight"], axis=0))

    def _mixed(self, rows: pd.DataFrame, of: Callable[[Sequence[str]], Tensor]) -> Tensor:
        """Return (1-m) a + m b of the tensors [B,...] that `of` has for the parents."""
        a, b = (of([str(uid) for uid in rows[column]]).float() for column in self.reads)
        weight = torch.tensor(rows["mixing_weight"].tolist()).to(a).reshape(-1, 1, 1, 1)
        return (1 - weight) * a + weight * b

    def _images(self, rows: pd.DataFrame, labels: pd.DataFrame) -> Tensor:
        refined = super()._images(rows, labels)
        if self.difference is None:
            return refined
        keys = list(rows[[*self.reads, "mixing_weight"]].itertuples(index=False, name=None))
        start = self.difference.starts(keys, self.standardiser.back(self._mixed(rows, self.latents)))
        return difference_decoded(self._mixed(rows, self.difference.pixels), refined, start, torch.ones(()))

    def _start_tensors(self, rows: pd.DataFrame, seeds: list[int]) -> tuple[Tensor, ...]:
        z = self._mixed(rows, self.latents)
        z = z if self.backbone.space == "standardised" else self.standardiser.back(z)
        return z, noise_like(seeds, z.shape[1:]), torch.tensor(rows["last_steps"].tolist())

    def _start(self, scheduler: Any, *tensors: Tensor) -> Start:
        z, noise, steps = tensors
        return from_latent(z, noise, scheduler, int(steps[0]))


def call_by_group(fn: Callable[..., Tensor], by: int) -> Callable[..., Tensor]:
    """Return `fn` (tensors [B,...] -> tensor [B,...]) with one call for each value of tensors[by], int [B]."""

    def call(*tensors: Tensor) -> Tensor:
        value = tensors[by].cpu()
        groups = [torch.nonzero(value == one)[:, 0] for one in sorted(set(value.tolist()))]
        parts = [fn(*(tensor[rows.to(tensor.device)] for tensor in tensors)) for rows in groups]
        return torch.cat(parts)[torch.cat(groups).argsort().to(parts[0].device)]

    return call
