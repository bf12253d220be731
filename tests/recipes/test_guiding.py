"""What guides stand on: few rows for a level, and the same whatever else is there."""

import numpy as np

from medlt.recipes._methods import MOST, few


def test_at_most_so_many_positives_of_each_finding_set_its_level() -> None:
    labels = np.zeros((1000, 3))
    labels[:700, 0], labels[600:640, 1], labels[5:7, 2] = 1, 1, np.nan
    uids = [f"u{i}" for i in range(1000)]
    rows = few(labels, uids, 3)
    assert (labels[rows, 1] == 1).sum() == 40
    assert MOST <= (labels[rows, 0] == 1).sum() <= MOST + 40
    assert list(rows) == sorted(set(rows))
    assert (labels[rows, :2] == 1).any(1).all()


def test_the_choice_follows_the_uids_not_their_order() -> None:
    labels, uids = np.ones((500, 1)), np.array([f"u{i}" for i in range(500)])
    turned = np.random.default_rng(0).permutation(500)
    assert set(uids[few(labels, list(uids), 1)]) == set(uids[turned][few(labels, list(uids[turned]), 1)])
    assert set(few(labels, list(uids), 1)) != set(few(labels, list(uids), 2))
