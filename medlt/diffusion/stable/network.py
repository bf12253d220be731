"""The networks of a Stable Diffusion model: built from a config, filled with weights, called as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medlt.diffusion.stable.files import first_difference
from medlt.diffusion.stable.text import hidden_states
from medlt.types import InputError


class StableNetwork(nn.Module):
    """A UNet2DConditionModel, with the CLIPTextModel where it is trained too (arXiv 2112.10752).

    Conditions are token ids [B,77] int64, which the text encoder reads first, or its embeddings [B,77,D]. `eos` is the
    token that ends a text; the last of the vocabulary where it is not told.
    """

    def __init__(self, unet: Any, text_encoder: Any = None, eos: int | None = None) -> None:
        super().__init__()
        self.eos = eos if eos is not None or text_encoder is None else text_encoder.config.vocab_size - 1
        self.unet: Any = unet
        self.text_encoder: Any = text_encoder

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Prediction [B,C,h,w] at latents x_t [B,C,h,w] and timesteps t [B]. ValueError: ids without text encoder."""
        if not condition.is_floating_point():
            if self.text_encoder is None or self.eos is None:
                raise ValueError("token ids were given and this network has no text encoder; give embeddings")
            condition = hidden_states(self.text_encoder, condition, self.eos)
        answer: Tensor = self.unet(x_t, t, encoder_hidden_states=condition).sample
        return answer


def empty(kind: str, config: Mapping[str, Any], told_by: object) -> Any:
    """A network of this config without weights (on the meta device). Raises InputError, naming `told_by`.

    `kind` is "unet", "text_encoder" or "vae".
    """
    from accelerate import init_empty_weights

    try:
        with init_empty_weights(include_buffers=False):
            return built(kind, config)
    except Exception as error:  # the libraries raise many kinds at a strange config, some of them bare Exceptions
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{told_by} describes no network ({why[0]}); copy it anew") from None


def built(kind: str, config: Mapping[str, Any]) -> Any:
    """A network of this config, its weights drawn from torch's global generator."""
    if kind == "text_encoder":
        from transformers import CLIPTextConfig, CLIPTextModel

        return CLIPTextModel(CLIPTextConfig.from_dict({"architectures": ["CLIPTextModel"], **config}))
    from diffusers import AutoencoderKL, UNet2DConditionModel

    return {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[kind].from_config(dict(config))


def plain_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A text encoder's tensors under transformers' present names, without those that only other parts of CLIP use.

    Stable Diffusion's files say text_model.encoder...; some hold position_ids or a projection, which it never reads.
    """
    plain = {name.removeprefix("text_model."): value for name, value in tensors.items()}
    unused = ("position_ids", "text_projection.weight", "logit_scale")
    return {k: v for k, v in plain.items() if not k.endswith(unused) and not k.startswith(("vision_", "visual_"))}


def check(network: nn.Module, found: Mapping[str, tuple[int, ...]], where: object) -> None:
    """Raise InputError unless tensors of these shapes are exactly the network's."""
    told = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if why := first_difference(told, found):
        raise InputError(f"{where}: {why}; config and weights belong to different networks")


def fill(network: nn.Module, tensors: Mapping[str, Tensor], where: object) -> Any:
    """The network with these weights, float32, in evaluation mode and frozen. InputError on NaN or infinity."""
    own = {name: value.to(torch.float32, copy=True) for name, value in tensors.items()}
    if broken := [name for name, value in own.items() if not value.isfinite().all()]:
        raise InputError(
            f"{where}: {broken[0]} holds values that are no numbers; its training failed: take an earlier one"
        )
    network.load_state_dict(own, assign=True)
    return network.eval().requires_grad_(False)


def read_all(files: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of all these safetensors files, mapped into memory and not copied."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read ({str(error).splitlines()[0]}); copy it anew") from None
    return tensors
