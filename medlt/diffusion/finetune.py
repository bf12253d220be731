"""Training of any `Backbone` on latents with labels, in full or by LoRA. On a CPU it resumes bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from medlt.diffusion.adapt import FULL, Finetuning, make_trainable
from medlt.diffusion.attributes import forget
from medlt.diffusion.backbone import About, Backbone, Conditioner
from medlt.diffusion.balanced import Balanced, Rule, row_weights
from medlt.diffusion.losses import ExtraLoss, NoisedLoss, Rows, WeightingScheme
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.schedulers import scheduler
from medlt.files import digest, digest_tensors
from medlt.rng import batch_indices, noise_like, seed_of, torch_generator
from medlt.training.batches import StepBatches
from medlt.training.loop import fit
from medlt.training.protocols import PrivateFit, RowLoss
from medlt.training.runtime import Runtime
from medlt.training.settings import WHOLE, BatchPart, Training
from medlt.training.tracking import Measure, Picture
from medlt.types import InputError

FORMAT = 2  # of a trained backbone: raise it if the same settings would train other weights

Accessor = Callable[[Sequence[str]], Tensor]
"""Function uids -> latents float32 [len(uids),C,h,w], in the backbone's space."""

Order = Callable[[int], np.ndarray]
"""Function step -> row numbers [batch_size] of the whole batch."""


@dataclass(frozen=True)
class LabelledLatents:
    """Latents by uid, with labels [N,K], NaN = unknown, in the order of `uids`.

    `contents` is a digest of codec, standardiser and the images' pixels, which decide the latents of every uid.
    `about` (attributes for the conditioner) and `patients` (patient ids) are empty or have one entry per row.
    Raises InputError if the lengths differ.
    """

    latents: Accessor
    uids: Sequence[str]
    labels: np.ndarray
    contents: str
    about: Sequence[About] = ()
    patients: Sequence[str] = ()

    def __post_init__(self) -> None:
        if len(self.uids) != len(self.labels) or not len(self.uids):
            raise InputError(
                f"{len(self.uids)} uids but {len(self.labels)} label rows; give one row per uid, at least one"
            )
        for name in ("about", "patients"):
            if len(getattr(self, name)) not in (0, len(self.uids)):
                raise InputError(f"{len(self.uids)} uids but {len(getattr(self, name))} {name}; give one per uid")

    def rows(self, rows: np.ndarray) -> tuple[Tensor, Rows]:
        """Return x0 [B,C,h,w] at these positions, with their metadata. Raises InputError if a latent is not finite."""
        uids = [self.uids[i] for i in rows]
        x0 = self.latents(uids)
        if not (finite := x0.flatten(1).isfinite().all(1)).all():
            first = uids[int((~finite).nonzero()[0])]
            raise InputError(f"the latent of {first} is not finite; encode it again in fp32")
        labels = torch.from_numpy(np.asarray(self.labels[rows], dtype=np.float32))
        return x0, Rows(uids, labels, [self.about[i] for i in rows] if self.about else ())

    def digest(self) -> str:
        """Return the digest of contents, uids, labels, attributes and patients."""
        about = [dict(row) for row in self.about]
        labels = np.asarray(self.labels, np.float32)
        return digest(self.contents, list(self.uids), list(labels.shape), labels.tobytes(), about, list(self.patients))

    def loss(self, net: nn.Module, loss: NoisedLoss, condition: Conditioner, batch: int, max_rows: int = 256) -> float:
        """Return the mean loss on at most `max_rows` fixed rows, with fixed noise and timesteps and no dropout."""
        order = np.linspace(0, len(self.uids) - 1, min(max_rows, len(self.uids))).astype(int)
        total = 0.0
        for i, start in enumerate(range(0, len(order), batch)):
            x0, rows = self.rows(order[start : start + batch])
            rng = torch_generator("denoiser validation", i)
            total += float(loss(net, x0, _conditions(condition, rows), 0.0, rng, rows)) * len(x0)
        return total / len(order)


