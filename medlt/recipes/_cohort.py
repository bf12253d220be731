"""The real rows of a run. Images are decoded once, rows are stored in the run folder, and every stage uses them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from medlt import config as configs
from medlt.classify.sets import TrainingSet
from medlt.csv_text import as_csv
from medlt.data.manifest import Manifest
from medlt.data.pixels import PixelCache
from medlt.data.regions import Regions
from medlt.data.source import open_data
from medlt.diffusion.backbone import About
from medlt.files import REAL_ROWS, digest, write_text
from medlt.metrics.groups import Grouping, group
from medlt.recipes._setup import RunFolder
from medlt.types import InputError

ABOUT = ("view", "sex", "age")
EMBEDDING_SIZE = 64
"""Side of the images that the near-copy filter and the audit compare, px."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RealRows:
    """The real rows of a run before any image is read.

    targets: how many images of the tail to make. requested: findings to make whatever their counts, for a
    data-independent run.
    """

    manifest: Manifest
    targets: configs.Targets
    requested: tuple[str, ...] = ()

    @cached_property
    def train(self) -> Manifest:
        """The train rows, the only ones that synthesis reads."""
        return self.manifest.split("train")

    @cached_property
    def val(self) -> Manifest:
        """The validation rows, on which models and arms are chosen."""
        return self.manifest.split("val")

    @cached_property
    def test(self) -> Manifest:
        """The test rows, on which the verdict is measured."""
        return self.manifest.split("test")

    @cached_property
    def regions(self) -> Regions:
        """Where findings are, by the masks and boxes of the data; empty in a private run."""
        return Regions.of(self.manifest)

    @property
    def findings(self) -> tuple[str, ...]:
        """All findings, in the order of every label vector."""
        return self.manifest.findings

    @cached_property
    def groups(self) -> Grouping:
        """Head, medium, tail by train positives."""
        positives = self.train.counts()["positive"]
        return group(dict(positives), above=self.targets.head_above, below=self.targets.tail_below)

    @cached_property
    def tail(self) -> tuple[str, ...]:
        """The tail findings, without the label that means no finding."""
        return tuple(name for name in self.groups.members("tail") if name != self.manifest.no_finding)

    def members(self) -> dict[str, tuple[str, ...]]:
        """Return group name -> findings, with the tail as in `tail`."""
        return {name: self.groups.members(name) for name in ("head", "medium")} | {"tail": self.tail}

    def shortfall(self) -> dict[str, int]:
        """Return how many images to make for each tail finding, or for each requested one."""
        if self.requested:
            return dict.fromkeys(self.requested, min(self.targets.max_per_finding, self.targets.count))
        positives, targets = self.train.counts()["positive"], self.targets
        wanted = {
            f: round(targets.multiplier * positives[f]) if targets.multiplier else targets.count for f in self.tail
        }
        lacking = {f: min(targets.max_per_finding, n - int(positives[f])) for f, n in wanted.items()}
        return {f: n for f, n in lacking.items() if n > 0}


@dataclass(frozen=True, kw_only=True)
class Cohort(RealRows):
    """The real rows of a run after their images were read, with the pixel cache."""

    pixels: PixelCache

    def contents(self, part: Manifest) -> dict[str, str]:
        """Return uid -> digest of the image's bytes."""
        return {str(uid): str(content) for uid, content in part.rows["content"].items()}

    def named(self, part: Manifest) -> str:
        """Return a digest of the images of these rows, in their order."""
        return digest(list(part.rows["content"].astype(str)))

    def images(self, part: Manifest, size: int, uids: Sequence[str] | None = None) -> Tensor:
        """Return images of these rows, uint8 [N,1,size,size]."""
        return self.pixels.images(part, size, uids)

    def dataset(self, part: Manifest, size: int) -> Any:
        """Return these rows as a data set of dicts with `uid` and `image` [1,size,size] in [0,1]."""
        return self.pixels.dataset(part, size)

    def training_set(self, part: Manifest, size: int) -> TrainingSet:
        """Return all images of these rows as 8-bit squares of side `size`, stored, with their labels."""
        weights = np.ones(len(part.rows), np.float32)
        return TrainingSet(self.pixels.rows(part, size), part.labels(), weights, tuple(part.rows.index))


def patients(part: Manifest) -> list[str]:
    """Return the patient of each row."""
    return list(part.rows["patient_id"].astype(str))


def about(part: Manifest) -> list[About]:
    """Return view, sex and age of each row, as far as there are such columns."""
    known = part.rows[[name for name in ABOUT if name in part.rows]]
    return [dict(row) for row in known.to_dict("records")]


def requested(config: configs.RunConfig | configs.EvaluateConfig) -> tuple[str, ...]:
    """Return the findings that a data-independent run makes images of: those of the config, whatever the data hold."""
    if not isinstance(config, configs.RunConfig) or config.privacy is None or not config.data_independent:
        return ()
    return config.privacy.requested or config.privacy.to_make


def image_sizes(config: configs.RunConfig | configs.EvaluateConfig) -> tuple[int, ...]:
    """Return every image size that the stages of the config use, so that each file is decoded once."""
    classifiers = [
        config.classifier,
        getattr(config, "guidance_classifier", None),
        getattr(config, "evaluation_classifier", None),
    ]
    sizes = {one.size for one in classifiers if one is not None}
    if isinstance(config, configs.RunConfig):
        sizes |= {config.size, config.image_size}
        if config.checks.near_copy is not None:
            sizes |= {EMBEDDING_SIZE}
    return tuple(sorted(sizes))


