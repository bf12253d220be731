"""The plan of latent fusion: one row a future image, all chance drawn.

| column | meaning |
|---|---|
| uid (index) | of the future image |
| finding, slot, candidate | the finding to fill; which of the wanted images; which attempt at it |
| tail_parent, head_parent, parents | uids of the tail and the head image; a list of both |
| finding_b | what the head image is looked at for; empty if it has no positive label |
| q_a, q_b | thresholds of the two class activation maps, N(mean, sd), within [0,1] |
| p | chance of the tail's pixel where the masks do not decide, U(0,1) |
| seed | of the coins and of the noise |
| fold | of both parents |

A row depends on the collection, the seed and (finding, slot, candidate): a longer plan begins with the shorter one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medlt.rng import numpy_generator, seed_of
from medlt.synthesis import pairing
from medlt.synthesis.code_explainer import CodeExplainer
from medlt.synthesis.pairing import Partners, is_no_finding
from medlt.types import InputError

COLUMNS = (
    "finding",
    "slot",
    "candidate",
    "tail_parent",
    "head_parent",
    "finding_b",
    "parents",
    "q_a",
    "q_b",
    "p",
    "seed",
    "fold",
)
METRICS = ("saliency", "confusing")
Pairs = dict[str, list[tuple[str, str]]]


@dataclass(frozen=True)
class PlanSettings:
    """How chance is drawn. `metric` is one of METRICS, `neighbours` k, the thresholds are N(mean, sd)."""

    metric: str = "saliency"
    neighbours: int = 3
    threshold_mean: float = 0.5
    threshold_sd: float = 0.1
    num_candidates: int = 1

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise InputError(f"pairing: {self.metric!r} is not a metric; choose one of {', '.join(METRICS)}")


@dataclass(frozen=True)
class TrainTable:
    """The train rows: index uid; patient_id, fold, one 1/0/NaN column a finding; view, where it is known.

    `tail` are the findings to fill.
    """

    table: pd.DataFrame
    findings: tuple[str, ...]
    tail: tuple[str, ...]

    def __post_init__(self) -> None:
        if missing := [c for c in ("patient_id", "fold", *self.findings) if c not in self.table]:
            raise InputError(f"fusion: the table of train rows has no column {missing[0]!r}; add it")
        if strange := [c for c in self.tail if c not in self.findings]:
            raise InputError(f"fusion: {strange[0]!r} is not a finding of the collection; check its spelling")
        if self.table.index.has_duplicates:
            twice = self.table.index[self.table.index.duplicated()][0]
            raise InputError(f"fusion: uid {twice!r} is there twice; give each image its own")

    @property
    def no_finding(self) -> str | None:
        """The column that says nothing was found, if there is one."""
        return next((c for c in self.findings if is_no_finding(c)), None)

    def positive(self, finding: str) -> list[str]:
        """Uids with the finding, sorted. Raises InputError if there is none."""
        found = sorted(map(str, self.table.index[self.table[finding] == 1]))
        if not found:
            raise InputError(f"fusion: {finding} has no positive train row to be made from; leave it out of the need")
        return found


def _confused_with(rows: TrainTable, gaze: CodeExplainer, finding: str, mask: np.ndarray) -> str:
    """The head finding, carried by a possible partner, that images with `finding` are most taken for."""
    carried = [c for c in rows.findings if c not in rows.tail and (rows.table[c].to_numpy(float)[mask] == 1).any()]
    heads = [c for c in carried if not is_no_finding(c)] or carried
    if not heads:
        raise InputError(f"pairing: no head finding could be confused with {finding}; use pairing: saliency")
    columns = [rows.findings.index(c) for c in heads]
    return rows.findings[pairing.most_confusing(gaze.scores_of(rows.positive(finding)), columns)]


def _pairs(rows: TrainTable, gaze: CodeExplainer, finding: str, pool: Partners, k: int) -> Pairs:
    """For each tail uid its k partners and what they are looked at for. A uid without any is left out."""
    tails = rows.positive(finding)
    maps = gaze.maps_of(tails, np.full(len(tails), rows.findings.index(finding)))
    near = pairing.neighbours(maps, pool.maps, pairing.allowed(rows.table, tails, pool.uids), k)
    names = (*rows.findings, "")
    pairs = {
        uid: [(pool.uids[j], names[pool.finding[j]]) for j in found if j >= 0]
        for uid, found in zip(tails, near.tolist(), strict=True)
    }
    if alone := [uid for uid, found in pairs.items() if not found]:
        logging.getLogger(__name__).warning(
            "%d images with %s have no partner of their fold and projection", len(alone), finding
        )
    if len(alone) == len(tails):
        why = f"no image with {finding} has a partner in its fold and projection"
        raise InputError(f"pairing: {why}; use fewer folds, or fill in the column view")
    return {uid: found for uid, found in pairs.items() if found}


def _row(
    rows: TrainTable, pairs: Pairs, draws: PlanSettings, key: tuple[int, str, int, int], parent: str
) -> dict[str, Any]:
    """One future image; key is (seed, finding, slot, candidate)."""
    _, finding, slot, candidate = key
    rng = numpy_generator("fusion", *key)
    partner, partner_finding = pairs[parent][int(rng.integers(len(pairs[parent])))]
    q_a, q_b = np.clip(rng.normal(draws.threshold_mean, draws.threshold_sd, 2), 0.0, 1.0)
    values = (finding, slot, candidate, parent, partner, partner_finding, [parent, partner], float(q_a), float(q_b),
              float(rng.random()), int(rng.integers(2**63 - 1)), rows.table.at[parent, "fold"])  # fmt: skip
    name = re.sub(r"\W+", "-", finding)
    uid = f"fusion_{name}_{slot:05d}_{candidate}_{seed_of('uid', *key) % 16**6:06x}"
    return {"uid": uid} | dict(zip(COLUMNS, values, strict=True))


def plan(
    rows: TrainTable, gaze: CodeExplainer, draws: PlanSettings, need: Mapping[str, int], seed: int
) -> pd.DataFrame:
    """`draws.candidates` rows for each of need[finding] wanted images. All candidates of a slot share the tail image.

    Raises InputError for a finding that is not a tail finding, has no positive, or has no partner.
    """
    if strange := [c for c in need if c not in rows.tail]:
        raise InputError(f"fusion: {strange[0]!r} is wanted but is not a tail finding ({', '.join(rows.tail)})")
    mask = pairing.partner_mask(rows.table, rows.tail, rows.no_finding)
    everyone = pairing.partners(rows.table, rows.findings, mask, gaze) if draws.metric == "saliency" else None
    made = []
    for finding in (c for c in rows.findings if need.get(c, 0) > 0):
        only = None if everyone else _confused_with(rows, gaze, finding, mask)
        pool = everyone or pairing.partners(rows.table, rows.findings, mask, gaze, only)
        pairs = _pairs(rows, gaze, finding, pool, draws.neighbours)
        order = numpy_generator(seed, "parents", finding).permutation(sorted(pairs))
        for slot in range(need[finding]):
            parent = str(order[slot % len(order)])
            made += [_row(rows, pairs, draws, (seed, finding, slot, n), parent) for n in range(draws.num_candidates)]
    return pd.DataFrame(made, columns=["uid", *COLUMNS]).set_index("uid")
