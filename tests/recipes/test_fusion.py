"""The fusion recipe end to end: contract files, equal bytes, resume, replay of one row."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medlt.config import RunConfig
from medlt.data.manifest import Manifest
from medlt.recipes.run import main
from medlt.types import Synthesizer
from medlt.writer import to_uint8

Tiny = Callable[[Path], RunConfig]
Method = Callable[[RunConfig], Synthesizer]
CONTRACT = (
    "config.yaml run.json run.log manifest.parquet plan.parquet checks.parquet failures.csv "
    "sparse_code_metrics.parquet panels.parquet scores.parquet comparisons.parquet verdict.json report.html "
    "images/metadata.csv MODEL_CARD.md DATASHEET.md"
).split()


class Killed(BaseException):
    """What a kill looks like from inside: nothing after it runs."""


def stop_at(stage: str, done: int) -> Callable[[str, int, int], None]:
    def progress(name: str, at: int, total: int) -> None:
        if name == stage and at >= done:
            raise Killed

    return progress


def content(run: Path) -> dict[str, bytes]:
    """Every file but those that hold times: run.json, run.log, locks, and the index of files."""
    files = sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file())
    timed = {"run.json", "run.log"}
    kept = [
        name for name in files if name not in timed and not name.endswith(".lock") and "artifacts/pixels/" not in name
    ]
    return {name: (run / name).read_bytes() for name in kept}


def test_a_run_leaves_what_the_contract_says(finished: Path) -> None:
    assert [name for name in CONTRACT if not (finished / name).is_file()] == []
    told = json.loads((finished / "run.json").read_text())
    manifest = Manifest.read(finished / "manifest.parquet")
    manifest.check_files()
    made = manifest.rows[manifest.rows["synthetic"]]
    plan = pd.read_parquet(finished / "plan.parquet")
    assert told["counts"]["kept"] == len(made) > 0
    assert told["counts"]["planned"] == len(plan) == told["counts"]["kept"] + told["counts"]["rejected"]
    assert told["counts"]["real"] == len(manifest.rows) - len(made)
    assert set(told["digests"]) == {"manifest", "codec", "sparse", "localise", "denoiser"}
    assert (made["split"] == "train").all()


def test_parents_are_train_rows_of_one_fold_and_two_patients(finished: Path) -> None:
    rows = Manifest.read(finished / "manifest.parquet").rows
    plan = pd.read_parquet(finished / "plan.parquet")
    for parent in ("tail_parent", "head_parent"):
        assert (rows.loc[plan[parent], "split"] == "train").all()
    patients = [rows.loc[plan[parent], "patient_id"].to_numpy() for parent in ("tail_parent", "head_parent")]
    assert (patients[0] != patients[1]).all()


def test_every_candidate_is_kept_or_has_a_row_that_says_why(finished: Path) -> None:
    plan = pd.read_parquet(finished / "plan.parquet")
    said = pd.read_parquet(finished / "checks.parquet")
    kept = set(pd.read_parquet(finished / "manifest.parquet").index) & set(plan.index)
    failed = set(said.loc[~said["passed"], "uid"])
    assert kept | failed == set(plan.index)
    assert kept & failed == set()
    assert (said.loc[~said["passed"], "reason"] != "").all()


def test_the_control_and_the_reference_are_in_the_table(finished: Path) -> None:
    table = pd.read_parquet(finished / "comparisons.parquet")
    pairs = set(zip(table["arm"], table["control"], strict=True))
    assert {("fusion", "duplicated for fusion"), ("fusion", "real")} <= pairs
    assert set(pd.read_parquet(finished / "scores.parquet")["seed"]) == {0, 1}
    verdict = json.loads((finished / "verdict.json").read_text())
    assert verdict["verdict"] in ("helps", "no evidence", "harms", "cannot see")
    assert " simulated patients" in verdict["sentence"]  # the rows are phantoms


def test_the_same_seed_gives_the_same_bytes(
    finished: Path, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(tiny(Path("run")))
    first, second = content(finished), content(tmp_path / "run")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


MOMENTS = [("denoiser", 5), ("verifier 1", 4), ("images", 1), ("arms", 5)]
MORE_MOMENTS = [pytest.param(moment, marks=pytest.mark.slow) for moment in (("codec", 5), ("iterated learning", 1))]

FIRST = ("pixels", "images-32", "codec", "latents")
LATER = (*FIRST, "sparse", "code_classifier", "denoiser")
BEFORE = {"denoiser": FIRST, "verifier 1": FIRST, "images": LATER, "arms": LATER}
"""Kinds of artifacts that a run has finished by a moment. They are copied; other moments begin with an empty folder."""


@pytest.mark.parametrize("moment", [*MOMENTS, *MORE_MOMENTS], ids=lambda m: m[0])
def test_a_killed_run_goes_on_to_the_same_bytes(
    finished: Path, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, moment: tuple[str, int]
) -> None:
    monkeypatch.chdir(tmp_path)
    if (before := BEFORE.get(moment[0])) is not None:
        for part in ("stages/data", *(f"artifacts/{kind}" for kind in before)):
            shutil.copytree(finished / part, Path("run") / part)
        shutil.copy(finished / "config.yaml", "run")
    with pytest.raises(Killed):
        main(tiny(Path("run")), stop_at(*moment))
    main(tiny(Path("run")))
    whole, resumed = content(finished), content(tmp_path / "run")
    assert [name for name in whole if whole[name] != resumed.get(name)] == []


def test_one_image_remade_from_its_plan_row_is_the_one_in_the_set(
    finished: Path, tiny: Tiny, method_of: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.parent)
    plan = pd.read_parquet("run/plan.parquet")
    kept = [path.stem for path in sorted(Path("run/images").glob("*.png"))][:3]
    method = method_of(tiny(Path("run")))
    for uid in kept:
        (batch,) = method.run(plan.loc[[uid]])
        stored = np.asarray(Image.open(f"run/images/{uid}.png"))
        np.testing.assert_array_equal(to_uint8(batch.images)[0], stored)


def test_images_are_real_to_the_bit_outside_the_pixels_that_moved(
    finished: Path, tiny: Tiny, method_of: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Difference decoding is the default: the saved bytes of the head image stay where the soft mask is 0."""
    monkeypatch.chdir(finished.parent)
    plan = pd.read_parquet("run/plan.parquet")
    kept = [path.stem for path in sorted(Path("run/images").glob("*.png"))]
    method: Any = method_of(tiny(Path("run")))
    rows = plan.loc[kept]
    soft = method.difference.soft(method._fuse(rows).omega, 32)[:, 0].numpy()
    real = to_uint8(method.difference.pixels(rows["head_parent"].tolist()))
    stored = np.stack([np.asarray(Image.open(f"run/images/{uid}.png")) for uid in kept])
    assert 0.1 < (soft == 0).mean() < 1
    np.testing.assert_array_equal(stored[soft == 0], real[soft == 0])
    assert (stored != real).any()
