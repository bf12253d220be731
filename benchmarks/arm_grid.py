"""One picture of the added images of every source of an experiment, as its classifier reads them.

    python benchmarks/arm_grid.py CONFIG PICTURE.png [--count 4]

CONFIG is that of a finished `medlt evaluate`. Rows: the real tail images, then each source; columns: the first images
of each tail finding, without selection.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from medlt import config as configs
from medlt.files import atomic
from medlt.recipes._cohort import open_cohort
from medlt.recipes._setup import opened
from medlt.recipes._sources import open_sources
from medlt.training.runtime import silent

GAP = 2


def row(parts: list[Tensor], count: int) -> np.ndarray:
    """Return the images [n,1,S,S] of each finding beside each other, uint8 [S,W]."""
    size = parts[0].shape[-1]
    padded = [
        torch.cat([one, one.new_zeros(count - len(one), 1, size, size)]) if len(one) < count else one for one in parts
    ]
    cells = [np.pad(image.numpy(), GAP, constant_values=0) for part in padded for image in part[:count, 0]]
    return np.concatenate(cells, axis=1)


def main() -> None:
    """Write the picture."""
    read = argparse.ArgumentParser()
    read.add_argument("config", type=Path)
    read.add_argument("picture", type=Path)
    read.add_argument("--count", type=int, default=4)
    args = read.parse_args()
    config = configs.load_verdict(args.config)
    size = config.classifier.size
    with opened(config, silent) as run:
        cohort = open_cohort(run)
        sources = open_sources(config, cohort, silent)
        tail = {name: cohort.train.rows.index[cohort.train.rows[name] == 1][: args.count] for name in cohort.tail}
        rows = [row([cohort.images(cohort.manifest, size, list(uids)) for uids in tail.values()], args.count)]
        for source in sources.values():
            made = [source.kept.index[source.kept["finding"] == name][: args.count] for name in cohort.tail]
            rows.append(row([source.images(size, list(uids)) for uids in made], args.count))
    print("rows: real", *sources, sep=", ")
    print("columns:", ", ".join(cohort.tail))
    whole = Image.fromarray(np.concatenate(rows))
    with atomic(args.picture) as temporary:
        whole.resize((2 * whole.width, 2 * whole.height), Image.Resampling.LANCZOS).save(temporary, "PNG")


if __name__ == "__main__":
    main()
