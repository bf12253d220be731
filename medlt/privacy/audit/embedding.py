"""A feature space of radiographs in which views of one image, and images of one patient, are close together.

A small residual network with group normalisation is trained by contrastive learning. A batch holds two views of each of
B patients: views of two images if the patient has two, else two views of one image. The loss identifies the partner of
each view among the 2B - 1 others,

    loss = -log softmax_j(z_i . z_j / temperature) at the partner of i, j != i

(NT-Xent, arXiv 2002.05709; with patients as classes it is the supervised contrastive loss of arXiv 2004.11362).
Packhäuser et al., Scientific Reports 12:14851 (2022), identify patients by chest radiographs in this way: AUC 0.994
from 112,120 images. Some thousands of images give less, so `verify` measures it on patients that the embedding was not
trained on.

Train the embedding on ALL real images of the audit, members and held-out images alike. An embedding that has seen only
one of the two kinds would distinguish them by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medlt.files import digest, digest_tensors, read_tensors, tensor_bytes, write_tensors
from medlt.metrics.draws import owners
from medlt.privacy.audit.views import training_view
from medlt.rng import numpy_generator, seed_of, torch_generator
from medlt.store import Store
from medlt.training import loop
from medlt.training.runtime import Runtime
from medlt.training.settings import BatchPart, Training
from medlt.types import InputError

Embed: TypeAlias = Callable[[Tensor], Tensor]
"""Images [B,1,H,W], uint8 or float in [0,1] -> unit vectors float32 [B,D], on the CPU."""

FORMAT = 2  # part of the key: increase it if the same settings would train other weights
FILE = "embedding.safetensors"
WIDTHS = (16, 32, 48, 64)


class _Block(nn.Module):
    """A residual block that halves the size."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, 2, 1, bias=False)
        self.norm = nn.GroupNorm(8, outside)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.last = nn.GroupNorm(8, outside)
        self.skip = nn.Conv2d(inside, outside, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B,outside,h/2,w/2] of x [B,inside,h,w]."""
        inner = self.second(torch.relu(self.norm(self.first(x))))
        return torch.relu(self.skip(x) + self.last(inner))


class SiameseNetwork(nn.Module):
    """Network from images [B,1,S,S] to unit vectors [B,D]. It keeps positions (no pooling) and ignores contrast."""

    def __init__(self, size: int = 64, features: int = 128, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 5, 2, 2)
        self.body = nn.Sequential(*[_Block(i, o) for i, o in pairwise(widths)])
        self.head = nn.Linear(widths[-1] * (size // 2 ** len(widths)) ** 2, features)

    def forward(self, images: Tensor) -> Tensor:
        """Return unit vectors [B,D]."""
        centred = images - images.mean((2, 3), keepdim=True)
        scaled = centred / (centred.square().mean((2, 3), keepdim=True).sqrt() + 1e-3)
        return functional.normalize(self.head(self.body(torch.relu(self.stem(scaled))).flatten(1)))


def prepared(images: Tensor, size: int) -> Tensor:
    """Return uint8 or float images [B,1,H,W] as float32 in [0,1], resized by area to `size`; NaN and inf become 0."""
    floats = images.float() / 255 if images.dtype == torch.uint8 else images.float().nan_to_num(0, 0, 0).clamp(0, 1)
    return floats if floats.shape[-2:] == (size, size) else functional.interpolate(floats, (size, size), mode="area")


@dataclass(frozen=True)
class Embedding:
    """A trained network as a function of images, see `Embed`; `digest` is that of its weights."""

    network: SiameseNetwork
    size: int
    digest: str

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return unit vectors [B,D] of images [B,1,H,W], in blocks."""
        device = next(self.network.parameters()).device
        parts = [self.network(prepared(block.to(device), self.size)).cpu() for block in torch.split(images, 256)]
        return torch.cat(parts) if len(images) else torch.zeros(0, self.network.head.out_features)


