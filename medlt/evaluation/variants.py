"""Summarise the images of one variant of an ablation as a row of its table, and format the table as Markdown.

Images of one tail parent resemble each other, so standard errors are cluster-robust, with the parent as the cluster.
The difference to the base is paired: both variants have the same plan rows, seeds and parents. The Wilson interval of
the share that passes treats images as independent, and is too narrow if there are few parents. With several seeds, the
Markdown table has their mean, and its standard error between seeds in place of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from medlt.evaluation.quality import FEWEST_FOR_KID
from medlt.markdown_text import cell, inline
from medlt.metrics.features import scaled
from medlt.metrics.fidelity import kid

IMAGES = ("tail_parent", "verifier", "passed", "labelled", "kept", "mask_share", "tail_mass", "lesion_carried")
"""Columns of a variant's images, index uid.

tail_parent: uid of the tail parent; verifier: probability of the tail finding by the verifier that was trained on
neither parent; passed: whether that probability reaches the limit; labelled: whether the label keeps the finding; kept:
whether the image passed all checks and is the best of its slot; mask_share: share of pixels from the tail image;
tail_mass: share of the tail image's class activation map on these pixels; lesion_carried: share of the finding's known
mask or box on them, NaN without one.
"""

HEADERS = {
    "value": "value", "seeds": "seeds", "kept": "kept", "passed": "verifier passes", "verifier": "verifier",
    "verifier_difference": "to base", "labelled": "labelled", "mask_share": "mask", "tail_mass": "map",
    "lesion_carried": "lesion", "reconstruction_l1": "L1", "mean_max_probability": "max p", "tokens_used": "tokens",
    "agreement": "agreement", "probe_ap": "probe AP", "kid": "KID", "seconds": "s",
}  # fmt: skip
DOWNSTREAM = {"tail_ap_difference": "tail AP to control"}
ERRORS = {"kid": "kid_sd", "verifier": "verifier_se", "verifier_difference": "verifier_difference_se"}
BETWEEN_SEEDS = ("passed", "labelled", "mask_share", "lesion_carried", "verifier", "verifier_difference", "kid")


def clustered(values: pd.Series, cluster: pd.Series) -> tuple[float, float]:
    """Return the mean of `values` and its cluster-robust standard error, NaN for fewer than two clusters."""
    mean, sums = float(values.mean()), (values - values.mean()).groupby(cluster.to_numpy()).sum()
    groups = len(sums)
    if groups < 2:
        return mean, float("nan")
    return mean, float(np.sqrt(groups / (groups - 1) * np.square(sums).sum()) / len(values))


def summarise(images: pd.DataFrame) -> dict[str, float]:
    """Return counts, shares and means of a variant's images, at least one, with the columns IMAGES."""
    passed = binomtest(int(images["passed"].sum()), len(images))
    interval = passed.proportion_ci(method="wilson")
    verifier, error = clustered(images["verifier"], images["tail_parent"])
    return {
        "planned": len(images),
        "kept": int(images["kept"].sum()),
        "passed": passed.statistic,
        "passed_low": interval.low,
        "passed_high": interval.high,
        "verifier": verifier,
        "verifier_se": error,
        **{name: float(images[name].mean()) for name in ("labelled", "mask_share", "tail_mass", "lesion_carried")},
    }


def difference_to_base(images: pd.DataFrame, base: pd.DataFrame) -> dict[str, float]:
    """Return the mean paired difference of the verifier's probability to the base, and its standard error.

    Images are paired by uid; images without a partner are left out.
    """
    both = images.join(base["verifier"].rename("base"), how="inner")
    difference, error = clustered(both["verifier"] - both["base"], both["tail_parent"])
    return {"verifier_difference": difference, "verifier_difference_se": error}


def pooled(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each value of each factor: the mean over its seeds.

    With several seeds, NAME_between is the standard error of that mean between seeds.
    """
    numbers = table.select_dtypes("number").columns.difference(["seed"])
    rows = []
    for (factor, value), part in table.groupby(["factor", "value"], sort=False):
        spread = part[[name for name in BETWEEN_SEEDS if name in part]].sem() if len(part) > 1 else pd.Series()
        named = {"factor": factor, "value": value, "is_base": part["is_base"].all(), "seeds": len(part)}
        rows.append(named | part[numbers].mean().to_dict() | spread.add_suffix("_between").to_dict())
    return pd.DataFrame(rows)


def _cell(row: Mapping[str, Any], name: str) -> str:
    """Return a value as text, with its error or interval."""
    value, between = row.get(name), row.get(f"{name}_between")
    if pd.isna(value):
        return "-"
    if name == "value":
        return f"**{cell(value)}**" if row["is_base"] and value else cell(value)
    text = f"{value:{'+' if name == 'verifier_difference' else ''}.3f}"
    if not pd.isna(between):
        return f"{text} ± {between:.3f}"
    if name == "passed" and row["seeds"] == 1:
        return f"{value:.2f} [{row['passed_low']:.2f}, {row['passed_high']:.2f}]"
    if name == "tail_ap_difference":
        return f"{value:+.3f}" + (
            f" [{row['tail_ap_low']:+.3f}, {row['tail_ap_high']:+.3f}]" if row["seeds"] == 1 else ""
        )
    if name in ERRORS and row["seeds"] == 1:
        return f"{text} ± {row[ERRORS[name]]:.3f}"
    return f"{value:.0f}" if name in ("seeds", "kept", "seconds") else text


def as_markdown(table: pd.DataFrame) -> str:
    """Return the table as Markdown: a section a factor, a line a value, the value of the base in bold."""
    headers = HEADERS | (DOWNSTREAM if "tail_ap_difference" in table else {})
    lines = []
    for factor, part in pooled(table).groupby("factor", sort=False):
        lines += [f"## {inline(factor)}", "", "| " + " | ".join(headers.values()) + " |", "|---" * len(headers) + "|"]
        rows = part.to_dict("records")
        lines += ["| " + " | ".join(_cell(row, name) for name in headers) + " |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def kid_by_fold(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Return KID and its error over (real, synthetic) features, one pair an extractor; NaN if no pair has enough rows.

    Both are means weighted by the number of synthetic rows; the mean error assumes fully correlated errors. Features
    are scaled by the real ones.
    """
    enough = [scaled(*pair) for pair in pairs if min(map(len, pair)) >= FEWEST_FOR_KID]
    if not enough:
        return float("nan"), float("nan")
    distances = [kid(real, synthetic) for real, synthetic in enough]
    weights = [len(synthetic) for _, synthetic in enough]
    value, error = np.average([(one.value, one.sd) for one in distances], axis=0, weights=weights)
    return float(value), float(error)
