"""Align windows of references with images by similarity maps: shift, scale and rotation.

Gauss-Newton steps on the squared difference of fields (Baker & Matthews, Lucas-Kanade 20 Years On, IJCV 56, 2004), of
which the map of highest correlation is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

SIZE = 64  # pixels of a field; places are in pixels of half this size


class Window(NamedTuple):
    """A window of a reference: width, top and left in pixels of the half size, and the family of its distance."""

    width: int
    top: int
    left: int
    family: str


def unit(values: Tensor) -> Tensor:
    """Return the last axis without its mean, at length 1."""
    centred = values - values.mean(-1, keepdim=True)
    length: Tensor = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    return centred / (length + 1e-6)


def cut(fields: Tensor, width: int, top: int, left: int) -> Tensor:
    """Return one window of fields [B,1,h,w] as unit vectors [B,width^2]."""
    return unit(fields[:, 0, top : top + width, left : left + width].flatten(1))


class Candidates(NamedTuple):
    """Rows of references [B,K], the places [B,K,3] of their windows in the image, and the sign [B,K] of each."""

    row: Tensor
    place: Tensor
    sign: Tensor


@dataclass(frozen=True)
class Alignment:
    """Similarity maps [P,4] from the windows of references, unit vectors `target` [P,w^2], into images [P,3,h,w].

    The images hold a field and its two derivatives. A map is (y, x, scale, turn) of the centre of the window, in pixels
    of the half size; `zoom` is the size of the images over the half size.
    """

    image: Tensor
    target: Tensor
    map: Tensor
    zoom: int

    @classmethod
    def start(cls, sides: Tensor, references: Tensor, window: Window, near: Candidates) -> Alignment:
        """Return the alignment of the candidates at their places; sides: fields [B,4,1,h,w]."""
        zoom = 2 * references.shape[-1] // SIZE
        image = sides[torch.arange(len(sides))[:, None], near.place[..., 0]].flatten(0, 1)
        image = image * near.sign.reshape(-1, 1, 1, 1)
        down = functional.pad(image[:, :, 2:] - image[:, :, :-2], (0, 0, 1, 1)) / 2
        across = functional.pad(image[..., 2:] - image[..., :-2], (1, 1)) / 2
        width, top, left = (zoom * one for one in window[:3])
        target = cut(references[near.row.flatten()], width, top, left)
        centre = near.place[..., 1:].reshape(-1, 2).float() + (window.width - 1) / 2
        ones = torch.tensor([1.0, 0]).expand(len(centre), 2)
        return cls(torch.cat([image, down, across], 1), target, torch.cat([centre, ones], 1), zoom)

    def _sampled(self) -> tuple[Tensor, Tensor]:
        """Return the images and derivatives in the windows, [P,3,w^2], and coordinates of the windows, [3,w^2]."""
        side = round(self.target.shape[1] ** 0.5)
        line = (torch.arange(side) - (side - 1) / 2) / self.zoom
        down, across = (one.flatten() for one in torch.meshgrid(line, line, indexing="ij"))
        basis = torch.stack([torch.ones_like(down), down, across])
        y, x, scale, turn = self.map.T
        at = torch.stack([y, scale, turn, x, -turn, scale], 1).view(-1, 2, 3) @ basis  # [P,2,w^2], y and x
        grid = ((at + 0.5) * (4 / SIZE) - 1).flip(1).transpose(1, 2)[:, None]
        seen = functional.grid_sample(self.image, grid, align_corners=False, padding_mode="border")
        return seen[:, :, 0], basis

    def window(self) -> Tensor:
        """Return the windows of the images, unit vectors [P,w^2]."""
        return unit(self._sampled()[0][:, 0])

    def correlation(self) -> Tensor:
        """Return the correlation of the windows with their targets, [P]."""
        return (self.window() * self.target).sum(1)

    def best(self, steps: int) -> Alignment:
        """Return the alignment of highest correlation among this one and those after each of `steps` steps."""
        now, kept, high = self, self.map, self.correlation()
        for _ in range(steps):
            now = now.step()
            correlation = now.correlation()
            kept = torch.where((correlation > high)[:, None], now.map, kept)
            high = torch.maximum(correlation, high)
        return replace(self, map=kept)

    def step(self) -> Alignment:
        """Return the alignment after one damped Gauss-Newton step, within plausible maps."""
        (seen, basis), zoom = self._sampled(), self.zoom
        centred = seen[:, 0] - seen[:, 0].mean(1, keepdim=True)
        by, bx, (_, down, across) = seen[:, 1], seen[:, 2], basis
        slope = zoom * torch.stack([by, bx, by * down + bx * across, by * across - bx * down], 1)
        slope = slope - slope.mean(2, keepdim=True)
        square = slope @ slope.transpose(1, 2)
        square = square + (0.01 * square.diagonal(dim1=1, dim2=2) + 1e-4).diag_embed()
        error = self.target * torch.linalg.vector_norm(centred, dim=1, keepdim=True) - centred
        change = torch.linalg.solve(square, slope @ error[..., None])[..., 0]
        limit = torch.tensor([0.75, 0.75, 0.08, 0.08])
        new = self.map + change.clamp(-limit, limit)
        lowest, highest = torch.tensor([-4.0, -4, 0.8, -0.25]), torch.tensor([SIZE / 2 + 4, SIZE / 2 + 4, 1.25, 0.25])
        return replace(self, map=new.clamp(lowest, highest))
