"""An epistemic head on a frozen classifier: how much the members of an ensemble disagree, in one forward pass.

Longtail guidance, arXiv 2502.01980, needs a differentiable signal of the classifier's uncertainty that leaves the
classifier unchanged. Its equations were not available to us; this head is our completion: bootstrapped small networks
with random prior functions (Osband, Aslanides, Cassirer, arXiv 1806.03335).

| symbol | meaning |
|---|---|
| h | pooled features of the classifier, standardised by the training rows, [B,D] |
| l | logits of the classifier, [B,K] |
| g_m, p_m | trained small network and fixed random one of member m, both [B,D] -> [B,K]; M members |
| d_m | (g_m(h) + beta p_m(h)) / s; member m sees row i Poisson(1) times |
| s | standard deviation of d_m over members and training rows, one a finding: the mean variance there is 1 |
| l_m, p_m | l + d_m, sigmoid(l_m) |
| H | entropy of a coin in nats, H(p) = -p log p - (1-p) log(1-p) |

Each member minimises its cross-entropy plus `consensus` times d_m^2 on its rows. Without the second term nothing pulls
members together where the classifier is sure: there the cross-entropy has no gradient, and the variance follows the
size of the logit, however many rows are near. With it, members agree where there are rows, whatever their labels
(tests/classify/test_epistemic_truth.py, benchmarks/epistemic.py).

`medlt.classify.uncertainty` has the statistics of the members.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medlt import files
from medlt.classify.networks import Network
from medlt.classify.sets import TrainingSet
from medlt.classify.train import Classifier
from medlt.classify.uncertainty import statistic
from medlt.rng import batch_indices, numpy_generator, torch_generator
from medlt.rows import chunks
from medlt.store import Store
from medlt.training import loop
from medlt.training.runtime import Runtime
from medlt.training.settings import BatchPart, Training
from medlt.types import InputError

FORMAT = 4  # part of the key: increase it if the same settings would train other weights
RECORD, WEIGHTS = "epistemic.json", "epistemic.safetensors"


@dataclass(frozen=True)
class EpistemicSettings:
    """Settings of an epistemic head, beside its classifier and data.

    beta: scale of the random prior networks; consensus: weight of the members' squared deviation on the training rows.
    """

    members: int = 12
    hidden: int = 64
    beta: float = 3.0
    consensus: float = 1.0
    steps: int = 200
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        if self.members < 2:
            raise InputError(f"epistemic head: {self.members} members cannot disagree; take 8 to 16")

    def training(self) -> Training:
        """Return the settings of the loop: a constant rate, no moving average, no clipping."""
        same = {name: getattr(self, name) for name in ("steps", "batch_size", "learning_rate", "weight_decay")}
        return Training(**same, warmup_steps=0, ema_decay=0.0, max_grad_norm=math.inf, checkpoint_every=None)


class Members(nn.Module):
    """M two-layer networks and their fixed priors side by side: features [B,D] -> d_m, [M,B,K]."""

    mean: Tensor
    sd: Tensor
    scale: Tensor
    g_w1: Tensor
    g_w2: Tensor
    p_w1: Tensor
    p_w2: Tensor

    def __init__(self, members: int, width: int, hidden: int, findings: int, beta: float, seed: int) -> None:
        super().__init__()
        self.beta = beta
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("sd", torch.ones(width))
        self.register_buffer("scale", torch.ones(findings))
        shapes = {"w1": (members, width, hidden), "w2": (members, hidden, findings)}
        for name, shape in shapes.items():
            scale = math.sqrt((2 if name == "w1" else 1) / shape[1])
            draws = [torch.randn(shape, generator=torch_generator(seed, name, of)) * scale for of in ("g", "p")]
            self.register_parameter(f"g_{name}", nn.Parameter(draws[0]))
            self.register_buffer(f"p_{name}", draws[1])
        self.g_b1, self.g_b2 = (nn.Parameter(torch.zeros(members, 1, n)) for n in (hidden, findings))

    def forward(self, features: Tensor) -> Tensor:
        """Return what each member adds to the classifier's logits."""
        h = (features - self.mean) / self.sd
        g = (h @ self.g_w1 + self.g_b1).relu() @ self.g_w2 + self.g_b2
        return (g + self.beta * ((h @ self.p_w1).relu() @ self.p_w2)) / self.scale


