"""A small latent UNet conditioned on label vectors, and the step from a network to a denoiser.

| symbol | meaning |
|---|---|
| x_t, x0, n | noisy latent, clean latent, unit noise, [B,C,h,w]; x_t = sqrt(abar) x0 + sqrt(1 - abar) n |
| Y | labels [B,K]: 1, 0, soft values between, NaN = unknown |
| v | sqrt(abar) n - sqrt(1 - abar) x0 (arXiv 2202.00512) |
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from medlt.files import read_tensors, write_json, write_tensors
from medlt.types import Denoiser, InputError

Prediction: TypeAlias = Literal["epsilon", "v_prediction", "sample"]


class LabelUNet(nn.Module):
    """diffusers UNet2DModel whose class embedding is made from a label vector with unknowns.

    Each label enters as two numbers, value (0 when unknown) and known (0 or 1); a dropped condition is a learnt vector
    of its own, so "nothing is said" differs from "all is unknown". `width` is the number of channels at full latent
    size; each of the `levels` halves the size, and all but the first double the width once.
    """

    def __init__(
        self, channels: int, findings: int, width: int = 64, levels: int = 2, prediction: Prediction = "v_prediction"
    ) -> None:
        from diffusers import UNet2DModel

        super().__init__()
        self.settings: dict[str, Any] = {
            "channels": channels, "findings": findings, "width": width, "levels": levels, "prediction": prediction,
        }  # fmt: skip
        self.prediction: Prediction = prediction
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
        embedding = 4 * width
        self.embed = nn.Sequential(nn.Linear(2 * findings, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.null = nn.Parameter(torch.zeros(embedding))

    def condition(self, labels: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Embedding [B,E] of labels [B,K]; rows where `dropped` [B] is true get the null vector."""
        known = ~labels.isnan()
        embedded: Tensor = self.embed(torch.cat([labels.nan_to_num(0.0), known.to(labels.dtype)], 1))
        return embedded if dropped is None else torch.where(dropped[:, None], self.null, embedded)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None, dropped: Tensor | None = None) -> Tensor:
        """Prediction [B,C,h,w] at timesteps t [B]; without labels, of the dropped condition."""
        said = self.null.expand(len(x_t), -1) if labels is None else self.condition(labels, dropped)
        answer: Tensor = self.unet(x_t, t, class_labels=said).sample
        return answer

    def save(self, folder: Path) -> None:
        """Write model.safetensors and, last, model.json, each atomically."""
        write_tensors(folder / "model.safetensors", self.state_dict())
        write_json(folder / "model.json", self.settings)

    @classmethod
    def load(cls, folder: Path) -> LabelUNet:
        """Read what `save` wrote, in evaluation mode. Raises InputError where it is not there."""
        about = Path(folder) / "model.json"
        if not about.is_file():
            raise InputError(f"{folder} holds no denoiser (model.json is missing); train one into it first")
        net = cls(**json.loads(about.read_text()))
        net.load_state_dict(read_tensors(Path(folder) / "model.safetensors"))
        return net.eval().requires_grad_(False)


def x0_of(out: Tensor, x_t: Tensor, a: Tensor, prediction: Prediction) -> Tensor:
    """The clean estimate from a network's output, given a = abar at x_t's level (a scalar, or [B,1,1,1])."""
    signal, noise = a.sqrt(), (1 - a).sqrt()
    if prediction == "sample":
        return out
    return (x_t - noise * out) / signal if prediction == "epsilon" else signal * x_t - noise * out


def target_of(x0: Tensor, n: Tensor, a: Tensor, prediction: Prediction) -> Tensor:
    """What a network of this parameterisation should say: n, v or x0, given a = abar ([B,1,1,1])."""
    if prediction == "sample":
        return x0
    return n if prediction == "epsilon" else a.sqrt() * n - (1 - a).sqrt() * x0


def as_denoiser(net: nn.Module, labels: Tensor | None, abar: Tensor, prediction: Prediction | None = None) -> Denoiser:
    """Hide the network's parameterisation and its condition: everything above speaks x0.

    `labels` [B,K] belong to the rows of x_t, None is the unconditional network; `prediction` defaults to the network's
    own (`LabelUNet.prediction`).
    """
    spoken: Prediction = prediction or net.prediction  # type: ignore[assignment]

    def denoise(x_t: Tensor, t: int) -> Tensor:
        steps = torch.full((len(x_t),), t, device=x_t.device)
        return x0_of(net(x_t, steps, labels), x_t, abar[t].to(x_t), spoken)

    return denoise
