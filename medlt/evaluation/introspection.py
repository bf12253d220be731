"""Find what the images that a guidance classifier is least sure of have in common, compared with unguided images.

After the introspection of arXiv 2502.01980, which queries a vision-language model. Here known attributes are counted;
a captioner is optional. The odds of an attribute's value in both groups are compared with an informative Dirichlet
prior, Monroe, Colaresi, Quinn, "Fightin' Words" (Political Analysis 2008), Eq. 16, 18, 22:

| symbol | meaning |
|---|---|
| y_i, n_i | occurrences of a value, and of all values of its attribute, in group i |
| a, a0 | prior of the value, a = a0 * its share in both groups together; a0 = prior of the attribute |
| delta | log odds (y_1 + a) / (n_1 + a0 - y_1 - a) minus the same of group 2 |
| z | delta / sqrt(1 / (y_1 + a) + 1 / (y_2 + a)) |

All input is arrays; the module reads no image and no patient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from medlt.types import InputError

AGES = ((18, "under 18"), (40, "18-39"), (60, "40-59"), (80, "60-79"), (np.inf, "80 and over"))
COLUMNS = ("attribute", "value", "top", "rest", "share_top", "share_rest", "log_odds", "z")


def most(signal: np.ndarray, passed: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Return a mask [N] of the `share` with the largest signal [N] among those that passed, bool [N]; at least 1.

    `passed` is the result of the label check. Ties go to the earlier row. Raises InputError if nothing passed.
    """
    if not 0 < share <= 1:
        raise InputError(f"introspection: share is {share}; give more than 0 and at most 1")
    candidates = np.flatnonzero(passed & np.isfinite(signal))
    if not len(candidates):
        raise InputError("introspection: no image with a signal passed the label check; make more, or guide less")
    order = candidates[np.argsort(-signal[candidates], kind="stable")]
    chosen = np.zeros(len(signal), dtype=bool)
    chosen[order[: max(1, round(share * len(order)))]] = True
    return chosen


def zones(maps: np.ndarray) -> list[str]:
    """Return the centre of mass of each map [N,h,w] as patient's side and third of the height; "" without mass.

    The patient's right is on the left of the image, as radiographs are displayed.
    """
    mass = np.clip(np.nan_to_num(maps.astype(float)), 0, None)
    total = mass.sum((1, 2))
    safe = np.where(total > 0, total, 1)
    y = (mass.sum(2) * (np.arange(mass.shape[1]) + 0.5)).sum(1) / safe / mass.shape[1]
    x = (mass.sum(1) * (np.arange(mass.shape[2]) + 0.5)).sum(1) / safe / mass.shape[2]
    third = np.array(["upper", "middle", "lower"])[np.clip((3 * y).astype(int), 0, 2)]
    return [f"{'right' if a < 0.5 else 'left'} {b}" if s > 0 else "" for a, b, s in zip(x, third, total, strict=True)]


def age_band(age: object) -> str:
    """Return the band of an age in years; "" if it is not a number."""
    years = pd.to_numeric(age, errors="coerce")
    return "" if pd.isna(years) or years < 0 else next(name for below, name in AGES if years < below)


