"""Train a classifier under differential privacy: losses by row, no counts, no early stop, no best step.

`medlt.classify.train` also uses statistics of all patients: class weights and tau are counts, sampling by class and
mixup join rows, and an early stop depends on data. None of these is used here. Rows are augmented anew whenever they
are drawn, so several draws of an image per step are the augmentation multiplicity of De et al., arXiv 2204.13650,
section 3.3.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medlt import files
from medlt.classify.augment import augmentation
from medlt.classify.classifier import Classifier
from medlt.classify.losses import known_loss
from medlt.classify.networks import known_network, network
from medlt.classify.sets import TrainingSet, require_one_label
from medlt.metrics.draws import owners
from medlt.rng import seed_of
from medlt.rows import Rows
from medlt.store import Store
from medlt.training.protocols import PrivateFit, RowLoss
from medlt.training.runtime import Runtime
from medlt.training.settings import Training
from medlt.types import InputError

FORMAT = 2  # part of the key: increase it if the same settings would train other weights
RECORD, WEIGHTS, MECHANISM = "classifier.json", "classifier.safetensors", "mechanism.json"
Prepare = Callable[[nn.Module], Any]
"""Changes a network in place as the training does before its first step (`medlt.privacy.preflight.prepare`)."""


@dataclass(frozen=True)
class PrivateSettings:
    """Settings of a private training of a classifier, beside its data and its privacy.

    network: see medlt.classify.networks; task: multi-label or single-label; augment: none, light or monai; batch_size:
    expected number of units per step. Raises InputError for unknown names.
    """

    network: str = "small"
    task: str = "multi-label"
    augment: str = "light"
    steps: int = 400
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warm_up: float = 0.1
    ema_decay: float = 0.98

    def __post_init__(self) -> None:
        known_network(self.network)
        known_loss("plain", self.task)
        augmentation(self.augment)

    @property
    def training(self) -> Training:
        """Return the settings of the loop: a linear warm-up over `warm_up` of the steps, then half a cosine to 0."""
        same = {
            name: getattr(self, name) for name in ("steps", "batch_size", "learning_rate", "weight_decay", "ema_decay")
        }
        return Training(**same, lr_scheduler="cosine", warmup_steps=round(self.warm_up * self.steps))


def row_loss(images: Rows, labels: np.ndarray, augment: str = "light", task: str = "multi-label") -> RowLoss:
    """Return the cross-entropy of each row of images uint8 [N,1,S,S] under labels [N,K], 1, 0, soft or NaN.

    multi-label: binary, the mean over the row's known labels, 0 where none is known; single-label: of a softmax, 0
    if a label is unknown. The augmentation is drawn for each row from the generator.
    """
    known_loss("plain", task)
    truth, moved = torch.as_tensor(np.asarray(labels, np.float32)), augmentation(augment)

    def each(network: nn.Module, rows: np.ndarray, draw: torch.Generator) -> Tensor:
        at, where = torch.as_tensor(rows), next(network.parameters()).device
        logits = network(moved(images[at].to(where).float() / 255, draw)).float()
        return losses(logits, truth[at].to(where), task)

    return each


def losses(logits: Tensor, labels: Tensor, task: str) -> Tensor:
    """Return losses [B] of logits [B,K] under labels [B,K], as `row_loss` defines them."""
    known, targets = ~labels.isnan(), labels.nan_to_num(0)
    if task == "single-label":
        return torch.where(known.all(1), -(targets * logits.log_softmax(1)).sum(1), 0)
    values = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return torch.where(known, values, 0).sum(1) / known.sum(1).clamp(min=1)


def private_classifier(
    real: TrainingSet, patients: Sequence[str], *, runtime: Runtime, store: Store, private: PrivateFit,
    prepare: Prepare, name: str = "classifier", **settings: Any,
) -> Classifier:  # fmt: skip
    """Train a classifier on `real` rows by `private`, with `patients`, one per row, as units.

    settings: the fields of PrivateSettings; the seed is the runtime's. The store keeps the classifier under data,
    patients, settings, seed and mechanism; `private` accounts for its cost in either case. The record holds no count of
    labels. It computes in float32, whatever the runtime's precision. Raises InputError for unknown names, and for rows
    that do not fit patients or task.
    """
    chosen, runtime = PrivateSettings(**settings), runtime.at("fp32")
    _require(real, patients, chosen)
    device = str(runtime.torch_device(name))
    key = {"format": FORMAT, "private": private.digest, "settings": asdict(chosen), "seed": runtime.seed}
    key |= {"train": real.digest(), "patients": files.digest(owners([str(one) for one in patients]).tolist())}

    def build(folder: Path) -> None:
        net = network(chosen.network, real.labels.shape[1], seed_of(runtime.seed, "weights"))
        loss = row_loss(real.images, real.labels, chosen.augment, chosen.task)
        private(net, loss, patients, training=chosen.training, runtime=runtime, folder=folder,
                key=files.digest(key), name=name)  # fmt: skip
        files.write_tensors(folder / WEIGHTS, net.state_dict())
        record = {"settings": asdict(chosen), "seed": runtime.seed, "size": int(real.images.shape[-1]), "private": True}
        files.write_json(folder / RECORD, record | {"findings": real.labels.shape[1], "train_digest": key["train"]})

    made = store.make("classifier", key, build, joint=True)
    private.account(made.path(MECHANISM))
    return load_private(made.folder, prepare, device)


def _require(real: TrainingSet, patients: Sequence[str], settings: PrivateSettings) -> None:
    if not len(real) or len(patients) != len(real):
        raise InputError(f"private training: {len(patients)} patients for {len(real)} rows; give one for each row")
    if not (np.asarray(real.weights) == 1).all():
        raise InputError(
            "private training: rows have weights, which would count some patients more; remove the weights"
        )
    if settings.task == "single-label":
        require_one_label(real, "train")


def load_private(folder: Path, prepare: Prepare, device: str) -> Classifier:
    """Load a classifier that `private_classifier` wrote; `prepare` changes a fresh network as the training did.

    Raises InputError if there is no such classifier.
    """
    try:
        record, weights = json.loads((folder / RECORD).read_text()), files.read_tensors(folder / WEIGHTS)
        net = network(record["settings"]["network"], record["findings"])
        prepare(net)
        net.load_state_dict(weights)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, FileNotFoundError):
        raise InputError(
            f"{folder}: holds no private classifier, or a damaged one; move it away and run again"
        ) from None
    return Classifier(net.to(device).eval(), record["size"], record)
