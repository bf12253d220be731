"""From scores to words: helps, no evidence, harms. The interval decides, never the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from medlt.chance import rng
from medlt.evaluation.arms import CONTROL, Arms
from medlt.metrics.bootstrap import difference
from medlt.metrics.ranking import METRICS, per_finding

WORDS = {
    "helps": "helps: it beats duplicated real images",
    "no evidence": "no evidence: it cannot be told apart from duplicated real images",
    "harms": "harms: it is worse than duplicated real images",
}


def score_table(arms: Arms, groups: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """AP and AUROC of every arm and seed: columns arm, seed, finding, metric, value.

    `finding` is a finding's name, "macro" (mean over findings) or a group's name (mean over its findings).
    """
    parts = []
    for arm, scores in arms.scores.items():
        for seed, one in enumerate(scores):
            table = per_finding(arms.truth, one, arms.findings)[list(METRICS)]
            means = {"macro": table.mean()} | {g: table.loc[list(m)].mean() for g, m in groups.items() if m}
            whole = pd.concat([table, pd.DataFrame(means).T]).rename_axis("finding").reset_index()
            parts.append(whole.melt("finding", var_name="metric", value_name="value").assign(arm=arm, seed=seed))
    return pd.concat(parts, ignore_index=True)[["arm", "seed", "finding", "metric", "value"]]


def compare(
    arms: Arms, pairs: Sequence[tuple[str, str]], groups: Mapping[str, Sequence[str]], *, draws: int, seed: int
) -> pd.DataFrame:
    """Patient-bootstrap differences for (arm, control) pairs: arm, control, finding, metric, difference, low, ..."""
    tables = []
    for arm, control in pairs:
        found = difference(
            arms.truth,
            arms.scores[arm],
            arms.scores[control],
            arms.patients,
            arms.findings,
            groups=groups,
            draws=draws,
            rng=rng(seed, "bootstrap", arm, control),
        )
        tables.append(found.rename(columns={"name": "finding"}).assign(arm=arm, control=control))
    return pd.concat(tables, ignore_index=True)


def decide(table: pd.DataFrame, arms: Arms, method: str) -> dict[str, Any]:
    """The verdict on `method`: tail macro AP against the duplicated control, as a word, a sentence and its numbers."""
    asked = table.query("arm == @method and control == @CONTROL and metric == 'AP' and finding == 'tail'")
    if asked.empty:
        raise ValueError(f"no tail row for {method} against {CONTROL}; the table holds {sorted(set(table['arm']))}")
    row = asked.iloc[0]
    seeds = len(arms.scores[method])
    size = f"{len(arms.truth)} test images of {len(set(arms.patients))} patients, {seeds} seeds"
    interval = f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
    numbers = {k: (None if np.isnan(row[k]) else float(row[k])) for k in ("difference", "low", "high")}
    return {
        "verdict": str(row["word"]),
        "sentence": f"{WORDS[row['word']]}. Tail macro AP differs by {interval} ({size}; 95 % patient bootstrap).",
        "comparison": {"arm": method, "control": CONTROL, "metric": "AP", "finding": "tail", **numbers},
        "test_images": len(arms.truth),
        "test_patients": len(set(arms.patients)),
        "seeds": seeds,
    }
