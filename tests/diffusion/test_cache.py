"""The latent cache: looked up by uid, gone on with after a kill, the same bytes however it was made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medlt.diffusion.cache import LatentCache, Latents, Standardiser, cache_latents, channel_statistics
from medlt.diffusion.codec import AutoencoderCodec
from medlt.testing import Discs, IdentityCodec, tiny_autoencoder_kl
from medlt.types import Codec, InputError

IMAGES = Discs(11, 16)


def stored(cache: LatentCache) -> bytes:
    return (cache.folder / "moments.npy").read_bytes()


def kl() -> Codec:
    return AutoencoderCodec(tiny_autoencoder_kl())


@pytest.mark.parametrize("make", [IdentityCodec, kl])
def test_moments_come_back_by_uid_in_the_order_asked(make: Callable[[], Codec], tmp_path: Path) -> None:
    codec = make()
    cache = cache_latents(codec, IMAGES, tmp_path, batch=4)
    asked = ["disc-7", "disc-0", "disc-7", "disc-10"]
    truth = torch.cat([codec.moments(IMAGES[int(uid[5:])]["image"][None]) for uid in asked])
    torch.testing.assert_close(cache[asked], truth, atol=1e-5, rtol=1e-5)
    assert cache.uids == IMAGES.uids
    assert len(cache) == 11


def test_it_is_a_plain_numpy_file(tmp_path: Path) -> None:
    cache = cache_latents(IdentityCodec(), IMAGES, tmp_path)
    held = np.load(cache.folder / "moments.npy", allow_pickle=False)
    assert held.shape == cache.shape == (11, 2, 16, 16)
    np.testing.assert_array_equal(held[3, 0], IMAGES[3]["image"][0].numpy())


def test_half_precision_is_half_the_size_and_close(tmp_path: Path) -> None:
    whole, half = (cache_latents(IdentityCodec(), IMAGES, tmp_path, dtype=dtype) for dtype in ("float32", "float16"))
    assert whole.folder != half.folder
    assert len(stored(half)) < 0.55 * len(stored(whole))
    torch.testing.assert_close(half[half.uids], whole[whole.uids], atol=1e-3, rtol=1e-3)
    assert half[["disc-1"]].dtype == torch.float32


class Interrupted:
    """A data set whose power fails at one image; counts what was read."""

    def __init__(self, fails_at: int | None) -> None:
        self.uids, self.fails_at, self.read = IMAGES.uids, fails_at, list[int]()

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == self.fails_at:
            raise KeyboardInterrupt
        self.read.append(index)
        return IMAGES[index]


@pytest.mark.parametrize("torn", [0, 100])
def test_a_killed_run_goes_on_to_the_same_bytes(torn: int, tmp_path: Path) -> None:
    codec = kl()
    whole = cache_latents(codec, IMAGES, tmp_path / "whole", batch=5)
    with pytest.raises(KeyboardInterrupt):
        cache_latents(codec, Interrupted(8), tmp_path / "killed", batch=3)
    (part,) = (tmp_path / "killed").glob("*/moments.part.npy")
    with part.open("ab") as handle:
        handle.write(b"\1" * torn)
    with pytest.raises(InputError, match="no finished latent cache"):
        LatentCache.open(part.parent)
    again = Interrupted(None)
    cache = cache_latents(codec, again, tmp_path / "killed", batch=4)
    assert stored(cache) == stored(whole)
    assert set(again.read) == {0, *range(6, 11)}


def test_a_finished_cache_is_opened_without_encoding(tmp_path: Path) -> None:
    cache_latents(IdentityCodec(), IMAGES, tmp_path)
    again = Interrupted(None)
    cache_latents(IdentityCodec(), again, tmp_path)
    assert again.read == [0]


def test_what_names_the_cache(tmp_path: Path) -> None:
    base = cache_latents(IdentityCodec(), IMAGES, tmp_path).folder
    other_codec = cache_latents(IdentityCodec(scale=2.0), IMAGES, tmp_path).folder
    other_size = cache_latents(IdentityCodec(), Discs(11, 8), tmp_path).folder
    other_uids = cache_latents(IdentityCodec(), Discs(10, 16), tmp_path).folder
    other_source = cache_latents(IdentityCodec(), IMAGES, tmp_path, source="manifest").folder
    assert len({base, other_codec, other_size, other_uids, other_source}) == 5


def test_an_unknown_uid_is_told(tmp_path: Path) -> None:
    cache = cache_latents(IdentityCodec(), IMAGES, tmp_path)
    with pytest.raises(InputError, match="no latents of disc-99"):
        cache[["disc-1", "disc-99"]]


def test_images_that_are_not_those_announced_are_refused(tmp_path: Path) -> None:
    swapped = ["disc-1", "disc-0", *IMAGES.uids[2:]]
    with pytest.raises(InputError, match="gives disc-0 where disc-1 was announced"):
        cache_latents(IdentityCodec(), IMAGES, tmp_path, uids=swapped)
    with pytest.raises(InputError, match="10 uids for a dataset of 11 images"):
        cache_latents(IdentityCodec(), IMAGES, tmp_path, uids=IMAGES.uids[:10])
    with pytest.raises(InputError, match="at least one"):
        cache_latents(IdentityCodec(), Discs(0), tmp_path)


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    cache_latents(IdentityCodec(), IMAGES, tmp_path, batch=4, progress=lambda *step: told.append(step))
    assert told == [("latents", 4, 11), ("latents", 8, 11), ("latents", 11, 11)]


def test_channel_statistics_are_those_of_all_pixels_at_once(tmp_path: Path) -> None:
    codec, images = IdentityCodec(factor=2, scale=3.0), Discs(300, 4)
    cache = cache_latents(codec, images, tmp_path)
    z = codec.latents(cache[cache.uids]).double()
    mean, sd = channel_statistics(cache, codec, cache.uids)
    torch.testing.assert_close(mean, z.mean((0, 2, 3)).float())
    torch.testing.assert_close(sd, z.std((0, 2, 3), correction=0).float())
    part_mean, _ = channel_statistics(cache, codec, cache.uids[:7])
    torch.testing.assert_close(part_mean, z[:7].mean((0, 2, 3)).float())


def test_a_constant_channel_gets_unit_sd_and_no_uids_are_refused(tmp_path: Path) -> None:
    class Flat:
        uids = ("a", "b")

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"uid": self.uids[index], "image": torch.full((1, 4, 4), 0.7)}

    cache = cache_latents(IdentityCodec(), Flat(), tmp_path)
    mean, sd = channel_statistics(cache, IdentityCodec(), cache.uids)
    torch.testing.assert_close(mean, torch.tensor([0.7]))
    assert sd.tolist() == [1.0]
    with pytest.raises(InputError, match="no uids"):
        channel_statistics(cache, IdentityCodec(), [])


@settings(max_examples=30)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3),
    st.lists(st.floats(0.125, 50, width=32), min_size=3, max_size=3),
    st.integers(0, 9),
)
def test_standardising_and_back_is_the_identity(mean: list[float], sd: list[float], seed: int) -> None:
    z = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    affine = Standardiser(torch.tensor(mean), torch.tensor(sd))
    torch.testing.assert_close(affine.back(affine.to(z)), z, atol=1e-3, rtol=1e-4)


def test_latents_by_uid_are_standardised(tmp_path: Path) -> None:
    codec = IdentityCodec(factor=2, scale=3.0)
    cache = cache_latents(codec, IMAGES, tmp_path)
    latents = Latents(cache, codec, Standardiser(*channel_statistics(cache, codec, cache.uids)))
    z: Tensor = latents(cache.uids)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(codec.decode(latents.standardiser.back(latents(["disc-4"])))[0], IMAGES[4]["image"])
