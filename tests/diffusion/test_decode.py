"""Decoding: layouts that give the reference's bytes, a memory budget, and no black or NaN image passed on."""

import threading

import pytest
import torch
from torch import Tensor

from medlt.diffusion.codec import AutoencoderCodec
from medlt.diffusion.decode import Decoder, Layout, LiveBytes, bytes_per_row, usable
from medlt.rng import noise_like, torch_generator
from medlt.testing import IdentityCodec, tiny_autoencoder_kl, tiny_autoencoder_tiny
from medlt.types import Codec, InputError


def latents(n: int, channels: int = 4) -> Tensor:
    return noise_like(range(n), (channels, 8, 8))


@pytest.fixture(params=[tiny_autoencoder_kl, tiny_autoencoder_tiny], ids=["kl", "tiny"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return AutoencoderCodec(request.param(), "cpu")


def test_images_are_the_codecs(codec: Codec) -> None:
    z = latents(5)
    torch.testing.assert_close(Decoder(codec)(z), codec.decode(z), atol=1e-5, rtol=1e-5)


def test_bytes_stay_the_same_while_layouts_are_tried(codec: Codec) -> None:
    z, decoder = latents(100), Decoder(codec)
    first, later = decoder(z), decoder(z)
    assert all(len(spent) >= 2 for spent in decoder._seconds.values())
    assert torch.equal(first, later)
    assert torch.equal(first[37:38], decoder(z[37:38]))
    assert torch.equal(first, Decoder(codec, memory_budget_bytes=1)(z))


def test_a_large_latent_alone_gives_the_bytes_it_gives_in_company(codec: Codec) -> None:
    """From LARGE pixels a row is computed by itself on all threads, or in a way that gives the same bytes."""
    z, decoder = noise_like(range(5), (4, 32, 32)), Decoder(codec)
    together = decoder(z)
    assert all(layout.rows == 1 for layout in decoder._seconds)
    assert next(iter(decoder._seconds)) == Layout(1, 0)
    assert torch.equal(together, decoder(z))
    assert all(torch.equal(Decoder(codec)(z[i : i + 1])[0], together[i]) for i in range(5))


@pytest.mark.parametrize("layout", [Layout(2, 1), Layout(4, 2), Layout(8, 0), Layout(3, 0)])
@pytest.mark.parametrize("n", [1, 7, 8])
def test_every_layout_returns_every_row_once(layout: Layout, n: int) -> None:
    x = latents(n)
    assert torch.equal(layout.run(lambda rows: rows * 2, x), x * 2)


def test_only_layouts_with_the_reference_bytes_are_used() -> None:
    class ShapeDependent(IdentityCodec):
        """Answers differently when four or more rows come at once, as real kernels do in the last digits."""

        def decode(self, z: Tensor) -> Tensor:
            return super().decode(z) + (1e-6 if len(z) >= 4 else 0.0)

    decoder = Decoder(ShapeDependent())
    images = decoder(latents(64, 1).abs() / 4)
    assert {layout.rows for layout in decoder._seconds} == {2}
    assert torch.equal(images, IdentityCodec().decode(latents(64, 1).abs() / 4))


def test_few_rows_take_a_layout_that_computes_few() -> None:
    """8 rows cost 16 in calls of 8 on 2 lanes, however fast those are when full; 4 x 2 computes just the 8."""
    decoder = Decoder(IdentityCodec())
    wide, narrow = Layout(8, 2), Layout(4, 2)
    decoder._seconds = {wide: [1.0, 1.0], narrow: [1.5, 1.5]}
    assert decoder._next(16) == wide
    assert decoder._next(8) == narrow


def test_the_fastest_layout_is_kept() -> None:
    decoder = Decoder(IdentityCodec())
    decoder(latents(64, 1))
    slow, fast = list(decoder._seconds)[:2]
    decoder._seconds = {slow: [2.0, 3.0], fast: [9.0, 1.0]}
    assert decoder.layout == decoder._next(16) == fast


def test_the_memory_budget_limits_rows_in_flight(codec: Codec) -> None:
    z = latents(16)
    row = bytes_per_row(codec.decode, z[:2])
    decoder = Decoder(codec, memory_budget_bytes=4 * row)
    decoder(z)
    assert max(layout.chunk for layout in decoder._seconds) <= 4
    tight = Decoder(codec, memory_budget_bytes=1)
    tight(z)
    assert list(tight._seconds) == [Layout(2, 1)]


def test_live_bytes_counts_what_is_alive_at_once() -> None:
    with LiveBytes() as live:
        kept = torch.ones(1000)
        for _ in range(5):
            kept = kept + 1
    assert live.peak == 8000
    with LiveBytes() as live:
        pieces = [torch.ones(1000) for _ in range(5)]
        total = torch.cat(pieces).view(5, 1000)
    assert live.peak == 40000
    assert len(total) == 5


def test_usable_needs_finite_pixels_and_some_contrast() -> None:
    images = torch.rand(5, 1, 8, 8, generator=torch_generator("images"))
    images[1] = 0.0
    images[2, 0, 3, 3] = float("nan")
    images[3, 0, 0, 0] = float("inf")
    images[4] = 0.5
    assert usable(images).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_unusable_image_comes_back_as_nan_and_only_that_one(bad: float, codec: Codec) -> None:
    z = latents(5)
    clean = Decoder(codec)(z)
    z[2, 1, 4, 4] = bad
    images = Decoder(codec)(z)
    assert images[2].isnan().all()
    assert torch.equal(images[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


def test_a_black_image_comes_back_as_nan() -> None:
    z = torch.cat([torch.zeros(1, 1, 8, 8), torch.rand(1, 1, 8, 8, generator=torch_generator("z"))])
    images = Decoder(IdentityCodec())(z)
    assert images[0].isnan().all()
    assert torch.equal(images[1], z[1])


def test_one_decoder_serves_several_threads_and_shapes() -> None:
    decoder, found = Decoder(IdentityCodec()), dict[int, Tensor]()
    inputs = {size: torch.rand(20, 1, size, size, generator=torch_generator(size)) for size in (4, 6, 8)}
    work = [threading.Thread(target=lambda s=s: found.update({s: decoder(inputs[s])})) for s in inputs]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert all(torch.equal(found[size], z) for size, z in inputs.items())


class Cramped(IdentityCodec):
    """Has room for `limit` rows a call, and says so as an accelerator does."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.device, self.tried = limit, torch.device("meta"), list[int]()

    def decode(self, z: Tensor) -> Tensor:
        self.tried.append(len(z))
        if len(z) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().decode(z)


def test_an_accelerator_tries_sizes_on_real_work_and_backs_off_when_memory_runs_out() -> None:
    codec, z = Cramped(5), torch.rand(900, 1, 8, 8, generator=torch_generator("z"))
    decoder = Decoder(codec)
    assert torch.equal(decoder(z), z)
    assert {layout.rows for layout in decoder._seconds} == {1, 2, 4}
    assert codec.tried.count(8) == 1
    assert max(codec.tried) == 8


def test_an_image_that_does_not_fit_is_one_clear_line() -> None:
    class Full(Cramped):
        """Has room until the real work begins."""

        def decode(self, z: Tensor) -> Tensor:
            self.limit = 2 if not self.tried else 0
            return super().decode(z)

    with pytest.raises(InputError, match="decoding: 1 images at once do not fit into memory"):
        Decoder(Full(2))(torch.rand(3, 1, 8, 8))


def test_batches_are_streamed_in_order() -> None:
    batches = [torch.rand(3, 1, 4, 4, generator=torch_generator(i)) for i in range(5)]
    decoder = Decoder(IdentityCodec())
    assert all(torch.equal(found, z) for found, z in zip(decoder.stream(batches), batches, strict=True))


def test_a_preview_is_the_tiny_codecs_and_must_speak_of_the_same_latents() -> None:
    full, tiny = AutoencoderCodec(tiny_autoencoder_kl(), "cpu"), AutoencoderCodec(tiny_autoencoder_tiny(), "cpu")
    z = latents(2)
    assert torch.equal(Decoder(full, preview=tiny).preview(z), tiny.decode(z))
    assert torch.equal(Decoder(full).preview(z), full.decode(z))
    with pytest.raises(InputError, match="1 channels and factor 1, the codec 4 and 4"):
        Decoder(full, preview=IdentityCodec())


def test_a_tile_size_cuts_large_latents_only() -> None:
    sizes: list[int] = []

    class Watched(IdentityCodec):
        def decode(self, z: Tensor) -> Tensor:
            sizes.append(max(z.shape[-2:]))
            return super().decode(z)

    z = torch.rand(2, 1, 20, 12, generator=torch_generator("z"))
    torch.testing.assert_close(Decoder(Watched(), tile=8)(z), z, atol=1e-6, rtol=0)
    assert set(sizes) == {8}
    sizes.clear()
    assert torch.equal(Decoder(Watched())(z), z)
    assert set(sizes) == {20}
