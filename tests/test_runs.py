from pathlib import Path

import pytest

from medlt.config import RunConfig, parse
from medlt.runs import Run, versions
from medlt.types import InputError


def config(out: Path, **more: object) -> RunConfig:
    data = {"kind": "csv", "table": "t.csv", "findings": ["Mass"]}
    return parse({"out": str(out), "data": data, "codec": {"kind": "train"}, **more})


def test_the_same_config_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    Run(tmp_path / "r", config(tmp_path / "r"))
    Run(tmp_path / "r", config(tmp_path / "r"))
    with pytest.raises(InputError, match=r"seed: 0.*seed: 1"):
        Run(tmp_path / "r", config(tmp_path / "r", seed=1))


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not a run folder"):
        Run(tmp_path, config(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_run_json_merges_and_seconds_add_up(tmp_path: Path) -> None:
    run = Run(tmp_path / "r", config(tmp_path / "r"))
    run.record(counts={"real": 5})
    run.record(counts={"kept": 2}, seconds={"codec": 3.0})
    with run.stage("codec") as folder:
        assert folder == run.folder / "stages" / "codec"
    told = run.told()
    assert told["counts"] == {"real": 5, "kept": 2}
    assert told["seconds"]["codec"] >= 3.0
    assert told["peak_rss_mb"] > 1
    assert told["versions"] == versions()


def test_an_interrupted_stage_still_tells_its_time(tmp_path: Path) -> None:
    run = Run(tmp_path / "r", config(tmp_path / "r"))
    with pytest.raises(RuntimeError), run.stage("codec"):
        raise RuntimeError
    assert "codec" in run.told()["seconds"]
