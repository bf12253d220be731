"""The cost of privacy: the same denoiser at several epsilon, from scratch and from a public start.

    MEDLT_DATA=... python benchmarks/privacy_utility.py runs/privacy_utility [EPSILON ...]

Every row is `medlt augment nih14/private` with another epsilon and start. "ordinary" is the same run with ordinary
training: no clipping, no noise, equal steps. Classifiers that had no part in a run measure its images: KID to real
test images (in the features of a verifier); the share of images whose probability reaches the median of held-out real
positives; and macro AP of the filled findings on the test split when the images are added to the real ones, against
as many duplicated real images.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from common import table

from medlt import config as configs
from medlt.checks.consistency import thresholds
from medlt.classify.sets import TrainingSet
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.evaluation.arms import REAL, Arm, ArmScores, count_matched_control, match_real_rows
from medlt.evaluation.engine import train_arms
from medlt.evaluation.verdict import compare_arms
from medlt.files import write_table
from medlt.metrics.fidelity import kid
from medlt.privacy import claim
from medlt.recipes import augment
from medlt.recipes._cohort import open_cohort
from medlt.recipes._compare import experiment_rows
from medlt.recipes._models import train_verifiers
from medlt.recipes._setup import opened
from medlt.rng import numpy_generator
from medlt.store import Store
from medlt.training.runtime import Runtime, silent

CONFIG = Path("nih14/private")
STARTS = {"nothing": "null", "synthetic radiographs": "runs/phantom_public/denoiser"}
CONTROL = "duplicated"
SIZE, SEEDS, WEIGHT = 64, (0, 1, 2), 0.3
SETTINGS: dict[str, Any] = {"steps": 300, "batch_size": 32, "synthetic_fraction": 0.2}
NEVER = "ordinary"


def home(out: Path, epsilon: str, start: str) -> Path:
    """Where the run of one row lies; the config's own is its own run."""
    own = configs.load_config(CONFIG)
    mine = (
        own.privacy is not None
        and epsilon == f"{own.privacy.epsilon:g}"
        and str(own.denoiser.init_from) == STARTS[start]
    )
    return own.output_dir if mine else out / f"{epsilon}_{start.split()[0]}"


def config_of(out: Path, epsilon: str, start: str) -> configs.RunConfig:
    """The config of one row."""
    overrides = [f"output_dir={home(out, epsilon, start)}", f"denoiser.init_from={STARTS[start]}", "threads=1"]
    return configs.load_config(CONFIG, overrides if epsilon == NEVER else [*overrides, f"privacy.epsilon={epsilon}"])


def made(out: Path, epsilon: str, start: str) -> Path:
    """Return the run of one row, which is made if it does not exist."""
    config = config_of(out, epsilon, start)
    if (config.output_dir / "manifest.parquet").is_file():
        return config.output_dir
    with patch.object(augment, "private_fit", lambda *_: None) if epsilon == NEVER else nullcontext():
        return augment.main(config)


def synthetic(run: Path) -> Manifest:
    """The kept images of a run."""
    whole = Manifest.read(run / "manifest.parquet")
    return whole.where(whole.rows["synthetic"].astype(bool))


