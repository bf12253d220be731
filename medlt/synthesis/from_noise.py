"""Conditional sampling: images from noise alone, told the label vector of a real train row.

The methods that only guide this sampler, or choose its label vectors, are small subclasses of it.

    plan    tail finding c; a real row that has it lends its label vector, view, sex and age; a seed
    sample  the whole schedule from unit noise, classifier-free guidance (arXiv 2207.12598), then any `guides`
    decode  image = decode(un-standardised x0)

Label vectors are drawn among real ones, so that findings occur together as they do in patients. No pixel of a real
image is read. A row is a function of itself, as in `medlt.synthesis.fusion`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from medlt.chance import noise_like, rng, seed_of
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.sampler import from_noise, sample
from medlt.synthesis.guides import Guide, Told, guided, targets
from medlt.synthesis.plan import Collection
from medlt.synthesis.space import Standardises, in_calls
from medlt.types import Batch, InputError

ABOUT = ("view", "sex", "age")
COLUMNS = ("finding", "slot", "candidate", "like", "parents", "seed", "fold", *ABOUT)


@dataclass(kw_only=True)
class FromNoise:
    """The method, with everything it needs passed in.

    collection: train rows; backbone: safe to call from several threads; shape: (C,h,w) of its latents; standardiser,
    decode and scheduler as in `medlt.synthesis.fusion.LatentFusion`; boost and skip as in
    `medlt.diffusion.sampler.from_noise`, which refuses what does not go together; `batch` rows are in memory at once.
    """

    collection: Collection
    backbone: Backbone
    shape: tuple[int, int, int]
    standardiser: Standardises
    decode: Callable[[Tensor], Tensor]
    scheduler: Callable[[], Any]
    candidates: int = 1
    guidance: float = 3.5
    guides: tuple[Guide, ...] = ()
    boost: float = 1.0
    skip: int = 0
    batch: int = 32
    reads_real_images: bool = field(default=False, init=False)
    name: ClassVar[str] = "noise"

    def __post_init__(self) -> None:
        from_noise(torch.zeros(1, *self.shape), self.scheduler(), self.boost, self.skip)
        self._sample = in_calls(self._sampled, self.backbone.device, self.batch)

    def plan(self, need: Mapping[str, int], seed: int) -> pd.DataFrame:
        """need[finding] slots of `candidates` rows each, index uid. All candidates of a slot share the label vector.

        Raises InputError for a finding that is not a tail finding or has no positive train row.
        """
        if strange := [name for name in need if name not in self.collection.tail]:
            raise InputError(f"{self.name}: {strange[0]!r} is wanted but is not a tail finding; correct the need")
        chosen = ((*slot, n) for slot in self._slots(need, seed) for n in range(self.candidates))
        made = [self._row((seed, finding, slot, n), like) for finding, slot, like, n in chosen]
        return pd.DataFrame(made, columns=["uid", *COLUMNS]).set_index("uid")

    def _slots(self, need: Mapping[str, int], seed: int) -> Iterator[tuple[str, int, str]]:
        """(finding, slot, uid whose label vector it gets): every positive row of a finding in turn."""
        for finding in (name for name in self.collection.findings if need.get(name, 0) > 0):
            likes = rng(seed, "likes", finding).permutation(self.collection.positive(finding))
            yield from ((finding, slot, str(likes[slot % len(likes)])) for slot in range(need[finding]))

    def _row(self, key: tuple[int, str, int, int], like: str) -> dict[str, Any]:
        """One future image; key is (seed, finding, slot, candidate)."""
        _, finding, slot, candidate = key
        named = re.sub(r"\W+", "-", finding)
        uid = f"{self.name}_{named}_{slot:05d}_{candidate}_{seed_of('uid', *key) % 16**6:06x}"
        seed = int(rng("noise", *key).integers(2**63 - 1))
        source = self.collection.table.loc[like]
        said = (finding, slot, candidate, like, "", seed, source["fold"], *(source.get(name) for name in ABOUT))
        return {"uid": uid} | dict(zip(COLUMNS, said, strict=True))

    def run(self, rows: pd.DataFrame) -> Iterator[Batch]:
        """Batches of finished images in the order of `rows`, each a function of its own row.

        Raises InputError for a row whose label vector is not in the collection.
        """
        table, names = self.collection.table, list(self.collection.findings)
        if len(lost := rows.loc[~rows["like"].isin(table.index), "like"]):
            raise InputError(f"plan: like {lost.iloc[0]!r} is not a train row; plan again for this collection")
        for start in range(0, len(rows), self.batch):
            part = rows.iloc[start : start + self.batch]
            labels = table.loc[part["like"], names].astype(float).set_index(part.index)
            yield Batch(part, self._images(part, labels), labels)

    def _images(self, rows: pd.DataFrame, labels: pd.DataFrame) -> Tensor:
        """Images [B,1,H,W] of plan rows and their label vectors."""
        seeds = [seed_of("noise", int(seed)) for seed in rows["seed"]]
        about = rows[[name for name in ABOUT if name in rows]].to_dict("records")
        vectors, where = torch.from_numpy(labels.to_numpy("float32")), self.backbone.device
        told = (self.backbone.condition(vectors, about), vectors, targets(rows["finding"], self.collection.findings))
        noise = noise_like(seeds, self.shape).to(where)
        z = self._sample(noise, *(part.to(where) for part in told), torch.tensor(seeds))
        return self.decode(self.standardiser.back(z.cpu()) if self.backbone.space == "standardised" else z).cpu()

    @torch.no_grad()
    def _sampled(self, noise: Tensor, condition: Tensor, labels: Tensor, target: Tensor, seeds: Tensor) -> Tensor:
        scheduler = self.scheduler()
        start = from_noise(noise, scheduler, self.boost, self.skip)
        told = Told(self.backbone, condition, labels, target, seeds, start.timesteps)
        return sample(guided(self.guides, told, self.guidance), start, scheduler, seeds.tolist())
