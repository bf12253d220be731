"""From what all arms said of held-out rows to tables, and to the word."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medlt.chance import rng
from medlt.config import dump
from medlt.evaluation.arms import REAL, Arm, Arms
from medlt.evaluation.subgroups import ATTRIBUTES, subgroups
from medlt.evaluation.verdict import NOTHING, choose, chosen_by, compare, decide, line, lines, pairs, score_table
from medlt.files import digest, write_json, write_table
from medlt.metrics.calibration import reliability
from medlt.runs import Experiment
from medlt.types import InputError
from pipelines.stages import Collection


def conclude(run: Experiment, real: Collection, whole: Sequence[Arm], arms: Arms) -> None:
    """arms, scores, differences, reliability and subgroups.parquet, and verdict.json."""
    setting, tail = run.config.evaluation, real.tail
    chosen = setting.chosen or choose(arms, candidates(whole), tail)
    unaided = choose(arms, [arm.name for arm in whole if arm.role in ("real", "reweighted")], tail) or REAL
    asked = pairs(whole, (chosen, unaided))
    table = compare(arms, asked, real.members(), draws=setting.draws, seed=run.config.seed)
    shown = [REAL, chosen, _control(whole, chosen)] if chosen else [REAL]
    write_table(run.path("arms.parquet"), _arm_table(whole, arms, tail, chosen))
    write_table(run.path("scores.parquet"), score_table(arms, real.members()))
    write_table(run.path("differences.parquet"), table)
    write_table(run.path("reliability.parquet"), _reliability(arms, shown))
    write_table(run.path("subgroups.parquet"), _subgroups(run, real, arms, shown))
    told: dict[str, Any] = {"verdict": "no verdict", "sentence": NOTHING, "comparison": None}
    if chosen:
        told = decide(table, arms, chosen, _control(whole, chosen)) | {
            "against_real": line(table, arms, chosen, unaided)
        }
    told["chosen_by"] = "the config" if setting.chosen else chosen_by(arms, tail)
    told |= {"arms": lines(table, whole, arms, tail), "config": (named := _named(run))}
    write_json(run.path("verdict.json"), told | {"looks": _look(run, named)})


def candidates(whole: Sequence[Arm]) -> list[str]:
    """Arms that may be chosen: with synthetic images, under labels that do not come from judges.

    An arm of judged labels differs from its control in what the judges know as well as in the images.
    """
    return [arm.name for arm in whole if arm.role == "synthetic" and arm.about.get("labels") != "judged"]


def _look(run: Experiment, named: str) -> int:
    """How many experiments were concluded on these test rows in this folder; an earlier verdict is set aside.

    The more often a test set is asked, the more often it says yes by chance.
    """
    place, seen = run.path("verdict.json"), dict(run.told().get("looks", {}))
    if place.is_file() and (before := _read(place)).get("config") != named:
        write_json(run.path("earlier", f"verdict-{before.get('config')}.json"), before)
    seen.setdefault(named, len(seen) + 1)
    run.record(looks=seen)
    return len(seen)


def _named(run: Experiment) -> str:
    """Names the experiment: its config, but for where it lies and how many processes train it."""
    return digest(dump(run.config.model_copy(update={"out": Path(), "workers": 1})))


def _read(place: Path) -> dict[str, Any]:
    """A verdict. Raises InputError for a damaged one."""
    try:
        return dict(json.loads(place.read_text()))
    except ValueError:
        raise InputError(f"{place}: damaged; remove it, and the same command writes it again") from None


def _control(whole: Sequence[Arm], name: str) -> str:
    return next(arm.control for arm in whole if arm.name == name)


def _arm_table(whole: Sequence[Arm], arms: Arms, tail: Sequence[str], chosen: str | None) -> pd.DataFrame:
    """What each arm is, and how it did on validation."""
    found = []
    for arm in whole:
        value = arms.on_validation(arm.name, tail)
        spread = float(value.std(ddof=1)) if len(value) > 1 else float("nan")
        named = digest(dict(arm.settings), arm.added.digest() if arm.added is not None else "")
        own = {"arm": arm.name, "role": arm.role, "control": arm.control, "digest": named, "chosen": arm.name == chosen}
        found.append(own | dict(arm.about) | {"val_tail_ap": float(value.mean()), "val_tail_ap_sd": spread})
    return pd.DataFrame(found).astype({"dose": float})


def _reliability(arms: Arms, shown: Sequence[str]) -> pd.DataFrame:
    """Of all seeds together, an arm a block."""
    tables = {name: reliability(arms.truth, arms.scores[name], arms.patients, arms.findings) for name in shown}
    return pd.concat([table.assign(arm=name) for name, table in tables.items()], ignore_index=True)


def _subgroups(run: Experiment, real: Collection, arms: Arms, shown: Sequence[str]) -> pd.DataFrame:
    """View, sex, age and source of the test rows, as far as they are known."""
    rows = real.manifest.split("test").rows
    about = rows[[name for name in ATTRIBUTES if name in rows]].reset_index(drop=True)
    draws, seed = run.config.evaluation.draws, run.config.seed
    parts = [
        subgroups(
            arms.truth, arms.scores[name], arms.patients, about, arms.findings, real.tail, draws=draws,
            rng=rng(seed, "subgroups"),
        ).assign(arm=name)
        for name in shown
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)
