"""Turn scores into a verdict: helps, no evidence, harms or cannot see. The interval of the difference decides, not the
mean.

One arm is selected on the validation rows. Only its comparison with its control on the test rows is the verdict. All
other differences are reported beside it, without a correction for their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from medlt.evaluation.arms import REAL, Arm, ArmScores
from medlt.evaluation.sight import CANNOT_SEE
from medlt.metrics.bootstrap import difference, metric_table
from medlt.metrics.power import smallest_gain_with
from medlt.rng import numpy_generator
from medlt.types import InputError

SENTENCES = {
    "helps": "The synthetic images help more than duplicated real images",
    "no evidence": "No evidence that the synthetic images are better or worse than duplicated real images",
    "harms": "The synthetic images are worse than duplicated real images",
}
ONE_SEED = (
    "No verdict: one seed does not show how much training varies. Set evaluation.seeds to 3, or to 5 for a claim."
)
NO_TAIL = "No verdict: no tail finding has a positive test image, so the arms cannot be compared."
NOT_KEPT = "No evidence: no synthetic image passed the checks, so there is nothing to compare."
NOTHING = (
    "No verdict: no arm has synthetic images with labels that do not come from verifiers. "
    "Give an arm a source, with labels soft or hard."
)
TAIL = "tail"
TIMES, MORE_SEEDS = (1, 2, 4, 8, 16), (5, 10)
"""Test patients, as multiples of those of the experiment, and seeds of the larger experiments of `power_curve`."""


def score_table(arms: ArmScores, groups: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return every metric of every arm and seed: columns arm, seed, finding, metric, value.

    `finding` is a finding's name, "macro" (mean over findings) or a group's name (mean over its findings).
    """
    parts = []
    for arm, scores in arms.scores.items():
        decisions = arms.decisions(arm)
        for seed, one in enumerate(scores):
            own = None if decisions is None else decisions[seed]
            part = metric_table(arms.truth, one, arms.findings, groups, own)
            parts.append(part.assign(arm=arm, seed=seed))
    return pd.concat(parts, ignore_index=True)[["arm", "seed", "finding", "metric", "value"]]


def compare_arms(
    arms: ArmScores,
    pairs: Sequence[tuple[str, str]],
    groups: Mapping[str, Sequence[str]],
    *,
    n_bootstrap: int,
    seed: int,
) -> pd.DataFrame:
    """Return the patient-bootstrap differences of (arm, control) pairs, a row a metric and finding or group.

    Columns: those of `medlt.metrics.bootstrap.difference`, with `finding` for name, and arm and control.
    """
    tables = []
    for arm, control in pairs:
        own, other = arms.decisions(arm), arms.decisions(control)
        table = difference(
            arms.truth,
            arms.scores[arm],
            arms.scores[control],
            arms.patients,
            arms.findings,
            groups=groups,
            n_bootstrap=n_bootstrap,
            rng=numpy_generator(seed, "bootstrap", arm, control),
            decided=None if own is None or other is None else (own, other),
        )
        tables.append(table.rename(columns={"name": "finding"}).assign(arm=arm, control=control))
    return pd.concat(tables, ignore_index=True)


def comparison_pairs(arms: Sequence[Arm], primary: str | None, best_without: str) -> list[tuple[str, str]]:
    """Return the (arm, control) pairs to compare, each once.

    Every arm is compared with its control and with the real rows alone, the primary arm also with `best_without`, the
    best arm without synthetic images.
    """
    pairs = [(arm.name, arm.control) for arm in arms if arm.control]
    pairs += [(arm.name, REAL) for arm in arms if arm.name != REAL]
    pairs += [(primary, best_without)] if primary else []
    return list(dict.fromkeys(pairs))


def select_arm(arms: ArmScores, names: Sequence[str], members: Sequence[str]) -> str | None:
    """Return the arm of `names` with the best mean macro AP of `members` on validation.

    The first of equal arms is selected, and the first of all if no arm has a value; None if `names` is empty.
    """
    means = {name: arms.validation_ap(name, members).mean() for name in names}
    ranked = {name: value for name, value in means.items() if not np.isnan(value)}
    return max(ranked, key=lambda name: ranked[name]) if ranked else next(iter(names), None)


def selection_rule(arms: ArmScores, members: Sequence[str]) -> str:
    """Return what `select_arm` uses: validation, or the order of arms if no finding has a validation positive."""
    if np.isnan(arms.validation_ap(REAL, members)).all():
        return "the order in the config, as no tail finding has a validation positive"
    return "validation tail macro AP"


