"""Training of any `Backbone` on latents with labels: in full or by LoRA, resumable to the bit on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from medlt import chance
from medlt.diffusion.adapt import FULL, How, make_trainable
from medlt.diffusion.backbone import About, Backbone, Conditioner
from medlt.diffusion.balanced import Balanced, Rule, row_weights
from medlt.diffusion.losses import Extra, NoisedLoss, Rows
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.schedulers import scheduler
from medlt.files import digest, digest_tensors
from medlt.training.loop import fit
from medlt.training.protocols import PrivateFit, RowLoss
from medlt.training.runtime import Runtime
from medlt.training.settings import WHOLE, Part, Training
from medlt.training.tracking import Measure, Picture
from medlt.types import InputError

FORMAT = 1  # of a trained backbone: raise it when the same settings would train other weights

Accessor = Callable[[Sequence[str]], Tensor]
"""uids -> latents float32 [len(uids),C,h,w], in the backbone's space."""

Order = Callable[[int], np.ndarray]
"""step -> row numbers [batch] of its whole batch."""


@dataclass(frozen=True)
class LabelledLatents:
    """Latents found by uid; labels [N,K], NaN = unknown, in the order of `uids`. Validated at birth.

    `contents` names what `latents` gives for any uid: a digest of codec, standardiser and the images' pixels.
    `about` and `patients` are empty, or one a row: circumstances for the conditioner, and who is in the image.
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
                f"{len(self.uids)} uids but {len(self.labels)} label rows; give one row a uid, at least one"
            )
        for name in ("about", "patients"):
            if len(getattr(self, name)) not in (0, len(self.uids)):
                raise InputError(f"{len(self.uids)} uids but {len(getattr(self, name))} of {name}; give one a uid")

    def rows(self, rows: np.ndarray) -> tuple[Tensor, Rows]:
        """x0 [B,C,h,w] at these positions, and what is known of them. Raises InputError if a latent is no number."""
        uids = [self.uids[i] for i in rows]
        x0 = self.latents(uids)
        if not (fine := x0.flatten(1).isfinite().all(1)).all():
            raise InputError(f"the latent of {uids[int((~fine).nonzero()[0])]} is not finite; encode it again in fp32")
        labels = torch.from_numpy(np.asarray(self.labels[rows], dtype=np.float32))
        return x0, Rows(uids, labels, [self.about[i] for i in rows] if self.about else ())

    def digest(self) -> str:
        """Name the latents by their contents, uids, labels, circumstances and patients."""
        about = [dict(row) for row in self.about]
        labels = np.asarray(self.labels, np.float32)
        return digest(self.contents, list(self.uids), list(labels.shape), labels.tobytes(), about, list(self.patients))

    def loss(self, net: nn.Module, loss: NoisedLoss, condition: Conditioner, batch: int, most: int = 256) -> float:
        """Mean loss on at most `most` fixed rows, with noise and timesteps that never change; no condition dropped."""
        order = np.linspace(0, len(self.uids) - 1, min(most, len(self.uids))).astype(int)
        total = 0.0
        for i, start in enumerate(range(0, len(order), batch)):
            x0, rows = self.rows(order[start : start + batch])
            draw = chance.generator("denoiser validation", i)
            total += float(loss(net, x0, _told(condition, rows), 0.0, draw, rows)) * len(x0)
        return total / len(order)


@dataclass(frozen=True)
class Objective:
    """What a step minimises: see `NoisedLoss` for offset, low and high.

    `drop` is the share of rows that are told nothing. `balance` draws rare findings more often
    (medlt.diffusion.balanced); None takes all rows in turn.
    """

    drop: float = 0.1
    offset: float = 0.0
    low: float = 0.0
    high: float = 5.0
    balance: Rule | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 1:
            raise InputError(f"objective: drop is {self.drop}; give a share from 0 to 1")
        if not 0 <= self.low <= self.high:
            raise InputError(f"objective: SNR is clamped to {self.low}..{self.high}; give 0 <= low <= high")


PLAIN = Objective()


@dataclass(frozen=True)
class Samples:
    """A sample grid: one image a row of labels [N,K], from the same noise whenever it is drawn.

    `shape` is the latent's (h, w), `decode` takes latents [N,C,h,w] of the backbone's space to images [N,1,H,W],
    `weight` is that of classifier-free guidance.
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
        """Images of the backbone with a network's present weights."""
        seeds = [chance.seed_of(self.seed, "sample grid", i) for i in range(len(self.labels))]
        noise = chance.noise_like(seeds, (backbone.channels, *self.shape))

        def draw(network: nn.Module) -> Tensor:
            device = next(network.parameters()).device
            steps = scheduler(self.scheduler, self.steps, backbone.noise)
            told = backbone.condition(self.labels, self.about).to(device)
            denoiser = replace(backbone, network=network).guided(told, self.weight)
            return self.decode(sample(denoiser, from_noise(noise.to(device), steps), steps, seeds).cpu())

        return draw


