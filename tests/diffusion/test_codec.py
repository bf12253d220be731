"""The contract of every codec, and what is said of a folder that is none."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medlt.diffusion.codec import AutoencoderCodec, DifferentiableCodec, encode, image_of, load_codec
from medlt.diffusion.decode import Decoder
from medlt.diffusion.pixels import PixelCodec
from medlt.export.generator import decode as exported_decode
from medlt.rng import torch_generator
from medlt.testing import Discs, IdentityCodec, tiny_autoencoder_kl, tiny_autoencoder_tiny
from medlt.types import Codec, InputError


def images(n: int = 3, size: int = 32) -> Tensor:
    discs = Discs(n, size)
    return torch.stack([discs[i]["image"] for i in range(n)])


def real_taesd() -> Codec:
    if not (data := os.environ.get("MEDLT_DATA")):
        pytest.skip("set MEDLT_DATA to the folder that holds weights/taesd_diffusers")
    return load_codec(Path(data) / "weights" / "taesd_diffusers", "cpu")


CODECS = [
    pytest.param(lambda: PixelCodec(1, "cpu"), id="pixels"),
    pytest.param(lambda: PixelCodec(4, "cpu"), id="pixels-4"),
    pytest.param(IdentityCodec, id="identity"),
    pytest.param(lambda: IdentityCodec(factor=2, spread=0.3, scale=0.7), id="identity-2"),
    pytest.param(lambda: AutoencoderCodec(tiny_autoencoder_kl(), "cpu"), id="kl"),
    pytest.param(lambda: AutoencoderCodec(tiny_autoencoder_kl(in_channels=1, out_channels=1), "cpu"), id="kl-gray"),
    pytest.param(lambda: AutoencoderCodec(tiny_autoencoder_kl(shift_factor=0.2), "cpu"), id="kl-shift"),
    pytest.param(
        lambda: AutoencoderCodec(
            tiny_autoencoder_kl(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1, 2, 3, 4]), "cpu"
        ),
        id="kl-whitened",
    ),
    pytest.param(lambda: AutoencoderCodec(tiny_autoencoder_tiny(), "cpu"), id="tiny"),
    pytest.param(real_taesd, id="taesd", marks=pytest.mark.real_data),
]


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> Codec:
    make: Callable[[], Codec] = request.param
    return make()


def test_it_is_a_codec(codec: Codec) -> None:
    assert isinstance(codec, Codec)


def test_shapes_and_ranges(codec: Codec) -> None:
    x, factor, channels = images(), codec.factor, codec.channels
    moments = codec.moments(x)
    assert moments.shape == (3, 2 * channels, 32 // factor, 32 // factor)
    assert moments.dtype == torch.float32
    assert (moments[:, channels:] >= 0).all()
    z = codec.latents(moments)
    assert z.shape == (3, channels, 32 // factor, 32 // factor)
    y = codec.decode(z)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert 0 <= float(y.min()) <= float(y.max()) <= 1


def test_latents_without_noise_are_those_of_zero_noise(codec: Codec) -> None:
    moments = codec.moments(images())
    assert torch.equal(codec.latents(moments), codec.latents(moments, torch.zeros_like(moments.chunk(2, 1)[0])))


def test_latents_are_affine_in_the_noise_with_the_spread_as_slope(codec: Codec) -> None:
    moments = codec.moments(images())
    mean, sd = moments.chunk(2, 1)
    z0, z1, z3 = (codec.latents(moments, torch.full_like(mean, k)) for k in (0.0, 1.0, 3.0))
    torch.testing.assert_close(z3 - z0, 3 * (z1 - z0), atol=1e-4, rtol=1e-4)
    assert (z1 - z0)[sd == 0].abs().sum() == 0
    assert ((z1 - z0)[sd > 1e-3] > 0).all()


def test_unscaling_gives_the_mean_back(codec: Codec) -> None:
    """decode(latents(m)) must hand the network the mean itself: two codecs of one network that differ in scaling
    alone decode to the same image."""
    if not isinstance(codec, AutoencoderCodec):
        pytest.skip("the codecs of pixels are checked below, exactly")
    moments = codec.moments(images())
    seen: list[Tensor] = []
    decode = codec.network.decode
    codec.network.decode = lambda z: (seen.append(z), decode(z))[1]
    codec.decode(codec.latents(moments))
    torch.testing.assert_close(seen[0], moments.chunk(2, 1)[0], atol=1e-5, rtol=1e-5)


def test_an_image_is_encoded_and_decoded_alike_in_any_company(codec: Codec) -> None:
    x = images(5)
    whole = encode(codec, x)
    assert torch.equal(encode(codec, x[3:4]), whole[3:4])
    z = codec.latents(whole)
    assert torch.equal(Decoder(codec)(z).nan_to_num(2.0)[3:4], Decoder(codec)(z[3:4]).nan_to_num(2.0))
    torch.testing.assert_close(whole, codec.moments(x), atol=1e-4, rtol=1e-4)


def test_a_size_that_does_not_divide_is_refused(codec: Codec) -> None:
    if codec.factor == 1:
        pytest.skip("every size divides by 1")
    with pytest.raises(InputError, match=f"multiple of {codec.factor}"):
        codec.moments(images(1, 33))


def test_the_digest_is_stable_and_tells_codecs_apart() -> None:
    digests = [AutoencoderCodec(tiny_autoencoder_kl(seed), "cpu").digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert AutoencoderCodec(tiny_autoencoder_kl(scaling_factor=1.0), "cpu").digest != digests[0]


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_the_identity_codec_loses_nothing(factor: int) -> None:
    codec, x = IdentityCodec(factor, spread=0.5, scale=0.25), images()
    torch.testing.assert_close(codec.decode(codec.latents(codec.moments(x))), x, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_pixels_come_back_as_they_were(patch: int) -> None:
    """In 8 bits exactly: no image of pixel diffusion differs from its file."""
    codec, x = PixelCodec(patch, "cpu"), (images() * 255).round() / 255
    z = codec.latents(codec.moments(x))
    assert z.shape == (3, patch**2, 32 // patch, 32 // patch)
    assert float(z.min()) >= -1
    assert float(z.max()) <= 1
    torch.testing.assert_close(z.mean((1, 2, 3)), (x * 2 - 1).mean((1, 2, 3)))
    back = codec.decode(z)
    torch.testing.assert_close(back, x, atol=1e-6, rtol=0)
    assert torch.equal((back * 255).round(), (x * 255).round())
    assert PixelCodec(patch, "cpu").digest == codec.digest != PixelCodec(patch + 1, "cpu").digest
    assert torch.equal(exported_decode(None, z), back)


def test_a_latent_beyond_the_range_of_pixels_is_clipped_and_one_that_is_no_number_stays_none() -> None:
    z = torch.tensor([-3.0, 3.0, torch.nan, 0.0])[:, None, None, None].expand(4, 1, 2, 2)
    assert PixelCodec(1, "cpu").decode(z)[:2, 0, 0, 0].tolist() == [0, 1]
    assert PixelCodec(1, "cpu").decode(z)[2].isnan().all()
    assert PixelCodec(1, "cpu").decode(z)[3, 0, 0, 0] == 0.5


@pytest.mark.parametrize("make", [lambda: PixelCodec(1, "cpu"), lambda: AutoencoderCodec(tiny_autoencoder_kl(), "cpu")])
def test_a_picture_is_the_decoded_image_with_gradients(make: Callable[[], Codec]) -> None:
    codec = make()
    assert isinstance(codec, DifferentiableCodec)
    z = codec.latents(codec.moments(images())).requires_grad_()
    picture = codec.picture(z)
    torch.testing.assert_close(picture.detach(), codec.decode(z.detach()), atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(picture.sum(), z)
    assert gradient.abs().sum() > 0


def test_a_codec_without_gradients_is_seen() -> None:
    assert not isinstance(IdentityCodec(), DifferentiableCodec)


def test_scaling_is_the_configs() -> None:
    """A whitened network: (mean - latents_mean) * scaling_factor / latents_std."""
    network = tiny_autoencoder_kl(latents_mean=[1, 2, 3, 4], latents_std=[1, 2, 4, 8], scaling_factor=0.5)
    moments = torch.cat([torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)], 1)
    z = AutoencoderCodec(network, "cpu").latents(moments)
    torch.testing.assert_close(z[0, :, 0, 0], torch.tensor([0.0, -0.25, -0.25, -0.1875]))


def test_gray_is_three_equal_channels_in_minus_one_to_one() -> None:
    network, x = tiny_autoencoder_kl(), images()
    expected = network.encode((x * 2 - 1).repeat(1, 3, 1, 1)).latent_dist.mean.detach()
    torch.testing.assert_close(AutoencoderCodec(network, "cpu").moments(x)[:, :4], expected)


@pytest.mark.parametrize("make", [tiny_autoencoder_kl, tiny_autoencoder_tiny])
def test_a_saved_folder_loads_to_the_same_codec(make: Callable[[], torch.nn.Module], tmp_path: Path) -> None:
    network = make()
    network.save_pretrained(tmp_path / "vae")  # type: ignore[operator]
    loaded = load_codec(tmp_path / "vae", "cpu")
    assert loaded.digest == AutoencoderCodec(network, "cpu").digest
    (tmp_path / "model_index.json").write_text("{}")
    assert load_codec(tmp_path, "cpu").digest == loaded.digest


def _break(folder: Path, how: str) -> None:
    config = folder / "config.json"
    weights = folder / "diffusion_pytorch_model.safetensors"
    if how == "no config":
        config.unlink()
    elif how == "torn config":
        config.write_text('{"_class_name"')
    elif how == "a UNet":
        config.write_text(json.dumps({"_class_name": "UNet2DModel"}))
    elif how == "no weights":
        weights.unlink()
    elif how == "pickled weights":
        weights.rename(folder / "diffusion_pytorch_model.bin")
    elif how == "torn weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how == "other network":
        config.write_text(config.read_text().replace('"layers_per_block": 1', '"layers_per_block": 2'))
    elif how == "other width":
        config.write_text(config.read_text().replace('"latent_channels": 4', '"latent_channels": 8'))
    elif how == "nested config":
        config.write_text("[" * 200_000)
    elif how == "not numbers":
        tensors = load_file(weights)
        save_file(tensors | {"decoder.conv_in.bias": tensors["decoder.conv_in.bias"] / 0}, weights, {"format": "pt"})
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | json.loads(how)))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("no config", "no config.json"),
        ("torn config", "not readable as JSON"),
        ("a UNet", "describes 'UNet2DModel', which is not a codec"),
        ("no weights", r"no diffusion_pytorch_model\.safetensors"),
        ("pickled weights", "pickled"),
        ("torn weights", "cannot be loaded"),
        ("other network", "its weights lack"),
        ("other width", "cannot be loaded"),
        ("nested config", "not readable as JSON"),
        ("not numbers", r"decoder\.conv_in\.bias contains NaN or infinity"),
        ('{"block_out_channels": []}', "cannot be loaded"),
        ('{"norm_num_groups": 0}', "cannot be loaded"),
        ('{"quantization_config": {"quant_method": "bitsandbytes"}}', "quantised"),
        ('{"scaling_factor": "x"}', "scaling_factor is not a valid scale or shift"),
        ('{"scaling_factor": [1, 2, 3]}', "scaling_factor is not a valid scale or shift"),
        ('{"scaling_factor": 0}', "scaling_factor is not a valid scale or shift"),
        ('{"scaling_factor": NaN}', "scaling_factor is not a valid scale or shift"),
        ('{"latents_std": [0, 0, 0, 0]}', "latents_std is not a valid scale or shift"),
        ('{"latents_mean": [0, 0, 0, 0, 0, 0, 0]}', "latents_mean is not a valid scale or shift"),
    ],
)
def test_a_folder_that_is_no_codec_is_told_in_one_line(how: str, told: str, tmp_path: Path) -> None:
    tiny_autoencoder_kl().save_pretrained(tmp_path)
    _break(tmp_path, how)
    with pytest.raises(InputError, match=told) as raised:
        load_codec(tmp_path, "cpu")
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_codec(tmp_path / "nothing", "cpu")


@pytest.mark.real_data
def test_taesd_keeps_real_radiographs() -> None:
    """The folder's own notes say 31 dB at 256 px."""
    from PIL import Image

    codec = real_taesd()
    files = sorted((Path(os.environ["MEDLT_DATA"]) / "nih14" / "images").glob("*.png"))[:4]
    x = torch.stack(
        [torch.frombuffer(bytearray(Image.open(f).convert("L").tobytes()), dtype=torch.uint8) for f in files]
    )
    x = x.reshape(-1, 1, 256, 256) / 255
    error = (codec.decode(codec.latents(codec.moments(x))) - x).pow(2).mean((1, 2, 3))
    assert float((-10 * error.log10()).mean()) > 28


