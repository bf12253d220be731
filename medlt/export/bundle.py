"""A trained generator as a MONAI bundle (Model Application Package) that runs without medlt and without a network.

    cd OUT
    python -m monai.bundle run --config_file configs/inference.json --labels "{'Hernia': 1}" --count 4

The bundle holds configs/metadata.json, configs/inference.json, models/model.pt (a plain state dict, loaded with
weights_only), scripts/generator.py, docs/README.md, provenance.json and the run's cards. It needs torch, monai with
fire, diffusers and pillow. metadata.json and provenance.json carry the claim and the ledger of a private training.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medlt._version import __version__
from medlt.export.generator import WIDTHS, Generator
from medlt.export.parts import SOURCE, autoencoder, label_embedding, label_unet, sampling, scheduler_config
from medlt.export.provenance import NOTICE, write_provenance
from medlt.files import atomic, write_json, write_text
from medlt.markdown_text import inline
from medlt.recipes.generator import TrainedGenerator
from medlt.versions import versions

META = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
"""The schema that monai's own bundles name; it is not read."""


def export_bundle(run: Path, out: Path) -> None:
    """Write the run's generator as a bundle to the folder `out`. Raises InputError for a run without a label UNet."""
    trained, network = label_unet(run)
    record = write_provenance(run, out)
    embedding, vae = label_embedding(trained, network, record["run"]), autoencoder(trained)
    definition: dict[str, Any] = {
        "unet": _public(network.unet.config) | {"_class_name": "UNet2DModel"},
        "vae": None if vae is None else _public(vae.config) | {"_class_name": type(vae).__name__},
        "scheduler": scheduler_config(network),
        "label_embedding": _public(embedding.config),
    }
    generator = Generator(**definition)
    for name, part in (("unet", network.unet), ("vae", vae), ("label_embedding", embedding)):
        if part is not None:
            getattr(generator, name).load_state_dict(part.state_dict())
    with atomic(out / "models" / "model.pt") as temporary:
        torch.save(generator.state_dict(), temporary)
    (out / "scripts").mkdir()
    shutil.copyfile(SOURCE, out / "scripts" / "generator.py")
    write_text(out / "scripts" / "__init__.py", "")
    write_json(out / "configs" / "metadata.json", _metadata(trained, record))
    write_json(out / "configs" / "inference.json", _inference(trained, definition))
    write_text(out / "docs" / "README.md", _readme(trained, record))


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
        "run_id": definition["label_embedding"]["run"],
        "num_inference_steps": 50,
        **sampling(trained.config),
        "seeds": "$list(range(@seed, @seed + @count))",
        "network_def": {"_target_": "scripts.generator.Generator", **definition},
        "network": "$@network_def.to(@device)",
        "weights": "$torch.load(@bundle_root + '/models/model.pt', map_location=@device, weights_only=True)",
        "load": "$@network.load_state_dict(@weights)",
        "generate": "$@network.generate(@labels, @seeds, @num_inference_steps, @guidance_scale, @guidance_interval)",
        "run": ["$@load", "$save(@generate, @output_dir, @seeds, @run_id)"],
    }


def _example(trained: TrainedGenerator) -> str:
    """Return the finding of the examples."""
    return trained.findings[0]


def _metadata(trained: TrainedGenerator, record: Mapping[str, Any]) -> dict[str, Any]:
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
        "required_packages_version": {name: known[name] for name in ("diffusers", "pillow", "fire") if name in known},
        "name": "medlt generator",
        "task": "generation of synthetic radiographs under labels",
        "description": f"A latent diffusion model that makes {size} px radiographs with named findings.",
        "authors": "the authors of the run",
        "copyright": "see the licence of the images that the model was trained on",
        "data_type": "none: labels in, images out",
        "intended_use": "research on training data; not for diagnosis",
        "findings": list(trained.findings),
        "provenance": dict(record),
        "network_data_format": {"inputs": _inputs(trained), "outputs": {"image": shown}},
    }


def _inputs(trained: TrainedGenerator) -> dict[str, Any]:
    """Return what the network takes: label vectors, which may hold view, sex and age too, and unit noise."""
    common = {"modality": "n/a", "dtype": "float32", "is_patch_data": False}
    described = [f"{name} {i}" for name in trained.network.settings["attributes"] for i in range(WIDTHS[name])]
    channels = {str(number): name for number, name in enumerate((*trained.findings, *described))}
    labels = {"type": "labels", "format": "vector", "num_channels": len(channels), "spatial_shape": [],
              "value_range": [] if described else [0, 1], "channel_def": channels}  # fmt: skip
    noise = {"type": "noise", "format": "image", "num_channels": trained.codec.channels,
             "spatial_shape": list(trained.latent_size), "value_range": []}  # fmt: skip
    return {"labels": {**common, **labels}, "noise": {**common, **noise}}


def _readme(trained: TrainedGenerator, record: Mapping[str, Any]) -> str:
    labels = shlex.quote(json.dumps({_example(trained): 1}, ensure_ascii=False))
    command = "python -m monai.bundle run --config_file configs/inference.json"
    made_by = f" of run {record['run']}" if record["run"] else ""
    return (
        "# A generator of synthetic radiographs\n\n"
        f"It makes images of {trained.config.size} px under the labels {inline(', '.join(trained.findings))}.\n\n"
        f"```\n{command} --labels {labels} --count 4\n```\n\n"
        f"It writes PNG files to `eval/`. Their text chunks say that they are synthetic. {NOTICE}\n\n"
        f"## Privacy\n\nThe model{made_by} was trained by medlt {record['medlt']}. "
        f"{inline(record['privacy']['sentence'])}\n\nRead MODEL_CARD.md before you share it.\n"
    )
