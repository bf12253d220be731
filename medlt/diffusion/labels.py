"""Label-conditional networks: what they share, and a small latent UNet told a label vector with unknowns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from medlt.diffusion.backbone import About, Backbone
from medlt.diffusion.noise import Prediction
from medlt.files import digest, digest_tensors, read_tensors, write_json, write_tensors
from medlt.types import InputError


@dataclass(frozen=True)
class LabelVector:
    """Labels [B,K] as conditions [B,2K+1]: value (0 when unknown) and known (0 or 1) of each, and a last 1, "said".

    The null condition is all zeros: "nothing is said" differs from "all is unknown".
    """

    findings: int

    @property
    def digest(self) -> str:
        """Names the form."""
        return digest("label vector", self.findings)

    @property
    def null(self) -> Tensor:
        """Zeros [2K+1]."""
        return torch.zeros(2 * self.findings + 1)

    def __call__(self, labels: Tensor, about: Sequence[About] = ()) -> Tensor:
        """See medlt.diffusion.backbone.Conditioner; `about` is not used."""
        known = ~labels.isnan()
        said = torch.ones(len(labels), 1, device=labels.device)
        return torch.cat([labels.nan_to_num(0.0).float(), known.float(), said], 1)


@dataclass(frozen=True)
class Unconditional:
    """The conditioner of a network that is told nothing: any labels [B,K] as zeros [B,1]."""

    @property
    def digest(self) -> str:
        """Names the form."""
        return digest("unconditional")

    @property
    def null(self) -> Tensor:
        """Zeros [1]."""
        return torch.zeros(1)

    def __call__(self, labels: Tensor, about: Sequence[About] = ()) -> Tensor:
        """See medlt.diffusion.backbone.Conditioner; nothing is used."""
        return torch.zeros(len(labels), 1, device=labels.device)


class LabelNetwork(nn.Module):
    """What the label-conditional families share: settings, files, and how they become a Backbone.

    A family sets `settings`, its constructor's arguments, with at least channels, findings and prediction.
    """

    family: ClassVar[str]
    settings: dict[str, Any]

    def backbone(self) -> Backbone:
        """This network as it is now, on standardised latents. With no findings it is unconditional."""
        told = self.settings
        condition = LabelVector(told["findings"]) if told["findings"] else Unconditional()
        named = digest(self.family, told, digest_tensors(self.state_dict()))
        return Backbone(self, condition, told["prediction"], told["channels"], named)

    def save(self, folder: Path) -> None:
        """Write model.safetensors and, last, model.json, each atomically."""
        write_tensors(folder / "model.safetensors", self.state_dict())
        write_json(folder / "model.json", {"family": self.family, **self.settings})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote, in evaluation mode. Raises InputError where it is not there, or not whole."""
        family, settings = read_settings(folder)
        if family != cls.family:
            raise InputError(f"{folder} holds a {family}, not a {cls.family}; load it as what it is")
        try:
            net = cls(**settings)
            net.load_state_dict(read_tensors(Path(folder) / "model.safetensors"))
        except (OSError, RuntimeError, TypeError, SafetensorError) as error:
            said = str(error).split("\n")[0]
            raise InputError(
                f"{folder} holds a denoiser that cannot be read ({said}); train or copy it again"
            ) from None
        return net.eval().requires_grad_(False)


def read_settings(folder: Path) -> tuple[str, dict[str, Any]]:
    """Family and settings of the network saved in a folder. Raises InputError where there is none."""
    about = Path(folder) / "model.json"
    if not about.is_file():
        raise InputError(f"{folder} holds no denoiser (model.json is missing); train one into it first")
    try:
        settings = dict(json.loads(about.read_text()))
    except ValueError:
        raise InputError(f"{about} is no JSON object; train or copy the denoiser again") from None
    return settings.pop("family", LabelUNet.family), settings


class LabelEmbedding(nn.Module):
    """Conditions [B,2K+1] of `LabelVector` to embeddings [B,width]; the null condition is a learnt vector.

    Without findings every condition is the null condition.
    """

    def __init__(self, findings: int, width: int) -> None:
        super().__init__()
        layers = (nn.Linear(2 * findings, width), nn.SiLU(), nn.Linear(width, width)) if findings else ()
        self.embed = nn.Sequential(*layers)
        self.null = nn.Parameter(torch.zeros(width))

    def forward(self, condition: Tensor) -> Tensor:
        """Embeddings [B,width]."""
        if not len(self.embed):
            return self.null.expand(len(condition), -1)
        embedded: Tensor = self.embed(condition[:, :-1])
        return torch.where(condition[:, -1:] > 0, embedded, self.null)


class LabelUNet(LabelNetwork):
    """diffusers UNet2DModel whose class embedding is made from a label vector with unknowns (`LabelVector`).

    `width` is the number of channels at full latent size; each of the `levels` halves the size, and all but the first
    double the width once. With no findings it is an unconditional UNet2DModel.
    """

    family = "unet"

    def __init__(
        self, channels: int, findings: int, width: int = 64, levels: int = 2, prediction: Prediction = "v_prediction"
    ) -> None:
        from diffusers import UNet2DModel

        super().__init__()
        self.settings: dict[str, Any] = {
            "channels": channels, "findings": findings, "width": width, "levels": levels, "prediction": prediction,
        }  # fmt: skip
        plain = levels - 1
        self.unet = UNet2DModel(
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(width, *[2 * width] * plain),
            down_block_types=(*["DownBlock2D"] * plain, "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", *["UpBlock2D"] * plain),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=min(32, width),
            class_embed_type="identity",
        )
        self.label = LabelEmbedding(findings, 4 * width)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Prediction [B,C,h,w] at timesteps t [B] under conditions [B,2K+1]."""
        answer: Tensor = self.unet(x_t, t, class_labels=self.label(condition)).sample
        return answer