class Epistemic:
    """A classifier with its epistemic head: images -> (logits [B,K], members' logits [M,B,K]), differentiable.

    Images are float [B,1,H,W] in [0,1], resized to the classifier's size by area. All computation is in float32. The
    classifier is a frozen copy, so the original cannot change. `record` holds settings and digests.
    """

    def __init__(self, net: Network, size: int, members: Members, record: dict[str, Any]) -> None:
        self.net: Network = copy.deepcopy(net).eval().requires_grad_(False)
        self.members = members.eval().requires_grad_(False)
        self.size, self.record = size, record

    @property
    def digest(self) -> str:
        """Return a digest of the classifier and the head."""
        return files.digest(self.record["classifier"], files.digest_tensors(self.members.state_dict()))

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(images.device.type, enabled=False):
            features = self.net.features(_sized(images, self.size))
            base: Tensor = self.net.head(features)
            return base, base + self.members(features)

    def logits(self, images: Tensor) -> Tensor:
        """Return the members' logits [M,B,K]."""
        return self(images)[1]

    @torch.no_grad()
    def score(self, images: Tensor, name: str, chunk: int = 64) -> Tensor:
        """Return a statistic of every finding, [B,K] on the CPU, of images uint8 or float; see the table above."""
        known, place = statistic(name), self.members.mean.device
        floats = (
            part.to(place).float() / (255 if part.dtype == torch.uint8 else 1) for part in torch.split(images, chunk)
        )
        return torch.cat([known(*self(part)).cpu() for part in floats])


def _sized(images: Tensor, size: int) -> Tensor:
    """Resize images [B,1,H,W] to [B,1,size,size] by area."""
    return images if images.shape[-2:] == (size, size) else F.interpolate(images, (size, size), mode="area")


def weights_digest(net: nn.Module) -> str:
    """Return 16 hex digits that identify the weights of a network."""
    return files.digest_tensors(net.state_dict())


def fit_epistemic(
    classifier: Classifier,
    train: TrainingSet,
    *,
    runtime: Runtime,
    store: Store,
    **settings: Any,
) -> Epistemic:
    """Train an epistemic head on the features of `train`, which are computed once; the classifier does not change.

    settings: the fields of EpistemicSettings; the seed is the runtime's. The store keeps the head under classifier,
    data, settings and seed. Training computes in float32, whatever the runtime's precision. Raises InputError where the
    findings differ in number.
    """
    if (labelled := train.labels.shape[1]) != (outputs := classifier.net.head.out_features):
        raise InputError(
            f"epistemic head: the classifier has {outputs} findings, the labels {labelled}; use the same set"
        )
    chosen, runtime = EpistemicSettings(**settings), runtime.at("fp32")
    device = str(runtime.torch_device("epistemic"))
    key = {"format": FORMAT, "classifier": weights_digest(classifier.net), "size": classifier.size}
    key |= {"train": train.digest(), "settings": asdict(chosen), "seed": runtime.seed}

    def build(folder: Path) -> None:
        members = _trained(classifier, train, chosen, runtime, files.digest(key))
        files.write_tensors(folder / WEIGHTS, members.state_dict())
        source = {"classifier": key["classifier"], "train_digest": key["train"], "train_rows": len(train)}
        files.write_json(folder / RECORD, {"settings": asdict(chosen), "seed": runtime.seed, **source})

    return load_epistemic(store.make("epistemic", key, build, joint=True).folder, classifier, device)


