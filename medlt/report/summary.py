"""The numbers of a report, as tables: every form of the report (HTML, JSON, terminal) takes them from here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from medlt.report.collect import Collected
from medlt.types import InputError

if TYPE_CHECKING:
    import pandas as pd

ROLES = ("real", "reweighted", "", "control", "synthetic")
"""What an arm may be, in the order of columns; "" where nothing tells."""

GROUPS = ("macro", "all", "head", "medium", "tail")
METRICS = ("AP", "AUROC")
WORDS = ("helps", "no evidence", "harms")


def ordered(names: Iterable[str], first: Sequence[str]) -> list[str]:
    """The distinct names, those of `first` in its order, then the others sorted."""
    left = set(names)
    return [name for name in first if name in left] + sorted(left - set(first))


def counts(run: Collected) -> pd.DataFrame:
    """Index finding, from the most to the least frequent: train positives `real` and `added` (label > 0.5), `test`."""
    import pandas as pd

    columns = ["real", "added", "test"]
    if run.manifest is None or not run.findings:
        return pd.DataFrame(columns=columns, index=pd.Index([], name="finding"), dtype=int)
    rows = run.manifest
    synthetic = rows["synthetic"].fillna(False).astype(bool) if "synthetic" in rows else rows["split"].isna()
    positive = rows[list(run.findings)] > 0.5
    train, test = rows["split"] == "train", rows["split"] == "test"
    chosen = {"real": train & ~synthetic, "added": train & synthetic, "test": test & ~synthetic}
    table = pd.DataFrame({name: positive[where].sum() for name, where in chosen.items()}, columns=columns)
    return table.rename_axis("finding").sort_values(["real", "added"], ascending=False, kind="stable")


def sizes(run: Collected) -> dict[str, int]:
    """How many images and patients of each kind there are; the patients themselves are never told."""
    if run.manifest is None:
        return {}
    rows = run.manifest
    synthetic = rows["synthetic"].fillna(False).astype(bool) if "synthetic" in rows else rows["split"].isna()
    real = {split: rows[~synthetic & (rows["split"] == split)] for split in ("train", "val", "test")}
    told = {f"{split}_images": len(part) for split, part in real.items()}
    if "patient_id" in rows:
        told |= {f"{split}_patients": int(part["patient_id"].nunique()) for split, part in real.items()}
    return told | {"added_images": int(synthetic.sum())}


def seeds(run: Collected) -> int:
    """Training seeds of every arm that was compared: the smallest number any arm has."""
    return 0 if run.scores is None else int(run.scores.groupby("arm")["seed"].nunique().min())


def names(run: Collected, found: Iterable[str]) -> list[str]:
    """Groups first, then findings from the most to the least frequent."""
    return ordered(found, [*GROUPS, *counts(run).index])


def scores(run: Collected) -> pd.DataFrame:
    """Mean, standard deviation (n - 1; NaN for one seed) and number of seeds; index finding, metric, arm."""
    import pandas as pd

    if run.scores is None:
        return pd.DataFrame(columns=["mean", "std", "count"])
    return run.scores.groupby(["finding", "metric", "arm"])["value"].agg(["mean", "std", "count"])


def roles(run: Collected) -> dict[str, str]:
    """Arm -> its role, as arms.parquet tells it, else as far as verdict.json names it."""
    if run.arms is not None:
        return {str(arm): str(role) for arm, role in zip(run.arms["arm"], run.arms["role"], strict=True)}
    pair = deciding_pair(run)
    return {} if pair is None else {pair[1]: "control", pair[0]: "synthetic"}


def in_order(run: Collected, found: Iterable[str]) -> list[str]:
    """The distinct arms by their roles, real ones first; those of one role as arms.parquet has them."""
    known = roles(run)
    place = {name: (ROLES.index(role) if role in ROLES else 2) for name, role in known.items()}
    rank = {name: n for n, name in enumerate(known)}
    return sorted(set(found), key=lambda name: (place.get(name, 2), rank.get(name, len(rank)), name))


def deciding_pair(run: Collected) -> tuple[str, str] | None:
    """The arm the verdict is about and what it is held against: verdict.json names them, else the roles of arms.parquet
    do; None where neither does. Never a matter of position or of a method's name."""
    compared = (run.verdict or {}).get("comparison")
    if isinstance(compared, dict) and compared.get("arm") and compared.get("control"):
        return str(compared["arm"]), str(compared["control"])
    if run.arms is None or run.verdict is not None:  # a verdict without a comparison decides nothing
        return None
    made = run.arms[run.arms["role"] == "synthetic"]
    marked = made[made["primary"].fillna(False).astype(bool)]
    if len(marked) != 1 and len(made) != 1:
        return None
    one = (marked if len(marked) == 1 else made).iloc[0]
    return str(one["arm"]), str(one["control"])


