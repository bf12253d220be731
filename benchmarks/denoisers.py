"""Small denoisers at equal steps: noise schedule, loss weight, blocks, conditions; error at fixed noise and KID.

    OMP_NUM_THREADS=1 python benchmarks/denoisers.py FOLDER --steps 400 --seeds 2 [--choices today,zero]
    python benchmarks/denoisers.py FOLDER --table

The first form trains and measures what FOLDER/results.jsonl does not hold yet; the second writes the table. The data
are latents (4 x 16 x 16) of the phantom at 64 px. The error is that of x0 on validation latents with fixed noise, times
1 / sigma^2 + 1, which is that of v at any schedule; sigma is the noise of x0 + sigma n, so it means the same for every
network. KID compares sampled latents with those of real validation and test images, under the same labels, entry by
entry (1,024 features); its error is that of the jackknife. Brightness is the deviation between images of a channel's
mean, over that of real images.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import Pixels, table
from torch import Tensor

from medlt.data import phantom
from medlt.data.squares import square
from medlt.diffusion.attributes import ATTRIBUTES
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.cache import Standardiser
from medlt.diffusion.codec import encode
from medlt.diffusion.finetune import LabelledLatents, Objective, train_backbone
from medlt.diffusion.labels import LabelUNet
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.schedulers import scheduler
from medlt.diffusion.train import new_network
from medlt.diffusion.train_codec import train_codec
from medlt.files import digest
from medlt.metrics.fidelity import kid
from medlt.rng import noise_like, seed_of
from medlt.store import Store
from medlt.training.runtime import Runtime
from medlt.training.settings import Training
from medlt.types import Codec

SEED, SIZE, SIGMAS = 17, 64, (0.1, 0.3, 1.0, 3.0, 10.0)
TODAY: dict[str, Any] = {"levels": 2}
ZERO = TODAY | {"rescale_betas_zero_snr": True}
FULL = ZERO | {"attributes": ATTRIBUTES}
CHOICES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "today": (TODAY, {}),
    "zero": (ZERO, {}),
    "zero shifted": (ZERO | {"shift": None}, {}),
    "zero uniform": (ZERO, {"weighting_scheme": "uniform"}),
    "zero edm": (ZERO, {"weighting_scheme": "edm"}),
    "zero shifted edm": (ZERO | {"shift": None}, {"weighting_scheme": "edm"}),
    "zero attributes": (FULL, {}),
    "zero two blocks": (ZERO | {"layers_per_block": 2}, {}),
    "zero dropout": (ZERO | {"dropout": 0.1}, {}),
}
"""Name -> settings of the network, and of the objective; each differs from one of its neighbours in one setting."""


@dataclass(frozen=True)
class Bench:
    """The data that all networks share."""

    folder: Path
    patients: int
    codec_steps: int
    width: int

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The rows of the cohort."""
        return phantom.cohort(self.patients, SEED, 20.0, shares=(0.6, 0.2, 0.2))

    @cached_property
    def images(self) -> np.ndarray:
        """All images, uint8 [N,S,S]."""
        place = self.folder / f"images-{self.patients}.npy"
        if not place.exists():
            drawn = [square(phantom.render(row, SEED, 128)[0], SIZE) for row in self.rows.to_dict("records")]
            place.parent.mkdir(parents=True, exist_ok=True)
            np.save(place, np.round(np.stack(drawn) * 255).astype(np.uint8))
        return np.load(place)

    def part(self, *splits: str) -> np.ndarray:
        """Return the positions of rows."""
        return np.flatnonzero(self.rows["split"].isin(splits))

    @cached_property
    def store(self) -> Store:
        """The artifacts."""
        return Store(self.folder / "store")

    @cached_property
    def codec(self) -> Codec:
        """A codec that is trained on the train images."""
        train, runtime = Pixels(self.images[self.part("train")]), Runtime("cpu", "fp32", 1, SEED)
        options: dict[str, Any] = {"steps": self.codec_steps, "learning_rate": 2e-3}
        return train_codec(
            train, contents=digest("denoisers", self.patients), store=self.store, runtime=runtime, **options
        )

    @cached_property
    def latents(self) -> tuple[Standardiser, Tensor]:
        """The standardiser of the train split, and the latents of all rows."""
        place = self.folder / f"latents-{self.patients}.npy"
        if not place.exists():
            parts = torch.from_numpy(self.images).float().div(255)[:, None].split(64)
            moments = [encode(self.codec, part) for part in parts]
            np.save(place, torch.cat([self.codec.latents(one) for one in moments]).numpy())
        z = torch.from_numpy(np.load(place))
        train = z[torch.from_numpy(self.part("train"))].transpose(0, 1).flatten(1)
        own = Standardiser(train.mean(1), train.std(1))
        return own, own.to(z)

    def data(self, *splits: str) -> LabelledLatents:
        """Return the latents of splits with labels and attributes."""
        at = self.part(*splits)
        uids = [str(i) for i in at]
        labels = self.rows[list(phantom.FINDINGS)].to_numpy(np.float32)[at]
        about = self.rows[list(ATTRIBUTES)].iloc[at].to_dict("records")
        return LabelledLatents(lambda uids: self.latents[1][[int(uid) for uid in uids]], uids, labels, "phantom", about)

    def trained(self, choice: str, steps: int, seed: int) -> tuple[Backbone, float]:
        """Return the trained backbone, and the CPU seconds of its training."""
        network, objective = CHOICES[choice]
        settings = {"width": self.width, **network}
        net, begun = new_network(LabelUNet, self.data("train"), seed, settings), time.process_time()
        folder = self.folder / "networks" / f"{choice}-{self.width}-{steps}-{seed}"
        training = Training(steps=steps, learning_rate=1e-3, batch_size=32, checkpoint_every=steps)
        train_backbone(net.backbone(), self.data("train"), folder=folder, training=training,
                       runtime=Runtime("cpu", "fp32", 1, seed),
                       objective=Objective(**{"snr_floor": 1.0, **objective}))  # fmt: skip
        return net.backbone(), time.process_time() - begun

    @torch.no_grad()
    def errors(self, backbone: Backbone) -> dict[str, float]:
        """Return sigma -> error of x0 times 1 / sigma^2 + 1, on validation rows."""
        data = self.data("val")
        x0, known = data.rows(np.arange(len(data.uids)))
        assert known.labels is not None
        n = noise_like([seed_of("error", i) for i in range(len(x0))], x0.shape[1:])
        condition, abar = backbone.condition(known.labels, known.about), backbone.noise.abar()
        found = {}
        for sigma in SIGMAS:
            t = int((abar - 1 / (1 + sigma**2)).abs().argmin())
            a = float(abar[t])  # the nearest level; the unit of the error is that of its own sigma
            estimate = backbone.denoiser(condition)(a**0.5 * x0 + (1 - a) ** 0.5 * n, t)
            found[f"error {sigma:g}"] = float((estimate - x0).pow(2).mean()) / (1 - a)
        return found

    @torch.no_grad()
    def fidelity(self, backbone: Backbone, seed: int) -> dict[str, float]:
        """Return KID with its error, and the deviation of brightness, of latents under the labels of held-out rows."""
        data, made = self.data("val", "test"), []
        for start in range(0, len(data.uids), 64):
            at = np.arange(start, min(start + 64, len(data.uids)))
            _, known = data.rows(at)
            assert known.labels is not None
            steps = scheduler("dpm++", 25, backbone.noise)
            noise = noise_like([seed_of(seed, "sample", int(i)) for i in at], self.latents[1].shape[1:])
            denoiser = backbone.denoiser(backbone.condition(known.labels, known.about))
            made.append(sample(denoiser, from_noise(noise, steps), steps))
        fake, real = torch.cat(made), self.latents[1][self.part("val", "test")]
        distance = kid(real.flatten(1).numpy(), fake.flatten(1).numpy())
        bright = [one.mean((2, 3)).std(0) for one in (fake, real)]
        return {"KID": distance.value, "KID error": distance.sd, "brightness": float((bright[0] / bright[1]).mean())}


