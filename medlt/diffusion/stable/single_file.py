"""Convert a single-file checkpoint (the layout of the original latent-diffusion code) to a diffusers folder, once.

The file has shapes only. Other settings are those of Stable Diffusion: heads of 64 channels and gelu if the text
encoder is OpenCLIP (2.x), else 8 heads in the UNet and quick_gelu in the text encoder (1.x).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from medlt.diffusion.noise import NoiseSchedule, Prediction
from medlt.diffusion.stable import files, infer, network
from medlt.diffusion.stable.save import (
    copy_tokenizer,
    tokenizer_folder,
    write_index,
    write_parts,
    write_schedule,
)  # fmt: skip
from medlt.files import sha256, whole_folder, write_json
from medlt.types import InputError

ORIGIN = "single_file.json"


def as_folder(path: Path, *, prediction: Prediction | None = None, config: Path | None = None) -> Path:
    """Return the diffusers folder of `path`: the folder itself, or NAME.diffusers beside a single file.

    `convert_single_file` writes NAME.diffusers the first time; it is reused as long as the SHA-256 of the file stays
    the same. Raises InputError as `convert_single_file`, and for a NAME.diffusers of another file.
    """
    if path.is_dir() or not path.exists():
        if config is not None:
            raise InputError(f"`config` is for single files, but {path} is not one; remove it")
        return path
    _require_safetensors(path)
    folder = path.with_name(f"{path.stem}.diffusers")
    if not folder.exists():
        convert_single_file(path, folder, prediction=prediction, config=config)
    elif files.read_json(folder / ORIGIN).get("sha256") != sha256(path):
        raise InputError(f"{folder} was made from another file than {path.name}; move it away and run again")
    return folder


def _require_safetensors(path: Path) -> None:
    """Raise InputError for other files than .safetensors."""
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is not a .safetensors file; pickled files are never opened: convert it elsewhere")


def convert_single_file(
    file: Path,
    folder: Path,
    *,
    prediction: Prediction | None = None,
    config: Path | None = None,
    tokenizer: Path | None = None,
) -> None:
    """Write the diffusers folder of a single-file checkpoint. Weights keep their type, fp16 or fp32.

    The tokenizer, which the file does not hold, is copied from `tokenizer` or `config`, the folder of a tokenizer or of
    a checkpoint. Configs in `config` (unet/config.json, ...) take precedence over the shapes. `prediction`: by default
    that of the scheduler in `config`, else epsilon for 1.x and v_prediction for 2.x. This is right for 2.1 at 768 px
    and wrong for the 2.x base models at 512 px: give it for these. Raises InputError for a file of another model,
    missing parts, a missing tokenizer, or shapes that fit no config.
    """
    parts = validate_file(file, config, tokenizer)
    with whole_folder(folder) as fresh:
        tensors = network.read_all([file])
        write_parts(fresh, {part: _converted(file, part, own, tensors) for part, own in parts.items()})
        copy_tokenizer(_tokenizer(file, config, tokenizer), fresh / "tokenizer")
        write_schedule(fresh, *_schedule(tensors, config, prediction))
        write_index(fresh)
        write_json(fresh / ORIGIN, {"file": file.name, "sha256": sha256(file)})


def validate_file(file: Path, config: Path | None = None, tokenizer: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return the configs of the parts ("unet", "text_encoder", "vae") of a single file, from its header and `config`.

    Raises InputError as `convert_single_file`, without reading weights.
    """
    from medlt.diffusion.stable.load import read_tokenizer, require_unet

    _require_safetensors(file)
    shapes = files.shapes(file)
    infer.require_stable(file, shapes)
    read_tokenizer(_tokenizer(file, config, tokenizer))
    _schedule(shapes, config, None)
    parts = {part: _config(file, part, shapes, config) for part in ("unet", "text_encoder", "vae")}
    require_unet(parts["unet"], file, parts["text_encoder"])
    return parts


def _tokenizer(file: Path, config: Path | None, tokenizer: Path | None) -> Path:
    """Return the folder with the files of the tokenizer."""
    place = tokenizer or config
    if place is None:
        raise InputError(f"{file} has no tokenizer; give `config`, a folder with vocab.json and merges.txt")
    return tokenizer_folder(Path(place))


def _config(file: Path, part: str, shapes: infer.Shapes, config: Path | None) -> dict[str, Any]:
    """Return the config of a part: the given one, or the one that follows from the shapes."""
    if config is not None and (given := config / part / "config.json").is_file():
        return files.read_json(given)
    try:
        return infer.CONFIGS[part](shapes)
    except (KeyError, IndexError, StopIteration) as error:
        raise InputError(
            f"{file}: its {part} has another layout ({str(error) or 'a tensor'} is missing); give `config`"
        ) from None


def _schedule(
    names: Iterable[str], config: Path | None, prediction: Prediction | None
) -> tuple[Prediction, NoiseSchedule]:
    """Return prediction type and noise schedule: those given, or the defaults of the version."""
    from medlt.diffusion.stable.load import read_schedule

    default: Prediction = "v_prediction" if infer.is_open_clip(names) else "epsilon"
    noise = NoiseSchedule()
    if config is not None and (given := config / "scheduler" / "scheduler_config.json").is_file():
        default, noise = read_schedule(given)
    return prediction or default, noise


def _converted(file: Path, part: str, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Return a part as a network with the weights of the file."""
    net = network.empty(part, config, file)
    if part == "unet" and (strange := sum(n.startswith(infer.UNET) for n in tensors) - len(net.state_dict())) > 0:
        raise InputError(f"{file} (unet): {strange} tensors are not in the config; give `config`")
    own = _renamed(part, dict(net.config) if part != "text_encoder" else {}, net, dict(tensors))
    network.check_tensors(net, own, f"{file} ({part})")
    net.load_state_dict({name: value.contiguous() for name, value in own.items()}, assign=True)
    return net


def _renamed(part: str, config: dict[str, Any], net: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a part under the names of diffusers, by its converters."""
    from diffusers.loaders import single_file_utils as convert

    if part == "unet":
        return dict(convert.convert_ldm_unet_checkpoint(tensors, config))
    if part == "vae":
        return dict(convert.convert_ldm_vae_checkpoint(tensors, config))
    if not infer.is_open_clip(tensors):
        return network.plain_names(convert.convert_ldm_clip_checkpoint(tensors))
    last = f"{infer.OPEN_CLIP}transformer.resblocks.{net.config.num_hidden_layers}."
    used = {name: value for name, value in tensors.items() if not name.startswith(last)}
    return network.plain_names(convert.convert_open_clip_checkpoint(net, used, infer.OPEN_CLIP))
