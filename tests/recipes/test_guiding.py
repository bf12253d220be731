"""What guides stand on: few rows for a level, and the same whatever else is there."""

from typing import Any

import numpy as np
import pytest

from medlt.config import parse
from medlt.recipes._checks import guidance_of
from medlt.recipes._methods import MOST, few
from medlt.types import InputError

PRIVATE = {"epsilon": 8, "delta": 1e-5, "patients": 24, "findings": ["Mass"]}


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": [{"kind": "minority", "weight": 2}]}, "give 0 to 1, or write weight_unit: published"),
        ({"guidance": [{"kind": "jepa", "weight": "auto", "weight_unit": "published"}]}, "remove weight_unit"),
        ({"guidance": [{"kind": "longtail", "weight": "most"}]}, "auto"),
        ({"calibration": {"weights": [0.1, 0.05]}}, "order them from weak to strong"),
        ({"guidance": [{"kind": "minority", "weight": "auto"}], "privacy": PRIVATE}, "give a number"),
    ],
)
def test_a_strength_that_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    base: dict[str, Any] = {"output_dir": "out", "data": {"kind": "phantom"}, "codec": {"kind": "train"}}
    method = {"kind": "minority", **{name: value for name, value in changes.items() if name == "guidance"}}
    others = {name: value for name, value in changes.items() if name != "guidance"}
    with pytest.raises(InputError, match=message):
        parse({**base, **others, "method": method})


def test_published_weights_and_auto_are_read() -> None:
    base = {"output_dir": "out", "data": {"kind": "phantom"}, "codec": {"kind": "train"}}
    guides = [{"kind": "minority", "weight": 4, "weight_unit": "published"}, {"kind": "longtail", "weight": "auto"}]
    method = parse({**base, "method": {"kind": "minority", "guidance": guides}}).method
    assert [guide.weight for guide in guidance_of(method)] == [4, "auto"]
