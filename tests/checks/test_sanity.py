"""Planted black, NaN, clipped and copied images are detected, and an honest radiograph-like image is not."""

from collections.abc import Sequence

import pandas as pd
import pytest
import torch

from medlt.checks.sanity import Duplicate, Finite, Flat, Saturated, copies, sanity, standardised
from medlt.types import Batch


def honest(n: int, seed: int = 0) -> torch.Tensor:
    """Smooth random images [n,1,32,32] in (0,1), a shape in common and a part of their own."""
    g = torch.Generator().manual_seed(seed)
    own = torch.nn.functional.interpolate(torch.rand(n, 1, 4, 4, generator=g), size=(32, 32), mode="bilinear")
    common = torch.linspace(0, 1, 32)[None, None, :, None]
    return (0.1 + 0.4 * own + 0.4 * common).clamp(0, 1)


REAL = dict(zip(["a", "b", "c"], honest(3, seed=1), strict=True))


def real(uids: Sequence[str]) -> torch.Tensor:
    return torch.stack([REAL[uid] for uid in uids])


def batch(images: torch.Tensor, parents: Sequence[str] | Sequence[Sequence[str]] = ("a", "b")) -> Batch:
    """Rows that all have these parents, or, of a list of lists, each its own."""
    uids = pd.Index([f"s{n}" for n in range(len(images))], name="uid")
    own = bool(parents) and not isinstance(parents[0], str)
    listed = list(parents) if own else [list(parents)] * len(images)
    return Batch(pd.DataFrame({"parents": listed}, index=uids), images, pd.DataFrame(index=uids))


def rejected(check: object, images: torch.Tensor, parents: Sequence[str] = ("a", "b")) -> list[bool]:
    return [not f.passed for f in check(batch(images, parents))]  # type: ignore[operator]


def test_honest_images_pass_everything() -> None:
    for check in sanity(real):
        assert rejected(check, honest(6)) == [False] * 6


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_a_flat_image_is_detected_whatever_its_grey(value: float) -> None:
    images = honest(3)
    images[1] = value + 0.01 * torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.005
    assert rejected(Flat(), images) == [False, True, False]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1.1, -0.1])
def test_one_bad_pixel_is_detected(value: float) -> None:
    images = honest(3)
    images[2, 0, 5, 5] = value
    assert rejected(Finite(), images) == [False, False, True]
    assert Finite()(batch(images))[2].value == 1


def test_a_nan_image_never_passes() -> None:
    images = torch.full((1, 1, 32, 32), torch.nan)
    assert rejected(Finite(), images) == [True]
    assert rejected(Flat(), images) == [True]


def test_a_clipped_image_is_detected() -> None:
    images = honest(2)
    images[0] = (images[0] > images[0].median()).float()
    assert rejected(Saturated(), images) == [True, False]


def test_a_copy_of_a_parent_is_detected_through_brightness_and_noise() -> None:
    images = honest(4)
    images[1] = 0.8 * REAL["b"] + 0.1
    images[2] = (REAL["a"] + 0.002 * torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    images[3] = REAL["c"]  # no parent of this row
    assert rejected(Duplicate(real), images) == [False, True, True, False]
    assert Duplicate(real)(batch(images))[1].value == pytest.approx(1)
    assert rejected(Duplicate(real), images, parents=["c"]) == [False, False, False, True]
    assert rejected(Duplicate(real), images, parents=[]) == [False] * 4
    own = Duplicate(real)(batch(images, [["b"], ["c"], ["a", "b"], ["a"]]))
    assert [f.passed for f in own] == [True, True, False, True]


def test_eight_bit_parents_do_as_well() -> None:
    def eight_bit(uids: Sequence[str]) -> torch.Tensor:
        return (real(uids) * 255).round().to(torch.uint8)

    images = torch.stack([REAL["a"], honest(1)[0]])
    assert rejected(Duplicate(eight_bit), images) == [True, False]


def test_a_parent_check_does_not_hang_on_the_batch() -> None:
    images = honest(4)
    images[1] = REAL["b"]
    images[2] = images[0]
    whole = [f.value for f in Duplicate(real)(batch(images))]
    alone = [Duplicate(real)(batch(images[i : i + 1]))[0].value for i in range(4)]
    assert whole == pytest.approx(alone, abs=1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_the_later_of_two_copies_is_detected_across_chunks(chunk: int) -> None:
    images = dict(zip("pqrstu", honest(6), strict=True))
    images["s"], images["u"] = images["p"], images["r"] * 0.9 + 0.05
    result = copies(list("pqrstu"), lambda uids: torch.stack([images[u] for u in uids]), chunk=chunk)
    assert [f.uid for f in result] == list("pqrstu")
    assert [f.uid for f in result if not f.passed] == ["s", "u"]


def test_a_flat_image_correlates_with_nothing() -> None:
    assert standardised(torch.full((1, 1, 4, 4), 0.3)).abs().sum() == 0
