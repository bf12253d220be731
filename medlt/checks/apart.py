"""What an image was made to please, or learnt from, cannot say whether it is right: judges kept apart.

Three roles: A guides the sampler, B verifies the labels, C reports how well they fit and whether the images help. They
must be three networks, and a judge must not have been trained on a parent of what it judges.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import combinations

import pandas as pd
from torch import nn

from medlt.data.manifest import uids_in
from medlt.files import digest_tensors
from medlt.types import InputError

LISTED, SINGLE = "parents", ("parent_a", "parent_b", "like")
"""Columns of plan rows that name real rows: one holds a list of uids, the others a uid each."""


def digest_network(net: nn.Module) -> str:
    """16 hex digits that name the weights of a network."""
    return digest_tensors(net.state_dict())


def apart(roles: Mapping[str, Iterable[str]]) -> None:
    """Hold that networks in different roles differ; roles: role (guiding, verifying, reporting) -> digests as of
    `digest_network`.

    Raises InputError for a network that has two roles.
    """
    for (one, mine), (other, theirs) in combinations(((role, set(named)) for role, named in roles.items()), 2):
        if both := sorted(mine & theirs):
            raise InputError(
                f"a network is both a {one} and a {other} classifier (weights {both[0]}), so it would agree with "
                "itself; train another from another seed"
            )


def pixels_of(rows: pd.DataFrame) -> pd.Series:
    """uid -> uids of the real rows whose pixels went into an image, a tuple as the column `parents` lists them."""
    listed = [tuple(uids_in(value)) for value in rows[LISTED]] if LISTED in rows else [()] * len(rows)
    return pd.Series(listed, index=rows.index, name="parents", dtype=object)


def parents_of(rows: pd.DataFrame) -> pd.Series:
    """uid -> uids of the real rows each image was made from, or whose label vector it was told; as a tuple, sorted."""
    single = [rows[column].tolist() for column in SINGLE if column in rows]
    named = zip(*single, strict=True) if single else [()] * len(rows)
    told = [{str(uid) for uid in uids if not pd.isna(uid) and uid != ""} for uids in named]
    said = [tuple(sorted({*some, *more})) for some, more in zip(pixels_of(rows), told, strict=True)]
    return pd.Series(said, index=rows.index, name="parents", dtype=object)


def judged_apart(judged: pd.Series, seen: Mapping[int, Collection[str]], parents: pd.Series) -> None:
    """Hold that no judge was trained on a parent of an image it judges.

    judged: uid of an image -> number of its judge; seen: number -> uids that judge was trained on; parents: uid -> uids
    as of `parents_of`. Raises InputError that names one image and its parent, for a judge that nothing is known of, and
    for an image whose parents are not told.
    """
    known, bad = {judge: set(uids) for judge, uids in seen.items()}, []
    if strange := sorted(set(judged) - set(known)):
        raise InputError(f"judge {strange[0]} is not among {sorted(known)}; say what each judge was trained on")
    if len(lost := judged.index.difference(parents.index)):
        raise InputError(f"image {lost[0]!r} has no parents on record; judge only images whose plan is at hand")
    for uid, judge in judged.items():
        bad += [(uid, judge, parent) for parent in parents[uid] if parent in known[judge]]
    if bad:
        uid, judge, parent = bad[0]
        more = f" ({len({one for one, _, _ in bad})} images in all)" if len(bad) > 1 else ""
        raise InputError(
            f"judge {judge} was trained on {parent!r}, a parent of image {uid!r} that it judges{more}; "
            "let the judge of the parent's own fold see it, which was trained without"
        )