def read_rows(config: configs.RunConfig | configs.EvaluateConfig) -> RealRows | None:
    """Return the rows of the config's data before any image is read, None for phantom data that are not written yet.

    Raises InputError for bad labels, missing files, and findings without a positive in the train split.
    """
    if isinstance(config.data, configs.PhantomData):
        return None
    manifest = _permitted(config, open_data(config.data, seed=config.seed, folder=Path()))
    _require_positives(config, manifest)
    return RealRows(manifest, config.targets, requested(config))


def _permitted(config: configs.RunConfig | configs.EvaluateConfig, manifest: Manifest) -> Manifest:
    """Return the rows that a run may use.

    A private run has the findings of its config, whatever the data name, and drops masks, boxes and sides, which no
    ledger accounts for.
    """
    if not isinstance(config, configs.RunConfig) or config.privacy is None:
        return manifest
    return manifest.without_regions().with_findings(config.privacy.findings)


def open_cohort(run: RunFolder[Any], rows: RealRows | None = None) -> Cohort:
    """Decode the images of `rows`, or of the config's data, and store the readable rows in the run folder.

    Raises InputError for an unreadable image, unless the config says skip_unreadable, for images or masks that changed
    since the run began, and for a mask that does not fit its image.
    """
    config = run.config
    with run.stage("data"):
        if rows is not None:
            manifest = rows.manifest
        else:
            home = Path(config.output_dir, "stages", "data", "phantom")  # that of the first process, in all of them
            written = open_data(config.data, seed=config.seed, folder=home)
            manifest = _permitted(config, written)
        pixels = PixelCache(run.store, workers=run.runtime.threads or 2)
        whole, failures = pixels.prepare(manifest, image_sizes(config), run.runtime.progress)
        _require_readable(failures, manifest, config.skip_unreadable)
        whole = whole.with_mask_contents()
        _require_positives(config, whole)
        _require_unchanged(run, whole)
        Regions.of(whole).check()
        write_text(run.path("failures.csv"), as_csv(failures))
        whole.write(run.path(str(REAL_ROWS)))
        run.record(counts={"real": len(whole.rows), "failed": len(failures)}, digests={"manifest": whole.digest()})
    return Cohort(whole, config.targets, requested(config), pixels=pixels)


def filed_cohort(run: RunFolder[configs.RunConfig]) -> Cohort:
    """Return the real rows that a finished run stored. Images come from the cache, or are decoded again.

    Raises InputError if an image is missing or has changed.
    """
    manifest = Manifest.read(run.path(str(REAL_ROWS)))
    pixels = PixelCache(run.store, workers=run.runtime.threads or 2)
    whole, failures = pixels.prepare(manifest, image_sizes(run.config), run.runtime.progress)
    _require_readable(failures, manifest, skip=False)
    whole = whole.with_mask_contents()
    _require_unchanged(run, whole)
    return Cohort(whole, run.config.targets, requested(run.config), pixels=pixels)


def _require_readable(failures: pd.DataFrame, manifest: Manifest, skip: bool) -> None:
    """Raise InputError for the first unreadable image, or if no readable one is left."""
    if len(failures) and (not skip or len(failures) == len(manifest.rows)):
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        go_on = "" if len(failures) == len(manifest.rows) else ", or set skip_unreadable=true to go on without it"
        reason = str(failures.iloc[0]["reason"]).partition(";")[0]  # its own hint may contradict this one
        raise InputError(f"{reason}{more}; replace the file{go_on}")


def _require_positives(config: configs.RunConfig | configs.EvaluateConfig, manifest: Manifest) -> None:
    """Raise InputError for a finding without a positive, unless the run is data-independent.

    Whether a data-independent run starts must not depend on a patient.
    """
    if not (isinstance(config, configs.RunConfig) and config.data_independent):
        manifest.require_positives()


def _require_unchanged(run: RunFolder[Any], now: Manifest) -> None:
    """Raise InputError if rows, labels or images differ from those that the run stored when it began.

    A stored table that is damaged is as one that is missing: it is written again.
    """
    file = run.path(str(REAL_ROWS))
    try:
        before = Manifest.read(file) if file.is_file() else now
    except InputError as error:
        log.warning("%s: it is written again", str(error).partition(";")[0])
        return
    if before.digest() == now.digest():
        return
    shared = before.rows.index.intersection(now.rows.index)
    images = shared[(before.rows.loc[shared, "content"] != now.rows.loc[shared, "content"]).to_numpy()]
    rows = before.rows.index.symmetric_difference(now.rows.index)
    masks = sorted(uid for uid, _ in before.mask_contents().items() ^ now.mask_contents().items())
    named = (("images", images), ("rows", rows), ("masks", dict.fromkeys(masks)))
    kind, changed = next((one for one in named if len(one[1])), ("labels, splits, patients or boxes", ()))
    what = f"{len(changed)} {kind}" if len(changed) else kind
    first = f", the first uid {next(iter(changed))}" if len(changed) else ""
    raise InputError(f"{run.folder}: {what} changed since this run began{first}; restore them, or choose another --out")
