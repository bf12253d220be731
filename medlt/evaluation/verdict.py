"""From scores to words: helps, no evidence, harms. The interval decides, never the mean.

Of many arms one is chosen on the validation rows; only its test against its control is the verdict. All other
differences stand beside it as what they are: comparisons nobody chose beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from medlt.evaluation.arms import REAL, Arm, Arms
from medlt.metrics.bootstrap import difference, metric_table
from medlt.rng import numpy_generator

WORDS = {
    "helps": "helps: it beats duplicated real images",
    "no evidence": "no evidence: it cannot be told apart from duplicated real images",
    "harms": "harms: it is worse than duplicated real images",
}
ONE_SEED = "no verdict: one seed. How much training varies is unknown; give evaluation.seeds: 3, or 5 for a claim."
NO_TAIL = "no verdict: no tail finding has a positive test image, so nothing can be ranked."
TAIL = "tail"
NOT_KEPT = "no evidence: nothing to compare, as no synthetic image passed the checks."
NOTHING = "no verdict: no arm has synthetic images under labels of their own; give one a source, labels not judged."


def score_table(arms: Arms, groups: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Every metric of every arm and seed: columns arm, seed, finding, metric, value.

    `finding` is a finding's name, "macro" (mean over findings) or a group's name (mean over its findings).
    """
    parts = []
    for arm, scores in arms.scores.items():
        said = arms.decided(arm)
        for seed, one in enumerate(scores):
            own = metric_table(arms.truth, one, arms.findings, groups, None if said is None else said[seed])
            parts.append(own.assign(arm=arm, seed=seed))
    return pd.concat(parts, ignore_index=True)[["arm", "seed", "finding", "metric", "value"]]


def compare(
    arms: Arms, pairs: Sequence[tuple[str, str]], groups: Mapping[str, Sequence[str]], *, draws: int, seed: int
) -> pd.DataFrame:
    """Patient-bootstrap differences for (arm, control) pairs: arm, control, finding, metric, difference, low, ..."""
    tables = []
    for arm, control in pairs:
        said = arms.decided(arm), arms.decided(control)
        found = difference(
            arms.truth,
            arms.scores[arm],
            arms.scores[control],
            arms.patients,
            arms.findings,
            groups=groups,
            draws=draws,
            rng=numpy_generator(seed, "bootstrap", arm, control),
            decided=None if said[0] is None or said[1] is None else (said[0], said[1]),
        )
        tables.append(found.rename(columns={"name": "finding"}).assign(arm=arm, control=control))
    return pd.concat(tables, ignore_index=True)


def pairs(whole: Sequence[Arm], also: tuple[str | None, str]) -> list[tuple[str, str]]:
    """What is held against what: each arm against its control, each against the real rows alone, and `also`."""
    asked = [(arm.name, arm.control) for arm in whole if arm.control]
    asked += [(arm.name, REAL) for arm in whole if arm.name != REAL]
    return list(dict.fromkeys([*asked, (also[0], also[1])] if also[0] else asked))


def choose(arms: Arms, names: Sequence[str], members: Sequence[str]) -> str | None:
    """The arm of `names` with the best mean macro AP of `members` on validation; the first of equals, None of none."""
    means = {name: arms.on_validation(name, members).mean() for name in names}
    ranked = {name: value for name, value in means.items() if not np.isnan(value)}
    return max(ranked, key=lambda name: ranked[name]) if ranked else next(iter(names), None)


def chosen_by(arms: Arms, members: Sequence[str]) -> str:
    """What `choose` goes by: validation, or the order of arms where no finding of `members` has a positive there."""
    if np.isnan(arms.on_validation(REAL, members)).all():
        return "its place in the config, as no tail finding has a validation positive"
    return "validation tail macro AP"


def _asked(table: pd.DataFrame, arm: str, control: str) -> pd.Series:
    """The line that decides: tail macro AP of one arm against one control."""
    found = table.query("arm == @arm and control == @control and metric == 'AP' and finding == @TAIL")
    if found.empty:
        raise ValueError(f"no tail row for {arm} against {control}; the table holds {sorted(set(table['arm']))}")
    return found.iloc[0]


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _comparison(row: pd.Series) -> dict[str, Any]:
    numbers = {name: _number(row.get(name)) for name in ("difference", "low", "high")}
    return {"arm": row["arm"], "control": row["control"], "metric": "AP", "finding": TAIL, **numbers}


def decide(table: pd.DataFrame, arms: Arms, arm: str, control: str) -> dict[str, Any]:
    """The verdict on `arm`: tail macro AP against its duplicated control, as a word, a sentence and its numbers."""
    row = _asked(table, arm, control)
    size = f"{len(arms.truth)} test images of {len(set(arms.patients))} patients, {arms.seeds} seeds"
    interval = f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
    word, said = str(row["word"]), f"Tail macro AP differs by {interval} ({size}; 95 % patient bootstrap)."
    sentence = f"{WORDS[word]}. {said}"
    if pd.isna(row["difference"]):
        word, sentence = "no verdict", NO_TAIL
    elif arms.seeds < 2:
        word, sentence = "no verdict", f"{ONE_SEED} {said}"
    return {
        "verdict": word,
        "sentence": sentence,
        "comparison": _comparison(row),
        "smallest": _number(row.get("smallest")),
        "test_images": len(arms.truth),
        "test_patients": len(set(arms.patients)),
        "seeds": arms.seeds,
    }


def line(table: pd.DataFrame, arms: Arms, arm: str, control: str) -> dict[str, Any]:
    """One comparison of tail macro AP with its word, as verdict.json tells it."""
    row = _asked(table, arm, control)
    known = arms.seeds > 1 and not pd.isna(row["difference"])
    return _comparison(row) | {"verdict": str(row["word"]) if known else "no verdict"}


def lines(table: pd.DataFrame, whole: Sequence[Arm], arms: Arms, tail: Sequence[str]) -> list[dict[str, Any]]:
    """Every arm's own line, with how it did on validation."""
    told = [(arm.name, line(table, arms, arm.name, arm.control)) for arm in whole if arm.control]
    return [said | {"val_tail_ap": _number(arms.on_validation(name, tail).mean())} for name, said in told]