def _tail_row(table: pd.DataFrame, arms: ArmScores, arm: str, control: str) -> pd.Series:
    """Return the row that decides: the verdict's metric in the tail, of one arm against one control."""
    rows = table.query("arm == @arm and control == @control and metric == @arms.metric and finding == @TAIL")
    if rows.empty:
        raise InputError(f"no tail row for {arm} against {control}; the table has {sorted(set(table['arm']))}")
    return rows.iloc[0]


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _comparison(row: pd.Series) -> dict[str, Any]:
    numbers = {name: _number(row.get(name)) for name in ("difference", "low", "high")}
    return {"arm": row["arm"], "control": row["control"], "metric": row["metric"], "finding": TAIL, **numbers}


def _measured(row: pd.Series, arms: ArmScores) -> str:
    """Return what was measured as a clause: the difference, its interval and the test set."""
    ends = "no interval" if pd.isna(row["low"]) else f"95 % interval [{row['low']:+.4f}, {row['high']:+.4f}]"
    seeds = f"{arms.seeds} seed{'s' if arms.seeds > 1 else ''}"
    patients = "simulated patients" if arms.simulated else "patients"
    size = f"{len(arms.truth)} test images of {len(set(arms.patients))} {patients}, {seeds}"
    return f"difference in tail macro {arms.metric} {row['difference']:+.4f}, {ends} ({size}; patient bootstrap)"


def decide(
    table: pd.DataFrame, arms: ArmScores, arm: str, control: str, problems: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the verdict on `arm` against its count-matched control, with its sentence and the numbers behind it.

    problems: why the experiment cannot see, see `medlt.evaluation.sight`.
    """
    row = _tail_row(table, arms, arm, control)
    verdict, measured, reason = str(row["verdict"]), _measured(row, arms), str(row.get("reason", "")).partition(":")[0]
    sentence = f"{SENTENCES.get(verdict, '')}: {measured}." + (f" Reason: {reason}." if reason else "")
    if pd.isna(row["difference"]):
        verdict, sentence = "no verdict", NO_TAIL
    elif arms.seeds < 2:
        verdict, sentence = "no verdict", f"{ONE_SEED} {measured[0].upper()}{measured[1:]}."
    elif problems:
        verdict, sentence = CANNOT_SEE, f"Cannot see: {'; and '.join(problems)}. Measured: {measured}."
    return {
        "verdict": verdict,
        "sentence": sentence,
        "comparison": _comparison(row),
        "smallest": _number(row.get("smallest")),
        "power_curve": power_curve(row, arms),
        "test_images": len(arms.truth),
        "test_patients": len(set(arms.patients)),
        "seeds": arms.seeds,
    }


def power_curve(row: pd.Series, arms: ArmScores) -> list[dict[str, float | None]]:
    """Return the smallest gain of this and of larger experiments: patients, seeds, smallest; empty if it has none."""
    if pd.isna(row["smallest"]):
        return []
    patients = len(set(arms.patients))
    sizes = [(times, seeds) for times in TIMES for seeds in sorted({arms.seeds, *MORE_SEEDS}) if seeds >= arms.seeds]
    gains = [
        smallest_gain_with(row["se"], row["df"], arms.seeds, times=times, more_seeds=seeds) for times, seeds in sizes
    ]
    return [
        {"patients": times * patients, "seeds": seeds, "smallest": _number(gain)}
        for (times, seeds), gain in zip(sizes, gains, strict=True)
    ]


def comparison_entry(table: pd.DataFrame, arms: ArmScores, arm: str, control: str) -> dict[str, Any]:
    """Return one comparison in the tail with its verdict, as an entry of verdict.json."""
    row = _tail_row(table, arms, arm, control)
    known = arms.seeds > 1 and not pd.isna(row["difference"])
    return _comparison(row) | {"verdict": str(row["verdict"]) if known else "no verdict"}


def comparison_entries(
    table: pd.DataFrame, arms: Sequence[Arm], tested: ArmScores, tail: Sequence[str]
) -> list[dict[str, Any]]:
    """Return an entry for every arm with a control, with its tail macro AP on validation."""
    entries = [comparison_entry(table, tested, arm.name, arm.control) for arm in arms if arm.control]
    return [one | {"val_tail_ap": _number(tested.validation_ap(one["arm"], tail).mean())} for one in entries]
