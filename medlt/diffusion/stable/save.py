"""Save a Stable Diffusion model or its adapter for diffusers. Equal weights give equal bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from medlt.diffusion.noise import NoiseSchedule, Prediction
from medlt.diffusion.stable.files import STEMS, TOKENIZER_FILES, read_json, require, weights
from medlt.diffusion.stable.lora import FILES, METADATA
from medlt.files import whole_folder, write_json, write_tensors
from medlt.types import InputError

if TYPE_CHECKING:
    from medlt.diffusion.stable.load import StableDiffusion

PIPELINE = "StableDiffusionPipeline"
LIBRARIES = {"CLIPTextModel": "transformers", "CLIPTokenizer": "transformers"}


def save_stable_diffusion(model: StableDiffusion, folder: Path, *, vae: Path | None = None) -> None:
    """Write a whole diffusers folder; `vae` is a codec folder to copy, or a checkpoint folder that has one.

    The files of the tokenizer are copied from `model.source`. Raises InputError if the folder exists or a part to copy
    is missing, and ValueError if the weights still have an adapter (fuse it, or use `save_lora`).
    """
    with whole_folder(Path(folder)) as fresh:
        write_parts(fresh, {"unet": model.unet, "text_encoder": model.text_encoder})
        copy_tokenizer(model.source, fresh / "tokenizer")
        write_schedule(fresh, model.prediction, model.noise)
        if vae is not None:
            copy_vae(Path(vae), fresh / "vae")
        write_index(fresh)
        require(fresh)


def write_parts(folder: Path, networks: Mapping[str, Any]) -> None:
    """Write config and weights of networks, each to its own folder; text encoders with the published names."""
    for part, network in networks.items():
        tensors = dict(network.state_dict())
        if any(".lora_" in name or ".base_layer." in name for name in tensors):
            raise ValueError(f"the {part} still has an adapter; fuse it first, or write it with save_lora")
        if part == "text_encoder":
            tensors = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in tensors.items()}
        config = network.config.to_dict() if hasattr(network.config, "to_dict") else dict(network.config)
        named = {} if config.get("architectures") else {"_class_name": type(network).__name__}
        public = named | {k: v for k, v in config.items() if not k.startswith("_")}
        (folder / part).mkdir()
        write_json(folder / part / "config.json", public)
        write_tensors(folder / part / f"{STEMS[part]}.safetensors", tensors, {"format": "pt"})


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a tokenizer from its folder or that of a checkpoint. Raises InputError if there is none.

    They are copied because transformers 5 does not write vocab.json and merges.txt, which other readers need.
    """
    folder = tokenizer_folder(source)
    target.mkdir()
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)


def tokenizer_folder(source: Path) -> Path:
    """Return the folder with the tokenizer of a checkpoint: `source` or its folder `tokenizer`."""
    folder = source / "tokenizer" if (source / "tokenizer").is_dir() else source
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise InputError(f"{folder} holds no tokenizer (vocab.json and merges.txt); copy it there from a checkpoint")
    return folder


def copy_vae(source: Path, target: Path) -> None:
    """Copy config and weights of an autoencoder. Raises InputError if they are missing."""
    folder = source / "vae" if (source / "model_index.json").is_file() else source
    held = weights(folder, STEMS["vae"])
    if held is None or not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} has no autoencoder (config.json and {STEMS['vae']}.safetensors); give the folder of a codec"
        )
    target.mkdir()
    for path in (folder / "config.json", *held.files):
        shutil.copyfile(path, target / path.name)


def write_schedule(folder: Path, prediction: Prediction, noise: NoiseSchedule, kind: str = "DDIMScheduler") -> None:
    """Write the config of a diffusers scheduler of this kind, with the settings of Stable Diffusion."""
    own: dict[str, Any] = {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
    if kind == "PNDMScheduler":
        own["skip_prk_steps"] = True
    (folder / "scheduler").mkdir()
    config = {"_class_name": kind, "prediction_type": prediction, **noise.options(), **own}
    write_json(folder / "scheduler" / "scheduler_config.json", config)


def write_index(folder: Path) -> None:
    """Write model_index.json for the parts in a folder."""
    kinds = {"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
    kinds["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")["_class_name"]
    if (folder / "vae").is_dir():
        kinds["vae"] = read_json(folder / "vae" / "config.json")["_class_name"]
    index: dict[str, Any] = {part: [None, None] for part in ("vae", "safety_checker", "feature_extractor")}
    index |= {part: [LIBRARIES.get(kind, "diffusers"), kind] for part, kind in kinds.items()}
    index |= {"_class_name": PIPELINE, "requires_safety_checker": False}
    write_json(folder / "model_index.json", index)


def save_lora(unet: nn.Module | None, folder: Path, text_encoder: nn.Module | None = None) -> Path:
    """Write the adapters of networks (of peft, named "default") as a LoRA file of diffusers. Return its path.

    `StableDiffusionPipeline.load_lora_weights(folder)` and `load_stable_diffusion(loras=...)` read it. Raises
    ValueError if no network has an adapter.
    """
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {}
    for part, network in (("unet", unet), ("text_encoder", text_encoder)):
        if network is not None and "default" in getattr(network, "peft_config", {}):
            adapter, settings = _adapter(part, network)
            tensors |= {f"{part}.{name}": value for name, value in adapter.items()}
            metadata |= {f"{part}.{name}": value for name, value in settings.items()}
    if not tensors:
        raise ValueError("no network has an adapter; add one with add_adapter first")
    path = Path(folder) / FILES[0]
    write_tensors(path, tensors, {METADATA: json.dumps(metadata, indent=2, sort_keys=True)})
    return path


def _adapter(part: str, network: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the adapter of a network by layer, and its settings as JSON types, without paths of this machine."""
    from peft import get_peft_model_state_dict

    settings = network.peft_config["default"].to_dict() | {"base_model_name_or_path": None}
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}
    wrap = "text_model." if part == "text_encoder" else ""
    held = {wrap + k.removeprefix(wrap): v for k, v in get_peft_model_state_dict(network).items()}
    return held, dict(json.loads(json.dumps(plain, default=str)))
