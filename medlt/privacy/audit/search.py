"""Measures of how near an image is to real images, and the search with all of them on one scale.

A measure gives an image's distance to its nearest reference, in one or several families. References are all real images
of a run, of train patients and of held-out ones, since a copy of either is a copy of a patient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from medlt.metrics.nearest import isolation
from medlt.privacy.audit.embedding import Embed, prepared
from medlt.privacy.audit.matching import FAMILIES, Matcher, Matches

Measure: TypeAlias = Callable[[Tensor, Tensor], Matches]
"""(images [B,1,H,W], owner int64 [B]) -> nearest reference of another owner in each of its families."""
Measures: TypeAlias = Callable[[Tensor, Tensor], Mapping[tuple[str, ...], Measure]]
"""(references [N,1,H,W], owner int64 [N]) -> measures, by the names of their families."""


def low_pass(images: Tensor, size: int = 32) -> Tensor:
    """Return unit vectors [B,size^2], on the CPU, of shrunken images [B,1,H,W]; the product of two is a correlation."""
    parts = [prepared(block, size).flatten(1).cpu() for block in torch.split(images, 1024)]
    pixels = torch.cat(parts)
    return functional.normalize(pixels - pixels.mean(1, keepdim=True))


def isolated(embed: Embed, references: Tensor, owner: Tensor, neighbours: int = 50) -> Measure:
    """Return the measure of isolation in an embedding, among references [N,1,H,W] of `owner` [N]."""
    vectors = embed(references)

    def measure(images: Tensor, whose: Tensor) -> Matches:
        one = isolation(embed(images), vectors, neighbours, own=whose[:, None] == owner)
        return Matches(one.ratio.nan_to_num(torch.inf)[:, None], one.row[:, None])

    return measure


def measures(embed: Embed, encoder: Embed | None = None) -> Measures:
    """Return the measures of the audit, with `embed` as the embedding of patients, and one of a given encoder."""

    def build(references: Tensor, owner: Tensor) -> Mapping[tuple[str, ...], Measure]:
        given: dict[tuple[str, ...], Measure] = {}
        if encoder is not None:
            given[("encoder",)] = isolated(encoder, references, owner)
        return given | {
            ("embedding",): isolated(embed, references, owner), ("pixels",): isolated(low_pass, references, owner),
            FAMILIES: Matcher.of(references, owner).match,
        }  # fmt: skip

    return build


@dataclass(frozen=True)
class Searcher:
    """All measures, the scale of each family, and the limit below which a relative distance is a hit.

    Rows of references below `train` are train images, the others held-out ones.
    """

    measures: Mapping[tuple[str, ...], Measure]
    train: int
    scales: np.ndarray
    limit: float = 1.0

    @property
    def names(self) -> list[str]:
        """Names of the families."""
        return [name for names in self.measures for name in names]

    def search(self, images: Tensor, owner: Tensor | None = None) -> pd.DataFrame:
        """Return one row for each image; an image is not compared with references of its own `owner`.

        Columns: `relative NAME`, the distance of each family over its scale; the clearest `measure` and its `relative`;
        `copied`, train or held-out; the `row` of the nearest reference among train or held-out images; and `hit`.
        """
        whose = torch.full((len(images),), -1) if owner is None else owner
        each = [measure(images, whose) for measure in self.measures.values()]
        relative = torch.cat([one.distance for one in each], 1).double().numpy() / self.scales
        clearest, every = relative.argmin(1), np.arange(len(relative))
        row = torch.cat([one.row for one in each], 1).numpy()[every, clearest]
        inside, low = row < self.train, relative.min(1)
        columns = {f"relative {name}": relative[:, i] for i, name in enumerate(self.names)}
        columns |= {"measure": np.array(self.names)[clearest], "relative": low}
        columns |= {"copied": np.where(inside, "train", "held-out"), "row": np.where(inside, row, row - self.train)}
        return pd.DataFrame({**columns, "hit": low < self.limit})


def limit(null: np.ndarray, rate: float) -> float:
    """Return the limit that a new distance is below with probability k / (n + 1) <= rate, from n of them."""
    return max(float(np.sort(null)[rank(rate, len(null)) - 1]), 1e-6)


def rank(rate: float, held_out: int) -> int:
    """Return the rank k of the limit among `held_out` = n distances."""
    return max(1, int(rate * (held_out + 1) + 1e-9))
