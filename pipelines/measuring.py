"""Are the kept images like real ones, as varied, and as rare? Against held-out real images, in a judge's features."""

from __future__ import annotations

from typing import Any

import torch

from medlt.classify.train import Classifier
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.evaluation.quality import quality as table
from medlt.files import write_table
from pipelines.making import Prepared

FEWEST = 2


def quality(ready: Prepared[Any], made: Manifest) -> None:
    """quality.parquet: medlt.evaluation.quality, of kept images against the validation split.

    The features are those of the first judge, which was not fitted to the validation images (its best step was chosen
    on them) and is not what guided. Written only where both sides have images.
    """
    judge, held = next(iter(ready.judges.judges), None), ready.real.manifest.split("val")
    if not isinstance(judge, Classifier) or min(len(held.rows), len(made.rows)) < FEWEST:
        return
    real = judge.features(torch.as_tensor(images(held, judge.size, ready.real.cache))).numpy()
    synthetic = judge.features(torch.as_tensor(images(made, judge.size))).numpy()
    found = table(real, held.labels(), synthetic, list(made.rows["finding"]), ready.real.manifest.findings)
    write_table(ready.run.path("quality.parquet"), found)
