"""A small classifier of latents, phi0 of DiffuLT (arXiv 2403.05170): its features say how far an estimate is from real.

Trained as image classifiers are (medlt.classify.train): class-balanced masked cross-entropy, the moving average with
the best validation macro AP kept. Latents are standardised, [B,C,h,w] of 8 to 32 px a side.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn

from medlt import files
from medlt.chance import batch_indices, seed_of
from medlt.classify.losses import Loss
from medlt.classify.losses import loss as named_loss
from medlt.classify.networks import Network
from medlt.classify.train import Best, Schedule, optimise
from medlt.diffusion.finetune import LabelledLatents
from medlt.metrics.ranking import macro_average_precision
from medlt.types import InputError

FORMAT = 1  # part of the cache key: raise it when the same settings would train other weights
PLANES = (32, 64, 128, 256)
GROUPS = 8


def latent_network(channels: int, findings: int, seed: int = 0) -> Network:
    """A narrow ResNet-10 (arXiv 1512.03385) with group norm, whose stem of 3x3 keeps every pixel; D = 256.

    Its weights are drawn from `seed`; torch's global generator is left as it was.
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
    return Network(body, head)


@dataclass(frozen=True)
class LatentClassifier:
    """A trained network on standardised latents. `record` holds settings, history and digests; its weights are fixed.

    Gradients pass through to the latents, and reach no weight.
    """

    net: Network
    record: dict[str, Any]

    def __call__(self, z: Tensor) -> Tensor:
        """Latents [B,C,h,w], on the network's device, to logits [B,K]."""
        logits: Tensor = self.net(z)
        return logits

    def features(self, z: Tensor) -> Tensor:
        """What the head sees: [B,C,h,w] -> float32 [B,D]."""
        return self.net.features(z)

    @property
    def digest(self) -> str:
        """Names the weights."""
        return files.digest_tensors(self.net.state_dict())


def fit_latents(
    train: LabelledLatents,
    val: LabelledLatents,
    *,
    folder: Path,
    progress: Callable[[str, int, int], None] | None = None,
    name: str = "latent classifier",
    device: str = "cpu",
    **schedule: Any,
) -> LatentClassifier:
    """Train on `train`, keep the best on `val`; latents are those of standardised space.

    schedule: the fields of medlt.classify.train.Schedule. The result is kept in `folder` under a digest of data and
    settings and read back when it is there already. Raises InputError for sets whose latents or findings differ in
    shape or are not finite; a TypeError on an unknown setting.
    """
    chosen = Schedule(**schedule)
    _check(train, val)
    told = (FORMAT, PLANES, train.digest(), val.digest(), asdict(chosen), device, torch.get_num_threads())
    place = Path(folder) / f"latents-{files.digest(*told)}.json"
    if not place.exists():
        _train(train, val, chosen, place, lambda done: progress and progress(name, done, chosen.steps), device)
    return load(place, device)


def load(place: Path, device: str = "cpu") -> LatentClassifier:
    """Read a classifier back from its JSON record and the weights beside it."""
    record = json.loads(place.read_text())
    net = latent_network(record["channels"], len(record["positive"]))
    net.load_state_dict(files.read_tensors(place.with_suffix(".safetensors")))
    return LatentClassifier(net.to(device).eval().requires_grad_(False), record)


def _check(train: LabelledLatents, val: LabelledLatents) -> None:
    shapes = [(tuple(one.rows(np.arange(1))[0].shape[1:]), np.shape(one.labels)[1]) for one in (train, val)]
    if shapes[0] != shapes[1]:
        raise InputError(f"latents and findings of train are {shapes[0]}, of validation {shapes[1]}; encode them alike")


def _half(net: nn.Module, z: Tensor) -> Tensor:
    """Logits float32 [B,K], computed in bfloat16: twice as fast on a CPU."""
    z = z.to(next(net.parameters()).device, memory_format=torch.channels_last)
    with torch.autocast(z.device.type, torch.bfloat16):
        logits: Tensor = net(z)
    return logits.float()


def _loss(net: nn.Module, loss: Loss, data: LabelledLatents, schedule: Schedule, step: int) -> Tensor:
    """The loss of one step: a function of (seed, step) and the data."""
    z, rows = data.rows(batch_indices(len(data.uids), schedule.batch, step, schedule.seed, "latents"))
    assert rows.labels is not None
    logits = _half(net, z)
    return loss(logits, rows.labels.to(logits), torch.ones(len(z)).to(logits))


@torch.no_grad()
def _macro_ap(net: nn.Module, data: LabelledLatents, chunk: int = 256) -> float:
    """Macro AP on all rows; NaN without a positive."""
    net.eval()
    starts = range(0, len(data.uids), chunk)
    parts = [data.rows(np.arange(start, min(start + chunk, len(data.uids))))[0] for start in starts]
    scores = torch.cat([_half(net, z).sigmoid().cpu() for z in parts])
    return macro_average_precision(np.asarray(data.labels), scores.numpy())


def _train(
    train: LabelledLatents,
    val: LabelledLatents,
    schedule: Schedule,
    place: Path,
    tell: Callable[[int], Any],
    device: str,
) -> None:
    """Writes the weights, then the record that names them: the record's presence means both are whole."""
    labels = np.asarray(train.labels, np.float32)
    channels = train.rows(np.arange(1))[0].shape[1]
    net = latent_network(channels, labels.shape[1], seed_of(schedule.seed, "latent weights")).to(device)
    loss, best = named_loss(schedule.loss, torch.from_numpy(labels).to(device)), Best(schedule.patience)

    def see(step: int, value: float, averaged: nn.Module) -> bool:
        best.rank(step, value, averaged, _macro_ap(averaged, val))
        return best.stale

    optimise(net, schedule, lambda step: _loss(net, loss, train, schedule, step), see, tell)
    record = {
        "settings": asdict(schedule),
        "channels": channels,
        "positive": [float(n) for n in np.nansum(labels, axis=0)],
        "train_digest": train.digest(),
        "val_digest": val.digest(),
        "best_step": best.step,
        "history": best.history,
    }
    files.write_tensors(place.with_suffix(".safetensors"), best.weights)
    files.write_json(place, record)
