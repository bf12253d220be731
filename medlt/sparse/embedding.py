"""Simplicial codes: a latent as L tokens per pixel, each from a vocabulary of V.

Lavoie et al., "Simplicial Embeddings in Self-Supervised Learning and Downstream Classification", arXiv 2204.00616;
as the feature space of Elberg, Parra, Petrache, arXiv 2405.01705.

| symbol | here | meaning | shape, range |
|---|---|---|---|
| z | z | codec latent, standardised per channel | [B,C,h,w] |
| E | encoder | small U-Net, then a batch norm without gain: the logits | [B,L,V,h,w] |
| tau | temperature | divides the logits before the softmax | > 0 |
| s | code | softmax over V, inside each group and pixel | [B,L,V,h,w], sums to 1 over V |
| D | decoder | small U-Net on s, linear output (a tanh could not reach abs(z) > 1) | [B,C,h,w] |
| C | classifier | convolutions on s that keep h x w, global mean, linear | [B,K] logits |

Changes to the published method, and why:
- The published encoder ends in a tanh before the softmax, so no token of 64 can have a probability above 0.105, and the
  code is never sparse. Here the logits are batch-normalised without a learnt gain. Every token has mean 0 and variance
  1 over the data, so that no token dies and none dominates. (A layer norm over the tokens, tried before the sampled
  tokens of `medlt.sparse.phases`, left 2 of 16 tokens in use.)
- A batch norm mixes the images of a batch, which private training does not allow. With norm "group", every token has
  mean 0 and variance 1 over the pixels of each image instead, and the features of the classifier in four groups of
  channels. On NIH latents (1,100 train images, two short generations, no noise) 14.5 and 12.7 of 16 tokens were in use,
  12.7 and 11.7 with the batch norm. Norms over the tokens of a group, in a pixel or in the image, left 4 to 6.
- With variance 1, the two largest of 16 logits differ by about 0.4. So the temperature is far below 1.
- Inside the networks, norms act on each pixel and the U-Nets have one level. With group norm over the image, or a deep
  U-Net, every pixel depends on the whole image, and the class activation map of a finding in a corner peaked at the
  centre.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from medlt.files import digest, read_tensors, write_tensors
from medlt.rng import torch_generator
from medlt.types import InputError

Norm = Literal["batch", "group"]


class PixelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel of [B,C,h,w]: mean 0, variance 1, learnt gain and offset."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class ConvBlock(nn.Sequential):
    """Convolution, pixel norm, SiLU: [B,cin,h,w] -> [B,cout,h/stride,w/stride].

    Borders are repeated. A border of zeros makes border pixels different from all others, and maps peak there.
    """

    def __init__(self, cin: int, cout: int, *, kernel: int = 3, stride: int = 1) -> None:
        convolution = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False, padding_mode="replicate")
        super().__init__(convolution, PixelNorm(cout), nn.SiLU())


def plain_norm(norm: Norm, channels: int, groups: int) -> nn.Module:
    """Return a norm of [B,channels,h,w] without gain: over the batch, or over `groups` channel groups of each image."""
    if norm == "batch":
        return nn.BatchNorm2d(channels, affine=False)
    return nn.GroupNorm(groups, channels, affine=False)


class SmallUNet(nn.Module):
    """One-level U-Net: [B,cin,h,w] -> [B,cout,h,w], linear output, h and w even. Its reach is about 4 pixels."""

    def __init__(self, cin: int, cout: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBlock(cin, width, kernel=1), ConvBlock(width, width))
        self.down = nn.Sequential(ConvBlock(width, 2 * width, stride=2), ConvBlock(2 * width, width, kernel=1))
        self.join = ConvBlock(2 * width, width)
        self.head = nn.Conv2d(width, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        low = F.interpolate(self.down(skip), scale_factor=2.0, mode="nearest")
        out: Tensor = self.head(self.join(torch.cat([skip, low], 1)))
        return out


class CodeClassifier(nn.Module):
    """Classifier of codes [B,L*V,h,w] -> logits [B,K]; `features` [B,2*width,h,w] keep the grid for activation maps.

    Features have mean 0 over the data. So the bias of the head represents the frequency of a finding, and a map is
    positive where there is more evidence than usual. Otherwise the weights represent it, and all maps of a rare finding
    are negative.
    """

    def __init__(self, cin: int, findings: int, width: int, norm: Norm = "batch") -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvBlock(cin, width, kernel=1),
            ConvBlock(width, width),
            ConvBlock(width, 2 * width),
            plain_norm(norm, 2 * width, 4),
        )
        self.head = nn.Linear(2 * width, findings)

    def logits(self, features: Tensor) -> Tensor:
        """Return logits [B,K] of features [B,F,h,w]."""
        out: Tensor = self.head(features.mean((2, 3)))
        return out

    def forward(self, flat: Tensor) -> Tensor:
        return self.logits(self.features(flat))


def initialise(module: nn.Module, *key: object) -> None:
    """Set new weights as a function of `key` alone: He-normal convolutions, zero biases, unit norms."""
    rng = torch_generator("initialise", *key)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="linear", generator=rng)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm | nn.BatchNorm2d):
            part.reset_parameters()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set eval mode inside the block, and the previous mode after it."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


class SimplicialCoder(nn.Module):
    """Encoder E, decoder D and classifier C of one simplicial code (notation above).

    `channels` is C, `findings` K, `groups` L, `vocabulary` V, and `width` the channels of the networks (a multiple of
    4). `norm`: "batch", or "group" if rows must not be mixed (see above). Weights are a function of `seed`.
    """

    def __init__(
        self,
        channels: int,
        findings: int,
        *,
        groups: int = 16,
        vocabulary: int = 16,
        temperature: float = 0.05,
        width: int = 32,
        seed: int = 0,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        if width % 4:
            raise InputError(f"sparse.width: {width} is not a multiple of 4; give {width // 4 * 4 + 4}")
        self.config: dict[str, Any] = {
            "channels": channels,
            "findings": findings,
            "groups": groups,
            "vocabulary": vocabulary,
            "temperature": temperature,
            "width": width,
        } | ({"norm": norm} if norm != "batch" else {})
        self.groups, self.vocabulary, self.temperature = groups, vocabulary, temperature
        tokens = groups * vocabulary
        self.encoder = nn.Sequential(SmallUNet(channels, tokens, width), plain_norm(norm, tokens, tokens))
        self.decoder = SmallUNet(tokens, channels, width)
        self.classifier = CodeClassifier(tokens, findings, width, norm)
        initialise(self, seed)

    def logits(self, z: Tensor) -> Tensor:
        """Return logits over the temperature, [B,L,V,h,w], of z [B,C,h,w]. Raises InputError for odd sides."""
        if z.shape[-1] % 2 or z.shape[-2] % 2:
            side = f"{z.shape[-2]}x{z.shape[-1]}"
            raise InputError(f"latents are {side}, but their sides must be even; choose another image size")
        flat: Tensor = self.encoder(z)
        return flat.view(len(z), self.groups, self.vocabulary, *z.shape[2:]) / self.temperature

    def code(self, z: Tensor) -> Tensor:
        """Return the code s [B,L,V,h,w] of z [B,C,h,w]: each group of each pixel sums to 1."""
        return self.logits(z).softmax(2)

    def decode(self, s: Tensor) -> Tensor:
        """Return the latents [B,C,h,w] of codes [B,L,V,h,w], unbounded."""
        z: Tensor = self.decoder(s.flatten(1, 2))
        return z

    def features(self, s: Tensor) -> Tensor:
        """Return the spatial features [B,F,h,w] of the classifier, from which activation maps are made."""
        out: Tensor = self.classifier.features(s.flatten(1, 2))
        return out

    def classify(self, s: Tensor) -> Tensor:
        """Return the logits [B,K] of codes [B,L,V,h,w]."""
        return self.classifier.logits(self.features(s))

    @property
    def digest(self) -> str:
        """16 hex digits of settings and weights."""
        weights = (v.detach().cpu().contiguous().numpy().tobytes() for v in self.state_dict().values())
        return digest(self.config, *weights)

    def save(self, path: Path, **metadata: Any) -> None:
        """Write weights, settings and `metadata` (JSON) to one safetensors file, atomically and reproducibly."""
        # One metadata key: safetensors does not promise an order among several.
        write_tensors(
            path, self.state_dict(), {"medlt": json.dumps({"config": self.config, **metadata}, sort_keys=True)}
        )

    @classmethod
    def load(cls, path: Path) -> SimplicialCoder:
        """Load a coder that `save` wrote, in eval mode. Raises InputError for any other file."""
        try:
            coder = cls(**read_metadata(path)["config"])
            coder.load_state_dict(read_tensors(path))
        except (KeyError, TypeError, RuntimeError):  # another class, other settings, other tensors
            raise _no_coder(path) from None
        return coder.eval()


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata that `SimplicialCoder.save` wrote. Raises InputError if `path` is not a coder."""
    try:
        with safe_open(path, framework="pt") as handle:
            return dict(json.loads(handle.metadata()["medlt"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        raise _no_coder(path) from None


def _no_coder(path: Path) -> InputError:
    return InputError(f"{path}: is not a sparse coder; remove it and run again to train one")
