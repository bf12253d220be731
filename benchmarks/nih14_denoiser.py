"""The standing denoiser of NIH ChestX-ray14: one long training that may be stopped at any time, and its curves.

    MEDLT_DATA=/data nice -n 19 python benchmarks/nih14_denoiser.py train nih14/denoiser output_dir=FOLDER
    python benchmarks/nih14_denoiser.py show FOLDER [--docs docs/images]

`train` makes codec, latents and denoiser of the config, without the verifiers that `medlt train denoiser` trains first.
It is the same denoiser: `medlt augment` with the same config and artifacts finds it. Killed, it continues from its last
checkpoint when called again. More steps, also after it has finished: another `output_dir=`, the same artifacts, and a
larger `denoiser.steps=`. `show`, of a run folder or of an `artifacts_dir` with one denoiser, reads what was reached,
also while it trains: it writes the losses as docs/images/nih14_denoiser.svg, the last sample grid as
docs/images/nih14_denoiser.png, and benchmarks/results/nih14_denoiser.md.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from common import table

from medlt import config as configs
from medlt.files import write_text
from medlt.recipes._checks import check_config
from medlt.recipes._codec import encode, make_codec
from medlt.recipes._cohort import open_cohort, read_rows
from medlt.recipes._denoiser import train_denoiser
from medlt.recipes._setup import opened

WIDTH, HEIGHT, MARGIN = 720, 300, 48
SMOOTHED = 50
"""Steps of the moving mean of the training loss."""


def train(config: configs.RunConfig) -> None:
    """Train the denoiser of a config, or continue its training."""
    check_config(config)
    rows = read_rows(config)
    with opened(config, lambda stage, done, total: None) as run:
        cohort = open_cohort(run, rows)
        latents = encode(run, cohort, make_codec(run, cohort, None))
        train_denoiser(run, cohort, latents, None)


def newest(folder: Path) -> Path:
    """Return the folder of the denoiser that was trained last, finished or not."""
    found = [file.parent for file in folder.glob("**/denoiser/*/history.parquet")]
    if not found:
        raise SystemExit(f"{folder}: holds no training with a checkpoint yet")
    return max(found, key=lambda one: (one / "history.parquet").stat().st_mtime)


def line(x: np.ndarray, y: np.ndarray, box: tuple[float, float, float], colour: str) -> str:
    """Return a polyline of points; box: largest x, smallest and largest y."""
    last, low, high = box
    across = MARGIN + x / last * (WIDTH - 2 * MARGIN)
    down = HEIGHT - MARGIN - (y - low) / (high - low) * (HEIGHT - 2 * MARGIN)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def curves(history: pd.DataFrame) -> str:
    """Return losses as a picture: training (grey, moving mean) and validation with fixed noise (blue)."""
    training = history["loss"].rolling(SMOOTHED, min_periods=SMOOTHED).mean().dropna()
    validation = history["validation"].dropna()
    both = pd.concat([training, validation])
    box = (float(history.index.max()), float(both.min()) * 0.95, float(both.quantile(0.98)))
    text = 'font-family="sans-serif" font-size="12" fill="#333"'
    ends = [f'<text x="{MARGIN}" y="{HEIGHT - MARGIN + 18}" {text}>0</text>',
            f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - MARGIN + 18}" text-anchor="end" {text}>{box[0]:.0f} steps</text>',
            f'<text x="4" y="{HEIGHT - MARGIN}" {text}>{box[1]:.3f}</text>',
            f'<text x="4" y="{MARGIN}" {text}>{box[2]:.3f}</text>',
            f'<text x="{MARGIN}" y="20" {text}>loss: training (grey, mean of {SMOOTHED} steps), '
            "validation (blue, averaged weights, fixed noise)</text>"]  # fmt: skip
    drawn = [line(part.index.to_numpy(float), part.to_numpy().clip(max=box[2]), box, colour)
             for part, colour in ((training, "#999"), (validation, "#1f5fa8"))]  # fmt: skip
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>' + "".join([*ends, *drawn]) + "</svg>\n"


def show(folder: Path, docs: Path) -> None:
    """Write curve, grid and table of what was reached."""
    place = newest(folder)
    history = pd.read_parquet(place / "history.parquet")
    write_text(docs / "nih14_denoiser.svg", curves(history))
    shutil.copyfile(max((place / "samples").glob("step_*.png")), docs / "nih14_denoiser.png")
    measured = history["validation"].dropna()
    at = np.unique(np.linspace(0, len(measured) - 1, min(len(measured), 12)).astype(int))
    lines = ["| step | training loss, last 250 steps | validation loss |", "|---:|---:|---:|"]
    for step in measured.index[at]:
        mean = history.loc[step - 249 : step, "loss"].mean()
        lines.append(f"| {step} | {mean:.4f} | {measured[step]:.4f} |")
    table("nih14_denoiser", [*lines, "", f"{len(history)} steps were reached."])


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    training = verbs.add_parser("train")
    training.add_argument("config", type=Path)
    training.add_argument("overrides", nargs="*")
    shown = verbs.add_parser("show")
    shown.add_argument("folder", type=Path)
    shown.add_argument("--docs", type=Path, default=Path("docs/images"))
    given = parser.parse_args(arguments)
    if given.verb == "show":
        show(given.folder, given.docs)
    else:
        train(configs.load_config(given.config, given.overrides))


if __name__ == "__main__":
    main()
