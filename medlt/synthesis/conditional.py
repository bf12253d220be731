"""What methods have in common that sample under the label vector of a real train row, wherever they begin.

    plan    tail finding c; a real row that has it lends its label vector, view, sex and age; a seed
    sample  from the method's own start, classifier-free guidance (arXiv 2207.12598), then any `guides`
    decode  image = decode(un-standardised x0)

Label vectors are drawn among real ones, so that findings occur together as they do in patients. `run` is a function of
each row alone, bit for bit on a CPU, whatever the image is made beside (`medlt.diffusion.batching`).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self

import pandas as pd
import torch
from torch import Tensor

from medlt.diffusion.backbone import Backbone
from medlt.diffusion.sampler import Start, sample
from medlt.rng import numpy_generator, seed_of
from medlt.synthesis.guides import Guide, SamplingContext, guided, targets
from medlt.synthesis.plan import TrainTable
from medlt.synthesis.space import Standardises, in_calls
from medlt.types import Batch, InputError

ABOUT = ("view", "sex", "age")
Key = tuple[int, str, int, int]
"""Of one future image: (seed, finding, slot, candidate)."""


class SamplingMethod(Protocol):
    """What a method samples with: a network, a maker of fresh schedulers, and what guides them."""

    @property
    def backbone(self) -> Backbone: ...
    @property
    def scheduler(self) -> Callable[[], Any]: ...
    @property
    def guidance_scale(self) -> float: ...
    @property
    def guidance(self) -> tuple[Guide, ...]: ...


@torch.no_grad()
def drawn(
    method: SamplingMethod,
    begin: Callable[[Any], Start],
    condition: Tensor,
    labels: Tensor,
    target: Tensor,
    seeds: Tensor,
) -> Tensor:
    """Clean estimates [B,C,h,w] of the rows told of as in `SamplingContext`, from where `begin` puts a fresh scheduler."""
    scheduler = method.scheduler()
    start = begin(scheduler)
    told = SamplingContext(method.backbone, condition, labels, target, seeds, start.timesteps)
    return sample(guided(method.guidance, told, method.guidance_scale), start, scheduler, seeds.tolist())


@dataclass(kw_only=True)
class Conditional(ABC):
    """Such a method, with everything it needs passed in. A kind of it says where sampling begins: `_begin`, `_start`.

    collection: train rows; backbone: safe to call from several threads; standardiser: as fitted on the train split;
    decode: codec latents [B,C,h,w] -> images [B,1,H,W] in [0,1], a row's bytes a function of the row; scheduler: makes
    a fresh one, timesteps set; `candidates` rows a slot; `batch` rows are in memory at once.

    `columns` are those of the plan; `reads` those that name real rows, the first of which lends its label vector.
    """

    collection: TrainTable
    backbone: Backbone
    standardiser: Standardises
    decode: Callable[[Tensor], Tensor]
    scheduler: Callable[[], Any]
    num_candidates: int = 1
    guidance_scale: float = 3.5
    guidance: tuple[Guide, ...] = ()
    batch_size: int = 32
    reads_real_images: bool = field(default=False, init=False)
    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    reads: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        self._sample = in_calls(self._sampled, self.backbone.device, self.batch_size)

    def plan(self, need: Mapping[str, int], seed: int) -> pd.DataFrame:
        """need[finding] slots of `candidates` rows each, index uid. All candidates of a slot share the label vector.

        Raises InputError for a finding that is not a tail finding or has no positive train row.
        """
        if strange := [name for name in need if name not in self.collection.tail]:
            raise InputError(f"{self.name}: {strange[0]!r} is wanted but is not a tail finding; correct the need")
        chosen = ((*slot, n) for slot in self._slots(need, seed) for n in range(self.num_candidates))
        made = [self._row((seed, finding, slot, n), like) for finding, slot, like, n in chosen]
        return pd.DataFrame(made, columns=["uid", *self.columns]).set_index("uid")

    def _slots(self, need: Mapping[str, int], seed: int) -> Iterator[tuple[str, int, str]]:
        """(finding, slot, uid whose label vector it gets): every positive row of a finding in turn."""
        for finding in (name for name in self.collection.findings if need.get(name, 0) > 0):
            likes = numpy_generator(seed, "likes", finding).permutation(self.collection.positive(finding))
            yield from ((finding, slot, str(likes[slot % len(likes)])) for slot in range(need[finding]))

    def _row(self, key: Key, like: str) -> dict[str, Any]:
        """One future image."""
        _, finding, slot, candidate = key
        named = re.sub(r"\W+", "-", finding)
        uid = f"{self.name}_{named}_{slot:05d}_{candidate}_{seed_of('uid', *key) % 16**6:06x}"
        seed = int(numpy_generator("noise", *key).integers(2**63 - 1))
        source = self.collection.table.loc[like]
        row = {"uid": uid, "finding": finding, "slot": slot, "candidate": candidate, "seed": seed}
        return row | {"fold": source["fold"]} | {name: source.get(name) for name in ABOUT} | self._own(key, like)

    @abstractmethod
    def _own(self, key: Key, like: str) -> dict[str, Any]:
        """The columns of a row that only this method has."""

    def run(self, rows: pd.DataFrame) -> Iterator[Batch]:
        """Batches of finished images in the order of `rows`, each a function of its own row.

        Raises InputError for a row that reads what is not in the collection.
        """
        for column in self.reads:
            if len(lost := rows.loc[~rows[column].isin(self.collection.table.index), column]):
                raise InputError(f"plan: {column} {lost.iloc[0]!r} is not a train row; plan again for this collection")
        for start in range(0, len(rows), self.batch_size):
            part = rows.iloc[start : start + self.batch_size]
            labels = self._labels(part)
            yield Batch(part, self._images(part, labels), labels)

    def explain(self, rows: pd.DataFrame) -> Mapping[str, Tensor]:
        """Return no stages: nothing is to be seen between noise and image."""
        return {}

    def with_guidance(self, guidance: tuple[Guide, ...]) -> Self:
        """Return the same method with other guides."""
        return replace(self, guidance=guidance)

    def _labels(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Label vectors of plan rows, uid x finding."""
        return self._labels_of(rows, self.reads[0])

    def _labels_of(self, rows: pd.DataFrame, column: str) -> pd.DataFrame:
        """Those of the real rows that a column names."""
        names = list(self.collection.findings)
        return self.collection.table.loc[rows[column], names].astype(float).set_index(rows.index)

    def _images(self, rows: pd.DataFrame, labels: pd.DataFrame) -> Tensor:
        """Images [B,1,H,W] of plan rows and their label vectors."""
        seeds = [seed_of("noise", int(seed)) for seed in rows["seed"]]
        about = rows[[name for name in ABOUT if name in rows]].to_dict("records")
        vectors, where = torch.tensor(labels.to_numpy("float32")), self.backbone.device
        told = (self.backbone.condition(vectors, about), vectors, targets(rows["finding"], self.collection.findings))
        z = self._sample(*(part.to(where) for part in (*self._begin(rows, seeds), *told)), torch.tensor(seeds))
        return self.decode(self.standardiser.back(z.cpu()) if self.backbone.space == "standardised" else z).cpu()

    def _sampled(self, *tensors: Tensor) -> Tensor:
        """One call of the sampler: what `_begin` gave of the rows, then what they are told, then their seeds."""
        *begun, condition, labels, target, seeds = tensors
        return drawn(self, lambda scheduler: self._start(scheduler, *begun), condition, labels, target, seeds)

    @abstractmethod
    def _begin(self, rows: pd.DataFrame, seeds: list[int]) -> tuple[Tensor, ...]:
        """What sampling begins with, tensors [B,...]; `seeds` are those of the rows' noise."""

    @abstractmethod
    def _start(self, scheduler: Any, *begun: Tensor) -> Start:
        """Where the loop begins, of what `_begin` gave."""
