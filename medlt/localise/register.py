"""Radiographs in one frame: the affine map of each image to the mean radiograph of its collection.

A finding lies where the lungs and the heart are, and these lie elsewhere in each image. So each image is registered to
the mean of the train images, and each iteration makes that mean sharper (Learned-Miller, "Data driven image models
through continuous joint alignment", IEEE TPAMI 28(2), 2006). No network and no segmentation is needed.

| symbol | what |
|---|---|
| u, x | a point of the mean radiograph, and of an image, in [-1,1]^2 (across, down); 2 is the side of the image |
| p = (a, b, c, d) | pose of an image: x = (exp(a) u_1 + c, exp(b) u_2 + d). Zeros are the identity |
| f, m | features of an image, and of the mean radiograph, [32,32]: local contrast, which exposure does not change |

    p = argmin 1 - r(f(x(u)), m(u)) + RIDGE |p / SPREAD|^2        r: correlation, weighted by a Gaussian of u

first with a wide and then with a narrow blur of f. An image is registered alone, so its pose does not depend on the
others of its batch. A fit that is no better than the identity, or beyond LIMITS, fails, and its pose is the identity.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medlt.files import read_tensors, write_tensors
from medlt.store import Store

FORMAT = 2  # part of the key: increase it if the same images would get other poses
SIDE = 32
"""Side of the features, px."""
LOCAL, BLURS = 4.0, (2.0, 1.0)
"""Standard deviations of the neighbourhood of the local contrast, and of the wide and the narrow blur, px."""
WINDOW = 0.7
"""Standard deviation of the weight of u."""
STEPS, RATE = 25, 0.05
"""Steps of Adam for each blur, and its first learning rate, which falls to 0 as a cosine."""
RIDGE, SPREAD = 0.01, (0.12, 0.12, 0.15, 0.15)
LIMITS = (0.5, 0.5, 0.6, 0.6)
MOST, CHUNK = 512, 256
"""Largest number of images that the mean radiograph is made of, and images that are registered at a time."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeanRadiograph:
    """Features of the mean radiograph [2,1,32,32], with the wide and with the narrow blur."""

    features: Tensor

    @classmethod
    def of(cls, images: Tensor) -> MeanRadiograph:
        """Return the mean of images, uint8 or float [N,1,S,S], each moved to where the others are."""
        levels, poses = features(images), torch.zeros(len(images), 4)
        for level in levels:
            poses = fit_poses(level, _mean(level, poses), poses)
            poses = poses - poses.mean(0)
        return cls(torch.stack([_mean(level, poses) for level in levels]))

    def poses(self, images: Tensor) -> Tensor:
        """Return the pose p of each image [N,1,S,S], float32 [N,4]; zeros where the fit fails."""
        return (
            torch.cat([self._poses(part) for part in torch.split(images, CHUNK)]) if len(images) else torch.zeros(0, 4)
        )

    def _poses(self, images: Tensor) -> Tensor:
        levels, start = features(images), torch.zeros(len(images), 4)
        poses = start
        for level, mean in zip(levels, self.features, strict=True):
            poses = fit_poses(level, mean, poses)
        narrow, mean = levels[-1], self.features[-1]
        better = _correlation(_moved(narrow, poses), mean) > _correlation(_moved(narrow, start), mean)
        within = (poses.abs() <= torch.tensor(LIMITS)).all(1)
        return torch.where((better & within)[:, None], poses, start)


def features(images: Tensor) -> list[Tensor]:
    """Return f of images [N,1,S,S], with the wide and with the narrow blur, each [N,1,32,32] with mean 0."""
    x = F.interpolate(images.float(), (SIDE, SIDE), mode="area")
    x = x / x.amax((2, 3), keepdim=True).clamp_min(1e-6)
    local = x - _blur(x, LOCAL)
    contrast = local / (_blur(local**2, LOCAL).sqrt() + 0.05)
    blurred = [_blur(contrast, sigma) for sigma in BLURS]
    return [one - one.mean((2, 3), keepdim=True) for one in blurred]


