"""The seams every room of medlt is built on: protocols and small frozen dataclasses. Loads neither torch nor pandas.

Notation: B batch, C latent channels, h x w latent size, H x W image size, K findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

Progress: TypeAlias = "Callable[[str, int, int], None]"
"""(stage, done, total): `done` of `total` units of the stage are finished."""

Denoiser: TypeAlias = "Callable[[Tensor, int], Tensor]"
"""(x_t [B,C,h,w], t) -> estimate of x0, same shape. Hides eps / v / x0 parameterisation and the conditioning."""

Guidance: TypeAlias = "Callable[[Denoiser], Denoiser]"
"""A denoiser in, a guided denoiser out."""

Signal: TypeAlias = "Callable[[Tensor, int], Tensor]"
"""(x0 [B,C,h,w], t) -> [B]; larger means rarer."""


class InputError(ValueError):
    """A user's mistake, told in one line: what is wrong, where, and how to mend it. The command line exits 2 on it."""


@runtime_checkable
class Codec(Protocol):
    """Images to latents and back. Images are float32 [B,1,H,W] in [0,1]; H and W are multiples of `factor`."""

    channels: int
    factor: int
    digest: str

    def moments(self, images: Tensor) -> Tensor:
        """Raw statistics, mean | sd stacked, [B,2C,h,w]; a codec without spread gives 0 for the latter."""
        ...

    def latents(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """(mean + sd * noise) * scaling factor, [B,C,h,w]; without `noise` the mode."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B,1,H,W] in [0,1] from latents [B,C,h,w]."""
        ...


@dataclass(frozen=True)
class Finding:
    """What one check says of one image: `value` held against `limit`. `reason` is one readable clause."""

    check: str
    uid: str
    value: float
    limit: float
    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class Batch:
    """Synthetic images with what made them. `rows` and `labels` share the index `uid`, in the order of `images`.

    images: float32 [B,1,H,W] in [0,1]; labels: one column a finding, in [0,1] or NaN; rows: the plan rows, with
    whatever provenance the method adds as further columns.
    """

    rows: pd.DataFrame
    images: Tensor
    labels: pd.DataFrame


Check: TypeAlias = "Callable[[Batch], Sequence[Finding]]"
"""Looks at a batch, returns one Finding an image; decides nothing."""


@runtime_checkable
class Synthesizer(Protocol):
    """A method. `plan` draws all chance; `run` is a pure function of plan rows."""

    reads_real_images: bool
    guides: tuple[Any, ...]
    """What guides it beside the label, innermost first (`medlt.synthesis.guides.Guide`)."""

    def plan(self, need: Mapping[str, int], seed: int) -> pd.DataFrame:
        """Return one row a future image, indexed by uid, holding at least `finding`, `slot`, `candidate` and `seed`."""
        ...

    def run(self, rows: pd.DataFrame) -> Iterator[Batch]:
        """Yield batches of finished images, in the order of `rows`."""
        ...

    def explain(self, rows: pd.DataFrame) -> Mapping[str, Tensor]:
        """Return how `rows` came about, stage -> images [B,1,H,W] in [0,1]; empty for a method with none to show."""
        ...

    def with_guides(self, guides: tuple[Any, ...]) -> Synthesizer:
        """Return the same method with other guides."""
        ...


class GradSampleMode(StrEnum):
    """How private training takes each unit's gradient (`medlt.privacy.dpsgd.gradients`); all give the same sums."""

    MEASURE = "measure"
    """The fastest of the others for the network at hand, by the clock."""
    BOOK = "book"
    HOOKS = "hooks"
    FUNCTORCH = "functorch"
    GHOST = "ghost"
