"""Pairs above a limit against all pairs, one by one; what is read how often; mirrored and flat images, noise."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from medlt.checks.correlation import WAVES, Images, most_alike, project, standardised
from medlt.checks.real_copy import real_copies
from medlt.checks.sanity import copies
from medlt.rng import torch_generator


def drawn(n: int, size: int, kinds: Sequence[int], seed: int) -> Tensor:
    """Images uint8 [n,1,size,size]: smooth ones, noise, flat ones, and equal, paler, noisy and mirrored versions."""
    draw = torch_generator("correlation", seed)
    smooth = functional.interpolate(torch.rand(n, 1, 4, 4, generator=draw), size=(size, size), mode="bilinear")
    images = 0.1 + 0.8 * smooth
    for i, kind in enumerate(kinds[:n]):
        other = images[int(torch.randint(0, max(1, i), (), generator=draw))]
        noise = torch.randn(1, size, size, generator=draw)
        versions = (images[i], noise.sigmoid(), torch.full_like(other, 0.5), other, other * 0.8 + 0.1,
                    (other + 0.01 * noise).clamp(0, 1), (other + 0.1 * noise).clamp(0, 1), other.flip(-1))  # fmt: skip
        images[i] = versions[kind]
    return (images * 255).round().to(torch.uint8)


def named(images: Tensor) -> tuple[list[str], Images]:
    return [str(i) for i in range(len(images))], lambda uids: images[[int(uid) for uid in uids]]


SETS = {
    "n": st.integers(1, 40),
    "size": st.sampled_from([4, 7, 16, 32]),
    "kinds": st.lists(st.integers(0, 7), min_size=40, max_size=40),
    "seed": st.integers(0, 999),
    "limit": st.sampled_from([0.0, 0.9, 0.99, 0.995, 0.99999]),
    "chunk": st.sampled_from([1, 3, 256]),
}


@given(**SETS)
def test_the_copies_are_those_of_all_pairs(
    n: int, size: int, kinds: list[int], seed: int, limit: float, chunk: int
) -> None:
    """An image fails if and only if any earlier one is above the limit; its value is a correlation with one of them."""
    images = drawn(n, size, kinds, seed)
    vectors = standardised(images)
    every = (vectors @ vectors.T).numpy()
    for i, result in enumerate(copies(*named(images), limit, chunk)):
        if np.abs(every[i, :i] - limit).min(initial=1) < 1e-12:
            continue  # rounding decides
        assert result.uid == str(i)
        assert result.passed == bool((every[i, :i] <= limit).all())
        assert result.value == -1 or np.abs(every[i, :i] - result.value).min() < 1e-12


@given(**SETS)
def test_the_copies_of_real_images_are_those_of_all_pairs(
    n: int, size: int, kinds: list[int], seed: int, limit: float, chunk: int
) -> None:
    images = drawn(n, size, kinds, seed)
    made, real = images[: n // 2], images[n // 2 :]
    vectors, others = standardised(made), standardised(real)
    every = torch.maximum(vectors @ others.T, standardised(made.flip(-1)) @ others.T).numpy()
    for i, result in enumerate(real_copies(*named(made), *named(real), limit, chunk)):
        if np.abs(every[i] - limit).min() < 1e-12:
            continue
        assert result.passed == bool((every[i] <= limit).all())
        if not result.passed:
            number = int(result.reason.rsplit(" ", 1)[1])
            assert result.value == pytest.approx(every[i, number], abs=1e-12)


@given(seed=st.integers(0, 999), size=st.sampled_from([4, 7, 32]))
def test_projections_are_never_farther_than_images_and_mirror_with_them(seed: int, size: int) -> None:
    images = drawn(12, size, [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 5, 6], seed)
    one = project(*named(images))
    vectors = standardised(images)[one.rows]
    assert (torch.pdist(torch.from_numpy(one.waves)) <= torch.pdist(vectors) + 1e-12).all()
    turned = project(*named(images.flip(-1)))
    np.testing.assert_allclose(one.mirrored().waves, turned.waves, atol=1e-12)
    assert torch.equal(one.mirrored().pixels(np.arange(len(one.rows))), turned.pixels(np.arange(len(one.rows))))


def counted(images: Tensor) -> tuple[Counter[str], list[str], Images]:
    uids, read = named(images)
    seen: Counter[str] = Counter()

    def counting(chosen: Sequence[str]) -> Tensor:
        seen.update(chosen)
        return read(chosen)

    return seen, uids, counting


def test_an_image_that_resembles_no_other_is_read_once() -> None:
    images = drawn(300, 32, [0] * 300, 0)
    images[299] = images[7]
    seen, uids, read = counted(images)
    assert [result.uid for result in copies(uids, read, chunk=50) if not result.passed] == ["299"]
    assert seen == Counter(uids) + Counter({"7": 1, "299": 1})


@pytest.mark.parametrize("noise", [0.0, 0.004])
def test_a_set_of_copies_is_not_compared_pair_by_pair(noise: float) -> None:
    """Each of 600 images copies all earlier ones; one comparison a copy is enough, and all pairs are 180,000."""
    base = drawn(1, 32, [0], 0).float() / 255
    images = (base + noise * torch.randn(600, 1, 32, 32, generator=torch_generator("copies"))).clamp(0, 1)
    seen, uids, read = counted(images)
    assert [result.passed for result in copies(uids, read, chunk=50)] == [True] + [False] * 599
    assert seen.total() < 20 * 600


def test_more_waves_of_one_direction_than_pixels_are_zero() -> None:
    images = drawn(3, 4, [0, 0, 0], 0)
    waves = project(*named(images)).waves.reshape(-1, WAVES, WAVES)
    assert (waves[:, 4:] == 0).all()
    np.testing.assert_allclose(np.square(waves).sum((1, 2)), 1)


def test_nothing_is_like_an_image_of_an_empty_set() -> None:
    one, none = project(*named(drawn(3, 8, [0, 2, 1], 0))), project([], named(torch.zeros(0, 1, 8, 8))[1])
    assert most_alike(one, none, 0.9)[0].tolist() == [-1] * 3
    assert most_alike(none, one, 0.9)[0].tolist() == []


def test_a_copy_counts_although_an_image_like_it_in_long_waves_is_compared_after_it() -> None:
    base = drawn(1, 32, [0], 0)[0].float() / 255
    fine = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 - 0.5) * 0.1  # no long waves
    paler = base * 0.9 + 0.05
    images = (torch.stack([base * 0.95, base + fine, paler, paler]) * 255).round().to(torch.uint8)
    assert [result.passed for result in copies(*named(images), chunk=1)] == [True, True, False, False]
