"""Private Evolution beside private training, on ChestX-ray14 at 64 px, from one small public denoiser.

    MEDLT_DATA=... python benchmarks/private_evolution_nih14.py runs/private_evolution [EPSILON ...]

The public denoiser is trained on drawn radiographs of 400 patients, which show nobody. "as it is" is that denoiser,
without votes and without training. Every row has equal targets, sampler and seeds. Classifiers that had no part in a
run measure its images, as in benchmarks/privacy_utility.py: KID to real test images in the features of a verifier, and
label agreement. The denoiser knows none of the findings of ChestX-ray14, so its images get a finding by votes alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import table
from privacy_utility import synthetic

from medlt import config as configs
from medlt.checks.consistency import thresholds
from medlt.data.loaders import images
from medlt.metrics.fidelity import kid
from medlt.privacy import claim
from medlt.recipes import augment, train
from medlt.recipes._cohort import open_cohort
from medlt.recipes._models import train_verifiers
from medlt.recipes._setup import opened
from medlt.rng import numpy_generator
from medlt.training.runtime import silent

CONFIG, PUBLIC = Path("nih14/private"), Path("phantom/public")
SIZE = 64
COMMON = [f"size={SIZE}", "threads=1", "targets.max_per_finding=16", f"classifier={{size: {SIZE}, steps: 200}}"]
SAMPLER = {"num_inference_steps": 25, "guidance_scale": 1.0, "scheduler": "ddim"}
METHODS = ("evolution", "private training")


def public(out: Path) -> Path:
    """Return the folder of the public denoiser, which is trained if it does not exist."""
    place = out / "public"
    if not (place / "denoiser" / "model.json").is_file():
        train.main(configs.load_config(PUBLIC, [
            f"output_dir={place}", f"size={SIZE}", "threads=1", "data.patients=400", "data.size=64",
            "denoiser={width: 32, steps: 600, batch_size: 32}", "evaluation=null",
            "classifier={size: 64, steps: 1}", "checks.folds=2",
        ]), "denoiser")  # fmt: skip
    return place / "denoiser"


def made(out: Path, method: str, epsilon: str, start: Path) -> Path:
    """Return the run of one row, which is made if it does not exist."""
    place = out / f"{method.replace(' ', '_')}_{epsilon}"
    if (place / "manifest.parquet").is_file():
        return place
    given: dict[str, Any] = {"train": "none", "init_from": str(start)}
    kind: dict[str, Any] = {"kind": "noise", **SAMPLER}
    if method == "evolution":
        kind = {"kind": "evolution", **SAMPLER, "population": 16}
    if method == "private training":
        given = {"init_from": str(start), "width": 32, "steps": 100, "batch_size": 128, "learning_rate": 5e-4,
                 "ema_decay": 0.97}  # fmt: skip
    own = [f"output_dir={place}", f"artifacts_dir={out / 'artifacts'}", f"budget_book={place}.json", *COMMON]
    if epsilon != "-":
        own.append(f"privacy.epsilon={epsilon}")
    config = configs.load_config(CONFIG, own)
    tree = config.model_dump(mode="json", exclude={"method", "denoiser"})
    return augment.main(configs.parse({**tree, "method": kind, "denoiser": given}))


def main(out: Path, epsilons: list[str]) -> None:
    """Make all runs, measure their images, and write the table."""
    start = public(out)
    rows: list[tuple[str, str]] = [("as it is", "-")]
    rows += [(method, epsilon) for epsilon in epsilons for method in METHODS]
    runs = {key: made(out, *key, start) for key in rows}
    base = configs.load_config(CONFIG, [f"output_dir={out / 'verifiers'}", "privacy=null", *COMMON])
    with opened(base, silent) as run:
        real = open_cohort(run)
        cross_fit = train_verifiers(run, real, None)
    limits = thresholds(cross_fit.held_out, real.train.rows[list(real.findings)])
    verifiers: Any = cross_fit.verifiers
    seen = verifiers[0].features(real.images(real.test, SIZE)).numpy()
    lines = ["| method | claim | KID to test | label agreement |", "|---|---|---|---|"]
    for (method, epsilon), place in runs.items():
        stated, images_of = claim(place), synthetic(place)
        word = "none" if stated.epsilon is None else f"({stated.epsilon:.2f}, {stated.delta:g})"
        pixels = images(images_of, SIZE)
        distance = kid(seen, verifiers[0].features(pixels).numpy())
        scores = np.mean([verifier.predict(pixels).numpy() for verifier in verifiers], axis=0)
        column = [list(images_of.findings).index(name) for name in images_of.rows["finding"]]
        right = scores[np.arange(len(column)), column] >= limits.loc[list(images_of.rows["finding"])].to_numpy()
        lines.append(f"| {method}, {epsilon} | {word} | {distance.value:.3f} ± {distance.sd:.3f} | "
                     f"{right.mean():.2f} ({right.sum()} of {len(right)}) |")  # fmt: skip
    order, half = numpy_generator("halves of the test images").permutation(len(seen)), len(seen) // 2
    floor = kid(seen[order[:half]], seen[order[half:]])
    lines.append(f"| real test images, half against half | - | {floor.value:.3f} ± {floor.sd:.3f} | |")
    table("private_evolution_nih14", lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:] or ["1", "8"])
