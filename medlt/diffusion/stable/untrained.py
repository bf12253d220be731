"""Untrained models in exactly the format of Stable Diffusion 1.5 and 2.1: for tests, and to train from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from medlt.diffusion.noise import NoiseSchedule, Prediction
from medlt.diffusion.stable import infer
from medlt.diffusion.stable.files import read_json
from medlt.diffusion.stable.load import read_tokenizer
from medlt.diffusion.stable.network import built
from medlt.diffusion.stable.save import (
    copy_tokenizer,
    copy_vae,
    write_index,
    write_parts,
    write_schedule,
)  # fmt: skip
from medlt.files import whole_folder, write_json, write_text
from medlt.rng import seed_of
from medlt.types import InputError

WORDS = (
    "chest", "radiograph", "view", "with", "and", "frontal", "lateral", "male", "female", "year", "old", "finding",
    "pneumonia", "effusion", "edema", "nodule", "mass", "hernia", "fibrosis", "atelectasis", "cardiomegaly", "pleural",
)  # fmt: skip
Version = Literal["1.5", "2.1"]


@dataclass(frozen=True)
class Format:
    """What a version's published folder says; sizes are the published ones."""

    prediction: Prediction
    scheduler: str
    text_width: int
    text_layers: int
    activation: str
    linear: bool
    size: int


FORMATS: dict[str, Format] = {
    "1.5": Format("epsilon", "PNDMScheduler", 768, 12, "quick_gelu", False, 64),
    "2.1": Format("v_prediction", "DDIMScheduler", 1024, 23, "gelu", True, 96),
}


def untrained(
    folder: Path,
    *,
    tokenizer: Path | None = None,
    version: Version = "1.5",
    prediction: Prediction | None = None,
    widths: Sequence[int] = (320, 640, 1280, 1280),
    layers: int = 2,
    text_width: int | None = None,
    text_layers: int | None = None,
    channels: int = 4,
    vae: Path | Sequence[int] | None = None,
    noise: NoiseSchedule | None = None,
    seed: int = 0,
) -> Path:
    """Write a diffusers folder of untrained networks and return it; equal arguments give equal bytes.

    Defaults are the version's full size (860 million UNet weights); `widths` are UNet channels a level, multiples of
    32. `tokenizer` is a folder to copy, None writes `small_tokenizer`; `vae` a codec folder to copy, the widths of an
    untrained AutoencoderKL, or None for none. Raises InputError: other widths, a folder that exists, nothing to copy.
    """
    require_widths(widths)
    form = FORMATS[version]
    width, depth = text_width or form.text_width, text_layers or form.text_layers
    with whole_folder(Path(folder)) as fresh:
        _tokenizer(fresh / "tokenizer", tokenizer, version)
        words = infer.text_settings(_vocabulary(fresh / "tokenizer"), width, depth, 4 * width, form.activation)
        configs = {"unet": unet_config(form, widths, layers, width, channels), "text_encoder": words}
        if vae is not None and not isinstance(vae, Path | str):
            configs["vae"] = vae_config(vae, channels)
        write_parts(fresh, {part: _drawn(part, config, seed) for part, config in configs.items()})
        if isinstance(vae, Path | str):
            copy_vae(Path(vae), fresh / "vae")
        write_schedule(fresh, prediction or form.prediction, noise or NoiseSchedule(), form.scheduler)
        write_index(fresh)
    return Path(folder)


def require_widths(widths: Sequence[int]) -> None:
    """Raise InputError unless a UNet can have these channels a level."""
    if not widths or any(w < 32 or w % 32 for w in widths):
        raise InputError(f"widths {list(widths)}: give one or more multiples of 32, the groups of the UNet's norms")


def small_tokenizer(folder: Path) -> None:
    """Write a CLIP byte-pair tokenizer of some 700 tokens: every byte, and the prefixes of `WORDS`.

    It reads any text, most words letter by letter; the published one has 49,408 tokens.
    """
    letters = bytes_to_unicode()
    ends = [f"{letter}</w>" for letter in letters]
    pairs = dict.fromkeys(pair for word in WORDS for pair in _merges(word))
    tokens = [*letters, *ends, *(a + b for a, b in pairs), "<|startoftext|>", "<|endoftext|>"]
    ends_with = {"bos_token": tokens[-2], **dict.fromkeys(("eos_token", "unk_token", "pad_token"), tokens[-1])}
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(dict.fromkeys(tokens))})
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in pairs)]) + "\n")
    write_json(folder / "special_tokens_map.json", ends_with)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    write_json(folder / "tokenizer_config.json", ends_with | settings)


def bytes_to_unicode() -> list[str]:
    """Return the printable letters for the 256 bytes in the vocabulary of CLIP, in its order ("!" first)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + i) for i in range(len(hidden))]


def _merges(word: str) -> list[tuple[str, str]]:
    """Return the pairs that make a word from its letters, left to right."""
    parts = [*word[:-1], f"{word[-1]}</w>"]
    return [("".join(parts[:i]), parts[i]) for i in range(1, len(parts))]


def unet_config(form: Format, widths: Sequence[int], layers: int, context: int, channels: int) -> dict[str, Any]:
    """Return the config of a UNet2DConditionModel of a version, with attention on all levels but the last."""
    plain = len(widths) - 1
    return {
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": list(widths),
        "down_block_types": [*["CrossAttnDownBlock2D"] * plain, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * plain],
        "layers_per_block": layers,
        "cross_attention_dim": context,
        "attention_head_dim": [max(1, w // infer.HEAD) for w in widths] if form.linear else 8,
        "use_linear_projection": form.linear,
        "upcast_attention": form.linear,
        "sample_size": form.size,
    }


def vae_config(widths: Sequence[int], channels: int) -> dict[str, Any]:
    """Return the config of an AutoencoderKL in Stable Diffusion's format; it shrinks by 2 ** (len(widths) - 1)."""
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": channels,
        "block_out_channels": list(widths),
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": 2,
        "norm_num_groups": min(32, *widths),
        "scaling_factor": 0.18215,
    }


def _drawn(part: str, config: dict[str, Any], seed: int) -> Any:
    """Return a network whose weights are a function of (seed, part)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "untrained", part))
        return built(part, config)


def _tokenizer(folder: Path, source: Path | None, version: Version) -> None:
    """Copy or write the tokenizer. Stable Diffusion 2.x pads with "!", token 0 of its special_tokens_map.json."""
    if source is None:
        small_tokenizer(folder)
    else:
        copy_tokenizer(Path(source), folder)
    if version == "2.1":
        path = folder / "special_tokens_map.json"
        write_json(path, (read_json(path) if path.is_file() else {}) | {"pad_token": "!"})


def _vocabulary(tokenizer: Path) -> int:
    return len(read_tokenizer(tokenizer))