def nearest_real(features: np.ndarray, real: np.ndarray, uids: Sequence[str], k: int = 3) -> np.ndarray:
    """Return uids [N,k] of the real images [R,D] nearest to features [N,D] by cosine distance, nearest first."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=min(k, len(uids)), metric="cosine").fit(real)
    near: np.ndarray = np.asarray(uids, dtype=object)[index.kneighbors(features, return_distance=False)]
    return near


def occurrences(attributes: dict[str, Sequence[str | Iterable[str]]], uids: Sequence[str]) -> pd.DataFrame:
    """Return one row a (uid, attribute, value). An attribute has one or more values an image; "" is unknown."""
    rows = [
        (uid, name, value)
        for name, given in attributes.items()
        for uid, values in zip(uids, given, strict=True)
        for value in dict.fromkeys([values] if isinstance(values, str) else map(str, values))
        if value
    ]
    return pd.DataFrame(rows, columns=["uid", "attribute", "value"])


def describe(
    labels: pd.DataFrame,
    about: pd.DataFrame,
    maps: np.ndarray | None = None,
    near: np.ndarray | None = None,
    words: Callable[[str], Iterable[str]] | None = None,
) -> pd.DataFrame:
    """Return the known attributes of images, in the form of `occurrences`.

    labels: index uid, a column a finding, positive from 0.5; about: the same index, with `view`, `sex` and `age`
    (years) if known; maps [N,h,w]: activation maps of the classifier for each image's finding; near [N,k]: uids of the
    nearest real images; words: a captioner, uid -> words.
    """
    positive = [[str(name) for name, value in row.items() if value >= 0.5] for _, row in labels.iterrows()]
    known: dict[str, Sequence[str | Iterable[str]]] = {"finding": positive}
    for name in ("view", "sex"):
        if name in about:
            known[name] = about[name].astype(object).where(about[name].notna(), "").astype(str).tolist()
    if "age" in about:
        known["age"] = [age_band(age) for age in about["age"]]
    if maps is not None:
        known["location"] = zones(maps)
    if near is not None:
        known["nearest real"] = list(near)
    if words is not None:
        known["word"] = [words(str(uid)) for uid in labels.index]
    return occurrences(known, [str(uid) for uid in labels.index])


def log_odds(top: np.ndarray, rest: np.ndarray, prior: float) -> tuple[np.ndarray, np.ndarray]:
    """Return delta and z of counts [W] of the values of one attribute in two groups; see the module.

    A single value has unbounded odds in both groups; its delta and z are 0.
    """
    a = prior * (top + rest) / (top + rest).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = [(y + a) / (y.sum() + prior - y - a) for y in (top, rest)]
        delta = np.log(odds[0]) - np.log(odds[1])
        z = delta / np.sqrt(1 / (top + a) + 1 / (rest + a))
    bounded = np.isfinite(delta) & (len(top) > 1)
    return np.where(bounded, delta, 0.0), np.where(bounded, z, 0.0)


def introspect(known: pd.DataFrame, top: Sequence[str], rest: Sequence[str], prior: float = 10.0) -> pd.DataFrame:
    """Return how the images `top` differ from `rest`, uids of `known` (`describe`): a row a value, largest z first.

    Columns: attribute, value; top, rest: images that have it; share_top, share_rest: of all images of the group;
    log_odds, z: see the module, over occurrences. Raises InputError if a group is empty or the groups overlap.
    """
    groups = {"top": set(top), "rest": set(rest)}
    if not all(groups.values()) or groups["top"] & groups["rest"]:
        raise InputError("introspection: the groups overlap or one is empty; give two disjoint groups of images")
    counts = {
        name: known[known["uid"].isin(uids)].groupby(["attribute", "value"]).size() for name, uids in groups.items()
    }
    table = pd.DataFrame(counts).fillna(0).astype(int)
    parts = [_compared(part.reset_index(), groups, prior) for _, part in table.groupby("attribute", sort=False)]
    whole = pd.concat(parts) if parts else pd.DataFrame(columns=COLUMNS)
    return whole[list(COLUMNS)].sort_values(
        ["z", "attribute", "value"], ascending=[False, True, True], ignore_index=True
    )


def _compared(part: pd.DataFrame, groups: dict[str, set[str]], prior: float) -> pd.DataFrame:
    """Return the values of one attribute with their shares and odds."""
    delta, z = log_odds(part["top"].to_numpy(float), part["rest"].to_numpy(float), prior)
    shares = {f"share_{name}": part[name] / len(uids) for name, uids in groups.items()}
    return part.assign(**shares, log_odds=delta, z=z)