def main(out: Path, epsilons: list[str]) -> None:
    """Make all runs, verify and compare their images, and write the table."""
    runs = {(epsilon, start): made(out, epsilon, start) for start in STARTS for epsilon in [*epsilons, NEVER]}
    base = configs.load_config(CONFIG, [f"output_dir={out / 'verifiers'}", "privacy=null", "threads=1"])
    with opened(base, silent) as run:
        real = open_cohort(run)
        cross_fit = train_verifiers(run, real, None)
    limits = thresholds(cross_fit.held_out, real.train.rows[list(real.findings)])
    findings = tuple(synthetic(next(iter(runs.values()))).rows["finding"].unique())
    features = cross_fit.verifiers[0].features  # type: ignore[attr-defined]
    held = real.images(real.test, base.classifier.size)
    seen = features(held).numpy()
    rows = {
        key: _measured(synthetic(place), cross_fit.verifiers, limits, real, features, seen)
        for key, place in runs.items()
    }
    order, half = numpy_generator("halves of the test images").permutation(len(seen)), len(seen) // 2
    floor = kid(seen[order[:half]], seen[order[half:]])
    scores = _compared(runs, real, findings, out)
    lines = [
        "| epsilon | start | claim | KID to test | label agreement | tail AP | against duplicated |",
        "|---|---|---|---|---|---|---|",
    ]
    for (epsilon, start), measured in rows.items():
        stated = claim(runs[epsilon, start])
        word = (
            "none" if stated.epsilon is None else f"({stated.epsilon:.2f}, {stated.delta:g}) by {stated.privacy_unit}"
        )
        lines.append(f"| {epsilon} | {start} | {word} | {measured} | {scores[f'{epsilon}, {start}']} |")
    lines += [
        f"| - | real test images, half against half | - | {floor.value:.3f} ± {floor.sd:.3f} | 0.50 by its rule | | |",
        f"| - | real alone | - | | | {scores[REAL]} |",
        f"| - | duplicated real | - | | | {scores[CONTROL]} |",
        "",
        f"Findings: {', '.join(findings)}. {len(SEEDS)} seeds; intervals by patient bootstrap with the runs' variance.",
    ]
    table("privacy_utility", lines)


def _measured(made: Manifest, verifiers: Any, limits: pd.Series, real: Any, features: Any, seen: np.ndarray) -> str:
    """KID and label agreement."""
    pixels = images(made, 96)
    distance = kid(seen, features(pixels).numpy())
    scores = np.mean([verifier.predict(pixels).numpy() for verifier in verifiers], axis=0)
    column = [list(made.findings).index(name) for name in made.rows["finding"]]
    own = scores[np.arange(len(column)), column]
    right = int((own >= limits.loc[list(made.rows["finding"])].to_numpy()).sum())
    return f"{distance.value:.3f} ± {distance.sd:.3f} | {right / len(own):.2f} ({right} of {len(own)})"


def _compared(runs: dict[Any, Path], real: Any, findings: tuple[str, ...], out: Path) -> dict[str, str]:
    """Tail AP of every arm, and its difference to duplicated real images."""
    rows = experiment_rows(real, SIZE)
    sets = {f"{epsilon}, {start}": synthetic(place) for (epsilon, start), place in runs.items()}
    first = next(iter(sets.values())).rows
    copies = count_matched_control(
        first.assign(label_source=match_real_rows(first, real.train.rows)), rows.train, WEIGHT
    )
    arms = [Arm(REAL, "real", SETTINGS), Arm(CONTROL, "control", SETTINGS, copies, REAL)]
    arms += [Arm(name, "synthetic", SETTINGS, _set(one), CONTROL) for name, one in sets.items()]
    trained = train_arms(rows, arms, SEEDS, runtime=Runtime("cpu", "fp32", 1, 0), store=Store(out / "arms"), workers=2)
    known = ArmScores(trained.test, rows.test.labels, rows.patients, rows.findings, trained.val, rows.val.labels)
    pairs = [(name, CONTROL) for name in [REAL, *sets]]
    differences = compare_arms(known, pairs, {"tail": findings}, n_bootstrap=2000, seed=0)
    write_table(out / "comparisons.parquet", differences)
    chosen = differences.query("finding == 'tail' and metric == 'AP'").set_index("arm")
    cells = {
        name: f"{row['value']:.3f} | {row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        for name, row in chosen.iterrows()
    }
    return {**cells, CONTROL: f"{chosen['control_value'].iloc[0]:.3f} | "}


def _set(made: Manifest) -> TrainingSet:
    weights = np.full(len(made.rows), WEIGHT, np.float32)
    return TrainingSet(images(made, SIZE), made.labels(), weights, tuple(made.rows.index))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:] or ["1", "4", "8"])
