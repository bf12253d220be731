"""Settings of classifier trainings: the optimizer, and the choices that make an arm of a comparison."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from medlt.classify.augment import augmentation
from medlt.classify.losses import known_loss
from medlt.classify.mixup import MIXUPS
from medlt.classify.networks import FOLDER, known_network
from medlt.classify.pretrained import Pretrained, read_pretrained
from medlt.classify.training_strategies import Stage, stages
from medlt.training.settings import Training
from medlt.types import InputError

CHECKPOINT = 1000
"""Steps between two checkpoints. A stage of no more steps writes none and starts again after an interruption."""


@dataclass(frozen=True)
class OptimizerSettings:
    """Learning rate, steps, loss, evaluation and early stopping of a classifier training.

    lr_scheduler: after the warm-up the learning rate falls as half a cosine to 0, or is constant.
    """

    loss: str = "balanced"
    steps: int = 400
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    evaluate_every: int = 50
    patience: int = 8
    warm_up: float = field(default=0.1, metadata={"unit": "share of steps"})
    ema_decay: float = 0.98
    lr_scheduler: Literal["constant", "cosine"] = "cosine"

    def training(self, steps: int | None = None, rate: float = 1.0) -> Training:
        """Return the settings of the loop, for a stage of `steps` (None: all) at `rate` times the learning rate.

        It has a linear warm-up and a moving average over the same share of the stage's steps. Raises
        InputError for values that cannot work.
        """
        own = steps or self.steps
        return Training(
            steps=own,
            learning_rate=self.learning_rate * rate,
            batch_size=self.batch_size,
            lr_scheduler=self.lr_scheduler,
            warmup_steps=max(1, round(self.warm_up * own)),
            ema_decay=self.ema_decay ** (self.steps / own),
            ema_warmup=False,
            weight_decay=self.weight_decay,
            checkpoint_every=CHECKPOINT if own > CHECKPOINT else None,
            evaluate_every=self.evaluate_every,
            patience=self.patience,
        )


@dataclass(frozen=True)
class ClassifierSettings(OptimizerSettings):
    """Settings of a classifier training, beside its data and seed. Raises InputError for unknown names and wrong pairs.

    task: multi-label or single-label; loss: see medlt.classify.losses; training_strategy, last_share (of its last
    stage; None: its default), sampling: see medlt.classify.training_strategies; mixup, mixup_alpha: see
    medlt.classify.mixup; augment: none, light or monai; tau_norm: see medlt.classify.heads; synthetic_fraction:
    probability that a slot holds an added row; weights: pretrained weights, see medlt.classify.pretrained; frozen: they
    stay as they are and the head alone is trained, on features computed once, so augment is none; precision: bf16 or
    fp32, of the body's arithmetic (weights, logits and loss are fp32).
    """

    network: str = "small"
    synthetic_fraction: float = 0.2
    augment: str | bool | None = None
    """None: light, or none if the weights are frozen."""
    task: str = "multi-label"
    training_strategy: str = "one"
    last_share: float | None = None
    sampling: str = "instance"
    mixup: str = "none"
    mixup_alpha: float = 0.2
    tau_norm: bool = False
    weights: Path | str | None = None
    frozen: bool = False
    precision: str = "bf16"

    def __post_init__(self) -> None:
        if self.augment is None or isinstance(self.augment, bool):
            on = not self.frozen if self.augment is None else self.augment
            object.__setattr__(self, "augment", "light" if on else "none")
        known_network(self.network)
        self._require_weights()
        known_loss(self.loss, self.task)
        augmentation(str(self.augment))
        self.training()
        self.stages()
        if self.mixup not in MIXUPS:
            raise InputError(f"no mixup is named {self.mixup!r}; choose one of {', '.join(MIXUPS)}")
        if self.mixup_alpha <= 0 or not 0 <= self.synthetic_fraction <= 1:
            raise InputError(
                f"synthetic_fraction {self.synthetic_fraction} must be in [0,1], mixup_alpha {self.mixup_alpha} above 0"
            )
        if self.tau_norm and self.loss == "ldam":
            raise InputError("tau_norm changes nothing in the head of cosines of loss ldam; remove one of them")

    @cached_property
    def pretrained(self) -> Pretrained | None:
        """Return the pretrained weights. Raises InputError for a file or folder that the network cannot use."""
        return None if self.weights is None else read_pretrained(self.network, self.weights)

    def identity(self) -> dict[str, Any]:
        """Return all settings, as they identify a training: of weights the contents, not the path."""
        return asdict(self) | {"weights": self.pretrained.spec if self.pretrained else None}

    def _require_weights(self) -> None:
        """Raise InputError for pretrained weights that are missing or do not fit, and for what frozen ones exclude."""
        if self.precision not in ("bf16", "fp32"):
            raise InputError(f"classifier.precision: {self.precision!r} is not valid; write bf16 or fp32")
        if self.pretrained is None and (self.frozen or self.network == FOLDER):
            why = "frozen" if self.frozen else "network folder"
            raise InputError(f"classifier.weights is missing: {why} needs pretrained weights; give their path")
        if self.frozen and (self.augment, self.mixup) != ("none", "none"):
            raise InputError(
                "frozen weights have features that are computed once, so images can be neither augmented nor mixed; "
                "write augment: none and mixup: none, or frozen: false"
            )

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages of the training strategy."""
        return stages(self.training_strategy, self.steps, self.sampling, self.last_share)
