"""A run folder as an object: its images, check results, report, verdict, and what may be taken from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from medlt import config as configs
from medlt.api.results import Audit, Verdict, read_json
from medlt.data.columns import is_synthetic
from medlt.data.manifest import Manifest
from medlt.files import REAL_ROWS, read_table
from medlt.names import did_you_mean
from medlt.types import InputError
from medlt.yaml_text import read_yaml

if TYPE_CHECKING:
    from torch import Tensor

    from medlt.data.loaders import Radiographs
    from medlt.privacy.claims import Claim


@dataclass(frozen=True, eq=False)
class SyntheticImages:
    """Synthetic images of a run, in the order of the plan. Iterate over it for the paths of the PNG files."""

    manifest: Manifest

    @property
    def rows(self) -> pd.DataFrame:
        """One row an image, indexed by uid: labels, and what made the image (method, seed, parents)."""
        return self.manifest.rows

    @property
    def paths(self) -> tuple[Path, ...]:
        """The PNG files, 8-bit grey, size x size px."""
        return tuple(self.manifest.local_file(str(uid)) for uid in self.rows.index)

    def labels(self) -> pd.DataFrame:
        """Return the label vectors, one column a finding: 1, 0, NaN for unknown, or a soft label between 0 and 1."""
        return self.rows[list(self.manifest.findings)]

    def pixels(self, size: int) -> Tensor:
        """Return all images as uint8 [N,1,size,size]."""
        from medlt.data.loaders import images

        return images(self.manifest, size)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Path]:
        return iter(self.paths)

    def __repr__(self) -> str:
        return f"SyntheticImages({len(self)} images in {str(self.manifest.root)!r})"


@dataclass(frozen=True)
class Run:
    """A run in its folder. Everything is read from files; nothing is trained.

    `medlt.augment`, `medlt.finetune` and `medlt.evaluate` return one, and `medlt.load` opens a folder.

    Examples:
        >>> shares = run.checks.groupby("check")["passed"].mean()
        >>> files = run.images().paths
        >>> item = run.dataset(size=64)[0]
        >>> folder = run.export("imagefolder", "images")
    """

    folder: Path

    @property
    def id(self) -> str:
        """The run's id, which its images carry in their text chunks; "" for a run that has none."""
        return str(self.record.get("id", ""))

    @cached_property
    def config(self) -> configs.RunConfig | configs.EvaluateConfig:
        """The resolved config, as in RUN/config.yaml."""
        return read_config(self.folder)

    @property
    def record(self) -> Mapping[str, Any]:
        """RUN/run.json: versions, seed, device, seconds per stage, counts, digests; empty before the run begins."""
        file = self.folder / "run.json"
        return read_json(file) if file.is_file() else {}

    @cached_property
    def manifest(self) -> Manifest:
        """All rows: real ones, and the synthetic ones, which have split train. Before images are made the real ones."""
        own = self.folder / "manifest.parquet"
        return Manifest.read(own if own.is_file() else self.folder / REAL_ROWS)

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings, in the order of every label vector."""
        return self.manifest.findings

    def images(self, finding: str | None = None) -> SyntheticImages:
        """Return the synthetic images that passed the checks: those made for one finding, or all.

        Raises InputError for a finding that the run does not have.
        """
        rows, findings = self.manifest.rows, self.manifest.findings
        chosen = is_synthetic(self.manifest.rows)
        if finding is not None:
            if finding not in findings:
                close = did_you_mean(finding, findings) or ";"
                raise InputError(
                    f"{Path(self.folder).absolute()}: no finding {finding!r}{close} it has {', '.join(findings)}"
                )
            chosen &= rows["finding"] == finding if "finding" in rows else False
        return SyntheticImages(self.manifest.where(chosen))

    @property
    def checks(self) -> pd.DataFrame:
        """One row a check and candidate image: check, uid, value, limit, passed, reason.

        Raises InputError for an experiment, or a run that made no images.
        """
        return self.table("checks")

    @property
    def plan(self) -> pd.DataFrame:
        """One row a candidate image, indexed by uid: finding, slot, candidate, parents and seed."""
        return self.table("plan")

    def table(self, name: str) -> pd.DataFrame:
        """Return RUN/NAME.parquet, such as localisation, quality or comparisons: see docs/reference/files.md.

        Raises InputError for a table that the run does not have.
        """
        file = Path(self.folder) / f"{name}.parquet"
        if not file.is_file():
            known = sorted(path.stem for path in Path(self.folder).glob("*.parquet"))
            close = did_you_mean(name, known) or ";"
            raise InputError(f"{file.absolute()}: no such table{close} the run has {', '.join(known) or 'none'}")
        return read_table(file)

    def explain(self, uids: Iterable[str]) -> dict[str, Tensor]:
        """Return how images of `run.plan` came about, stage -> float32 [N,1,H,W] in [0,1]. They are made again.

        Of fusion and recompose: tail and head (their parents), cam_tail and cam_head (activation maps, or a given mask
        or box), mask (1: pixels of the tail image), fused, and refined, the image. Of fusion also code_tail, code_head
        and code_fused, the tokens of the sparse code, int64 [N,L,h,w], and decoded_tail, decoded_head and
        decoded_fused, what the autoencoder makes of their latents. Raises InputError for another method, and for a
        uid that is not in the plan.
        """
        from medlt.recipes import explain

        return explain.main(self.folder, list(uids))

    @property
    def report(self) -> Path:
        """RUN/report.html: one self-contained page; written now where it is missing."""
        page = self.folder / "report.html"
        if not page.is_file():
            from medlt.recipes._sealed import require_sealed
            from medlt.report.html import write_report

            require_sealed(self.folder)
            write_report(self.folder)
        return page

    @property
    def verdict(self) -> Verdict | None:
        """Whether the images help: the outcome of `medlt.evaluate`, or of `medlt.augment(..., evaluate=True)`.

        None for a run that compared nothing.
        """
        file = self.folder / "verdict.json"
        return Verdict.read(file) if file.is_file() else None

    @property
    def audit(self) -> Audit | None:
        """What the last `medlt.audit` of the run measured; None before one."""
        file = self.folder / "audit.json"
        return Audit.read(file) if file.is_file() else None

    @property
    def claim(self) -> Claim:
        """The run's privacy claim: epsilon at delta for a unit, or None and the reasons against one."""
        from medlt.privacy.claims import claim

        return claim(self.folder)

    def dataset(self, size: int = 224, split: str = "train", synthetic: bool = True) -> Radiographs:
        """Return a torch Dataset of one split: real images, and with `synthetic` the synthetic ones of train.

        An item is {"uid": str, "image": float32 [1,size,size] in [0,1], "label": float32 [K] with soft labels and NaN
        for unknown, "weight": float32 scalar}; the weight is 1 for a real image. A binary cross-entropy that skips
        NaN and multiplies by the weight uses all of it.
        """
        from medlt.data.loaders import dataset

        part = self.manifest.split(split)
        return dataset(part if synthetic else part.where(~is_synthetic(part.rows)), size)

    def export(self, format: str, out: str | Path | None = None, **options: Any) -> Path:
        """Write the run to the new folder `out` in another tool's format, and return the folder.

        format: imagefolder, monai, cxr-lt, longtailcxr, torchxrayvision, parquet or webdataset for the images;
        monai-bundle or diffusers for the generator. out: by default RUN-FORMAT, beside the run folder. options:
        real=True writes the real images too, where a format takes images; labels="soft" writes soft labels, where a
        format has the choice; shard_size=1000 is the number of images in a shard of parquet or webdataset.
        Raises InputError for an unknown format, a folder that is not empty, and a run that has nothing to write.
        """
        from medlt.export import export

        folder = Path(self.folder).absolute()
        place = folder.with_name(f"{folder.name}-{format}") if out is None else Path(out).expanduser()
        return export(self.folder, format, place, **options)

    def upload(self, format: str, url: str, **options: Any) -> dict[str, Any]:
        """Write the run as `export` does, but below a URL such as s3://bucket/run, and return the record of its files.

        The record, upload.json, is written last: an upload without it is incomplete, and the same call resumes it.
        Raises InputError as `export`, for a URL that holds anything else, and for a server that cannot be used.
        """
        from medlt.export import export_to_url

        return export_to_url(self.folder, format, url, **options)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"