def fit_poses(level: Tensor, mean: Tensor, start: Tensor) -> Tensor:
    """Return poses [N,4] that move features [N,1,h,w] to the mean [1,h,w], from `start` on."""
    poses, spread = start.clone().requires_grad_(True), torch.tensor(SPREAD)
    optimizer = torch.optim.Adam([poses], RATE)
    with torch.enable_grad():
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / STEPS)) / 2
            loss = RIDGE * ((poses / spread) ** 2).sum() - _correlation(_moved(level, poses), mean).sum()
            poses.grad = torch.autograd.grad(loss, poses)[0]
            optimizer.step()
    return poses.detach()


def to_mean(maps: Tensor, poses: Tensor) -> Tensor:
    """Return maps of images [B,h,w] as maps of the mean radiograph, by the poses [B,4] of the images; 0 outside."""
    return _sample(maps[:, None], _matrices(poses), maps.shape[1:], "zeros")[:, 0]


def to_images(maps: Tensor, poses: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps of the mean radiograph [B,h,w] as maps of images with these poses, [B, *size]."""
    scale, shift = (-poses[:, :2]).exp(), poses[:, 2:]
    inverse = torch.cat([scale.log(), -shift * scale], 1)
    return _sample(maps[:, None], _matrices(inverse), size, "border")[:, 0]


def collection_poses(
    images: Callable[[Sequence[str]], Tensor], train: Sequence[str], others: Sequence[str], *, contents: str,
    store: Store,
) -> Mapping[str, Tensor]:  # fmt: skip
    """Return uid -> pose [4] of all images of a collection, by the mean radiograph of train images.

    images: uids -> [N,1,S,S], of which `contents` is a digest. The store keeps mean radiograph and poses.
    """
    every = [*train, *others]

    def build(folder: Path) -> None:
        at = np.unique(np.linspace(0, len(train) - 1, min(MOST, len(train))).round().astype(int))
        mean = MeanRadiograph.of(images([train[i] for i in at]))
        poses = torch.cat([mean.poses(images(every[i : i + CHUNK])) for i in range(0, len(every), CHUNK)])
        log.info("registered %d images; %d stay where they are", len(every), int((poses == 0).all(1).sum()))
        write_tensors(folder / "poses.safetensors", {"mean": mean.features, "poses": poses})

    key = {"format": FORMAT, "images": contents, "train": len(train), "all": len(every)}
    kept = read_tensors(store.make("poses", key, build).path("poses.safetensors"))
    return dict(zip(every, kept["poses"], strict=True))


def _mean(level: Tensor, poses: Tensor) -> Tensor:
    """Return the mean [1,h,w] of features in the frame of the mean radiograph."""
    return _moved(level, poses).mean(0)


def _moved(level: Tensor, poses: Tensor) -> Tensor:
    """Return f(x(u)), [N,1,h,w]."""
    return _sample(level, _matrices(poses), level.shape[2:], "border")


def _matrices(poses: Tensor) -> Tensor:
    """Return the matrices [N,2,3] of u -> x."""
    (a, b), zero = poses[:, :2].exp().unbind(1), torch.zeros(len(poses))
    return torch.stack([torch.stack([a, zero, poses[:, 2]], 1), torch.stack([zero, b, poses[:, 3]], 1)], 1)


def _sample(maps: Tensor, matrices: Tensor, size: Sequence[int], outside: str) -> Tensor:
    """Return maps [N,1,h,w] at the points that the matrices make of those of a grid of `size`."""
    points = F.affine_grid(matrices, [len(maps), 1, *size], align_corners=False)
    return F.grid_sample(maps, points, padding_mode=outside, align_corners=False)


def _correlation(moved: Tensor, mean: Tensor) -> Tensor:
    """Return r of features [N,1,h,w] and the mean [1,h,w], float32 [N]; 0 for a flat image."""
    line = torch.linspace(-1, 1, SIDE)
    weight = torch.exp(-(line[:, None] ** 2 + line**2) / (2 * WINDOW**2))
    weight = weight / weight.sum()
    x, y = (one - (weight * one).sum((-2, -1), keepdim=True) for one in (moved, mean))
    power = (weight * x * x).sum((-2, -1)) * (weight * y * y).sum((-2, -1))
    return ((weight * x * y).sum((-2, -1)) / power.clamp_min(1e-12).sqrt())[:, 0]


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Return images [N,1,h,w] blurred with a Gaussian of `sigma` px; the border is repeated."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    wide = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel[None, None, None])
    return F.conv2d(F.pad(wide, (0, 0, reach, reach), mode="replicate"), kernel[None, None, :, None])
