"""Sources of a comparison that are drawn by the phantom: what synthetic images could give at best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medlt import config as configs
from medlt.data.phantom.variants import Drawing, variants
from medlt.evaluation.sources import SourceImages
from medlt.recipes._cohort import Cohort
from medlt.types import InputError


def drawn_source(
    name: str, given: configs.SourceConfig, config: configs.EvaluateConfig, cohort: Cohort
) -> SourceImages:
    """Return `given.per_positive` drawn images of each positive train row of each tail finding.

    Raises InputError if the experiment's data are not the phantom's.
    """
    data = config.data
    if given.drawn is None or not isinstance(data, configs.PhantomData):
        raise InputError(f"sources.{name}: only data of kind phantom can be drawn; give run or config instead")
    table, drawn = variants(given.drawn, cohort.train.rows, cohort.tail, given.per_positive, config.seed)
    labels = table[list(cohort.findings)]
    # no lesion lies where that of its control does, so the row of the control is no tail image
    kept = table[["finding", "slot"]].assign(label_source=table["tail_parent"], verifier=1.0)
    return SourceImages(name, kept, labels, _Drawn(drawn, data.size), planned=len(kept), real_pixels=True)


class _Drawn:
    """Images by size and uid; each is drawn once."""

    def __init__(self, drawn: dict[str, Drawing], film_size: int) -> None:
        self._drawn, self._film_size = drawn, film_size
        self._kept: dict[tuple[int, str], np.ndarray] = {}

    def __call__(self, size: int, uids: Sequence[str]) -> Tensor:
        """Return images uint8 [n,1,size,size]."""
        for uid in uids:
            if (size, uid) not in self._kept:
                self._kept[size, uid] = self._drawn[uid].draw(self._film_size, size)
        pixels = [self._kept[size, uid] for uid in uids]
        return torch.from_numpy(np.stack(pixels) if pixels else np.zeros((0, size, size), np.uint8))[:, None]
