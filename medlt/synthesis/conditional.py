"""The base of all methods that sample under the label vector of a real train row.

    plan    tail finding c; the label vector, view, sex and age of a real row that has c; a seed
    sample  from the start of the method, with classifier-free guidance (arXiv 2207.12598), then the `guidance`
    decode  image = decode(un-standardised x0)

Label vectors are those of real rows, so that findings occur together as often as they do in patients. `run` is a
function of each row alone, bit for bit on a CPU, whatever other rows are in the batch (`medlt.diffusion.batching`).
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

from medlt.diffusion.backbone import EVERYWHERE, Backbone
from medlt.diffusion.sampler import Start, sample
from medlt.rng import numpy_generator, seed_of
from medlt.synthesis.guides import Guide, SamplingContext, guided, target_columns
from medlt.synthesis.plan import TrainTable
from medlt.synthesis.space import Standardises, in_calls
from medlt.types import Batch, Guidance, InputError

ABOUT = ("view", "sex", "age")
Key = tuple[int, str, int, int]
"""Identifies one future image: (seed, finding, slot, candidate)."""


class SamplingMethod(Protocol):
    """The parts of a method that `sample_rows` uses."""

    @property
    def backbone(self) -> Backbone: ...
    @property
    def scheduler(self) -> Callable[[], Any]: ...
    @property
    def guidance_scale(self) -> float: ...
    @property
    def guidance_interval(self) -> tuple[float, float]: ...
    @property
    def guidance(self) -> tuple[Guide, ...]: ...


@torch.no_grad()
def sample_rows(
    method: SamplingMethod,
    start_at: Callable[[Any], Start],
    condition: Tensor,
    labels: Tensor,
    target: Tensor,
    seeds: Tensor,
    *,
    outermost: Guidance | None = None,
) -> Tensor:
    """Return clean estimates [B,C,h,w]; start_at: scheduler -> start; outermost: guidance around all other guidance.

    The other arguments are as in `SamplingContext`.
    """
    scheduler = method.scheduler()
    start = start_at(scheduler)
    context = SamplingContext(method.backbone, condition, labels, target, seeds, start.timesteps, method.scheduler)
    denoiser = guided(method.guidance, context, method.guidance_scale, method.guidance_interval)
    if outermost is not None:
        denoiser = outermost(denoiser)
    return sample(denoiser, start, scheduler, seeds.tolist())


@dataclass(kw_only=True)
class Conditional(ABC):
    """A method that samples under real label vectors. Subclasses define the start: `_start_tensors` and `_start`.

    train: train rows; backbone: must be safe to call from several threads; standardiser: fitted on the train split;
    decode: codec latents [B,C,h,w] -> images [B,1,H,W] in [0,1], where the bytes of a row depend on that row alone;
    scheduler: returns a new scheduler with timesteps set; num_candidates: rows a slot; batch_size: rows in memory;
    guidance_interval: timesteps of classifier-free guidance, as shares of the trained ones.

    columns: those of the plan; reads: those of them that name real rows, the row of the label vector first.
    """

    train: TrainTable
    backbone: Backbone
    standardiser: Standardises
    decode: Callable[[Tensor], Tensor]
    scheduler: Callable[[], Any]
    num_candidates: int = 1
    guidance_scale: float = 3.5
    guidance_interval: tuple[float, float] = EVERYWHERE
    guidance: tuple[Guide, ...] = ()
    batch_size: int = 32
    reads_real_images: bool = field(default=False, init=False)
    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    reads: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        self._sample = in_calls(self._sample_tensors, self.backbone.device, self.batch_size)

    def plan(self, targets: Mapping[str, int], seed: int) -> pd.DataFrame:
        """Return targets[finding] slots of `num_candidates` rows each, index uid.

        All candidates of a slot share the label vector. Raises InputError for a finding that is not a tail finding or
        has no positive train row.
        """
        if unknown := [name for name in targets if name not in self.train.tail]:
            raise InputError(f"{self.name}: {unknown[0]!r} is not a tail finding; remove it from the targets")
        planned = ((*slot, n) for slot in self._slots(targets, seed) for n in range(self.num_candidates))
        rows = (self._row((seed, finding, slot, n), source) for finding, slot, source, n in planned)
        names = ["uid", *self.columns]
        return pd.DataFrame([[row[name] for name in names] for row in rows], columns=names).set_index("uid")

    def _slots(self, targets: Mapping[str, int], seed: int) -> Iterator[tuple[str, int, str]]:
        """Yield (finding, slot, uid of the label vector); the positive rows of a finding take turns."""
        for finding in (name for name in self.train.findings if targets.get(name, 0) > 0):
            sources = numpy_generator(seed, "likes", finding).permutation(self.train.parents(finding))
            yield from ((finding, slot, str(sources[slot % len(sources)])) for slot in range(targets[finding]))

    def _row(self, key: Key, source: str) -> dict[str, Any]:
        """Return the plan row of one future image; source: uid of the label vector."""
        _, finding, slot, candidate = key
        slug = re.sub(r"\W+", "-", finding)
        uid = f"{self.name}_{slug}_{slot:05d}_{candidate}_{seed_of('uid', *key) % 16**6:06x}"
        seed = int(numpy_generator("noise", *key).integers(2**63 - 1))
        real = self.train.table.loc[source]
        row = {"uid": uid, "finding": finding, "slot": slot, "candidate": candidate, "seed": seed}
        return row | {"fold": real["fold"]} | {name: real.get(name) for name in ABOUT} | self._own_columns(key, source)

    @abstractmethod
    def _own_columns(self, key: Key, source: str) -> dict[str, Any]:
        """Return the columns of a row that only this method has."""

    def run(self, rows: pd.DataFrame) -> Iterator[Batch]:
        """Yield batches of finished images in the order of `rows`, each image a function of its own row.

        Raises InputError if a row names a real row that is not a train row.
        """
        for part in self.train.batches(rows, self.reads, self.batch_size):
            labels = self._labels(part)
            yield Batch(part, self._images(part, labels), labels)

    def explain(self, rows: pd.DataFrame) -> Mapping[str, Tensor]:
        """Return no stages: there is no intermediate image between noise and image."""
        return {}

    def with_guidance(self, guidance: tuple[Guide, ...]) -> Self:
        """Return the same method with these guides."""
        return replace(self, guidance=guidance)

    def _labels(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return label vectors of plan rows, uid x finding."""
        return self._labels_of(rows, self.reads[0])

    def _labels_of(self, rows: pd.DataFrame, column: str) -> pd.DataFrame:
        """Return the label vectors of the real rows that a column names."""
        names = list(self.train.findings)
        return self.train.table.loc[rows[column], names].astype(float).set_index(rows.index)

    def _images(self, rows: pd.DataFrame, labels: pd.DataFrame) -> Tensor:
        """Return images [B,1,H,W] of plan rows with their label vectors."""
        return self.decoded(self._sampled(rows, labels))

    def decoded(self, z: Tensor) -> Tensor:
        """Return images [B,1,H,W] in [0,1] of latents in the backbone's space."""
        return self.decode(self.standardiser.back(z.cpu()) if self.backbone.space == "standardised" else z).cpu()

    def sampled(self, rows: pd.DataFrame) -> Tensor:
        """Return the latents [B,C,h,w] of plan rows before they are decoded, in the backbone's space, on the CPU.

        Raises InputError as `run` does.
        """
        parts = self.train.batches(rows, self.reads, self.batch_size)
        return torch.cat([self._sampled(part, self._labels(part)).cpu() for part in parts])

    def _sampled(self, rows: pd.DataFrame, labels: pd.DataFrame) -> Tensor:
        """Return the latents of plan rows with their label vectors."""
        seeds = [seed_of("noise", int(seed)) for seed in rows["seed"]]
        about = rows[[name for name in ABOUT if name in rows]].to_dict("records")
        vectors, device = torch.tensor(labels.to_numpy("float32")), self.backbone.device
        target = target_columns(rows["finding"], self.train.findings)
        tensors = (*self._start_tensors(rows, seeds), self.backbone.condition(vectors, about), vectors, target)
        return self._sample(*(tensor.to(device) for tensor in tensors), torch.tensor(seeds))

    def _sample_tensors(self, *tensors: Tensor) -> Tensor:
        """Run one call of the sampler; tensors: those of `_start_tensors`, condition, labels, target and seeds."""
        *start, condition, labels, target, seeds = tensors
        return sample_rows(self, lambda scheduler: self._start(scheduler, *start), condition, labels, target, seeds)

    @abstractmethod
    def _start_tensors(self, rows: pd.DataFrame, seeds: list[int]) -> tuple[Tensor, ...]:
        """Return the tensors [B,...] that sampling starts from; seeds: of the noise, one a row."""

    @abstractmethod
    def _start(self, scheduler: Any, *tensors: Tensor) -> Start:
        """Return the start of the sampling loop; tensors: those of `_start_tensors`."""
