"""A run folder: one config, named stages, and run.json, which says what happened.

A stage is a function that leaves files; called again it finds them and goes on from there. So `medlt run` after a
kill repeats nothing that was finished, and ends with the bytes an uninterrupted run would have left. Only run.json
holds times and memory, and so is the one file that differs between two equal runs.
"""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from medlt import config as configs
from medlt.files import write_json, write_text
from medlt.types import InputError

LEARNT = (
    "codec",
    "latents",
    "sparse",
    "denoiser",
    "diffult",
    "judges",
    "predictor",
    "epistemic",
    "latent_classifier",
    "levels",
    "privacy",
    "embedding",
)
"""Stages that hold what is learnt of the real images, which runs on one collection may share."""

CHANGEABLE = ("arms", "sources", "evaluation", "reporter", "workers")
"""Sections of an experiment's config that may change between two calls."""

PACKAGES = ("medlt", "torch", "monai", "diffusers", "accelerate", "pydicom", "numpy", "pandas", "scikit-learn")


def versions() -> dict[str, str]:
    """Python and the packages that shape the result; 'absent' where one is not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def peak_rss_mb() -> float:
    """The largest resident set this process has had, MB (getrusage counts kB on Linux, bytes on macOS)."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


@dataclass(frozen=True)
class Folder:
    """A run folder opened for work. Raises InputError if the folder belongs to another config."""

    folder: Path
    config: configs.RunConfig | configs.VerdictConfig

    def __post_init__(self) -> None:
        written, text = self.folder / "config.yaml", configs.dump(self.config)
        if written.exists() and (before := self._fixed(written.read_text())) != (now := self._fixed(text)):
            changed = _first_difference(before, now)
            raise InputError(
                f"{self.folder}: was made by another config ({changed}); choose another --out, or restore it"
            )
        if self.folder.is_dir() and any(self.folder.iterdir()) and not written.exists():
            raise InputError(f"{self.folder}: is not empty and not a run folder; choose another --out")
        write_text(written, text)
        self.record(versions=versions(), seed=self.config.seed, device=self.config.device)

    def _fixed(self, text: str) -> str:
        """What of a config's text may not change from call to call: all of it."""
        return text

    def path(self, *parts: str) -> Path:
        """A path inside the folder."""
        return self.folder.joinpath(*parts)

    def home(self, stage: str) -> Path:
        """The folder of a stage: below `learnt`, if the config names such a folder, for what is learnt."""
        shared = self.config.learnt
        return shared / stage if shared is not None and stage in LEARNT else self.path("stages", stage)

    def told(self) -> dict[str, Any]:
        """run.json as it stands. Raises InputError for a damaged one."""
        file = self.path("run.json")
        try:
            return dict(json.loads(file.read_text())) if file.exists() else {}
        except ValueError:
            raise InputError(f"{file}: damaged; remove it, and the same command writes it again") from None

    def record(self, **sections: Any) -> None:
        """Merge sections into run.json, one level deep."""
        told = self.told()
        for name, value in sections.items():
            told[name] = {**told.get(name, {}), **value} if isinstance(value, dict) else value
        told["peak_rss_mb"] = max(peak_rss_mb(), told.get("peak_rss_mb", 0.0))
        write_json(self.path("run.json"), told)

    @contextmanager
    def stage(self, name: str) -> Iterator[Path]:
        """Time a stage and yield its folder; the seconds of interrupted tries add up."""
        start, before = time.perf_counter(), self.told().get("seconds", {}).get(name, 0.0)
        try:
            yield self.home(name)
        finally:
            self.record(seconds={name: round(before + time.perf_counter() - start, 2)})


@dataclass(frozen=True)
class Run(Folder):
    """The folder of a recipe."""

    config: configs.RunConfig


@dataclass(frozen=True)
class Finished(Run):
    """The folder of a recipe that has ended, wherever it lies now; nothing in it is changed.

    Raises InputError if it has not ended.
    """

    def __post_init__(self) -> None:
        if not (self.folder / "manifest.parquet").is_file():
            raise InputError(f"{self.folder}: has no manifest.parquet; finish the run with `medlt augment` first")

    def record(self, **sections: Any) -> None:
        """Nothing is told of reading."""


@dataclass(frozen=True)
class Experiment(Folder):
    """The folder of a comparison. Arms may be added and taken away: those that are trained are found again."""

    config: configs.VerdictConfig

    def _fixed(self, text: str) -> str:
        try:
            tree = dict(yaml.safe_load(text))
        except (yaml.YAMLError, TypeError, ValueError):
            raise InputError(f"{self.folder}/config.yaml: damaged; restore it, or choose another --out") from None
        return str(yaml.safe_dump({k: v for k, v in tree.items() if k not in CHANGEABLE}, sort_keys=False))


def _first_difference(old: str, new: str) -> str:
    """The first line in which two config texts differ."""
    pairs = zip(old.splitlines(), new.splitlines(), strict=False)
    return next((f"{a.strip()!r} there, {b.strip()!r} now" for a, b in pairs if a != b), "other keys")