def fit_embedding(
    images: Tensor, patients: Sequence[str], *, runtime: Runtime, store: Store, steps: int = 250, size: int = 64,
    batch_size: int = 96, learning_rate: float = 3e-3, temperature: float = 0.1,
) -> Embedding:  # fmt: skip
    """Train the embedding on all real images uint8 [N,1,S,S] of `patients` [N].

    Give members and held-out images together (see the module). The store keeps the weights by images, patients,
    settings and seed. 250 steps take about a minute on one core. `size` is a multiple of 16. The precision is always
    float32. Raises InputError for fewer than 8 patients, or if images and patients differ in number.
    """
    if len(images) != len(patients) or images.ndim != 4:
        raise InputError(f"images {tuple(images.shape)}, {len(patients)} patients; give [N,1,S,S] and N patients")
    of = owners([str(one) for one in patients])
    if of.max(initial=-1) < 7:
        raise InputError(f"{of.max(initial=-1) + 1} patients cannot train an embedding; give at least 8")
    settings = {"steps": steps, "size": size, "batch_size": batch_size, "learning_rate": learning_rate,
                "temperature": temperature, "widths": WIDTHS}  # fmt: skip
    pixels = digest(str(images.dtype), list(images.shape), tensor_bytes(images))
    key = {"format": FORMAT, "settings": settings, "seed": runtime.seed, "images": pixels,
           "patients": digest(of.tolist())}  # fmt: skip
    runtime, network = runtime.at("fp32"), _fresh(size, runtime.seed)
    device = runtime.torch_device("embedding")
    pace = Training(steps, learning_rate, batch_size, "cosine", warmup_steps=round(0.05 * steps), ema_decay=0.0,
                    max_grad_norm=math.inf, weight_decay=0.05, checkpoint_every=None)  # fmt: skip

    def build(folder: Path) -> None:
        loss = PairLoss(images, of, batch_size, size, temperature, runtime.seed)
        trained = _fresh(size, runtime.seed)
        loop.fit(trained, loss, pace, runtime=runtime, folder=None, key=digest(key), name="embedding")
        write_tensors(folder / FILE, trained.state_dict())

    network.load_state_dict(read_tensors(store.make("embedding", key, build, joint=True).path(FILE)))
    network.to(device).eval().requires_grad_(False)
    return Embedding(network, size, digest_tensors(network.state_dict()))


def _fresh(size: int, seed: int) -> SiameseNetwork:
    """Return an untrained network, channels last, without changing torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "embedding weights"))
        network = SiameseNetwork(size)
    return network.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


class PairLoss:
    """The contrastive loss of a step on views of images of its patients, a function of (seed, step)."""

    def __init__(
        self, images: Tensor, of: np.ndarray, batch: int, size: int, temperature: float, seed: int
    ) -> None:  # fmt: skip
        self.images, self.size, self.temperature, self.seed = images, size, temperature, seed
        self.pairs = _Pairs(of, batch)

    def __call__(self, network: nn.Module, step: int, part: BatchPart) -> Tensor:
        """Return the loss of a step. Partners stay together if a batch is split."""
        left, right = (part.take(rows) for rows in self.pairs.draw(numpy_generator(self.seed, "embedding pairs", step)))
        images = prepared(self.images[torch.from_numpy(np.concatenate([left, right]))], self.size)
        views = training_view(images, torch_generator(self.seed, "embedding views", step))
        device = next(network.parameters()).device
        vectors = network(views.to(device).contiguous(memory_format=torch.channels_last))
        return contrastive(vectors, self.temperature)


def contrastive(vectors: Tensor, temperature: float) -> Tensor:
    """Return the NT-Xent loss of unit vectors [2B,D], where rows i and i + B are partners."""
    n = len(vectors)
    near = (vectors @ vectors.T / temperature).masked_fill(torch.eye(n, dtype=torch.bool, device=vectors.device), -1e4)
    return functional.cross_entropy(near, torch.arange(n, device=vectors.device).roll(n // 2))


class _Pairs:
    """Batches of distinct patients, two rows each; up to half of a batch are patients with several images."""

    def __init__(self, of: np.ndarray, batch: int) -> None:
        order, counts = np.argsort(of, kind="stable"), np.bincount(of)
        rows = np.split(order, np.cumsum(counts)[:-1])
        self.several = [r for r in rows if len(r) > 1]
        self.single = [r for r in rows if len(r) == 1]
        size = min(batch, len(rows))
        self.first = min(len(self.several), max(size // 2, size - len(self.single)))
        self.second = size - self.first

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return two rows of each patient of a batch, ([B], [B])."""
        pairs = [rng.choice(self.several[i], 2, replace=False) for i in _some(rng, len(self.several), self.first)]
        pairs += [self.single[i].repeat(2) for i in _some(rng, len(self.single), self.second)]
        both = np.array(pairs)
        return both[:, 0], both[:, 1]


def _some(rng: np.random.Generator, n: int, count: int) -> np.ndarray:
    """Return `count` different random numbers below n."""
    chosen: np.ndarray = rng.permutation(n)[:count]
    return chosen
