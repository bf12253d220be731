"""The search for copies on sets of images that are copies: share of hits by construction, and false positives.

    MEDLT_DATA=... python benchmarks/privacy_copies.py nih14 phantom [--size 128] [--planted 100]
    python benchmarks/privacy_copies.py --time 1000 5000

Each construction takes the place of the synthetic images of a run: 100 images made from train images, or from
validation ones where its name says so. "Other patients" are as many test patients, who are no copies of any reference.
`--time` audits that many random images among that many patients, and writes how long each part takes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import torch
from common import table
from PIL import Image
from torch import Tensor
from torch.nn import functional

from medlt.data.phantom.write import write_phantom
from medlt.diffusion.labels import LabelUNet
from medlt.privacy.audit.copies import search_copies
from medlt.privacy.audit.embedding import fit_embedding, prepared
from medlt.privacy.audit.membership import MOST, loss_scores
from medlt.privacy.audit.plants import COMMON
from medlt.privacy.audit.reidentify import reidentify, verify
from medlt.privacy.audit.search import low_pass, measures
from medlt.privacy.audit.views import blurred
from medlt.rng import torch_generator
from medlt.store import Store
from medlt.training.runtime import Runtime

CONSTRUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "verbatim": lambda x: x,
    "contrast-inverted": lambda x: 1 - x,
    "shifted by 6 of 64 pixels": lambda x: x.roll((6 * x.shape[-1] // 64,) * 2, (2, 3)),
    "left half of one, right half of another": lambda x: COMMON["halves of two"](x, torch_generator(0)),
    "inverted, mirrored, turned, shifted": lambda x: 1 - COMMON["rotation up to 10 degrees"](
        COMMON["shift up to 15 %"](x.flip(-1), torch_generator(1)), torch_generator(2)
    ),
}  # fmt: skip


def nih14(size: int) -> tuple[Tensor, pd.DataFrame]:
    """Images and table of the cut of ChestX-ray14."""
    folder = Path(os.environ["MEDLT_DATA"]) / "nih14"
    rows = pd.read_csv(folder / "labels.csv")
    return _stacked([Image.open(folder / path).convert("L") for path in rows["path"]], size), rows


def phantom(size: int) -> tuple[Tensor, pd.DataFrame]:
    """Images and table of 700 synthetic patients."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_phantom(Path(folder), patients=700, size=128)
        rows, shown = pd.read_csv(path), []
        for name in rows["path"]:
            file = pydicom.dcmread(Path(folder) / name)
            pixels = file.pixel_array.astype(float)
            pixels = (pixels - pixels.min()) / max(float(np.ptp(pixels)), 1e-9)
            inverted = file.PhotometricInterpretation == "MONOCHROME1"
            shown.append(Image.fromarray(((1 - pixels if inverted else pixels) * 255).astype(np.uint8)))
    return _stacked(shown, size), rows


def _stacked(pictures: list[Image.Image], size: int) -> Tensor:
    """Pictures as float images [N,1,size,size] in [0,1]."""
    pixels = np.stack([np.asarray(one.resize((size, size), Image.Resampling.BOX)) for one in pictures])
    return torch.from_numpy(pixels)[:, None].float() / 255


def coarse(images: Tensor) -> Tensor:
    """The place of the trained embedding, which these constructions do not need."""
    return low_pass(images, 16)


