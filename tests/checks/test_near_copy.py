"""Near-copies: planted ones fail, fresh images pass at the stated rate, blocks and the batch do not matter."""

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medlt.checks.near_copy import NearCopy, near_copy, near_copy_limit
from medlt.metrics.nearest import isolation
from medlt.types import Batch, InputError


def pixels(images: Tensor) -> Tensor:
    floats = images.float() / 255 if images.dtype == torch.uint8 else images
    flat = floats.flatten(1)
    return functional.normalize(flat - flat.mean(1, keepdim=True))


def coarse(images: Tensor) -> Tensor:
    floats = images.float() / 255 if images.dtype == torch.uint8 else images
    return pixels(functional.avg_pool2d(floats, 4))


def real(n: int, seed: int) -> Tensor:
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def batch(images: Tensor) -> Batch:
    uids = pd.Index([f"s{i}" for i in range(len(images))], name="uid")
    return Batch(pd.DataFrame(index=uids), images, pd.DataFrame(index=uids))


@pytest.fixture(scope="module")
def check() -> NearCopy:
    return near_copy((pixels, coarse), real(199, 1), real(60, 0), 0.02)


def test_copies_fail_even_when_noisy_and_the_rest_pass(check: NearCopy) -> None:
    train, noise = real(60, 0)[:5], real(5, 9)
    given = torch.cat([train, 0.7 * train + 0.3 * noise, real(5, 8)])
    result = check(batch(given))
    assert [f.passed for f in result] == [False] * 10 + [True] * 5
    assert max(f.value for f in result[:5]) < 0.01
    assert all(f.limit == 1 for f in result)


def test_fresh_images_fail_at_no_more_than_the_rate() -> None:
    """Exchangeable images: over many nulls the share that fails is the rate."""
    train = real(60, 0)
    shares = []
    for seed in range(30):
        made = near_copy((pixels,), real(99, 100 + seed), train, 0.1)
        shares.append(sum(not f.passed for f in made(batch(real(100, 500 + seed)))) / 100)
    assert 0.07 < sum(shares) / 30 < 0.13


def test_a_drawn_sample_of_the_held_out_images_keeps_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 499 images 99 set the limit: the rank 9 of 99, not 49 of 499. Which ones, their number alone decides."""
    monkeypatch.setattr("medlt.checks.near_copy.MOST", 99)
    train, shares = pixels(real(60, 0)), []
    for seed in range(30):
        held_out = real(499, 100 + seed)
        limit = near_copy_limit(pixels, held_out, train, 0.1)
        every = isolation(pixels(held_out), train, 50).ratio.sort().values
        assert (every - limit).abs().min() < 1e-6
        shares.append(float((isolation(pixels(real(300, 500 + seed)), train, 50).ratio < limit).double().mean()))
    assert 0.07 < sum(shares) / 30 < 0.13
    assert limit == near_copy_limit(pixels, held_out, train, 0.1)
    assert limit != near_copy_limit(pixels, held_out[:99], train, 0.1)


def test_value_depends_on_no_other_image(check: NearCopy) -> None:
    images = real(6, 4)
    together = [f.value for f in check(batch(images))]
    alone = [check(batch(one[None]))[0].value for one in images]
    assert together == pytest.approx(alone, rel=1e-5)


def test_eight_bit_real_images_are_the_same_null() -> None:
    train, val = (real(60, 0) * 255).round(), (real(99, 1) * 255).round()
    as_bytes = near_copy((pixels,), val.byte(), train.byte(), 0.05)
    assert as_bytes.metrics[0].limit == pytest.approx(
        near_copy((pixels,), val / 255, train / 255, 0.05).metrics[0].limit, rel=1e-5
    )


def test_a_null_too_small_for_the_rate_is_refused() -> None:
    with pytest.raises(InputError, match="20 held-out images cannot resolve a false-positive rate"):
        near_copy_limit(pixels, real(20, 1), pixels(real(60, 0)), 0.01)
    with pytest.raises(InputError, match="cannot resolve"):
        near_copy_limit(pixels, real(20, 1), pixels(real(60, 0)), 0.0)
