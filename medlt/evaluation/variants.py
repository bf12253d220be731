"""One row of an ablation's table from the images of one variant, and the table in words.

Images of one tail parent resemble each other, so standard errors are of the parents' sums (cluster-robust), and the
difference to the base is taken image by image: both have the same plan rows, seeds and parents. Wilson's interval of
the share that passes takes images as independent and is, for few parents, somewhat narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from medlt.evaluation.quality import FEWEST_FOR_KID
from medlt.metrics.features import scaled
from medlt.metrics.fidelity import kid

IMAGES = ("tail_parent", "verifier", "passed", "labelled", "kept", "mask_share", "tail_mass")
"""Columns of a variant's images, index uid: tail parent, probability of the tail finding by the judge that saw neither
parent, whether that passes, whether the label still says the finding, whether it is the best of its slot and passed
all, share of pixels from the tail image, share of its class activation map on them."""

SHOWN = {
    "value": "value", "seed": "seed", "kept": "kept", "passed": "verifier passes", "verifier": "verifier",
    "verifier_difference": "to base", "labelled": "labelled", "mask_share": "mask", "tail_mass": "map",
    "reconstruction_l1": "L1", "mean_max_probability": "max p", "words_used": "words", "agreement": "agreement",
    "probe_ap": "probe AP", "kid": "KID", "seconds": "s",
}  # fmt: skip
DOWNSTREAM = {"tail_ap_difference": "tail AP to duplicated"}


def clustered(values: pd.Series, cluster: pd.Series) -> tuple[float, float]:
    """(mean, cluster-robust standard error) of `values`; the error is NaN for fewer than two clusters."""
    mean, sums = float(values.mean()), (values - values.mean()).groupby(cluster.to_numpy()).sum()
    groups = len(sums)
    if groups < 2:
        return mean, float("nan")
    return mean, float(np.sqrt(groups / (groups - 1) * np.square(sums).sum()) / len(values))


def measured(images: pd.DataFrame) -> dict[str, float]:
    """Counts, shares and means of a variant's images (columns: IMAGES), at least one."""
    passed = binomtest(int(images["passed"].sum()), len(images))
    interval = passed.proportion_ci(method="wilson")
    judge, error = clustered(images["verifier"], images["tail_parent"])
    return {
        "planned": len(images),
        "kept": int(images["kept"].sum()),
        "passed": passed.statistic,
        "passed_low": interval.low,
        "passed_high": interval.high,
        "verifier": judge,
        "verifier_se": error,
        **{name: float(images[name].mean()) for name in ("labelled", "mask_share", "tail_mass")},
    }


def against(images: pd.DataFrame, base: pd.DataFrame) -> dict[str, float]:
    """Paired difference of the judge's probability to the base's images of the same plan rows, with its error."""
    both = images.join(base["verifier"].rename("base"), how="inner")
    difference, error = clustered(both["verifier"] - both["base"], both["tail_parent"])
    return {"verifier_difference": difference, "verifier_difference_se": error}


def _cell(row: Mapping[str, Any], name: str) -> str:
    """A value as it is printed, with its error or interval."""
    value = row.get(name)
    if pd.isna(value):
        return "-"
    if name == "passed":
        return f"{value:.2f} [{row['passed_low']:.2f}, {row['passed_high']:.2f}]"
    if name == "tail_ap_difference":
        return f"{value:+.3f} [{row['tail_ap_low']:+.3f}, {row['tail_ap_high']:+.3f}]"
    if name in ("verifier", "verifier_difference", "kid"):
        error = row["kid_sd" if name == "kid" else f"{name}_se"]
        return f"{value:{'+' if name == 'verifier_difference' else ''}.3f} ± {error:.3f}"
    if name == "value":
        return f"**{value}**" if row["is_base"] and value else str(value)
    return f"{value:.0f}" if name in ("seed", "kept", "seconds") else f"{value:.3f}"


def as_markdown(table: pd.DataFrame) -> str:
    """A section a factor, a line a value; the base's value is bold."""
    shown = SHOWN | (DOWNSTREAM if "tail_ap_difference" in table else {})
    lines = []
    for factor, part in table.groupby("factor", sort=False):
        lines += [f"## {factor}", "", "| " + " | ".join(shown.values()) + " |", "|---" * len(shown) + "|"]
        rows = part.to_dict("records")
        lines += ["| " + " | ".join(_cell(row, name) for name in shown) + " |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def kid_by_fold(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """(KID, error) of (real, synthetic) features, a pair an extractor, weighted by synthetic rows; NaN without enough.

    Features are scaled by the real ones. The errors are added up as if all extractors erred together.
    """
    enough = [scaled(*pair) for pair in pairs if min(map(len, pair)) >= FEWEST_FOR_KID]
    if not enough:
        return float("nan"), float("nan")
    found = [kid(real, synthetic) for real, synthetic in enough]
    weights = [len(synthetic) for _, synthetic in enough]
    value, error = np.average([(one.value, one.sd) for one in found], axis=0, weights=weights)
    return float(value), float(error)
