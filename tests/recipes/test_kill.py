"""A run that is killed with SIGKILL, again and again, and then let go on ends with the bytes of one that never was."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from medlt.config import RunConfig, dump
from medlt.rng import numpy_generator

pytestmark = pytest.mark.slow

Moment = Callable[[], bool]
SOON = 600.0  # seconds; a start-up takes five and a whole run thirty, on a machine that does nothing else


def start(place: Path) -> subprocess.Popen[bytes]:
    """`medlt run` in a process of its own, in `place`."""
    command = [sys.executable, "-m", "medlt", "run", "tiny.yaml"]
    with (place / "log.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=place, stdout=log, stderr=log)


def killed(place: Path, moment: Moment) -> bool:
    """Start a run and kill it at `moment`; False if it ended before. Raises AssertionError if it failed."""
    process, end = start(place), time.monotonic() + SOON
    try:
        while process.poll() is None and not moment():
            assert time.monotonic() < end
            time.sleep(0.002)
    finally:
        process.kill()
    code = process.wait()
    assert code in (0, -signal.SIGKILL), (place / "log.txt").read_text()
    return code != 0


def appeared(place: Path, pattern: str) -> Moment:
    """When a file of this pattern is in the run folder."""
    return lambda: next((place / "run").glob(pattern), None) is not None


def working_for(place: Path, seconds: float) -> Moment:
    """When the run, its start-up apart, has worked that long: it opens by writing run.json anew."""
    file = place / "run" / "run.json"
    before = file.stat().st_mtime if file.exists() else 0.0

    def due() -> bool:
        if not file.exists() or file.stat().st_mtime == before:
            return False
        time.sleep(seconds)
        return True

    return due


def content(run: Path) -> dict[str, bytes]:
    """Every file but those that hold times: run.json, run.log, locks, and the index of files."""
    files = sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file())
    timed = {"run.json", "run.log"}
    kept = [
        name for name in files if name not in timed and not name.endswith(".lock") and "artifacts/pixels/" not in name
    ]
    return {name: (run / name).read_bytes() for name in kept}


def assert_finishes_as(finished: Path, place: Path) -> None:
    """Run to the end; every file is as in `finished`, and what is left besides are halves of files, named as such."""
    assert start(place).wait(SOON) == 0, (place / "log.txt").read_text()
    whole, resumed = content(finished), content(place / "run")
    assert [name for name in whole if whole[name] != resumed.get(name)] == []
    assert [name for name in resumed if name not in whole and ".tmp" not in name] == []
    told = [json.loads((run / "run.json").read_text()) for run in (finished, place / "run")]
    assert [told[1][key] == told[0][key] for key in ("counts", "digests", "metrics")] == [True] * 3


@pytest.fixture
def place(tmp_path: Path, tiny: Callable[[Path], RunConfig], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the tiny config, whose run folder is in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(dump(tiny(Path("run"))))
    return tmp_path


@pytest.mark.parametrize(
    "patterns",
    [
        ("stages/data/phantom/**/*.dcm", "artifacts/sparse/*/artifact.json", "scores.parquet"),
        ("artifacts/codec/*.work/checkpoint/*", "artifacts/denoiser/*.work/checkpoint/*", "images/*.png"),
        ("artifacts/latents/*.work/*", "artifacts/classifier/*.work/*", "**/shard*/**/*.png", "panels/*.png"),
    ],
    ids=lambda patterns: patterns[0].split("/")[1],
)
def test_killed_as_soon_as_files_appear(finished: Path, place: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        assert killed(place, appeared(place, pattern)), f"the run was over before {pattern}"
    assert_finishes_as(finished, place)


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_times(finished: Path, place: Path, seed: int) -> None:
    """Three kills, each within the first third of the work there is, so that even the last strikes a run at work."""
    work = sum(json.loads((finished / "run.json").read_text())["seconds"].values())
    times = numpy_generator("kill", seed).uniform(0, work / 3, 3)
    assert any([killed(place, working_for(place, seconds)) for seconds in times])
    assert_finishes_as(finished, place)
