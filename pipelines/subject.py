"""What is under audit: a finished run with its images, its denoiser, its patients, and patients it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.cache import Latents
from medlt.diffusion.finetune import LabelledLatents
from medlt.runs import Finished
from pipelines import denoising, encoding, learning, tuning
from pipelines.stages import Collection, Progress, quiet

HELD = ("val", "test")


@dataclass(frozen=True)
class Asked:
    """What an audit shall do beside the usual."""

    shadows: int = 0
    canaries: int = 0
    false_positive: float = 0.01
    show_pairs: bool = False
    seed: int = 0
    embedding_steps: int = 250


@dataclass(frozen=True)
class Unknown:
    """A part of an audit that could not be done, and why."""

    reason: str
    passed: bool | None = None

    @property
    def sentence(self) -> str:
        """The reason, as the report shows it."""
        return f"Cannot conclude: {self.reason}"


@dataclass(frozen=True)
class Subject:
    """A finished run under audit: members are its train rows, the others its validation and test rows."""

    run: Finished
    real: Collection
    made: Manifest
    asked: Asked
    progress: Progress

    @cached_property
    def latents(self) -> Latents:
        """All real images through the run's codec, as the run left them."""
        return learning.latents(self.run, self.real, encoding.codec(self.run, self.real, quiet), self.progress)

    @cached_property
    def backbone(self) -> Backbone:
        """The run's denoiser, as it was saved."""
        return denoising.found(self.run, self.real, self.latents)

    @cached_property
    def held(self) -> Manifest:
        """Real rows of patients that the run was not trained on."""
        return self.real.manifest.where(self.real.manifest.rows["split"].isin(HELD))

    def pixels(self, part: Manifest, size: int | None = None) -> Tensor:
        """Images uint8 [N,1,S,S], of the run's size unless said."""
        return images(part, size or self.run.config.size, self.real.cache)

    @cached_property
    def rows(self) -> tuple[LabelledLatents, np.ndarray]:
        """All real rows as a denoiser is shown them, members first, and which are members, bool [N]."""
        splits = [name for name in ("train", *HELD) if len(self.real.manifest.split(name).rows)]
        parts = [tuning.data(self.real, self.latents, split, self.backbone.space) for split in splits]
        member = np.repeat([split == "train" for split in splits], [len(part.uids) for part in parts])
        return tuning.joined(parts), member
