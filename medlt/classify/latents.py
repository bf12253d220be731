"""A small classifier of latents, phi0 of DiffuLT (arXiv 2403.05170): its features measure how far an estimate is from
real.

It is trained like an image classifier (medlt.classify.train), by the same training loop: class-balanced masked
cross-entropy, and the moving average with the best validation macro AP. Latents are standardised, [B,C,h,w] of 8 to 32
px a side.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn

from medlt import files
from medlt.classify.losses import entries
from medlt.classify.losses import loss as named_loss
from medlt.classify.networks import Network
from medlt.classify.settings import OptimizerSettings
from medlt.diffusion.finetune import LabelledLatents
from medlt.metrics.ranking import macro_average_precision
from medlt.rng import batch_indices, seed_of
from medlt.store import Store
from medlt.training import loop
from medlt.training.batches import StepBatches
from medlt.training.runtime import Runtime
from medlt.training.settings import BatchPart
from medlt.types import InputError

FORMAT = 3  # part of the key: increase it if the same settings would train other weights
PLANES = (32, 64, 128, 256)
GROUPS = 8
RECORD, WEIGHTS = "classifier.json", "classifier.safetensors"


def latent_network(channels: int, findings: int, seed: int = 0) -> Network:
    """Return a narrow ResNet-10 (arXiv 1512.03385) with group norm and a 3x3 stem without downsampling; D = 256.

    Its weights are drawn from `seed`; torch's global generator does not change.
    """
    stem = {"n_input_channels": channels, "conv1_t_size": 3, "conv1_t_stride": 1, "no_max_pool": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = ResNet(
            "basic",
            [1, 1, 1, 1],
            list(PLANES),
            num_classes=findings,
            spatial_dims=2,
            norm=("group", {"num_groups": GROUPS}),
            **stem,
        )
    head, body.fc = body.fc, nn.Identity()
    for name, part in list(body.named_modules()):
        if isinstance(part, nn.BatchNorm2d):  # MONAI 1.6 gives `norm` to the stem only
            body.set_submodule(name, nn.GroupNorm(GROUPS, part.num_features))
    return Network(body, head, nn.Identity())


@dataclass(frozen=True)
class LatentClassifier:
    """A trained network on standardised latents. `record` holds settings, history and digests; its weights are fixed.

    Gradients pass through to the latents, and reach no weight.
    """

    net: Network
    record: dict[str, Any]

    def __call__(self, z: Tensor) -> Tensor:
        """Return logits [B,K] of latents [B,C,h,w] on the network's device."""
        logits: Tensor = self.net(z)
        return logits

    def features(self, z: Tensor) -> Tensor:
        """Return the input of the head, float32 [B,D], for latents [B,C,h,w]."""
        return self.net.features(z)

    @property
    def digest(self) -> str:
        """Return a digest of the weights."""
        return files.digest_tensors(self.net.state_dict())


def fit_latents(
    train: LabelledLatents,
    val: LabelledLatents,
    *,
    runtime: Runtime,
    store: Store,
    name: str = "latent classifier",
    **settings: Any,
) -> LatentClassifier:
    """Train on `train` and keep the best weights on `val`; latents are standardised.

    settings: the fields of medlt.classify.settings.OptimizerSettings; the seed is the runtime's, and `name` labels the
    progress. The store keeps the classifier under data, settings and seed. It computes in bfloat16 with weights in
    float32, whatever the runtime's precision. Raises InputError for sets whose latents or findings differ in shape or
    are not finite, and TypeError for an unknown setting.
    """
    chosen, runtime = OptimizerSettings(**settings), runtime.at("fp32")
    _check(train, val)
    device = str(runtime.torch_device(name))
    key = {"format": FORMAT, "planes": PLANES, "settings": asdict(chosen), "seed": runtime.seed}
    key |= {"train": train.digest(), "val": val.digest()}
    build = partial(_train, train, val, chosen, runtime, name, key=key)
    made = store.make("latent_classifier", key, build, joint=True)
    return load_latent_classifier(made.folder, device)


