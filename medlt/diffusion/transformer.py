"""A diffusion transformer conditioned on a label vector with unknowns.

The network is that of PixArt-alpha (arXiv 2310.00426) in diffusers: a DiT (arXiv 2212.09748) over latent patches. The
timestep modulates all blocks through one shared layer (adaLN-single), and every block attends to the tokens of the
condition. DiTTransformer2DModel is not used, because its class embedding takes one class. With one token per finding,
several findings, negatives and unknowns need no sum, and latents need not be square.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medlt.diffusion.attributes import WIDTHS
from medlt.diffusion.labels import LabelNetwork
from medlt.diffusion.noise import Prediction
from medlt.types import InputError


class LabelTokens(nn.Module):
    """Tokens [B,K+number of attributes,width] of conditions [B,2K+A+1] of `LabelVector`.

    The token of a finding is a learnt vector plus a linear map of (value, known); that of an attribute is a linear map
    of its columns. The null condition is the same learnt vector for all tokens.
    """

    def __init__(self, findings: int, attributes: Sequence[str], width: int) -> None:
        super().__init__()
        self.columns = [2 * findings, *(WIDTHS[name] for name in attributes)]
        self.null = nn.Parameter(torch.randn(width) * 0.02)
        self.finding = nn.Parameter(torch.randn(findings, width) * 0.02)
        self.state = nn.Linear(2, width, bias=False)
        self.attribute = nn.ModuleList(nn.Linear(WIDTHS[name], width) for name in attributes)

    def forward(self, condition: Tensor) -> Tensor:
        """Return the tokens [B,K+number of attributes,width]."""
        labels, *described = torch.split(condition[:, :-1], self.columns, 1)
        tokens = [self.finding + self.state(torch.stack(labels.chunk(2, 1), 2))]
        tokens += [layer(part)[:, None] for layer, part in zip(self.attribute, described, strict=True)]
        return torch.where(condition[:, None, -1:] > 0, torch.cat(tokens, 1), self.null)


class LabelTransformer(LabelNetwork):
    """PixArtTransformer2DModel of diffusers whose caption is a label vector with unknowns (`LabelTokens`).

    It has `width` channels in `heads` heads, `depth` blocks, and patches of `patch` x `patch` latent pixels. `size` is
    the latent side with the positions of the original DiT; other sides are stretched to it. `dropout` is that of
    diffusers. Raises InputError if the heads do not divide the width.
    """

    family = "transformer"

    def __init__(
        self, channels: int, findings: int, width: int = 192, depth: int = 6, heads: int = 6, patch: int = 2,
        size: int = 32, dropout: float = 0.0, attributes: Sequence[str] = (),
        prediction: Prediction = "v_prediction", rescale_betas_zero_snr: bool = False, shift: float = 1.0,
    ) -> None:  # fmt: skip
        from diffusers import PixArtTransformer2DModel

        super().__init__()
        if width % heads:
            raise InputError(f"a transformer of width {width} with {heads} heads; give heads that divide the width")
        self.settings = {
            "channels": channels, "findings": findings, "width": width, "depth": depth, "heads": heads,
            "patch": patch, "size": size, "dropout": dropout, "attributes": tuple(attributes),
            "prediction": prediction, "rescale_betas_zero_snr": rescale_betas_zero_snr, "shift": shift,
        }  # fmt: skip
        self.transformer = PixArtTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=channels,
            out_channels=channels,
            num_layers=depth,
            dropout=dropout,
            cross_attention_dim=width if findings or attributes else None,
            sample_size=size,
            patch_size=patch,
            interpolation_scale=1,
            use_additional_conditions=False,
            caption_channels=None,
        )
        self.label = LabelTokens(findings, attributes, width) if findings or attributes else None
        self._silence()

    def _silence(self) -> None:
        """Set the modulation, the attention to tokens and the output layer to zero, as DiT and PixArt-alpha do.

        diffusers does not. After 250 steps on 64 px discs the loss was 0.16, and 0.24 with the start of diffusers.
        """
        crossing = [block.attn2.to_out[0] for block in self.transformer.transformer_blocks if block.attn2 is not None]
        for layer in (self.transformer.adaln_single.linear, self.transformer.proj_out, *crossing):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction [B,C,h,w] at timesteps t [B] under conditions [B,2K+A+1].

        Raises InputError if h or w is not a multiple of the patch.
        """
        h, w, patch = *x_t.shape[-2:], self.settings["patch"]
        if h % patch or w % patch:
            raise InputError(f"latents of {h}x{w} for patches of {patch}; resize the images to whole patches")
        tokens = self.label(condition) if self.label is not None else None
        prediction: Tensor = self.transformer(x_t, encoder_hidden_states=tokens, timestep=t).sample
        return prediction