def measured(bench: Bench, choices: list[str], steps: int, seeds: int) -> Iterator[dict[str, Any]]:
    """Yield what is not measured yet."""
    place = bench.folder / "results.jsonl"
    lines = place.read_text().splitlines() if place.exists() else []
    done = {(one["choice"], one["width"], one["steps"], one["seed"]) for one in map(json.loads, lines)}
    for seed in range(seeds):
        for choice in choices:
            if (choice, bench.width, steps, seed) not in done:
                backbone, seconds = bench.trained(choice, steps, seed)
                weights = sum(weight.numel() for weight in backbone.network.parameters())
                own = {"choice": choice, "width": bench.width, "steps": steps, "seed": seed, "weights": weights}
                yield {**own, "CPU s": seconds, **bench.errors(backbone), **bench.fidelity(backbone, seed)}


def write_table(folder: Path) -> None:
    """Write the means over seeds, with the spread between them."""
    found = pd.DataFrame([json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()])
    numbers = [f"error {sigma:g}" for sigma in SIGMAS] + ["KID", "brightness"]
    lines = [
        "| choice | width | steps | seeds | weights | CPU s | " + " | ".join(numbers) + " | KID error of one seed |"
    ]
    lines.append("|---|" + "---:|" * (len(numbers) + 6))
    for (choice, width, steps), part in found.groupby(["choice", "width", "steps"], sort=False):
        cells = [f"{part[name].mean():.4f} ± {part[name].std(ddof=0):.4f}" for name in numbers]
        head = (
            f"| {choice} | {width} | {steps} | {len(part)} | {part['weights'].iloc[0]} | {part['CPU s'].mean():.0f} | "
        )
        lines.append(head + " | ".join(cells) + f" | {part['KID error'].mean():.4f} |")
    table("denoisers", lines)


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--patients", type=int, default=400)
    parser.add_argument("--codec-steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--choices", default=",".join(CHOICES))
    parser.add_argument("--table", action="store_true", help="write the table of what is measured")
    given = parser.parse_args()
    if given.table:
        write_table(given.folder)
        return
    torch.set_num_threads(1)
    bench = Bench(given.folder, given.patients, given.codec_steps, given.width)
    for row in measured(bench, given.choices.split(","), given.steps, given.seeds):
        with (given.folder / "results.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