@pytest.mark.parametrize("make", [tiny_autoencoder_kl, tiny_autoencoder_tiny])
def test_bfloat16_gives_nearly_the_same_images_and_moments(make: Any) -> None:
    exact, fast = (
        AutoencoderCodec(make(), "cpu"),
        AutoencoderCodec(make(), "cpu", dtype=torch.bfloat16, channels_last=True),
    )
    image = torch.stack([item["image"] for item in Discs(3)])  # type: ignore[attr-defined]
    z = exact.latents(exact.moments(image))
    assert fast.decode(z).dtype == fast.moments(image).dtype == torch.float32
    assert (fast.decode(z) - exact.decode(z)).abs().mean() < 0.02
    assert (fast.moments(image) - exact.moments(image)).norm() < 0.05 * exact.moments(image).norm()
    assert fast.digest != exact.digest


def test_a_float16_vae_that_overflows_is_decoded_in_float32_for_the_rows_that_did() -> None:
    """Activations beyond 65,504 are inf in float16: the image would be black, without an error."""

    def hot() -> Any:
        network = tiny_autoencoder_kl(force_upcast=False)
        with torch.no_grad():
            network.decoder.conv_in.weight *= 100
        return network

    codec, exact = AutoencoderCodec(hot(), "cpu", dtype=torch.float16), AutoencoderCodec(hot(), "cpu")
    z = torch.randn(4, 4, 8, 8, generator=torch_generator("z"))
    z[2] *= 2000
    raw = codec.network.decode((z / 0.5).half()).sample  # type: ignore[operator]
    assert raw.isfinite().flatten(1).all(1).tolist() == [True, True, False, True]
    images = codec.decode(z)
    assert images.isfinite().all()
    torch.testing.assert_close(images[2], exact.decode(z)[2], atol=0.02, rtol=0)
    assert torch.equal(images[[0, 1, 3]], image_of(raw.float())[[0, 1, 3]])
    z[1, 0, 0, 0] = torch.nan
    assert not codec.decode(z)[1].isfinite().all()


def test_a_vae_that_asks_for_float32_gets_it_instead_of_float16() -> None:
    assert AutoencoderCodec(tiny_autoencoder_kl(force_upcast=True), "cpu", dtype=torch.float16).dtype == torch.float32
    assert AutoencoderCodec(tiny_autoencoder_kl(force_upcast=True), "cpu", dtype=torch.bfloat16).dtype == torch.bfloat16
