"""Validate a manifest; the same pass fills the image cache of a config's artifacts folder."""

from __future__ import annotations

from pathlib import Path

from medlt import config as configs
from medlt.data.manifest import Manifest
from medlt.data.pixels import PixelCache, read_into
from medlt.data.validate import ValidationReport, validate
from medlt.recipes._cohort import image_sizes
from medlt.store import Store
from medlt.types import InputError, Progress


def main(
    manifest: Manifest, workers: int, progress: Progress, config: configs.RunConfig | configs.EvaluateConfig
) -> ValidationReport:
    """Return the report on a manifest. `workers` threads decode each image once.

    config: its image sizes and its artifacts folder, in which the images are cached for its runs. Raises InputError for
    a config without artifacts_dir.
    """
    if config.artifacts_dir is None:
        raise InputError("--config: the config has no artifacts_dir, the folder that keeps the images; set it there")
    cache = PixelCache(Store(Path(config.artifacts_dir)), workers)
    return validate(manifest, images=read_into(cache, manifest, image_sizes(config), progress))
