"""What a run gives to a method, and the guard around the method of a plug-in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor

from medlt.config import GuideConfig
from medlt.diffusion.backbone import Backbone
from medlt.plugins import METHODS, PluginError
from medlt.synthesis.guides import Guide
from medlt.synthesis.plan import TrainTable
from medlt.synthesis.space import Standardises
from medlt.training.runtime import Runtime
from medlt.types import Batch, Synthesizer

if TYPE_CHECKING:
    from medlt.sparse.embedding import SimplicialCoder


@dataclass(frozen=True, kw_only=True)
class MethodParts:
    """The parts of a method: build(settings, parts) takes those that it needs. Functions train when they are called.

    train: the train rows, with labels, patients and verifier folds; in a private run of a method that starts
    from noise, one made-up row per finding. latents: uids -> standardised latents [B,C,h,w] of real train images; it
    raises InputError in such a run. pixels: uids -> real train images [B,1,S,S] in [0,1] at the size of the run; it
    raises InputError in every private run. shape: (C,h,w). standardiser: between standardised latents and the codec's;
    decode: the codec's latents -> images [B,1,H,W] in [0,1]. num_candidates: candidates that a plan holds per slot.

    train_denoiser: called with a function from the backbone to extra losses, or with nothing. build_guides: guidance
    sections of a config, backbone -> guides, innermost first. learn_sparse_code: the simplicial code of latents.
    models: model name -> digest of those that make the images; the functions add theirs, a method adds its own.
    """

    train: TrainTable
    latents: Callable[[Sequence[str]], Tensor]
    pixels: Callable[[Sequence[str]], Tensor]
    shape: tuple[int, int, int]
    standardiser: Standardises
    decode: Callable[[Tensor], Tensor]
    num_candidates: int
    runtime: Runtime
    train_denoiser: Callable[..., Backbone]
    build_guides: Callable[[Sequence[GuideConfig], Backbone], tuple[Guide, ...]]
    learn_sparse_code: Callable[[], SimplicialCoder]
    models: dict[str, str] = field(default_factory=dict)


PLANNED = ("finding", "slot", "candidate", "seed", "fold", "view", "label_source", "parents")
"""Columns of a plan, index uid. `label_source`: the train row that gave the labels; `parents`: those that gave pixels;
`fold`: the fold of both; `slot` and `candidate`: numbers from 0 per finding and per slot."""


class PluginMethod:
    """A plug-in's method, whose plan and images are validated. See `medlt.types.Synthesizer`."""

    def __init__(self, name: str, method: Synthesizer) -> None:
        self.name, self.method = name, method
        self.reads_real_images, self.guidance = bool(method.reads_real_images), tuple(method.guidance)

    def plan(self, targets: Mapping[str, int], seed: int) -> pd.DataFrame:
        """Return the method's plan. Raises PluginError if it lacks a column, a uid or a wanted image."""
        with METHODS.guarded(self.name, "failed"):
            plan = self.method.plan(targets, seed)
            missing = [name for name in PLANNED if name not in plan]
            self._require(not missing, f"plans no column {', '.join(missing)}")
            self._require(
                plan.index.name == "uid" and plan.index.is_unique, "plans rows without an index of unique uids"
            )
            slots = plan.groupby("finding")["slot"].nunique().to_dict()
            self._require(
                slots == {name: n for name, n in targets.items() if n}, f"plans {slots} images of {dict(targets)}"
            )
        return plan

    def run(self, rows: pd.DataFrame) -> Iterator[Batch]:
        """Yield the method's batches. Raises PluginError for images, labels or rows that are not those of `rows`."""
        done = 0
        with METHODS.guarded(self.name, "failed"):
            for batch in self.method.run(rows):
                uids = list(rows.index[done : done + len(batch.images)])
                self._require(
                    list(batch.rows.index) == list(batch.labels.index) == uids, "returns rows in another order"
                )
                fits = batch.images.ndim == 4 and batch.images.shape[1] == 1 and batch.images.is_floating_point()
                self._require(fits, f"returns images {list(batch.images.shape)}, not float [B,1,H,W]")
                done += len(uids)
                yield batch
            self._require(done == len(rows), f"returns {done} images of {len(rows)}")

    def explain(self, rows: pd.DataFrame) -> Mapping[str, Tensor]:
        """Return the method's intermediate images."""
        with METHODS.guarded(self.name, "failed"):
            return self.method.explain(rows)

    def with_guidance(self, guidance: tuple[Any, ...]) -> PluginMethod:
        """Return the same method with these guides."""
        with METHODS.guarded(self.name, "failed"):
            return PluginMethod(self.name, self.method.with_guidance(guidance))

    def _require(self, fits: bool, failure: str) -> None:
        if not fits:
            raise PluginError(f"{METHODS.where(self.name)} {failure}; correct the package")
