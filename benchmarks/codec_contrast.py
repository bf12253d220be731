"""What codecs keep of lesions: size x codec x finding on the phantom, with the spread over seeds.

    python benchmarks/codec_contrast.py FOLDER --steps 300 --seeds 0,1,2 --choices plain,edge,given+edge --levels 2,3
    python benchmarks/codec_contrast.py FOLDER --size 128 --choices "" --given taesd_diffusers
    python benchmarks/codec_contrast.py FOLDER --table

The first two forms train and measure what FOLDER/results.jsonl does not hold yet; the last one writes the tables. The
lesions are those of the cohort's validation and test rows. Each image has a twin without the finding, from the same
random streams, so the contrast that a codec keeps is known without a mask. Verifiers are trained on real train images.
The network of the perceptual loss is of another architecture, and is trained on train and validation images alone.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import Pixels, table
from torch import Tensor
from torch.nn import functional

from medlt.checks.codec import by_twin
from medlt.classify.cam import frozen, layer_activation_map, peak_one
from medlt.classify.feature_maps import ClassifierMaps
from medlt.classify.sets import TrainingSet
from medlt.classify.train import Classifier, fit_classifier
from medlt.data import phantom
from medlt.data.squares import square
from medlt.diffusion.codec import load_codec
from medlt.diffusion.emphasis import Emphasis
from medlt.diffusion.train_codec import train_codec
from medlt.files import digest
from medlt.metrics.bootstrap import difference
from medlt.rng import numpy_generator
from medlt.store import Store
from medlt.training.runtime import Runtime
from medlt.types import Codec

FINDINGS = phantom.FINDINGS
MOST = 24
"""Lesions of a finding that are measured, at most, one per patient."""
SEED = 17
AUROC = {"control_value": "real", "value": "decoded", "low": "auroc_low", "high": "auroc_high"}
CHOICES: dict[str, dict[str, float]] = {
    "plain": {},
    "edge": {"edge": 1.0},
    "features": {"feature_weight": 0.1},
    "given": {"lesion_weight": 4.0},
    "saliency": {"lesion_weight": 4.0},
}


def eight_bit(image: np.ndarray, size: int) -> np.ndarray:
    """Return the image as a square of 8 bits."""
    return np.round(square(image, size) * 255).astype(np.uint8)


@dataclass(frozen=True)
class Cohort:
    """The images of a size, with the twins of lesions; drawn at twice the size, at least 128 px, and kept on disk."""

    folder: Path
    patients: int
    size: int

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The rows of the cohort."""
        return phantom.cohort(self.patients, SEED, 20.0, shares=(0.5, 0.1, 0.4))

    @cached_property
    def drawn(self) -> dict[str, np.ndarray]:
        """images [N,S,S]; lesion masks of train rows [n,F,16,16]; twins of lesions, with row and finding."""
        place = self.folder / f"images-{self.patients}-{self.size}.npz"
        if not place.exists():
            np.savez_compressed(place, **self._draw())
        return dict(np.load(place))

    def _draw(self) -> dict[str, np.ndarray]:
        full, records = max(128, self.size), self.rows.to_dict("records")
        images, masks = [], []
        for row in records:
            film = phantom.film(row, SEED, full)
            images.append(eight_bit(film.image, self.size))
            if row["split"] == "train":
                whole = np.any([*film.masks.values(), np.zeros((full, full), bool)], axis=0)
                masks.append(square(whole.astype(np.float32), 32))
        at = [(i, k) for k, name in enumerate(FINDINGS) for i in self._lesions(name)]
        twins = [eight_bit(phantom.film({**records[i], FINDINGS[k]: 0.0}, SEED, full).image, self.size) for i, k in at]
        return {"images": np.stack(images), "masks": np.round(np.stack(masks) * 255).astype(np.uint8),
                "twins": np.stack(twins), "at": np.array(at)}  # fmt: skip

    def _lesions(self, finding: str) -> list[int]:
        rows = self.rows.reset_index()
        held = rows[(rows["split"] != "train") & (rows[finding] == 1)].drop_duplicates("patient_id")
        return [int(i) for i in held.index[:MOST]]

    def part(self, split: str) -> TrainingSet:
        """Return the images of a split with their labels."""
        at = np.flatnonzero(self.rows["split"] == split)
        labels = self.rows[list(FINDINGS)].to_numpy(np.float32)[at]
        images = torch.from_numpy(self.drawn["images"][at])[:, None]
        return TrainingSet(images, labels, np.ones(len(at), np.float32), tuple(self.rows["uid"].iloc[at]))


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    cohort: Cohort
    store: Store
    classifier_steps: int
    count: int

    def runtime(self, seed: int) -> Runtime:
        """Return the runtime of a seed."""
        return Runtime("cpu", "fp32", 1, seed)

    @cached_property
    def verifiers(self) -> list[Classifier]:
        """The verifiers, trained on real train images."""
        return [self._classifier("small", 1000 + k) for k in range(self.count)]

    @cached_property
    def frozen(self) -> Classifier:
        """The network of the perceptual loss and of the saliency."""
        return self._classifier("dense", 2000, 200)

    def _classifier(self, network: str, seed: int, most: int = 10**6) -> Classifier:
        train, val = self.cohort.part("train"), self.cohort.part("val")
        return fit_classifier(
            train, val, runtime=self.runtime(seed), store=self.store, network=network,
            steps=min(most, self.classifier_steps), patience=8, loss="balanced", learning_rate=1e-3,
        )  # fmt: skip

    def saliency(self) -> Tensor:
        """Return the largest activation map over the findings of each train image, uint8 [n,1,h,w]."""
        train, maps = self.cohort.part("train"), torch.zeros(len(self.cohort.part("train")), 32, 32)
        net, images = frozen(self.frozen), train.images.float() / 255
        for k in range(len(FINDINGS)):
            for at in torch.split(torch.from_numpy(np.flatnonzero(train.labels[:, k] == 1)), 64):
                seen = layer_activation_map(net, images[at], torch.full((len(at),), k))
                maps[at] = maps[at].maximum(
                    peak_one(functional.interpolate(seen[:, None], (32, 32), mode="area")[:, 0])
                )
        return (maps * 255).round().to(torch.uint8)[:, None]

    def emphasis(self, choice: str) -> Emphasis:
        """Return the emphasis of a choice, such as edge+features or features*3."""
        own: dict[str, Any] = {}
        for part in choice.split("+"):
            name, _, times = part.partition("*")
            own |= {key: value * float(times or 1) for key, value in CHOICES[name].items()}
            if name == "features":
                own["features"] = ClassifierMaps(self.frozen)
            if name in ("given", "saliency"):
                masks = torch.from_numpy(self.cohort.drawn["masks"])[:, None]
                own["lesions"] = masks if name == "given" else self.saliency()
        return Emphasis(**own)

    def trained(self, choice: str, levels: int, steps: int, seed: int, width: int) -> Codec:
        """Return a codec that is trained on the train images."""
        train = self.cohort.part("train")
        contents = digest("codec contrast", self.cohort.patients, self.cohort.size)
        return train_codec(
            Pixels(train.images[:, 0].numpy()), contents=contents, runtime=self.runtime(seed), store=self.store,
            levels=levels, width=width, steps=steps, learning_rate=2e-3, emphasis=self.emphasis(choice),
        )  # fmt: skip

    def measure(self, codec: Codec) -> list[dict[str, Any]]:
        """Return one row per finding: contrast kept, AUROC of real and decoded test images, PSNR of lesions' images."""
        drawn, patients, rows = self.cohort.drawn, list(self.cohort.rows["patient_id"]), []
        at, finding = drawn["at"].T
        real, twins = (torch.from_numpy(one)[:, None].float() / 255 for one in (drawn["images"][at], drawn["twins"]))
        back, back_twins = decoded(codec, real), decoded(codec, twins)
        psnr, change = float(-10 * torch.log10((back - real).pow(2).mean())), self._change(codec)
        for k, name in enumerate(FINDINGS):
            here = np.flatnonzero(finding == k)
            parts = (one[torch.from_numpy(here)] for one in (real, twins, back, back_twins))
            seen = by_twin(*parts, [patients[i] for i in at[here]])
            kept, low, high = seen.kept(500, numpy_generator("codec contrast", name))
            row = {"finding": name, "lesions": len(here), "kept": kept, "low": low, "high": high, "psnr": psnr}
            rows.append(row | change.get(name, dict.fromkeys(AUROC.values(), None)))
        return rows

    def _change(self, codec: Codec) -> dict[str, dict[str, float]]:
        """Return finding -> AUROC of real and of decoded test images; {} without verifiers."""
        if not self.verifiers:
            return {}
        test, patients = self.cohort.part("test"), list(self.cohort.rows["patient_id"])
        real = test.images.float() / 255
        both = (decoded(codec, real), real)
        scores = [torch.stack([one.predict(x) for one in self.verifiers]).mean(0)[None].numpy() for x in both]
        owners = [patients[i] for i in np.flatnonzero(self.cohort.rows["split"] == "test")]
        change = difference(
            test.labels, *scores, owners, FINDINGS, n_bootstrap=500, rng=numpy_generator("codec contrast")
        )
        change = change[change["metric"] == "AUROC"].set_index("name")
        return {name: {new: change.loc[name, old] for old, new in AUROC.items()} for name in FINDINGS}