def load_epistemic(folder: Path, classifier: Classifier, device: str) -> Epistemic:
    """Load a head from its folder in the store, onto `device`. Raises InputError for the head of another classifier."""
    record = json.loads((folder / RECORD).read_text())
    if record["classifier"] != weights_digest(classifier.net):
        raise InputError(f"{folder}: is the head of another classifier; train one for this classifier")
    members = _fresh(classifier, EpistemicSettings(**record["settings"]), record["seed"])
    members.load_state_dict(files.read_tensors(folder / WEIGHTS))
    head = Epistemic(classifier.net, classifier.size, members, record)
    head.net.to(device), head.members.to(device)
    return head


def _fresh(classifier: Classifier, chosen: EpistemicSettings, seed: int) -> Members:
    """Return untrained members."""
    head = classifier.net.head
    return Members(chosen.members, head.in_features, chosen.hidden, head.out_features, chosen.beta, seed)


@torch.no_grad()
def _features(classifier: Classifier, train: TrainingSet, chunk: int = 64) -> tuple[Tensor, Tensor]:
    """Return features [N,D] and logits [N,K] in float32, as `Epistemic` computes them."""
    net, place = copy.deepcopy(classifier.net).eval(), classifier.net.head.weight.device
    parts = (_sized(part.to(place).float() / 255, classifier.size) for part in chunks(train.images, chunk))
    features = torch.cat([net.features(part) for part in parts])
    return features, net.head(features)


def _trained(
    classifier: Classifier, train: TrainingSet, chosen: EpistemicSettings, runtime: Runtime, key: str
) -> Members:  # fmt: skip
    """Train the members on their summed losses, with each member's bootstrap weights of the rows, and scale them."""
    device, members = runtime.torch_device("epistemic"), _fresh(classifier, chosen, runtime.seed)
    features, base = (part.to(device) for part in _features(classifier, train))
    members.mean, members.sd = features.mean(0), _spread(features)
    labels = torch.from_numpy(train.labels).to(features)
    pulls = torch.from_numpy(_bootstrap(train, chosen.members, runtime.seed)).to(features)

    def loss_of(network: nn.Module, step: int, part: BatchPart) -> Tensor:
        rows = batch_indices(len(train), chosen.batch_size, step, runtime.seed, "epistemic")
        at = torch.from_numpy(part.take(rows)).to(device)
        deviations: Tensor = network(features[at])
        spread = (deviations.square() * pulls[:, at, None]).sum() / deviations[0].numel()
        known = part.share((~labels[torch.from_numpy(rows).to(device)].isnan()).sum(1))
        return masked_bce(base[at] + deviations, labels[at], pulls[:, at]) * known + chosen.consensus * spread

    loop.fit(members, loss_of, chosen.training(), runtime=runtime, folder=None, key=key, name="epistemic")
    with torch.no_grad():
        members.scale = members(features).var(0, correction=0).mean(0).sqrt().clamp_min(1e-6)
    return members


def _spread(features: Tensor) -> Tensor:
    """Return standard deviations [D] of features [N,D], none below a tenth of their mean.

    Half the features of a small classifier may be 0 on every training image. Divided by almost zero, the smallest
    change in one of them would dominate all members.
    """
    spread = features.std(0, correction=0)
    return spread.clamp(min=max(0.1 * float(spread.mean()), 1e-6))


def _bootstrap(train: TrainingSet, members: int, seed: int) -> Any:
    """Return float32 [M,N], the weight of each row for each member: Poisson(1) times the row's weight, a function of
    its uid.
    """
    counts = [numpy_generator(seed, "bootstrap", uid).poisson(1.0, members) for uid in train.uids]
    return (train.weights[:, None] * counts).T.astype("float32")


def masked_bce(logits: Tensor, labels: Tensor, pulls: Tensor) -> Tensor:
    """Return the sum over members of sum(pull * known * l) / sum(known): logits [M,B,K], labels [B,K] or NaN, pulls
    [M,B].
    """
    known = ~labels.isnan()
    targets = labels.nan_to_num(0).expand_as(logits)
    values = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (values * known * pulls[..., None]).sum() / known.sum().clamp(min=1)
