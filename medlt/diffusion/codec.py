"""Images to latents and back: the diffusers autoencoders behind one small seam.

Images are float32 [B,1,H,W] in [0,1]; the networks see three equal channels (or one) in [-1,1], and decoded channels
are averaged. Raw moments (mean | sd) are what is stored; scaling is applied late, so that a cache outlives a change
of scaling.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medlt.diffusion.batching import fixed_batches
from medlt.files import digest
from medlt.types import Codec, InputError

CLASSES = ("AutoencoderKL", "AutoencoderTiny")
WEIGHTS = "diffusion_pytorch_model"


def weights_digest(network: nn.Module, config: dict[str, Any]) -> str:
    """16 hex digits of a network's weights and of its public settings."""
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    state = sorted(network.state_dict().items())
    return digest(public, *(part for name, w in state for part in (name, w.detach().cpu().numpy().tobytes())))


def _column(value: Any, default: float) -> Tensor:
    """A scalar or per-channel setting as [1,C or 1,1,1] that broadcasts over latents."""
    return torch.as_tensor(default if value is None else value, dtype=torch.float32).reshape(1, -1, 1, 1)


class AutoencoderCodec:
    """A diffusers AutoencoderKL or AutoencoderTiny, fp32, in evaluation mode. See medlt.types.Codec.

    AutoencoderTiny has no spread: its sd is 0. Latents are (mean + sd * noise - shift) * scale, with shift and scale
    from the network's config: scaling_factor and shift_factor, or latents_mean and latents_std where given.
    """

    def __init__(self, autoencoder: nn.Module, device: str = "cpu") -> None:
        self.network = autoencoder.float().eval().requires_grad_(False).to(device)
        config: dict[str, Any] = dict(autoencoder.config)  # type: ignore[arg-type]
        self.channels = int(config["latent_channels"])
        self._image_channels = int(config["in_channels"])
        self.factor = 2 ** (len(config.get("block_out_channels") or config["encoder_block_out_channels"]) - 1)
        self.digest = weights_digest(autoencoder, config)
        self.device = torch.device(device)
        self._shift = _column(config.get("latents_mean") or config.get("shift_factor"), 0.0)
        self._scale = _column(config.get("scaling_factor"), 1.0) / _column(config.get("latents_std"), 1.0)

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Raw mean | sd [B,2C,h,w] of images [B,1,H,W] in [0,1]. Raises InputError if H or W does not divide."""
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise InputError(
                f"images of {height}x{width} px do not fit this codec; resize to a multiple of {self.factor} px"
            )
        x = (images.to(self.device) * 2 - 1).expand(-1, self._image_channels, -1, -1)
        answer = self.network.encode(x)  # type: ignore[operator]
        if hasattr(answer, "latents"):
            return torch.cat([answer.latents, torch.zeros_like(answer.latents)], 1).cpu()
        return torch.cat([answer.latent_dist.mean, answer.latent_dist.std], 1).cpu()

    def latents(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latents [B,C,h,w]: the mode, or a draw when unit `noise` [B,C,h,w] is given."""
        mean, sd = moments.chunk(2, dim=1)
        z = mean if noise is None else mean + sd * noise
        return (z - self._shift) * self._scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images [B,1,H,W] in [0,1] from scaled latents. A non-finite latent stays non-finite in the image."""
        z = latents / self._scale + self._shift
        return image_of(self.network.decode(z.to(self.device)).sample)  # type: ignore[operator]


def image_of(sample: Tensor) -> Tensor:
    """Network output [B,1 or 3,H,W] in [-1,1] as images [B,1,H,W] in [0,1]."""
    return ((sample.mean(1, keepdim=True) + 1) / 2).clamp(0, 1).cpu()


def _config_of(folder: Path) -> dict[str, Any]:
    """The config of a codec folder, or InputError saying what keeps it from being one."""
    if not folder.is_dir():
        raise InputError(f"codec folder {folder} does not exist; give the folder of a diffusers autoencoder")
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"codec folder {folder} has no config.json; give a folder written by save_pretrained")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not readable as JSON ({error}); write the codec folder anew") from None
    found = config.get("_class_name") if isinstance(config, dict) else None
    if found not in CLASSES:
        raise InputError(f"{path} describes {found!r}, which is no codec; use one of {', '.join(CLASSES)}")
    return dict(config)


def _variant_of(folder: Path) -> str | None:
    """Which safetensors file to read: the plain one, else fp16. InputError if there is none."""
    if (folder / f"{WEIGHTS}.safetensors").is_file():
        return None
    if (folder / f"{WEIGHTS}.fp16.safetensors").is_file():
        return "fp16"
    pickled = " (a pickled .bin is not read; convert it with diffusers first)" if any(folder.glob("*.bin")) else ""
    raise InputError(f"codec folder {folder} has no {WEIGHTS}.safetensors{pickled}; save the weights as safetensors")


def load_codec(folder: Path, device: str = "cpu") -> AutoencoderCodec:
    """The autoencoder of a diffusers folder, or of the `vae` folder of a whole pipeline. Nothing is downloaded.

    Raises InputError: no folder, no config, another class, no safetensors, or weights that are not those of the config.
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
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"codec folder {folder} cannot be loaded: {why}; write it anew with save_pretrained") from None
    if missing := loaded["missing_keys"]:
        raise InputError(
            f"codec folder {folder}: its weights lack {len(missing)} tensors of its config, first {missing[0]}; "
            "config and weights belong to different networks"
        )
    return AutoencoderCodec(network, device)


def encode(codec: Codec, images: Tensor, rows: int = 2) -> Tensor:
    """Raw moments of any number of images, each independent of its neighbours (medlt.diffusion.batching)."""
    return fixed_batches(codec.moments, rows)(images)
