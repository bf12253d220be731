"""Several processes of medlt at once: by torchrun, and by two commands that share trained parts."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medlt.cli import app

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


def test_a_start_by_torchrun_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    process = start(tmp_path, "-m", "torch.distributed.run", "--nproc_per_node", "2", *AUGMENT)
    _, stderr = process.communicate()
    assert process.returncode != 0
    assert "medlt: a command of medlt is one process, and 2 were started (WORLD_SIZE=2); start it without" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


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
