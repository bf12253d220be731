"""The plan of latent fusion: one row a future image, with all random numbers drawn.

| column | meaning |
|---|---|
| uid (index) | of the future image |
| finding, slot, candidate | the finding it is made for; number of the image; number of the attempt at it |
| tail_parent, head_parent, parents | uids of the tail image and the head image; a list of both |
| head_finding | finding of the head image's class activation map; empty if it has no positive label |
| tail_threshold, head_threshold | thresholds of the two class activation maps, N(mean, sd), within [0,1] |
| tail_probability | probability of the tail pixel where the masks do not decide, U(0,1) |
| tail_area | share of the cells that is taken from the tail image under rule tail_only, N(mean, sd), within [0,1] |
| seed | seed of the coins and of the noise |
| fold | fold of both parents |
| view, sex, age | those of the tail image, under which the image is sampled; None if unknown |

A row depends on the train rows, the seed and (finding, slot, candidate): a longer plan begins with the shorter one.

A tail image takes its partners in a random order without repeats, until each of its k has been used. With k = 3 and a
fresh draw for each row, 960 rows had 93 head images.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medlt.data.views import FRONTAL, projection
from medlt.diffusion.attributes import ATTRIBUTES
from medlt.localise.code_explainer import CodeExplainer
from medlt.names import no_finding
from medlt.rng import numpy_generator, seed_of
from medlt.synthesis import pairing
from medlt.synthesis.pairing import Partners
from medlt.types import InputError

COLUMNS = (
    "finding",
    "slot",
    "candidate",
    "tail_parent",
    "head_parent",
    "head_finding",
    "parents",
    "tail_threshold",
    "head_threshold",
    "tail_probability",
    "tail_area",
    "seed",
    "fold",
    *ATTRIBUTES,
)
PARENTS = ("tail_parent", "head_parent")
METRICS = ("saliency", "confusing")
log = logging.getLogger(__name__)
Pairs = dict[str, list[tuple[str, str]]]


@dataclass(frozen=True)
class PlanSettings:
    """Settings of a plan. metric: one of METRICS; neighbours: k; thresholds and areas are drawn from N(mean, sd)."""

    metric: str = "saliency"
    neighbours: int = 16
    threshold_mean: float = 0.5
    threshold_sd: float = 0.1
    area_mean: float = 0.2
    area_sd: float = 0.05
    num_candidates: int = 1

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise InputError(f"pairing: {self.metric!r} is not a metric; choose one of {', '.join(METRICS)}")


@dataclass(frozen=True)
class TrainTable:
    """The train rows of a method.

    table: index uid; columns patient_id, fold, one 1/0/NaN column a finding, and view, sex and age if known; findings:
    their order in label vectors; tail: the findings that images may be made for. Raises InputError for a missing
    column, an unknown tail finding or a repeated uid.
    """

    table: pd.DataFrame
    findings: tuple[str, ...]
    tail: tuple[str, ...]

    def __post_init__(self) -> None:
        if missing := [c for c in ("patient_id", "fold", *self.findings) if c not in self.table]:
            raise InputError(f"train rows have no column {missing[0]!r}; add it")
        if unknown := [c for c in self.tail if c not in self.findings]:
            raise InputError(f"train rows: {unknown[0]!r} is not a finding of the collection; check its spelling")
        if self.table.index.has_duplicates:
            twice = self.table.index[self.table.index.duplicated()][0]
            raise InputError(f"train rows: uid {twice!r} occurs twice; give each image its own uid")

    @property
    def no_finding(self) -> str | None:
        """Return the no-finding column, if there is one; see `medlt.names.no_finding`."""
        return no_finding(self.findings)

    def positive(self, finding: str) -> list[str]:
        """Return the uids with the finding, sorted. Raises InputError if there is none."""
        uids = sorted(map(str, self.table.index[self.table[finding] == 1]))
        if not uids:
            raise InputError(f"{finding} has no positive train row to make images from; remove it from the targets")
        return uids

    def parents(self, finding: str) -> list[str]:
        """Return the uids with the finding that images of it are made from, sorted.

        If some of them are frontal, those of another known view are left out, so that a lateral image never stands for
        a frontal one. Raises InputError if there is no row with the finding.
        """
        uids = self.positive(finding)
        views = [projection(view) for view in self.table.loc[uids, "view"]] if "view" in self.table else []
        kept = [uid for uid, view in zip(uids, views, strict=False) if view in (FRONTAL, "")]
        if FRONTAL not in views or len(kept) == len(uids):
            return uids
        left_out = len(uids) - len(kept)
        log.info("%s: %d of %d images are not frontal and are no parents", finding, left_out, len(uids))
        return kept

    def batches(self, rows: pd.DataFrame, parents: Sequence[str], size: int) -> Iterator[pd.DataFrame]:
        """Yield plan rows in groups of `size`; parents: columns that name train rows.

        Raises InputError for a parent that is not a train row.
        """
        for column in parents:
            if len(lost := rows.loc[~rows[column].isin(self.table.index), column]):
                raise InputError(f"plan: {column} {lost.iloc[0]!r} is not a train row; plan again for this collection")
        for start in range(0, len(rows), size):
            yield rows.iloc[start : start + size]


def _confused_with(train: TrainTable, explainer: CodeExplainer, finding: str, mask: np.ndarray) -> str:
    """Return the head finding of possible partners that is most confused with `finding`."""
    present = [c for c in train.findings if c not in train.tail and (train.table[c].to_numpy(float)[mask] == 1).any()]
    heads = [c for c in present if c != train.no_finding] or present
    if not heads:
        raise InputError(
            f"pairing: no possible partner of {finding} has a head finding; set method.pairing to saliency"
        )
    columns = [train.findings.index(c) for c in heads]
    return train.findings[pairing.most_confusing(explainer.scores_of(train.positive(finding)), columns)]


def _tails(train: TrainTable, finding: str, pool: Partners) -> list[str]:
    """Return the uids, sorted, that images of the finding are made from and that have a partner."""
    tails = train.parents(finding)
    count = pairing.pair_rule(train.table, tails, pool.uids).counts()
    if alone := int((count == 0).sum()):
        log.warning("%d images with %s have no partner in their fold and projection", alone, finding)
    if alone == len(tails):
        why = f"no image with {finding} has a partner in its fold and projection"
        raise InputError(f"pairing: {why}; lower checks.folds, or fill in the column view")
    return [uid for uid, some in zip(tails, count, strict=True) if some]


def _pairs(
    train: TrainTable, explainer: CodeExplainer, finding: str, tails: Sequence[str], pool: Partners, k: int
) -> Pairs:
    """Return tail uid -> its k partners, each (uid, finding)."""
    maps = explainer.maps_of(tails, np.full(len(tails), train.findings.index(finding)))
    rule = pairing.pair_rule(train.table, tails, pool.uids)
    near = pairing.nearest_allowed(maps, pool.maps, rule, k)
    names = (*train.findings, "")
    return {
        uid: [(pool.uids[j], names[pool.finding[j]]) for j in row if j >= 0]
        for uid, row in zip(tails, near.tolist(), strict=True)
    }


def _row(
    train: TrainTable, pairs: Pairs, settings: PlanSettings, key: tuple[int, str, int, int], parent: str, use: int
) -> tuple[Any, ...]:
    """Return uid and COLUMNS of one future image.

    key: (seed, finding, slot, candidate); use: of the tail image, from 0.
    """
    seed, finding, slot, candidate = key
    rng, near = numpy_generator("fusion", *key), pairs[parent]
    turn = numpy_generator(seed, "partners", finding, parent).permutation(len(near))
    partner, partner_finding = near[int(turn[use % len(near)])]
    thresholds = np.clip(rng.normal(settings.threshold_mean, settings.threshold_sd, 2), 0.0, 1.0)
    area = float(np.clip(rng.normal(settings.area_mean, settings.area_sd), 0.0, 1.0))
    name = re.sub(r"\W+", "-", finding)
    uid = f"fusion_{name}_{slot:05d}_{candidate}_{seed_of('uid', *key) % 16**6:06x}"
    return (uid, finding, slot, candidate, parent, partner, partner_finding, [parent, partner],
            *thresholds.tolist(), float(rng.random()), area, int(rng.integers(2**63 - 1)),
            train.table.at[parent, "fold"], *map(train.table.loc[parent].get, ATTRIBUTES))  # fmt: skip


def plan_fusion(
    train: TrainTable, explainer: CodeExplainer, settings: PlanSettings, targets: Mapping[str, int], seed: int
) -> pd.DataFrame:
    """Return targets[finding] slots of `settings.num_candidates` rows each, index uid.

    All candidates of a slot share the tail image. Raises InputError for a finding that is not a tail finding, has no
    positive, or has no partner.
    """
    if unknown := [c for c in targets if c not in train.tail]:
        tail = ", ".join(train.tail)
        raise InputError(f"fusion: {unknown[0]!r} is not a tail finding ({tail}); remove it from the targets")
    mask = pairing.partner_mask(train.table, train.tail, train.no_finding)
    common = pairing.partners(train.table, train.findings, mask, explainer) if settings.metric == "saliency" else None
    made = []
    for finding in (c for c in train.findings if targets.get(c, 0) > 0):
        only = None if common else _confused_with(train, explainer, finding, mask)
        pool = common or pairing.partners(train.table, train.findings, mask, explainer, only)
        order = numpy_generator(seed, "parents", finding).permutation(_tails(train, finding, pool))
        used_tails = sorted(map(str, order[: targets[finding]]))
        pairs = _pairs(train, explainer, finding, used_tails, pool, settings.neighbours)
        for slot in range(targets[finding]):
            parent, keys = str(order[slot % len(order)]), range(settings.num_candidates)
            used = slot // len(order) * settings.num_candidates
            made += [_row(train, pairs, settings, (seed, finding, slot, n), parent, used + n) for n in keys]
    return pd.DataFrame(made, columns=["uid", *COLUMNS]).set_index("uid")
