"""Checks of a config and of its rows that run before anything is trained or written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from medlt import config as configs
from medlt.classify.networks import FOLDER
from medlt.classify.pretrained import require_size
from medlt.classify.settings import ClassifierSettings
from medlt.data.manifest import Manifest
from medlt.diffusion.codec import AutoencoderCodec, load_codec
from medlt.diffusion.finetune import Objective
from medlt.diffusion.guidance import guided_levels
from medlt.diffusion.noise import NoiseSchedule
from medlt.diffusion.prompts import Prompts
from medlt.diffusion.sampler import from_noise, last_steps
from medlt.diffusion.schedulers import evaluations, factory
from medlt.recipes._codec import require_factor
from medlt.recipes._cohort import RealRows, about
from medlt.training.settings import Training
from medlt.types import InputError

if TYPE_CHECKING:
    from medlt.diffusion.stable.load import HasChannels

TRAINING = {"steps", "learning_rate", "batch_size", "lr_scheduler", "warmup_steps", "ema_decay", "ema_warmup",
            "checkpoint_every", "gradient_accumulation_steps", "gradient_checkpointing"}  # fmt: skip

MAPPED = ("best", "image_prior", "image")
"""Stages of `method.localise.order` that read activation maps of image classifiers."""
OBJECTIVE = {"condition_dropout", "offset_noise", "snr_floor", "min_snr_gamma", "balance", "weighting_scheme"}


def training(chosen: configs.DenoiserTraining) -> Training:
    """Return the training settings of the denoiser."""
    return Training(**chosen.model_dump(include=TRAINING))


def objective(chosen: configs.DenoiserTraining) -> Objective:
    """Return the objective that each training step of the denoiser minimises."""
    return Objective(
        **chosen.model_dump(include=OBJECTIVE),
        attribute_dropout=chosen.attribute_dropout if isinstance(chosen, configs.SmallDenoiser) else 0.0,
    )


def check_config(config: configs.RunConfig) -> None:
    """Raise InputError, in one line, for a codec, denoiser, precision, training or guidance that cannot work."""
    _check_codec(config, _given_codec(config))
    training(config.denoiser).parts(0, 1)
    objective(config.denoiser)
    if config.denoiser.precision == "fp16" and config.device == "cpu":
        raise InputError("denoiser.precision: fp16 needs a GPU; use bf16 or fp32 on a CPU")
    check_guides(config)
    _check_networks(config)
    check_classifiers(config)


def check_classifiers(config: configs.RunConfig | configs.EvaluateConfig) -> None:
    """Raise InputError for pretrained weights that do not fit their network, or a size that the network cannot take."""
    for name in ("classifier", "guidance_classifier", "evaluation_classifier"):
        chosen = getattr(config, name, None)
        if chosen is None or chosen.weights is None:
            continue
        try:
            settings = ClassifierSettings(**chosen.model_dump(exclude={"size"}))
            require_size(chosen.network, settings.pretrained, chosen.size)
        except InputError as error:
            raise InputError(str(error).replace("classifier.", f"{name}.", 1)) from None


def classifier_identity(chosen: configs.ClassifierConfig) -> dict[str, Any]:
    """Return the settings that identify a classifier: of its weights the contents, not the path."""
    return {**ClassifierSettings(**chosen.model_dump(exclude={"size"})).identity(), "size": chosen.size}


def _check_networks(config: configs.RunConfig) -> None:
    """Raise InputError for maps of classifiers that have none, and for private verifiers with pretrained weights."""
    chosen, order = config.classifier, getattr(getattr(config.method, "localise", None), "order", ())
    trained = config.privacy is not None and (config.privacy.classifier or not config.data_independent)
    if trained and chosen.weights is not None:
        raise InputError(
            "privacy: classifier.weights cannot be trained privately, since batch norm would join patients; use a "
            "network without weights, or remove privacy"
        )
    if chosen.network == FOLDER and (mapped := [name for name in order if name in MAPPED]):
        rest = ", ".join(name for name in order if name not in MAPPED)
        raise InputError(
            f"method.localise.order: {mapped[0]} needs activation maps, which network folder does not have; write "
            f"order: [{rest}], or choose classifier.network: resnet50"
        )


def check_rows(config: configs.RunConfig, rows: RealRows) -> None:
    """Raise InputError if the rows are too few for the folds, the guidance or the prompts. No image is read.

    A data-independent run starts whatever its rows are.
    """
    train, free = rows.train, config.data_independent
    if not free and not len(rows.val.rows) and any(one.weight for one in guidance_of(config.method)):
        raise InputError("no image has split val, which guidance is chosen on; add some, or write method.guidance: []")
    if not free and (count := train.rows["patient_id"].nunique()) < config.checks.folds:
        raise InputError(f"{count} train patients are too few for {config.checks.folds} folds; lower checks.folds")
    if isinstance(config.denoiser, configs.StableConfig):
        codec = _given_codec(config) or config.codec
        assert isinstance(codec, AutoencoderCodec | configs.TrainedCodec)  # check_config refuses others
        words, tokenizer = prompts(config.denoiser, train.findings), _tokenizer(config.denoiser.model, codec)
        if tokenizer is not None:
            check_prompts(tokenizer, words, None if config.privacy is not None else train)


def check_shortfall(cohort: RealRows) -> None:
    """Raise InputError if no tail finding lacks images."""
    if not cohort.shortfall():
        targets = cohort.targets
        wanted = f"{targets.multiplier} times its" if targets.multiplier else f"{targets.count}"
        raise InputError(f"no tail finding has fewer than {wanted} train positives: nothing to fill; change targets")


def guidance_of(method: configs.MethodConfig) -> tuple[configs.GuideConfig, ...]:
    """Return the guidance of a method besides the label; a plug-in's method may have none."""
    return tuple(getattr(method, "guidance", ()))


