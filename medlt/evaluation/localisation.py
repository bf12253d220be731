"""How well the maps of a run find its masks and boxes, and how much of a finding its images carry.

One row for each finding, stage and metric, columns COLUMNS. `rows` says what was scored:

| rows | stage | metric |
|---|---|---|
| train, val: real images with a mask or a box of the finding | a stage of maps | `MEASURES`, the map at THRESHOLD |
| made: synthetic images of a tail image with a mask or a box | images | IMAGE_METRICS |

`finding` is also "macro", for maps, the mean over findings of the images that every stage knows, and "overall", all
synthetic images together.
No stage may read the mask or box that it is compared with. Intervals are over patients: of the image, or of the tail
image that a synthetic one was made from.

| metric of images | what |
|---|---|
| lesion_carried, mask_share | share of the finding, and of all pixels, that came from the tail image |
| below_half | share of the images with the finding in their label that carry less than half of it |
| tail_mass_correlation | rank correlation of the map's mass on the pixels taken with lesion_carried |
| label_mass_correlation | the same of the mass that the label is made of |

A random mask has a lesion_carried equal to its mask_share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from medlt.data.regions import Regions
from medlt.metrics.draws import Spread
from medlt.metrics.localisation import MEASURES, correlation_interval, macro_interval, mean_interval, measures
from medlt.metrics.reasons import FEWEST_PATIENTS
from medlt.rng import seed_of
from medlt.types import Localise

COLUMNS = ("finding", "stage", "rows", "metric", "value", "low", "high", "images", "patients", "reason")
IMAGE_METRICS = ("lesion_carried", "mask_share", "below_half", "tail_mass_correlation", "label_mass_correlation")
MACRO, OVERALL, IMAGES, MADE = "macro", "overall", "images", "made"
THRESHOLD = 0.5
"""Where a map with maximum 1 is taken for `lesion` and `area`."""
MOST = 100
"""Number of images of a finding that a stage is scored on, at most."""
Rng = Callable[..., np.random.Generator]
"""Key -> generator."""


@dataclass(frozen=True)
class Scored:
    """Measures of one stage on images of one finding: measure -> [B], and the patient of each."""

    values: Mapping[str, np.ndarray]
    patients: Sequence[str]


def score_maps(
    stages: Mapping[str, Localise], regions: Regions, uids: Sequence[str], findings: Sequence[str],
    patients: Mapping[str, str], rng: Rng, *, rows: str, n_bootstrap: int = 1000, most: int = MOST,
) -> pd.DataFrame:  # fmt: skip
    """Return the rows of every stage for every finding with a mask or box on one of `uids`, and their macro means.

    stages: name -> maps [B,h,w], NaN where a stage does not know; patients: uid -> patient; `most` images of a finding
    are scored, chosen by a hash of their uid. Empty if no image has a mask or box.
    """
    table: list[dict[str, object]] = []
    scored: dict[tuple[str, str], Scored] = {}
    for finding in findings:
        known = some(set(regions.known(finding)) & set(uids), most)
        covers: dict[tuple[int, int], Tensor] = {}
        for name, stage in stages.items() if known else ():
            maps = stage(known, finding).float().cpu()
            size = (maps.shape[1], maps.shape[2])
            if size not in covers:
                covers[size] = regions.masks(known, finding, size)
            values = measures(maps.numpy(), covers[size].numpy(), THRESHOLD)
            scored[name, finding] = Scored(values, [patients[uid] for uid in known])
    for (name, finding), one in scored.items():
        table += _rows(finding, name, rows, [one], n_bootstrap, rng)
    for name, parts in comparable(scored).items():
        table += _rows(MACRO, name, rows, parts, n_bootstrap, rng)
    return pd.DataFrame(table, columns=list(COLUMNS))


def comparable(scored: Mapping[tuple[str, str], Scored]) -> dict[str, list[Scored]]:
    """Return stage -> its scores by finding, without the images that another stage does not know.

    scored: (stage, finding) -> scores, for the same images. A stage that knows no image at all limits no other.
    """
    stages = list(dict.fromkeys(name for name, _ in scored))
    findings = list(dict.fromkeys(finding for _, finding in scored))
    known = {key: ~np.isnan(one.values["auroc"]) for key, one in scored.items()}
    useful = [name for name in stages if any(known[name, finding].any() for finding in findings)]
    parts: dict[str, list[Scored]] = {name: [] for name in stages}
    for name, finding in scored:
        common = np.logical_and.reduce([known[one, finding] for one in useful or stages])
        one = scored[name, finding]
        values = {metric: np.where(common, of, np.nan) for metric, of in one.values.items()}
        parts[name].append(Scored(values, one.patients))
    return parts


def some(uids: set[str], most: int) -> list[str]:
    """Return at most `most` of these uids, sorted; which ones depends on the uids alone."""
    return sorted(sorted(uids, key=lambda uid: seed_of("localisation", uid))[:most])


def _rows(
    finding: str, stage: str, rows: str, parts: Sequence[Scored], n_bootstrap: int, rng: Rng
) -> Iterator[dict[str, object]]:
    """Yield one row for each measure: the mean over the parts."""
    for metric in MEASURES:
        groups = [(one.values[metric], one.patients) for one in parts]
        value, seen = macro_interval(groups, n_bootstrap, rng("maps", rows, stage, finding, metric))
        known = [np.asarray(owners, dtype=str)[~np.isnan(values)] for values, owners in groups]
        yield _row(finding, stage, rows, metric, value, seen, np.concatenate(known))


def score_images(made: pd.DataFrame, patients: Mapping[str, str], rng: Rng, *, n_bootstrap: int = 1000) -> pd.DataFrame:
    """Return the rows of the synthetic images; empty if none has a known `lesion_carried`.

    made: one row an image with finding, tail_parent, lesion_carried, mask_share, tail_mass, label_mass, and the column
    of its finding, its label; patients: uid -> patient.
    """
    if "lesion_carried" not in made or made["lesion_carried"].isna().all():
        return pd.DataFrame(columns=list(COLUMNS))
    known = made[made["lesion_carried"].notna()]
    parts = [(OVERALL, known), *((str(name), part) for name, part in known.groupby("finding"))]
    table = [row for finding, part in parts for row in _image_rows(finding, part, patients, n_bootstrap, rng)]
    return pd.DataFrame(table, columns=list(COLUMNS))


def _image_rows(
    finding: str, part: pd.DataFrame, patients: Mapping[str, str], n_bootstrap: int, rng: Rng
) -> Iterator[dict[str, object]]:
    """Yield one row for each of IMAGE_METRICS."""
    owners = np.array([patients[uid] for uid in part["tail_parent"].astype(str)])
    carried = part["lesion_carried"].to_numpy(np.float64)
    labels = np.array([part.at[uid, name] for uid, name in part["finding"].items()], np.float64)
    below = np.where(labels >= 0.5, (carried < 0.5).astype(float), np.nan)
    means = {"lesion_carried": carried, "mask_share": part["mask_share"].to_numpy(np.float64), "below_half": below}
    for metric in IMAGE_METRICS:
        own = rng(IMAGES, finding, metric)
        if metric in means:
            one = means[metric]
            value, seen = mean_interval(one, owners.tolist(), n_bootstrap, own)
        else:
            one = part.get(metric.removesuffix("_correlation"), pd.Series(np.nan, part.index)).to_numpy(np.float64)
            value, seen = correlation_interval(one, carried, owners.tolist(), n_bootstrap, own)
        yield _row(finding, IMAGES, MADE, metric, value, seen, owners[~np.isnan(one)])


def _row(
    finding: str, stage: str, rows: str, metric: str, value: float, seen: Spread, owners: np.ndarray
) -> dict[str, object]:
    """Return one row; owners: the patient of each image that has a value."""
    count = len(np.unique(owners))
    reason = f"fewer than {FEWEST_PATIENTS} patients: the interval is too narrow" if count < FEWEST_PATIENTS else ""
    if np.isnan(value):
        reason = "no image has a value" if not len(owners) else "too few different values"
    numbers = (float(value), float(seen.low), float(seen.high), len(owners), count)
    return dict(zip(COLUMNS, (finding, stage, rows, metric, *numbers, reason), strict=True))
