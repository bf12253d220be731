"""A small collection with random latents, a random coder, a linear denoiser: every part is real, none is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from medlt.diffusion.schedulers import factory
from medlt.diffusion.signals import between
from medlt.localise.measure import Localisation
from medlt.localise.trust import Trust
from medlt.rng import numpy_generator, seed_of, torch_generator
from medlt.sparse.embedding import SimplicialCoder
from medlt.synthesis import METHODS
from medlt.synthesis.composite import Difference, StartDecoder
from medlt.synthesis.edit import ImageEdit
from medlt.synthesis.evolution import PrivateEvolution
from medlt.synthesis.from_noise import FromNoise
from medlt.synthesis.fusion import LatentFusion
from medlt.synthesis.longtail import LongtailGuide
from medlt.synthesis.minority import JepaGuide, MinorityGuide
from medlt.synthesis.plan import PlanSettings, TrainTable
from medlt.synthesis.recompose import RecomposeSettings, Recomposition
from medlt.testing import label_backbone

FINDINGS = ("Effusion", "Mass", "Hernia", "Pleural Other", "No Finding")
TAIL = ("Hernia", "Pleural Other")


def collection(n: int = 60, seed: int = 0) -> TrainTable:
    """Tail findings in every sixth row, two rows a patient, three patient folds."""
    rng = numpy_generator("collection", seed)
    table = pd.DataFrame((rng.random((n, 5)) < 0.4).astype(float), columns=list(FINDINGS))
    table["Hernia"], table["Pleural Other"] = (np.arange(n) % 6 == 0) * 1.0, (np.arange(n) % 7 == 1) * 1.0
    table["No Finding"] = (table[list(FINDINGS[:-1])].sum(axis=1) == 0) * 1.0
    table["patient_id"] = [f"p{i // 2}" for i in range(n)]
    table["fold"] = [i // 2 % 3 for i in range(n)]
    table.index = pd.Index([f"u{i:03d}" for i in rng.permutation(n)], name="uid")
    return TrainTable(table, FINDINGS, TAIL)


def latents(uids: Sequence[str]) -> Tensor:
    """Standardised latents [N,2,8,8], a function of the uid."""
    return torch.stack([torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(seed_of(u))) for u in uids])


class Scale:
    """A standardiser of known mean and spread."""

    def to(self, z: Tensor) -> Tensor:
        return (z - 0.25) / 2.0

    def back(self, z: Tensor) -> Tensor:
        return z * 2.0 + 0.25


def answer(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """Shrinks towards a level the condition sets; convolves, so that batching could matter."""
    level = 0.1 * condition.sum(1)[:, None, None, None]
    kernel = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(5)) * 0.2
    return torch.nn.functional.conv2d(x, kernel, padding=1) * (1 - t[:, None, None, None] / 2000) + level


def decode(z: Tensor) -> Tensor:
    """Images [B,1,16,16] in [0,1]."""
    return torch.nn.functional.interpolate(z.mean(1, keepdim=True), scale_factor=2.0).sigmoid()


def pixels(uids: Sequence[str]) -> Tensor:
    """Real images [N,1,16,16] of 8 bits, a function of the uid."""
    made = [torch.randint(0, 256, (1, 16, 16), generator=torch.Generator().manual_seed(seed_of(u))) for u in uids]
    return torch.stack(made) / 255


def difference() -> Difference:
    """Difference decoding with these pixels."""
    return Difference(pixels, StartDecoder(decode), feather=0.1)


def blob(uids: Sequence[str], finding: str) -> Tensor:
    """Maps [N,8,8] with a maximum of 1 at a place that depends on the uid."""
    row, column = torch.tensor([[seed_of(u, finding) % 5, seed_of(u) % 6] for u in uids]).view(-1, 2).T + 1
    axis = torch.arange(8)
    away = (axis[:, None] - row[:, None, None]) ** 2 + (axis[None] - column[:, None, None]) ** 2
    return (-away / 8).exp()


def guidance_classifier(images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B,K] and of three members [3,B,K]: quadratic in a few pixels, so that the members' spread has a slope."""
    pixels = images[:, 0, ::4, ::4].flatten(1)
    weights = torch.randn(4, pixels.shape[1], len(FINDINGS), generator=torch.Generator().manual_seed(7)) * 0.3
    logits = (pixels - 0.5) @ weights + (pixels - 0.3).square() @ weights.roll(1, 0)
    return logits[0], logits[1:]


def features(z: Tensor) -> Tensor:
    """Smooth features [B,6] of latents, different in every direction."""
    weights = torch.randn(z[0].numel(), 6, generator=torch.Generator().manual_seed(3)) * 0.1
    return (z.flatten(1) @ weights).tanh()


