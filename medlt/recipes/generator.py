"""The trained generator of a run, for export: denoiser, codec and standardisation of latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from medlt import config as configs
from medlt.diffusion.cache import Standardiser
from medlt.diffusion.codec import AutoencoderCodec
from medlt.diffusion.families import load_label_network
from medlt.diffusion.labels import LabelNetwork
from medlt.diffusion.pixels import PixelCodec
from medlt.files import REAL_ROWS
from medlt.recipes._codec import encode, make_codec
from medlt.recipes._cohort import filed_cohort
from medlt.recipes._privacy import PrivateTraining
from medlt.recipes._setup import RunFolder, runtime_of
from medlt.store import Store
from medlt.training.runtime import silent
from medlt.types import InputError, Progress


@dataclass(frozen=True)
class TrainedGenerator:
    """A label-conditional denoiser in the latent space of a codec. latent_size: height and width of its latents."""

    config: configs.RunConfig
    findings: tuple[str, ...]
    network: LabelNetwork
    codec: AutoencoderCodec | PixelCodec
    standardiser: Standardiser
    latent_size: tuple[int, int]


def open_generator(folder: Path, progress: Progress = silent) -> TrainedGenerator:
    """Return the trained generator of a run, on the CPU.

    It reads the run's real images, or their cache: the scale of latents is theirs. Raises InputError for a run without
    a trained denoiser, for one of Stable Diffusion (its RUN/denoiser is in diffusers' format already), and for a codec
    of a plug-in.
    """
    folder = Path(folder).absolute()
    run = _opened(folder, progress)
    if isinstance(run.config.denoiser, configs.StableConfig):
        raise InputError(f"{folder}: its denoiser is a Stable Diffusion; {folder}/denoiser is in diffusers' format")
    with run.runtime.limited():
        network = _denoiser(run)
        cohort = filed_cohort(run)
        private = None if run.config.privacy is None else PrivateTraining(run, cohort, kept=False)
        codec = make_codec(run, cohort, private)
        if not isinstance(codec, AutoencoderCodec | PixelCodec):
            raise InputError(f"{folder}: its codec is no diffusers autoencoder, so it cannot be exported")
        latents = encode(run, cohort, codec)
    recorded = run.summary().get("digests", {}).get("codec", codec.digest)
    if codec.digest != recorded:
        raise InputError(f"{folder}: the codec that the run used is not there; restore its artifacts")
    height, width = latents.cache.shape[-2:]
    return TrainedGenerator(run.config, cohort.findings, network, codec, latents.standardiser, (height, width))


def _opened(folder: Path, progress: Progress) -> RunFolder[configs.RunConfig]:
    """Open a run with a trained denoiser, read-only. Raises InputError for any other folder."""
    for name in ("config.yaml", str(REAL_ROWS)):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: has no {name}, so it is no run that trained a generator")
    config = configs.load_config(folder / "config.yaml").model_copy(update={"output_dir": folder, "device": "cpu"})
    store = Store(Path(config.artifacts_dir or folder / "artifacts"))
    if not isinstance(config.denoiser, configs.StableConfig):
        for kind in ("codec", "denoiser") if isinstance(config.codec, configs.TrainedCodec) else ("denoiser",):
            if not store.folders(kind):
                raise InputError(
                    f"{store.root.absolute()}: holds no trained {kind}; finish the run, or restore its artifacts"
                )
    return RunFolder(folder, config, runtime_of(config, progress), store, writable=False)


def _denoiser(run: RunFolder[configs.RunConfig]) -> LabelNetwork:
    """Return the trained network from verified files. Raises InputError if it is missing."""
    name = run.summary().get("denoiser", {}).get("artifact", "")
    artifact = run.store.open("denoiser", run.store.root / "denoiser" / name) if name else None
    network = load_label_network(artifact.folder if artifact is not None else run.path("denoiser"))
    return network.to(torch.float32)
