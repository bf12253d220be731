"""Images to latents and back: the diffusers autoencoders behind one small seam.

Images are float32 [B,1,H,W] in [0,1]; the networks see three equal channels (or one) in [-1,1], and decoded channels
are averaged. Raw moments (mean | sd) are what is stored; scaling is applied late, so that a cache outlives a change
of scaling.
"""

from __future__ import annotations

import copy
import json
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medlt.diffusion.batching import fixed_batches
from medlt.diffusion.overlap import to_host
from medlt.files import digest, digest_tensors
from medlt.types import Codec, InputError

CLASSES = ("AutoencoderKL", "AutoencoderTiny")
WEIGHTS = "diffusion_pytorch_model"
BLOCKS = ("ResnetBlock2D", "Attention", "Upsample2D", "AutoencoderTinyBlock")


def _column(value: Any, default: float) -> Tensor:
    """A scalar or per-channel setting as [1,C or 1,1,1] that broadcasts over latents."""
    return torch.as_tensor(default if value is None else value, dtype=torch.float32).reshape(1, -1, 1, 1)


class AutoencoderCodec:
    """A diffusers AutoencoderKL or AutoencoderTiny in evaluation mode. See medlt.types.Codec.

    AutoencoderTiny has no spread: its sd is 0. Latents are (mean + sd * noise - shift) * scale, with shift and scale
    from the network's config: scaling_factor and shift_factor, or latents_mean and latents_std where given.

    `dtype` is the precision of the network; images, moments and latents stay float32. Where float16 is asked for and
    the config says `force_upcast`, float32 is used. An image that is not finite though its latent is, as float16 gives
    without an error, is decoded again in float32. `digest` names the precision if it is not float32.
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
        way = [str(dtype), channels_last]
        self.digest = named if way == [str(torch.float32), False] else digest(named, way)
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
        """The network in float32, for what does not fit its own precision."""
        return copy.deepcopy(self.network).float()

    def _in(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype, non_blocking=True).contiguous(memory_format=self._layout)

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Raw mean | sd [B,2C,h,w] of images [B,1,H,W] in [0,1]. Raises InputError if H or W does not divide."""
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise InputError(
                f"images of {height}x{width} px do not fit this codec; resize to a multiple of {self.factor} px"
            )
        x = (images.to(self.device) * 2 - 1).expand(-1, self._image_channels, -1, -1)
        found = _moments(self.network, self._in(x))
        if self.dtype != torch.float32 and not _finite(found).all():
            found = torch.where(_finite(found), found, _moments(self._exact, x))
        return to_host(found)

    def latents(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latents [B,C,h,w]: the mode, or a draw when unit `noise` [B,C,h,w] is given."""
        mean, sd = moments.chunk(2, dim=1)
        z = mean if noise is None else mean + sd * noise
        return (z - self._shift.to(z.device)) * self._scale.to(z.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images [B,1,H,W] in [0,1] from scaled latents. A non-finite latent stays non-finite in the image."""
        z = latents / self._scale.to(latents.device) + self._shift.to(latents.device)
        found = _decoded(self.network, self._in(z))
        if self.dtype != torch.float32 and not (good := _finite(found) | ~_finite(z).to(found.device)).all():
            found = torch.where(good, found, _decoded(self._exact, z.to(self.device)))
        return image_of(found)

    def picture(self, latents: Tensor, checkpointed: bool = False) -> Tensor:
        """As `decode`, differentiable in the latents, on the codec's device and without a second try in float32.

        checkpointed: what the backward pass needs is computed again, not kept: row by row, of a single row block by
        block.
        """
        if checkpointed and len(latents) > 1:
            way = partial(checkpoint, self.picture, use_reentrant=False, preserve_rng_state=False)
            return torch.cat([way(row) for row in torch.split(latents, 1)])
        z = latents / self._scale.to(latents.device) + self._shift.to(latents.device)
        sample = _decoded(self._thrifty if checkpointed else self.network, self._in(z))
        return ((sample.mean(1, keepdim=True) + 1) / 2).clamp(0, 1)

    @cached_property
    def _thrifty(self) -> nn.Module:
        """The network, weights shared, whose decoder keeps each block's input only; diffusers' own way keeps more."""
        weights = [*self.network.parameters(), *self.network.buffers()]
        twin: nn.Module = copy.deepcopy(self.network, {id(weight): weight for weight in weights})
        for block in twin.decoder.modules():  # type: ignore[union-attr]
            if type(block).__name__ in BLOCKS:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        return twin


def _finite(x: Tensor) -> Tensor:
    """Which rows are finite throughout, bool [B,1,1,1]."""
    return x.isfinite().all(1, keepdim=True).flatten(1).all(1)[:, None, None, None]


def _decoded(network: nn.Module, z: Tensor) -> Tensor:
    """Network output, float32."""
    sample: Tensor = network.decode(z).sample.float()  # type: ignore[operator]
    return sample


def _moments(network: nn.Module, x: Tensor) -> Tensor:
    """mean | sd, float32 [B,2C,h,w]."""
    answer = network.encode(x)  # type: ignore[operator]
    if hasattr(answer, "latents"):
        mean, sd = answer.latents, torch.zeros_like(answer.latents)
    else:
        mean, sd = answer.latent_dist.mean, answer.latent_dist.std
    return torch.cat([mean, sd], 1).float()


def image_of(sample: Tensor) -> Tensor:
    """Network output [B,1 or 3,H,W] in [-1,1] as images [B,1,H,W] in [0,1]."""
    return to_host(((sample.mean(1, keepdim=True) + 1) / 2).clamp(0, 1)).contiguous()


def _config_of(folder: Path) -> dict[str, Any]:
    """The config of a codec folder, or InputError saying what keeps it from being one."""
    if not folder.is_dir():
        raise InputError(f"codec folder {folder} does not exist; give the folder of a diffusers autoencoder")
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"codec folder {folder} has no config.json; give a folder written by save_pretrained")
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable as JSON ({error}); write the codec folder anew") from None
    found = config.get("_class_name") if isinstance(config, dict) else None
    if found not in CLASSES:
        raise InputError(f"{path} describes {found!r}, which is no codec; use one of {', '.join(CLASSES)}")
    if config.get("quantization_config"):
        raise InputError(f"{path}: quantised weights are no codec's here; save it in fp32 or fp16")
    return dict(config)


