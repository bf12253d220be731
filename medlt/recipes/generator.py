"""The trained generator of a finished run, for export: denoiser, codec and standardisation of latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medlt import config as configs
from medlt.diffusion.cache import Standardiser
from medlt.diffusion.codec import AutoencoderCodec
from medlt.diffusion.families import load_label_network
from medlt.diffusion.labels import LabelNetwork
from medlt.recipes._codec import encode, make_codec
from medlt.recipes._cohort import filed_cohort
from medlt.recipes._setup import finished
from medlt.training.runtime import silent
from medlt.types import InputError, Progress


@dataclass(frozen=True)
class TrainedGenerator:
    """A label-conditional denoiser in the latent space of a codec. latent_size: height and width of its latents."""

    config: configs.RunConfig
    findings: tuple[str, ...]
    network: LabelNetwork
    codec: AutoencoderCodec
    standardiser: Standardiser
    latent_size: tuple[int, int]


def open_generator(folder: Path, progress: Progress = silent) -> TrainedGenerator:
    """Return the generator of a finished run. The standardisation needs the run's real images, or their cache.

    Raises InputError for a run that is not finished, for a Stable Diffusion (its RUN/denoiser already is a diffusers
    folder or a LoRA file), and for the codec of a plug-in.
    """
    run = finished(Path(folder), progress)
    if isinstance(run.config.denoiser, configs.StableConfig):
        raise InputError(f"{folder}: is a Stable Diffusion; {folder}/denoiser already has the format of diffusers")
    network = load_label_network(run.path("denoiser"))
    with run.runtime.limited():
        cohort = filed_cohort(run)
        codec = make_codec(run, cohort, None)
        if not isinstance(codec, AutoencoderCodec):
            raise InputError(f"{folder}: its codec is not a diffusers autoencoder, so it cannot be exported")
        latents = encode(run, cohort, codec)
    height, width = latents.cache.shape[-2:]
    return TrainedGenerator(run.config, cohort.findings, network, codec, latents.standardiser, (height, width))
