"""Check synthetic images, of a run or made elsewhere: sanity, copies, labels, fingerprint, answers of readers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medlt.checks.label_rank import LabelRank, rank_limits
from medlt.checks.outcome import CheckOutcome, CheckSummary, not_measured, outcome, read_check
from medlt.checks.real_copy import NAME as REAL_COPY
from medlt.checks.real_copy import real_copies
from medlt.checks.sanity import Finite, Flat, Saturated, copies
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.evaluation.fingerprint import LIMIT, MOST, TAIL, fingerprint
from medlt.evaluation.sources import Verifiers
from medlt.recipes._image_sets import ImageSet, open_images
from medlt.recipes._models import train_verifiers
from medlt.recipes._privacy import private_fit
from medlt.recipes._through_codec import through_codec
from medlt.recipes.review import all_rows
from medlt.review.results import read_readings, results
from medlt.rng import numpy_generator, seed_of
from medlt.training.runtime import silent
from medlt.types import Batch, Check, CheckResult, Progress

CHUNK = 256
DRAWS = 1000
SANITY = {
    "finite": ("all pixels of {images} images are in [0,1]", "{failed} of {images} images have pixels outside [0,1]"),
    "flat": ("none of {images} images is flat", "{failed} of {images} images are flat (black, white or grey)"),
    "saturated": ("none of {images} images is saturated", "{failed} of {images} images are mostly black or white"),
}
"""Check -> its conclusions."""
LEVEL = 0.05
"""Level of the test that more labels are contradicted than by chance, divided by the number of findings."""


@dataclass(frozen=True)
class CheckOptions:
    """Options of a check: the run that images made elsewhere are compared with, tables, and the folder of results."""

    against: Path | None = None
    labels: Path | None = None
    verdicts: Path | None = None
    out: Path | None = None


def main(folder: Path, options: CheckOptions, progress: Progress = silent) -> CheckSummary:
    """Check all images, write check.json and check.parquet to FOLDER or `out`, and return what they say.

    Raises InputError for a folder that is no run and no folder of images, and if a file of these names is of another
    program.
    """
    place = Path(options.out or folder)
    read_check(place)
    given = open_images(Path(folder), progress, options.against, options.labels)
    with given.run.runtime.limited():
        parts: list[Callable[[], CheckOutcome]] = [
            partial(check_readable, given),
            *(partial(check_sanity, given, check) for check in _sanity(given)),
            partial(check_copies, given),
            partial(check_real_copies, given),
            *_by_verifiers(given),
            partial(check_readers, given, options.verdicts),
        ]
        outcomes = []
        for number, part in enumerate(parts):
            progress("checks", number, len(parts))
            outcomes.append(part())
        progress("checks", len(parts), len(parts))
    summary = CheckSummary(len(given.made.rows), tuple(outcomes))
    summary.write(place)
    return summary


def check_readable(given: ImageSet) -> CheckOutcome:
    """Return which files of a folder made elsewhere cannot be read; a missing image of a run ends the check."""
    bad = [("", CheckResult("readable", Path(file).stem, 0.0, 1.0, False, why)) for file, why in given.unreadable]
    good = [("", CheckResult("readable", str(uid), 1.0, 1.0, True)) for uid in given.made.rows.index]
    return outcome("readable", [*bad, *good], "all {images} images are readable", "{failed} files are not readable")


def _sanity(given: ImageSet) -> tuple[Check, ...]:
    return Finite(), Flat(given.run.config.checks.min_std), Saturated()


def check_sanity(given: ImageSet, check: Check) -> CheckOutcome:
    """Return the outcome of a check of each image alone, a few images at a time."""
    rows, name = given.made.rows, str(getattr(check, "name", ""))
    done: list[tuple[str, CheckResult]] = []
    for start in range(0, len(rows), CHUNK):
        part = rows.iloc[start : start + CHUNK]
        pixels = images(given.made, given.size, list(part.index), torch.float32)
        done += [("", result) for result in check(Batch(part, pixels, part[list(given.made.findings)]))]
    return outcome(name, done, *SANITY[name])


def check_copies(given: ImageSet) -> CheckOutcome:
    """Return which images copy another image of the set."""
    limit = given.run.config.checks.max_correlation
    done = copies(list(given.made.rows.index), _squares(given, given.made), limit)
    good, bad = "no image copies another one", "{failed} of {images} images copy an earlier one of the set"
    return outcome("copy", [("", result) for result in done], good, bad)


def check_real_copies(given: ImageSet) -> CheckOutcome:
    """Return which images copy a real image of any split."""
    real, limit = given.cohort.manifest, given.run.config.checks.max_correlation
    uids, others = list(given.made.rows.index), list(real.rows.index)
    done = real_copies(uids, _squares(given, given.made), others, partial(given.cohort.images, real, given.size), limit)
    good, bad = f"no image copies one of {len(others)} real images", "{failed} of {images} images copy a real image"
    return outcome(REAL_COPY, [("", result) for result in done], good, bad)


def _squares(given: ImageSet, part: Manifest) -> Callable[[Sequence[str]], Tensor]:
    return lambda uids: images(part, given.size, list(uids))


def _by_verifiers(given: ImageSet) -> Iterator[Callable[[], CheckOutcome]]:
    """Yield the checks that need the verifiers of the run."""
    if given.run.config.data_independent:
        reason = "no verifier may be trained on the patients of this private run; let radiologists read the images"
        yield from (partial(not_measured, name, reason) for name in (LabelRank.name, "fingerprint"))
        return
    trained = train_verifiers(given.run, given.cohort, private_fit(given.run, given.cohort))
    labels = given.cohort.train.rows[list(given.cohort.findings)]
    verifiers = Verifiers(trained, labels, given.run.config.classifier.size)
    yield partial(check_labels, given, verifiers)
    yield partial(check_fingerprint, given, verifiers)


def check_labels(given: ImageSet, verifiers: Verifiers) -> CheckOutcome:
    """Return which positive labels the verifiers contradict; it fails if these are more than by chance.

    An image is scored by the verifier of its fold, which was not trained on its parents. An image made elsewhere, whose
    parents are not on record, is scored by one drawn by its uid.
    """
    fold = _folds(given, len(verifiers.cross_fit.verifiers))
    scores = verifiers.mask_unobserved(_scores(given, verifiers, fold), fold)
    check = LabelRank(rank_limits(verifiers.held_out(), verifiers.labels))
    done = check(scores, given.made.rows[list(given.made.findings)])
    named = pd.DataFrame([(name, not result.passed) for name, result in done], columns=["finding", "named"])
    tested = named.groupby("finding")["named"].agg(["sum", "size"]).itertuples()
    p = {str(name): check.limits[str(name)].p_value(int(count), int(size)) for name, count, size in tested}
    worse = [name for name, value in p.items() if value < LEVEL / len(p)]
    uids = tuple(dict.fromkeys(result.uid for _, result in done if not result.passed))
    if not done:
        return not_measured(check.name, "no finding has a real positive that verifiers saw")
    relation = "no more than right labels give by chance" if not worse else f"more than by chance: {', '.join(worse)}"
    own = "" if given.elsewhere else "; the verifiers also selected these images"
    text = f"{len(uids)} of {len(scores)} images have a label that a verifier contradicts, {relation}{own}"
    return CheckOutcome(check.name, "failed" if worse else "passed", len(scores), text, uids, tuple(done))


def _folds(given: ImageSet, count: int) -> pd.Series:
    """Return uid -> number of the verifier that scores the image."""
    rows = given.made.rows
    if "fold" in rows and not given.elsewhere:
        return rows["fold"].astype(int)
    return pd.Series([seed_of("check", uid) % count for uid in rows.index], rows.index, name="fold")


def _scores(given: ImageSet, verifiers: Verifiers, fold: pd.Series) -> pd.DataFrame:
    """Return probabilities, uid x finding."""
    parts = []
    for number, uids in fold.groupby(fold).groups.items():
        verifier = verifiers.cross_fit.verifiers[int(str(number))]
        for start in range(0, len(uids), CHUNK):
            chosen = list(uids[start : start + CHUNK])
            values = verifier(given.synthetic(chosen, verifiers.size)).cpu().numpy()
            parts.append(pd.DataFrame(values, index=chosen, columns=list(given.cohort.findings)))
    return pd.concat(parts).loc[fold.index].rename_axis("uid")


def check_fingerprint(given: ImageSet, verifiers: Verifiers) -> CheckOutcome:
    """Return whether the verifiers call real images without a tail finding tail-positive once these were coded."""
    cohort, name = given.cohort, "fingerprint"
    coded = None if given.elsewhere else through_codec(given.run, cohort, cohort)
    if coded is None:
        return not_measured(name, "the codec of these images is not known, or loses nothing, or is private")
    tail = [cohort.findings.index(one) for one in cohort.tail]
    uids = [str(uid) for uid in cohort.val.rows.index[(cohort.val.labels()[:, tail] == 0).all(1)]]
    uids = [uids[i] for i in sorted(numpy_generator(given.run.config.seed, name).permutation(len(uids))[:MOST])]
    if not tail or len(uids) < 2:
        return not_measured(name, "no tail finding, or fewer than 2 validation images without one")
    pairs = cohort.images(cohort.manifest, verifiers.size, uids), coded(verifiers.size, uids)
    raw, made = (
        np.stack([one(pixels).cpu().numpy()[:, tail] for one in verifiers.cross_fit.verifiers]) for pixels in pairs
    )
    patients = list(cohort.val.rows["patient_id"].astype(str).loc[uids])
    rng = numpy_generator(given.run.config.seed, name, "bootstrap")
    value, low, high = fingerprint(raw, made, patients, n_bootstrap=DRAWS, rng=rng)[0]
    bad = not value <= LIMIT
    text = (
        f"verifiers rate coded above raw real images without a tail finding with AUROC {value:.2f} "
        f"[{low:.2f}, {high:.2f}], limit {LIMIT}{': they see the codec' if bad else ''}"
    )
    arms = _arms(given.run.folder)
    text += f"; arms above the limit: {', '.join(arms)}" if arms else ""
    failed = bad or bool(arms)
    row = CheckResult(name, "", value, LIMIT, not bad, text if bad else "")
    return CheckOutcome(name, "failed" if failed else "passed", len(uids), text, (), ((TAIL, row),))


def _arms(folder: Path) -> list[str]:
    """Return the arms of the run's comparison whose classifiers see the codec."""
    file = folder / "fingerprints.parquet"
    if not file.is_file():
        return []
    table = pd.read_parquet(file)
    return [str(one) for one in table.loc[(table["finding"] == TAIL) & (table["auroc"] > LIMIT), "arm"]]


def check_readers(given: ImageSet, verdicts: Path | None) -> CheckOutcome:
    """Return which images readers reject, or contradict the labels of; only synthetic images make it fail."""
    readings, name = read_readings(given.folder, verdicts), "readers"
    read = results(readings, all_rows(given))
    if not read.readers:
        return not_measured(name, "no reader has answered; use `medlt review`")
    whole = pd.concat([read.rejected, read.contradictions], ignore_index=True)
    done = [
        (str(row.finding), CheckResult(name, str(row.uid), math.nan, math.nan, False, f"{row.reader}: {row.reason}"))
        for row in whole.itertuples()
    ]
    made = set(given.made.rows.index)
    uids = tuple(dict.fromkeys(result.uid for _, result in done))
    bad = [uid for uid in uids if uid in made]
    images_read = int(readings["uid"].isin(made).groupby(readings["uid"]).first().sum())
    text = f"{len(bad)} of {images_read} synthetic images that readers read are rejected or contradict their label"
    text += f"; {len(uids) - len(bad)} real ones contradict theirs" if len(uids) > len(bad) else ""
    return CheckOutcome(name, "failed" if bad else "passed", images_read, text, uids, tuple(done))
