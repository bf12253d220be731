"""Head images: who may be one, who resembles the tail image, and that all take their turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medlt.synthesis.heads import compatible_heads, in_turn, thumbnails
from medlt.synthesis.plan import TrainTable


def brightness(uids: Sequence[str]) -> Tensor:
    """Flat images as bright as the number in the uid."""
    return torch.stack([torch.full((1, 32, 32), int(uid[1:]) / 100) for uid in uids])


def table(**changed: list[object]) -> TrainTable:
    rows = pd.DataFrame({"Mass": [1.0] + [0.0] * 9, "Effusion": 0.0, "No Finding": 0.0}, [f"u{i}" for i in range(10)])
    rows.index.name = "uid"
    rows["patient_id"], rows["fold"], rows["view"] = [f"p{i}" for i in range(10)], 0, "PA"
    return TrainTable(rows.assign(**changed), ("Mass", "Effusion", "No Finding"), ("Mass",))


def test_heads_are_the_nearest_share_of_those_that_are_possible() -> None:
    heads = compatible_heads(table(), "Mass", ["u0"], brightness, 1.0)
    assert heads == {"u0": [f"u{i}" for i in range(1, 10)]}
    assert compatible_heads(table(), "Mass", ["u0"], brightness, 0.5) == {"u0": [f"u{i}" for i in range(1, 6)]}


def test_a_head_is_another_patient_of_the_fold_and_projection_known_not_to_have_the_finding() -> None:
    nan = float("nan")
    changed = table(
        Mass=[1.0, 1.0, nan, nan, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        patient_id=["p0", *(f"p{i}" for i in range(1, 5)), "p0", "p6", "p7", "p8", "p9"],
        fold=[0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
        view=["PA"] * 7 + ["LATERAL", "AP", "PA"],
        **{"No Finding": [0.0, 0.0, 0.0, 1.0] + [0.0] * 6},
    )
    assert compatible_heads(changed, "Mass", ["u0"], brightness, 1.0) == {"u0": ["u3", "u4", "u8", "u9"]}


def test_a_tail_image_without_a_head_has_none() -> None:
    alone = table(fold=[0] + [1] * 9)
    assert compatible_heads(alone, "Mass", ["u0"], brightness, 0.5) == {"u0": []}
    assert compatible_heads(table(Mass=[1.0] * 10), "Mass", ["u0"], brightness, 0.5) == {"u0": []}


def test_every_head_is_used_once_before_any_twice_and_the_nearest_first() -> None:
    heads, used = [f"u{i}" for i in range(7)], Counter[str]()
    chosen = [in_turn(heads, used) for _ in range(21)]
    assert chosen == heads * 3
    shared = Counter({"u0": 1, "u2": 1})
    assert [in_turn(heads[:3], shared) for _ in range(3)] == ["u1", "u0", "u1"]


def test_thumbnails_are_means_of_blocks() -> None:
    small = thumbnails(brightness, ["u7", "u3"])
    np.testing.assert_allclose(small, np.repeat([[0.07], [0.03]], 256, 1), atol=1e-6)
    assert thumbnails(brightness, []).shape == (0, 256)
