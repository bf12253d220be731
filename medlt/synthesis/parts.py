"""What a run gives to a method: real rows, latents, and functions that train or load models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from medlt.config import GuideConfig
from medlt.diffusion.backbone import Backbone
from medlt.synthesis.guides import Guide
from medlt.synthesis.plan import TrainTable
from medlt.synthesis.space import Standardises
from medlt.training.runtime import Runtime

if TYPE_CHECKING:
    from medlt.sparse.embedding import SimplicialCoder


@dataclass(frozen=True, kw_only=True)
class MethodParts:
    """The parts of a method: build(settings, parts) takes those that it needs. Functions train when they are called.

    train: the train rows, with labels, patients and verifier folds; in a private run of a method that starts
    from noise, one made-up row per finding. latents: uids -> standardised latents [B,C,h,w] of real train images; it
    raises InputError in such a run. shape: (C,h,w). standardiser: between standardised latents and the codec's; decode:
    the codec's latents -> images [B,1,H,W] in [0,1]. num_candidates: candidates that a plan holds per slot.

    train_denoiser: called with a function from the backbone to extra losses, or with nothing. build_guides: guidance
    sections of a config, backbone -> guides, innermost first. learn_sparse_code: the simplicial code of latents.
    models: model name -> digest of those that make the images; the functions add theirs, a method adds its own.
    """

    train: TrainTable
    latents: Callable[[Sequence[str]], Tensor]
    shape: tuple[int, int, int]
    standardiser: Standardises
    decode: Callable[[Tensor], Tensor]
    num_candidates: int
    runtime: Runtime
    train_denoiser: Callable[..., Backbone]
    build_guides: Callable[[Sequence[GuideConfig], Backbone], tuple[Guide, ...]]
    learn_sparse_code: Callable[[], SimplicialCoder]
    models: dict[str, str] = field(default_factory=dict)