def _told(condition: Conditioner, rows: Rows) -> Tensor:
    """Conditions [B,...] of these rows."""
    if rows.labels is None:
        raise ValueError("rows without labels have no condition")
    return condition(rows.labels, rows.about)


def _check(
    backbone: Backbone, data: LabelledLatents, objective: Objective, extra: Sequence[Extra], training: Training,
    private: bool,
) -> None:  # fmt: skip
    """Raises InputError if latents or labels are not what the backbone takes, or cannot be hidden row by row."""
    x0, rows = data.rows(np.arange(1))
    if x0.shape[1] != backbone.channels:
        raise InputError(
            f"the latents have {x0.shape[1]} channels, the backbone takes {backbone.channels}; encode with its codec"
        )
    told, null = _told(backbone.condition, rows).shape[1:], backbone.condition.null.shape
    if told != null:
        raise InputError(
            f"labels of {np.shape(data.labels)[1]} findings give conditions {tuple(told)}, the backbone takes "
            f"{tuple(null)}; train on the findings it was made for"
        )
    if training.patience is not None:
        raise InputError("a denoiser is not stopped by its validation loss, which is no score; leave patience out")
    if private and extra:
        raise InputError(
            "private training: further losses (cbdm, aid) read other rows' labels or a classifier of the same "
            "patients; leave them out"
        )
    if private and objective.balance is not None:
        raise InputError("private training: balance changes how often a patient is drawn; leave it out")
    if private and not data.patients:
        raise InputError("private training: nothing says whose image each row is; give the patients of the rows")


def train_backbone(
    backbone: Backbone, data: LabelledLatents, *, folder: Path, training: Training, runtime: Runtime, how: How = FULL,
    objective: Objective = PLAIN, extra: Sequence[Extra] = (), validation: LabelledLatents | None = None,
    validation_rows: int = 256, samples: Samples | None = None, tracker: Literal["tensorboard"] | None = None,
    name: str = "denoiser", private: PrivateFit | None = None,
) -> Backbone:  # fmt: skip
    """Train a freshly loaded backbone; its network is changed in place and comes back with its averaged weights.

    `folder` gets checkpoint/ (what is trained, nothing frozen), history.parquet (losses; that of validation is on fixed
    noise), samples/ and tracking/. Called again it continues where it stopped, or loads what is finished.
    `backbone_key` names it. `private` takes the place of the ordinary step, with data.patients as units, and writes
    mechanism.json. Raises InputError for latents or labels that do not fit, and when the folder holds another training.
    """
    _check(backbone, data, objective, extra, training, private is not None)
    net, seed = backbone.network, runtime.seed
    make_trainable(net, how, seed)
    trained = [label for label, weight in net.named_parameters() if weight.requires_grad]
    noised, chosen = _noised(backbone, objective), _order(data, objective, training.batch, seed, name)
    loss, row_losses = replace(noised, extra=tuple(extra)), row_loss(backbone, data, objective)

    def loss_of(model: nn.Module, step: int, part: Part) -> Tensor:
        x0, rows = data.rows(part.take(chosen(step)))
        told, draw = _told(backbone.condition, rows), chance.generator(seed, name, step)
        return loss(model, x0, told, objective.drop, draw, rows, part)

    decides: dict[str, Any] = {"training": training, "runtime": runtime, "how": how, "objective": objective,
                               "extra": extra, "validation": validation, "validation_rows": validation_rows,
                               "name": name, "private": private}  # fmt: skip
    shown: dict[str, Any] = {"runtime": runtime, "folder": Path(folder), "name": name,
                             "key": digest(backbone_key(backbone, data, steps=False, **decides)),
                             "evaluate": _evaluate(noised, backbone, training, validation, validation_rows),
                             "picture": samples.picture(backbone) if samples is not None else None}  # fmt: skip
    if private is None:
        fit(net, loss_of, training, tracker=tracker, **shown)
    else:
        private(net, row_losses, data.patients, training=training, **shown)
    learnt = {label: value for label, value in net.state_dict().items() if label in trained}
    return replace(backbone, digest=digest(backbone.digest, digest_tensors(learnt)))


