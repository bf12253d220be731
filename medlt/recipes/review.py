"""A reader review: real and synthetic images on a local page that hides which is which, and a reader's answers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from medlt.data.images import image_shape
from medlt.data.manifest import SPLITS
from medlt.files import locked, read_table, write_table
from medlt.recipes._image_sets import ImageSet, open_images
from medlt.remote import AnyFile
from medlt.review.answers import FOLDER, QUESTIONS, AnswerFile, reader_file
from medlt.review.reading_list import by_anatomy, choose, order
from medlt.review.results import ReviewResults, read_readings, results, review_results
from medlt.review.server import Reading, ReviewServer
from medlt.training.runtime import silent
from medlt.types import InputError, Progress

HELD_OUT = ("val", "test")
"""Splits of the real images: no method made an image of them, so no copy is read beside its source."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReviewOptions:
    """Options of a review: the reader, images of each kind, seed, splits of the real images, questions, and server.

    private_train: also show train images of a private run. size: side of the images, px; default: that of the run.
    """

    reader: str
    images: int = 20
    seed: int = 0
    splits: tuple[str, ...] = HELD_OUT
    questions: tuple[str, ...] = tuple(QUESTIONS)
    private_train: bool = False
    size: int | None = None
    port: int = 0


@dataclass(frozen=True)
class Reviewed:
    """The result of one session of a reader: the file of answers, and how many images are answered."""

    file: Path
    answered: int
    images: int


def main(
    folder: Path,
    options: ReviewOptions,
    progress: Progress = silent,
    *,
    against: Path | None = None,
    labels: Path | None = None,
    opened: Callable[[str], None] = lambda address: None,
) -> Reviewed:
    """Serve the review page until the reader stops it; `opened` gets its address.

    Every answer is in FOLDER/review/READER.csv at once, and a later call goes on after it. Raises InputError for a name
    that is no file name, for splits without a fitting image, and if the seed was begun with other images.
    """
    file = reader_file(Path(folder), options.reader)
    _require_options(options)
    given = open_images(folder, progress, against, labels)
    with locked(file.with_name(f".{options.reader}.lock"), f"the review of {options.reader}", wait=False):
        reading = prepare(given, options, AnswerFile.open(file))
        server = ReviewServer(reading, options.port)
        opened(server.address)
        server.serve()
    return Reviewed(file, reading.answered(), len(reading.uids))


def prepare(given: ImageSet, options: ReviewOptions, answers: AnswerFile) -> Reading:
    """Return what a reader reads, all images in memory, so that none takes longer to show than another."""
    if given.run.config.privacy is not None and "train" in options.splits and not options.private_train:
        raise InputError("--split train: the run is private; add --show-private-train to show its train images")
    real = given.cohort.manifest
    made = by_anatomy(given.made.rows, real.rows["patient_id"])
    chosen = choose(
        real.rows[real.rows["split"].isin(options.splits)], made, real.findings, options.images, options.seed
    )
    if len(chosen) < 2 * options.images:
        log.warning(
            "%d images of each kind, not %d: real images of %s have no more that fit in finding and view, "
            "with one image of a patient",
            len(chosen) // 2, options.images, " and ".join(options.splits),
        )  # fmt: skip
    _require_same(given.folder, chosen[["finding"]], options)
    size = options.size or given.size
    kinds = {kind: list(chosen.index[chosen["kind"] == kind]) for kind in ("real", "synthetic")}
    if size > given.size:
        _require_pixels([*map(real.file, kinds["real"]), *map(given.made.file, kinds["synthetic"])], size)
    pixels = torch.cat([given.real(kinds["real"], size), given.synthetic(kinds["synthetic"], size)])
    place = {uid: i for i, uid in enumerate([*kinds["real"], *kinds["synthetic"]])}
    uids = order(list(chosen.index), options.seed, options.reader)
    findings = [str(chosen.at[uid, "finding"]) for uid in uids]
    return Reading(uids, findings, pixels[[place[uid] for uid in uids]], answers, options.seed, options.questions)


def _require_options(options: ReviewOptions) -> None:
    """Raise InputError for an unknown split or question."""
    for name, given, known in (("--split", options.splits, SPLITS), ("--questions", options.questions, QUESTIONS)):
        if not given or not set(given) <= set(known):
            raise InputError(f"{name} {','.join(given)}: use {', '.join(known)}, with commas between them")
    if options.images < 1:
        raise InputError(f"--images {options.images}: give 1 or more")


def _require_pixels(files: list[AnyFile], size: int) -> None:
    """Raise InputError if an image is smaller than this size, px: enlarged, its blur would show the kind."""
    if (least := min(min(image_shape(file)) for file in files)) < size:
        what = f"an image has {least} px only, and enlarged images would show which ones are real"
        raise InputError(f"--size {size}: {what}; give {least} or less")


def _require_same(folder: Path, chosen: pd.DataFrame, options: ReviewOptions) -> None:
    """Write the reading list of a seed, or raise InputError if it was begun with another one."""
    file = folder / FOLDER / f"seed-{options.seed}.parquet"
    if not file.is_file():
        write_table(file, chosen)
        return
    try:
        before = read_table(file)
    except (OSError, ValueError):
        raise InputError(f"{file}: damaged; move it away, or give another --seed") from None
    if not before.equals(chosen):
        what = f"was begun with {len(before) // 2} images of each kind, or before the images changed"
        raise InputError(f"--seed {options.seed}: {what}; give the options of that call, or another --seed")


def show_results(folder: Path, progress: Progress = silent, *, against: Path | None = None, labels: Path | None = None,
                 verdicts: Path | None = None) -> ReviewResults:  # fmt: skip
    """Return what the readers of a folder answered, and the verdicts of a CSV. Raises InputError if nobody has read."""
    readings = read_readings(Path(folder), verdicts)
    if readings.empty:
        raise InputError(f"{folder}: no reader has answered yet; start with `medlt review {folder} --reader NAME`")
    if against is None and (known := review_results(folder, verdicts)) is not None:
        return known
    return results(readings, all_rows(open_images(folder, progress, against, labels)))


def all_rows(given: ImageSet) -> pd.DataFrame:
    """Return the real and the synthetic rows with their labels and the column `synthetic`, index uid."""
    findings = list(given.cohort.findings)
    real, made = (one.rows[findings] for one in (given.cohort.manifest, given.made))
    return pd.concat([real.assign(synthetic=False), made.assign(synthetic=True)])
