"""Iterated learning against one generation of equal compute, on codes whose truth is known.

    python benchmarks/iterated.py [--problem toy|phantom] [--seeds 5] [--rows 480] [--generations 5] [--side 16]
                                  [--groups 8] [--vocabulary 16] [--width 16] [--home FOLDER]

The toy is compositional. Each latent [4,8,8] has three factors of five values: the shape of a region, the direction of
the channels inside it and outside it, and noise. Of the 125 combinations 40 are in the train and validation rows, and
the other 85 in the test rows, so AP is measured on unseen combinations. The phantom is synthetic radiographs, as blocks
of 4 x 4 pixels that become 16 channels: its factors are the findings, its test rows other patients.

| arm | what is trained |
|---|---|
| iterated G | G generations of 8, 1 and 6 epochs of the three phases, without early stop; the healthiest is measured |
| one, E epochs | one generation with the E epochs of `iterated G` (same steps, same batch), without early stop |
| one, 6 / 18 epochs | one generation with the epochs of one interaction, and of three |

Columns: topographic similarity of the code with the true factors (Spearman correlation over pairs of test rows, share
of tokens that differ against number of factors that differ), AP of the code's classifier and of a linear probe, and
reconstruction L1, all on the test rows; tokens used and generations that collapsed. Values are mean ± standard
deviation over seeds, each with data of its own. Differences are paired by seed, with the interval of Student's t.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import table
from scipy.stats import spearmanr, t
from torch import Tensor
from torch.nn import functional as F

from medlt.config import SparseConfig
from medlt.rng import numpy_generator
from medlt.sparse import code_metrics
from medlt.sparse.iterated import Iterated, iterate
from medlt.store import Store
from medlt.training.runtime import Runtime

VALUES, SEEN, NOISE = 5, 40, 0.5
EPOCHS = 6  # of an interaction, as before the default had one generation
CODE = {"groups": 8, "vocabulary": 16, "width": 16}
SIZES = {"seeds": 5, "rows": 480, "generations": 5, "side": 16}
MEASURES = {"similarity": "topographic similarity", "ap": "test AP", "probe": "probe AP", "l1": "test L1",
            "tokens": "tokens", "max_p": "max p", "collapsed": "collapsed"}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Latents [N,C,h,w], labels [N,K], and the true factors [N,F] of some rows."""

    latents: Tensor
    labels: np.ndarray
    factors: np.ndarray


