"""Keep the roles of classifiers separate, so that none verifies images that it guided or was trained on.

There are three roles: guidance classifiers guide the sampler, verifiers check the labels, evaluation classifiers report
label agreement and whether the images help. They must be three networks, and a verifier must not be trained on a parent
of an image that it verifies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import combinations

import pandas as pd
from torch import nn

from medlt.data.manifest import uids_in
from medlt.files import digest_tensors
from medlt.types import InputError

LISTED, SINGLE = "parents", ("tail_parent", "head_parent", "label_source")
"""Columns of plan rows that name real rows: one holds a list of uids, the others a uid each."""


def digest_network(net: nn.Module) -> str:
    """Return 16 hex digits that identify the weights of a network."""
    return digest_tensors(net.state_dict())


def require_disjoint_networks(roles: Mapping[str, Iterable[str]]) -> None:
    """Raise InputError for a network that has two roles.

    roles: role (guidance, verifier, evaluation) -> digests as of `digest_network`.
    """
    for (one, mine), (other, theirs) in combinations(((role, set(named)) for role, named in roles.items()), 2):
        if both := sorted(mine & theirs):
            raise InputError(
                f"a network (weights {both[0]}) has the roles {one} and {other} and would agree with itself; "
                "train another one from another seed"
            )


def pixels_of(rows: pd.DataFrame) -> pd.Series:
    """Return, for each uid, the uids of the real rows whose pixels are in the image, as the column `parents` lists
    them.
    """
    listed = [tuple(uids_in(value)) for value in rows[LISTED]] if LISTED in rows else [()] * len(rows)
    return pd.Series(listed, index=rows.index, name="parents", dtype=object)


def parents_of(rows: pd.DataFrame) -> pd.Series:
    """Return, for each uid, the uids of the real rows that gave the image its pixels or its label vector, a sorted
    tuple.
    """
    single = [rows[column].tolist() for column in SINGLE if column in rows]
    named = zip(*single, strict=True) if single else [()] * len(rows)
    sources = [{str(uid) for uid in uids if not pd.isna(uid) and uid != ""} for uids in named]
    merged = [tuple(sorted({*some, *more})) for some, more in zip(pixels_of(rows), sources, strict=True)]
    return pd.Series(merged, index=rows.index, name="parents", dtype=object)


def require_unseen_parents(assigned: pd.Series, seen: Mapping[int, Collection[str]], parents: pd.Series) -> None:
    """Raise InputError if a verifier was trained on a parent of an image that it verifies.

    assigned: uid of an image -> number of its verifier; seen: number -> uids that verifier was trained on; parents: uid
    -> uids as of `parents_of`. The error names one image and its parent. A verifier without training uids, and an image
    without parents on record, are errors too.
    """
    known, bad = {verifier: set(uids) for verifier, uids in seen.items()}, []
    if strange := sorted(set(assigned) - set(known)):
        raise InputError(
            f"verifier {strange[0]} is not among {sorted(known)}; give the training uids of every verifier"
        )
    if len(lost := assigned.index.difference(parents.index)):
        raise InputError(f"image {lost[0]!r} has no parents on record; verify only images that are in the plan")
    for uid, verifier in assigned.items():
        bad += [(uid, verifier, parent) for parent in parents[uid] if parent in known[verifier]]
    if bad:
        uid, verifier, parent = bad[0]
        more = f" ({len({one for one, _, _ in bad})} images in all)" if len(bad) > 1 else ""
        raise InputError(
            f"verifier {verifier} was trained on {parent!r}, a parent of image {uid!r}{more}; "
            "assign the verifier of the parent's own fold, which was trained without it"
        )
