"""A trained generator as a MONAI bundle (Model Application Package) that runs without medlt and without a network.

    cd OUT
    python -m monai.bundle run --config_file configs/inference.json --labels "{'Hernia': 1}" --count 4

The bundle holds configs/metadata.json, configs/inference.json, models/model.pt (a plain state dict, loaded with
weights_only), scripts/generator.py and docs/README.md. It needs torch, monai and diffusers.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from medlt._version import __version__
from medlt.export.generator import Generator
from medlt.export.parts import SOURCE, guidance_scale, label_embedding, label_unet, scheduler_config
from medlt.files import atomic, write_json, write_text
from medlt.recipes.generator import TrainedGenerator
from medlt.versions import versions

META = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
"""The schema that monai's own bundles name; it is not read."""


def export_bundle(run: Path, out: Path) -> None:
    """Write the run's generator as a bundle to the folder `out`. Raises InputError for a run without a label UNet."""
    trained, network = label_unet(run)
    embedding = label_embedding(trained, network)
    definition: dict[str, Any] = {
        "unet": _public(network.unet.config) | {"_class_name": "UNet2DModel"},
        "vae": _public(trained.codec.network.config) | {"_class_name": type(trained.codec.network).__name__},
        "scheduler": scheduler_config(network),
        "label_embedding": _public(embedding.config),
    }
    generator = Generator(**definition)
    for name, part in (("unet", network.unet), ("vae", trained.codec.network), ("label_embedding", embedding)):
        getattr(generator, name).load_state_dict(part.state_dict())
    with atomic(out / "models" / "model.pt") as temporary:
        torch.save(generator.state_dict(), temporary)
    (out / "scripts").mkdir()
    shutil.copyfile(SOURCE, out / "scripts" / "generator.py")
    write_text(out / "scripts" / "__init__.py", "")
    write_json(out / "configs" / "metadata.json", _metadata(trained))
    write_json(out / "configs" / "inference.json", _inference(trained, definition))
    write_text(out / "docs" / "README.md", _readme(trained))


def _public(config: Any) -> dict[str, Any]:
    """A diffusers config without the keys that diffusers adds for itself."""
    return {name: value for name, value in dict(config).items() if not name.startswith("_")}


def _inference(trained: TrainedGenerator, definition: dict[str, Any]) -> dict[str, Any]:
    rare = _example(trained)
    return {
        "imports": ["$import torch", "$from scripts.generator import save"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "labels": {rare: 1},
        "count": 4,
        "seed": 0,
        "num_inference_steps": 50,
        "guidance_scale": guidance_scale(trained.config),
        "seeds": "$list(range(@seed, @seed + @count))",
        "network_def": {"_target_": "scripts.generator.Generator", **definition},
        "network": "$@network_def.to(@device)",
        "weights": "$torch.load(@bundle_root + '/models/model.pt', map_location=@device, weights_only=True)",
        "load": "$@network.load_state_dict(@weights)",
        "generate": "$@network.generate(@labels, @seeds, @num_inference_steps, @guidance_scale)",
        "run": ["$@load", "$save(@generate, @output_dir, @seeds)"],
    }


def _example(trained: TrainedGenerator) -> str:
    return trained.findings[0]


def _metadata(trained: TrainedGenerator) -> dict[str, Any]:
    known, size = versions(), trained.config.size
    shown = {"type": "image", "format": "magnitude", "modality": "XR", "num_channels": 1,
             "spatial_shape": [size, size], "dtype": "float32", "value_range": [0, 1],
             "is_patch_data": False, "channel_def": {"0": "image"}}  # fmt: skip
    return {
        "schema": META,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by medlt {__version__}"},
        "monai_version": known.get("monai", ""),
        "pytorch_version": known.get("torch", ""),
        "numpy_version": known.get("numpy", ""),
        "required_packages_version": {"diffusers": known.get("diffusers", "")},
        "name": "medlt generator",
        "task": "generation of synthetic radiographs under labels",
        "description": f"A latent diffusion model that makes {size} px radiographs with named findings.",
        "authors": "the authors of the run",
        "copyright": "see the licence of the images that the model was trained on",
        "data_type": "none: labels in, images out",
        "intended_use": "research on training data; not for diagnosis",
        "findings": list(trained.findings),
        "network_data_format": {"inputs": {}, "outputs": {"image": shown}},
    }


def _readme(trained: TrainedGenerator) -> str:
    rare = _example(trained)
    command = (
        f"""python -m monai.bundle run --config_file configs/inference.json --labels "{{'{rare}': 1}}" --count 4"""
    )
    return (
        "# A generator of synthetic radiographs\n\n"
        f"It makes images of {trained.config.size} px under the labels {', '.join(trained.findings)}.\n\n"
        f"```\n{command}\n```\n\nImages are written to `eval/`. They are synthetic; do not use them for diagnosis.\n\n"
        "The model was trained on images of patients. Read the run's MODEL_CARD.md and audit.json before it is shared.\n"
    )
