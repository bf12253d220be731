"""A diffusion transformer told a label vector with unknowns.

The network is PixArt-alpha's (arXiv 2310.00426) as diffusers has it: a DiT (arXiv 2212.09748) over latent patches whose
timestep modulates all blocks through one shared layer (adaLN-single) and whose condition is a set of tokens that every
block attends to. It was chosen over DiTTransformer2DModel, whose class embedding takes one class of many: with one
token a finding, several findings, negatives and unknowns need no sum, and latents need not be square.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medlt.diffusion.labels import LabelNetwork
from medlt.diffusion.noise import Prediction
from medlt.types import InputError


class LabelTokens(nn.Module):
    """Conditions [B,2K+1] of `LabelVector` to tokens [B,K,width], one a finding: its own learnt vector plus a linear
    map of (value, known). The null condition is one learnt vector in all places.
    """

    def __init__(self, findings: int, width: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.randn(width) * 0.02)
        self.finding = nn.Parameter(torch.randn(findings, width) * 0.02)
        self.state = nn.Linear(2, width, bias=False)

    def forward(self, condition: Tensor) -> Tensor:
        """Return tokens [B,K,width]."""
        value, known = condition[:, :-1].chunk(2, 1)
        tokens = self.finding + self.state(torch.stack([value, known], 2))
        return torch.where(condition[:, None, -1:] > 0, tokens, self.null)


class LabelTransformer(LabelNetwork):
    """diffusers PixArtTransformer2DModel whose caption is a label vector with unknowns (`LabelTokens`).

    `width` channels in `heads` heads, `depth` blocks, patches of `patch` x `patch` latent pixels; `size` is the latent
    side whose positions are those of the original DiT: others are stretched to it. With no findings it is
    unconditional. Raises InputError when the heads do not divide the width.
    """

    family = "transformer"

    def __init__(
        self, channels: int, findings: int, width: int = 192, depth: int = 6, heads: int = 6, patch: int = 2,
        size: int = 32, prediction: Prediction = "v_prediction",
    ) -> None:  # fmt: skip
        from diffusers import PixArtTransformer2DModel

        super().__init__()
        if width % heads:
            raise InputError(f"a transformer of width {width} with {heads} heads; give heads that divide the width")
        self.settings: dict[str, Any] = {
            "channels": channels, "findings": findings, "width": width, "depth": depth, "heads": heads,
            "patch": patch, "size": size, "prediction": prediction,
        }  # fmt: skip
        self.transformer = PixArtTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=channels,
            out_channels=channels,
            num_layers=depth,
            cross_attention_dim=width if findings else None,
            sample_size=size,
            patch_size=patch,
            interpolation_scale=1,
            use_additional_conditions=False,
            caption_channels=None,
        )
        self.label = LabelTokens(findings, width) if findings else None
        self._silence()

    def _silence(self) -> None:
        """Zero what modulates, what the tokens add and what is said, as DiT and PixArt-alpha start; diffusers does not.

        After 250 steps on 64 px discs the loss was 0.16 so, and 0.24 from diffusers' own start.
        """
        crossing = [block.attn2.to_out[0] for block in self.transformer.transformer_blocks if block.attn2 is not None]
        for layer in (self.transformer.adaln_single.linear, self.transformer.proj_out, *crossing):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction [B,C,h,w] at timesteps t [B] under conditions [B,2K+1].

        InputError: h or w no whole patches.
        """
        h, w, patch = *x_t.shape[-2:], self.settings["patch"]
        if h % patch or w % patch:
            raise InputError(f"latents of {h}x{w} for patches of {patch}; resize the images to whole patches")
        tokens = self.label(condition) if self.label is not None else None
        answer: Tensor = self.transformer(x_t, encoder_hidden_states=tokens, timestep=t).sample
        return answer
