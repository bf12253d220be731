"""The networks of a Stable Diffusion model: built from a config, filled with weights, called as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medlt.diffusion.stable.files import first_difference, header
from medlt.diffusion.stable.text import hidden_states
from medlt.types import InputError

TEXT_SETTINGS = (
    "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range",
    "initializer_factor", "pad_token_id", "bos_token_id", "eos_token_id", "use_attention_mask",
)  # fmt: skip
FLOATING = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class StableNetwork(nn.Module):
    """A UNet2DConditionModel, with the CLIPTextModel if that is trained, too (arXiv 2112.10752).

    Conditions are token ids [B,77] int64 for the text encoder, or its embeddings [B,77,D]. `eos` is the token that ends
    a text, by default the last of the vocabulary.
    """

    def __init__(self, unet: Any, text_encoder: Any = None, eos: int | None = None) -> None:
        super().__init__()
        self.eos = eos if eos is not None or text_encoder is None else text_encoder.config.vocab_size - 1
        self.unet: Any = unet
        self.text_encoder: Any = text_encoder

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction [B,C,h,w] at latents x_t [B,C,h,w] and timesteps t [B].

        Raises ValueError for token ids without a text encoder.
        """
        if not condition.is_floating_point():
            if self.text_encoder is None or self.eos is None:
                raise ValueError("the condition is token ids, but this network has no text encoder; give embeddings")
            condition = hidden_states(self.text_encoder, condition, self.eos)
        prediction: Tensor = self.unet(x_t, t, encoder_hidden_states=condition).sample
        return prediction


def empty(kind: str, config: Mapping[str, Any], source: object) -> Any:
    """Return a network of this config without weights, on the meta device.

    `kind` is "unet", "text_encoder" or "vae"; `source` is the file of the config. Raises InputError, naming `source`,
    for a config that describes no network.
    """
    from accelerate import init_empty_weights

    try:
        with init_empty_weights(include_buffers=False):
            return built(kind, config)
    except Exception as error:  # the libraries raise many kinds for a wrong config, some of them bare Exceptions
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{source} describes no network ({why[0]}); copy it again") from None


def built(kind: str, config: Mapping[str, Any]) -> Any:
    """Return a network of this config, with weights from torch's global generator.

    From the config of a text encoder only the architecture is used: other keys (attn_implementation) can make
    transformers download and run code.
    """
    if kind == "text_encoder":
        from transformers import CLIPTextConfig, CLIPTextModel

        own = {name: config[name] for name in TEXT_SETTINGS if name in config}
        return CLIPTextModel(CLIPTextConfig.from_dict({"architectures": ["CLIPTextModel"], **own}))
    from diffusers import AutoencoderKL, UNet2DConditionModel

    return {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[kind].from_config(dict(config))


def plain_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of a text encoder under the present names of transformers, without other parts of CLIP.

    Files of Stable Diffusion have names such as text_model.encoder...; some hold position_ids or a projection, which
    are not used.
    """
    plain = {name.removeprefix("text_model."): value for name, value in tensors.items()}
    unused = ("position_ids", "text_projection.weight", "logit_scale")
    return {k: v for k, v in plain.items() if not k.endswith(unused) and not k.startswith(("vision_", "visual_"))}


def check_tensors(network: nn.Module, tensors: Mapping[str, Tensor], where: object) -> None:
    """Raise InputError unless the tensors have the names and shapes of the network and are floating point."""
    expected, given = ({n: tuple(v.shape) for n, v in some.items()} for some in (network.state_dict(), tensors))
    if why := first_difference(expected, given):
        raise InputError(f"{where}: {why}; config and weights belong to different networks")
    if odd := sorted(name for name, value in tensors.items() if not value.is_floating_point()):
        raise InputError(f"{where}: {odd[0]} is not floating point; give the checkpoint in fp16 or fp32")


def fill(network: nn.Module, tensors: Mapping[str, Tensor], where: object) -> Any:
    """Load the weights as float32, and return the network in eval mode and frozen. InputError for NaN or infinity."""
    own = {name: value.to(torch.float32, copy=True) for name, value in tensors.items()}
    if broken := [name for name, value in own.items() if not value.isfinite().all()]:
        raise InputError(f"{where}: {broken[0]} holds NaN or infinity; the training failed: use an earlier checkpoint")
    network.load_state_dict(own, assign=True)
    return network.eval().requires_grad_(False)


def outlined(files: Iterable[Path]) -> dict[str, Tensor]:
    """Return the tensors of safetensors files from their headers, on the meta device, without reading weights.

    Types that are not floating point become int64. Raises InputError as `files.header`.
    """
    entries = {k: v for path in files for k, v in header(path).items() if k != "__metadata__"}
    return {
        name: torch.empty(value["shape"], dtype=FLOATING.get(value["dtype"], torch.int64), device="meta")
        for name, value in entries.items()
    }


def read_all(files: Iterable[Path]) -> dict[str, Tensor]:
    """Return the tensors of safetensors files, memory-mapped. Raises InputError for files that cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in files:
        header(path)
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read ({str(error).splitlines()[0]}); copy it again") from None
    return tensors
