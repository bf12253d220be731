"""LoRA adapters (arXiv 2106.09685): a low-rank change of each weight, W + weight * alpha / r * B A, fused into it.

| symbol | meaning |
|---|---|
| W | weight of a linear layer [out,in] or of a convolution [out,in,k,k] |
| A, B | "down" [r,in,...] and "up" [out,r,...] |
| alpha | scale of the adapter; r if the file has none |

Names of diffusers, peft and kohya are read. They differ in separators, prefix and suffix only, so a layer is identified
by its name with underscores for dots.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor, nn

from medlt.diffusion.stable import files
from medlt.diffusion.stable.network import outlined, read_all
from medlt.files import sha256
from medlt.types import InputError

Adapter: TypeAlias = Path | str | tuple[Path | str, float]
Settings: TypeAlias = Mapping[str, Any]
Layers: TypeAlias = Mapping[str, Mapping[str, Any]]
FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
METADATA = "lora_adapter_metadata"  # key of diffusers in the header of the file
PREFIXES = {
    "unet": ("unet.", "lora_unet_"),
    "text_encoder": ("text_encoder.", "lora_te_", "lora_te1_"),
}
MATRIX = re.compile(r"(.+?)[._]lora(?:_linear_layer)?[._](A|B|down|up)(?:\.default)?\.weight")
OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class LoraAdapter:
    """A fused adapter: its file, the SHA-256 of the file, and its weight."""

    path: Path
    sha256: str
    weight: float


@dataclass
class Change:
    """The change of one layer in a file."""

    matrices: dict[str, Tensor] = field(default_factory=dict)
    alpha: Tensor | None = None


def add_loras(unet: nn.Module, text_encoder: nn.Module, loras: Sequence[Adapter]) -> list[LoraAdapter]:
    """Fuse adapters into the networks, in order.

    Raises InputError for a file that is missing, broken, for another model, of another kind (DoRA, LyCORIS), or that
    makes weights infinite or NaN; some weights may have changed by then.
    """
    layers = _layers(unet, text_encoder)
    return [_add(layers, *(one if isinstance(one, tuple) else (one, 1.0))) for one in loras]


def validate_loras(unet: nn.Module, text_encoder: nn.Module, loras: Sequence[Adapter]) -> None:
    """Raise InputError if adapters do not fit these networks, by their headers alone. The networks may be empty."""
    layers = _layers(unet, text_encoder)
    for one in loras:
        file = adapter_file(Path(one[0] if isinstance(one, tuple) else one))
        for _, name, change, settings in _fitting(layers, file, outlined([file])):
            _scale(file, settings, name, Change(change.matrices))


def _add(layers: Layers, path: Path | str, weight: float) -> LoraAdapter:
    """Fuse one adapter."""
    file = adapter_file(Path(path))
    for layer, name, change, settings in _fitting(layers, file, read_all([file])):
        delta = change.matrices["B"].float().flatten(1) @ change.matrices["A"].float().flatten(1)
        delta *= weight * _scale(file, settings, name, change)
        layer.weight.data += delta.reshape(layer.weight.shape).to(layer.weight)
        if not layer.weight.isfinite().all():
            raise InputError(
                f"LoRA {file}: it makes {name} NaN or infinite; its training failed or its alpha is wrong: use another "
                "one"
            )
    return LoraAdapter(file, sha256(file), float(weight))


def _fitting(layers: Layers, file: Path, tensors: Mapping[str, Tensor]) -> list[tuple[Any, str, Change, Settings]]:
    """Return the layers that a file changes, their names, changes and settings.

    Raises InputError if one does not fit.
    """
    settings, changes = _settings(file), changes_of(file, tensors)
    for (part, name), change in changes.items():
        _require_fit(file, name, change, layers[part].get(name))
    return [(layers[part][name], name, change, settings.get(part, {})) for (part, name), change in changes.items()]


def adapter_file(path: Path) -> Path:
    """Return the file of an adapter: the path itself, or the file of diffusers or peft in this folder."""
    for file in (path, *(path / name for name in FILES)):
        if file.is_file():
            if file.suffix != ".safetensors":
                raise InputError(f"LoRA {file} is not a .safetensors file; pickled files are never opened: convert it")
            return file
    raise InputError(f"LoRA {path} does not exist or holds no {FILES[0]}; give the adapter's .safetensors file")


def changes_of(file: Path, tensors: Mapping[str, Tensor]) -> dict[tuple[str, str], Change]:
    """Return the changes in a file by part ("unet", "text_encoder") and layer, named with underscores for dots."""
    changes: dict[tuple[str, str], Change] = {}
    for key, value in tensors.items():
        if match := MATRIX.fullmatch(key):
            side = "A" if match[2] in ("A", "down") else "B"
            changes.setdefault(_layer_name(match[1]), Change()).matrices[side] = value
        elif key.endswith(".alpha"):
            changes.setdefault(_layer_name(key.removesuffix(".alpha")), Change()).alpha = value
        else:
            raise InputError(f"LoRA {file} holds {key}, which is not LoRA; DoRA and LyCORIS are not supported")
    if not changes:
        raise InputError(f"LoRA {file} is empty; copy it again")
    return changes


def _layer_name(key: str) -> tuple[str, str]:
    """Return part and layer of a key in a file."""
    key = key.removeprefix("base_model.model.")
    for part, prefixes in PREFIXES.items():
        for prefix in prefixes:
            if key.startswith(prefix):
                return part, _flat(key.removeprefix(prefix), part)
    part = "text_encoder" if key.startswith(("text_model", "encoder.")) else "unet"
    return part, _flat(key, part)


def _flat(name: str, part: str) -> str:
    """Return the present name of a layer, with underscores."""
    flat = name.replace(".", "_").replace("_processor_", "_").removeprefix("text_model_")
    if part == "unet":
        return flat + "_0" if flat.endswith("_to_out") else flat
    old = next((tail for tail in OLD_TEXT if flat.endswith("_" + tail)), None)
    return flat.removesuffix(old) + OLD_TEXT[old] if old else flat


def _layers(unet: nn.Module, text_encoder: nn.Module) -> Layers:
    """Return the linear and convolution layers of each part, by their names with underscores."""
    networks = {"unet": unet, "text_encoder": text_encoder}
    return {
        part: {
            name.replace(".", "_").removeprefix("text_model_"): module
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        }
        for part, network in networks.items()
    }


def _settings(file: Path) -> dict[str, Settings]:
    """Return the peft settings of each part, from the header (diffusers) or from adapter_config.json (peft)."""
    if file.name == FILES[1]:
        return dict.fromkeys(PREFIXES, files.read_json(file.with_name("adapter_config.json")))
    text = files.header(file).get("__metadata__", {}).get(METADATA, "{}")
    try:
        stored = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict):
        raise _unreadable(file)
    return {
        part: {k.removeprefix(f"{part}."): v for k, v in stored.items() if k.startswith(f"{part}.")}
        for part in PREFIXES
    }


def _unreadable(file: Path) -> InputError:
    """Return the error for settings that cannot be read."""
    return InputError(f"LoRA {file} is broken: its settings (alpha, {METADATA}) are not readable; copy it again")


def _scale(file: Path, settings: Settings, name: str, change: Change) -> float:
    """Return alpha / r, or alpha / sqrt(r) if rank-stabilised (arXiv 2312.03732), or 1 without alpha."""
    rank = change.matrices["A"].shape[0]
    patterns = settings.get("alpha_pattern") or {}
    try:
        own = [v for k, v in patterns.items() if name.endswith(k.strip("^$").replace(".", "_"))]
        alpha = next((float(a) for a in (change.alpha, *own, settings.get("lora_alpha")) if a is not None), None)
    except (AttributeError, TypeError, ValueError, OverflowError, RuntimeError):  # the last is torch's: many values
        raise _unreadable(file) from None
    if alpha is None:
        return 1.0
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _require_fit(file: Path, name: str, change: Change, layer: Any) -> None:
    """Raise InputError if the layer or its shape is of another model, or if a matrix is missing."""
    if layer is None:
        raise InputError(f"LoRA {file} is for another model: it changes {name}, which this one does not have")
    if change.matrices.keys() != {"A", "B"}:
        raise InputError(f"LoRA {file} is broken: {name} lacks one of its two matrices; copy it again")
    if not all(m.is_floating_point() and m.ndim in (2, 4) and m.numel() for m in change.matrices.values()):
        raise InputError(f"LoRA {file} is broken: the matrices of {name} are not floating point; copy it again")
    down, up = (tuple(change.matrices[side].flatten(1).shape) for side in "AB")
    own = tuple(layer.weight.flatten(1).shape)
    if up[1] != down[0] or (up[0], down[1]) != own:
        made = f"{list(up)} x {list(down)}"
        raise InputError(f"LoRA {file} is for another model: {name} is {list(own)} here and its change {made}")
