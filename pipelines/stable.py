"""Stable Diffusion in a run: loaded or made, fine-tuned, written out, and read back from what was written.

RUN/denoiser is what a user takes away: a LoRA file that goes with the base model, or a whole diffusers folder. What is
sampled is what it holds.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from medlt import config as configs
from medlt.diffusion.adapt import Full, How, Lora
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.cache import Latents
from medlt.diffusion.prompts import Prompts
from medlt.diffusion.stable.load import StableDiffusion, fits, load_stable_diffusion
from medlt.diffusion.stable.save import save_lora, save_stable_diffusion
from medlt.diffusion.stable.untrained import untrained
from medlt.files import write_json
from medlt.runs import Run
from pipelines import encoding, tuning
from pipelines.belonging import FILES, INDEX, own, put, require_free
from pipelines.door import all_fit, prompts
from pipelines.stages import Collection, Progress
from pipelines.tuning import Further, nothing


def load(chosen: configs.StableConfig, folder: Path, seed: int, channels: int, *more: Path) -> StableDiffusion:
    """The model the config names; an untrained one, of `channels` latent channels, is written below `folder` once."""
    model = chosen.model
    if isinstance(model, configs.StableFolder):
        loras = (*model.loras, *more)
        return load_stable_diffusion(model.path, loras=loras, prediction=model.prediction, config=model.config)
    place = folder / "untrained"
    if not place.is_dir():
        untrained(place, **model.model_dump(exclude={"kind"}), channels=channels, seed=seed)
    return load_stable_diffusion(place, loras=more)


def backbone(
    run: Run,
    real: Collection,
    latents: Latents,
    folder: Path,
    progress: Progress,
    further: Further = nothing,
) -> Backbone:
    """The model as the config wants it. Raises InputError where model, codec and prompts do not go together."""
    chosen = run.config.denoiser
    assert isinstance(chosen, configs.StableConfig)
    base = partial(load, chosen, folder, run.config.seed, latents.codec.channels)
    words = prompts(chosen, real.manifest.findings)
    home, place = run.path("denoiser"), folder / "fresh"
    found = chosen.train != "none" and (home / INDEX[chosen.train]).is_file()
    model = own(_read_back(chosen, home, base), folder, home) if found else base()
    fits(model, latents.codec)
    all_fit(model.tokenizer, words, real.train)
    if chosen.train == "none":
        write_json(folder / FILES, model.files)
    if found or chosen.train == "none":
        return model.backbone(words)
    require_free(home, chosen.train)
    _tuned(model, words, run, real, latents, folder, progress, further)
    _write(model, chosen, run, place)
    model = _read_back(chosen, place, base)
    write_json(folder / FILES, model.files)
    put(place, home, chosen.train)  # after its hashes: a model without them is another's
    return model.backbone(words)


def _read_back(chosen: configs.StableConfig, place: Path, base: Callable[..., StableDiffusion]) -> StableDiffusion:
    """What was trained, as it was written at `place`: a whole model, or an adapter on the base."""
    return load_stable_diffusion(place) if chosen.train == "full" else base(place)


def _how(chosen: configs.StableConfig) -> How:
    if chosen.train == "full":
        return Full(chosen.train_text)
    return Lora(chosen.rank, conv=chosen.lora_conv, text_encoder=chosen.train_text)


def _tuned(
    model: StableDiffusion, words: Prompts, run: Run, real: Collection, latents: Latents, folder: Path,
    progress: Progress, further: Further,
) -> None:  # fmt: skip
    """Train the model's networks in place."""
    chosen = run.config.denoiser
    assert isinstance(chosen, configs.StableConfig)
    own = model.backbone(words, "trained" if chosen.train_text else "frozen")
    tuning.train(own, run, real, latents, folder, _how(chosen), progress, further)


def _write(model: StableDiffusion, chosen: configs.StableConfig, run: Run, place: Path) -> None:
    """The adapter, or the whole folder with the codec as its vae, in place of what a killed run left there."""
    shutil.rmtree(place, ignore_errors=True)
    if chosen.train == "lora":
        save_lora(model.unet, place, model.text_encoder if chosen.train_text else None)
        return
    save_stable_diffusion(model, place, vae=encoding.codec_folder(run))
