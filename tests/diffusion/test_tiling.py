"""Tiles cover a latent and blend back into the image they were cut from."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from medlt.diffusion.codec import AutoencoderCodec
from medlt.diffusion.tiling import ramp, starts, tiled
from medlt.rng import noise_like, torch_generator
from medlt.testing import IdentityCodec, tiny_autoencoder_tiny


@pytest.mark.parametrize("size", [1, 7, 8, 9, 20, 33])
@pytest.mark.parametrize(("tile", "overlap"), [(8, 0), (8, 3), (8, 7)])
def test_tiles_cover_an_axis_and_share_what_they_should(size: int, tile: int, overlap: int) -> None:
    begins = starts(size, tile, overlap)
    covered = {i for begin in begins for i in range(begin, begin + min(tile, size))}
    assert covered == set(range(size))
    assert all(a + tile - b >= overlap for a, b in pairwise(begins))


def test_weights_never_vanish() -> None:
    assert ramp(8, 3).tolist() == [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]
    assert ramp(4, 8).min() > 0


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (1, 4, 21, 13), (3, 4, 5, 30)])
def test_a_codec_without_neighbours_gives_the_untiled_image(shape: tuple[int, ...]) -> None:
    codec, z = IdentityCodec(factor=2), torch.rand(shape, generator=torch_generator("z"))
    torch.testing.assert_close(tiled(codec.decode, z, 8, 3), codec.decode(z), atol=1e-6, rtol=0)


def test_a_convolutional_decoder_gives_the_untiled_image_away_from_seams() -> None:
    """Where one tile alone speaks, further from its edge than the network reaches, the pixels are the untiled ones."""
    codec, z = AutoencoderCodec(tiny_autoencoder_tiny(), "cpu"), noise_like([0], (4, 64, 64))
    whole, parts = codec.decode(z), tiled(codec.decode, z, 40, 16)
    gap = (whole - parts).abs()[0, 0]
    alone = slice(0, 24 * 4)
    assert gap[alone, alone].max() < 1e-4
    assert gap.mean() < 0.01


def test_tiles_of_all_images_are_rows_of_one_call() -> None:
    calls: list[tuple[int, ...]] = []

    def decode(z: Tensor) -> Tensor:
        calls.append(tuple(z.shape))
        return z[:, :1]

    tiled(decode, torch.rand(3, 4, 16, 16), 8, 0)
    assert calls == [(12, 4, 8, 8)]


@pytest.mark.parametrize("overlap", [-1, 8, 9])
def test_an_overlap_as_wide_as_a_tile_is_refused(overlap: int) -> None:
    with pytest.raises(ValueError, match="give 0 to 7"):
        tiled(lambda z: z, torch.rand(1, 1, 9, 9), 8, overlap)
