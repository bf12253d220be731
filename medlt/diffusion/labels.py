"""Label-conditional networks: their base class, and a small latent UNet conditioned on a label vector with unknowns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from medlt.diffusion.attributes import encode
from medlt.diffusion.attributes import width as attribute_width
from medlt.diffusion.backbone import About, Backbone, Conditioner
from medlt.diffusion.noise import NoiseSchedule, Prediction
from medlt.files import digest, digest_tensors, read_tensors, write_json, write_tensors
from medlt.types import InputError


@dataclass(frozen=True)
class LabelVector:
    """Conditioner of labels [B,K] and attributes to [B,2K+A+1], the input of `ConditionEmbedding`.

    The columns are the values (0 if unknown), the known flags (0 or 1), those of `attributes` (see
    `medlt.diffusion.attributes`) and a final 1. The null condition is all zeros. It differs by its last entry from a
    row of which nothing is known.
    """

    findings: int
    attributes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Digest of the conditioner."""
        return digest("label vector", self.findings, list(self.attributes))

    @property
    def null(self) -> Tensor:
        """Zeros [2K+A+1]."""
        return torch.zeros(2 * self.findings + attribute_width(self.attributes) + 1)

    def __call__(self, labels: Tensor, about: Sequence[About] = ()) -> Tensor:
        """Return conditions as `medlt.diffusion.backbone.Conditioner` does."""
        known = ~labels.isnan()
        present = torch.ones(len(labels), 1, device=labels.device)
        described = encode(self.attributes, about, len(labels)).to(labels.device)
        return torch.cat([labels.nan_to_num(0.0).float(), known.float(), described, present], 1)


@dataclass(frozen=True)
class Unconditional:
    """The conditioner of an unconditional network: zeros [B,1] for any labels [B,K]."""

    @property
    def digest(self) -> str:
        """Digest of the conditioner."""
        return digest("unconditional")

    @property
    def null(self) -> Tensor:
        """Zeros [1]."""
        return torch.zeros(1)

    def __call__(self, labels: Tensor, about: Sequence[About] = ()) -> Tensor:
        """Return zeros [B,1]; the arguments are not used."""
        return torch.zeros(len(labels), 1, device=labels.device)


@dataclass(frozen=True)
class NullCondition:
    """The conditioner of a network that was trained for other findings: its null condition for any labels."""

    own: Conditioner

    @property
    def digest(self) -> str:
        """Digest of the conditioner."""
        return digest("null condition", self.own.digest)

    @property
    def null(self) -> Tensor:
        """The null condition of the network."""
        return self.own.null

    def __call__(self, labels: Tensor, about: Sequence[About] = ()) -> Tensor:
        """Return the null condition for each row of labels [B,K]."""
        return self.null.to(labels.device).expand(len(labels), *self.null.shape)