def _evaluate(
    noised: NoisedLoss, backbone: Backbone, training: Training, validation: LabelledLatents | None, most: int
) -> Measure | None:
    """Return the measurement of a network on the validation rows; None without them."""
    if validation is None:
        return None
    return lambda model: validation.loss(model, noised, backbone.condition, training.rows, most)


def backbone_key(
    backbone: Backbone, data: LabelledLatents, *, training: Training, runtime: Runtime, how: How = FULL,
    objective: Objective = PLAIN, extra: Sequence[Extra] = (), validation: LabelledLatents | None = None,
    validation_rows: int = 256, name: str = "denoiser", private: PrivateFit | None = None, steps: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Return all that decides what `train_backbone` leaves with the same arguments: a key of `medlt.store.Store.make`.

    Without `steps` it names the trainings that can be continued into one another: the `work` of Store.make. `extra`
    losses are named by their `digest` attribute, else by their name. Where private, the mechanism is part of it.
    """
    named = [getattr(one, "digest", getattr(one, "__qualname__", type(one).__qualname__)) for one in extra]
    return {
        "format": FORMAT, "backbone": backbone.digest, "how": [type(how).__name__, asdict(how)],
        "objective": asdict(objective), "extra": named, "data": data.digest(), "training": training.digest(steps),
        "stop": training.last if steps else None, "seed": runtime.seed, "precision": runtime.precision, "name": name,
        "validation": None if validation is None else [validation.digest(), validation_rows],
        "private": None if private is None else private.digest,
    }  # fmt: skip


def _noised(backbone: Backbone, objective: Objective) -> NoisedLoss:
    return NoisedLoss(
        backbone.prediction, backbone.condition.null, backbone.noise, objective.offset, objective.low, objective.high
    )


def row_loss(backbone: Backbone, data: LabelledLatents, objective: Objective = PLAIN) -> RowLoss:
    """The loss of each row of `data` by itself, as private training needs it.

    Its mean over a batch is what `train_backbone` minimises, without further losses, for the same rows and chance.
    """
    noised = _noised(backbone, objective)

    def each(network: nn.Module, rows: np.ndarray, draw: torch.Generator) -> Tensor:
        x0, known = data.rows(rows)
        told = _told(backbone.condition, known)
        return noised.each(noised.forward(network, x0, told, objective.drop, draw, known, WHOLE))

    return each


def _order(data: LabelledLatents, objective: Objective, batch: int, seed: int, name: str) -> Order:
    """Which rows each step takes."""
    if objective.balance is None:
        return lambda step: chance.batch_indices(len(data.uids), batch, step, seed, name)
    balanced = Balanced(row_weights(data.labels, objective.balance), data.patients, seed)
    return lambda step: balanced.rows(step, batch)
