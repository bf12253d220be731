"""From what all arms said of held-out rows to tables, and to the word; the same for every command that compares.

Written into a folder: arms.parquet and verdict.json always; scores, comparisons, reliability and subgroups.parquet
where something was compared. A verdict of another experiment is kept in superseded/, and so is what is damaged.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medlt.evaluation.arms import REAL, Arm, Arms, HeldOutRows
from medlt.evaluation.engine import TrainedArms, trainable
from medlt.evaluation.subgroups import ATTRIBUTES, subgroups
from medlt.evaluation.verdict import (
    NOT_KEPT,
    NOTHING,
    choose,
    chosen_by,
    compare,
    decide,
    line,
    lines,
    pairs,
    score_table,
)  # fmt: skip
from medlt.files import digest, write_json, write_table
from medlt.metrics.calibration import reliability
from medlt.rng import numpy_generator
from medlt.types import InputError

VERDICT = "verdict.json"
SUPERSEDED = "superseded"
TABLES = ("scores", "comparisons", "reliability", "subgroups")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tables:
    """What a comparison is made of: see docs/reference for the columns."""

    scores: pd.DataFrame
    comparisons: pd.DataFrame
    reliability: pd.DataFrame
    subgroups: pd.DataFrame


@dataclass(frozen=True)
class Conclusion:
    """The verdict, as verdict.json has it, and the tables; `tables` is None where nothing could be compared.

    experiments: names of all experiments whose verdict was made on these test rows, this one among them, in order of
    time; hand them to the next `conclude`. The more often a test set is asked, the more often it says yes by chance.
    """

    verdict: Mapping[str, Any]
    arms: pd.DataFrame
    tables: Tables | None
    experiments: tuple[str, ...]

    @property
    def word(self) -> str:
        """helps, harms, no evidence, or no verdict."""
        return str(self.verdict["verdict"])

    @property
    def primary(self) -> str | None:
        """The arm the verdict is about."""
        marked = self.arms.loc[self.arms["primary"], "arm"]
        return str(marked.iloc[0]) if len(marked) else None


def conclude(
    rows: HeldOutRows,
    arms: Sequence[Arm],
    trained: TrainedArms,
    folder: Path,
    *,
    draws: int,
    seed: int,
    chosen: str | None = None,
    experiments: Sequence[str] = (),
) -> Conclusion:
    """Choose an arm on validation, test it against its control, and write tables and verdict into `folder`.

    draws: of the patient bootstrap, seeded by `seed`; chosen: the arm to decide on, None for the best on validation;
    experiments: what an earlier call returned. Raises InputError for a chosen arm that has no synthetic images.
    """
    if chosen is not None and chosen not in (names := [arm.name for arm in arms if arm.role == "synthetic"]):
        raise InputError(f"{chosen!r} is no arm with synthetic images; choose one of {', '.join(names) or 'none'}")
    named = experiment(rows, arms, trained.seeds, draws=draws, seed=seed, chosen=chosen)
    compared = trainable(arms)
    said = _said(rows, compared, trained)
    seen = tuple(dict.fromkeys([*experiments, *([named] if compared else [])]))
    picked = _picked(arms, compared, said, rows.tail, chosen)
    tables, told = None, _nothing(arms, picked)
    if said is not None:
        unaided = choose(said, [arm.name for arm in compared if arm.role in ("real", "reweighted")], rows.tail) or REAL
        tables = _tables(rows, compared, said, picked, unaided, draws=draws, seed=seed)
        if picked is not None:
            told = decide(tables.comparisons, said, picked, _control(compared, picked))
            told |= {"against_real": line(tables.comparisons, said, picked, unaided)}
            told |= {"chosen_by": _chosen_by(said, compared, rows.tail, chosen)}
        told |= {"arms": lines(tables.comparisons, compared, said, rows.tail)}
    told |= {"experiment": named, "test_set_evaluations": len(seen)}
    found = Conclusion(told, _arm_table(arms, said, rows.tail, picked), tables, seen)
    _write(found, Path(folder))
    return found


def candidates(arms: Sequence[Arm]) -> list[str]:
    """Return the arms that may be chosen: with synthetic images, under labels that do not come from judges.

    An arm of judged labels differs from its control in what the judges know as well as in the images.
    """
    own = (arm for arm in arms if arm.role == "synthetic" and not arm.empty)
    return [arm.name for arm in own if arm.about.get("labels") != "verifier"]


def experiment(
    rows: HeldOutRows, arms: Sequence[Arm], seeds: Sequence[int], *, draws: int, seed: int, chosen: str | None
) -> str:
    """Return 16 hex digits that name a question to the test set: rows, arms, seeds and how they are compared."""
    asked = [[arm.name, arm.role, arm.control, arm.digest()] for arm in arms]
    return digest(rows.digest(), asked, list(seeds), draws, seed, chosen)


def _said(rows: HeldOutRows, arms: Sequence[Arm], trained: TrainedArms) -> Arms | None:
    """What the arms say of the held-out rows; None where none was trained."""
    if not arms:
        return None
    if lost := [arm.name for arm in arms if arm.name not in trained.test]:
        raise InputError(f"arm {lost[0]!r} was not trained; train all arms before concluding")
    test, val = ({arm.name: said[arm.name] for arm in arms} for said in (trained.test, trained.val))
    patients = [str(patient) for patient in rows.patients]
    single = any(arm.settings.get("task") == "single-label" for arm in arms)
    return Arms(test, rows.test.labels, patients, rows.findings, val, rows.val.labels, single)


def _picked(
    arms: Sequence[Arm], compared: Sequence[Arm], said: Arms | None, tail: Sequence[str], chosen: str | None
) -> str | None:
    """The arm to decide on, None where there is none, or the one asked for has no image."""
    if said is None or any(arm.name == chosen and arm.empty for arm in arms):
        return None
    return chosen or choose(said, candidates(compared), tail)


def _chosen_by(said: Arms, compared: Sequence[Arm], tail: Sequence[str], chosen: str | None) -> str:
    """What the arm was chosen by."""
    if chosen is not None:
        return "the config"
    return chosen_by(said, tail) if len(candidates(compared)) > 1 else "being the only one"


def _nothing(arms: Sequence[Arm], picked: str | None) -> dict[str, Any]:
    """The verdict where nothing is decided: no image was kept, or none was asked for."""
    if picked is None and any(arm.role == "synthetic" and arm.empty for arm in arms):
        return {"verdict": "no evidence", "sentence": NOT_KEPT, "comparison": None}
    return {"verdict": "no verdict", "sentence": NOTHING, "comparison": None}


def _control(arms: Sequence[Arm], name: str) -> str:
    return next(arm.control for arm in arms if arm.name == name)


def _tables(
    rows: HeldOutRows, arms: Sequence[Arm], said: Arms, picked: str | None, unaided: str, *, draws: int, seed: int
) -> Tables:
    """Scores of all arms, all differences, and more of the arms the verdict is about."""
    shown = [REAL, picked, _control(arms, picked)] if picked else [REAL]
    asked = pairs(arms, (picked, unaided))
    return Tables(
        score_table(said, rows.groups),
        compare(said, asked, rows.groups, draws=draws, seed=seed),
        _reliability(said, shown),
        _subgroups(rows, said, shown, draws=draws, seed=seed),
    )


def _arm_table(arms: Sequence[Arm], said: Arms | None, tail: Sequence[str], chosen: str | None) -> pd.DataFrame:
    """What each arm is, and how it did on validation; an arm that was not trained has no number."""
    found = []
    for arm in arms:
        value = said.on_validation(arm.name, tail) if said is not None and arm.name in said.val else None
        mean = float("nan") if value is None else float(value.mean())
        spread = float("nan") if value is None or len(value) < 2 else float(value.std(ddof=1))
        own = {"arm": arm.name, "role": arm.role, "control": arm.control, "digest": arm.digest()}
        numbers = {"primary": arm.name == chosen, "val_tail_ap": mean, "val_tail_ap_sd": spread}
        found.append(own | dict(arm.about) | numbers)
    return pd.DataFrame(found).astype({"synthetic_ratio": float})


def _reliability(said: Arms, shown: Sequence[str]) -> pd.DataFrame:
    """Of all seeds together, an arm a block."""
    tables = {name: reliability(said.truth, said.scores[name], said.patients, said.findings) for name in shown}
    return pd.concat([table.assign(arm=name) for name, table in tables.items()], ignore_index=True)


def _subgroups(rows: HeldOutRows, said: Arms, shown: Sequence[str], *, draws: int, seed: int) -> pd.DataFrame:
    """View, sex, age and source of the test rows, as far as they are known."""
    about = rows.attributes[[name for name in ATTRIBUTES if name in rows.attributes]].reset_index(drop=True)
    parts = [
        subgroups(
            said.truth, said.scores[name], said.patients, about, said.findings, rows.tail, draws=draws,
            rng=numpy_generator(seed, "subgroups"),
        ).assign(arm=name)
        for name in shown
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _write(found: Conclusion, folder: Path) -> None:
    """All tables, then the verdict; what is no longer so is set aside first."""
    _supersede(folder, str(found.verdict["experiment"]))
    write_table(folder / "arms.parquet", found.arms)
    for name in TABLES:
        if found.tables is not None:
            write_table(folder / f"{name}.parquet", getattr(found.tables, name))
        else:
            set_aside(folder, f"{name}.parquet")
    write_json(folder / VERDICT, dict(found.verdict))


def _supersede(folder: Path, named: str) -> None:
    """Keep the verdict of another experiment; name a damaged one, and move it away."""
    place = folder / VERDICT
    if not place.is_file():
        return
    try:
        before = json.loads(place.read_text())
        other = str(before["experiment"])
    except (ValueError, TypeError, KeyError):
        log.warning("%s is damaged; it was moved to %s and is written again", place, set_aside(folder, VERDICT))
        return
    if other != named:
        write_json(folder / SUPERSEDED / f"verdict-{other}.json", before)


def set_aside(folder: Path, name: str) -> Path | None:
    """Move a file of `folder` into superseded/, under a free name; return where to, None if it is gone."""
    file, number = folder / name, 1
    if not file.is_file():
        return None
    while (target := folder / SUPERSEDED / f"{file.stem}-{number}{file.suffix}").exists():
        number += 1
    target.parent.mkdir(parents=True, exist_ok=True)
    file.replace(target)
    return target
