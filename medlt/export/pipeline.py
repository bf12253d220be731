"""A trained generator as a folder in diffusers' format.

Of a label UNet, stock diffusers loads every part by itself: `UNet2DModel.from_pretrained(OUT, subfolder="unet")`,
`AutoencoderKL` (subfolder "vae") and `DDIMScheduler` (subfolder "scheduler"). Stock diffusers has no class for the
label embedding, and no pipeline that calls a UNet2DModel with one. OUT/pipeline.py holds both, and needs no medlt.
diffusers runs that file only when it is trusted; read it first:

    pipeline = DiffusionPipeline.from_pretrained("OUT", custom_pipeline="OUT", trust_remote_code=True)
    images = pipeline({"Hernia": 1}, seeds=[0, 1])

Without diffusers' loader, `LabelPipeline.from_folder("OUT")` of that file does the same.

A run of Stable Diffusion that was trained as a whole is a StableDiffusionPipeline already; one trained with LoRA is a
file for `pipeline.load_lora_weights(OUT)`, to be used with its base model. Both are copied.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler

from medlt import config as configs
from medlt.export.parts import SOURCE, autoencoder, label_embedding, label_unet, sampling, scheduler_config
from medlt.export.provenance import NOTICE, write_provenance
from medlt.files import digest_file, write_json, write_text
from medlt.markdown_text import inline
from medlt.privacy.evidence import denoiser_files
from medlt.privacy.provenance import Provenance
from medlt.store import Artifact
from medlt.types import InputError

LABELS = """# diffusers runs pipeline.py of this folder only when it is trusted: read it first
pipeline = DiffusionPipeline.from_pretrained("OUT", custom_pipeline="OUT", trust_remote_code=True)
images = pipeline({{{finding}: 1}}, seeds=[0, 1], guidance_scale={scale}, guidance_interval={interval})
"""
WHOLE = """pipeline = StableDiffusionPipeline.from_pretrained("OUT")
"""
LORA = """pipeline = StableDiffusionPipeline.from_pretrained("the base model")
pipeline.load_lora_weights("OUT")
"""
SAMPLED = (
    "The run sampled with guidance_scale {guidance_scale} in the interval {guidance_interval} of the timesteps. "
    "This pipeline has no interval: it applies guidance_scale at all timesteps."
)


def export_diffusers(run: Path, out: Path) -> None:
    """Write the run's generator to the folder `out`. Raises InputError for a run without a generator of its own."""
    config = configs.load_config(run / "config.yaml")
    if isinstance(config.denoiser, configs.StableConfig):
        _copy_stable_diffusion(run, out, config.denoiser, SAMPLED.format(**sampling(config)))
        return
    trained, network = label_unet(run)
    record = write_provenance(run, out)
    vae = autoencoder(trained)
    scheduler = DDIMScheduler(**scheduler_config(network))
    network.unet.save_pretrained(out / "unet", safe_serialization=True)
    if vae is not None:
        vae.save_pretrained(out / "vae", safe_serialization=True)
    scheduler.save_pretrained(out / "scheduler")
    label_embedding(trained, network, record["run"]).save_pretrained(out / "label_embedding", safe_serialization=True)
    for place in (out / "pipeline.py", out / "label_embedding" / "label_embedding.py"):
        shutil.copyfile(SOURCE, place)  # diffusers takes the class of a part from a module in the part's own folder
    kinds = {"unet": "UNet2DModel", "scheduler": "DDIMScheduler"}
    index: dict[str, Any] = {name: ["diffusers", kind] for name, kind in kinds.items()}
    index["vae"] = [None, None] if vae is None else ["diffusers", type(vae).__name__]
    index |= {"_class_name": ["pipeline", "LabelPipeline"], "label_embedding": ["label_embedding", "LabelEmbedding"]}
    write_json(out / "model_index.json", index)
    chosen = sampling(trained.config)
    example = {"finding": json.dumps(trained.findings[0], ensure_ascii=False), "scale": chosen["guidance_scale"]}
    _write_readme(out, LABELS.format(**example, interval=chosen["guidance_interval"]), record)


def _copy_stable_diffusion(run: Path, out: Path, chosen: configs.StableConfig, sampled: str) -> None:
    """Copy RUN/denoiser, and write the words of its prompts beside it. Raises InputError for other bytes."""
    if chosen.train == "none" or not (run / "denoiser").is_dir():
        raise InputError(f"{run.absolute()}: trained no Stable Diffusion; use the checkpoint that its config names")
    made = Provenance(run).denoiser
    if not isinstance(made, Artifact):
        raise InputError(f"{run}: its trained denoiser is missing or damaged; restore the folder of artifacts")
    shutil.copytree(run / "denoiser", out, dirs_exist_ok=True)
    for name, source in denoiser_files(made).items():
        if not (out / name).is_file() or digest_file(out / name) != made.files[source]:
            file = run / "denoiser" / name
            raise InputError(f"{file}: is not what this run made; restore it, or run `medlt augment` for it again")
    write_json(out / "prompts.json", chosen.prompts.model_dump(mode="json"))
    _write_readme(out, WHOLE if chosen.train == "full" else LORA, write_provenance(run, out), sampled)


def _write_readme(out: Path, usage: str, record: Mapping[str, Any], sampled: str = "") -> None:
    """Write OUT/README.md: how to load the generator, how the run sampled, the notice, and the claim of its privacy."""
    title, code = "# A generator of synthetic radiographs", f"```python\n{usage}```"
    parts = (title, code, sampled, NOTICE, inline(record["privacy"]["sentence"]))
    write_text(out / "README.md", "\n\n".join(filter(None, parts)) + "\n")
