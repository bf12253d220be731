"""Images made by one process, by 2 workers, and by 1 and 2 workers of Ray: seconds of equal work, and equal bytes.

    OMP_NUM_THREADS=1 python benchmarks/engines.py FOLDER [--rows 10000] [--repeats 1] > benchmarks/results/engines.md

Pastes real lesions (phantom/recompose), which is the cheapest method, so the engine's share of the time is the largest.
Every engine runs in a process of its own, with the trained parts of an earlier run. "images": from the call of the
engine to the last shard. "until the images": from the start of the process, with the start of the engine, which begins
while the run is prepared. "whole command": with the publication, which is the same single process for every engine.
Needs `pip install "medlt[ray]"`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import machine

from medlt.config import RunConfig, catalogue, load_config
from medlt.files import digest

ENGINES = {
    "one process": {"engine": '{"kind": "local"}', "workers": 1},
    "local, 2 workers": {"engine": '{"kind": "local"}', "workers": 2},
    "Ray, 1 worker": {"engine": '{"kind": "ray"}', "workers": 1},
    "Ray, 2 workers": {"engine": '{"kind": "ray"}', "workers": 2},
}
SPANS = ("images", "until the images", "whole command")


def config(folder: Path, name: str, rows: int, settings: dict[str, object]) -> RunConfig:
    """Return the config of one run."""
    given = {
        "output_dir": folder / name.replace(" ", "_").replace(",", ""),
        "threads": 1,
        "targets.count": 100_000,
        "targets.max_per_finding": -(-rows // 8),  # four findings are in the tail, with two candidates an image
        **settings,
    }
    return load_config(catalogue.path("phantom/recompose"), [f"{key}={value}" for key, value in given.items()])


def run_here(folder: Path, name: str, rows: int, settings: dict[str, Any]) -> dict[str, float]:
    """Make the images of one run in this process; return its number of rows, and the times when images were begun and
    made."""
    from medlt.recipes import _publish
    from medlt.recipes.augment import main as augment

    real, times = _publish._make_round, {}

    def timed(run, writer, built, rows, checks):  # type: ignore[no-untyped-def]
        begun = time.time()
        real(run, writer, built, rows, checks)
        times.update(begun=begun, made=time.time(), rows=len(rows))

    _publish._make_round = timed
    augment(config(folder, name, rows, settings))
    return times


def seconds(folder: Path, name: str, rows: int, settings: dict[str, Any]) -> tuple[list[float], int]:
    """Return the seconds of SPANS of one run in a process of its own, and the number of its rows."""
    call = [sys.executable, __file__, str(folder), "--rows", str(rows), "--one", name, json.dumps(settings)]
    start = time.time()
    done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
    end, times = time.time(), json.loads(done.stdout.splitlines()[-1])
    return [times["made"] - times["begun"], times["made"] - start, end - start], times["rows"]


def image_bytes(run: Path) -> str:
    """Return a digest of all images."""
    files = sorted((run / "images").rglob("*.png"), key=lambda file: file.name)
    return digest(*(part for file in files for part in (file.name.encode(), file.read_bytes())))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SETTINGS"), help="make the images of one run")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(run_here(given.folder, given.one[0], given.rows, json.loads(given.one[1]))))
        return
    shared: dict[str, Any] = {"artifacts_dir": str(given.folder / "artifacts")}
    seconds(given.folder, "warm", 16, {"workers": 1, **shared})
    rows = given.folder.absolute() / "warm" / "stages" / "data" / "manifest.parquet"
    shared["data"] = f'{{"kind": "manifest", "path": "{rows}"}}'
    times: dict[str, list[list[float]]] = {name: [] for name in ENGINES}
    bytes_: set[str] = set()
    for turn in range(given.repeats):
        for name, settings in ENGINES.items():
            taken, count = seconds(given.folder / str(turn), name, given.rows, {**settings, **shared})
            times[name].append(taken)
            bytes_.add(image_bytes(config(given.folder / str(turn), name, given.rows, {}).output_dir))
    show(times, count, same=len(bytes_) == 1)


def show(times: dict[str, list[list[float]]], count: int, *, same: bool) -> None:
    """Print the median seconds of every engine, with their range, and the gains."""
    middle = {name: [statistics.median(span) for span in zip(*runs, strict=True)] for name, runs in times.items()}
    print(f"# Engines\n\n{machine()}\n\n{count:,} rows of phantom/recompose, {len(times['one process'])} run(s) each.")
    print("All images are equal byte for byte.\n" if same else "THE IMAGES DIFFER.\n")
    print("| engine |" + "".join(f" {span}, s | times one process |" for span in SPANS))
    print("|---" * 7 + "|")
    for name, runs in times.items():
        cells = [f"{value:.0f}" for value in middle[name]]
        if len(runs) > 1:
            cells = [
                f"{cell} ({min(span):.0f} to {max(span):.0f})"
                for cell, span in zip(cells, zip(*runs, strict=True), strict=True)
            ]
        gains = [one / own for one, own in zip(middle["one process"], middle[name], strict=True)]
        print(f"| {name} |" + "".join(f" {cell} | {gain:.2f} |" for cell, gain in zip(cells, gains, strict=True)))
    pairs = zip(SPANS, middle["Ray, 2 workers"], middle["local, 2 workers"], strict=True)
    print("\nRay against local, 2 workers: " + ", ".join(f"{span} {ray / own - 1:+.1%}" for span, ray, own in pairs))


if __name__ == "__main__":
    main()
