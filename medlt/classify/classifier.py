"""A trained image classifier: it returns probabilities and features of images of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medlt.classify.networks import Network
from medlt.classify.sets import to_uint8
from medlt.rows import Rows, chunks


@dataclass(frozen=True)
class Pace:
    """Speed of a training without its evaluations: images/s, and the share of time not spent waiting for a batch.

    On a GPU, which computes while the next batch is made, the true busy share is at least `busy`.
    """

    images_per_second: float
    busy: float


class Clock:
    """Measure a training: images seen, seconds spent waiting for batches and on evaluations, and total seconds."""

    def __init__(self) -> None:
        self.begun, self.spent, self.images = perf_counter(), {"waiting": 0.0, "evaluating": 0.0}, 0

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`."""
        begun = perf_counter()
        yield
        self.spent[name] += perf_counter() - begun

    def pace(self) -> Pace:
        """Return the pace of a training that started when this clock was made."""
        time = max(perf_counter() - self.begun - self.spent["evaluating"], 1e-9)
        return Pace(self.images / time, 1 - self.spent["waiting"] / time)


@dataclass(frozen=True)
class Classifier:
    """A trained network on images of side `size`. `record` holds settings, history and digests, as written to JSON.

    `pace` is the pace of its training, None for a classifier read from disk.
    """

    net: Network
    size: int
    record: dict[str, Any]
    pace: Pace | None = None

    def __call__(self, images: Rows) -> Tensor:
        return self.predict(images)

    @property
    def task(self) -> str:
        """Return "multi-label" or "single-label"."""
        return str(self._setting("task", "multi-label"))

    @property
    def precision(self) -> str:
        """Return "bf16" or "fp32"."""
        return str(self._setting("precision", "bf16"))

    @property
    def frozen(self) -> bool:
        """Return whether the body has the pretrained weights, so that classifiers of one body share features."""
        return bool(self._setting("frozen", False))

    def _setting(self, name: str, default: object) -> object:
        return self.record.get("settings", {}).get(name, default)

    @torch.no_grad()
    def predict(self, images: Rows, chunk: int = 64) -> Tensor:
        """Return probabilities float32 [B,K] of images [B,1,H,W], uint8 or float in [0,1].

        The multi-label task has sigmoids. The single-label task has a softmax, whose rows sum to 1. Floats are first
        rounded to 8 bit and other sizes are resized to `size` by area, as in a written file.
        """
        return self._probabilities(self._in_chunks(self.net, images, chunk, self.net.head.out_features))

    @torch.no_grad()
    def predict_from(self, features: Rows) -> Tensor:
        """Return probabilities float32 [B,K], on the CPU, of features [B,D] as `features` returns them."""
        return self._probabilities(self.net.head(features[:].to(self.net.head.weight.device)).cpu())

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(1) if self.task == "single-label" else logits.sigmoid()

    @torch.no_grad()
    def features(self, images: Rows, chunk: int = 64) -> Tensor:
        """Return the input of the head, float32 [B,D], for images as in `predict`."""
        return self._in_chunks(self.net.features, images, chunk, self.net.head.in_features)

    def _in_chunks(self, fn: Callable[[Tensor], Tensor], images: Rows, chunk: int, width: int) -> Tensor:
        self.net.eval()
        place = next(self.net.parameters()).device
        parts = [
            in_precision(fn, _resized(to_uint8(part).to(place), self.size), self.precision).cpu()
            for part in chunks(images, chunk)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, width)


def _resized(images: Tensor, size: int) -> Tensor:
    """Convert uint8 [B,1,H,W] to float [B,1,size,size] in [0,1]."""
    images = images.float() / 255
    return images if images.shape[-2:] == (size, size) else F.interpolate(images, (size, size), mode="area")


def in_precision(fn: Callable[[Tensor], Tensor], images: Tensor, precision: str = "bf16") -> Tensor:
    """Apply `fn` to images [B,1,S,S] in [0,1] and return float32 [B,...]; bf16 is twice as fast on a CPU as fp32.

    Images of 16 pixels or less are computed in float32. Their last maps have one pixel, for which the bfloat16 gradient
    of a 3x3 convolution has numbers of uninitialised memory where the kernel sees padding only (torch 2.13 on a CPU
    with AMX).
    """
    low = precision == "bf16" and min(images.shape[-2:]) > 16
    with torch.autocast(images.device.type, torch.bfloat16, enabled=low):
        return fn(images).float()