EVERY_STEP: dict[str, Any] = {"every": 1, "window": (0.0, 1.0)}
GUIDES: dict[str, Callable[..., Any]] = {
    "minority": lambda **changed: MinorityGuide(**(EVERY_STEP | changed)),
    "features": lambda **changed: MinorityGuide(**(EVERY_STEP | {"distance": between(features)} | changed)),
    "jepa": lambda **changed: JepaGuide(**(EVERY_STEP | {"features": features} | changed)),
    "longtail": lambda **changed: LongtailGuide(
        **(EVERY_STEP | {"decode": decode, "guidance_classifier": guidance_classifier} | changed)
    ),
}
"""A builder of every guide, at work at every step of the sampler by default."""


def conditional() -> dict[str, Any]:
    """The arguments of every conditional method, on the train rows above."""
    return {
        "train": collection(),
        "backbone": label_backbone(answer, len(FINDINGS)),
        "standardiser": Scale(),
        "decode": decode,
        "scheduler": factory("ddim", 10),
        "num_candidates": 2,
        "batch_size": 5,
    }


def from_noise(kind: type[FromNoise] = FromNoise, **changed: Any) -> FromNoise:
    """FromNoise, or a method that is a kind of it."""
    return kind(**(conditional() | {"shape": (2, 8, 8)} | changed))


def edit(**changed: Any) -> ImageEdit:
    """Edits of three strengths, half of them mixed with a partner."""
    own = {"latents": latents, "strength": (0.2, 0.4, 0.5), "mixed": 0.5, "difference": difference()}
    return ImageEdit(**(conditional() | own | changed))


def evolution(**changed: Any) -> PrivateEvolution:
    """Variations of a population of three images per finding, of which the last got no votes."""
    population = {name: torch.randn(3, 2, 8, 8, generator=torch_generator("population", name)) for name in FINDINGS}
    shares = {name: np.array([0.75, 0.25, 0.0]) for name in FINDINGS}
    parts = conditional() | {"population": population, "shares": shares, "strength": 0.5}
    return PrivateEvolution(**(parts | changed))


def encode(images: Tensor) -> Tensor:
    """Codec latents [B,2,8,8] of images [B,1,16,16]; `decode` is its inverse but for the detail in a cell."""
    z = torch.nn.functional.avg_pool2d(images, 2).clamp(0.02, 0.98).logit()
    return torch.cat([z, z], 1)


def recompose(**changed: Any) -> Recomposition:
    """Recomposition that pastes and refines; the settings of a plan are given by their names."""
    chosen = {"variant": "paste", "num_candidates": 2}
    chosen |= {name: changed.pop(name) for name in list(changed) if name in RecomposeSettings.__dataclass_fields__}
    parts = conditional() | {"strength": 0.5, "encode": encode, "difference": difference(), "size": 16}
    parts |= {"where": Localisation(Trust({"image": blob}, (8, 8)))} | changed
    parts.pop("num_candidates")
    return Recomposition(settings=RecomposeSettings(**chosen), **parts)


@pytest.fixture
def methods(build: Callable[..., LatentFusion]) -> dict[str, Callable[..., Any]]:
    """A builder of every method in METHODS, by name."""
    guided = {name: (GUIDES[name](),) for name in ("minority", "longtail")}
    sampling = {
        name: partial(from_noise, kind, **({"guidance": guided[name]} if name in guided else {}))
        for name, kind in METHODS.items()
        if issubclass(kind, FromNoise)
    }
    return {"fusion": build, "recompose": recompose, "edit": edit, "evolution": evolution, **sampling}


@pytest.fixture
def guides() -> dict[str, Callable[..., Any]]:
    """A builder of every guide, by name."""
    return GUIDES


@pytest.fixture
def build() -> Callable[..., LatentFusion]:
    """LatentFusion on the collection above; keyword arguments replace its parts."""

    def make(**changed: Any) -> LatentFusion:
        coder = SimplicialCoder(2, len(FINDINGS), groups=2, vocabulary=4, width=8, seed=1)
        parts: dict[str, Any] = {
            "train": collection(),
            "coder": coder,
            "latents": latents,
            "standardiser": Scale(),
            "backbone": label_backbone(answer, len(FINDINGS)),
            "decode": decode,
            "scheduler": factory("ddim", 20),
            "plan_settings": PlanSettings(num_candidates=2),
            "strength": 0.15,
            "batch_size": 5,
            "difference": difference(),
        }
        return LatentFusion(**(parts | changed))

    return make
