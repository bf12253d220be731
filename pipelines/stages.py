"""How every recipe begins: the config's data opened, looked at and filed, before anything is learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from medlt import config as configs
from medlt.classify.sets import TrainingSet
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.data.source import open_data, readable
from medlt.files import write_text
from medlt.metrics.groups import Grouping, group
from medlt.runs import Experiment, Finished, Folder, Run
from medlt.types import InputError
from pipelines.door import look, require_cuda

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Collection:
    """The real rows of a run, and what is read off them."""

    manifest: Manifest
    need: configs.Need
    cache: Path

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
        """Images wanted for each tail finding."""
        positives, need = self.train.counts()["positive"], self.need
        wanted = {f: round(need.times * positives[f]) if need.times else need.target for f in self.tail}
        lacking = {f: min(need.most, n - int(positives[f])) for f, n in wanted.items()}
        return {f: n for f, n in lacking.items() if n > 0}

    def training_set(self, split: str, size: int) -> TrainingSet:
        """All images of a split as 8-bit squares of side `size`, with their labels."""
        part = self.manifest.split(split)
        pixels = images(part, size, self.cache)
        return TrainingSet(pixels, part.labels(), np.ones(len(part.rows), np.float32), tuple(part.rows.index))


def _opened(config: configs.RunConfig | configs.VerdictConfig) -> tuple[Collection, pd.DataFrame]:
    """The real rows, as filed by an earlier try or as they are, and what could not be read."""
    folder = config.out / "stages" / "data"
    if isinstance(config.data, configs.PhantomData):
        Folder(config.out, config)  # its rows are written into the run folder
    manifest = open_data(config.data, seed=config.seed, folder=folder / "phantom")
    failures = pd.DataFrame(columns=["uid", "code", "reason"])
    if (seen := folder / "manifest.parquet").exists():
        manifest, failures = Manifest.read(seen), pd.read_csv(config.out / "failures.csv")
    else:
        manifest, failures = readable(manifest, skip=config.skip_unreadable)
        manifest.require_positives()
    return Collection(manifest, config.need, folder / "images"), failures


F = TypeVar("F", bound=Folder)


def _filed(run: F, real: Collection, failures: pd.DataFrame) -> F:
    """The run folder, with the rows it stands on."""
    manifest, seen = real.manifest, real.cache.parent / "manifest.parquet"
    if not seen.exists():
        write_text(run.path("failures.csv"), failures.to_csv(index=False))
        manifest.write(seen)
    run.record(counts={"real": len(manifest.rows), "failed": len(failures)}, digests={"manifest": manifest.digest()})
    return run


def collect(config: configs.RunConfig) -> tuple[Run, Collection]:
    """Look at everything that can be wrong, then open the run folder: bad input leaves nothing behind."""
    real, failures = _opened(config)
    if not real.shortfall():
        wanted = f"{config.need.times} times its" if config.need.times else f"{config.need.target}"
        raise InputError(f"no tail finding has fewer than {wanted} train positives: nothing to fill; change need")
    look(config, real.train, len(real.manifest.split("val").rows))
    return _filed(Run(config.out, config), real, failures), real


def finished(config: configs.RunConfig) -> tuple[Finished, Collection]:
    """A run that has ended, and its real rows as it filed them. Raises InputError if it has not."""
    run, folder = Finished(config.out, config), config.out / "stages" / "data"
    return run, Collection(Manifest.read(folder / "manifest.parquet"), config.need, folder / "images")


def collect_held(config: configs.VerdictConfig) -> tuple[Experiment, Collection]:
    """The same for an experiment, which needs all three splits and a tail."""
    real, failures = _opened(config)
    for split in ("train", "val", "test"):
        if real.manifest.split(split).rows.empty:
            raise InputError(f"no image has split {split}: arms learn on train, are chosen on val, and judged on test")
    if not real.tail:
        raise InputError(f"no finding is tail ({real.groups.rule}): nothing to decide on; raise need.tail_below")
    if config.device == "cuda":
        require_cuda()
    return _filed(Experiment(config.out, config), real, failures), real


def quiet(stage: str, done: int, total: int) -> None:
    """No progress is shown."""