@torch.no_grad()
def decoded(codec: Codec, images: Tensor) -> Tensor:
    """Return images [B,1,S,S] in [0,1] as the codec gives them back, in 8 bits."""
    back = [codec.decode(codec.latents(codec.moments(part))) for part in torch.split(images, 16)]
    return torch.cat(back).mul(255).round() / 255


def tables(rows: pd.DataFrame) -> list[str]:
    """Return Markdown: the contrast kept of each finding, and the change of AUROC, by codec and loss."""
    keys = ["size", "codec", "width", "steps", "choice"]
    rows = rows.assign(change=rows["decoded"] - rows["real"]).fillna({"width": 0, "steps": 0, "choice": "given"})
    rows["codec"] = rows["codec"].str.replace("_diffusers", "")
    lines = []
    for value, title in (
        ("kept", "Contrast of lesions that is kept"),
        ("change", "AUROC on decoded minus on real images"),
    ):
        lines += [f"## {title}", "", "| px | codec | width | steps | loss | seeds | mean | "
                  + " | ".join(FINDINGS) + " | PSNR |", "|" + "---|" * 5 + "---:|" * (len(FINDINGS) + 3)]  # fmt: skip
        for key, part in rows.dropna(subset=[value]).groupby(keys, sort=True):
            seeds = part.pivot_table(index="seed", columns="finding", values=value)[list(FINDINGS)]
            cells = [_spread(seeds.mean(1)), *(_spread(seeds[name]) for name in FINDINGS)]
            named = [str(one) if one else "" for one in (key[0], key[1], int(key[2]), int(key[3]), key[4])]
            lines.append(f"| {' | '.join([*named, str(len(seeds)), *cells, f'{part.psnr.mean():.1f}'])} |")
        lines.append("")
    return lines