def check_guides(config: configs.RunConfig) -> None:
    """Raise InputError for guidance that no sampling step uses, or for a start that the scheduler does not support."""
    method = config.method
    if not isinstance(method, configs.Sampling | configs.Edit | configs.Fusion | configs.Recompose):
        return  # a plug-in's
    own = isinstance(chosen := config.denoiser, configs.SmallDenoiser) and chosen.rescale_betas_zero_snr
    noise = NoiseSchedule(zero_terminal=own)  # that of a checkpoint is not read yet
    scheduler = factory(method.scheduler, method.num_inference_steps, noise)()
    for timesteps in _timesteps(method, scheduler):
        for one in method.guidance:
            if one.weight:
                guided_levels(timesteps, one.every, one.window, noise.train_steps, one.kind)


def _timesteps(
    method: configs.Sampling | configs.Edit | configs.Fusion | configs.Recompose, scheduler: Any
) -> list[Sequence[float]]:
    """Return the timesteps that the method runs, a list for each of its strengths."""
    if isinstance(method, configs.Fusion | configs.Recompose):
        return [evaluations(scheduler, last_steps(method.strength, method.num_inference_steps))]
    if isinstance(method, configs.Edit):
        return [evaluations(scheduler, last_steps(one, method.num_inference_steps)) for one in method.strength]
    return [from_noise(torch.zeros(1, 1, 1, 1), scheduler, method.initial_noise_scale, method.skip_steps).timesteps]


def _given_codec(config: configs.RunConfig) -> AutoencoderCodec | None:
    """Return the codec of a diffusers folder; None for one that the run trains or a plug-in builds."""
    return load_codec(config.codec.path, "cpu") if isinstance(config.codec, configs.FolderCodec) else None


def _check_codec(config: configs.RunConfig, given: AutoencoderCodec | None) -> None:
    """Raise InputError if the codec does not fit the image size, the denoiser, the guidance or the privacy."""
    chosen = config.codec
    if isinstance(chosen, configs.TrainedCodec):
        require_factor(config, 2 ** (chosen.levels - 1))
        if config.privacy is not None and (chosen.perceptual_weight or chosen.lesion_weight):
            raise InputError(
                "privacy: codec.perceptual_weight and codec.lesion_weight need a classifier or masks of patients that "
                "no budget covers; set both to 0, or remove privacy"
            )
    elif given is not None:
        require_factor(config, given.factor)
    elif isinstance(chosen, configs.PixelsConfig):
        require_factor(config, chosen.patch)
    elif any(one.kind == "longtail" and one.weight for one in guidance_of(config.method)):
        raise InputError("Longtail Guidance needs a codec with gradients; use codec.kind: folder, train or identity")
    own = isinstance(chosen, configs.TrainedCodec | configs.FolderCodec)
    if isinstance(config.denoiser, configs.StableConfig) and not own:
        raise InputError("denoiser.kind stable-diffusion needs its own autoencoder; use codec.kind: folder")


def prompts(chosen: configs.StableConfig, findings: tuple[str, ...]) -> Prompts:
    """Return the prompts of the run's labels. Raises InputError if the template has no place for the findings."""
    words = Prompts(findings, **chosen.prompts.model_dump(exclude_none=True))
    if "{findings}" not in words.template:
        raise InputError(f"prompts.template {words.template!r} has no {{findings}}, so all images would get one prompt")
    return words


def check_prompts(tokenizer: Any, words: Prompts, train: Manifest | None) -> None:
    """Raise InputError if the prompt of a train row is longer than the tokenizer accepts.

    None stands for any rows, for a private run, which may not depend on one of them: the longest prompts are checked.
    """
    from medlt.diffusion.stable.text import TokenConditioner

    conditioner = TokenConditioner(tokenizer, words)
    if train is not None:
        conditioner(torch.from_numpy(train.labels()), about(train))
        return
    long = sorted(words.findings, key=lambda name: -len(words.phrase(name)))[: words.most]
    named = torch.tensor([[float(name in long) for name in words.findings], [0.0] * len(words.findings)])
    conditioner(named, [{"view": "LATERAL", "sex": "F", "age": 95}] * 2)


def _tokenizer(chosen: configs.StableFolder | configs.StableUntrained, codec: HasChannels) -> Any:
    """Return the tokenizer of the checkpoint, None if it does not exist yet.

    Raises InputError if the configs and file headers of checkpoint and adapters do not fit. No weight is read.
    """
    from medlt.diffusion.stable.load import fits, read_tokenizer, validate_folder
    from medlt.diffusion.stable.save import tokenizer_folder
    from medlt.diffusion.stable.single_file import as_folder, validate_file
    from medlt.diffusion.stable.untrained import require_widths

    if isinstance(chosen, configs.StableUntrained):
        require_widths(chosen.widths)
        return None if chosen.tokenizer is None else read_tokenizer(tokenizer_folder(chosen.tokenizer))
    if chosen.path.is_file():
        validate_file(chosen.path, chosen.config)
        return None
    folder = as_folder(chosen.path, config=chosen.config)
    fits(model := validate_folder(folder, prediction=chosen.prediction, loras=chosen.loras), codec)
    return model.tokenizer
