"""benchmarks/gpu.sh runs in every part where no GPU is: the same code with tiny networks."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_on_a_cpu(tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    text = (tmp_path / "gpu.md").read_text()
    assert done.returncode == 0, done.stderr[-2000:] + text
    for part in ("ceiling", "networks", "sampling", "training", "run"):
        assert f"## {part}" in text
    assert "Failed" not in text
    assert "Not run" not in text
    rates = [float(rate) for rate in re.findall(r"\| (?:UNet|VAE) \| \w+ \| 4 \| [\d.]+ \| ([\d.e-]+) \|", text)]
    assert len(rates) == 4
    assert min(rates) > 0
    assert "images/s of synthesis" in text


@pytest.mark.slow
def test_a_failing_part_is_one_line_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    def broken(session: gpu.Session) -> gpu.Lines:
        raise RuntimeError("no memory\nleft")

    monkeypatch.setitem(gpu.PARTS, "networks", broken)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--tiny", "--out", str(tmp_path), "--parts", "networks", "ceiling"])
    assert gpu.main() == 1
    text = (tmp_path / "gpu.md").read_text()
    assert "Failed: left" in text
    assert "| float32, 128 x 128 |" in text
