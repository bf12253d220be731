"""Image-guided edits: a real tail image, noised a little and denoised again under its own label vector.

Meng et al., "SDEdit", arXiv 2108.01073. The label-safe end of latent fusion: what the noise leaves of a real positive
is its pathology too, and the fewer steps are run, the less can be lost, or gained.

    plan    tail finding c; parent a, a real row that has it, lends its label vector, view, sex and age; k; a seed
    noise   z_t = sqrt(abar) z_a + sqrt(1-abar) eps at the level that the last k of N steps begin at
    sample  those k steps, classifier-free guidance, then any `guides`
    decode  image = decode(un-standardised x0)

k/N is the strength; each row draws one of `strength`. A judge that keeps the best of several candidates prefers weak
edits, which are nearest to what it knows. Optionally z_a is mixed before noising with the latent of another positive b
of c, (1-m) z_a + m z_b with m ~ U(0, mixed), which adds what no single parent has; labels are mixed alike, so that a
finding of one parent alone becomes a soft label, and an unknown one stays unknown.

| column of the plan | meaning |
|---|---|
| tail_parent, head_parent, parents | uids of a and b (a again where there is no b); a list of all that were read |
| keep, share | k; m |

The others are those of `medlt.synthesis.plan` and `medlt.synthesis.from_noise`; with one seed and equal need, finding,
slot, seed and the lent label vector are the latter's, so that the same row from noise can be laid beside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from medlt.diffusion.sampler import Start, from_latent, last_steps
from medlt.rng import noise_like, numpy_generator
from medlt.synthesis.code_explainer import Latents
from medlt.synthesis.conditional import ABOUT, Conditional, Key
from medlt.synthesis.pairing import allowed
from medlt.types import InputError

COLUMNS = (
    "finding", "slot", "candidate", "tail_parent", "head_parent", "parents", "keep", "share", "seed", "fold", *ABOUT,
)  # fmt: skip
KEEP = 2
"""Which of the tensors that sampling begins with holds k."""


@dataclass(kw_only=True)
class ImageEdit(Conditional):
    """The method, with everything it needs passed in.

    latents: uids -> standardised latents [N,C,h,w]; strength: shares of the scheduler's steps in (0,1], of which each
    row draws one (few, as rows of one strength share calls); mixed: the most that a partner counts, in [0,0.5], 0
    for none. A partner is another patient with the finding, of the same fold and projection. All else as in
    `Conditional`. Raises InputError for a strength or a mixture out of range.
    """

    latents: Latents
    strength: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)
    mixed: float = 0.0
    reads_real_images: bool = field(default=True, init=False)
    name: ClassVar[str] = "edit"
    columns: ClassVar[tuple[str, ...]] = COLUMNS
    reads: ClassVar[tuple[str, ...]] = ("tail_parent", "head_parent")

    def __post_init__(self) -> None:
        if not self.strength or not all(0 < one <= 1 for one in self.strength):
            raise InputError(f"edit: strength is {self.strength}; give one or more above 0, at most 1")
        if not 0 <= self.mixed <= 0.5:
            raise InputError(f"edit: mixed is {self.mixed}; a partner counts 0 (none) to 0.5 (half)")
        super().__post_init__()
        self._sample = in_groups(self._sample, KEEP)
        self._steps = int(self.scheduler().num_inference_steps)

    def _own(self, key: Key, like: str) -> dict[str, Any]:
        rng = numpy_generator("edit", *key)
        keep = last_steps(self.strength[int(rng.integers(len(self.strength)))], self._steps)
        share = float(rng.uniform(0, self.mixed))
        others = self._partners(key[1], like) if self.mixed else []
        partner = others[int(rng.integers(len(others)))] if others else like
        said = {"tail_parent": like, "head_parent": partner, "parents": list(dict.fromkeys((like, partner)))}
        return said | {"keep": keep, "share": share if others else 0.0}

    def _partners(self, finding: str, like: str) -> list[str]:
        """Uids of the rows that `like` may be mixed with."""
        positive = self.collection.positive(finding)
        fits = allowed(self.collection.table, [like], positive)[0]
        return [uid for uid, fit in zip(positive, fits, strict=True) if fit]

    def _labels(self, rows: pd.DataFrame) -> pd.DataFrame:
        """(1-m) y_a + m y_b, unknown where either is."""
        a, b = (self._labels_of(rows, column) for column in self.reads)
        return a.where(a == b, a.mul(1 - rows["share"], axis=0) + b.mul(rows["share"], axis=0))

    def _begin(self, rows: pd.DataFrame, seeds: list[int]) -> tuple[Tensor, ...]:
        a, b = (self.latents([str(uid) for uid in rows[column]]).float() for column in self.reads)
        share = torch.tensor(rows["share"].tolist()).to(a).reshape(-1, 1, 1, 1)
        z = (1 - share) * a + share * b
        z = z if self.backbone.space == "standardised" else self.standardiser.back(z)
        return z, noise_like(seeds, z.shape[1:]), torch.tensor(rows["keep"].tolist())

    def _start(self, scheduler: Any, *begun: Tensor) -> Start:
        z, noise, keep = begun
        return from_latent(z, noise, scheduler, int(keep[0]))


def in_groups(fn: Callable[..., Tensor], by: int) -> Callable[..., Tensor]:
    """`fn` (tensors [B,...] -> tensor [B,...]) called apart for the rows of each value of tensors[by], int [B]."""

    def call(*tensors: Tensor) -> Tensor:
        value = tensors[by].cpu()
        groups = [torch.nonzero(value == one)[:, 0] for one in sorted(set(value.tolist()))]
        parts = [fn(*(tensor[rows.to(tensor.device)] for tensor in tensors)) for rows in groups]
        return torch.cat(parts)[torch.cat(groups).argsort().to(parts[0].device)]

    return call
