"""What 1,000 images cost in each stage, on one core and on two.

    python benchmarks/capacity.py [--images 32] [--cores 2]
    python benchmarks/capacity.py --short

Stages run alone, with networks of the default sizes at 128 px, untrained: their weights do not change their cost.
`convert` reads uncompressed DICOM files of 2048 x 2500 px and writes PNG files of 512 px. Two cores are two threads of
torch. `convert` and `write` do not use them: several processes do their work (benchmarks/convert_scale.py). Seconds are
CPU seconds, and of two cores also those of the wall clock; other programs on the machine lengthen both, since a thread
that waits for another one spins.

--short measures every stage with few images at 32 px, and then the growth of the stages that compare or list all images
(`growth.py --short`); it ends with 1 if one of their exponents exceeds its bound, which is a ratio within one run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import convert_files
import growth
import growth_stages
import pandas as pd
import torch
from common import row_loss, table
from torch import Tensor

from medlt.checks.near_copy import near_copy
from medlt.checks.sanity import sanity
from medlt.classify.classifier import Classifier
from medlt.classify.networks import network
from medlt.data.convert.one import convert_one
from medlt.data.convert.settings import ConversionSettings
from medlt.diffusion.autoencoder import autoencoder
from medlt.diffusion.cache import Standardiser
from medlt.diffusion.codec import AutoencoderCodec, encode
from medlt.diffusion.decode import Decoder
from medlt.diffusion.labels import LabelUNet
from medlt.diffusion.schedulers import factory
from medlt.privacy.audit.search import low_pass
from medlt.rng import torch_generator
from medlt.sparse.embedding import SimplicialCoder
from medlt.synthesis.composite import Difference, StartDecoder
from medlt.synthesis.edit import ImageEdit
from medlt.synthesis.from_noise import FromNoise
from medlt.synthesis.fusion import LatentFusion
from medlt.types import Batch, CheckResult
from medlt.writer import DatasetWriter

SIDE, FEW_SIDE = 128, 32
IMAGES, FEW = 32, 4
PROCESSES = ("convert", "write")
"""Stages that do not use the threads of torch."""
Work = Callable[[int], object]


@dataclass
class Bench:
    """The parts of all stages, at `side` px, for `count` images; cores: how many are used."""

    side: int
    count: int
    folder: Path

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.train = growth_stages.train_table(60, 12)
        self.codec = AutoencoderCodec(autoencoder(4, 32, 3), "cpu")
        self.backbone = LabelUNet(4, 3, attributes=("view", "sex", "age")).backbone()
        self.decoder = Decoder(self.codec)
        self.classifier = Classifier(network("small", 3), self.side, {})
        self.images = growth_stages.smooth(self.count, "capacity").float() / 255
        self.images = torch.nn.functional.interpolate(self.images, (self.side, self.side), mode="bilinear")
        self.uids = pd.Index([f"s{i:04d}" for i in range(self.count)], name="uid")
        every = torch.randn(60, 4, self.side // 4, self.side // 4, generator=torch_generator("capacity"))
        self.latents = lambda uids: every[[int(uid[1:]) for uid in uids]]

    def pixels(self, uids: Sequence[str]) -> Tensor:
        """Real images by uid."""
        return self.images[[int(uid[1:]) % self.count for uid in uids]]

    def stages(self) -> dict[str, Work]:
        """Return every stage as a function of the number of cores."""
        return {
            "convert": self.convert,
            "encode": lambda cores: encode(self.codec, self.images),
            "train: denoiser, a pass over the images": self.train_step,
            "sample: noise, 25 steps": self.sampler(self.from_noise()),
            "sample: edit, 10 to 20 steps": self.sampler(self.edit()),
            "sample: fusion, 5 steps": self.sampler(self.fusion()),
            "decode": self.decode,
            "check: sanity": self.sanity,
            "check: label consistency": lambda cores: self.classifier.predict(self.images),
            "check: near copies of 3,000 images": self.near_copies,
            "write": self.write,
            "evaluate: features": lambda cores: self.classifier.features(self.images),
        }

    def convert(self, cores: int) -> None:
        convert_some(self.folder, sorted((self.folder / "dicom").glob("*.dcm")))

    def train_step(self, cores: int) -> None:
        """Steps of the denoiser, batches of 32 images, with AdamW."""
        z = torch.randn(self.count, 4, self.side // 4, self.side // 4, generator=torch_generator("train"))
        net, loss = self.backbone.network.train().requires_grad_(True), row_loss(self.backbone, z)
        optimizer = torch.optim.AdamW(net.parameters())
        for start in range(0, self.count, 32):
            rows = torch.arange(start, min(start + 32, self.count)).numpy()
            optimizer.zero_grad()
            loss(net, rows, torch_generator("steps", start)).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        net.eval().requires_grad_(False)

    def parts(self) -> dict[str, Any]:
        """The arguments of every method. A decoder that costs nothing stands for `decode`, a stage of its own."""
        small = lambda z: torch.nn.functional.interpolate(z.mean(1, keepdim=True), scale_factor=4.0).sigmoid()  # noqa: E731
        return {
            "train": self.train, "backbone": self.backbone, "decode": small, "batch_size": 32,
            "standardiser": Standardiser(torch.zeros(4), torch.ones(4)),
        }  # fmt: skip

    def difference(self) -> Difference:
        return Difference(self.pixels, StartDecoder(self.parts()["decode"]), feather=0.06)

    def from_noise(self) -> FromNoise:
        shape = (4, self.side // 4, self.side // 4)
        return FromNoise(**self.parts(), scheduler=factory("ddim", 25), shape=shape, num_candidates=1)

    def edit(self) -> ImageEdit:
        own = {"latents": self.latents, "strength": (0.2, 0.3, 0.4), "difference": self.difference()}
        return ImageEdit(**self.parts(), **own, scheduler=factory("ddim", 50), num_candidates=1)

    def fusion(self) -> LatentFusion:
        coder = SimplicialCoder(4, 3, groups=16, vocabulary=16, width=32, seed=0)
        own = {"coder": coder, "latents": self.latents, "difference": self.difference(), "strength": 5 / 75}
        return LatentFusion(**self.parts(), **own, scheduler=factory("ddim", 75))

    def sampler(self, method: Any) -> Work:
        """Return the sampling of `count` planned rows."""
        rows = method.plan({"Rare": self.count}, 0)
        return lambda cores: list(method.run(rows))

    def decode(self, cores: int) -> None:
        self.decoder(torch.randn(self.count, 4, self.side // 4, self.side // 4, generator=torch_generator("decode")))

    def batches(self) -> list[Batch]:
        """The images in shards of 32."""
        rows = pd.DataFrame({"seed": range(self.count)}, index=self.uids)
        rows["parents"] = [[f"u{i:07d}"] for i in range(self.count)]
        labels = pd.DataFrame({"Rare": 1.0}, index=self.uids)
        parts = [slice(a, b) for a, b in pairwise([*range(0, self.count, 32), self.count])]
        return [Batch(rows.iloc[part], self.images[part], labels.iloc[part]) for part in parts]

    def sanity(self, cores: int) -> None:
        for batch in self.batches():
            for check in sanity(self.pixels):
                check(batch)

    def near_copies(self, cores: int) -> None:
        for batch in self.batches():
            self.near_copy(batch)

    def write(self, cores: int) -> None:
        write_some(self.folder, self.batches())

    def warm(self, files: int) -> None:
        """Make what the stages read."""
        convert_files.build(self.folder / "dicom", "uncompressed", files)
        self.near_copy = near_copy(
            [low_pass], growth_stages.smooth(1000, "held out"), growth_stages.smooth(3000, "train")
        )


def convert_some(folder: Path, files: Sequence[Path]) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        (Path(place) / "images").mkdir()
        for file in files:
            if reason := convert_one(file, Path(place), ConversionSettings(size=512)).reason:
                raise ValueError(reason)


def write_some(folder: Path, batches: Sequence[Batch]) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        writer = DatasetWriter(Path(place), "models", "run")
        for batch in batches:
            results = [CheckResult(name, str(uid), 0.1, 1.0, True) for uid in batch.rows.index for name in "abcdefgh"]
            writer.write(batch.rows, batch, results, list(batch.rows.index))
        writer.publish(writer.kept().index)


def measured(bench: Bench, files: int, most: int) -> list[str]:
    """The table of all stages: seconds of 1,000 images, on up to `most` cores."""
    head = ["1 core, CPU s", "2 cores, CPU s", "2 cores, wall s"][: 2 * most - 1]
    lines = [f"| stage | {' | '.join(head)} |", "|---|" + "---:|" * len(head)]
    for name, work in bench.stages().items():
        count, spent = files if name == "convert" else bench.count, []
        if not name.startswith("sample"):
            work(1)  # imports, kernels, layouts of the decoder
        for cores in range(1, 1 + (1 if name in PROCESSES else most)):
            torch.set_num_threads(cores)
            began, cpu = time.perf_counter(), time.process_time()
            work(cores)
            spent += [now * 1000 / count for now in (time.process_time() - cpu, time.perf_counter() - began)]
        torch.set_num_threads(1)
        shown = [f"{one:.2f}" for one in [spent[0], *spent[2:]]]
        lines.append(f"| {name} | {' | '.join(shown + [''] * (len(head) - len(shown)))} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--cores", type=int, choices=[1, 2], default=2)
    parser.add_argument("--short", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    side, count, files = (FEW_SIDE, FEW, 2) if chosen.short else (SIDE, chosen.images, 20)
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(side, count, Path(place))
        bench.warm(files)
        lines = measured(bench, files, 1 if chosen.short else chosen.cores)
    if chosen.short:
        growth.require_bounded()
    else:
        table("capacity", [f"Seconds of 1,000 images of {side} px; `convert`: of 1,000 files.", "", *lines])


if __name__ == "__main__":
    main()