@dataclass(frozen=True)
class Objective:
    """The objective of a training step.

    `condition_dropout` is the share of rows with the null condition. `offset_noise` is `NoisedLoss.offset`;
    `weighting_scheme`, with `snr_floor` and `min_snr_gamma`, is the weight of a noise level, see `NoisedLoss`.
    `balance` draws rare findings more often (medlt.diffusion.balanced); None takes all rows in turn.
    `attribute_dropout` is the share of rows for which a known view, sex or age is unknown to a `LabelVector`, each
    drawn by itself; thus unknown is learnt from a collection in which all is known. Raises InputError for bad values.
    """

    condition_dropout: float = 0.1
    offset_noise: float = 0.0
    snr_floor: float = 0.0
    min_snr_gamma: float = 5.0
    balance: Rule | None = None
    attribute_dropout: float = 0.1
    weighting_scheme: WeightingScheme = "min_snr"

    def __post_init__(self) -> None:
        for name in ("condition_dropout", "attribute_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"objective: {name} is {getattr(self, name)}; give a share from 0 to 1")
        if not 0 <= self.snr_floor <= self.min_snr_gamma:
            clamp = f"{self.snr_floor}..{self.min_snr_gamma}"
            raise InputError(f"objective: SNR is clamped to {clamp}; give 0 <= snr_floor <= min_snr_gamma")


PLAIN = Objective()


@dataclass(frozen=True)
class SampleGrid:
    """A sample grid: one image per row of labels [N,K], always sampled from the same noise.

    `shape` is (h, w) of the latents, `decode` maps latents [N,C,h,w] of the backbone's space to images [N,1,H,W],
    `weight` is the scale of classifier-free guidance.
    """

    labels: Tensor
    shape: tuple[int, int]
    decode: Callable[[Tensor], Tensor]
    about: Sequence[About] = ()
    scheduler: str = "ddim"
    steps: int = 20
    weight: float = 4.0
    seed: int = 0

    def picture(self, backbone: Backbone) -> Picture:
        """Return the function from a network of this backbone to its images."""
        seeds = [seed_of(self.seed, "sample grid", i) for i in range(len(self.labels))]
        noise = noise_like(seeds, (backbone.channels, *self.shape))

        def draw(network: nn.Module) -> Tensor:
            device = next(network.parameters()).device
            steps = scheduler(self.scheduler, self.steps, backbone.noise)
            condition = backbone.condition(self.labels, self.about).to(device)
            denoiser = replace(backbone, network=network).guided(condition, self.weight)
            return self.decode(sample(denoiser, from_noise(noise.to(device), steps), steps, seeds).cpu())

        return draw


def _conditions(condition: Conditioner, rows: Rows) -> Tensor:
    """Return the conditions [B,...] of these rows."""
    if rows.labels is None:
        raise ValueError("rows without labels have no condition")
    return condition(rows.labels, rows.about)


def _check(
    backbone: Backbone, data: LabelledLatents, objective: Objective, extra_losses: Sequence[ExtraLoss],
    training: Training, private: bool,
) -> None:  # fmt: skip
    """Raise InputError if latents, labels or settings do not fit the backbone or private training."""
    x0, rows = data.rows(np.arange(1))
    if x0.shape[1] != backbone.channels:
        raise InputError(
            f"the latents have {x0.shape[1]} channels, the backbone expects {backbone.channels}; encode with its codec"
        )
    shape, null = _conditions(backbone.condition, rows).shape[1:], backbone.condition.null.shape
    if shape != null:
        raise InputError(
            f"labels of {np.shape(data.labels)[1]} findings give conditions {tuple(shape)}, the backbone expects "
            f"{tuple(null)}; train on the findings of the backbone"
        )
    if training.patience is not None:
        raise InputError(
            "a denoiser has no early stopping, because its validation loss is not a score; leave out patience"
        )
    if private and extra_losses:
        raise InputError(
            "private training: extra losses (cbdm, aid) use the labels of other rows or a classifier of the same "
            "patients; leave them out"
        )
    if private and objective.balance is not None:
        raise InputError("private training: balance changes how often a patient is drawn; leave it out")
    if private and not data.patients:
        raise InputError("private training: the rows have no patients; give the patient of each row")


def train_backbone(
    backbone: Backbone, data: LabelledLatents, *, folder: Path, training: Training, runtime: Runtime,
    finetuning: Finetuning = FULL, objective: Objective = PLAIN, extra_losses: Sequence[ExtraLoss] = (),
    validation: LabelledLatents | None = None, validation_rows: int = 256, samples: SampleGrid | None = None,
    tracker: Literal["tensorboard"] | None = None, name: str = "denoiser", private: PrivateFit | None = None,
) -> Backbone:  # fmt: skip
    """Train a newly loaded backbone in place, and return it with its averaged weights.

    The function writes checkpoint/ (trained weights only), history.parquet (losses; the validation loss uses fixed
    noise), samples/ and tracking/ to `folder`. Called again, it continues an interrupted training or loads a finished
    one, see `backbone_key`. `private` replaces the ordinary training, with data.patients as privacy units, and writes
    mechanism.json. Raises InputError if latents or labels do not fit, or if the folder contains another training.
    """
    _check(backbone, data, objective, extra_losses, training, private is not None)
    net, seed = backbone.network, runtime.seed
    make_trainable(net, finetuning, seed)
    trained = [label for label, weight in net.named_parameters() if weight.requires_grad]
    noised, rows_of = _noised(backbone, objective), _order(data, objective, training.batch_size, seed, name)
    loss, row_losses = replace(noised, extra_losses=tuple(extra_losses)), row_loss(backbone, data, objective)

    def loss_of(model: nn.Module, step: int, part: BatchPart) -> Tensor:
        x0, rows = batches(step)
        x0, rows, rng = part.take(x0), rows.take(part), torch_generator(seed, name, step)
        rows = forget(rows, backbone.condition, objective.attribute_dropout, rng, part)
        return loss(model, x0, _conditions(backbone.condition, rows), objective.condition_dropout, rng, rows, part)

    settings: dict[str, Any] = {"training": training, "runtime": runtime, "finetuning": finetuning,
                                "objective": objective, "extra_losses": extra_losses, "validation": validation,
                                "validation_rows": validation_rows, "name": name, "private": private}  # fmt: skip
    options: dict[str, Any] = {"runtime": runtime, "folder": Path(folder), "name": name,
                               "key": digest(backbone_key(backbone, data, steps=False, **settings)),
                               "evaluate": _evaluate(noised, backbone, training, validation, validation_rows),
                               "picture": samples.picture(backbone) if samples is not None else None}  # fmt: skip
    if private is None:
        with StepBatches(lambda step: data.rows(rows_of(step)), training.last) as batches:
            fit(net, loss_of, training, tracker=tracker, **options)
    else:
        private(net, row_losses, data.patients, training=training, **options)
    weights = {label: value for label, value in net.state_dict().items() if label in trained}
    return replace(backbone, digest=digest(backbone.digest, digest_tensors(weights)))


def _evaluate(
    noised: NoisedLoss, backbone: Backbone, training: Training, validation: LabelledLatents | None, max_rows: int
) -> Measure | None:
    """Return the function that computes the validation loss of a network; None without validation rows."""
    if validation is None:
        return None
    return lambda model: validation.loss(model, noised, backbone.condition, training.rows, max_rows)


def backbone_key(
    backbone: Backbone, data: LabelledLatents, *, training: Training, runtime: Runtime, finetuning: Finetuning = FULL,
    objective: Objective = PLAIN, extra_losses: Sequence[ExtraLoss] = (), validation: LabelledLatents | None = None,
    validation_rows: int = 256, name: str = "denoiser", private: PrivateFit | None = None, steps: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Return the key of `train_backbone` with the same arguments in the store, for `medlt.store.Store.make`.

    The key contains everything that decides the result. With `steps` False, trainings that continue one another share a
    key: this is the `work` of Store.make. An extra loss is named by its `digest` attribute, else by its function name.
    The key of a private training includes its mechanism.
    """
    named = [getattr(one, "digest", getattr(one, "__qualname__", type(one).__qualname__)) for one in extra_losses]
    return {
        "format": FORMAT, "backbone": backbone.digest, "finetuning": [type(finetuning).__name__, asdict(finetuning)],
        "objective": asdict(objective), "extra_losses": named, "data": data.digest(),
        "training": training.digest(steps),
        "stop": training.last if steps else None, "seed": runtime.seed, "precision": runtime.precision, "name": name,
        "validation": None if validation is None else [validation.digest(), validation_rows],
        "private": None if private is None else private.digest,
    }  # fmt: skip


def _noised(backbone: Backbone, objective: Objective) -> NoisedLoss:
    return NoisedLoss(
        backbone.prediction, backbone.condition.null, backbone.noise, objective.offset_noise, objective.snr_floor,
        objective.min_snr_gamma, scheme=objective.weighting_scheme,
    )  # fmt: skip


def row_loss(backbone: Backbone, data: LabelledLatents, objective: Objective = PLAIN) -> RowLoss:
    """Return the loss of single rows of `data`, for private training.

    Its mean over a batch is the loss of `train_backbone` without extra losses, for the same rows and random numbers.
    """
    noised = _noised(backbone, objective)

    def each(network: nn.Module, rows: np.ndarray, rng: torch.Generator) -> Tensor:
        x0, known = data.rows(rows)
        metadata = forget(known, backbone.condition, objective.attribute_dropout, rng)
        condition = _conditions(backbone.condition, metadata)
        return noised.each(noised.forward(network, x0, condition, objective.condition_dropout, rng, metadata, WHOLE))

    return each


def _order(data: LabelledLatents, objective: Objective, batch: int, seed: int, name: str) -> Order:
    """Return the function from a step to its rows."""
    if objective.balance is None:
        return lambda step: batch_indices(len(data.uids), batch, step, seed, name)
    balanced = Balanced(row_weights(data.labels, objective.balance), data.patients, seed)
    return lambda step: balanced.rows(step, batch)
