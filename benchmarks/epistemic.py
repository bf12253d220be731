"""Which statistic of the epistemic head finds what the classifier does not know: a toy with truth, and an ensemble.

    python benchmarks/epistemic.py [--seeds 5] [--rare 8 400]

Points on a plane, one finding. Two dense clouds have clean labels, a band has labels by coin (aleatoric: more data do
not help), and two clouds have clean labels of few points (epistemic: more data help). A statistic of what the
classifier does not know is larger in the rare clouds than in the band and in the dense clouds: AUROC near 1. With as
many points there as elsewhere, the rare clouds are known, and the AUROC falls to 0.5 or below. An
ensemble of five classifiers, trained apart, is measured on the same points, and the rank correlation of each statistic
of the head with the ensemble's variance of logits and mutual information says whether the head agrees with it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import table
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from medlt.classify.epistemic import fit_epistemic
from medlt.classify.networks import Network
from medlt.classify.sets import TrainingSet
from medlt.classify.train import Classifier
from medlt.classify.uncertainty import STATISTICS
from medlt.rng import numpy_generator, torch_generator
from medlt.store import Store
from medlt.training.runtime import Runtime

ENSEMBLE = 5
HEADS: tuple[tuple[str, dict[str, Any]], ...] = (("head", {}), ("head, consensus 0", {"consensus": 0.0}))
REGIONS: Mapping[str, tuple[tuple[float, float], ...]] = {
    "dense": ((-1.0, 0.0), (1.0, 0.0)),
    "band": ((-0.4, 1.2), (0.4, 1.2)),
    "rare": ((1.0, -1.6), (-1.0, -1.6)),
}
"""Centres of the clouds; in the first and last the second cloud is positive."""


def share(base: Tensor, members: Tensor) -> Tensor:
    """Return the share of the entropy of the mean probability that comes from the members."""
    p = members.sigmoid().mean(0).clamp(1e-6, 1 - 1e-6)
    return STATISTICS["bald"](base, members) / -(p * p.log() + (1 - p) * (1 - p).log())


KNOWN = {**STATISTICS, "share": share}


@dataclass(frozen=True)
class Points:
    """Points [N,2] of all regions, their labels [N], and the region of each."""

    at: np.ndarray
    label: np.ndarray
    region: np.ndarray

    def images(self) -> Tensor:
        """Return the points as uint8 images [N,1,2,2], two pixels of which are the coordinates."""
        pixels = np.zeros((len(self.at), 1, 2, 2))
        pixels[:, 0, 0] = 127.5 + 40 * self.at
        return torch.from_numpy(pixels.round().clip(0, 255).astype("uint8"))

    def training_set(self) -> TrainingSet:
        """Return the points as the train rows of a classifier."""
        uids = tuple(f"p{i}" for i in range(len(self.at)))
        return TrainingSet(
            self.images(), self.label[:, None].astype("float32"), np.ones(len(self.at), np.float32), uids
        )


def points(counts: Mapping[str, int], seed: int, stream: str) -> Points:
    """Draw `counts` points of each region."""
    rng, parts = numpy_generator(seed, "epistemic toy", stream), defaultdict(list)
    for region, count in counts.items():
        second = rng.permutation(np.arange(count) % 2)
        parts["at"].append(np.array(REGIONS[region])[second] + rng.normal(0, 0.2, (count, 2)))
        parts["label"].append(rng.integers(0, 2, count) if region == "band" else second)
        parts["region"].append(np.full(count, region))
    return Points(*(np.concatenate(parts[name]) for name in ("at", "label", "region")))


class Plane(nn.Sequential):
    """Features [B,64] of points."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)[:, :2]
        for layer in self:
            x = layer(x)
        return x


def classifier(train: TrainingSet, seed: int, steps: int) -> Classifier:
    """Train a classifier of points, in batches of 128."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Network(Plane(), nn.Linear(64, 1))
    optimizer, rng = torch.optim.Adam(net.parameters(), 3e-3, weight_decay=1e-4), torch_generator(seed, "batches")
    x, y = train.images.float() / 255, torch.from_numpy(train.labels)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=rng)
        loss = nn.functional.binary_cross_entropy_with_logits(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Classifier(net.eval(), 2, {})


@torch.no_grad()
def statistics(logits: Callable[[Tensor], tuple[Tensor, Tensor]], images: Tensor) -> dict[str, np.ndarray]:
    """Return every statistic [N] of a function of images to logits and members' logits."""
    base, members = logits(images.float() / 255)
    return {name: one(base, members)[:, 0].numpy() for name, one in KNOWN.items()}


def ensemble(nets: list[Classifier]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return the mean logits of some classifiers, and those of each."""

    def logits(images: Tensor) -> tuple[Tensor, Tensor]:
        members = torch.stack([one.net(images) for one in nets])
        return members.mean(0), members

    return logits


def measured(seed: int, rare: int, folder: Path, steps: int = 600) -> dict[tuple[str, str], dict[str, float]]:
    """Return, for each network and statistic, its AUROCs and its rank correlation with the ensemble."""
    train = points({"dense": 800, "band": 200, "rare": rare}, seed, "train").training_set()
    test = points({"dense": 300, "band": 300, "rare": 300}, seed, "test")
    nets = [classifier(train, 100 * seed + i, steps) for i in range(1 + ENSEMBLE)]
    runtime, images = Runtime("cpu", "fp32", None, seed), test.images()
    heads = {name: fit_epistemic(nets[0], train, runtime=runtime, store=Store(folder), **own) for name, own in HEADS}
    values = {name: statistics(head, images) for name, head in heads.items()}
    values["ensemble"] = statistics(ensemble(nets[1:]), images)
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for network, name in ((network, name) for network in values for name in KNOWN):
        value = values[network][name]
        row = {f"rare against {other}": auroc(value, test.region, other) for other in ("band", "dense")}
        agreed = float(spearmanr(value, values["ensemble"]["share"]).statistic)
        rows[network, name] = {**row, "correlation with the ensemble's share": agreed}
    return rows


def auroc(value: np.ndarray, region: np.ndarray, other: str) -> float:
    """Return the AUROC of the rare region against another."""
    chosen = np.isin(region, ("rare", other))
    return float(roc_auc_score(region[chosen] == "rare", value[chosen]))


def main() -> None:
    """Every network and statistic, over seeds."""
    read = argparse.ArgumentParser()
    read.add_argument("--seeds", type=int, default=5)
    read.add_argument("--rare", type=int, nargs="+", default=[8, 400], help="train points of the rare clouds")
    args = read.parse_args()
    with tempfile.TemporaryDirectory() as place:
        runs = {rare: [measured(seed, rare, Path(place)) for seed in range(args.seeds)] for rare in args.rare}
    columns = list(next(iter(runs[args.rare[0]][0].values())))
    lines = [
        f"800 dense points, 200 in the band; median over {args.seeds} seeds (least to most). The ensemble has "
        f"{ENSEMBLE} classifiers.",
        "",
        "| rare points | network | statistic | " + " | ".join(columns) + " |",
        "|---:|---|---|" + "---:|" * len(columns),
    ]
    for rare, made in runs.items():
        for network, name in made[0]:
            cells = [[run[network, name][column] for run in made] for column in columns]
            text = " | ".join(f"{np.median(cell):.2f} ({min(cell):.2f} to {max(cell):.2f})" for cell in cells)
            lines.append(f"| {rare} | {network} | {name} | {text} |")
    table("epistemic", lines)


if __name__ == "__main__":
    main()
