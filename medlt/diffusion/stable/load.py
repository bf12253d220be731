"""A Stable Diffusion 1.x or 2.x checkpoint, from a diffusers folder or a single file, offline and without pickle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from torch import Tensor

from medlt.diffusion.backbone import Backbone, Conditioner
from medlt.diffusion.noise import NoiseSchedule, Prediction
from medlt.diffusion.stable import files, network
from medlt.diffusion.stable.lora import Adapter, add_loras, validate_loras
from medlt.files import digest
from medlt.types import InputError

if TYPE_CHECKING:
    from medlt.diffusion.prompts import Prompts

CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
MOST_STEPS = 100_000  # of training; a table of noise levels is made of them
SHORTEST = 3  # tokens: start, a word, end
OTHER_INPUTS = {9: "an inpainting model", 5: "a depth-to-image model", 7: "an upscaler", 8: "an image-editing model"}
OTHER_SETTINGS = (
    "class_embed_type",
    "addition_embed_type",
    "encoder_hid_dim",
    "time_cond_proj_dim",
    "num_class_embeds",
)


@dataclass(frozen=True)
class StableDiffusion:
    """A loaded checkpoint: networks float32, in eval mode, frozen, with adapters fused into the weights.

    `files` maps every file that was read to its SHA-256, by its name in the checkpoint, with adapters as loras/0/NAME.
    `digest` is made of these and of the adapters' weights. `source` is the folder. A checkpoint from `validate_folder`
    has empty networks on the meta device, and neither hashes nor a digest.
    """

    unet: Any
    text_encoder: Any
    tokenizer: Any
    prediction: Prediction
    noise: NoiseSchedule
    source: Path
    files: dict[str, str] = field(default_factory=dict)
    digest: str = ""

    @property
    def channels(self) -> int:
        """Latent channels."""
        return int(self.unet.config.in_channels)

    def backbone(self, prompts: Prompts, text: Literal["frozen", "trained"] = "frozen") -> Backbone:
        """Return a backbone conditioned on `prompts` of labels, on latents of the codec.

        text: "frozen" makes conditions of embeddings [B,77,D], computed once; "trained" of token ids [B,77], which the
        network encodes.
        """
        from medlt.diffusion.stable.text import TextConditioner, TokenConditioner

        frozen = text == "frozen"
        condition: Conditioner = (
            TextConditioner(self.tokenizer, self.text_encoder, prompts)
            if frozen
            else TokenConditioner(self.tokenizer, prompts)
        )
        whole = network.StableNetwork(self.unet, None if frozen else self.text_encoder, self.tokenizer.eos_token_id)
        named = digest("stable diffusion", self.digest, condition.digest, text)
        return Backbone(whole, condition, self.prediction, self.channels, named, "codec", self.noise)


class HasChannels(Protocol):
    """Anything with latent channels: a codec, a Backbone, a StableDiffusion."""

    @property
    def channels(self) -> int:
        """Latent channels."""
        ...


def fits(model: HasChannels, codec: HasChannels) -> None:
    """Raise InputError unless model and codec have the same number of latent channels."""
    if model.channels != codec.channels:
        raise InputError(
            f"the model works on {model.channels} latent channels and the codec makes {codec.channels}; use the vae "
            "folder of the model as codec, or a codec for its latents"
        )


def load_stable_diffusion(
    path: Path, *, loras: Sequence[Adapter] = (), prediction: Prediction | None = None, config: Path | None = None
) -> StableDiffusion:
    """Load the checkpoint at `path`, a diffusers folder or a single .safetensors file (see single_file.as_folder).

    `loras` are adapter files or folders, each alone or with its weight. `prediction` is for single files, which do not
    record it; for a folder it must agree. `config` is a folder with the tokenizer, and possibly configs, for a single
    file. Raises InputError for files that are missing, broken, of another model, or not Stable Diffusion 1.x or 2.x.
    """
    from medlt.diffusion.stable.single_file import as_folder

    folder = as_folder(Path(path), prediction=prediction, config=config)
    model = validate_folder(folder, prediction=prediction, loras=loras)
    for part, net in (("unet", model.unet), ("text_encoder", model.text_encoder)):
        network.fill(net, _tensors(folder, part, network.read_all), folder / part)
    adapters = add_loras(model.unet, model.text_encoder, loras)
    read = files.hashes(folder, files.checkpoint_files(folder))
    named = digest("stable diffusion", read, [(a.sha256, a.weight) for a in adapters])
    known = read | {f"loras/{i}/{a.path.name}": a.sha256 for i, a in enumerate(adapters)}
    return replace(model, files=known, digest=named)


def validate_folder(
    folder: Path, *, prediction: Prediction | None = None, loras: Sequence[Adapter] = ()
) -> StableDiffusion:
    """Read a diffusers folder without its weights: configs, headers and tokenizer, in a second or two.

    Raises InputError as `load_stable_diffusion`, except for weights that are NaN or infinite.
    """
    require_family(folder)
    files.require(folder)
    recorded, noise = read_schedule(folder / "scheduler" / "scheduler_config.json")
    if prediction not in (None, recorded):
        raise InputError(
            f"{folder}/scheduler/scheduler_config.json has prediction_type {recorded}, but prediction is {prediction}; "
            "remove prediction, or correct the file if it is wrong"
        )
    unet, text_encoder = _empty(folder, "unet"), _empty(folder, "text_encoder")
    tokenizer = load_tokenizer(folder / "tokenizer", text_encoder.config)
    validate_loras(unet, text_encoder, loras)
    return StableDiffusion(unet, text_encoder, tokenizer, recorded, noise, folder)


def require_family(folder: Path) -> None:
    """Raise InputError unless the folder exists and its model_index.json is that of Stable Diffusion 1.x or 2.x."""
    if not folder.is_dir():
        raise InputError(f"checkpoint folder {folder} does not exist; give a diffusers folder or a .safetensors file")
    if not (folder / "model_index.json").is_file():
        files.require(folder)
    index = files.read_json(folder / "model_index.json")
    wrong = [f"{part} {_kind(index, part)}" for part, known in CLASSES.items() if _kind(index, part) not in known]
    wrong += [part for part in ("text_encoder_2", "transformer") if _kind(index, part)]
    if wrong:
        raise InputError(
            f"{folder} is a {index.get('_class_name', 'nameless model')} ({', '.join(wrong)}), which is not loaded; "
            "give a Stable Diffusion 1.x or 2.x folder (UNet2DConditionModel, CLIPTextModel, CLIPTokenizer)"
        )


def _kind(index: Mapping[str, Any], part: str) -> Any:
    """Return the class of a part in a model_index.json, the last of a list; None if there is none."""
    entry = index.get(part)
    return entry[-1] if isinstance(entry, list) and entry else None


def read_schedule(path: Path) -> tuple[Prediction, NoiseSchedule]:
    """Read the prediction type and noise schedule of a scheduler's config. Raises InputError for unsupported ones."""
    config = files.read_json(path)
    prediction, shape = config.get("prediction_type", "epsilon"), config.get("beta_schedule")
    if prediction not in get_args(Prediction):
        raise InputError(
            f"{path}: prediction_type {prediction!r}; only {', '.join(get_args(Prediction))} are supported"
        )
    if shape not in ("linear", "scaled_linear") or config.get("trained_betas") is not None:
        raise InputError(f"{path}: beta_schedule {shape!r}; only scaled_linear and linear are supported")
    zero = bool(config.get("rescale_betas_zero_snr"))
    if zero and prediction == "epsilon":
        raise InputError(
            f"{path}: prediction_type epsilon cannot start from pure noise; set rescale_betas_zero_snr to false"
        )
    try:
        ends = float(config["beta_start"]), float(config["beta_end"])
        noise = NoiseSchedule(shape, *ends, int(config.get("num_train_timesteps", 1000)), zero)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: beta_start, beta_end or num_train_timesteps is not a number ({error})") from None
    if not (0 < ends[0] <= ends[1] < 1 and 1 < noise.train_steps <= MOST_STEPS):
        raise InputError(
            f"{path}: betas from {ends[0]} to {ends[1]} in {noise.train_steps} steps are not a noise schedule"
        )
    return prediction, noise


