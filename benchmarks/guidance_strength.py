"""Displacement of finished latents by a guide's weight, on the network of a config: samplers, windows, cadences.

    python benchmarks/guidance_strength.py phantom/longtail [KEY=VALUE ...] [--rows 8] [--weight 0.05]

The same rows are sampled with and without the guide, whose response is 1, so the ratio is how the network differs from
the reference denoiser of `medlt.diffusion.displacement`. A unit that holds has one ratio in all lines; the ratio is
what a run measures and divides by. For the minority guide, the last line is the published setting (w = 0.4, every 5th
step, all timesteps) under DDPM. What the config needs and is not in its artifacts folder is trained first.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import table
from torch import Tensor

from medlt import config as configs
from medlt.config import catalogue
from medlt.diffusion.displacement import realised
from medlt.diffusion.schedulers import factory
from medlt.recipes._cohort import open_cohort
from medlt.recipes._methods import build_method
from medlt.recipes._setup import opened
from medlt.recipes.augment import check, learn
from medlt.rng import seed_of
from medlt.training.runtime import silent

SAMPLERS = (("ddim", 10), ("ddim", 50), ("ddim", 100), ("ddpm", 50), ("dpm++", 25), ("unipc", 25))
HEAD = (
    "| sampler | steps | guide | weight | displacement | SD of rows | ratio | CPU time |",
    "|---|---:|---|---:|---:|---:|---:|---:|",
)


def variants(kind: str, sampler: tuple[str, int], weight: float, published_steps: int) -> list[dict[str, Any]]:
    """The settings of a guide that are measured under one sampler."""
    few = {"every": 2} if sampler[1] == 10 else {}
    rows: list[dict[str, Any]] = [{"weight": weight, **few}]
    if sampler == ("ddim", 50):
        rows += [{"weight": 0.4 * weight}, {"weight": 2 * weight}]
        rows += [{"weight": weight, "every": every} for every in (1, 6)]
        rows += [{"weight": weight, "window": window} for window in ((0.1, 0.9), (0.5, 0.8), (0.2, 0.5))]
    if kind == "minority" and sampler == ("ddpm", published_steps):
        rows.append({"weight": 0.4, "weight_unit": "published", "every": 5, "window": (0.0, 1.0)})
    return rows


def sampled(method: Any, rows: Any) -> tuple[Tensor, float]:
    """Finished latents in the network's space, and CPU seconds; nothing is decoded."""
    latents: list[Tensor] = []

    def recorded(z: Tensor) -> Tensor:
        latents.append(z.float())
        return torch.zeros(len(z), 1, 8, 8)

    began = time.process_time()
    list(replace(method, decode=recorded).run(rows))
    z = torch.cat(latents)
    space = method.backbone.space
    return (method.standardiser.to(z) if space == "standardised" else z), time.process_time() - began


def lines(method: Any, kind: str, args: argparse.Namespace, findings: list[str], seed: int) -> list[str]:
    """One line for each sampler and setting."""
    plan = method.plan(dict.fromkeys(findings, args.rows), seed_of(seed, "calibration"))
    plan = plan[plan["candidate"] == 0]
    plan = plan.loc[plan.groupby("finding").cumcount().sort_values(kind="stable").index].head(args.rows)
    guide, made = method.guidance[0], []
    samplers = [(name, int(steps)) for name, steps in (given.split(",") for given in args.samplers or [])]
    samplers = samplers or [*SAMPLERS, *([("ddpm", args.published_steps)] if kind == "minority" else [])]
    for name, steps in dict.fromkeys(samplers):
        here = replace(method, scheduler=factory(name, steps, method.backbone.noise))
        plain, spent = sampled(here.with_guidance(()), plan)
        for changes in variants(kind, (name, steps), args.weight, args.published_steps):
            z, longer = sampled(here.with_guidance((replace(guide, **changes),)), plan)
            moved = realised(z, plain)
            what = ", ".join(f"{key} {value}" for key, value in changes.items() if key != "weight") or "as configured"
            ratio = "-" if "weight_unit" in changes else f"{float(moved.mean()) / changes['weight']:.2f}"
            figures = f"{float(moved.mean()):.4f} | {float(moved.std()):.4f} | {ratio} | {longer / spent:.2f}"
            made.append(f"| {name} | {steps} | {what} | {changes['weight']:g} | {figures} |")
            print(made[-1], flush=True)
    return made


def main() -> None:
    """The guide of a config."""
    read = argparse.ArgumentParser()
    read.add_argument("config", help="a shipped config or a file, of a method with a guide")
    read.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the config to change")
    read.add_argument("--rows", type=int, default=8)
    read.add_argument("--weight", type=float, default=0.05)
    read.add_argument("--samplers", nargs="+", metavar="NAME,STEPS", help="samplers to measure; default: all")
    read.add_argument("--published-steps", type=int, default=250)
    args = read.parse_args()
    file = catalogue.path(args.config) if "/" in args.config and not Path(args.config).is_file() else Path(args.config)
    config = configs.load_config(file, args.overrides)
    with opened(config, silent) as run:
        cohort = open_cohort(run, check(config))
        method, kind = build_method(run, learn(run, cohort)).method, config.method.kind
        rows = lines(method, kind, args, list(cohort.shortfall()), config.seed)
    table(f"guidance_strength_{kind}", [f"{args.rows} rows of {args.config}.", "", *HEAD, *rows])


if __name__ == "__main__":
    main()
