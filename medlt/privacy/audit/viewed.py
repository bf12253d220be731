"""Views of an image in which a denoiser may have memorised it: mirrored, inverted, shifted.

A denoiser that was trained on inverted or shifted images has a low loss on those, and an ordinary one on the images as
they are. So the views of lowest loss are chosen for the denoiser, on a sample of all images without knowing who is a
member: first on a grid of shifts up to 9/64 of the width with and without mirror image and inversion, then 1/64 around
the best. The loss of a view is the mean over the eighth of the sample where it is lowest, for what is memorised is far
below the rest, and all images are easier with extended edges. A score is that of the best view at each timestep. The
views are the same for members and others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.nn import functional

UNIT, REACH, STEP = 64, 9, 3  # shifts are in 1/64 of the width


class View(NamedTuple):
    """A view: shift down and across in 1/64 of the width, with extended edges, of the mirrored or inverted image."""

    down: int = 0
    across: int = 0
    mirrored: bool = False
    inverted: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Return the view of float images [B,1,H,W] in [0,1]."""
        seen = images.flip(-1) if self.mirrored else images
        seen = 1 - seen if self.inverted else seen
        down, across = (round(part * images.shape[-1] / UNIT) for part in self[:2])
        reach = max(abs(down), abs(across))
        if not reach:
            return seen
        padded = functional.pad(seen, (reach,) * 4, mode="replicate")
        height, width = images.shape[-2:]
        return padded[..., reach - down : reach - down + height, reach - across : reach - across + width]

    def __str__(self) -> str:
        named = [word for word, on in (("mirrored", self.mirrored), ("inverted", self.inverted)) if on]
        named += [f"shifted by ({self.down}, {self.across})/{UNIT}"] if self.down or self.across else []
        return " and ".join(named) or "as it is"


def chosen_views(loss: Callable[[View], float], count: int = 3) -> list[View]:
    """Return the image as it is and the `count` other views of lowest loss; shifts that are neighbours count once."""
    line = range(-REACH, REACH + 1, STEP)
    losses = {View(*one): loss(View(*one)) for one in product(line, line, (False, True), (False, True))}
    best = min(losses, key=losses.__getitem__)
    for down, across in product((-1, 0, 1), (-1, 0, 1)):
        near = best._replace(down=best.down + down, across=best.across + across)
        if near not in losses:
            losses[near] = loss(near)
    others = sorted((one for one in losses if one != View()), key=losses.__getitem__)
    return [View(), *others[:count]]


def lowest_loss(losses: np.ndarray) -> float:
    """Return the mean of the lowest eighth of losses [N]."""
    return float(np.sort(losses)[: max(1, len(losses) // 8)].mean())


def best_view(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Return the scores [N,T] of the best view at each timestep, of scores [N,T] of each view."""
    return np.asarray(np.max(np.stack(scores), 0))


def sample_rows(count: int, rng: np.random.Generator, most: int = 32) -> np.ndarray:
    """Return up to `most` random rows of `count`, int64, sorted."""
    return np.sort(rng.permutation(count)[:most])
