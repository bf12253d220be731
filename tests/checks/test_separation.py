"""Three roles are three networks, and no verifier saw a parent of its images."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlt.checks.folds import cross_fit, folds
from medlt.checks.separation import (
    digest_network,
    parents_of,
    pixels_of,
    require_disjoint_networks,
    require_unseen_parents,
)
from medlt.classify.networks import network
from medlt.types import InputError

ROLES = ("guidance", "verifier", "evaluation")


def test_networks_of_other_seeds_differ_and_one_under_two_names_is_not() -> None:
    named = {role: [digest_network(network("small", 2, seed))] for seed, role in enumerate(ROLES)}
    require_disjoint_networks(named)
    again = [digest_network(network("small", 2, 5)), digest_network(network("small", 2, 0))]
    with pytest.raises(InputError, match=f".weights {again[1]}. has the roles guidance and evaluation"):
        require_disjoint_networks(named | {"evaluation": again})


@given(st.dictionaries(st.sampled_from(ROLES), st.lists(st.sampled_from("abcdef"), max_size=3)))
def test_it_refuses_just_what_is_shared(roles: dict[str, list[str]]) -> None:
    everyone = [digest for named in roles.values() for digest in set(named)]
    if len(everyone) == len(set(everyone)):
        require_disjoint_networks(roles)
    else:
        with pytest.raises(InputError, match="would agree with itself"):
            require_disjoint_networks(roles)


def test_parents_are_all_that_any_column_names() -> None:
    rows = pd.DataFrame(
        {
            "parents": [["a", "b"], [], ["c"]],
            "tail_parent": ["a", "d", "c"],
            "label_source": [None, "e", ""],
            "finding": "Mass",
        },
        index=["s0", "s1", "s2"],
    )
    assert parents_of(rows).to_dict() == {"s0": ("a", "b"), "s1": ("d", "e"), "s2": ("c",)}
    assert parents_of(rows[["label_source"]]).to_dict() == {"s0": (), "s1": ("e",), "s2": ()}
    assert parents_of(rows[["finding"]]).to_dict() == {"s0": (), "s1": (), "s2": ()}
    assert len(parents_of(rows.iloc[:0])) == 0


def test_parents_may_be_called_anything_and_come_back_from_disk(tmp_path: Path) -> None:
    names = ["Viral Pneumonia-1", "a, b", "\u4f8b 1"]
    rows = pd.DataFrame({"parents": [names, [], names[:1]], "tail_parent": names}, index=["s0", "s1", "s2"])
    results = {"s0": tuple(sorted(names)), "s1": ("a, b",), "s2": tuple(sorted((names[0], names[2])))}
    assert parents_of(rows).to_dict() == results
    rows.to_parquet(tmp_path / "plan.parquet")
    assert parents_of(pd.read_parquet(tmp_path / "plan.parquet")).to_dict() == results
    assert pixels_of(rows).to_dict() == {"s0": tuple(names), "s1": (), "s2": (names[0],)}
    with pytest.raises(TypeError, match="is not a list of uids"):
        parents_of(rows.assign(parents="Viral Pneumonia-1"))


ASSIGNED = pd.Series({"s0": 0, "s1": 1, "s2": 1})
PARENTS = pd.Series({"s2": ("b", "c"), "s1": ("c",), "s0": ("a",)})


def test_a_verifier_trained_on_a_parent_is_refused_by_name() -> None:
    require_unseen_parents(ASSIGNED, {0: {"b", "c"}, 1: {"a"}}, PARENTS)
    with pytest.raises(InputError, match="verifier 1 was trained on 'b', a parent of image 's2'; assign"):
        require_unseen_parents(ASSIGNED, {0: {"b", "c"}, 1: ["a", "b"]}, PARENTS)
    with pytest.raises(InputError, match=r"verifier 1 was trained on 'c', a parent of image 's1'.*\(2 images in all\)"):
        require_unseen_parents(ASSIGNED, {0: {"b"}, 1: {"c"}}, PARENTS)


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(InputError, match="verifier 1 is not among"):
        require_unseen_parents(ASSIGNED, {0: {"b"}}, PARENTS)
    with pytest.raises(InputError, match="image 's2' has no parents on record"):
        require_unseen_parents(ASSIGNED, {0: {"b"}, 1: {"a"}}, PARENTS.drop("s2"))


def test_the_verifier_of_the_parents_fold_passes_and_any_other_does_not() -> None:
    """As cross-fitted verifiers are trained: the fold of the image's own parent may verify it."""
    import torch

    uids = pd.Index([f"u{i:02d}" for i in range(30)], name="uid")
    patients = pd.Series([f"p{i // 2}" for i in range(30)], index=uids)
    labels = pd.DataFrame({"Mass": [float(i % 5 == 0) for i in range(30)]}, index=uids)
    fold, seen = folds(patients, labels, 3, 0), {}

    def train(shown, k):
        seen[k] = set(shown)
        return lambda images: torch.zeros(len(images), 1)

    cross_fit(fold, lambda rows: torch.zeros(len(rows), 1, 4, 4), train, ["Mass"])
    parents = pd.Series({f"s-{uid}": (uid,) for uid in uids})
    own = pd.Series({f"s-{uid}": int(fold[uid]) for uid in uids})
    require_unseen_parents(own, seen, parents)
    for uid in parents.index:
        with pytest.raises(InputError, match=repr(uid)):
            require_unseen_parents(own.where(own.index != uid, (own + 1) % 3), seen, parents)
