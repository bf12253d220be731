"""The latent cache: looked up by uid, gone on with after a kill, the same bytes however it was made."""

import os
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
from medlt.store import Store
from medlt.testing import Discs, IdentityCodec, tiny_autoencoder_kl
from medlt.training.runtime import Runtime, silent
from medlt.types import Codec, InputError, Progress

IMAGES = Discs(11, 16)


def run(progress: Progress = silent) -> Runtime:
    return Runtime("cpu", "fp32", None, 0, progress)


def cached(codec: Codec, dataset: Any, place: Path, told: Progress = silent, **changed: Any) -> LatentCache:
    """The cache of a data set whose images are what their uids say, in a store at `place`."""
    contents = {uid: f"content of {uid}" for uid in dataset.uids}
    options = {"contents": contents, "store": Store(place), "dtype": "float32", "runtime": run(told)}
    return cache_latents(codec, dataset, **(options | changed))


def stored(cache: LatentCache) -> bytes:
    return (cache.folder / "moments.npy").read_bytes()


def kl() -> Codec:
    return AutoencoderCodec(tiny_autoencoder_kl(), "cpu")


@pytest.mark.parametrize("make", [IdentityCodec, kl])
def test_moments_come_back_by_uid_in_the_order_asked(make: Callable[[], Codec], tmp_path: Path) -> None:
    codec = make()
    cache = cached(codec, IMAGES, tmp_path, batch=4)
    asked = ["disc-7", "disc-0", "disc-7", "disc-10"]
    truth = torch.cat([codec.moments(IMAGES[int(uid[5:])]["image"][None]) for uid in asked])
    torch.testing.assert_close(cache[asked], truth, atol=1e-5, rtol=1e-5)
    assert cache.uids == IMAGES.uids
    assert len(cache) == 11


def test_it_is_a_plain_numpy_file(tmp_path: Path) -> None:
    cache = cached(IdentityCodec(), IMAGES, tmp_path)
    held = np.load(cache.folder / "moments.npy", allow_pickle=False)
    assert held.shape == cache.shape == (11, 2, 16, 16)
    np.testing.assert_array_equal(held[3, 0], IMAGES[3]["image"][0].numpy())


def test_half_precision_is_half_the_size_and_close(tmp_path: Path) -> None:
    whole, half = (cached(IdentityCodec(), IMAGES, tmp_path, dtype=dtype) for dtype in ("float32", "float16"))
    assert whole.folder != half.folder
    assert len(stored(half)) < 0.55 * len(stored(whole))
    torch.testing.assert_close(half[half.uids], whole[whole.uids], atol=1e-3, rtol=1e-3)
    assert half[["disc-1"]].dtype == torch.float32


def test_half_precision_errs_by_less_than_a_thousandth(tmp_path: Path) -> None:
    whole, half = (cached(kl(), IMAGES, tmp_path, dtype=dtype)[IMAGES.uids] for dtype in ("float32", "float16"))
    large = whole.abs() > 6.2e-5  # from here on float16 has all its digits
    assert large.float().mean() > 0.99
    assert ((half - whole).abs() / whole.abs())[large].max() < 1e-3
    assert (half - whole).norm() / whole.norm() < 1e-3


class Loud:
    """A codec whose moments are large."""

    digest, channels, factor = "loud", 1, 1

    def moments(self, images: Tensor) -> Tensor:
        return torch.cat([images * 1e6, images * 0], 1)


def test_latents_beyond_half_precision_are_refused_not_stored_as_infinity(tmp_path: Path) -> None:
    codec: Any = Loud()
    with pytest.raises(InputError, match=r"latents of this codec reach \d+, beyond float16; scale them"):
        cached(codec, IMAGES, tmp_path, dtype="float16")
    assert cached(codec, IMAGES, tmp_path, dtype="float32")[["disc-0"]].max() > 65504


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


@pytest.mark.parametrize("damage", [
    lambda array, sums: None,
    lambda array, sums: array.write_bytes(array.read_bytes() + b"\1" * 100),
    lambda array, sums: os.truncate(array, array.stat().st_size - 5),
    lambda array, sums: os.truncate(sums, sums.stat().st_size - 5),
    lambda array, sums: sums.unlink(),
    lambda array, sums: sums.write_bytes(sums.read_bytes() + b"\1" * 40),
    lambda array, sums: flip(array, -3),
    lambda array, sums: flip(array, 40),
    lambda array, sums: array.unlink(),
    lambda array, sums: os.truncate(array, 0),
])  # fmt: skip
def test_a_killed_run_goes_on_to_the_same_bytes(damage: Callable[[Path, Path], object], tmp_path: Path) -> None:
    """Whatever the kill left: whole rows are kept, torn and flipped ones are computed again."""
    codec = kl()
    whole = cached(codec, IMAGES, tmp_path / "whole", batch=5)
    with pytest.raises(KeyboardInterrupt):
        cached(codec, Interrupted(8), tmp_path / "killed", batch=3)
    (array,) = (tmp_path / "killed").rglob("moments.npy")
    damage(array, array.with_name(".moments.sums"))
    again = Interrupted(None)
    cache = cached(codec, again, tmp_path / "killed", batch=4)
    assert stored(cache) == stored(whole)
    assert cache.contents == whole.contents


