"""A hospital's folder of radiographs to images, a manifest and a reason for everything that is not in it."""

from medlt.data.convert.presets import PRESETS
from medlt.data.convert.run import convert
from medlt.data.convert.settings import Settings

__all__ = ["PRESETS", "Settings", "convert"]
