"""Methods that make images: each a `medlt.types.Synthesizer`, by name in METHODS."""

from typing import Any

from medlt.synthesis.diffult import DiffuLT
from medlt.synthesis.edit import ImageEdit
from medlt.synthesis.evolution import PrivateEvolution
from medlt.synthesis.from_noise import FromNoise
from medlt.synthesis.fusion import LatentFusion
from medlt.synthesis.longtail import LongtailGuidance
from medlt.synthesis.minority import MinoritySampling
from medlt.synthesis.recompose import Recomposition

KINDS = (
    LatentFusion, Recomposition, FromNoise, ImageEdit, DiffuLT, MinoritySampling, LongtailGuidance, PrivateEvolution,
)  # fmt: skip
METHODS: dict[str, Any] = {kind.name: kind for kind in KINDS}
