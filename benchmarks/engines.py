"""Images made by one process, by 2 workers, and by 1 and 2 workers of Ray: seconds of equal work, and equal bytes.

    OMP_NUM_THREADS=1 python benchmarks/engines.py FOLDER [--rows 10000] [--repeats 1] > benchmarks/results/engines.md

Pastes real lesions (phantom/recompose), which is the cheapest method, so the engine's share of the time is the largest.
A time runs from the call of the engine to its last shard, with the start of the workers; then the run is stopped, since
one process publishes for every engine. Needs `pip install "medlt[ray]"`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from common import machine

from medlt.config import RunConfig, catalogue, load_config
from medlt.files import digest
from medlt.recipes import _publish
from medlt.recipes.augment import main as augment

ENGINES = {
    "one process": {"engine": '{"kind": "local"}', "workers": 1},
    "local, 2 workers": {"engine": '{"kind": "local"}', "workers": 2},
    "Ray, 1 worker": {"engine": '{"kind": "ray"}', "workers": 1},
    "Ray, 2 workers": {"engine": '{"kind": "ray"}', "workers": 2},
}


def config(folder: Path, name: str, rows: int, settings: dict[str, object]) -> RunConfig:
    """Return the config of one run; all share their trained parts."""
    given = {
        "output_dir": folder / name.replace(" ", "_").replace(",", ""),
        "artifacts_dir": folder / "artifacts",
        "threads": 1,
        "targets.count": 100_000,
        "targets.max_per_finding": -(-rows // 8),  # four findings are in the tail, with two candidates an image
        **settings,
    }
    return load_config(catalogue.path("phantom/recompose"), [f"{key}={value}" for key, value in given.items()])


class Done(Exception):  # noqa: N818
    """Ends a run when its shards are made; holds the seconds and the number of rows."""


def seconds(settings: RunConfig) -> tuple[float, int]:
    """Return the seconds in which all shards were made, and the number of rows."""
    real = _publish._make_round

    def timed(run, writer, built, rows, checks):  # type: ignore[no-untyped-def]
        start = time.perf_counter()
        real(run, writer, built, rows, checks)
        raise Done(time.perf_counter() - start, len(rows))

    _publish._make_round = timed
    try:
        augment(settings)
    except Done as done:
        return done.args[0], done.args[1]
    finally:
        _publish._make_round = real
    raise AssertionError("no round was made")


def image_bytes(run: Path) -> str:
    """Return a digest of all images."""
    files = sorted((run / "stages" / "shards").rglob("*.png"), key=lambda file: file.name)
    return digest(*(part for file in files for part in (file.name.encode(), file.read_bytes())))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    shared: dict[str, object] = {"artifacts_dir": given.folder / "artifacts"}
    warm = config(given.folder / "warm", "warm", 16, {"workers": 1, **shared})
    augment(warm)
    rows = Path(warm.output_dir) / "stages" / "data" / "manifest.parquet"
    shared["data"] = f'{{"kind": "manifest", "path": "{rows.absolute()}"}}'
    times: dict[str, list[float]] = {name: [] for name in ENGINES}
    bytes_: set[str] = set()
    count = 0
    for turn in range(given.repeats):
        for name, settings in ENGINES.items():
            one = config(given.folder / str(turn), name, given.rows, {**settings, **shared})
            taken, count = seconds(one)
            times[name].append(taken)
            bytes_.add(image_bytes(Path(one.output_dir)))
    middle = {name: statistics.median(values) for name, values in times.items()}
    print(f"# Engines\n\n{machine()}\n\n{count:,} rows of phantom/recompose, {given.repeats} run(s) each, in turn.")
    print("All images are equal byte for byte.\n" if len(bytes_) == 1 else "THE IMAGES DIFFER.\n")
    print("| engine | seconds | rows/s | times one process |\n|---|---|---|---|")
    for name, taken in middle.items():
        spread = f" ({min(times[name]):.0f} to {max(times[name]):.0f})" if given.repeats > 1 else ""
        print(f"| {name} | {taken:.0f}{spread} | {count / taken:.1f} | {middle['one process'] / taken:.2f} |")
    print(
        f"\nRay against local, 2 workers: {middle['Ray, 2 workers'] / middle['local, 2 workers'] - 1:+.1%} of the time."
    )


if __name__ == "__main__":
    main()
