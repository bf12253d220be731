"""The network families besides Stable Diffusion, and how their saved networks are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from medlt.diffusion.backbone import Backbone
from medlt.diffusion.labels import LabelNetwork, LabelUNet, Unconditional, read_settings
from medlt.diffusion.noise import NoiseSchedule, Prediction
from medlt.diffusion.transformer import LabelTransformer
from medlt.files import digest, digest_tensors
from medlt.types import InputError

FAMILIES: dict[str, type[LabelNetwork]] = {net.family: net for net in (LabelUNet, LabelTransformer)}


def load_label_network(folder: Path) -> LabelNetwork:
    """Return the label-conditional network saved in a folder, in evaluation mode.

    Raises InputError if there is none.
    """
    family, _ = read_settings(folder)
    if family not in FAMILIES:
        raise InputError(f"{folder} contains a network of the unknown family {family!r}; use {' or '.join(FAMILIES)}")
    return FAMILIES[family].load(folder)


def init_from(net: LabelNetwork, folder: Path) -> tuple[str, ...]:
    """Load the weights of a network saved in `folder` into `net`, and return the names of weights that stay unchanged.

    A tensor is loaded if name and shape agree; layers that depend on another list of findings are trained from scratch.
    Raises InputError if `folder` contains no network, one of another family, or one of which less than half fits.
    """
    saved, own = load_label_network(folder), net.state_dict()
    if saved.family != net.family:
        raise InputError(f"init_from: {folder} contains a {saved.family}, the run trains a {net.family}; use the same")
    shared = {name: value for name, value in saved.state_dict().items() if name in own}
    loaded = {name: value for name, value in shared.items() if value.shape == own[name].shape}
    if 2 * sum(value.numel() for value in loaded.values()) < sum(value.numel() for value in own.values()):
        raise InputError(f"init_from: less than half of the denoiser fits {folder}; set the same width and levels")
    net.load_state_dict(loaded, strict=False)
    return tuple(sorted(set(own) - set(loaded)))


class UnconditionalNetwork(nn.Module):
    """An unconditional diffusers UNet2DModel. Output channels beyond the input's (learnt variances) are dropped."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet: Any = unet

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction [B,C,h,w]. The condition is not used."""
        prediction: Tensor = self.unet(x_t, t).sample[:, : x_t.shape[1]]
        return prediction


def load_unet2d(
    folder: Path, *, prediction: Prediction | None = None, noise: NoiseSchedule | None = None,
    space: Literal["standardised", "codec"] = "codec",
) -> Backbone:  # fmt: skip
    """Return a Backbone of an unconditional diffusers UNet2DModel.

    `folder` is its own folder, or that of a pipeline with unet/ and scheduler/. Prediction type and noise schedule are
    read from the scheduler unless given. Raises InputError for a missing part, weights that are not safetensors or do
    not fit, a class-conditional network, or an unsupported noise schedule.
    """
    folder = Path(folder) / "unet" if (Path(folder) / "unet").is_dir() else Path(folder)
    config = _config(folder / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise InputError(f"{folder} contains a {config.get('_class_name')}, not an unconditional UNet2DModel")
    if config.get("num_class_embeds") or config.get("class_embed_type"):
        raise InputError(f"{folder} is class-conditional, which is not supported; train a label network instead")
    if prediction is None or noise is None:
        trained = _scheduler(folder)
        prediction, noise = prediction or trained[0], noise or trained[1]
    network = UnconditionalNetwork(_unet(folder)).eval().requires_grad_(False)
    named = digest("unet2d", digest_tensors(network.state_dict()), prediction, noise.options())
    return Backbone(network, Unconditional(), prediction, config["in_channels"], named, space, noise)


def _config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{file} is missing; copy the whole folder, or give the folder that contains it")
    try:
        return dict(json.loads(file.read_text()))
    except ValueError:
        raise InputError(f"{file} is not a JSON object; copy it again") from None


def _scheduler(folder: Path) -> tuple[Prediction, NoiseSchedule]:
    """Return prediction type and noise schedule from scheduler/scheduler_config.json beside this folder."""
    file = folder.parent / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        raise InputError(
            f"{file} is missing, which describes the noise of {folder}; copy it or give the noise schedule"
        )
    config: dict[str, Any] = {"prediction_type": "epsilon", "beta_start": 0.0001, "beta_end": 0.02} | _config(file)
    schedule, prediction = config.get("beta_schedule", "linear"), config["prediction_type"]
    if (
        config.get("trained_betas")
        or schedule not in ("linear", "scaled_linear")
        or prediction not in get_args(Prediction)
    ):
        raise InputError(
            f"{file}: beta_schedule {schedule!r} with prediction_type {prediction!r} is not supported; give prediction "
            "and noise yourself"
        )
    steps, zero = config.get("num_train_timesteps", 1000), bool(config.get("rescale_betas_zero_snr"))
    return prediction, NoiseSchedule(schedule, config["beta_start"], config["beta_end"], steps, zero)


def _unet(folder: Path) -> Any:
    from diffusers import UNet2DModel

    try:
        unet, info = UNet2DModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder} contains no readable UNet2DModel ({reason}); copy its safetensors again") from None
    if wrong := sorted({*info["missing_keys"], *info["unexpected_keys"]}):
        raise InputError(f"{folder}: weights and config.json do not match ({wrong[0]}); copy both again")
    return unet