def read_config(folder: Path) -> configs.RunConfig | configs.EvaluateConfig:
    """Return the config of a run folder, with the folder where it lies now. Raises InputError where there is none."""
    file = Path(folder) / "config.yaml"
    if not file.is_file():
        raise InputError(f"{Path(folder).absolute()}: has no config.yaml; give the folder of a run")
    try:
        tree: Any = read_yaml(file.read_text())
    except (InputError, UnicodeDecodeError):
        raise InputError(f"{file.absolute()}: damaged; restore it from a copy of the run") from None
    config = configs.load_verdict(file) if isinstance(tree, dict) and "arms" in tree else configs.load_config(file)
    return config.model_copy(update={"output_dir": Path(folder)})


def load(folder: str | Path) -> Run:
    """Open the folder of a run that `medlt.augment`, `medlt.finetune`, `medlt.evaluate` or a command finished.

    Args:
        folder: the run folder; it may have been renamed or moved.

    Raises:
        InputError: for a folder that is no run, or whose run trained nothing yet.

    Examples:
        >>> run = medlt.load("runs/fusion-1f0c2a9b")
        >>> shares = run.checks.groupby("check")["passed"].mean()
    """
    folder = Path(folder).expanduser()
    read_config(folder)
    if not any((folder / name).exists() for name in ("manifest.parquet", "verdict.json", "denoiser")):
        raise InputError(
            f"{folder.absolute()}: the run was not finished; call the same function, or the same command, again"
        )
    return Run(folder.absolute())
