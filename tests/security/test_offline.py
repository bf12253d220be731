"""The whole default flow connects to nothing and opens no pickle, in its worker processes neither."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from medlt.data.phantom import FINDINGS, write_phantom

HERE = Path(__file__).parent
FLOW = """\
convert archive converted --size 32 --workers 2
manifest csv archive/labels.csv labelled.parquet --images archive --findings {findings}
validate labelled.parquet
init labelled.parquet --out drafted.yaml
augment run.yaml -q
check synthetic run -q
audit run -q
report run
evaluate evaluate.yaml -q
report verdict
release make run released
release verify released
export run exported --format imagefolder
export run bundle --format monai-bundle
"""


def watched(program: list[str], place: Path) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run Python under the watch of `watch/sitecustomize.py`; return the process and what was refused."""
    seen = place / "refused.txt"
    path = os.pathsep.join([str(HERE / "watch"), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    env = {**os.environ, "PYTHONPATH": path, "MEDLT_WATCH": str(seen), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *program], env=env, cwd=place, capture_output=True, text=True, timeout=1800, check=False
    )
    return done, seen.read_text() if seen.exists() else ""


BAD = {
    "socket.connect": "import socket; socket.socket().connect(('192.0.2.1', 80))",
    "socket.getaddrinfo": "import socket; socket.getaddrinfo('example.org', 80)",
    "socket.sendto": "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
    "pickle of": "import pathlib, pickle; pickle.loads(pickle.dumps(pathlib.Path('x')))",
    "torch.load": "import torch; torch.load('weights.pt')",
    "pickle of a worker": (
        "from concurrent.futures import ProcessPoolExecutor as P\nimport multiprocessing as m\n"
        "if __name__ == '__main__':\n P(1, m.get_context('spawn')).submit(exec, 'import pathlib, pickle; "
        'open("p", "wb").write(pickle.dumps(pathlib.Path())); import subprocess, sys; '
        'subprocess.run([sys.executable, "-c", "import pickle; pickle.load(open(chr(112), chr(114) + chr(98)))"])\')'
        ".result()"
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_the_watch_sees_it(what: str, tmp_path: Path) -> None:
    """Without this the test below would prove nothing."""
    (tmp_path / "bad.py").write_text(BAD[what])
    done, refused = watched(["bad.py"], tmp_path)
    assert refused.startswith(what.removesuffix(" a worker")), done.stderr


def settings(tiny: dict[str, Any]) -> dict[str, Any]:
    """The settings of both configs: what makes a run small, and where the rows are."""
    data = {"kind": "manifest", "path": "labelled.parquet"}
    return {**tiny, "data": data}


@pytest.mark.slow
def test_the_default_flow_is_offline_and_opens_no_pickle(tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    write_phantom(tmp_path / "archive", patients=40, seed=3, size=64, imbalance=8)
    method = {"num_inference_steps": 6, "localise": {"networks": 2, "steps": 4, "code_steps": 4}}
    run = {**settings(tiny_settings), "output_dir": "run", "method": method}
    small = {"seeds": 2, "n_bootstrap": 100, "steps": 4}
    evaluate = {
        **{name: run[name] for name in ("seed", "data", "classifier")},
        "targets": {"tail_below": 8, "head_above": 20},
        "output_dir": "verdict", "evaluation": small, "sources": {"made": {"run": "run"}},
        "arms": {"made": {"source": "made"}},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(evaluate))
    (tmp_path / "commands.txt").write_text(FLOW.format(findings=",".join((*FINDINGS, "No_Finding"))))
    done, refused = watched([str(HERE / "flow.py"), "commands.txt"], tmp_path)
    assert not refused, refused
    assert done.returncode == 0, done.stderr[-4000:]
    ended = [line[0] for line in done.stderr.splitlines() if line[1:3] == ": "]
    assert len(ended) == len(FLOW.splitlines())
    assert ended.count("1") <= 2  # what so small a run fails: its audit, its check
