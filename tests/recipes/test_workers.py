"""Images made in several processes: the bytes of one process, also after some shards are lost."""

import json
import multiprocessing
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from medlt.config import EngineConfig, RunConfig, parse
from medlt.recipes import _publish, _workers
from medlt.recipes.augment import main as augment
from medlt.store import Store
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
    shards = Store(runs[1] / "stages").folders("shards")
    assert len(shards) > 2
    shutil.rmtree(shards[0])
    augment(config(tiny, tmp_path / "2", method, artifacts_dir=str(trained), workers=1))
    assert contents(runs[1]) == one


def test_shards_of_a_killed_worker_are_made_again(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    wanted = contents(augment(config(tiny, tmp_path / "1", "fusion", artifacts_dir=str(trained))))
    killed: list[int] = []

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "images" and 0 < done < total and not killed:
            worker = multiprocessing.active_children()[0]
            killed.append(worker.pid or 0)
            worker.kill()

    run = augment(config(tiny, tmp_path / "2", "fusion", artifacts_dir=str(trained), workers=2), kill)
    assert killed
    assert contents(run) == wanted


@pytest.mark.parametrize("answer", [False, True])  # died; wrote to a folder that is not shared
def test_shards_that_never_appear_are_one_line(
    tiny: Tiny, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    def dying(*given: Any, **settings: Any) -> Iterator[tuple[pd.DataFrame, bool]]:
        calls.append(1)
        return ((rows, answer) for rows in given[3])

    calls: list[int] = []
    monkeypatch.setattr(_workers, "run_tasks", dying)
    with pytest.raises(InputError, match=r"shard\(s\) are missing after 3 tries.*use fewer.*is not shared"):
        augment(config(tiny, tmp_path / "run", "fusion", artifacts_dir=str(trained), workers=2))
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "ray"}, "engine: ray is not installed"),
        ({"kind": "ray", "gpus": 64}, "gpus: 64 requested, but CUDA_VISIBLE_DEVICES has 2"),
        ({"gpus": 64}, "gpus: 64 requested, but CUDA_VISIBLE_DEVICES has 2"),
    ],
)
def test_an_engine_that_cannot_start_ends_the_run_before_any_training(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], words: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    one = config(tiny, tmp_path / "run", "fusion", artifacts_dir=str(tmp_path / "artifacts"), workers=2)
    one = one.model_copy(update={"engine": EngineConfig(**given)})
    with pytest.raises(InputError, match=words):
        augment(one)
    assert not list((tmp_path / "artifacts").rglob("*.safetensors"))


@pytest.mark.parametrize("changes", [{"workers": 2}, {"engine": "ray"}])
def test_a_private_run_works_in_one_process(
    private: Callable[..., RunConfig], tmp_path: Path, changes: dict[str, Any]
) -> None:
    key = next(iter(changes))
    with pytest.raises(InputError, match=f"{key}: a private run makes its images in one process; remove {key}"):
        private(tmp_path / "run", **changes)


@pytest.mark.parametrize(
    ("given", "engine"),
    [
        ("ray", {"kind": "ray", "gpus": 0, "address": None}),
        ({"kind": "ray", "address": "auto"}, {"kind": "ray", "gpus": 0, "address": "auto"}),
    ],
)
def test_an_engine_is_a_name_or_a_section(tiny: Tiny, tmp_path: Path, given: Any, engine: dict[str, Any]) -> None:
    assert config(tiny, tmp_path, "fusion", engine=given).engine.model_dump() == engine


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("spark", "engine: 'spark' is not valid; choose one of local, ray"),
        ({"address": "auto"}, "engine.address is that of a Ray cluster"),
        ({"gpus": 2}, "engine.gpus needs `device: cuda`"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused(tiny: Tiny, tmp_path: Path, given: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        config(tiny, tmp_path, "fusion", engine=given)
