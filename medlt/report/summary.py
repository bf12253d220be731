"""The numbers of a report as tables, for every form of it: HTML, JSON, terminal."""

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
"""Roles of arms, in the order of columns; "" for an unknown role."""

GROUPS = ("macro", "all", "head", "medium", "tail")
METRICS = ("AP", "AUROC")


def ordered(names: Iterable[str], first: Sequence[str]) -> list[str]:
    """Return the distinct names: those of `first` in its order, then the others sorted."""
    left = set(names)
    return [name for name in first if name in left] + sorted(left - set(first))


def counts(run: Collected) -> pd.DataFrame:
    """Return positives (label > 0.5) by finding, the most frequent first: `real` and `added` in train, `test`."""
    import pandas as pd

    from medlt.data.columns import is_synthetic

    columns = ["real", "added", "test"]
    if run.manifest is None or not run.findings:
        return pd.DataFrame(columns=columns, index=pd.Index([], name="finding"), dtype=int)
    rows = run.manifest
    synthetic = is_synthetic(rows)
    positive = rows[list(run.findings)] > 0.5
    train, test = rows["split"] == "train", rows["split"] == "test"
    chosen = {"real": train & ~synthetic, "added": train & synthetic, "test": test & ~synthetic}
    table = pd.DataFrame({name: positive[where].sum() for name, where in chosen.items()}, columns=columns)
    return table.rename_axis("finding").sort_values(["real", "added"], ascending=False, kind="stable")


def sizes(run: Collected) -> dict[str, int]:
    """Return the numbers of images and of patients in each split, and the number of synthetic images."""
    from medlt.data.columns import is_synthetic

    if run.manifest is None:
        return {}
    rows = run.manifest
    synthetic = is_synthetic(rows)
    real = {split: rows[~synthetic & (rows["split"] == split)] for split in ("train", "val", "test")}
    counted = {f"{split}_images": len(part) for split, part in real.items()}
    if "patient_id" in rows:
        counted |= {f"{split}_patients": int(part["patient_id"].nunique()) for split, part in real.items()}
    return counted | {"added_images": int(synthetic.sum())}


def is_drawn(run: Collected) -> bool:
    """Return whether the collection is the phantom, which a program draws: it shows no patient."""
    return bool(run.settings.get("data", {}).get("kind") == "phantom")


def patients(run: Collected) -> str:
    """Return the word for the patients of the test set: a program draws those of the phantom."""
    return "simulated patients" if is_drawn(run) else "patients"


def seeds(run: Collected) -> int:
    """Return the smallest number of training seeds of any arm; 0 without scores."""
    return 0 if run.scores is None else int(run.scores.groupby("arm")["seed"].nunique().min())


def names(run: Collected, given: Iterable[str]) -> list[str]:
    """Return the groups, then the findings from the most to the least frequent."""
    return ordered(given, [*GROUPS, *counts(run).index])


def scores(run: Collected) -> pd.DataFrame:
    """Return mean, standard deviation (n - 1; NaN for one seed) and number of seeds; index finding, metric, arm."""
    import pandas as pd

    if run.scores is None:
        return pd.DataFrame(columns=["mean", "std", "count"])
    return run.scores.groupby(["finding", "metric", "arm"])["value"].agg(["mean", "std", "count"])


def roles(run: Collected) -> dict[str, str]:
    """Return the role of each arm: from arms.parquet, else of the two arms in verdict.json."""
    if run.arms is not None:
        return {str(arm): str(role) for arm, role in zip(run.arms["arm"], run.arms["role"], strict=True)}
    pair = deciding_pair(run)
    return {} if pair is None else {pair[1]: "control", pair[0]: "synthetic"}


def in_order(run: Collected, arms: Iterable[str]) -> list[str]:
    """Return the distinct arms by role, real ones first; arms of one role in the order of arms.parquet."""
    known = roles(run)
    place = {name: (ROLES.index(role) if role in ROLES else 2) for name, role in known.items()}
    rank = {name: n for n, name in enumerate(known)}
    return sorted(set(arms), key=lambda name: (place.get(name, 2), rank.get(name, len(rank)), name))