def _require_numbers(network: Any, folder: Path) -> None:
    """Raise InputError where weights or the scaling of latents are not finite, or a scale is 0 or of other length."""
    if broken := [name for name, value in network.state_dict().items() if not value.isfinite().all()]:
        raise InputError(
            f"codec folder {folder}: {broken[0]} holds values that are no numbers; its training failed: take another"
        )
    for name in ("scaling_factor", "latents_std", "shift_factor", "latents_mean"):
        try:
            value = _column(network.config.get(name), 1.0)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            value = torch.full((1,), torch.nan)
        whole = value.isfinite().all() and (value.all() or name in ("shift_factor", "latents_mean"))
        if not whole or value.numel() not in (1, network.config["latent_channels"]):
            raise InputError(f"{folder / 'config.json'}: {name} is no scale or shift of latents; copy the folder anew")


def _variant_of(folder: Path) -> str | None:
    """Which safetensors file to read: the plain one, else fp16. InputError if there is none."""
    if (folder / f"{WEIGHTS}.safetensors").is_file():
        return None
    if (folder / f"{WEIGHTS}.fp16.safetensors").is_file():
        return "fp16"
    pickled = " (a pickled .bin is not read; convert it with diffusers first)" if any(folder.glob("*.bin")) else ""
    raise InputError(f"codec folder {folder} has no {WEIGHTS}.safetensors{pickled}; save the weights as safetensors")


def load_codec(
    folder: Path, device: str | torch.device, dtype: torch.dtype = torch.float32, channels_last: bool = False
) -> AutoencoderCodec:
    """The autoencoder of a diffusers folder, or of the `vae` folder of a whole pipeline. Nothing is downloaded.

    `device`, `dtype` and `channels_last` as for `AutoencoderCodec`.

    Raises InputError: no folder, no config, another class, no safetensors, weights that are not those of the config,
    or weights or scaling that are no numbers.
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
        raise InputError(f"codec folder {folder} cannot be loaded: {why}; write it anew with save_pretrained") from None
    if missing := loaded["missing_keys"]:
        raise InputError(
            f"codec folder {folder}: its weights lack {len(missing)} tensors of its config, first {missing[0]}; "
            "config and weights belong to different networks"
        )
    _require_numbers(network, folder)
    return AutoencoderCodec(network, device, dtype, channels_last)


def encode(codec: Codec, images: Tensor, rows: int = 2) -> Tensor:
    """Raw moments of any number of images, each independent of its neighbours (medlt.diffusion.batching)."""
    return fixed_batches(codec.moments, rows)(images)
