"""Every method from a config: what a run leaves, what runs share, empty slots tried again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from medlt.config import RunConfig, dump, load_config, parse
from medlt.data.manifest import Manifest
from medlt.recipes.augment import main as augment
from medlt.recipes.run import main
from medlt.recipes.train import main as train
from medlt.types import InputError, Synthesizer

Tiny = Callable[[Path], RunConfig]
Method = Callable[[RunConfig], Synthesizer]
BRIEF: dict[str, dict[str, Any]] = {
    "diffult": {"num_inference_steps": 3, "in_band_loss": {"share": 1.0}},
    "minority": {"num_inference_steps": 4, "guidance": [{"kind": "minority", "every": 1, "window": [0.0, 1.0]}]},
    "longtail": {"num_inference_steps": 4, "guidance": [{"kind": "longtail", "every": 1, "window": [0.0, 1.0]}]},
}


def of(tiny: Tiny, out: Path, recipe: str, **changes: Any) -> RunConfig:
    """The tiny config as a recipe of another method."""
    told = tiny(out).model_dump(mode="json", exclude={"method", "checks"})
    checks = {"folds": 2, "verifier_quantile": 0.01, **({"in_band": {"limit": 1e6}} if recipe == "diffult" else {})}
    return parse({**told, "method": {"kind": recipe, **BRIEF[recipe]}, "checks": checks, **changes})


@pytest.mark.parametrize("recipe", BRIEF)
def test_a_run_leaves_what_the_contract_says(recipe: str, tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    config = of(tiny, tmp_path / "run", recipe, artifacts_dir=str(trained))
    run = augment(config)
    names = "config.yaml run.json manifest.parquet plan.parquet checks.parquet quality.parquet report.html grid.png"
    assert [name for name in names.split() if not (run / name).is_file()] == []
    assert not (run / "verdict.json").exists()
    told, plan = json.loads((run / "run.json").read_text()), pd.read_parquet(run / "plan.parquet")
    manifest = Manifest.read(run / "manifest.parquet")
    manifest.check_files()
    made = manifest.rows[manifest.rows["synthetic"]]
    assert told["counts"]["kept"] == len(made) > 0
    assert told["counts"]["planned"] == len(plan)
    assert (made["split"] == "train").all()
    assert (made["method"] == recipe).all()
    train = manifest.rows.query("split == 'train' and not synthetic")
    assert plan["label_source"].isin(train.index).all()
    page = (run / "report.html").read_text()
    assert ('id="introspection"' in page) == (recipe == "longtail")
    real = manifest.rows.index[~manifest.rows["synthetic"]]
    assert [uid for uid in real if uid in (run / "report.json").read_text()] == []
    shown = {uid for uid in real if uid in page}
    if recipe == "longtail":
        table, gallery = (pd.read_parquet(run / f"introspection{part}.parquet") for part in ("", "_gallery"))
        assert {"finding", "view", "nearest real"} <= set(table["attribute"])
        assert set(gallery.index) <= set(made.index)
        assert gallery["nearest"].isin(train.index).all()
        assert shown == set(gallery["nearest"])  # each beside its own picture
        assert all((run / file).is_file() for file in gallery["file"])
    else:
        assert shown == set()
    again = pd.read_parquet(run / "rejected_images.parquet")
    assert set(again.index) <= set(plan.index) - set(made.index)
    assert len(again) > 0
    assert all(f'data-uid="{uid}"' in page for uid in again.index)
    before = {p: p.read_bytes() for p in (run / "images").glob("*.png")}
    augment(config)
    assert {p: p.read_bytes() for p in (run / "images").glob("*.png")} == before


def test_the_whole_recipe_ends_with_a_verdict_against_duplicated_real_images(
    tiny: Tiny, trained: Path, tmp_path: Path
) -> None:
    run = main(of(tiny, tmp_path / "run", "minority", artifacts_dir=str(trained)))
    verdict = json.loads((run / "verdict.json").read_text())
    assert verdict["comparison"]["arm"] == "minority"
    assert verdict["comparison"]["control"] == "duplicated for minority"


def test_runs_of_one_collection_share_what_is_learnt(
    tiny: Tiny, trained: Path, tmp_path: Path, method_of: Method
) -> None:
    """A run in the store of a fusion run trains no denoiser, and makes the images of a run that trains all alone."""
    first = of(tiny, tmp_path / "a", "minority", artifacts_dir=str(trained))
    stages: list[str] = []
    augment(first, lambda stage, done, total: stages.append(stage))
    assert not {"codec", "denoiser", "verifier 0", "verifier 1"} & set(stages)
    weights = {p: p.read_bytes() for p in trained.rglob("*.safetensors")}
    alone = augment(of(tiny, tmp_path / "b", "minority"))
    again: Any = method_of(of(tiny, tmp_path / "c", "longtail", artifacts_dir=str(trained)))
    assert {p: p.read_bytes() for p in weights} == weights
    own: Any = method_of(first)
    assert again.backbone.digest == own.backbone.digest
    images = [{p.name: p.read_bytes() for p in (place / "images").glob("*.png")} for place in (tmp_path / "a", alone)]
    assert images[0] == images[1] != {}


def test_empty_slots_are_tried_again_with_other_candidates(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    """With a judge that half of the real positives do not convince some slots stay empty at first."""
    targets = {"tail_below": 8, "head_above": 20, "count": 10, "max_per_finding": 3, "num_candidates": 2}
    runs = []
    for retries in (0, 2):
        changed = {"targets": {**targets, "max_retries": retries}, "checks": {"folds": 2, "verifier_quantile": 0.6}}
        config = of(tiny, tmp_path / str(retries), "minority", artifacts_dir=str(trained), **changed)
        runs.append(augment(config))
    once, more = (pd.read_parquet(run / "plan.parquet") for run in runs)
    made = [Manifest.read(run / "manifest.parquet").rows.query("synthetic") for run in runs]
    filled = {(row.finding, row.slot) for row in made[0].itertuples()}
    empty = {(row.finding, row.slot) for row in once.itertuples()} - filled
    assert empty
    pd.testing.assert_frame_equal(more.iloc[: len(once)], once)
    again = more.iloc[len(once) :]
    assert {(row.finding, row.slot) for row in again.query("candidate < 4").itertuples()} == empty
    assert set(again["candidate"]) <= {2, 3, 4, 5}
    assert set(made[0].index) <= set(made[1].index)
    augment(config)
    pd.testing.assert_frame_equal(pd.read_parquet(runs[1] / "plan.parquet"), more)
    assert not made[1].duplicated(["finding", "slot"]).any()


def test_another_method_takes_its_own_defaults_folder_and_what_was_learnt(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(dump(of(tiny, tmp_path / "run", "minority")))
    changed = load_config(path, method="longtail")
    assert changed.method.kind == "longtail"
    assert changed.output_dir == tmp_path / "run-longtail"
    assert changed.artifacts_dir == tmp_path / "run" / "artifacts"
    assert load_config(path, [f"output_dir={tmp_path / 'mine'}"], "longtail").output_dir == tmp_path / "mine"
    assert load_config(path, method="minority") == load_config(path)
    with pytest.raises(InputError, match="method"):
        load_config(path, method="guessing")


def test_diffult_drops_what_is_out_of_band_unless_told_otherwise() -> None:
    tree = {"output_dir": "x", "method": "diffult", "data": {"kind": "phantom"}, "codec": {"kind": "train"}}
    assert parse(tree).checks.in_band is not None
    assert parse({**tree, "checks": {"in_band": None}}).checks.in_band is None
    assert parse({**tree, "method": "minority"}).checks.in_band is None
    assert yaml.safe_load(dump(parse(tree)))["checks"]["in_band"]["form"] == "neighbours"


GUIDE = {"kind": "minority", "window": [0.3, 0.8]}
NEVER: dict[str, tuple[dict[str, Any], str]] = {
    "fusion's few steps": (
        {"kind": "fusion", "num_inference_steps": 75, "strength": 5 / 75, "guidance": [GUIDE]},
        "none of the sampler's 5 steps",
    ),
    "a narrow window": (
        {"kind": "noise", "num_inference_steps": 4, "guidance": [{**GUIDE, "window": [0.5, 0.51]}]},
        "widen the window",
    ),
    "a boost without drawn noise": (
        {"kind": "noise", "scheduler": "ddim", "initial_noise_scale": 2.0},
        "a scheduler that draws noise, such as ddpm",
    ),
}


@pytest.mark.parametrize("name", NEVER)
def test_what_could_never_work_is_refused_before_anything_is_written(name: str, tiny: Tiny, tmp_path: Path) -> None:
    method, said = NEVER[name]
    told = tiny(tmp_path / "run").model_dump(mode="json", exclude={"method"})
    config = parse({**told, "method": method})
    with pytest.raises(InputError, match=said):
        augment(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("part", "kind"), [("epistemic", "epistemic"), ("denoiser", "denoiser")])
def test_a_part_trained_by_itself_is_the_one_a_run_finds(
    part: str, kind: str, tiny: Tiny, trained: Path, tmp_path: Path
) -> None:
    """In the folder that the runs above share nothing is learnt anew."""
    config = of(tiny, tmp_path / "run", "longtail", artifacts_dir=str(trained))
    train(config, part)
    made = {p.parent.name for p in (trained / kind).glob("*/artifact.json")}
    stages: list[str] = []
    augment(config, lambda stage, done, total: stages.append(stage))
    assert {p.parent.name for p in (trained / kind).glob("*/artifact.json")} == made != set()
    assert not {"codec", "denoiser", "epistemic head"} & set(stages)


def test_a_denoiser_may_be_trained_on_and_both_lengths_are_kept(
    tiny: Tiny, trained: Path, tmp_path: Path, method_of: Method
) -> None:
    """With a constant rate 6 steps are the beginning of 9; equal bytes whether in one go or two."""
    longer = {"width": 8, "steps": 9, "batch_size": 8, "checkpoint_every": 3}
    without = shutil.ignore_patterns("denoiser")
    shared, alone = (shutil.copytree(trained, tmp_path / name, ignore=without) for name in ("shared", "alone"))
    short: Any = method_of(of(tiny, tmp_path / "a", "minority", artifacts_dir=str(shared)))
    steps: list[int] = []

    def count(stage: str, done: int, total: int) -> None:
        if stage == "denoiser":
            steps.append(done)

    augment(of(tiny, tmp_path / "b", "minority", artifacts_dir=str(shared), denoiser=longer), count)
    assert steps == [7, 8, 9]
    two: Any = method_of(of(tiny, tmp_path / "b", "minority", artifacts_dir=str(shared), denoiser=longer))
    one: Any = method_of(of(tiny, tmp_path / "c", "minority", artifacts_dir=str(alone), denoiser=longer))
    assert two.backbone.digest == one.backbone.digest != short.backbone.digest
    again: Any = method_of(of(tiny, tmp_path / "a", "minority", artifacts_dir=str(shared)))
    assert again.backbone.digest == short.backbone.digest
