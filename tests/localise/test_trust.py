"""Stages in an order of trust, and the stages that a person draws: by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from medlt.data.regions import Regions
from medlt.localise.given import Given, OnSide, on_side
from medlt.localise.trust import NOWHERE, Trust

NAN = float("nan")
BOXES = {"Mass": {"a": np.array([[0.0, 0.0, 0.5, 0.5]]), "b": np.array([[0.25, 0.0, 0.5, 1.0]])}}


class Stage:
    """Knows the images of `known`, whose map is constant; counts its calls."""

    def __init__(self, known: dict[str, float]) -> None:
        self.known, self.calls = known, list[tuple[str, ...]]()

    def __call__(self, uids: Sequence[str], finding: str) -> Tensor:
        self.calls.append(tuple(uids))
        return torch.stack([torch.full((2, 2), self.known.get(uid, NAN)) for uid in uids])


def test_each_image_gets_the_map_of_the_first_stage_that_knows_it() -> None:
    first, second = Stage({"a": 1.0}), Stage({"a": 0.25, "b": 0.5})
    trust = Trust({"mask": first, "image": second}, (2, 2))
    located = trust.locate(["b", "a", "c", "b"], ["Mass", "Mass", "Mass", "Mass"])
    assert located.stages == ("image", "mask", NOWHERE, "image")
    assert located.maps[:, 0, 0].tolist() == [0.5, 1.0, 0.0, 0.5]
    assert located.given.tolist() == [False, True, False, False]
    assert second.calls == [("b", "c")], "a stage is not called for what a more trusted one knows"
    trust(["a", "b"], "Mass")
    assert len(first.calls) == 1, "maps are kept"
    trust(["a"], "Nodule")
    assert first.calls[-1] == ("a",), "by finding too"


def test_a_map_that_somebody_changes_is_not_the_map_that_is_kept() -> None:
    trust = Trust({"mask": Stage({"a": 1.0})}, (2, 2))
    trust(["a"], "Mass").zero_()
    assert trust(["a"], "Mass").sum() == 4
    assert trust.locate([], []).maps.shape == (0, 2, 2)


def test_given_boxes_are_the_covered_shares_and_other_kinds_are_unknown() -> None:
    boxes = Given(Regions(boxes=BOXES), "box", (2, 2))
    maps = boxes(["b", "c", "a"], "Mass")
    assert maps[0].tolist() == [[0.5, 0.0], [0.5, 0.0]]
    assert maps[1].isnan().all()
    assert maps[2].tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert Given(Regions(boxes=BOXES), "mask", (2, 2))(["a", "b"], "Mass").isnan().all()
    assert boxes(["a"], "Nodule").isnan().all()


@pytest.mark.parametrize(
    ("side", "width", "expected"),
    [
        ("left", 4, [0.0, 0.0, 0.75, 1.0]),  # the patient's left is on the right of the image
        ("right", 4, [0.5, 1.0, 0.0, 0.0]),
        ("left", 5, [0.0, 0.0, 0.6, 0.8, 1.0]),
        ("right", 5, [1 / 3, 2 / 3, 1.0, 0.0, 0.0]),
    ],
)
def test_a_side_keeps_its_half(side: str, width: int, expected: list[float]) -> None:
    ramp = (torch.arange(width) + 1.0)[None, None] / width
    kept = on_side(ramp, [side])  # type: ignore[list-item]
    torch.testing.assert_close(kept[0, 0], torch.tensor(expected))


def test_a_side_without_evidence_is_the_whole_side() -> None:
    for empty in (torch.zeros(1, 2, 4), torch.full((1, 2, 4), NAN)):
        assert on_side(empty, ["right"])[0].tolist() == [[1.0, 1.0, 0.0, 0.0]] * 2


def test_only_images_of_a_known_side_are_located_by_it() -> None:
    stage = OnSide(Stage({"a": 0.5, "b": 0.5}), {"Mass": {"b": "left"}}, (2, 2))
    maps = stage(["a", "b"], "Mass")
    assert maps[0].isnan().all()
    assert maps[1].tolist() == [[0.0, 1.0], [0.0, 1.0]]
    assert stage(["b"], "Nodule").isnan().all()