class LabelNetwork(nn.Module):
    """Base class of the label-conditional families: settings, files, and conversion to a Backbone.

    A family sets `settings`, the arguments of its constructor, with at least channels, findings, attributes,
    prediction, rescale_betas_zero_snr and shift (see `medlt.diffusion.noise.NoiseSchedule`). Without findings and
    attributes it is unconditional.
    """

    family: ClassVar[str]
    settings: dict[str, Any]

    def backbone(self) -> Backbone:
        """Return a Backbone of this network on standardised latents."""
        settings = self.settings
        findings, attributes = settings["findings"], settings["attributes"]
        condition = LabelVector(findings, attributes) if findings or attributes else Unconditional()
        named = digest(self.family, settings, digest_tensors(self.state_dict()))
        return Backbone(self, condition, settings["prediction"], settings["channels"], named, noise=self.noise)

    @property
    def noise(self) -> NoiseSchedule:
        """The noise levels that the network is trained on."""
        return NoiseSchedule(zero_terminal=self.settings["rescale_betas_zero_snr"], shift=self.settings["shift"])

    def save(self, folder: Path) -> None:
        """Write model.safetensors and, last, model.json, each atomically."""
        write_tensors(folder / "model.safetensors", self.state_dict())
        write_json(folder / "model.json", {"family": self.family, **self.settings})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the network that `save` wrote, in evaluation mode. Raises InputError if it is missing or damaged."""
        family, settings = read_settings(folder)
        if family != cls.family:
            raise InputError(f"{folder} contains a {family}, not a {cls.family}; load it by load_label_network")
        try:
            net = cls(**settings)
            net.load_state_dict(weights := read_tensors(Path(folder) / "model.safetensors"))
        except (OSError, RuntimeError, TypeError, InputError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(f"the denoiser in {folder} cannot be read ({reason}); train or copy it again") from None
        if broken := [name for name, value in weights.items() if not value.isfinite().all()]:
            raise InputError(f"the denoiser in {folder}: {broken[0]} holds NaN or infinity; use an earlier one")
        return net.eval().requires_grad_(False)


def read_settings(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return family and settings of the network saved in a folder. Raises InputError if there is none."""
    file = Path(folder) / "model.json"
    if not file.is_file():
        raise InputError(f"{folder} contains no denoiser (model.json is missing); train one first")
    try:
        settings = dict(json.loads(file.read_text()))
    except ValueError:
        raise InputError(f"{file} is not a JSON object; train or copy the denoiser again") from None
    return settings.pop("family", LabelUNet.family), settings


class ConditionEmbedding(nn.Module):
    """Embedding of conditions [B,columns+1] of `LabelVector` to [B,width]. The null condition has a learnt vector.

    Without columns every condition is the null condition.
    """

    def __init__(self, columns: int, width: int) -> None:
        super().__init__()
        layers = (nn.Linear(columns, width), nn.SiLU(), nn.Linear(width, width)) if columns else ()
        self.embed = nn.Sequential(*layers)
        self.null = nn.Parameter(torch.zeros(width))

    def forward(self, condition: Tensor) -> Tensor:
        """Return embeddings [B,width]."""
        if not len(self.embed):
            return self.null.expand(len(condition), -1)
        embedded: Tensor = self.embed(condition[:, :-1])
        return torch.where(condition[:, -1:] > 0, embedded, self.null)


class LabelUNet(LabelNetwork):
    """A diffusers UNet2DModel whose class embedding comes from a label vector with unknowns (`LabelVector`).

    `width` is the number of channels at full latent resolution. Each of the `levels` halves the resolution; levels
    after the first have 2 `width` channels. `layers_per_block` and `dropout` are those of diffusers.
    """

    family = "unet"

    def __init__(
        self, channels: int, findings: int, width: int = 64, levels: int = 2, layers_per_block: int = 1,
        dropout: float = 0.0, attributes: Sequence[str] = (), prediction: Prediction = "v_prediction",
        rescale_betas_zero_snr: bool = False, shift: float = 1.0,
    ) -> None:  # fmt: skip
        from diffusers import UNet2DModel

        super().__init__()
        self.settings = {
            "channels": channels, "findings": findings, "width": width, "levels": levels,
            "layers_per_block": layers_per_block, "dropout": dropout, "attributes": tuple(attributes),
            "prediction": prediction, "rescale_betas_zero_snr": rescale_betas_zero_snr, "shift": shift,
        }  # fmt: skip
        plain = levels - 1
        self.unet = UNet2DModel(
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(width, *[2 * width] * plain),
            down_block_types=(*["DownBlock2D"] * plain, "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", *["UpBlock2D"] * plain),
            layers_per_block=layers_per_block,
            dropout=dropout,
            norm_num_groups=8,
            attention_head_dim=min(32, width),
            class_embed_type="identity",
        )
        self.label = ConditionEmbedding(2 * findings + attribute_width(attributes), 4 * width)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction [B,C,h,w] at timesteps t [B] under conditions [B,2K+A+1]."""
        prediction: Tensor = self.unet(x_t, t, class_labels=self.label(condition)).sample
        return prediction