def _spread(values: pd.Series) -> str:
    """Return the mean over seeds, with the standard deviation if there are several."""
    return f"{values.mean():.2f}" + (f" ± {values.std():.2f}" if len(values) > 1 else "")


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patients", type=int, default=800)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--levels", default="3")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--choices", default="plain")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--classifier-steps", type=int, default=600)
    parser.add_argument("--verifiers", type=int, default=1)
    parser.add_argument("--given", type=Path, nargs="*", default=[], help="folders of codecs, such as TAESD")
    parser.add_argument("--table", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Train and measure what is missing, or write the tables."""
    given = options()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    file = given.folder / "results.jsonl"
    if given.table:
        table("codec_contrast", tables(pd.read_json(file, lines=True)))
        return
    cohort = Cohort(given.folder, given.patients, given.size)
    bench = Bench(cohort, Store(given.folder / "store"), given.classifier_steps, given.verifiers)
    done = {json.loads(line)["name"] for line in file.read_text().splitlines()} if file.exists() else set()

    def add(name: str, make: Any, **about: Any) -> None:
        if name in done:
            return
        began = time.process_time()
        codec = make()
        spent = time.process_time() - began
        with file.open("a") as out:
            for row in bench.measure(codec):
                out.write(json.dumps({"name": name, "size": given.size, "cpu_s": spent, **about, **row}) + "\n")
        done.add(name)

    for folder in given.given:
        add(f"{given.size} {folder.name}", partial(load_codec, folder, "cpu"), codec=folder.name, seed=0)
    every = product(map(int, given.seeds.split(",")), map(int, given.levels.split(",")), given.choices.split(","))
    for seed, levels, choice in every if given.choices else ():
        name = f"{given.size} /{2 ** (levels - 1)} w{given.width} {choice} {given.steps} seed {seed}"
        about = {"codec": f"/{2 ** (levels - 1)}", "choice": choice, "steps": given.steps, "seed": seed,
                 "width": given.width}  # fmt: skip
        add(name, partial(bench.trained, choice, levels, given.steps, seed, given.width), **about)


if __name__ == "__main__":
    main()
