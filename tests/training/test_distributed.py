"""Trainings in two processes, really started by torchrun: the losses and weights of one process, and its files."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medlt.files import read_tensors
from medlt.privacy.dpsgd.randomness import Seeded
from medlt.privacy.dpsgd.units import Units
from medlt.training.settings import BatchPart

SCRIPT = Path(__file__).with_name("several.py")
ROOT = Path(__file__).parents[2]
CLOSE = {
    "codec": 1e-6,
    "codec_emphasis": 1e-5,
    "denoiser": 1e-6,
    "sparse": 1e-5,
    "classifier": 1e-4,
    "private": 1e-6,
    "classifier_bf16": 5e-2,
}
"""Largest difference of a loss in five steps. bfloat16 has 8 bits, and its rounding depends on the size of the part."""
NEAR = {
    "codec": 5e-4,
    "codec_emphasis": 5e-4,
    "denoiser": 5e-4,
    "classifier": 2e-3,
    "private": 1e-6,
    "classifier_bf16": 2e-2,
}
"""Largest difference of a weight: the first steps of Adam follow the sign of a gradient, however small it is."""


def run(processes: int, out: Path, steps: int, *cases: str) -> None:
    """Train the cases of several.py in this number of processes."""
    if processes == 1:
        runpy.run_path(str(SCRIPT))["main"](out, steps, *cases)
        return
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *start, str(SCRIPT), str(out), str(steps), *cases]
    done = subprocess.run(command, env=environment, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def losses(out: Path, case: str) -> np.ndarray:
    return np.array(json.loads((out / case / "losses.json").read_text()), float)


def files(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def assert_same(one: Path, two: Path, *cases: str, last: int | None = None) -> None:
    """One is the training in one process; `last`: how many losses of two there are, if it was resumed."""
    for case in cases:
        curve, other = losses(one, case), losses(two, case)
        assert len(other) == (last or len(curve))
        assert np.isfinite(curve).all()
        np.testing.assert_allclose(other, curve[-len(other) :], atol=CLOSE[case], rtol=0, err_msg=case)
        if case in NEAR:
            weights, others = (read_tensors(out / case / "weights.safetensors") for out in (one, two))
            for name, value in weights.items():
                torch.testing.assert_close(others[name], value, atol=NEAR[case], rtol=0, msg=f"{case} {name}")


def test_two_processes_have_the_losses_and_the_files_of_one(tmp_path: Path) -> None:
    """A classifier with batch norms, weights of rows and unknown labels; a step of DP-SGD with an idle process."""
    for processes in (1, 2):
        run(processes, tmp_path / str(processes), 5, "classifier", "private")
    assert_same(tmp_path / "1", tmp_path / "2", "classifier", "private")
    assert files(tmp_path / "1") == files(tmp_path / "2")
    sampled = [len(Units([f"p{i % 16}" for i in range(40)], 4 / 16).draw(Seeded(5).at(step))[0]) for step in range(5)]
    assert min(sampled) <= 2 < max(sampled)  # a piece has two rows


@pytest.mark.slow
def test_every_kind_of_training_is_the_same_in_two_processes(tmp_path: Path) -> None:
    cases = ("codec", "codec_emphasis", "denoiser", "sparse", "classifier_bf16")
    for processes in (1, 2):
        run(processes, tmp_path / str(processes), 5, *cases)
    assert_same(tmp_path / "1", tmp_path / "2", *cases)
    assert files(tmp_path / "1") == files(tmp_path / "2")


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_a_training_goes_on_with_another_number_of_processes(tmp_path: Path, first: int, then: int) -> None:
    run(1, tmp_path / "whole", 6, "denoiser", "private")
    run(first, tmp_path / "cut", 4, "denoiser", "private")
    run(then, tmp_path / "cut", 6, "denoiser", "private")
    assert_same(tmp_path / "whole", tmp_path / "cut", "denoiser", "private", last=2)


@pytest.mark.slow
def test_noise_is_added_once_and_is_the_same_in_both_processes(tmp_path: Path) -> None:
    """Noise multiplier 1 times a clipping norm of 0.5, of 119,997 numbers: 0.5 within 0.2 % (one sigma)."""
    run(2, tmp_path, 1, "noise")
    values = read_tensors(tmp_path / "noise" / "weights.safetensors")["noise"]
    assert float(values.std()) == pytest.approx(0.5, rel=0.01)


def test_means_over_known_entries_add_up_over_parts() -> None:
    entries, values = torch.tensor([2, 0, 1, 1]), torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    parts = [BatchPart(i, 2) for i in range(2)]
    means = [float(part.take(values).sum() / part.take(entries).sum()) * part.share(entries) for part in parts]
    assert sum(means) / 2 == pytest.approx(float(values.sum() / entries.sum()))
    assert BatchPart().share(entries) == 1.0
    assert BatchPart(1, 2).share(torch.zeros(4)) == 0.0
