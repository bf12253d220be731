"""Codecs, which map images to latents and back: the diffusers autoencoders behind one interface.

Images are float32 [B,1,H,W] in [0,1]. The networks receive one channel or three equal ones in [-1,1], and decoded
channels are averaged. The cache stores raw moments (mean | sd); scaling is applied later, so that a cache stays valid
when the scaling changes.
"""

from __future__ import annotations

import copy
import json
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medlt.diffusion.batching import fixed_batches
from medlt.diffusion.prefetch import to_host
from medlt.files import digest, digest_tensors
from medlt.types import Codec, InputError

CLASSES = ("AutoencoderKL", "AutoencoderTiny")
WEIGHTS = "diffusion_pytorch_model"
BLOCKS = ("ResnetBlock2D", "Attention", "Upsample2D", "AutoencoderTinyBlock")


@runtime_checkable
class DifferentiableCodec(Codec, Protocol):
    """A codec whose images have gradients in the latents."""

    def picture(self, latents: Tensor, checkpointed: bool = False) -> Tensor:
        """Return what `decode` returns, with gradients. checkpointed: recompute activations in the backward pass."""
        ...


def _column(value: Any, default: float) -> Tensor:
    """Return a scalar or per-channel setting as [1,C or 1,1,1], which broadcasts over latents."""
    return torch.as_tensor(default if value is None else value, dtype=torch.float32).reshape(1, -1, 1, 1)


class AutoencoderCodec:
    """A diffusers AutoencoderKL or AutoencoderTiny in evaluation mode. See medlt.types.Codec.

    AutoencoderTiny has no spread: its sd is 0. Latents are (mean + sd * noise - shift) * scale, with shift and scale
    from the network's config: scaling_factor and shift_factor, or latents_mean and latents_std if present.

    `dtype` is the precision of the network; images, moments and latents stay float32. For float16 and a config with
    `force_upcast`, float32 is used. An image that is not finite although its latent is, which float16 causes without
    an error, is decoded again in float32. `digest` includes the precision if it is not float32.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        device: str | torch.device,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        config: dict[str, Any] = dict(autoencoder.config)  # type: ignore[arg-type]
        if dtype == torch.float16 and config.get("force_upcast"):
            dtype = torch.float32
        self.device, self.dtype = torch.device(device), dtype
        public = {key: value for key, value in config.items() if not key.startswith("_")}
        named = digest(public, digest_tensors(autoencoder.float().state_dict()))
        placement = [str(dtype), channels_last]
        self.digest = named if placement == [str(torch.float32), False] else digest(named, placement)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        moved: Any = nn.Module.to(autoencoder.eval().requires_grad_(False), device, dtype)
        self.network: nn.Module = moved.to(memory_format=self._layout)
        self.channels = int(config["latent_channels"])
        self._image_channels = int(config["in_channels"])
        self.factor = 2 ** (len(config.get("block_out_channels") or config["encoder_block_out_channels"]) - 1)
        self._shift = _column(config.get("latents_mean") or config.get("shift_factor"), 0.0)
        self._scale = _column(config.get("scaling_factor"), 1.0) / _column(config.get("latents_std"), 1.0)

    @cached_property
    def _exact(self) -> nn.Module:
        """The network in float32, for values beyond the range of its own precision."""
        return copy.deepcopy(self.network).float()

    def _in(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype, non_blocking=True).contiguous(memory_format=self._layout)

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Return raw moments mean | sd [B,2C,h,w] of images [B,1,H,W] in [0,1].

        Raises InputError if the factor does not divide H and W.
        """
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise InputError(
                f"images of {height}x{width} px do not fit this codec; resize to a multiple of {self.factor} px"
            )
        x = (images.to(self.device) * 2 - 1).expand(-1, self._image_channels, -1, -1)
        moments = _moments(self.network, self._in(x))
        if self.dtype != torch.float32 and not _finite(moments).all():
            moments = torch.where(_finite(moments), moments, _moments(self._exact, x))
        return to_host(moments)

    def latents(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return scaled latents [B,C,h,w]: the mode, or a sample if unit `noise` [B,C,h,w] is given."""
        mean, sd = moments.chunk(2, dim=1)
        z = mean if noise is None else mean + sd * noise
        return (z - self._shift.to(z.device)) * self._scale.to(z.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B,1,H,W] in [0,1] of scaled latents. The image of a non-finite latent is not finite."""
        z = latents / self._scale.to(latents.device) + self._shift.to(latents.device)
        sample = _decoded(self.network, self._in(z))
        if self.dtype != torch.float32 and not (good := _finite(sample) | ~_finite(z).to(sample.device)).all():
            sample = torch.where(good, sample, _decoded(self._exact, z.to(self.device)))
        return image_of(sample)

    def picture(self, latents: Tensor, checkpointed: bool = False) -> Tensor:
        """Decode as `decode` does, differentiable in the latents, on the codec's device, without a float32 retry.

        checkpointed: recompute activations in the backward pass, row by row, and block by block for a single row.
        """
        if checkpointed and len(latents) > 1:
            decode_row = partial(checkpoint, self.picture, use_reentrant=False, preserve_rng_state=False)
            return torch.cat([decode_row(row) for row in torch.split(latents, 1)])
        z = latents / self._scale.to(latents.device) + self._shift.to(latents.device)
        sample = _decoded(self._checkpointed if checkpointed else self.network, self._in(z))
        return ((sample.mean(1, keepdim=True) + 1) / 2).clamp(0, 1)

    @cached_property
    def _checkpointed(self) -> nn.Module:
        """The network, with shared weights, whose decoder stores the input of each block only.

        The gradient checkpointing of diffusers stores more.
        """
        weights = [*self.network.parameters(), *self.network.buffers()]
        twin: nn.Module = copy.deepcopy(self.network, {id(weight): weight for weight in weights})
        for block in twin.decoder.modules():  # type: ignore[union-attr]
            if type(block).__name__ in BLOCKS:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        return twin


def _finite(x: Tensor) -> Tensor:
    """Return True for rows that are finite everywhere, bool [B,1,1,1]."""
    return x.isfinite().all(1, keepdim=True).flatten(1).all(1)[:, None, None, None]


def _decoded(network: nn.Module, z: Tensor) -> Tensor:
    """Return the decoder's output, float32."""
    sample: Tensor = network.decode(z).sample.float()  # type: ignore[operator]
    return sample


def _moments(network: nn.Module, x: Tensor) -> Tensor:
    """Return mean | sd, float32 [B,2C,h,w]."""
    encoded = network.encode(x)  # type: ignore[operator]
    if hasattr(encoded, "latents"):
        mean, sd = encoded.latents, torch.zeros_like(encoded.latents)
    else:
        mean, sd = encoded.latent_dist.mean, encoded.latent_dist.std
    return torch.cat([mean, sd], 1).float()


def image_of(sample: Tensor) -> Tensor:
    """Return images [B,1,H,W] in [0,1] of network output [B,1 or 3,H,W] in [-1,1]."""
    return to_host(((sample.mean(1, keepdim=True) + 1) / 2).clamp(0, 1)).contiguous()


def _config_of(folder: Path) -> dict[str, Any]:
    """Return the config of a codec folder. Raises InputError if the folder contains no codec."""
    if not folder.is_dir():
        raise InputError(f"codec folder {folder} does not exist; give the folder of a diffusers autoencoder")
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"codec folder {folder} has no config.json; give a folder written by save_pretrained")
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable as JSON ({error}); write the codec folder again") from None
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind not in CLASSES:
        raise InputError(f"{path} describes {kind!r}, which is not a codec; use one of {', '.join(CLASSES)}")
    if config.get("quantization_config"):
        raise InputError(f"{path}: quantised weights are not supported; save the codec in fp32 or fp16")
    return dict(config)


