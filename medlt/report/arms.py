"""The numbers of an experiment as rows, for its page, the terminal and the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medlt.report import summary
from medlt.report.collect import Collected
from medlt.report.figures import Forest, Interval, forest, limits
from medlt.types import InputError

if TYPE_CHECKING:
    import pandas as pd

ROLES = ("synthetic", "control", "reweighted", "real")
SETTINGS = ("source", "use", "keep_top", "labels", "loss", "training_strategy", "sampling", "mixup", "augment",
            "tau_norm", "synthetic_fraction", "synthetic_weight")  # fmt: skip
"""Columns of arms.parquet, besides the synthetic ratio, in which arms may differ."""

AP = "AP"
"""Metric of the verdict if verdict.json names none."""
METRICS = (AP, "AUROC", "balanced accuracy", "F1", "ECE")
LABEL = 210.0


@dataclass(frozen=True)
class Experiment:
    """The tables of an evaluate run that every section uses.

    scores: (finding, metric, arm) to mean, std and count over seeds. by_pair: (arm, control, finding, metric) to its
    row of comparisons.parquet, with the verdict "no verdict" after one seed.
    """

    run: Collected
    arms: pd.DataFrame
    scores: dict[tuple[str, str, str], dict[str, Any]]
    by_pair: dict[tuple[str, str, str, str], dict[str, Any]]

    @classmethod
    def of(cls, run: Collected) -> Experiment:
        """Return the experiment of a collected run folder. Raises InputError without a valid arms.parquet."""
        if run.arms is None:
            raise InputError(f"{run.folder}: is no experiment, arms.parquet is missing; run `medlt evaluate`")
        if run.arms["arm"].duplicated().any():
            raise InputError(f"{run.folder}: arms.parquet names an arm twice; run `medlt evaluate` again")
        arms = run.arms.assign(control=run.arms["control"].fillna(""), source=run.arms["source"].fillna(""))
        return cls(run, arms, summary.scores(run).to_dict("index"), _by_pair(run))

    @property
    def real(self) -> str:
        """Return the arm without synthetic images and without a changed loss or sampling."""
        plain = self.arms[(self.arms["role"] == "real") & (self.arms["control"] == "")]
        return str(plain["arm"].iloc[0]) if len(plain) else "real"

    @property
    def metric(self) -> str:
        """Return the metric of the verdict."""
        return str((self.run.verdict or {}).get("metric") or AP)

    @property
    def others(self) -> tuple[str, ...]:
        """Return the metrics that are shown beside that of the verdict."""
        return tuple(name for name in METRICS if name != self.metric)

    @property
    def primary(self) -> str | None:
        """Return the primary arm: the one marked in arms.parquet, else the one of verdict.json, else None."""
        marked = self.arms.loc[self.arms["primary"].fillna(False).astype(bool), "arm"]
        if len(marked):
            return str(marked.iloc[0])
        compared = (self.run.verdict or {}).get("comparison") or {}
        return str(compared["arm"]) if compared.get("arm") else None

    def control(self, arm: str) -> str:
        """Return the control of `arm`; "" for the real arm."""
        named = self.arms.loc[self.arms["arm"] == arm, "control"]
        return str(named.iloc[0]) if len(named) else ""

    def score(self, arm: str, finding: str, metric: str) -> dict[str, Any] | None:
        """Return mean, std and count over seeds, or None."""
        return self.scores.get((finding, metric, arm))

    def difference(
        self, arm: str, control: str, finding: str = "tail", metric: str | None = None
    ) -> dict[str, Any] | None:
        """Return the row of comparisons.parquet, by default in the metric of the verdict, or None."""
        return self.by_pair.get((arm, control, finding, metric or self.metric))

    def findings(self) -> list[str]:
        """Return the groups, then the findings in the order of the run."""
        tables = [table for table in (self.run.scores, self.run.comparisons) if table is not None]
        names = list(dict.fromkeys(str(name) for table in tables for name in table["finding"]))
        return [name for name in summary.GROUPS if name in names] + [n for n in names if n not in summary.GROUPS]

    def compared(self) -> list[str]:
        """Return the real arm, the control of the primary arm and the primary arm, as far as the run has them."""
        primary = self.primary
        names = [self.real, *([self.control(primary), primary] if primary else [])]
        return [name for name in dict.fromkeys(names) if name]


def _by_pair(run: Collected) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    """Return the rows by (arm, control, finding, metric).

    After one seed the verdict of each row is "no verdict": one seed does not show how much training varies.
    """
    rows = [] if run.comparisons is None else run.comparisons.to_dict("records")
    one_seed = run.scores is not None and summary.seeds(run) < 2
    verdict = {"verdict": "no verdict"} if one_seed else {}
    return {(str(r["arm"]), str(r["control"]), str(r["finding"]), str(r["metric"])): {**r, **verdict} for r in rows}


def rows(experiment: Experiment) -> list[dict[str, Any]]:
    """Return one mapping per arm, in the order of arms.parquet: name, role, scores, differences and verdict."""
    return [_row(experiment, row) for row in experiment.arms.to_dict("records")]


def _row(experiment: Experiment, arm: dict[str, Any]) -> dict[str, Any]:
    name, control = str(arm["arm"]), str(arm["control"])
    against = experiment.difference(name, control) if control else None
    return {
        "name": name,
        "role": str(arm["role"]),
        "primary": name == experiment.primary,
        "control": control,
        "added": arm["added"],
        "wanted": arm["wanted"],
        "val": {"mean": arm["val_tail_ap"], "std": arm["val_tail_ap_sd"]},
        "test": {
            group: experiment.score(name, group, experiment.metric) for group in ("tail", "medium", "head", "macro")
        },
        "others": {metric: experiment.score(name, "macro", metric) for metric in experiment.others},
        "to_control": against,
        "to_real": experiment.difference(name, experiment.real),
        "verdict": str(against["verdict"]) if against else "",
    }


def _heading(experiment: Experiment, row: dict[str, Any], to_real: bool) -> str:
    if to_real or row["role"] != "synthetic":
        return f"{row['role']}, against {experiment.real}"
    return "synthetic, each against its duplicated real images"


def comparison_plot(experiment: Experiment, *, to_real: bool = False) -> Forest | None:
    """Return the metric of every arm minus its control, or minus the real arm, by role; None without comparisons.

    The control of a synthetic arm is its own count-matched duplicate; that of every other arm is the real arm.
    """
    key = "to_real" if to_real else "to_control"
    headed = [(_heading(experiment, row, to_real), row) for row in rows(experiment) if row[key] is not None]
    headed.sort(key=lambda pair: ROLES.index(pair[1]["role"]) if pair[1]["role"] in ROLES else len(ROLES))
    marks = [mark(row["name"], row[key], row["primary"], part) for part, row in headed]
    return forest(marks, limits(marks), LABEL, headed=True) if marks else None


def mark(name: str, row: dict[str, Any], bold: bool, part: str) -> Interval:
    """Return a row of comparisons.parquet as a row of a forest plot."""
    value, low, high = (float(row[key]) for key in ("difference", "low", "high"))
    return Interval(name, value, low, high, str(row["verdict"]), bold, part)


def training_settings(experiment: Experiment) -> tuple[list[str], list[list[Any]]]:
    """Return how each arm was trained: the names of the columns that arms.parquet has, and one row per arm."""
    import pandas as pd

    known = [name for name in (*SETTINGS[:2], "synthetic_ratio", *SETTINGS[2:], "steps") if name in experiment.arms]
    table = experiment.arms[["arm", *known]].astype(object)
    cells = table.where(pd.notna(table), None).to_numpy().tolist()
    return known, [[_setting(value) for value in row] for row in cells]


def _setting(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return {"None": "–", "": "–", "True": "yes", "False": "no"}.get(str(value), str(value))


def families(experiment: Experiment) -> list[list[dict[str, Any]]]:
    """Return families of two or more synthetic arms that differ in the synthetic ratio only, by rising ratio."""
    import pandas as pd

    arms = experiment.arms[(experiment.arms["role"] == "synthetic") & experiment.arms["synthetic_ratio"].notna()]
    keys: Sequence[str] = [name for name in SETTINGS if name in arms]
    if arms.empty:
        return []
    alike = arms[keys].astype(object).where(pd.notna(arms[keys]), "").astype(str).agg("\x1f".join, axis=1)
    parts = [part.sort_values("synthetic_ratio", kind="stable") for _, part in arms.groupby(alike, sort=False)]
    return [
        [_with_ratio(experiment, row) for row in p.to_dict("records")]
        for p in parts
        if p["synthetic_ratio"].nunique() > 1
    ]


def _with_ratio(experiment: Experiment, arm: dict[str, Any]) -> dict[str, Any]:
    return _row(experiment, arm) | {"ratio": float(arm["synthetic_ratio"]), "label": str(arm["source"])}
