"""The families that this package makes or reads besides Stable Diffusion: each as a network, or as a Backbone."""

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
    """The label-conditional network saved in a folder, in evaluation mode. Raises InputError where there is none."""
    family, _ = read_settings(folder)
    if family not in FAMILIES:
        raise InputError(f"{folder} holds a network of the unknown family {family!r}; known are {', '.join(FAMILIES)}")
    return FAMILIES[family].load(folder)


def begin(net: LabelNetwork, folder: Path) -> tuple[str, ...]:
    """Give `net` the weights of a network saved in `folder`; returns the names of those that stay as they were.

    A tensor is taken over where name and shape agree: what reads the label vector of other findings is learnt anew.
    Raises InputError where `folder` holds no network, one of another family, or one of which less than half fits.
    """
    known, own = load_label_network(folder), net.state_dict()
    if known.family != net.family:
        raise InputError(f"start: {folder} holds a {known.family}, the run makes a {net.family}; give one alike")
    fits = {name: value for name, value in known.state_dict().items() if name in own}
    found = {name: value for name, value in fits.items() if value.shape == own[name].shape}
    if 2 * sum(value.numel() for value in found.values()) < sum(value.numel() for value in own.values()):
        raise InputError(f"start: {folder} fits less than half of the run's denoiser; give the same width and levels")
    net.load_state_dict(found, strict=False)
    return tuple(sorted(set(own) - set(found)))


class UnconditionalNetwork(nn.Module):
    """A diffusers UNet2DModel that is told nothing; channels beyond the input's (learnt variances) are left out."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet: Any = unet

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Prediction [B,C,h,w]; the condition is not used."""
        answer: Tensor = self.unet(x_t, t).sample[:, : x_t.shape[1]]
        return answer


def load_unet2d(
    folder: Path, *, prediction: Prediction | None = None, noise: NoiseSchedule | None = None,
    space: Literal["standardised", "codec"] = "codec",
) -> Backbone:  # fmt: skip
    """A Backbone of an unconditional diffusers UNet2DModel: its own folder, or a pipeline's with unet/ and scheduler/.

    Prediction and noise are read from the scheduler unless given. Raises InputError for a missing part, weights that
    are no safetensors or do not fit, a class-conditional network, or a noise schedule medlt does not know.
    """
    place = Path(folder) / "unet" if (Path(folder) / "unet").is_dir() else Path(folder)
    config = _config(place / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise InputError(f"{place} holds a {config.get('_class_name')}, not an unconditional UNet2DModel")
    if config.get("num_class_embeds") or config.get("class_embed_type"):
        raise InputError(f"{place} is told classes, which are not medlt's label vectors; train a label network instead")
    if prediction is None or noise is None:
        told = _scheduler(place)
        prediction, noise = prediction or told[0], noise or told[1]
    network = UnconditionalNetwork(_unet(place)).eval().requires_grad_(False)
    named = digest("unet2d", digest_tensors(network.state_dict()), prediction, noise.options())
    return Backbone(network, Unconditional(), prediction, config["in_channels"], named, space, noise)


def _config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{file} is missing; copy the whole folder, or name the one that holds it")
    try:
        return dict(json.loads(file.read_text()))
    except ValueError:
        raise InputError(f"{file} is no JSON object; copy it again") from None


def _scheduler(place: Path) -> tuple[Prediction, NoiseSchedule]:
    """Prediction and noise from scheduler_config.json in the folder beside this one."""
    file = place.parent / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        raise InputError(
            f"{file} is missing, so how {place} was trained is unknown; copy it, or give prediction and noise"
        )
    told: dict[str, Any] = {"prediction_type": "epsilon", "beta_start": 0.0001, "beta_end": 0.02} | _config(file)
    schedule, prediction = told.get("beta_schedule", "linear"), told["prediction_type"]
    if (
        told.get("trained_betas")
        or schedule not in ("linear", "scaled_linear")
        or prediction not in get_args(Prediction)
    ):
        raise InputError(
            f"{file}: schedule {schedule!r}, prediction {prediction!r}; give prediction and noise yourself"
        )
    steps, zero = told.get("num_train_timesteps", 1000), bool(told.get("rescale_betas_zero_snr"))
    return prediction, NoiseSchedule(schedule, told["beta_start"], told["beta_end"], steps, zero)


def _unet(place: Path) -> Any:
    from diffusers import UNet2DModel

    try:
        unet, told = UNet2DModel.from_pretrained(
            place, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{place} holds no readable UNet2DModel ({said}); copy its safetensors again") from None
    if lost := sorted({*told["missing_keys"], *told["unexpected_keys"]}):
        raise InputError(f"{place} holds other weights than its config.json says ({lost[0]}); copy both again")
    return unet
