"""A run folder as an object: its images, check results, report, verdict, and what may be taken from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from medlt import config as configs
from medlt.data.manifest import Manifest
from medlt.files import read_table
from medlt.types import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from medlt.data.loaders import Radiographs


@dataclass(frozen=True)
class Verdict:
    """The outcome of an experiment: word is helps, no evidence, harms or no verdict.

    difference, low, high: tail macro AP of `arm` less that of `control`, with its 95 % interval; smallest: the least
    gain that these test images and seeds would have shown. None where nothing could be compared.
    """

    word: str
    sentence: str
    arm: str | None
    control: str | None
    difference: float | None
    low: float | None
    high: float | None
    smallest: float | None

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class SyntheticImages:
    """Synthetic images of a run, in the order of the plan. `rows`: labels, and what made each image."""

    manifest: Manifest

    @property
    def rows(self) -> pd.DataFrame:
        """One row an image, indexed by uid."""
        return self.manifest.rows

    @property
    def paths(self) -> tuple[Path, ...]:
        """The PNG files."""
        return tuple(self.manifest.file(str(uid)) for uid in self.rows.index)

    def pixels(self, size: int) -> Tensor:
        """Return all images as uint8 [N,1,size,size]."""
        from medlt.data.loaders import images

        return images(self.manifest, size)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Path]:
        return iter(self.paths)


@dataclass(frozen=True)
class Run:
    """A finished run in its folder. Everything is read from files; nothing is trained."""

    folder: Path

    @cached_property
    def config(self) -> configs.RunConfig | configs.EvaluateConfig:
        """The resolved config."""
        return read_config(self.folder)

    @cached_property
    def manifest(self) -> Manifest:
        """All rows: real ones, and the synthetic ones of the train split."""
        own = self.folder / "manifest.parquet"
        return Manifest.read(own if own.is_file() else self.folder / "stages" / "data" / "manifest.parquet")

    def images(self, finding: str | None = None) -> SyntheticImages:
        """Return the synthetic images that passed the checks: of one finding, or all.

        Raises InputError for a finding that the run does not know.
        """
        rows = self.manifest.rows
        chosen = rows["synthetic"].astype(bool) if "synthetic" in rows else pd.Series(False, rows.index)
        if finding is not None:
            if finding not in self.manifest.findings:
                raise InputError(f"{finding!r} is not a finding of {self.folder}: {', '.join(self.manifest.findings)}")
            chosen &= rows["finding"] == finding if "finding" in rows else False
        return SyntheticImages(self.manifest.where(chosen))

    @property
    def checks(self) -> pd.DataFrame:
        """One row a check and image: check, uid, value, limit, passed, reason."""
        return self._table("checks.parquet")

    @property
    def report(self) -> Path:
        """RUN/report.html: one self-contained page; written now where it is missing."""
        page = self.folder / "report.html"
        if not page.is_file():
            from medlt.report.html import write

            write(self.folder)
        return page

    @property
    def verdict(self) -> Verdict | None:
        """The outcome of `medlt.evaluate`; None before it."""
        file = self.folder / "verdict.json"
        if not file.is_file():
            return None
        record = json.loads(file.read_text())
        compared = record.get("comparison") or {}
        numbers = {name: compared.get(name) for name in ("arm", "control", "difference", "low", "high")}
        return Verdict(record["verdict"], record["sentence"], smallest=record.get("smallest"), **numbers)

    def dataset(self, size: int = 224, split: str = "train", synthetic: bool = True) -> Radiographs:
        """Return a torch Dataset of one split: real images, and with `synthetic` the synthetic ones of train.

        An item is {"uid", "image" float32 [1,size,size] in [0,1], "label" float32 [K] with soft labels and NaN for
        unknown, "weight" float32}.
        """
        from medlt.data.loaders import dataset

        part = self.manifest.split(split)
        if not synthetic and "synthetic" in part.rows:
            part = part.where(~part.rows["synthetic"].astype(bool))
        return dataset(part, size)

    def export(self, format: str, out: str | Path) -> Path:
        """Write the run to a new folder in another tool's format: imagefolder, monai-bundle or diffusers."""
        from medlt.export import export

        return export(self.folder, format, Path(out))

    def _table(self, name: str) -> pd.DataFrame:
        file = self.folder / name
        if not file.is_file():
            raise InputError(f"{file}: is not there; an experiment has no images of its own, see its sources")
        return read_table(file)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"


def read_config(folder: Path) -> configs.RunConfig | configs.EvaluateConfig:
    """Return the config of a run folder. Raises InputError where there is none."""
    file = Path(folder) / "config.yaml"
    if not file.is_file():
        raise InputError(f"{folder}: has no config.yaml, so it is no run folder; give the folder of a run")
    tree: Any = yaml.safe_load(file.read_text())
    return configs.load_verdict(file) if isinstance(tree, dict) and "arms" in tree else configs.load(file)


def load(folder: str | Path) -> Run:
    """Open a finished run. Raises InputError for a folder that is none, or that was not finished."""
    folder = Path(folder)
    read_config(folder)
    if not any((folder / name).is_file() for name in ("manifest.parquet", "verdict.json")):
        raise InputError(f"{folder}: the run was not finished; call the same function, or the same command, again")
    return Run(folder.absolute())
