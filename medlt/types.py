"""The protocols and small frozen dataclasses that all of medlt uses. Imports neither torch nor pandas.

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
"""(x_t [B,C,h,w], t) -> estimate of x0, same shape, whatever the parameterisation (eps, v, x0) and the conditioning."""

Guidance: TypeAlias = "Callable[[Denoiser], Denoiser]"
"""Denoiser -> guided denoiser."""

Signal: TypeAlias = "Callable[[Tensor, int], Tensor]"
"""(x0 [B,C,h,w], t) -> [B]; larger means rarer."""

Localise: TypeAlias = "Callable[[Sequence[str], str], Tensor]"
"""(uids, finding) -> maps [B,h,w] in [0,1]: where the finding is. A map of NaN: this stage does not know."""


class InputError(ValueError):
    """A user's mistake, in one line: what is wrong, where, and how to fix it. The command line exits with code 2."""


@runtime_checkable
class Codec(Protocol):
    """Encoder and decoder of images. Images are float32 [B,1,H,W] in [0,1]; H and W are multiples of `factor`."""

    channels: int
    factor: int
    digest: str

    def moments(self, images: Tensor) -> Tensor:
        """Return mean and standard deviation, stacked, [B,2C,h,w]; a deterministic codec gives a deviation of 0."""
        ...

    def latents(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return (mean + sd * noise) * scaling factor, [B,C,h,w]; without `noise` the mode."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B,1,H,W] in [0,1] from latents [B,C,h,w]."""
        ...


@dataclass(frozen=True)
class CheckResult:
    """Result of one check on one image: `value` is compared with `limit`. `reason` is one readable clause."""

    check: str
    uid: str
    value: float
    limit: float
    passed: bool
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Batch:
    """Synthetic images with their plan rows. `rows` and `labels` share the index `uid`, in the order of `images`.

    images: float32 [B,1,H,W] in [0,1]; labels: one column per finding, in [0,1] or NaN; rows: the plan rows, and the
    provenance that the method adds as further columns.
    """

    rows: pd.DataFrame
    images: Tensor
    labels: pd.DataFrame


Check: TypeAlias = "Callable[[Batch], Sequence[CheckResult]]"
"""Batch -> one CheckResult per image. A check does not decide which images are kept."""


@runtime_checkable
class Synthesizer(Protocol):
    """A method. `plan` draws all random numbers; `run` is a pure function of plan rows."""

    reads_real_images: bool
    guidance: tuple[Any, ...]
    """Guidance besides the label, innermost first (`medlt.synthesis.guides.Guide`)."""

    def plan(self, targets: Mapping[str, int], seed: int) -> pd.DataFrame:
        """Return one row per future image, indexed by uid, with at least `finding`, `slot`, `candidate` and `seed`."""
        ...

    def run(self, rows: pd.DataFrame) -> Iterator[Batch]:
        """Yield batches of finished images, in the order of `rows`."""
        ...

    def explain(self, rows: pd.DataFrame) -> Mapping[str, Tensor]:
        """Return the intermediate images of `rows`, stage -> [B,1,H,W] in [0,1]; empty if the method has none."""
        ...

    def with_guidance(self, guidance: tuple[Any, ...]) -> Synthesizer:
        """Return the same method with these guides."""
        ...


class GradSampleMode(StrEnum):
    """Ways to compute the gradient of each unit in private training (`medlt.privacy.dpsgd.gradients`).

    All give the same sums.
    """

    AUTO = "auto"
    """The fastest of the others for the network at hand, by the clock."""
    BOOKKEEPING = "bookkeeping"
    HOOKS = "hooks"
    FUNCTORCH = "functorch"
    GHOST = "ghost"
