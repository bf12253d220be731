"""The decoder whose gradient guidance takes: its precision, and that its gradient is that of the full one."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medlt.diffusion.codec import AutoencoderCodec
from medlt.recipes import _codec
from medlt.recipes._codec import gradient_codec
from medlt.testing import tiny_autoencoder_kl
from medlt.training.runtime import Runtime

FULL = Runtime("cpu", "fp32", None, 0)


def gradient(codec: AutoencoderCodec) -> Tensor:
    """The gradient of the contrast of eight decoded images in their latents."""
    z = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (g,) = torch.autograd.grad(codec.picture(z).flatten(1).std(1).sum(), z)
    return g


def test_the_precision_is_that_of_the_hardware_or_the_one_given(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = AutoencoderCodec(tiny_autoencoder_kl(), "cpu")
    for native, expected in ((torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)):
        monkeypatch.setattr(_codec, "best_dtype", lambda device, native=native: native)
        chosen = gradient_codec(FULL, codec, "auto")
        assert isinstance(chosen, AutoencoderCodec)
        assert chosen.dtype == expected
        assert gradient_codec(FULL, codec, "fp32") is codec
        half = gradient_codec(FULL.at("bf16"), codec, "auto")
        assert isinstance(half, AutoencoderCodec)
        assert half.dtype == torch.bfloat16
    assert codec.dtype == torch.float32


def test_the_gradient_in_bfloat16_points_where_the_full_one_does() -> None:
    codec = AutoencoderCodec(tiny_autoencoder_kl(), "cpu")
    half = gradient_codec(FULL, codec, "bf16")
    assert isinstance(half, AutoencoderCodec)
    full, fast = gradient(codec).flatten(1), gradient(half).flatten(1)
    assert not torch.equal(full, fast)
    assert float(F.cosine_similarity(full, fast).min()) > 0.99