def _require_numbers(network: Any, folder: Path) -> None:
    """Raise InputError if a weight or the scaling is not finite, or if a scale is 0 or has the wrong length."""
    if broken := [name for name, value in network.state_dict().items() if not value.isfinite().all()]:
        raise InputError(
            f"codec folder {folder}: {broken[0]} contains NaN or infinity; its training failed, use another codec"
        )
    for name in ("scaling_factor", "latents_std", "shift_factor", "latents_mean"):
        try:
            value = _column(network.config.get(name), 1.0)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            value = torch.full((1,), torch.nan)
        whole = value.isfinite().all() and (value.all() or name in ("shift_factor", "latents_mean"))
        if not whole or value.numel() not in (1, network.config["latent_channels"]):
            raise InputError(f"{folder / 'config.json'}: {name} is not a valid scale or shift; copy the folder again")


def _variant_of(folder: Path) -> str | None:
    """Return the variant of the safetensors file to read: None, else "fp16". Raises InputError if there is no file."""
    if (folder / f"{WEIGHTS}.safetensors").is_file():
        return None
    if (folder / f"{WEIGHTS}.fp16.safetensors").is_file():
        return "fp16"
    pickled = " (a pickled .bin is not read; convert it with diffusers first)" if any(folder.glob("*.bin")) else ""
    raise InputError(f"codec folder {folder} has no {WEIGHTS}.safetensors{pickled}; save the weights as safetensors")


def load_codec(
    folder: Path, device: str | torch.device, dtype: torch.dtype = torch.float32, channels_last: bool = False
) -> AutoencoderCodec:
    """Return the autoencoder of a diffusers folder, or of the `vae` folder of a whole pipeline. Nothing is downloaded.

    `device`, `dtype` and `channels_last` as for `AutoencoderCodec`.

    Raises InputError if the folder, its config or its safetensors file is missing, if the class is unsupported, if
    weights and config do not match, or if weights or scaling are not finite.
    """
    import diffusers

    folder = Path(folder)
    if (folder / "model_index.json").is_file():
        folder = folder / "vae"
    kind, variant = getattr(diffusers, _config_of(folder)["_class_name"]), _variant_of(folder)
    try:
        network, loaded = kind.from_pretrained(
            folder, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # diffusers raises many kinds at a strange config
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"codec folder {folder} cannot be loaded: {why}; save it again with save_pretrained") from None
    if missing := loaded["missing_keys"]:
        raise InputError(
            f"codec folder {folder}: its weights lack {len(missing)} tensors of its config, first {missing[0]}; "
            "config and weights belong to different networks"
        )
    _require_numbers(network, folder)
    return AutoencoderCodec(network, device, dtype, channels_last)


def encode(codec: Codec, images: Tensor, rows: int = 2) -> Tensor:
    """Return raw moments of any number of images, each independent of its neighbours (medlt.diffusion.batching)."""
    return fixed_batches(codec.moments, rows)(images)
