"""Vision models of Hugging Face as bodies of classifiers, from a folder on this machine: no network, no remote code.

A folder has config.json, preprocessor_config.json, and model.safetensors or its shards. The input is standardised by
image_mean and image_std of the second file. The features [B,D] are, by this rule, recorded as `pooled`:

| pooled | features | such as |
|---|---|---|
| pooler | the model's pooler_output, if the folder has its weights | Dinov2, Swin, ConvNeXt, ResNet |
| class_token | the first token of last_hidden_state, where the model has a class token | ViT saved with a classifier |
| mean | the mean of last_hidden_state over its positions | models without both |

Position embeddings are interpolated where the model can do it. The size must be a multiple of `patch_size`, since
pixels beyond the last whole patch would be ignored. The first pass of a model is made on the meta device, without
weights, so that a size it cannot take is an error before any training.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from medlt.files import digest, digest_unchanged
from medlt.types import InputError

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
HEADS = ("classifier", "cls_classifier", "distillation_classifier", "head", "fc", "decoder", "lm_head")
"""First parts of the names of tensors that come after the features, and are not used."""
CLASS_TOKENS = ("cls_token", "class_embedding")
UNREAD = ("_name_or_path", "auto_map", "torch_dtype", "dtype")


class VisionModel(nn.Module):
    """A model of Hugging Face, images [B,C,S,S] -> features [B,D]. Its architecture is that of `spec`."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        self.pooled = str(spec["pooled"])
        self.model = _without_pooler(_model(spec["config"]), self.pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Return features."""
        return _features(_output(self.model, images), self.pooled)


def _output(model: Any, images: Tensor) -> Any:
    """Return the output of a model, with interpolated position embeddings where it offers them."""
    offers = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    return model(pixel_values=images, **({"interpolate_pos_encoding": True} if offers else {}))


def _features(output: Any, pooled: str) -> Tensor:
    """Return features [B,D] of an output, by rule."""
    if pooled == "pooler":
        features: Tensor = output.pooler_output.flatten(1)
        return features
    last: Tensor = output.last_hidden_state
    if last.ndim == 4:
        return last.mean((2, 3))
    return last[:, 0] if pooled == "class_token" else last.mean(1)


def _without_pooler(model: Any, pooled: str) -> Any:
    """Remove, in place, a pooler that the rule does not use and whose weights would be random."""
    if pooled != "pooler" and getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def read_folder(folder: Path) -> dict[str, Any]:
    """Return the spec of a folder: mean, deviation, digest, config, pooled and width.

    Raises InputError for a missing file, weights that are not safetensors, an unknown model, one that needs text or
    masks its input at random, and a tensor that is missing, surplus or of another shape.
    """
    if not folder.is_dir():
        raise InputError(f"classifier.weights: {folder} is no folder; give that of a Hugging Face model")
    files = _weight_files(folder)
    config, scale = _json(folder, CONFIG), _scale(folder)
    parts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return dict(_spec(folder, tuple(parts), json.dumps(config, sort_keys=True), json.dumps(scale)))


@lru_cache(maxsize=8)
def _spec(folder: Path, parts: Sequence[tuple[str, int, int]], config_text: str, scale_text: str) -> dict[str, Any]:
    """Return the spec; an unchanged folder is read once."""
    config, scale = json.loads(config_text), json.loads(scale_text)
    config = {name: value for name, value in config.items() if name not in UNREAD}
    spec: dict[str, Any] = {**scale, "config": config}
    with torch.device("meta"):
        model = _built(folder, config)
    _require_channels(folder, model, len(scale["mean"]))
    output = _meta_output(folder, model, _own_size(model))
    spec["pooled"] = _pooled(folder, getattr(output, "pooler_output", None) is not None)
    spec["width"] = _features(output, spec["pooled"]).shape[1]
    weights = [digest_unchanged(folder / name) for name, *_ in parts]
    spec["digest"] = digest("backbone", weights, config, scale)
    return spec


def require_folder_size(spec: Mapping[str, Any], size: int, folder: Path) -> None:
    """Raise InputError for a size of images that a folder's model cannot take."""
    patch = spec["config"].get("patch_size", 1)
    patch = patch if isinstance(patch, int) else 1
    if size % patch:
        near = [one for one in (size // patch * patch, (size // patch + 1) * patch) if one]
        raise InputError(
            f"classifier.size: {size} is no multiple of {patch}, the patch of {folder}; write "
            f"{' or '.join(map(str, near))}"
        )
    with torch.device("meta"):
        _meta_output(folder, _model(spec["config"]), size)


def load_model(body: nn.Module, folder: Path) -> None:
    """Load the weights of a folder into a VisionModel, in place."""
    assert isinstance(body, VisionModel)
    body.model.load_state_dict(_without_pooler(_loaded(folder)[0], body.pooled).state_dict())


def _loaded(folder: Path) -> tuple[Any, Mapping[str, Any]]:
    """Return the model of a folder, and what loading it reports. Names of older releases are those of the file."""
    from transformers import AutoModel

    options = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    try:
        with _quiet():
            model, report = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(
            f"classifier.weights: {folder} cannot be loaded ({reason}); get the whole model again"
        ) from None
    return model, report


def _model(config: Mapping[str, Any]) -> Any:
    """Return a fresh model of a config."""
    from transformers import AutoConfig, AutoModel

    known = AutoConfig.for_model(**config)
    return AutoModel.from_config(known, trust_remote_code=False)


def _built(folder: Path, config: Mapping[str, Any]) -> Any:
    """Return a fresh model. Raises InputError for one that is unknown, or that reads more than images."""
    if "model_type" not in config:
        raise InputError(
            f"classifier.weights: {folder}/{CONFIG} names no model_type, so it is no model of transformers; for timm's "
            f"resnet50 or densenet121 give {WEIGHTS} itself, with that network"
        )
    kind = config["model_type"]
    try:
        model = _model(config)
    except (ValueError, TypeError, KeyError, ImportError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        problem = f"transformers cannot build {kind!r} ({reason})"
        raise InputError(f"classifier.weights: {folder}: {problem}; give the folder of a vision model") from None
    if getattr(model, "main_input_name", "") != "pixel_values":
        raise InputError(f"classifier.weights: {folder}: {kind} reads more than images; give its vision model alone")
    if getattr(model.config, "mask_ratio", 0):
        raise InputError(f"classifier.weights: {folder}: {kind} hides patches at random; save its encoder as a ViT")
    return model


def _pooled(folder: Path, pools: bool) -> str:
    """Return the rule of the features of a model that pools or not.

    Raises InputError for a tensor that is missing, surplus or of another shape.
    """
    model, report = _loaded(folder)
    kind = model.config.model_type
    missing = sorted(name for name in report["missing_keys"] if not name.endswith("num_batches_tracked"))
    without_pooler = bool(missing) and all(name.startswith("pooler.") for name in missing)
    if missing and not without_pooler:
        raise InputError(f"classifier.weights: {folder} has no tensor {missing[0]} of {kind} ({len(missing)} are "
                         "missing); get the whole model")  # fmt: skip
    if surplus := sorted(name for name in report["unexpected_keys"] if name.partition(".")[0] not in HEADS):
        raise InputError(f"classifier.weights: {folder} has a tensor {surplus[0]} that {kind} does not have; check its "
                         f"{CONFIG}")  # fmt: skip
    if pools and not without_pooler:
        return "pooler"
    first = any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in model.named_parameters())
    return "class_token" if first else "mean"


def _meta_output(folder: Path, model: Any, size: int) -> Any:
    """Return the output of a model on the meta device. Raises InputError for a size the model cannot take."""
    try:
        with torch.no_grad():
            return _output(model.eval(), torch.empty(1, _channels(model), size, size, device="meta"))
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(f"classifier.size: the model of {folder} cannot take {size} pixels ({reason}); write the size "
                         "it was trained at") from None  # fmt: skip


def _channels(model: Any) -> int:
    return int(getattr(model.config, "num_channels", 3))


def _own_size(model: Any) -> int:
    """Return the size of the images that a model was trained at, 224 where its config names none."""
    size = getattr(model.config, "image_size", None) or 224
    return int(size if isinstance(size, int) else size[0])


def _require_channels(folder: Path, model: Any, given: int) -> None:
    if (channels := _channels(model)) != given or given not in (1, 3):
        raise InputError(f"classifier.weights: {folder}: {PREPROCESSOR} has {given} means, the model reads {channels} "
                         "channels; give 1 or 3, one for each channel")  # fmt: skip


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder. Raises InputError if there is none."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise InputError(f"classifier.weights: {folder} has no {WEIGHTS}; other formats are not read; save the model "
                         "with save_pretrained, see docs/how-to/pretrained.md")  # fmt: skip
    named = _json(folder, INDEX).get("weight_map")
    if not isinstance(named, dict) or not named or not all(_is_shard(name) for name in named.values()):
        raise InputError(f"classifier.weights: {folder}/{INDEX} names no safetensors files of the folder; get the "
                         "model again")  # fmt: skip
    names = sorted(set(named.values()))
    if lost := [name for name in names if not (folder / name).is_file()]:
        raise InputError(f"classifier.weights: {folder} has no {lost[0]}, which {INDEX} names; get the whole model")
    return [folder / name for name in names]


def _is_shard(name: Any) -> bool:
    """Return whether this is the name of a safetensors file in the folder itself."""
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def _json(folder: Path, name: str) -> dict[str, Any]:
    """Return a JSON file of a folder. Raises InputError if it is missing or damaged."""
    try:
        return dict(json.loads((folder / name).read_text()))
    except FileNotFoundError:
        raise InputError(f"classifier.weights: {folder} has no {name}; get the whole model") from None
    except (OSError, ValueError, TypeError):
        raise InputError(f"classifier.weights: {folder}/{name} is damaged; get the model again") from None


def _scale(folder: Path) -> dict[str, list[float]]:
    """Return mean and deviation of the input on a scale of 0 to 1. Raises InputError if they are not given."""
    given = _json(folder, PREPROCESSOR)
    factor = float(given.get("rescale_factor", 1 / 255)) * 255 if given.get("do_rescale", True) else 255.0
    mean, deviation = given.get("image_mean"), given.get("image_std")
    if not given.get("do_normalize", True):
        mean, deviation = [0.0] * len(mean or "rgb"), [1.0] * len(mean or "rgb")
    if not (_numbers(mean) and _numbers(deviation) and len(mean) == len(deviation)) or 0 in deviation:
        raise InputError(f"classifier.weights: {folder}/{PREPROCESSOR} has no image_mean and image_std, one for each "
                         "channel; get the model's own file")  # fmt: skip
    return {"mean": [one / factor for one in mean], "deviation": [one / factor for one in deviation]}


def _numbers(given: object) -> TypeGuard[list[float]]:
    return isinstance(given, list) and all(isinstance(one, int | float) for one in given)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from writing bars and reports: what is missing has been checked before."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
