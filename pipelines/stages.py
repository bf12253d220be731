"""The real rows of a run as every stage sees them, how progress is told, and on how many threads torch works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from medlt import config as configs
from medlt.classify.sets import TrainingSet
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.metrics.groups import Grouping, group

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Collection:
    """The real rows of a run, and what is read off them; `asked`: findings to be made whatever their counts say."""

    manifest: Manifest
    need: configs.Need
    cache: Path
    asked: tuple[str, ...] = ()

    @cached_property
    def train(self) -> Manifest:
        return self.manifest.split("train")

    @cached_property
    def groups(self) -> Grouping:
        """Head, medium, tail by train positives."""
        positives = self.train.counts()["positive"]
        return group(dict(positives), above=self.need.head_above, below=self.need.tail_below)

    @cached_property
    def tail(self) -> tuple[str, ...]:
        return tuple(f for f in self.groups.members("tail") if f != self.manifest.no_finding)

    def members(self) -> dict[str, tuple[str, ...]]:
        """Group name -> findings, with the tail as it is filled."""
        return {name: self.groups.members(name) for name in ("head", "medium")} | {"tail": self.tail}

    def shortfall(self) -> dict[str, int]:
        """Images wanted for each tail finding, or each that was asked for."""
        if self.asked:
            return dict.fromkeys(self.asked, min(self.need.most, self.need.target))
        positives, need = self.train.counts()["positive"], self.need
        wanted = {f: round(need.times * positives[f]) if need.times else need.target for f in self.tail}
        lacking = {f: min(need.most, n - int(positives[f])) for f, n in wanted.items()}
        return {f: n for f, n in lacking.items() if n > 0}

    def training_set(self, split: str, size: int) -> TrainingSet:
        """All images of a split as 8-bit squares of side `size`, with their labels."""
        part = self.manifest.split(split)
        pixels = images(part, size, self.cache)
        return TrainingSet(pixels, part.labels(), np.ones(len(part.rows), np.float32), tuple(part.rows.index))


def quiet(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


@contextmanager
def threads(asked: int | None) -> Iterator[None]:
    """torch on so many threads, None: as many as it has; afterwards as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(asked or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
