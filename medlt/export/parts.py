"""The parts of a trained generator in diffusers' terms, shared by the bundle and the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medlt import config as configs
from medlt.diffusion.backbone import EVERYWHERE
from medlt.diffusion.labels import LabelUNet
from medlt.diffusion.pixels import PixelCodec
from medlt.export.generator import LabelEmbedding
from medlt.recipes.generator import TrainedGenerator, open_generator
from medlt.types import InputError

SCHEDULER = {"clip_sample": False, "timestep_spacing": "trailing"}
"""Settings of a DDIMScheduler beside prediction type and noise levels: the steps of `medlt.diffusion.schedulers`."""
SOURCE = Path(__file__).with_name("generator.py")


def label_unet(run: Path) -> tuple[TrainedGenerator, LabelUNet]:
    """Return a run's generator and its UNet. Raises InputError for a denoiser that diffusers does not support."""
    trained = open_generator(run)
    if not isinstance(trained.network, LabelUNet):
        family = trained.network.family
        raise InputError(f"{run.absolute()}: its denoiser is a {family}, which diffusers does not support; use a unet")
    return trained, trained.network


def autoencoder(trained: TrainedGenerator) -> Any:
    """Return the diffusers autoencoder, None if the denoiser makes pixels."""
    return None if isinstance(trained.codec, PixelCodec) else trained.codec.network


def label_embedding(trained: TrainedGenerator, network: LabelUNet, run: str) -> LabelEmbedding:
    """Return the label embedding, with the mean and sd of the latents it was trained on. run: the run's id."""
    channels, width = trained.codec.channels, len(network.label.null)
    attributes = list(network.settings["attributes"])
    embedding: Any = LabelEmbedding(list(trained.findings), width, channels, trained.latent_size, run, attributes)
    state = dict(network.label.state_dict()) | {"mean": trained.standardiser.mean, "sd": trained.standardiser.sd}
    embedding.load_state_dict(state)
    made: LabelEmbedding = embedding.eval().requires_grad_(False)
    return made


def scheduler_config(network: LabelUNet) -> dict[str, Any]:
    """Return the settings of the DDIM scheduler that fits the network."""
    return {**SCHEDULER, **network.noise.options(), "prediction_type": network.settings["prediction"]}


def sampling(config: configs.RunConfig) -> dict[str, Any]:
    """Return scale and interval of the run's classifier-free guidance; a method of a plug-in may have neither."""
    low, high = getattr(config.method, "guidance_interval", EVERYWHERE)
    scale = getattr(config.method, "guidance_scale", 2.0)
    return {"guidance_scale": float(scale), "guidance_interval": [float(low), float(high)]}
