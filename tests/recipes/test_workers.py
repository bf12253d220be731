"""Images made in several processes: the bytes of one process, also after some shards are lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from medlt.config import RunConfig, parse
from medlt.recipes import _publish
from medlt.recipes.augment import main as augment
from medlt.types import InputError

Tiny = Callable[[Path], RunConfig]
METHODS: dict[str, dict[str, Any]] = {
    "fusion": {"num_inference_steps": 10, "strength": 0.2, "localise": {"networks": 2, "steps": 4, "code_steps": 4}},
    "recompose": {"localise": {"networks": 2, "steps": 4, "code_steps": 4}},
    "longtail": {
        "num_inference_steps": 4,
        "guidance": [{"kind": "longtail", "every": 1, "window": [0.0, 1.0], "weight": 0.02}],
    },
}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_publish, "SLOTS", 1)


def config(tiny: Tiny, out: Path, method: str, **changes: Any) -> RunConfig:
    given = tiny(out).model_dump(mode="json", exclude={"method", "checks"})
    checks = {"folds": 2, "verifier_quantile": 0.01, "near_copy": None}
    return parse({**given, "method": {"kind": method, **METHODS[method]}, "checks": checks, "threads": 1, **changes})


def contents(run: Path) -> dict[str, Any]:
    """What a run made: bytes of every image, the id, and the tables."""
    images = {file.name: file.read_bytes() for file in (run / "images").glob("*.png")}
    tables = {name: pd.read_parquet(run / f"{name}.parquet").to_csv() for name in ("plan", "checks")}
    return {"images": images, "id": json.loads((run / "run.json").read_text())["id"], **tables}


@pytest.mark.parametrize(
    "method", ["fusion", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "fusion")]
)
def test_two_processes_make_the_bytes_of_one(method: str, tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    runs = [
        augment(config(tiny, tmp_path / str(workers), method, artifacts_dir=str(trained), workers=workers))
        for workers in (1, 2)
    ]
    one, two = map(contents, runs)
    assert len(one["images"]) > 2
    assert one == two
    shards = sorted((runs[1] / "stages" / "shards").iterdir())
    assert len([shard for shard in shards if shard.is_dir()]) > 2
    shutil.rmtree(next(shard for shard in shards if shard.is_dir()))
    augment(config(tiny, tmp_path / "2", method, artifacts_dir=str(trained), workers=1))
    assert contents(runs[1]) == one


def test_a_private_run_works_in_one_process(private: Callable[..., RunConfig], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="workers: a private run makes its images in one process; remove workers"):
        private(tmp_path / "run", workers=2)
