"""What can be seen to be wrong with a run before anything is learnt or written."""

from __future__ import annotations

from medlt import config as configs
from medlt.diffusion.codec import load_codec
from medlt.diffusion.loop import Training
from medlt.diffusion.prompts import Prompts
from medlt.types import InputError

TRAINING = ("steps", "learning_rate", "batch", "schedule", "warmup_steps", "ema", "accumulate", "precision",
            "checkpointing", "checkpoint_every")  # fmt: skip


def look(config: configs.RunConfig, findings: tuple[str, ...]) -> None:
    """Raises InputError, one line, for a device, codec, model, prompts or training that cannot work."""
    if config.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError("device: cuda, but torch sees no such device here; write device: cpu, or mend the driver")
    if isinstance(config.codec, configs.FolderCodec):
        load_codec(config.codec.path)
    training(config.denoiser).parts(0, 1)
    if isinstance(config.denoiser, configs.StableConfig):
        prompts(config.denoiser, findings)
        _model(config.denoiser)


def training(chosen: configs.Training) -> Training:
    """How the config wants the denoiser trained."""
    return Training(**chosen.model_dump(include=set(TRAINING)))


def prompts(chosen: configs.StableConfig, findings: tuple[str, ...]) -> Prompts:
    """How the run's labels are said."""
    return Prompts(findings, **chosen.prompts.model_dump(exclude_none=True))


def _model(chosen: configs.StableConfig) -> None:
    """A folder holds all that is needed; a single file is there."""
    from medlt.diffusion.stable.files import require
    from medlt.diffusion.stable.load import require_family

    if isinstance(chosen.model, configs.StableFolder) and not chosen.model.path.is_file():
        require_family(chosen.model.path)
        require(chosen.model.path)
