"""Infer from the shapes of a single-file checkpoint whether it is Stable Diffusion, and the configs of its networks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from medlt.types import InputError

UNET = "model.diffusion_model."
CLIP = "cond_stage_model.transformer.text_model."
OPEN_CLIP = "cond_stage_model.model."
VAE = "first_stage_model."
HEAD = 64
OTHERS = {
    "conditioner.embedders.": "Stable Diffusion XL",
    UNET + "joint_blocks.": "Stable Diffusion 3",
    UNET + "double_blocks.": "Flux",
    "double_blocks.": "Flux",
    "lora_": "a LoRA adapter: give it as one of `loras`",
    "control_model.": "a ControlNet",
}
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


def is_open_clip(names: Iterable[str]) -> bool:
    """Return whether the text encoder is that of OpenCLIP, as in Stable Diffusion 2.x."""
    return any(name.startswith(OPEN_CLIP) for name in names)


def require_stable(file: Path, shapes: Shapes) -> None:
    """Raise InputError unless the file has UNet, text encoder and autoencoder of Stable Diffusion 1.x or 2.x."""
    for start, kind in OTHERS.items():
        if any(name.startswith(start) for name in shapes):
            raise InputError(f"{file} is {kind}; only Stable Diffusion 1.x and 2.x checkpoints are loaded")
    first = {
        "unet": [UNET + "input_blocks.0.0.weight"],
        "text encoder": [CLIP + "embeddings.token_embedding.weight", OPEN_CLIP + "token_embedding.weight"],
        "autoencoder": [VAE + "decoder.conv_in.weight"],
    }
    if lacking := [part for part, names in first.items() if not any(name in shapes for name in names)]:
        raise InputError(
            f"{file} has no {' and no '.join(lacking)} under the original names ({UNET}..., cond_stage_model..., "
            f"{VAE}...); give a whole checkpoint, or a diffusers folder"
        )


def _numbers(shapes: Shapes, pattern: str) -> list[int]:
    """Return the different numbers that the group of a pattern matches in the names."""
    matches = (re.match(pattern, name) for name in shapes)
    return sorted({int(match[1]) for match in matches if match})


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """Return the config of the UNet.

    The blocks of a level are its residual layers and, except in the last level, a downsampling.
    """
    blocks = _numbers(shapes, re.escape(UNET) + r"input_blocks\.(\d+)\.")
    down = [i for i in blocks if f"{UNET}input_blocks.{i}.0.op.weight" in shapes]
    layers = (down[0] if down else len(blocks)) - 1
    last = [i - 1 for i in down] + [blocks[-1]]
    widths = [shapes[f"{UNET}input_blocks.{i}.0.out_layers.3.weight"][0] for i in last]
    attends = [f"{UNET}input_blocks.{i}.1.proj_in.weight" in shapes for i in last]
    projection = next(shape for name, shape in shapes.items() if name.endswith("input_blocks.1.1.proj_in.weight"))
    context = shapes[f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"][1]
    return {
        "in_channels": shapes[UNET + "input_blocks.0.0.weight"][1],
        "out_channels": shapes[UNET + "out.2.weight"][0],
        "block_out_channels": widths,
        "down_block_types": ["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)],
        "layers_per_block": layers,
        "cross_attention_dim": context,
        "use_linear_projection": len(projection) == 2,
        "attention_head_dim": [max(1, w // HEAD) for w in widths] if is_open_clip(shapes) else 8,
        "upcast_attention": is_open_clip(shapes),
        "sample_size": 96 if is_open_clip(shapes) else 64,
    }


def text_config(shapes: Shapes) -> dict[str, Any]:
    """Return the config of the text encoder.

    Stable Diffusion 2.x uses the penultimate layer of OpenCLIP, so the config has one layer less.
    """
    if is_open_clip(shapes):
        vocabulary, width = shapes[OPEN_CLIP + "token_embedding.weight"]
        layers = len(_numbers(shapes, re.escape(OPEN_CLIP) + r"transformer\.resblocks\.(\d+)\.")) - 1
        inner = shapes[OPEN_CLIP + "transformer.resblocks.0.mlp.c_fc.weight"][0]
        length, activation = shapes[OPEN_CLIP + "positional_embedding"][0], "gelu"
    else:
        vocabulary, width = shapes[CLIP + "embeddings.token_embedding.weight"]
        layers = len(_numbers(shapes, re.escape(CLIP) + r"encoder\.layers\.(\d+)\."))
        inner = shapes[CLIP + "encoder.layers.0.mlp.fc1.weight"][0]
        length, activation = shapes[CLIP + "embeddings.position_embedding.weight"][0], "quick_gelu"
    return text_settings(vocabulary, width, layers, inner, activation) | {"max_position_embeddings": length}


def text_settings(vocabulary: int, width: int, layers: int, inner: int, activation: str) -> dict[str, Any]:
    """Return the config of a CLIP text encoder whose last two tokens are start and end of text."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // HEAD),
        "hidden_act": activation,
        "projection_dim": width,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Return the config of the autoencoder, with Stable Diffusion's scaling factor."""
    levels = _numbers(shapes, re.escape(VAE) + r"encoder\.down\.(\d+)\.block")
    blocks = _numbers(shapes, re.escape(VAE) + r"encoder\.down\.0\.block\.(\d+)\.")
    widths = [shapes[f"{VAE}encoder.down.{i}.block.{blocks[-1]}.conv2.weight"][0] for i in levels]
    return {
        "in_channels": shapes[VAE + "encoder.conv_in.weight"][1],
        "out_channels": shapes[VAE + "decoder.conv_out.weight"][0],
        "latent_channels": shapes[VAE + "decoder.conv_in.weight"][1],
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": len(blocks),
        "scaling_factor": 0.18215,
    }


CONFIGS: dict[str, Callable[[Shapes], dict[str, Any]]] = {
    "unet": unet_config,
    "text_encoder": text_config,
    "vae": vae_config,
}