def load_latent_classifier(folder: Path, device: str) -> LatentClassifier:
    """Load a classifier from its folder in the store. Raises InputError if there is none."""
    try:
        record = json.loads((folder / RECORD).read_text())
        net = latent_network(record["channels"], len(record["positive"]))
        net.load_state_dict(files.read_tensors(folder / WEIGHTS))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, FileNotFoundError):
        raise InputError(f"{folder}: has no readable classifier; move it away and run again") from None
    return LatentClassifier(net.to(device).eval().requires_grad_(False), record)


def _check(train: LabelledLatents, val: LabelledLatents) -> None:
    shapes = [(tuple(one.rows(np.arange(1))[0].shape[1:]), np.shape(one.labels)[1]) for one in (train, val)]
    if shapes[0] != shapes[1]:
        raise InputError(f"latents and findings of train are {shapes[0]}, of validation {shapes[1]}; encode them alike")


def _half(net: nn.Module, z: Tensor) -> Tensor:
    """Return logits float32 [B,K], computed in bfloat16: twice as fast on a CPU.

    Latents of 4x4 or less are computed in float32, as small images are (`medlt.classify.classifier.in_precision`).
    """
    z = z.to(next(net.parameters()).device, memory_format=torch.channels_last)
    with torch.autocast(z.device.type, torch.bfloat16, enabled=min(z.shape[-2:]) > 4):
        logits: Tensor = net(z)
    return logits.float()


@torch.no_grad()
def _macro_ap(net: nn.Module, data: LabelledLatents, chunk: int = 256) -> float:
    """Return macro AP on all rows; NaN without a positive."""
    net.eval()
    starts = range(0, len(data.uids), chunk)
    parts = [data.rows(np.arange(start, min(start + chunk, len(data.uids))))[0] for start in starts]
    scores = torch.cat([_half(net, z).sigmoid().cpu() for z in parts])
    return macro_average_precision(np.asarray(data.labels), scores.numpy())


def _train(
    train: LabelledLatents, val: LabelledLatents, settings: OptimizerSettings, runtime: Runtime, name: str,
    folder: Path, *, key: dict[str, Any],
) -> None:  # fmt: skip
    """Write the weights and their record."""
    labels, device = np.asarray(train.labels, np.float32), runtime.torch_device(name)
    channels = train.rows(np.arange(1))[0].shape[1]
    net = latent_network(channels, labels.shape[1], seed_of(runtime.seed, "latent weights"))
    loss = named_loss(settings.loss, torch.from_numpy(labels).to(device))

    def make(step: int) -> tuple[Tensor, Tensor]:
        rows = batch_indices(len(train.uids), settings.batch_size, step, runtime.seed, "latents")
        return train.rows(rows)[0], torch.from_numpy(labels[rows])

    def loss_of(network: nn.Module, step: int, part: BatchPart) -> Tensor:
        latents, known = batches(step)
        logits, share = _half(network, part.take(latents)), part.share(entries(known))
        return loss(logits, part.take(known).to(logits), torch.ones(len(logits)).to(logits)) * share

    with StepBatches(make, settings.steps) as batches:
        state = loop.fit(net, loss_of, settings.training(), runtime=runtime, folder=folder / "checkpoint", name=name,
                         key=files.digest(key), evaluate=lambda network: _macro_ap(network, val))  # fmt: skip
    history = [
        {"step": step, "loss": state.losses[step - 1], "val_macro_ap": None if math.isnan(score) else score}
        for step, score in state.validation.items()
    ]
    positive = [float(n) for n in np.nansum(labels, axis=0)]
    record = {"settings": asdict(settings), "seed": runtime.seed, "channels": channels, "positive": positive,
              "train_digest": key["train"], "val_digest": key["val"], "best_step": state.best.step,
              "history": history}  # fmt: skip
    files.write_tensors(folder / WEIGHTS, net.state_dict())
    files.write_json(folder / RECORD, record)