def deciding_pair(run: Collected) -> tuple[str, str] | None:
    """Return the arm that the verdict is about and its control, from verdict.json, else from the roles in arms.parquet.

    None if neither names them. Neither the order of arms nor the name of a method decides.
    """
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
    """Return the (arm, control) pairs: the deciding one, other controls of the same arm, then the others."""
    if run.comparisons is None:
        return []
    pairs = {(str(a), str(c)) for a, c in zip(run.comparisons["arm"], run.comparisons["control"], strict=True)}
    first = deciding_pair(run)
    return sorted(pairs, key=lambda pair: (pair != first, first is None or pair[0] != first[0], pair))


def comparison(run: Collected, pair: tuple[str, str], metric: str) -> pd.DataFrame:
    """Return the rows of one comparison, indexed by finding, in the order of the report."""
    assert run.comparisons is not None
    table = run.comparisons
    chosen = table[(table["arm"] == pair[0]) & (table["control"] == pair[1]) & (table["metric"] == metric)]
    return chosen.set_index("finding").loc[names(run, chosen["finding"])]


def deciding(run: Collected) -> dict[str, Any] | None:
    """Return the comparison that decides the verdict: the one in verdict.json, by default tail macro AP."""
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
    """Return the failed checks, one row per check and image, sorted by check and uid, with the finding of the plan."""
    assert run.checks is not None
    failed = run.checks[~run.checks["passed"].astype(bool)].sort_values(["check", "uid"], kind="stable")
    known = {} if run.plan is None else dict(run.plan["finding"])
    return failed.assign(finding=[known.get(uid, "") for uid in failed["uid"]])


def kind_of(reason: str) -> str:
    """Return a reason with '…' for words with digits, so that equal reasons can be counted."""
    return re.sub(r"\S*\d\S*", "…", str(reason)).strip() or "no reason given"


def rejections_by_reason(run: Collected) -> pd.DataFrame:
    """Return failed images by check and kind of reason, and the images of that check: check, reason, images, of."""
    failed = rejected(run)
    assert run.checks is not None
    seen = run.checks.groupby("check")["uid"].nunique()
    table = failed.assign(reason=failed["reason"].map(kind_of)).groupby(["check", "reason"])["uid"].nunique()
    table = table.rename("images").reset_index()
    table["of"] = [int(seen[check]) for check in table["check"]]
    return table.sort_values(["check", "images", "reason"], ascending=[True, False, True], kind="stable")


def cautions(run: Collected) -> list[str]:
    """Return the warnings that belong beside the verdict."""
    warnings = []
    n, evaluations = seeds(run), (run.verdict or {}).get("test_set_evaluations") or 1
    if evaluations > 1:
        warnings.append(
            f"Evaluation {evaluations} of the test set in this folder: the test set influences every change made after "
            "the first one, and the interval does not account for that."
        )
    if run.scores is not None and n < 3:
        warnings.append(f"Only {n} training seed{'' if n == 1 else 's'} per arm: a trial run, too few for a claim.")
    elif run.scores is not None and n < 5:
        warnings.append(f"{n} training seeds per arm: a first impression; use five before you claim anything.")
    if patients(run) != "patients":
        warnings.append("The radiographs are phantoms, drawn by a program: the verdict does not apply to patients.")
    if lost := run.run.get("codec_check", {}).get("lost"):
        reasons = ", ".join(f"{name} ({reason})" for name, reason in lost.items())
        warnings.append(f"The codec loses findings that synthetic images therefore cannot show well: {reasons}.")
    few = [name for name, n in counts(run)["test"].items() if n < 10]
    if few and run.comparisons is not None:
        warnings.append(f"Fewer than 10 test positives: {', '.join(few)}. Their own rows decide nothing.")
    return warnings


def privacy(run: Collected) -> dict[str, Any]:
    """Return the privacy claim of the run (`medlt.privacy.claim`) with its reasons, and the results of its audit."""
    from medlt.privacy import claim

    try:
        claimed = asdict(claim(run.folder))
    except InputError:  # its message holds a path of this machine
        why = "medlt cannot read its config.yaml, or a file that config.yaml names"
        claimed = {"sentence": f"No privacy is claimed for this run, because {why}.", "reasons": (), "epsilon": None}
    return {**claimed, "audit": run.audit}
