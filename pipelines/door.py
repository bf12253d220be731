"""What can be seen to be wrong with a run before anything is learnt or written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medlt import config as configs
from medlt.data.manifest import Manifest
from medlt.diffusion.backbone import About
from medlt.diffusion.codec import AutoencoderCodec, load_codec
from medlt.diffusion.finetune import Objective
from medlt.diffusion.loop import Training
from medlt.diffusion.prompts import Prompts
from medlt.types import InputError
from pipelines import windows

if TYPE_CHECKING:
    from medlt.diffusion.stable.load import HasChannels

ABOUT = ("view", "sex", "age")
TRAINING = ("steps", "learning_rate", "batch", "schedule", "warmup_steps", "ema", "accumulate", "precision",
            "checkpointing", "checkpoint_every")  # fmt: skip


def look(config: configs.RunConfig, train: Manifest, held: int) -> None:
    """Raises InputError, one line, for a device, codec, model, prompts, training or folds that cannot work.

    `held` is the number of validation images.
    """
    if not held and any(one.weight for one in config.method.guides):
        raise InputError("no image has split val, on which what guides is chosen; give some, or method.guides: []")
    if (patients := train.rows["patient_id"].nunique()) < config.checks.folds:
        raise InputError(f"{patients} train patients cannot make {config.checks.folds} folds; lower checks.folds")
    codec = load_codec(config.codec.path) if isinstance(config.codec, configs.FolderCodec) else config.codec
    _size(config, codec)
    trained = training(config.denoiser)
    trained.parts(0, 1)
    objective(config.denoiser)
    if trained.precision == "fp16" and config.device == "cpu":
        raise InputError("denoiser.precision: fp16 needs a GPU; use bf16 or fp32 on a CPU")
    windows.look(config)
    if isinstance(config.denoiser, configs.StableConfig):
        words, tokenizer = prompts(config.denoiser, train.findings), _tokenizer(config.denoiser.model, codec)
        if tokenizer is not None:
            all_fit(tokenizer, words, train)


def _size(config: configs.RunConfig, codec: AutoencoderCodec | configs.TrainedCodec) -> None:
    """Images make whole latents, and latents make whole pieces for the denoiser: halvings of a UNet, or patches."""
    factor = 2 ** (codec.levels - 1) if isinstance(codec, configs.TrainedCodec) else codec.factor
    chosen, piece = config.denoiser, 1
    if isinstance(chosen, configs.UNetConfig):
        piece = 2 ** (chosen.levels - 1)
    elif isinstance(chosen, configs.TransformerConfig):
        piece = chosen.patch
    if config.size % (factor * piece):
        raise InputError(
            f"size: {config.size} px, the codec shrinks by {factor}, and the denoiser works on pieces of {piece}; "
            f"give a multiple of {factor * piece}, or fewer denoiser.levels"
        )


def training(chosen: configs.Training) -> Training:
    """How the config wants the denoiser trained."""
    return Training(**chosen.model_dump(include=set(TRAINING)))


def objective(chosen: configs.Training) -> Objective:
    """What each step of that training minimises."""
    return Objective(chosen.drop_condition, chosen.offset_noise, chosen.snr_floor, chosen.min_snr, chosen.balance)


def prompts(chosen: configs.StableConfig, findings: tuple[str, ...]) -> Prompts:
    """How the run's labels are said. Raises InputError if they are not."""
    said = Prompts(findings, **chosen.prompts.model_dump(exclude_none=True))
    if "{findings}" not in said.template:
        raise InputError(f"prompts.template {said.template!r} says no {{findings}}: all images would be told the same")
    return said


def about(part: Manifest) -> list[About]:
    """What a manifest's rows tell of view, sex and age."""
    known = part.rows[[name for name in ABOUT if name in part.rows]]
    return [dict(row) for row in known.to_dict("records")]


def all_fit(tokenizer: Any, words: Prompts, train: Manifest) -> None:
    """Raises InputError if the prompt of any train row is longer than the tokenizer takes."""
    import torch

    from medlt.diffusion.stable.text import TokenConditioner

    TokenConditioner(tokenizer, words)(torch.from_numpy(train.labels()), about(train))


def _tokenizer(chosen: configs.StableFolder | configs.StableUntrained, codec: HasChannels) -> Any:
    """The checkpoint's tokenizer, None where it is not there yet; its configs and headers, and those of adapters, are
    right. No weight is read."""
    from medlt.diffusion.stable.load import fits, look_at, read_tokenizer
    from medlt.diffusion.stable.save import tokenizer_folder
    from medlt.diffusion.stable.single_file import as_folder, look_at_file
    from medlt.diffusion.stable.untrained import require_widths

    if isinstance(chosen, configs.StableUntrained):
        require_widths(chosen.widths)
        return None if chosen.tokenizer is None else read_tokenizer(tokenizer_folder(chosen.tokenizer))
    if chosen.path.is_file():
        look_at_file(chosen.path, chosen.config)
        return None
    folder = as_folder(chosen.path, config=chosen.config)
    fits(model := look_at(folder, prediction=chosen.prediction, loras=chosen.loras), codec)
    return model.tokenizer
