"""A positive control of DiffuLT: one label per image, nothing pre-trained, minutes on one core.

    python benchmarks/digits.py FOLDER [--seeds 5] [--split val] [--fill 0] [--omega 0.3] [--guidance 3] [--tau 1.0]

scikit-learn's digits (8 x 8 pixels, 10 classes) get a long tail: the most frequent class has 120 train images, the
rarest has 1 (ratio 100); which class is how rare depends on the seed. Validation (14 images a class) is for choices,
and the table of `--split test` (40 images a class) is for the result. No arm reads either of them. Diffusion runs on
pixels (`IdentityCodec`). Every part is medlt's own: training loop, label UNet, class balancing, in-band loss, bands,
fill rule, sampler, simplicial coder, fusion, classifier.

| arm | added to the real train images |
|---|---|
| real | nothing |
| copies | the real image of each synthetic one, count by count |
| diffusion | images of a denoiser without extra losses |
| cbdm, cbdm + aid | images of a denoiser with class balancing, and with the in-band loss too |
| DiffuLT | as cbdm + aid; images out of band are dropped and made again |
| fusion (only by `--arms`) | tail digits fused into head digits, refined by the denoiser of `diffusion` |

All arms use the same classifier (medlt's ResNet-10 of latents, with group norm), steps and real rows. Real and added
images are drawn alike, and an added image has the weight omega. All denoisers draw rare classes more often
(`balance: inverse_sqrt`) and make the same number of steps; the extra losses act in the last ones. `--fill 0` fills
every class to the most frequent one, `--fill 3` to three times its own images. "Shows its class" is the share of images
that a classifier trained on all images outside validation and test assigns to their label: it takes no part in anything
else. Finished rows are kept in FOLDER, so that a second call continues. Only the scores of `--split` are shown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import table
from scipy.stats import t as student
from torch import Tensor, nn

from medlt.checks.bands import Band, Rule, band, limits, shrunk
from medlt.classify.batches import Batches
from medlt.classify.classifier import Classifier
from medlt.classify.latents import fit_latents, latent_network
from medlt.classify.losses import loss as named_loss
from medlt.classify.networks import OWN, Standardise
from medlt.classify.sets import TrainingSet, to_uint8
from medlt.classify.settings import OptimizerSettings
from medlt.classify.training_strategies import Stage
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.cache import Standardiser
from medlt.diffusion.cbdm import ClassBalancing
from medlt.diffusion.finetune import LabelledLatents, Objective, backbone_key, train_backbone
from medlt.diffusion.in_band_loss import AidLoss
from medlt.diffusion.labels import LabelUNet
from medlt.diffusion.losses import ExtraLoss
from medlt.diffusion.noise import NoiseSchedule
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.schedulers import factory
from medlt.diffusion.train import new_network
from medlt.evaluation.arms import count_matched_control
from medlt.files import digest, write_json
from medlt.rng import noise_like, numpy_generator, seed_of
from medlt.sparse.iterated import iterate
from medlt.store import Store
from medlt.synthesis.diffult import DiffuLT
from medlt.synthesis.fusion import LatentFusion
from medlt.synthesis.plan import TrainTable
from medlt.testing import IdentityCodec
from medlt.training.loop import fit
from medlt.training.runtime import Runtime
from medlt.training.settings import BatchPart, Training

Check = Callable[[Tensor, pd.DataFrame], np.ndarray]
"""(images [N,1,8,8], plan rows) -> which pass, bool [N]."""

CLASSES = tuple(f"digit {c}" for c in range(10))
HEAD, RATIO, VAL, TEST = 120, 100.0, 14, 40
COUNTS = [round(HEAD * RATIO ** (-rank / 9)) for rank in range(10)]
GROUPS = {"all": range(10), "many": range(3), "medium": range(3, 7), "few": range(7, 10)}
ARMS = ("real", "copies", "diffusion", "cbdm", "cbdm + aid", "DiffuLT")
ROUNDS = 3
SCHEDULER = "dpm++", 12


@dataclass(frozen=True)
class Settings:
    """What the arms share; see the module."""

    fill: float = 0.0
    omega: float = 0.3
    guidance: float = 3.0
    tau: float = 1.0
    power: float = 1.0
    alpha: float = 0.02
    steps: int = 600
    further_steps: int = 200
    width: int = 16
    batch_size: int = 32
    classifier_steps: int = 200


def digits() -> tuple[Tensor, np.ndarray, dict[str, np.ndarray]]:
    """Return all images [N,1,8,8] in [0,1], their classes, and the row numbers of val, test and the rest."""
    from sklearn.datasets import load_digits

    data = load_digits()
    parts: dict[str, list[np.ndarray]] = {"val": [], "test": [], "pool": []}
    for c in range(10):
        rows = numpy_generator("digits", c).permutation(np.flatnonzero(data.target == c))
        for name, own in zip(parts, np.split(rows, [VAL, VAL + TEST]), strict=True):
            parts[name].append(own)
    images = torch.from_numpy(data.images).float()[:, None] / 16
    return images, data.target, {name: np.concatenate(own) for name, own in parts.items()}


def training_set(images: Tensor, classes: np.ndarray, uids: Sequence[str], weight: float = 1.0) -> TrainingSet:
    """Return images [N,1,8,8] in [0,1] with one-hot labels, for the classifier."""
    labels, weights = np.eye(10, dtype=np.float32)[classes], np.full(len(images), weight, np.float32)
    return TrainingSet(to_uint8(images), labels, weights, tuple(uids))


def classifier(real: TrainingSet, added: TrainingSet | None, steps: int, seed: int) -> Classifier:
    """Return a classifier after all of its steps: a ResNet-10 with group norm, cross-entropy, light augmentation.

    Rows of both sets are drawn alike. Nothing is chosen by validation.
    """
    network = latent_network(1, 10, seed_of(seed, "weights"))
    network.standardise = Standardise(**OWN)
    share = 0.0 if added is None else len(added) / (len(added) + len(real))
    batches = Batches(real, added, Stage(steps=steps), seed=seed, device=torch.device("cpu"), batch_size=32,
                      synthetic_fraction=share, augment="light", mixup="none", mixup_alpha=0.2)  # fmt: skip
    loss = named_loss("plain", torch.from_numpy(real.labels), "single-label")

    def loss_of(net: nn.Module, step: int, part: BatchPart) -> Tensor:
        batch = batches(step)
        return loss(net(batch.images), batch.labels, batch.weights)

    settings = OptimizerSettings(steps=steps, patience=1, evaluate_every=steps).training()
    training = replace(settings, patience=None, checkpoint_every=None)
    fit(network, loss_of, training, runtime=Runtime("cpu", "fp32", 1, seed), folder=None, key="", name="classifier")
    return Classifier(network, 8, {"settings": {"task": "single-label"}})


@cache
def knowing() -> Classifier:
    """Return a classifier of every image outside val and test."""
    images, classes, parts = digits()
    rows = parts["pool"]
    return classifier(training_set(images[rows], classes[rows], [str(row) for row in rows]), None, 600, 0)


class Experiment:
    """One seed: its long tail, its denoisers, its synthetic images and its classifiers, kept below a folder."""

    def __init__(self, folder: Path, seed: int, settings: Settings) -> None:
        self.folder, self.seed, self.settings = folder, seed, settings
        self.dropped = 0
        self.sampled: dict[str, dict[str, Tensor]] = {}
        self.runtime, self.store = Runtime("cpu", "fp32", 1, seed), Store(folder / "store")
        self.all, self.classes, self.parts = digits()
        self.rank = numpy_generator("long tail", seed).permutation(10)  # rank[c] is 0 for the most frequent class
        pool = self.parts["pool"]
        own = [pool[self.classes[pool] == c] for c in range(10)]
        chosen = [numpy_generator("train", seed, c).permutation(own[c])[: COUNTS[self.rank[c]]] for c in range(10)]
        self.rows = np.concatenate(chosen)
        self.uids = [f"image-{row:04d}" for row in self.rows]
        self.real = self.part(self.rows)
        self.codec = IdentityCodec()
        pixels = self.codec.latents(self.codec.moments(self.all[self.rows]))
        self.standardiser = Standardiser(pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)))

    def part(self, rows: np.ndarray) -> TrainingSet:
        """Return these real images for a classifier."""
        return training_set(self.all[rows], self.classes[rows], [f"image-{row:04d}" for row in rows])

    def latents(self, uids: Sequence[str]) -> Tensor:
        """Return standardised latents [N,1,8,8]."""
        pixels = self.all[[int(uid[-4:]) for uid in uids]]
        return self.standardiser.to(self.codec.latents(self.codec.moments(pixels)))

    @cached_property
    def data(self) -> LabelledLatents:
        """The train rows as latents."""
        return LabelledLatents(self.latents, self.uids, self.real.labels, digest("digits", self.uids))

    @cached_property
    def train(self) -> TrainTable:
        """The train rows as a table; every class is in the tail but the most frequent one."""
        rows = pd.DataFrame(self.real.labels.astype(float), index=pd.Index(self.uids, name="uid"), columns=CLASSES)
        tail = tuple(CLASSES[c] for c in range(10) if self.rank[c] > 0)
        return TrainTable(rows.assign(patient_id=self.uids, fold=0), CLASSES, tail)

    @cached_property
    def targets(self) -> dict[str, int]:
        """The number of images that each class lacks."""
        counts = {CLASSES[c]: COUNTS[self.rank[c]] for c in range(10)}
        wanted = {
            c: min(HEAD, round(self.settings.fill * n)) if self.settings.fill else HEAD for c, n in counts.items()
        }
        return {c: wanted[c] - n for c, n in counts.items() if wanted[c] > n}

    @cached_property
    def baseline(self) -> Classifier:
        """phi0 of the paper: the classifier of the real images."""
        return classifier(self.real, None, self.settings.classifier_steps, self.seed)

    def aid(self, noise: NoiseSchedule) -> AidLoss:
        """Return the in-band loss on a classifier of latents."""
        phi = fit_latents(
            self.data, self.data, runtime=self.runtime, store=self.store, steps=300, evaluate_every=300, patience=1
        )
        widths = limits(phi.features(self.latents(self.uids)).numpy(), self.real.labels)
        counts = self.real.labels.sum(0).tolist()
        scale: Any = {"alpha": self.settings.alpha, "unit": float(np.nanmedian(widths)), "noise": noise}
        return AidLoss(phi.features, phi.digest, widths.tolist(), counts, **scale)

    def denoiser(self, *losses: str) -> Backbone:
        """Return a label UNet of pixels: trained plainly, then further with these extra losses, "cbdm" and "aid"."""
        chosen, extra = self.settings, list[ExtraLoss]()
        start = self.trained(None, chosen.steps, "constant", extra)
        if "cbdm" in losses:
            extra.append(ClassBalancing(start.condition, self.data.labels, chosen.tau, chosen.power, start.noise))
        if "aid" in losses:
            extra.append(self.aid(start.noise))
        return self.trained(start, chosen.further_steps, "cosine", extra)

    def trained(self, start: Backbone | None, steps: int, rate: str, extra: Sequence[ExtraLoss]) -> Backbone:
        """Return a denoiser trained from `start`, or from nothing, kept in the folder by its key."""
        network = new_network(LabelUNet, self.data, self.seed, {"width": self.settings.width, "levels": 2})
        if start is not None:
            network.load_state_dict(start.network.state_dict())
        training: Any = {"steps": steps, "batch_size": self.settings.batch_size, "lr_scheduler": rate}
        options: dict[str, Any] = {
            "training": Training(**training, learning_rate=1e-3, ema_decay=0.99, checkpoint_every=steps),
            "objective": Objective(snr_floor=1.0, balance="inverse_sqrt"),
            "runtime": self.runtime, "extra_losses": extra,
        }  # fmt: skip
        net = network.backbone()
        key = digest(backbone_key(net, self.data, **options))
        return train_backbone(net, self.data, folder=self.folder / "denoisers" / key[:16], **options)

    def images(self, backbone: Backbone, rows: pd.DataFrame) -> Tensor:
        """Return images [N,1,8,8] of plan rows, sampled all in one batch unless they were before."""
        known = self.sampled.setdefault(backbone.digest, {})
        new = rows[~rows.index.isin(known)]
        if len(new):
            labels = torch.tensor(self.train.table.loc[new["label_source"], list(CLASSES)].to_numpy(np.float32))
            seeds = [seed_of("noise", int(seed)) for seed in new["seed"]]
            steps = factory(*SCHEDULER)()
            denoiser = backbone.guided(backbone.condition(labels), self.settings.guidance)
            z = sample(denoiser, from_noise(noise_like(seeds, (1, 8, 8)), steps), steps, seeds)
            known.update(zip(new.index, self.codec.decode(self.standardiser.back(z)), strict=True))
        return torch.stack([known[uid] for uid in rows.index])

    def made(self, backbone: Backbone, check: Check | None = None) -> TrainingSet:
        """Return the images of the plan of DiffuLT; those that fail the check are made again, in three rounds."""
        method = DiffuLT(train=self.train, backbone=backbone, standardiser=self.standardiser, decode=self.codec.decode,
                         scheduler=factory(*SCHEDULER), shape=(1, 8, 8), num_candidates=ROUNDS)  # fmt: skip
        plan, self.dropped = method.plan(self.targets, self.seed), 0
        slots, kept, filled = plan[["finding", "slot"]].apply(tuple, axis=1), list[pd.DataFrame](), set[object]()
        for number in range(ROUNDS if check else 1):
            rows = plan[(plan["candidate"] == number) & ~slots.isin(filled)]
            if len(rows):
                kept.append(rows[check(self.images(backbone, rows), rows)] if check else rows)
                self.dropped += len(rows) - len(kept[-1])
                filled |= set(slots[kept[-1].index])
        self.plan = pd.concat(kept)
        classes = np.array([CLASSES.index(name) for name in self.plan["finding"]])
        return training_set(self.images(backbone, self.plan), classes, self.plan.index, self.settings.omega)

    @cached_property
    def bands(self) -> dict[str, Band]:
        """The band of each class in the features of phi0, leave-one-out."""
        seen = self.baseline.features(self.real.images).numpy()
        made = shrunk([band(seen[column == 1], rule=Rule()) for column in self.real.labels.T])
        return dict(zip(CLASSES, made, strict=True))

    def in_band(self, images: Tensor, rows: pd.DataFrame) -> np.ndarray:
        """Return which images are in band, bool [N]; a class of one image has no band, and its images pass."""
        seen, names = self.baseline.features(to_uint8(images)).numpy(), rows["finding"].to_numpy()
        passed = np.ones(len(rows), bool)
        for name in np.unique(names):
            mine = names == name
            if self.bands[name].limit > 0:
                passed[mine] = self.bands[name].value(seen[mine]) <= 2
        return passed

    def fused(self) -> TrainingSet:
        """Return the fused images of the medium and few classes, with the label of the tail image."""
        train = replace(self.train, tail=tuple(CLASSES[c] for c in range(10) if self.rank[c] > 2))
        own: Any = (self.latents(self.uids), self.real.labels)
        named: Any = {"contents": self.data.contents, "val_contents": self.data.contents}
        code: Any = {"groups": 8, "vocabulary": 8, "width": 16, "generations": 2}
        learnt = iterate(*own, *own, **named, **code, runtime=self.runtime, store=self.store)
        method = LatentFusion(train=train, coder=learnt.coder, latents=self.latents, standardiser=self.standardiser,
                              backbone=self.denoiser(), decode=self.codec.decode, scheduler=factory("ddim", 75),
                              labels="tail", rule="tail_first", guidance_scale=self.settings.guidance)  # fmt: skip
        self.plan = method.plan({name: n for name, n in self.targets.items() if name in train.tail}, self.seed)
        classes = np.array([CLASSES.index(name) for name in self.plan["finding"]])
        images = torch.cat([batch.images for batch in method.run(self.plan)])
        return training_set(images, classes, self.plan.index, self.settings.omega)

    def added(self, arm: str) -> TrainingSet | None:
        """Return the images that an arm adds."""
        if arm == "real":
            return None
        if arm == "copies":
            self.added("diffusion")
            return count_matched_control(self.plan, self.real, self.settings.omega)
        if arm == "fusion":
            return self.fused()
        losses = {"diffusion": (), "cbdm": ("cbdm",)}.get(arm, ("cbdm", "aid"))
        return self.made(self.denoiser(*losses), self.in_band if arm == "DiffuLT" else None)

    def accuracy(self, classifier: Classifier, on: TrainingSet) -> dict[str, float]:
        """Return the mean accuracy over the classes of each group."""
        guess, truth = classifier.predict(on.images).argmax(1).numpy(), on.labels.argmax(1)
        right = {self.rank[c]: float((guess[truth == c] == c).mean()) for c in np.unique(truth)}
        return {name: float(np.mean([right[r] for r in ranks if r in right])) for name, ranks in GROUPS.items()}


def row(one: Experiment, arm: str) -> dict[str, Any]:
    """Return accuracies on both splits and shares of one arm, which are kept."""
    key = digest(arm, one.seed, *vars(one.settings).values())
    file = one.folder / "rows" / f"{key[:16]}.json"
    if not file.is_file():
        one.dropped = 0
        added, steps = one.added(arm), one.settings.classifier_steps
        trained = one.baseline if added is None else classifier(one.real, added, steps, one.seed)
        scores = {split: one.accuracy(trained, one.part(one.parts[split])) for split in ("val", "test")}
        shown = {} if added is None else one.accuracy(knowing(), added)
        shares = {name: shown.get(name.removeprefix("shown ")) for name in SHOWN}
        count = {"images": 0 if added is None else len(added), "dropped": one.dropped}
        write_json(file, {"arm": arm, "seed": one.seed, **count, **shares, **scores})
    return dict(json.loads(file.read_text()))


def run(folder: Path, seed: int, settings: Settings, split: str, arms: Sequence[str]) -> pd.DataFrame:
    """Return accuracies and shares of one seed, a row an arm."""
    one, rows = Experiment(folder, seed, settings), []
    for arm in arms:
        known = row(one, arm)
        scores = {name: known.pop(name) for name in ("val", "test")}[split]
        rows.append(known | scores)
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


SHOWN = ("shown all", "shown few")


def interval(values: np.ndarray) -> str:
    """Return mean and half of the 95 % t interval over seeds, in percent."""
    n = len(values)
    half = student.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5 if n > 1 else np.nan
    return f"{100 * values.mean():.1f} ± {100 * half:.1f}"


def report(results: pd.DataFrame, settings: Settings, split: str) -> list[str]:
    """Return the table."""
    named = ", ".join(f"{name} {value}" for name, value in vars(settings).items())
    seeds = f"mean ± half of the 95 % t interval over {results['seed'].nunique()} seeds"
    wide = results.pivot(index="seed", columns="arm", values="all")
    heads = ("arm", "images", *GROUPS, "against real", "against copies", "shows its class", "of the few")
    lines = [f"Accuracy on {split}, {seeds}. {named}.", "", f"| {' | '.join(heads)} |", "|---|" + "---:|" * 9]
    for arm in results["arm"].unique():
        part = results[results["arm"] == arm]
        cells = [arm, f"{part['images'].mean():.0f}", *(interval(part[name].to_numpy()) for name in GROUPS)]
        cells += [interval((wide[arm] - wide[to]).to_numpy()) if arm != to and to in wide else "" for to in ARMS[:2]]
        cells += [interval(part[name].to_numpy(float)) if part[name].notna().all() else "" for name in SHOWN]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """All arms and seeds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--arms", default=",".join(ARMS))
    for name, value in vars(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = parser.parse_args()
    settings = Settings(**{name: getattr(args, name) for name in vars(Settings())})
    seeds = range(args.first, args.first + args.seeds)
    results = pd.concat([run(args.folder, seed, settings, args.split, args.arms.split(",")) for seed in seeds])
    lines = report(results, settings, args.split)
    table("digits", lines) if args.split == "test" else print("\n".join(lines))


if __name__ == "__main__":
    main()
