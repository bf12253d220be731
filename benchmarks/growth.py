"""How the cost of each stage grows with the number of images: CPU time, exponent, and peak memory.

    python benchmarks/growth.py [--rows 1000 3000 10000 30000] [--stages NAME ...]
    python benchmarks/growth.py --short

Each stage is a function of the library, run alone on synthetic images of 32 px, features or tables. The exponent is the
slope of the logarithm of CPU time against that of the number of rows. Each stage is measured in a process of its own,
whose peak of resident memory is given, with that of its imports. --short measures few rows in one process, several
times each, takes the least time, and ends with 1 if an exponent exceeds BOUND. An exponent is a ratio within one run,
so another program on the machine disturbs it little.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import table
from growth_stages import STAGES, Work

from medlt.recipes._setup import peak_rss_mb

ROWS = (1000, 3000, 10_000, 30_000)
SHORT = (400, 800, 1600)
BOUND = 1.5
REPEATS = 2
SOON = 2.0
"""Stages of fewer CPU seconds are measured three times."""


def slope(counts: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the exponent of seconds against counts."""
    return float(np.polyfit(np.log(counts), np.log(np.maximum(seconds, 1e-4)), 1)[0])


def timed(work: Work, most: float = 0.0) -> float:
    """CPU seconds of this process; the least of three times, if the first is below `most`."""
    began = time.process_time()
    work()
    first = time.process_time() - began
    return min(first, timed(work), timed(work)) if first < most else first


def child(name: str, counts: Sequence[int]) -> None:
    """Measure one stage at rising counts, and print (CPU seconds, peak MB so far) of each."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        STAGES[name].prepare(200, Path(place))()  # imports and first calls
        print(json.dumps([(timed(STAGES[name].prepare(count, Path(place)), SOON), peak_rss_mb()) for count in counts]))


def measured(name: str, counts: Sequence[int]) -> list[tuple[float, float]]:
    """Return CPU seconds and peak memory, in MB, of one stage at these counts, in a process of its own."""
    command = [sys.executable, __file__, "--stages", name, "--child", "--rows", *map(str, sorted(counts))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [tuple(one) for one in json.loads(done.stdout.splitlines()[-1])]


def whole(names: Sequence[str], counts: Sequence[int]) -> list[str]:
    """The table of all stages."""
    heads = " | ".join(f"{count:,}, CPU s" for count in counts)
    lines = [
        f"| stage | rows | {heads} | exponent | last step | MB, first and last |",
        "|---|---|" + "---:|" * (len(counts) + 3),
    ]
    for name in names:
        seconds, mb = zip(*measured(name, counts), strict=True)
        shown = " | ".join(f"{one:.2f}" for one in seconds)
        ends = f"{slope(counts, seconds):.2f} | {slope(counts[-2:], seconds[-2:]):.2f} | {mb[0]:.0f}, {mb[-1]:.0f}"
        lines.append(f"| {name} | {STAGES[name].rows} | {shown} | {ends} |")
        print(lines[-1], flush=True)
    return lines


def exponents(names: Sequence[str], counts: Sequence[int] = SHORT) -> dict[str, float]:
    """Return the exponent of each stage at few rows, the least time of several."""
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            STAGES[name].prepare(200, Path(place))()
            works = [STAGES[name].prepare(count, Path(place)) for count in counts]
            rounds = [[timed(work) for work in works] for _ in range(REPEATS)]
            found[name] = slope(counts, np.min(rounds, axis=0).tolist())
    return found


def require_bounded(names: Sequence[str] = tuple(STAGES)) -> None:
    """Print the exponents at few rows. Raises SystemExit if one exceeds BOUND."""
    slopes = exponents([name for name in names if STAGES[name].bounded])
    print(*(f"{name}: exponent {one:.2f}" for name, one in slopes.items()), sep="\n")
    if over := [name for name, one in slopes.items() if not one <= BOUND]:
        raise SystemExit(f"growth: {', '.join(over)}: the exponent exceeds {BOUND}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--child", action="store_true")
    chosen = parser.parse_args()
    if chosen.child:
        child(chosen.stages[0], chosen.rows)
    elif chosen.short:
        require_bounded(chosen.stages)
    else:
        table("growth", whole(chosen.stages, chosen.rows))


if __name__ == "__main__":
    main()