def constructions(name: str, images: Tensor, rows: pd.DataFrame, planted: int) -> list[str]:
    """Lines of the table of one collection. Half of the test patients are searched, the others are the null."""
    split, patients = rows["split"].to_numpy(), rows["patient_id"].astype(str).to_numpy()
    rng = np.random.default_rng(0)
    tests = rng.permutation(np.unique(patients[split == "test"]))
    fresh = np.isin(patients, tests[: len(tests) // 2])
    train, held = np.flatnonzero(split == "train"), np.flatnonzero((split != "train") & ~fresh)
    _, first = np.unique(patients[fresh], return_index=True)
    val = rng.permutation(held[split[held] == "val"])[:planted]
    own = images[torch.from_numpy(rng.permutation(train)[:planted])]
    made = {kind: change(own) for kind, change in CONSTRUCTIONS.items()}
    made["verbatim, validation patients"] = images[torch.from_numpy(val)]
    made["inverted, validation patients"] = 1 - made["verbatim, validation patients"]
    made["other patients"] = images[torch.from_numpy(np.flatnonzero(fresh)[first])]
    result = search_copies(
        measures(coarse), torch.cat(list(made.values())), images[torch.from_numpy(train)],
        images[torch.from_numpy(held)], COMMON, uids=[f"{kind}#{i}" for kind, x in made.items() for i in range(len(x))],
        train_patients=list(patients[train]), held_out_patients=list(patients[held]), seed=0, planted=planted,
    )  # fmt: skip
    hits = result.images.groupby(result.images.index.str.split("#").str[0])["hit"].agg(["sum", "size"])
    lines = [f"| {name}: {kind} | {hits['sum'][kind]} of {hits['size'][kind]} |" for kind in made]
    lines += [
        f"| {name}, planted: {kind} | {row['detected']} of {row['planted']}, named {row['named']:.2f} |"
        for kind, row in result.plants.iterrows()
    ]
    return [*lines, f"| {name}, false positives at {result.rate:.1%}, by halves | {result.measured} |"]


def timed(images: int, patients: int) -> list[str]:
    """Seconds of the parts of an audit of random images, 128 px, with all plants, on this machine.

    A tenth of the patients have a second image, which re-identification needs. Membership is timed on a small part of
    the rows, with the default denoiser on latents of 16 x 16, in four views beside its control, and scaled up.
    """
    count = patients + patients // 10
    fields = blurred(torch.randn(images + count, 1, 64, 64, generator=torch_generator(0)), 1.5)
    fields[images + patients :] = functional.avg_pool2d(fields[images : images + patients // 10], 3, 1, 1)
    made = functional.interpolate((0.5 + 0.15 * fields / fields.std()).clamp(0, 1), scale_factor=2.0, mode="bilinear")
    pixels = (made * 255).round().byte()
    names = [str(i) for i in [*range(patients), *range(patients // 10)]]
    train, held = (np.flatnonzero((np.array(names, int) < 0.8 * patients) == inside) for inside in (True, False))
    sides = [pixels[images + torch.from_numpy(rows)] for rows in (train, held)]
    given: dict[str, Any] = {
        "uids": [str(i) for i in range(images)], "train_patients": [names[i] for i in train],
        "held_out_patients": [names[i] for i in held], "seed": 0,
    }  # fmt: skip
    spent, runtime = {}, Runtime("cpu", "fp32", torch.get_num_threads(), 0)
    with tempfile.TemporaryDirectory() as folder:
        store, small = Store(Path(folder)), prepared(pixels[images:], 64).mul(255).round().byte()
        start = time.perf_counter()
        embed = fit_embedding(small, names, runtime=runtime, store=store)
        spent["training of the embedding"] = time.perf_counter() - start
        start = time.perf_counter()
        search_copies(measures(embed), pixels[:images], *sides, COMMON, **given)
        spent["copies"] = time.perf_counter() - start
        start = time.perf_counter()
        reidentify(embed, pixels[:images], *sides, verify(small, names, runtime=runtime, store=store), **given)
        spent["re-identification, with two embeddings for its recall"] = time.perf_counter() - start
    rows = 2 * min(MOST, patients // 5) if MOST * 2 < patients else count
    backbone, part = LabelUNet(channels=4, findings=8).backbone(), torch.randn(64, 4, 16, 16)
    loss_scores(backbone, part[:8], seed=0)
    start = time.perf_counter()
    loss_scores(backbone, part, seed=0)
    spent[f"membership of {rows} images, scaled up"] = (time.perf_counter() - start) * 4 * 2 * rows / len(part)
    head = f"| {images} images, {patients} patients, {torch.get_num_threads()} threads | seconds |"
    return [head, "|---|---|", *(f"| {name} | {seconds:.0f} |" for name, seconds in spent.items())]


def main() -> None:
    """Write the table, or print a time."""
    read = argparse.ArgumentParser()
    read.add_argument("collections", nargs="*", help="nih14, phantom")
    read.add_argument("--size", type=int, default=128)
    read.add_argument("--planted", type=int, default=100)
    read.add_argument("--time", type=int, nargs=2)
    args = read.parse_args()
    if args.time:
        table("privacy_copies_time", timed(*args.time))
        return
    lines = ["| images | hits |", "|---|---|"]
    for name in args.collections:
        images, rows = {"nih14": nih14, "phantom": phantom}[name](args.size)
        lines += constructions(name, images, rows, args.planted)
    table("privacy_copies", lines)


if __name__ == "__main__":
    main()
