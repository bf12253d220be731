"""Methods that make images: each a `medlt.types.Synthesizer`, by name in METHODS."""

from medlt.synthesis.from_noise import FromNoise
from medlt.synthesis.fusion import LatentFusion

METHODS = {"fusion": LatentFusion, "noise": FromNoise}
