"""Several processes of medlt at once: by torchrun, and by two commands that share trained parts."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from medlt.cli import app
from medlt.files import read_tensors

CONFIG = """
output_dir: run
artifacts_dir: shared
seed: 3
size: 32
threads: 1
data: {kind: phantom, patients: 24, size: 64, imbalance: 8}
codec: {kind: train, width: 8, levels: 3, steps: 2, batch_size: 4}
denoiser: {width: 8, steps: 2, batch_size: 8, checkpoint_every: 2}
method: {kind: noise, num_inference_steps: 2}
targets: {tail_below: 8, head_above: 20, count: 10, max_per_finding: 3, num_candidates: 2}
checks: {folds: 2, verifier_quantile: 0.01, near_copy: null}
classifier: {size: 32, steps: 2, batch_size: 8, evaluate_every: 2}
"""
AUGMENT = ("-m", "medlt", "augment", "tiny.yaml")


def start(place: Path, *command: str) -> subprocess.Popen[str]:
    """A command of Python in a process of its own."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *command], cwd=place, stdout=pipe, stderr=pipe, text=True)


def test_a_process_that_reports_nothing_waits_for_the_one_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun ends all processes as soon as one has ended with an error."""
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr("logging.disable", lambda level: None)  # it would last beyond this test
    monkeypatch.setattr("warnings.simplefilter", lambda action: None)
    ends = {}
    for rank in ("0", "1"):
        for name, value in {"WORLD_SIZE": "2", "RANK": rank, "MASTER_ADDR": "localhost"}.items():
            monkeypatch.setenv(name, value)
        ends[rank] = CliRunner().invoke(app, ["augment", str(tmp_path / "tiny.yaml")])
        assert ends[rank].exit_code == 2
        assert bool(ends[rank].stderr) == (rank == "0")
        assert (sum(waited) >= 5) == (rank == "1")


def test_a_start_by_torchrun_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    process = start(tmp_path, "-m", "torch.distributed.run", "--nproc_per_node", "2", *AUGMENT)
    _, stderr = process.communicate()
    assert process.returncode != 0
    assert "medlt: a command of medlt is one process, and 2 were started (WORLD_SIZE=2); start it without" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


TRAIN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "medlt", "train", "denoiser")


def one_line(stderr: str) -> str:
    """The one line of medlt on stderr, beside its warnings and the report of torchrun."""
    lines = [line for line in stderr.splitlines() if line.startswith("medlt: ") and "warning" not in line]
    assert len(lines) == 1, stderr
    return lines[0]


def curve(place: Path) -> np.ndarray:
    """The losses in the checkpoint of the denoiser."""
    (checkpoint,) = place.glob("shared/denoiser/*.work/checkpoint/state.safetensors")
    return read_tensors(checkpoint)["losses"].numpy()


@pytest.mark.slow
def test_torchrun_trains_and_a_later_augment_uses_what_it_trained(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    process = start(tmp_path, *TRAIN, "tiny.yaml")
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stdout.splitlines() == [f"denoiser: {tmp_path / 'run'}"]
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count(" starts, process ") == log.count("denoiser: started") == log.count("codec: started") == 1
    trained = contents(tmp_path / "shared", "[cdl]*/*/*.*")
    assert {name.split("/")[0] for name in trained} >= {"latents", "codec", "denoiser", "classifier"}
    process = start(tmp_path, *AUGMENT)
    assert process.communicate()[1] is not None
    assert process.returncode == 0
    after = contents(tmp_path / "shared", "[cdl]*/*/*.*")
    assert {name: after.get(name) for name in trained} == trained
    large = {name for name in after if name.endswith((".npy", ".safetensors"))}
    assert large == {name for name in trained if name.endswith((".npy", ".safetensors"))}


@pytest.mark.slow
def test_a_killed_process_ends_the_training_in_one_line_and_one_process_resumes_it(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    longer = ("tiny.yaml", "denoiser.steps=4000", "denoiser.checkpoint_every=20")
    process, checkpoint = start(tmp_path, *TRAIN, *longer), "shared/denoiser/*.work/checkpoint/state.safetensors"
    while not list(tmp_path.glob(checkpoint)):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
    children = psutil.Process(process.pid).children()
    next(child for child in children if child.environ().get("RANK") == "1").kill()
    _, stderr = process.communicate()
    assert process.returncode != 0
    assert "run the same command again to resume" in one_line(stderr)
    before = curve(tmp_path)
    again = start(tmp_path, "-m", "medlt", "train", "denoiser", "tiny.yaml", "denoiser.checkpoint_every=20",
                  "denoiser.steps=4000")  # fmt: skip
    while len(after := curve(tmp_path)) <= len(before):
        assert again.poll() is None
        time.sleep(0.2)
    again.terminate()
    assert "terminated" in one_line(again.communicate()[1])
    assert (after[: len(before)] == before).all()


@pytest.mark.slow
def test_what_every_process_finds_wrong_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    process = start(tmp_path, *TRAIN, "tiny.yaml", "denoiser.batch_size=7")
    assert "7 does not divide into 2 processes" in one_line(process.communicate()[1])
    process = start(tmp_path, *TRAIN, "missing.yaml")
    assert "missing.yaml" in one_line(process.communicate()[1])


def test_accelerate_launch_on_cpus_is_refused_since_it_starts_one_process() -> None:
    env = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": None}
    done = CliRunner().invoke(app, ["train", "denoiser", "phantom/quick"], env=env)
    assert done.exit_code == 2
    assert "`accelerate launch` starts one process in place of several; use torchrun" in done.stderr


@pytest.mark.parametrize(("size", "code"), [("2", 2), ("16", 2), ("1", 0), ("", 0)])
def test_one_process_may_have_the_variables_of_a_cluster(size: str, code: int) -> None:
    done = CliRunner().invoke(app, ["config", "list"], env={"WORLD_SIZE": size, "RANK": "0"})
    assert done.exit_code == code
    assert len(done.stderr.splitlines()) == (code == 2)


@pytest.mark.slow
def test_two_runs_that_share_artifacts_end_with_the_bytes_of_one(tmp_path: Path) -> None:
    for name in ("alone", "both"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tiny.yaml").write_text(CONFIG)
    single = start(tmp_path / "alone", *AUGMENT)
    _, error = single.communicate()
    assert single.returncode == 0, error
    pair = [start(tmp_path / "both", *AUGMENT, "--out", name) for name in ("a", "b")]
    errors = [process.communicate()[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], errors
    for kept in ("manifest.parquet", "plan.parquet", "checks.parquet"):
        whole = {(tmp_path / run / kept).read_bytes() for run in ("alone/run", "both/a", "both/b")}
        assert len(whole) == 1, kept
    images, others, more = (contents(tmp_path / run / "images", "*.png") for run in ("alone/run", "both/a", "both/b"))
    assert images
    assert images == others == more
    parts, shared = (contents(tmp_path / name / "shared", "*/*/*.*") for name in ("alone", "both"))
    large = {name for name in parts if name.endswith((".npy", ".safetensors"))}
    assert {name.split("/")[0] for name in large} >= {"latents", "codec", "denoiser", "classifier"}
    assert {name: shared.get(name) for name in large} == {name: parts[name] for name in large}


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    """The files of a pattern, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern)}
