"""A Stable Diffusion model or its adapter as files that diffusers opens too; equal weights give equal bytes."""

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

    The tokenizer's files are copied from `model.source`. Raises InputError: the folder exists, or a part to copy is
    not there; ValueError where the weights still carry an adapter (fuse it, or use `save_lora`).
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
    """Return the config and weights of networks, each in its own folder; text encoders under the names of published ones."""
    for part, network in networks.items():
        tensors = dict(network.state_dict())
        if any(".lora_" in name or ".base_layer." in name for name in tensors):
            raise ValueError(f"the {part} still carries an adapter; fuse it first, or write it with save_lora")
        if part == "text_encoder":
            tensors = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in tensors.items()}
        config = network.config.to_dict() if hasattr(network.config, "to_dict") else dict(network.config)
        named = {} if config.get("architectures") else {"_class_name": type(network).__name__}
        public = named | {k: v for k, v in config.items() if not k.startswith("_")}
        (folder / part).mkdir()
        write_json(folder / part / "config.json", public)
        write_tensors(folder / part / f"{STEMS[part]}.safetensors", tensors, {"format": "pt"})


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer's files from its own folder or a checkpoint's. Raises InputError where there is none.

    They are copied, not written anew: transformers 5 writes no vocab.json and merges.txt, which other readers need.
    """
    folder = tokenizer_folder(source)
    target.mkdir()
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)


def tokenizer_folder(source: Path) -> Path:
    """Where the tokenizer's files of a checkpoint lie: `source` or its folder `tokenizer`. Raises InputError."""
    folder = source / "tokenizer" if (source / "tokenizer").is_dir() else source
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise InputError(f"{folder} holds no tokenizer (vocab.json and merges.txt); copy it there from a checkpoint")
    return folder


def copy_vae(source: Path, target: Path) -> None:
    """Copy config and weights of an autoencoder. Raises InputError where they are not."""
    folder = source / "vae" if (source / "model_index.json").is_file() else source
    held = weights(folder, STEMS["vae"])
    if held is None or not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no autoencoder (config.json and {STEMS['vae']}.safetensors)")
    target.mkdir()
    for path in (folder / "config.json", *held.files):
        shutil.copyfile(path, target / path.name)


def write_schedule(folder: Path, prediction: Prediction, noise: NoiseSchedule, kind: str = "DDIMScheduler") -> None:
    """Return the scheduler's config with Stable Diffusion's own settings, as a diffusers scheduler of this kind reads
    it.
    """
    own: dict[str, Any] = {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
    if kind == "PNDMScheduler":
        own["skip_prk_steps"] = True
    (folder / "scheduler").mkdir()
    told = {"_class_name": kind, "prediction_type": prediction, **noise.options(), **own}
    write_json(folder / "scheduler" / "scheduler_config.json", told)


def write_index(folder: Path) -> None:
    """Return model_index.json of the parts that lie in a folder."""
    kinds = {"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
    kinds["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")["_class_name"]
    if (folder / "vae").is_dir():
        kinds["vae"] = read_json(folder / "vae" / "config.json")["_class_name"]
    index: dict[str, Any] = {part: [None, None] for part in ("vae", "safety_checker", "feature_extractor")}
    index |= {part: [LIBRARIES.get(kind, "diffusers"), kind] for part, kind in kinds.items()}
    index |= {"_class_name": PIPELINE, "requires_safety_checker": False}
    write_json(folder / "model_index.json", index)


def save_lora(unet: nn.Module | None, folder: Path, text_encoder: nn.Module | None = None) -> Path:
    """Write the networks' adapters (peft's, named "default") as diffusers' LoRA file; returns its path.

    `StableDiffusionPipeline.load_lora_weights(folder)` and `load_stable_diffusion(loras=...)` read it. Raises
    ValueError where no network carries an adapter.
    """
    tensors: dict[str, Tensor] = {}
    told: dict[str, Any] = {}
    for part, network in (("unet", unet), ("text_encoder", text_encoder)):
        if network is not None and "default" in getattr(network, "peft_config", {}):
            held, said = _adapter(part, network)
            tensors |= {f"{part}.{name}": value for name, value in held.items()}
            told |= {f"{part}.{name}": value for name, value in said.items()}
    if not tensors:
        raise ValueError("no network carries an adapter; add one with add_adapter first")
    path = Path(folder) / FILES[0]
    write_tensors(path, tensors, {METADATA: json.dumps(told, indent=2, sort_keys=True)})
    return path


def _adapter(part: str, network: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a network's adapter by layer, and its settings in JSON's terms: sets sorted, no path of this machine."""
    from peft import get_peft_model_state_dict

    settings = network.peft_config["default"].to_dict() | {"base_model_name_or_path": None}
    said = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}
    wrap = "text_model." if part == "text_encoder" else ""
    held = {wrap + k.removeprefix(wrap): v for k, v in get_peft_model_state_dict(network).items()}
    return held, dict(json.loads(json.dumps(said, default=str)))