def toy(seed: int, rows: int) -> tuple[Part, Part, Part]:
    """Return train, validation and test rows; the test rows have other combinations of the same values."""
    rng = numpy_generator("compositional", seed)
    shapes = rng.random((VALUES, 8, 8)) < 0.5
    directions = rng.normal(size=(2, VALUES, 4))
    directions /= np.linalg.norm(directions, axis=2, keepdims=True) / 2
    combinations = rng.permutation(np.array(list(product(range(VALUES), repeat=3))))

    def part(allowed: np.ndarray, n: int) -> Part:
        factors = allowed[rng.integers(len(allowed), size=n)]
        shape, inside, outside = factors.T
        mask = shapes[shape][:, None]
        z = np.where(mask, directions[0, inside][:, :, None, None], directions[1, outside][:, :, None, None])
        z = z + NOISE * rng.normal(size=z.shape)
        labels = (factors[:, :, None] == np.arange(VALUES)).reshape(n, -1).astype(np.float32)
        return Part(torch.from_numpy(z).float(), labels, factors)

    seen, unseen = combinations[:SEEN], combinations[SEEN:]
    return part(seen, rows), part(seen, max(100, rows // 4)), part(unseen, 300)


def radiographs(home: Path, seed: int, rows: int, side: int) -> tuple[Part, Part, Part]:
    """Return train, validation and test rows of synthetic radiographs, 4 * side pixels wide."""
    from medlt.data import phantom
    from medlt.data.layouts import from_csv
    from medlt.data.pixels import PixelCache

    file = phantom.write_phantom(home / f"phantom-{seed}-{rows}", patients=rows, seed=seed, size=4 * side, imbalance=4)
    cohort = from_csv(table=file, findings=phantom.FINDINGS)

    def part(split: str) -> Part:
        chosen = cohort.where(cohort.rows["split"] == split)
        pixels = PixelCache(Store(home / "store"), 1).images(chosen, 4 * side)
        labels = chosen.labels()
        return Part(F.pixel_unshuffle(pixels.float() / 127.5 - 1, 4), labels, labels)

    parts = [part(split) for split in ("train", "val", "test")]
    mean, sd = (getattr(parts[0].latents, of)((0, 2, 3), keepdim=True) for of in ("mean", "std"))
    train, val, test = (Part((one.latents - mean) / sd, one.labels, one.factors) for one in parts)
    return train, val, test


def similarity(tokens: np.ndarray, factors: np.ndarray) -> float:
    """Return the Spearman correlation over random pairs of tokens that differ with factors that differ."""
    rng = numpy_generator("pairs")
    one, two = rng.integers(len(tokens), size=(2, 4000))
    differ = (tokens[one] != tokens[two]).reshape(4000, -1).mean(1)
    return float(spearmanr(differ, (factors[one] != factors[two]).sum(1)).statistic)


def measured(made: Iterated, parts: tuple[Part, Part, Part]) -> dict[str, float]:
    """Return the columns of one arm."""
    train, _, test = parts
    values, scores, codes = code_metrics.read_code(made.coder, test.latents)
    _, _, known = code_metrics.read_code(made.coder, train.latents)
    return {
        "similarity": similarity(code_metrics.tokens(made.coder, test.latents), test.factors),
        "ap": code_metrics.macro_ap(test.labels, scores),
        "probe": code_metrics.probe_ap(known, train.labels, codes, test.labels),
        "l1": values["reconstruction_l1"],
        "tokens": values["tokens_used"],
        "max_p": values["mean_max_probability"],
        "collapsed": float(made.metrics["collapsed"].sum()),
    }


def arms(generations: int, **code: int) -> dict[str, SparseConfig]:
    """Return the settings of each arm by name; arms of equal compute follow each other."""
    base = SparseConfig(interaction_epochs=EPOCHS, patience=EPOCHS, **code)
    found = {}
    for g in range(3, generations + 1, 2):
        several = base.model_copy(update={"generations": g})
        found |= {f"iterated {g}": several, f"one, {several.epochs} epochs": several.in_one_generation()}
    for times in (1, 3):
        epochs = times * EPOCHS
        update = {"generations": 1, "interaction_epochs": epochs, "patience": epochs}
        found[f"one, {epochs} epochs"] = base.model_copy(update=update)
    return found


def runs(args: argparse.Namespace, home: Path) -> pd.DataFrame:
    """Train and measure every arm with every seed. A second call in the same folder trains nothing again."""
    rows = []
    for seed in range(args.seeds):
        parts = toy(seed, args.rows) if args.problem == "toy" else radiographs(home, seed, args.rows, args.side)
        for name, config in arms(args.generations, **{name: getattr(args, name) for name in CODE}).items():
            start = time.process_time()
            made = iterate(
                parts[0].latents, parts[0].labels, parts[1].latents, parts[1].labels,
                contents=f"{args.problem} {seed} {args.rows} {args.side}", val_contents="val",
                store=Store(home / "store"), runtime=Runtime("cpu", "fp32", None, seed), **config.model_dump(),
            )  # fmt: skip
            row = {"arm": name, "seed": seed, **measured(made, parts)}
            said = " ".join(f"{k} {v:.3f}" if isinstance(v, float) else str(v) for k, v in row.items())
            print(f"{said}, {time.process_time() - start:.1f} CPU seconds", flush=True)  # few if loaded
            rows.append(row)
    return pd.DataFrame(rows)


def differences(found: pd.DataFrame, generations: int) -> list[str]:
    """Return a line for each number of generations, iterated minus its control, and one for half of the steps."""
    lines = []
    names = list(arms(generations))
    equal = list(zip(names[:-2:2], names[1:-2:2], strict=True))
    for iterated, one in [*equal, (names[0], names[-1])]:
        both = [found[found["arm"] == arm].set_index("seed") for arm in (iterated, one)]
        cells = []
        for name in ("similarity", "ap", "probe", "l1"):
            values = (both[0][name] - both[1][name]).to_numpy()
            half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
            cells.append(f"{values.mean():+.3f} [{values.mean() - half:+.3f}, {values.mean() + half:+.3f}]")
        lines.append(f"| {iterated} − {one} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Measure, and write benchmarks/results/iterated_PROBLEM.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=("toy", "phantom"), default="toy")
    for name, value in (SIZES | CODE).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--home", type=Path, help="folder of trained codes; omitted: a temporary one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = runs(args, args.home or Path(folder))
    grouped = found.drop(columns="seed").groupby("arm", sort=False)
    mean, sd = grouped.mean(), grouped.std(ddof=1)
    lines = ["| arm | " + " | ".join(MEASURES.values()) + " |", "|---" * (1 + len(MEASURES)) + "|"]
    for arm in mean.index:
        cells = [f"{mean.loc[arm, name]:.3g} ± {sd.loc[arm, name]:.2g}" for name in MEASURES]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    lines += ["", "Paired differences, with 95 % intervals:", ""]
    lines += ["| difference | topographic similarity | test AP | probe AP | test L1 |", "|---" * 5 + "|"]
    lines += differences(found, args.generations)
    table(f"iterated_{args.problem}", [f"{args.seeds} seeds.", "", *lines])


if __name__ == "__main__":
    main()
