"""Converts a folder of radiographs to images and a manifest, with a reason for every file that is not converted."""

from medlt.data.convert.places import Places
from medlt.data.convert.presets import PRESETS
from medlt.data.convert.run import convert
from medlt.data.convert.settings import ConversionSettings

__all__ = ["PRESETS", "ConversionSettings", "Places", "convert"]