def test_a_kill_costs_one_batch(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cached(IdentityCodec(), Interrupted(8), tmp_path, batch=3)
    again = Interrupted(None)
    cached(IdentityCodec(), again, tmp_path, batch=3)
    assert again.read == [0, *range(6, 11)]


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["moments.npy", "cache.json"])
@pytest.mark.parametrize("damage", [lambda file: flip(file, 150), lambda file: os.truncate(file, 0), Path.unlink,
                                    lambda file: os.truncate(file, file.stat().st_size - 3)])  # fmt: skip
def test_a_damaged_cache_is_named_set_aside_and_made_again(
    damage: Callable[[Path], object], name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cached(IdentityCodec(), IMAGES, tmp_path)
    whole = stored(cache)
    damage(cache.folder / name)
    again = cached(IdentityCodec(), IMAGES, tmp_path)
    assert (stored(again), again) == (whole, cache)
    assert f"{name} is damaged" in caplog.text


def test_a_finished_cache_is_opened_without_encoding(tmp_path: Path) -> None:
    cached(IdentityCodec(), IMAGES, tmp_path)
    again = Interrupted(None)
    cached(IdentityCodec(), again, tmp_path)
    assert again.read == [0]


def test_what_names_the_cache(tmp_path: Path) -> None:
    """Other pixels under the same uids, above all: names of files and numbers of images say nothing."""
    base = cached(IdentityCodec(), IMAGES, tmp_path)
    other_codec = cached(IdentityCodec(scale=2.0), IMAGES, tmp_path)
    other_size = cached(IdentityCodec(), Discs(11, 8), tmp_path)
    other_uids = cached(IdentityCodec(), Discs(10, 16), tmp_path)
    pixels = {uid: f"content of {uid}" for uid in IMAGES.uids} | {"disc-7": "replaced"}
    other_pixels = cached(IdentityCodec(), Discs(11, 16, seed=1), tmp_path, contents=pixels)
    every = (base, other_codec, other_size, other_uids, other_pixels)
    assert len({cache.folder for cache in every}) == len({cache.contents for cache in every}) == 5
    assert not torch.equal(base[["disc-7"]], other_pixels[["disc-7"]])
    more = {uid: f"content of {uid}" for uid in Discs(20).uids}
    assert cached(IdentityCodec(), IMAGES, tmp_path, contents=more) == base


def test_images_whose_contents_nobody_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"latents: contents has no digest of uid disc-3 \(8 in all\)"):
        cached(IdentityCodec(), IMAGES, tmp_path, contents={f"disc-{i}": "x" for i in range(3)})


def test_latents_are_named_by_codec_standardiser_and_pixels(tmp_path: Path) -> None:
    one, two = torch.ones(1), torch.full((1,), 2.0)
    caches = [cached(IdentityCodec(scale=scale), IMAGES, tmp_path) for scale in (1.0, 2.0)]
    codecs = [IdentityCodec(scale=scale) for scale in (1.0, 2.0)]
    named = {
        Latents(cache, codec, Standardiser(mean, sd)).contents
        for cache, codec in zip(caches, codecs, strict=True)
        for mean in (one, two)
        for sd in (one, two)
    }
    assert len(named) == 8
    assert Latents(caches[0], codecs[0], Standardiser(one, one.clone())).contents in named


def test_an_unknown_uid_is_told(tmp_path: Path) -> None:
    cache = cached(IdentityCodec(), IMAGES, tmp_path)
    with pytest.raises(InputError, match="no latents of disc-99"):
        cache[["disc-1", "disc-99"]]


def test_images_that_are_not_those_announced_are_refused(tmp_path: Path) -> None:
    swapped = Interrupted(None)
    swapped.uids = ("disc-1", "disc-0", *IMAGES.uids[2:])
    with pytest.raises(InputError, match="the dataset returns disc-0 at the position of disc-1"):
        cached(IdentityCodec(), swapped, tmp_path)
    swapped.uids = IMAGES.uids[:10]
    with pytest.raises(InputError, match="10 uids for a dataset of 11 images"):
        cached(IdentityCodec(), swapped, tmp_path)
    with pytest.raises(InputError, match="at least 1"):
        cached(IdentityCodec(), Discs(0), tmp_path)


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    cached(IdentityCodec(), IMAGES, tmp_path, lambda *step: told.append(step), batch=4)
    assert told == [("latents", 4, 11), ("latents", 8, 11), ("latents", 11, 11)]


def test_channel_statistics_are_those_of_all_pixels_at_once(tmp_path: Path) -> None:
    codec, images = IdentityCodec(factor=2, scale=3.0), Discs(300, 4)
    cache = cached(codec, images, tmp_path)
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

    cache = cached(IdentityCodec(), Flat(), tmp_path)
    mean, sd = channel_statistics(cache, IdentityCodec(), cache.uids)
    torch.testing.assert_close(mean, torch.tensor([0.7]))
    assert sd.tolist() == [1.0]
    with pytest.raises(InputError, match="uids is empty"):
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
    cache = cached(codec, IMAGES, tmp_path)
    latents = Latents(cache, codec, Standardiser(*channel_statistics(cache, codec, cache.uids)))
    z: Tensor = latents(cache.uids)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(codec.decode(latents.standardiser.back(latents(["disc-4"])))[0], IMAGES[4]["image"])