def pairs(run: Collected) -> list[tuple[str, str]]:
    """The (arm, control) pairs: the deciding one, what else the same arm is held against, then the others."""
    if run.comparisons is None:
        return []
    pairs = {(str(a), str(c)) for a, c in zip(run.comparisons["arm"], run.comparisons["control"], strict=True)}
    first = deciding_pair(run)
    return sorted(pairs, key=lambda pair: (pair != first, first is None or pair[0] != first[0], pair))


def comparison(run: Collected, pair: tuple[str, str], metric: str) -> pd.DataFrame:
    """The rows of one comparison, index finding in report order."""
    assert run.comparisons is not None
    table = run.comparisons
    chosen = table[(table["arm"] == pair[0]) & (table["control"] == pair[1]) & (table["metric"] == metric)]
    return chosen.set_index("finding").loc[names(run, chosen["finding"])]


def deciding(run: Collected) -> dict[str, Any] | None:
    """The difference the verdict rests on: the one verdict.json names, tail macro AP where it names none."""
    pair = deciding_pair(run)
    if run.comparisons is None or pair is None:
        return None
    named = (run.verdict or {}).get("comparison") or {}
    wanted = {"finding": "tail", "metric": "AP"}
    wanted |= {name: value for name, value in named.items() if name in wanted}
    table = run.comparisons
    for column, value in {"arm": pair[0], "control": pair[1], **wanted}.items():
        table = table[table[column] == value]
    return dict(table.iloc[0]) if len(table) else None


def rejected(run: Collected) -> pd.DataFrame:
    """The failed checks, one row a check and image, sorted by check and uid; the finding is the plan's."""
    assert run.checks is not None
    failed = run.checks[~run.checks["passed"].astype(bool)].sort_values(["check", "uid"], kind="stable")
    known = {} if run.plan is None else dict(run.plan["finding"])
    return failed.assign(finding=[known.get(uid, "") for uid in failed["uid"]])


def kind_of(reason: str) -> str:
    """A reason without its particulars, so that equal reasons can be counted: words with digits become '…'."""
    return re.sub(r"\S*\d\S*", "…", str(reason)).strip() or "no reason given"


def rejections_by_reason(run: Collected) -> pd.DataFrame:
    """Columns check, reason, images, of: failed images by check and kind of reason, and how many the check saw."""
    failed = rejected(run)
    assert run.checks is not None
    seen = run.checks.groupby("check")["uid"].nunique()
    table = failed.assign(reason=failed["reason"].map(kind_of)).groupby(["check", "reason"])["uid"].nunique()
    table = table.rename("images").reset_index()
    table["of"] = [int(seen[check]) for check in table["check"]]
    return table.sort_values(["check", "images", "reason"], ascending=[True, False, True], kind="stable")


def cautions(run: Collected) -> list[str]:
    """What a reader must know before believing the verdict."""
    told = []
    n, asked = seeds(run), (run.verdict or {}).get("test_set_evaluations") or 1
    if asked > 1:
        told.append(
            f"Evaluation {asked} of the test set in this folder: what was changed after an earlier one was chosen by "
            "the test set, and the interval does not know."
        )
    if run.scores is not None and n < 3:
        told.append(f"Only {n} training seed{'' if n == 1 else 's'} an arm: a trial run, too few for a claim.")
    elif run.scores is not None and n < 5:
        told.append(f"{n} training seeds an arm: enough to look, five are asked for before a claim.")
    if run.settings.get("data", {}).get("kind") == "phantom":
        told.append("The radiographs are synthetic phantoms: the verdict says nothing about patients.")
    few = [name for name, n in counts(run)["test"].items() if n < 10]
    if few and run.comparisons is not None:
        told.append(f"Fewer than 10 test positives: {', '.join(few)}. Their own rows decide nothing.")
    return told


def privacy(run: Collected) -> dict[str, Any]:
    """What the run's provenance lets be claimed (`medlt.privacy.claim`): sentence, reasons; and what an audit found."""
    from medlt.privacy import claim

    try:
        told = asdict(claim(run.folder))
    except InputError:  # which names a place on this machine
        why = "its config.yaml, or a file it stands on, cannot be read as a recipe's"
        told = {"sentence": f"No privacy is claimed for this run, because {why}.", "reasons": (), "epsilon": None}
    return {**told, "audit": run.audit}
