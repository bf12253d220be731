"""The images that `medlt review` and `medlt check` are about: of a finished run, or of a folder made elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from medlt import config as configs
from medlt.data.columns import is_synthetic
from medlt.data.image_folder import read_image_folder
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.recipes._cohort import Cohort, filed_cohort
from medlt.recipes._setup import RunFolder, finished
from medlt.types import InputError, Progress


@dataclass(frozen=True)
class ImageSet:
    """Synthetic images with labels, and the finished run whose real rows they are compared with.

    folder: where results are written; elsewhere: whether another program made the images; unreadable: (file, reason).
    """

    folder: Path
    run: RunFolder[configs.RunConfig]
    cohort: Cohort
    made: Manifest
    elsewhere: bool = False
    unreadable: tuple[tuple[str, str], ...] = ()

    @property
    def size(self) -> int:
        """Side of the images of the run, px."""
        return self.run.config.image_size

    def synthetic(self, uids: list[str], size: int) -> Tensor:
        """Return synthetic images as they are read from their files, uint8 [N,1,size,size]."""
        return images(self.made, size, uids)

    def real(self, uids: list[str], size: int) -> Tensor:
        """Return real images by the same preprocessing, uint8 [N,1,size,size]."""
        return self.cohort.images(self.cohort.manifest, size, uids)


def open_images(folder: Path, progress: Progress, against: Path | None = None, labels: Path | None = None) -> ImageSet:
    """Open a finished run, or a folder of images made elsewhere with the run `against`.

    Raises InputError for a folder that is neither, and for a run without a synthetic image.
    """
    folder = Path(folder)
    is_run = (folder / "config.yaml").is_file() and (folder / "manifest.parquet").is_file()
    if not is_run and against is None:
        what = "is no finished run; give the folder of one, or for images made elsewhere a run with --against RUN"
        raise InputError(f"{folder.absolute()}: {what}")
    if is_run and (against is not None or labels is not None):
        raise InputError(f"{folder.absolute()}: is a run; leave out --against and --labels")
    run = finished(Path(against or folder), progress)
    cohort = filed_cohort(run)
    if not is_run:
        given = read_image_folder(folder, cohort.findings, labels)
        return ImageSet(folder, run, cohort, given.manifest, True, given.failures)
    made = synthetic_rows(Manifest.read(folder / "manifest.parquet"))
    if made.rows.empty:
        raise InputError(f"{folder.absolute()}: no synthetic image was kept, so there is none to read or check")
    return ImageSet(folder, run, cohort, made)


def synthetic_rows(whole: Manifest) -> Manifest:
    """Return the synthetic rows of a run's manifest."""
    return whole.where(is_synthetic(whole.rows))
