"""Latent fusion: a tail image's own pixels in the body of a head image, cleaned by the last steps of a diffusion model.

Elberg, Parra, Petrache, "Long Tail Image Generation Through Feature Space Augmentation and Iterated Learning",
arXiv 2405.01705. Notation: `medlt.sparse.embedding` (z, E, D, C, s) and `medlt.synthesis.fuse` (a, b, T, G, omega).

    plan    tail image i with finding c; head partner j, another patient of the same fold; q_a, q_b ~ N; p ~ U(0,1)
    fuse    s' from E(z_i), E(z_j) under A_c(i) > q_a and A_c'(j) < q_b;  z' = D(s')
    refine  the last k of N steps from sqrt(abar) z' + sqrt(1-abar) eps (renoise; without it from z', as published),
            classifier-free guidance with the label vector as prompt, then any `guides`
    decode  image = decode(un-standardised z)

`plan` draws all chance; `run` is a function of each row alone, bit for bit on a CPU, whatever the image is made beside
(`medlt.diffusion.batching`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from medlt.diffusion.backbone import Backbone
from medlt.diffusion.sampler import from_latent, last_steps
from medlt.rng import noise_like, seed_of
from medlt.sparse.embedding import SimplicialCoder
from medlt.synthesis.code_explainer import CodeExplainer, Latents
from medlt.synthesis.conditional import drawn
from medlt.synthesis.fuse import coins, fuse, masks
from medlt.synthesis.guides import Guide, targets
from medlt.synthesis.labels import fused_labels, mass
from medlt.synthesis.plan import PlanSettings, TrainTable, plan
from medlt.synthesis.space import Standardises, in_calls
from medlt.types import Batch, InputError

PANELS = ("tail", "head", "cam_tail", "cam_head", "mask", "fused", "refined")


@dataclass(frozen=True)
class _Fused:
    """All that is known of rows before refinement; z_* standardised [B,C,h,w], maps and omega [B,h,w]."""

    z_tail: Tensor
    z_head: Tensor
    cam_tail: Tensor
    cam_head: Tensor
    omega: Tensor
    z: Tensor
    labels: np.ndarray
    tail_mass: np.ndarray


@dataclass(kw_only=True)
class LatentFusion:
    """The method, with everything it needs passed in.

    collection: train rows; coder: trained, of `collection.findings`; latents: uids -> standardised latents [N,C,h,w];
    standardiser: as fitted on the train split; backbone: safe to call from several threads, told the label vector and
    the tail image's view; decode: codec latents [B,C,h,w] -> images [B,1,H,W] in [0,1], a row's bytes a function of the
    row (as those of `medlt.diffusion.decode`); scheduler: makes a fresh one, timesteps set.
    `strength` is k/N; `batch_size` rows are in memory at once.
    """

    collection: TrainTable
    coder: SimplicialCoder
    latents: Latents
    standardiser: Standardises
    backbone: Backbone
    decode: Callable[[Tensor], Tensor]
    scheduler: Callable[[], Any]
    draws: PlanSettings = field(default_factory=PlanSettings)
    cam: str = "gradcam"
    strength: float = 5 / 75
    renoise: bool = True
    guidance_scale: float = 3.5
    guidance: tuple[Guide, ...] = ()
    labels: str = "cam_mass"
    rule: str = "published"
    batch_size: int = 32
    reads_real_images: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if self.coder.config["findings"] != len(self.collection.findings):
            told, wanted = self.coder.config["findings"], len(self.collection.findings)
            raise InputError(f"fusion: the coder knows {told} findings, the collection {wanted}; train it again")
        if not 0 < self.strength <= 1:
            raise InputError(f"fusion: strength is {self.strength}; give a share of the steps above 0, at most 1")
        self._steps = last_steps(self.strength, int(self.scheduler().num_inference_steps))
        self.gaze = CodeExplainer(self.coder, self.latents, self.cam)
        self._sample = in_calls(self._last_steps, self.backbone.device, self.batch_size)

    def plan(self, need: Mapping[str, int], seed: int) -> pd.DataFrame:
        """As `medlt.synthesis.plan.plan`: need[finding] slots with `draws.candidates` rows each, index uid."""
        return plan(self.collection, self.gaze, self.draws, need, seed)

    def run(self, rows: pd.DataFrame) -> Iterator[Batch]:
        """Batches of finished images in the order of `rows`, each a function of its own row.

        Rows gain `mask_share`, the share of latent pixels from the tail image, and `tail_mass`, the share of the tail
        finding's class activation map on them. Raises InputError for a parent that is not in the collection.
        """
        for part in self._parts(rows):
            fused = self._fuse(part)
            images = self._picture(self._refine(part, fused))
            share = fused.omega.double().mean((1, 2)).cpu().numpy()
            labels = pd.DataFrame(fused.labels, index=part.index, columns=list(self.collection.findings))
            yield Batch(part.assign(mask_share=share, tail_mass=fused.tail_mass), images, labels)

    def explain(self, rows: pd.DataFrame) -> dict[str, Tensor]:
        """How `rows` came about, images [B,1,H,W] in [0,1]: tail, head, cam_tail, cam_head, mask, fused, refined."""
        shown = [self._panels(part) for part in self._parts(rows)]
        return {name: torch.cat([panel[name] for panel in shown]) for name in shown[0]} if shown else {}

    def with_guidance(self, guidance: tuple[Guide, ...]) -> LatentFusion:
        """Return the same method with other guides."""
        return replace(self, guidance=guidance)

    def _parts(self, rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
        """Rows in groups of `batch`."""
        for column in ("tail_parent", "head_parent"):
            if len(lost := rows.loc[~rows[column].isin(self.collection.table.index), column]):
                raise InputError(f"plan: {column} {lost.iloc[0]!r} is not a train row; plan again for this collection")
        for start in range(0, len(rows), self.batch_size):
            yield rows.iloc[start : start + self.batch_size]

    def _fuse(self, rows: pd.DataFrame) -> _Fused:
        """Codes, maps, masks, fused latents and labels."""
        z_a, z_b = (self.gaze.see(rows[name].tolist()) for name in ("tail_parent", "head_parent"))
        a, b = self.gaze.code(z_a), self.gaze.code(z_b)
        cam_a, cam_b = (self.gaze.maps(s, self._columns(rows[c])) for s, c in ((a, "finding"), (b, "finding_b")))
        tail, generic = masks(cam_a, cam_b, rows["q_a"].tolist(), rows["q_b"].tolist())
        coin = coins(rows["seed"].tolist(), rows["p"].tolist(), (a.shape[-2], a.shape[-1])).to(a.device)
        s, omega = fuse(a, b, tail, generic, coin, self.rule)
        labels = self._labels(rows, a, b, omega)
        return _Fused(z_a, z_b, cam_a, cam_b, omega, self.gaze.decode(s), labels, mass(cam_a, omega))

    def _columns(self, names: Sequence[str]) -> np.ndarray:
        return np.array([self.collection.findings.index(c) if c else -1 for c in names])

    def _masses(self, s: Tensor, y: np.ndarray, pixels: Tensor) -> np.ndarray:
        """Mass on `pixels` of the map of every finding each row has, [B,K]; 1 where it has not."""
        found = np.ones_like(y)
        row, column = np.nonzero(y == 1)
        if len(row):
            at = torch.from_numpy(row).to(s.device)
            found[row, column] = mass(self.gaze.maps(s[at], column), pixels[at])
        return found

    def _labels(self, rows: pd.DataFrame, a: Tensor, b: Tensor, omega: Tensor) -> np.ndarray:
        """Label vectors [B,K] by the rule, from the masses of every finding a parent has."""
        names, table = list(self.collection.findings), self.collection.table
        y_a, y_b = (table.loc[rows[c].tolist(), names].to_numpy(np.float64) for c in ("tail_parent", "head_parent"))
        mass_a, mass_b = self._masses(a, y_a, omega), self._masses(b, y_b, ~omega)
        none = self.collection.no_finding
        return fused_labels(self.labels, y_a, y_b, mass_a, mass_b, names.index(none) if none else None)

    def _refine(self, rows: pd.DataFrame, fused: _Fused) -> Tensor:
        """The last k steps from the fused latent; in and out standardised."""
        standardised = self.backbone.space == "standardised"
        z = fused.z if standardised else self.standardiser.back(fused.z)
        seeds = [seed_of("noise", int(seed)) for seed in rows["seed"]]
        where = self.backbone.device
        names = targets(rows["finding"], self.collection.findings)
        told = (z, noise_like(seeds, z.shape[1:]), self._condition(rows, fused), torch.from_numpy(fused.labels), names)
        refined = self._sample(*(part.to(where) for part in told), torch.tensor(seeds)).to(z.device)
        return refined if standardised else self.standardiser.to(refined)

    def _condition(self, rows: pd.DataFrame, fused: _Fused) -> Tensor:
        """What the network is told of each row: its label vector and the view it shares with its tail parent."""
        table = self.collection.table
        views = table["view"].reindex(rows["tail_parent"]) if "view" in table else [None] * len(rows)
        return self.backbone.condition(torch.from_numpy(fused.labels).float(), [{"view": view} for view in views])

    def _last_steps(self, z: Tensor, noise: Tensor, *told: Tensor) -> Tensor:
        return drawn(self, lambda scheduler: from_latent(z, noise, scheduler, self._steps, self.renoise), *told)

    def _picture(self, z: Tensor) -> Tensor:
        """Images of standardised latents."""
        return self.decode(self.standardiser.back(z)).cpu()

    def _panels(self, rows: pd.DataFrame) -> dict[str, Tensor]:
        fused = self._fuse(rows)
        latents = {"tail": fused.z_tail, "head": fused.z_head, "fused": fused.z, "refined": self._refine(rows, fused)}
        shown = {name: self._picture(z) for name, z in latents.items()}
        size = shown["tail"].shape[-2:]
        maps = {"cam_tail": fused.cam_tail, "cam_head": fused.cam_head}
        smooth = {name: F.interpolate(m[:, None].cpu(), size, mode="bilinear") for name, m in maps.items()}
        every = shown | smooth | {"mask": F.interpolate(fused.omega[:, None].float().cpu(), size, mode="nearest")}
        return {name: every[name] for name in PANELS}
