"""Scaling of `medlt convert`, with workers and with the number of files.

    python benchmarks/convert_scale.py [--files 200] [--many 100000]

First `convert` runs on FILES uncompressed radiographs (see convert.py) with 1 and 2 workers, in turns. The table has
the wall time from the first answer of the pool to the last, and the peak memory of each worker. Then it runs on 10,
MANY / 10, MANY / 3 and MANY tiny files: seconds, the exponent of time over number, and the peak memory of the parent.
Targets: 2 workers at least 1.8 times as fast as 1, below 300 MB a worker at any number, exponent 1 +- 0.05.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import convert_files
import numpy as np
import psutil
from common import table


def child(source: Path, out: Path, workers: int) -> None:
    """Convert, and print the seconds, the parent's and the largest worker's peak memory."""
    from medlt.data.convert import ConversionSettings, convert

    spans: list[float] = []
    peaks: dict[int, int] = {}

    def watch() -> None:
        while True:
            for process in psutil.Process().children():
                try:
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    peaks[process.pid] = int(status.split("VmHWM:")[1].split()[0])
                except (OSError, IndexError):
                    continue
            time.sleep(0.2)

    threading.Thread(target=watch, daemon=True).start()
    began = time.perf_counter()
    counts = convert(
        source,
        out,
        ConversionSettings(size=512),
        workers=workers,
        progress=lambda *_: spans.append(time.perf_counter()),
    )
    ended = time.perf_counter()
    own = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    print(
        json.dumps(
            {
                "converted": counts["converted"],
                "whole": ended - began,
                "steady": spans[-1] - spans[1],
                "worker_mb": max(peaks.values()) / 1024,
                "parent_mb": own / 1024,
            }
        )
    )


def run(source: Path, workers: int) -> dict[str, float]:
    """One conversion in a fresh process and folder."""
    out = source.parent / "out"
    command = [sys.executable, __file__, "--child", str(source), str(out), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shutil.rmtree(out)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def by_workers(place: Path, files: int, rounds: int = 3) -> list[str]:
    """1 against 2 workers."""
    source = convert_files.build(place / "large", "uncompressed", files)
    measured = {workers: [] for workers in (1, 2)}
    for _ in range(rounds):
        for workers, runs in measured.items():
            runs.append(run(source, workers))
    shutil.rmtree(source)
    lines = ["| workers | files/s | worker peak MB |", "|---:|---:|---:|"]
    rate = {w: statistics.median(files / r["steady"] for r in runs) for w, runs in measured.items()}
    for workers, runs in measured.items():
        lines.append(f"| {workers} | {rate[workers]:.1f} | {max(r['worker_mb'] for r in runs):.0f} |")
    return [*lines, "", f"2 workers / 1: {rate[2] / rate[1]:.2f}.", ""]


def by_number(place: Path, many: int) -> list[str]:
    """Tiny files, each different."""
    rng = np.random.default_rng(0)
    lines = ["| tiny files | seconds | files/s | worker peak MB | parent peak MB |", "|---:|---:|---:|---:|---:|"]
    counts = [10, many // 10, many // 3, many]
    spent = []
    for count in counts:
        source = place / "tiny"
        source.mkdir()
        data = convert_files.header("uncompressed", 0, np.zeros((16, 16), np.uint16))
        for at in range(count):
            data.PixelData = rng.integers(0, 4096, (16, 16), dtype=np.uint16).tobytes()
            data.save_as(source / f"{at:06d}.dcm", enforce_file_format=True)
        answer = run(source, 2)
        assert answer["converted"] == count
        spent.append(answer["whole"])
        sizes = f"{answer['worker_mb']:.0f} | {answer['parent_mb']:.0f}"
        lines.append(f"| {count} | {answer['whole']:.1f} | {count / answer['whole']:.0f} | {sizes} |")
        shutil.rmtree(source)
    beyond = np.array(spent[1:]) - spent[0]  # starting the workers takes a second whatever the number
    exponent = np.polyfit(np.log(counts[1:]), np.log(beyond), 1)[0]
    return [*lines, "", f"Exponent of time, less that of 10 files, over number: {exponent:.3f}."]


def main() -> None:
    """Both tables."""
    read = argparse.ArgumentParser()
    read.add_argument("--files", type=int, default=200)
    read.add_argument("--many", type=int, default=100_000)
    read.add_argument("--child", nargs=3)
    args = read.parse_args()
    if args.child:
        return child(Path(args.child[0]), Path(args.child[1]), int(args.child[2]))
    place = Path(tempfile.mkdtemp(prefix="medlt-scale-"))
    try:
        table("convert_scale", [*by_workers(place, args.files), *by_number(place, args.many)])
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