def _empty(folder: Path, part: str) -> Any:
    """Return the UNet or text encoder of a folder without weights, after a check of the headers of the weights."""
    source = folder / part / "config.json"
    config = files.read_json(source)
    net = network.empty(part, config, source)
    if part == "unet":
        require_unet(dict(net.config), source, files.read_json(folder / "text_encoder" / "config.json"))
    network.check_tensors(net, _tensors(folder, part, network.outlined), folder / part)
    return net


def _tensors(folder: Path, part: str, read: Callable[[Iterable[Path]], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of a part under present names, read by `read`."""
    held = files.weights(folder / part, files.STEMS[part])
    assert held is not None  # files.require came before
    tensors = read(held.tensors)
    return network.plain_names(tensors) if part == "text_encoder" else tensors


def require_unet(config: Mapping[str, Any], where: Path, text: Mapping[str, Any]) -> None:
    """Raise InputError unless this UNet predicts from noisy latents and text of the text encoder's width."""
    inside, outside = config.get("in_channels", 4), config.get("out_channels", 4)
    if inside != outside:
        kind = OTHER_INPUTS.get(inside, "made for something else")
        raise InputError(
            f"{where}: {inside} channels in and {outside} out: this is {kind}; use the plain text-to-image checkpoint"
        )
    if other := [name for name in OTHER_SETTINGS if config.get(name) is not None]:
        raise InputError(f"{where}: {other[0]} is {config[other[0]]!r}, which Stable Diffusion 1.x and 2.x do not have")
    reads, width = config.get("cross_attention_dim", 1280), text.get("hidden_size", 512)
    if reads != width:
        raise InputError(
            f"{where}: cross_attention_dim is {reads} and the text encoder is {width} wide; "
            "unet and text_encoder come from different models: copy both from one checkpoint"
        )


def load_tokenizer(folder: Path, text: Any) -> Any:
    """Load the CLIPTokenizer of a folder. Raises InputError if it does not fit the config of the text encoder."""
    tokenizer = read_tokenizer(folder)
    known = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))
    if not 0.8 * text.vocab_size <= known <= text.vocab_size:
        raise InputError(
            f"{folder} has a vocabulary of {known} tokens, the text encoder one of {text.vocab_size}; "
            "copy tokenizer and text_encoder from one checkpoint"
        )
    tokenizer.model_max_length = int(min(tokenizer.model_max_length, text.max_position_embeddings))
    return tokenizer


def read_tokenizer(folder: Path) -> Any:
    """Load the CLIPTokenizer of a folder.

    Raises InputError if it is missing, broken, or without pad token, end token or length.
    """
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{folder} holds no CLIP tokenizer ({why[0]}); copy the folder again") from None
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise InputError(f"{folder} names no pad_token or eos_token (tokenizer_config.json); copy the folder again")
    length = tokenizer.model_max_length
    if not isinstance(length, int | float) or not length >= SHORTEST:
        raise InputError(f"{folder}: model_max_length is {length!r} (tokenizer_config.json); for CLIP it is 77")
    return tokenizer
