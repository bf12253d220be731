"""Augment, evaluate, finetune and audit, and what their results say."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

import medlt
from medlt import config as configs
from medlt.api import calls
from medlt.api.experiment import usual
from medlt.config import catalogue
from medlt.training.runtime import silent


def test_a_run_gives_its_images_by_finding(tiny_run: medlt.Run) -> None:
    images = tiny_run.images()
    made = pd.read_parquet(tiny_run.folder / "manifest.parquet").query("synthetic")
    assert len(images) == len(made) > 0
    finding = made["finding"].iloc[0]
    some = tiny_run.images(finding)
    assert set(some.rows.index) == set(made.index[made["finding"] == finding])
    assert all(path.is_file() for path in some)
    pixels = images.pixels(32)
    assert pixels.shape == (len(images), 1, 32, 32)
    assert pixels.dtype == torch.uint8
    np.testing.assert_array_equal(pixels[0, 0].numpy(), np.asarray(Image.open(images.paths[0])))
    assert images.labels().columns.tolist() == list(tiny_run.findings)


def test_an_unknown_finding_is_named_with_the_nearest(tiny_run: medlt.Run) -> None:
    with pytest.raises(medlt.InputError, match=r"'Nodules'.*did you mean.*Nodule"):
        tiny_run.images("Nodules")


def test_a_run_gives_checks_plan_report_and_record(tiny_run: medlt.Run) -> None:
    assert {"check", "uid", "value", "limit", "passed"} <= set(tiny_run.checks)
    assert set(tiny_run.checks["uid"]) == set(tiny_run.plan.index)
    assert "<html" in tiny_run.report.read_text()
    assert tiny_run.record["counts"]["kept"] == len(tiny_run.images())
    assert tiny_run.verdict is None
    assert tiny_run.claim.epsilon is None
    assert isinstance(tiny_run.config, configs.RunConfig)
    assert str(tiny_run.folder) in repr(tiny_run)
    images = tiny_run.images()
    assert repr(images) == f"SyntheticImages({len(images)} images in {str(tiny_run.folder)!r})"
    assert images != tiny_run.images()


def test_the_dataset_holds_real_and_synthetic_rows(tiny_run: medlt.Run) -> None:
    whole, real = tiny_run.dataset(size=48), tiny_run.dataset(size=48, synthetic=False)
    rows = tiny_run.manifest.split("train").rows
    assert len(whole) == len(rows)
    assert len(whole) - len(real) == len(tiny_run.images())
    for index in (0, len(whole) - 1):
        item, row = whole[index], rows.iloc[index]
        assert item["image"].shape == (1, 48, 48)
        assert item["image"].dtype == item["label"].dtype == item["weight"].dtype == torch.float32
        assert 0 <= float(item["image"].min()) <= float(item["image"].max()) <= 1
        np.testing.assert_array_equal(item["label"].numpy(), row[list(tiny_run.findings)].to_numpy(np.float32))
        assert float(item["weight"]) == pytest.approx(row["weight"])
    assert {round(float(whole[i]["weight"]), 4) for i in range(len(whole))} == {1.0, 0.3}
    labels = torch.stack([whole[i]["label"] for i in range(len(whole))])
    assert labels.isnan().any()
    assert len(tiny_run.dataset(split="test")) == int((tiny_run.manifest.rows["split"] == "test").sum())


def test_the_same_call_trains_nothing_and_says_where_it_is(
    tiny_run: medlt.Run,
    tiny_collection: medlt.Collection,
    tiny_settings: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    artifacts = {path: path.stat().st_mtime_ns for path in tiny_run.folder.glob("artifacts/*/*/artifact.json")}
    images = {path.name: path.read_bytes() for path in tiny_run.images()}
    again = medlt.augment(tiny_collection, output_dir=tiny_run.folder, **tiny_settings)
    assert again == tiny_run
    assert {path: path.stat().st_mtime_ns for path in artifacts} == artifacts
    assert {path.name: path.read_bytes() for path in again.images()} == images
    shown = capsys.readouterr()
    assert f"run folder: {tiny_run.folder}" in shown.err
    assert shown.out == ""


def test_other_settings_in_the_same_folder_are_refused(
    tiny_run: medlt.Run, tiny_collection: medlt.Collection, tiny_settings: dict[str, Any]
) -> None:
    with pytest.raises(medlt.InputError, match="another config"):
        medlt.augment(tiny_collection, output_dir=tiny_run.folder, progress=False, **{**tiny_settings, "seed": 4})


@pytest.fixture(scope="module")
def experiment(tiny_run: medlt.Run, tmp_path_factory: pytest.TempPathFactory) -> medlt.Run:
    """An experiment on the tiny run's images."""
    folder = tmp_path_factory.mktemp("experiment") / "verdict"
    return medlt.evaluate(
        tiny_run,
        output_dir=folder,
        progress=False,
        evaluation={"seeds": 2, "n_bootstrap": 100, "steps": 4, "synthetic_fraction": 0.2, "synthetic_weight": 0.3},
        threads=1,
    )


def test_the_verdict_is_that_of_the_file(experiment: medlt.Run) -> None:
    verdict, file = experiment.verdict, json.loads((experiment.folder / "verdict.json").read_text())
    assert verdict is not None
    assert (verdict.verdict, str(verdict)) == (file["verdict"], file["sentence"])
    assert verdict.arm == "noise"
    assert verdict.difference == file["comparison"]["difference"]
    assert verdict.low is not None
    assert verdict.high is not None
    assert verdict.low <= verdict.high
    assert isinstance(experiment.config, configs.EvaluateConfig)


def test_an_experiment_has_no_images_of_its_own(experiment: medlt.Run, tiny_run: medlt.Run) -> None:
    with pytest.raises(medlt.InputError, match="no such table"):
        _ = experiment.checks
    with pytest.raises(medlt.InputError, match="no synthetic images"):
        medlt.evaluate(experiment)
    assert medlt.load(experiment.folder) == experiment


def test_an_experiment_needs_something_to_compare(tiny_collection: medlt.Collection) -> None:
    with pytest.raises(medlt.InputError, match="nothing to compare"):
        medlt.evaluate(tiny_collection)


def test_an_experiment_of_several_runs_and_arms(
    tiny_run: medlt.Run, tiny_collection: medlt.Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_finished", lambda recipe, config, progress: config)
    given: dict[str, Any] = {"output_dir": tmp_path / "verdict", "evaluation.seeds": 5}
    arms: dict[str, dict[str, Any] | None] = {
        "half": {"source": "a", "synthetic_ratio": 0.5},
        "focal": {"loss": "focal"},
    }
    config: Any = medlt.evaluate(tiny_collection, runs={"a": tiny_run, "b": str(tiny_run.folder)}, arms=arms, **given)
    assert {name: source.run for name, source in config.sources.items()} == dict.fromkeys("ab", tiny_run.folder)
    assert config.arms["half"].synthetic_ratio == 0.5
    assert config.arms["focal"].loss == "focal"
    assert config.evaluation.seeds == 5
    assert config.targets == tiny_run.config.targets
    assert config.data.path == tiny_collection.saved(tmp_path)
    config = medlt.evaluate(tiny_run.folder, **given)
    assert {name: arm.source for name, arm in config.arms.items()} == {"noise": "noise"}
    assert config.data.path == tiny_run.folder / "stages" / "data" / "manifest.parquet"
    with pytest.raises(medlt.InputError, match="no source is named 'c'"):
        medlt.evaluate(tiny_collection, runs={"a": tiny_run}, arms={"x": {"source": "c"}}, **given)
    with pytest.raises(medlt.InputError, match="runs="):
        medlt.evaluate(tiny_run, sources={}, **given)


def test_an_audit_of_the_run(tiny_run: medlt.Run) -> None:
    with pytest.raises(medlt.InputError, match=r"no option 'shadows'.*shadow_models"):
        medlt.audit(tiny_run, shadows=3)
    audit = medlt.audit(tiny_run.folder, progress=False, embedding_steps=3)
    assert set(audit.results) == {"name", "passed", "sentence"}
    assert str(audit) == audit.record["conclusion"]
    outcomes = set(audit.results["passed"])
    assert audit.passed is (False if False in outcomes else None if None in outcomes else True)
    assert repr(audit) == f"Audit(passed={audit.passed}, {len(audit.results)} tests)"
    again = tiny_run.audit
    assert again is not None
    pd.testing.assert_frame_equal(again.results, audit.results)


def test_the_options_of_an_audit_are_those_of_its_recipe() -> None:
    from medlt.recipes.audit import AuditOptions

    assert list(calls.AUDIT_OPTIONS) == list(AuditOptions.__dataclass_fields__)


TYPOS = {
    "augment": "medlt.augment(collection, denoiser={'stepz': 3}, output_dir=out)",
    "finetune": "medlt.finetune(collection, stepz=3, output_dir=out)",
    "evaluate": "medlt.evaluate(collection, arms={'a': {'loss': 'focal'}}, stepz=3, output_dir=out)",
    "audit": "medlt.audit(out, stepz=3)",
}


@pytest.mark.parametrize("name", list(TYPOS))
def test_a_typo_is_reported_before_torch_is_imported(
    tiny_collection: medlt.Collection, tmp_path: Path, name: str
) -> None:
    file = tiny_collection.saved(tmp_path)
    code = (
        f"import sys, medlt\ncollection = medlt.Collection.from_manifest({str(file)!r})\n"
        f"out = {str(tmp_path / 'run')!r}\n"
        f"try:\n    {TYPOS[name]}\nexcept medlt.InputError as error:\n"
        "    print('stepz' in str(error), 'torch' in sys.modules, 'monai' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["True", "False", "False"]


def test_finetune_trains_what_augment_then_uses(
    tiny_collection: medlt.Collection, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    folder = tmp_path / "run"
    run = medlt.finetune(
        tiny_collection, output_dir=folder, progress=lambda *counts: seen.append(counts), **tiny_settings
    )
    assert ("denoiser", 6, 6) in seen
    assert len(run.images()) == 0
    assert len(run.manifest.rows) == len(tiny_collection)
    assert run.export("diffusers", tmp_path / "generator").is_dir()
    trained = {path: path.stat().st_mtime_ns for path in folder.glob("artifacts/denoiser/*/artifact.json")}
    assert len(trained) == 1
    filled = medlt.augment(tiny_collection, output_dir=folder, progress=silent, **tiny_settings)
    assert len(filled.images()) > 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("artifacts/denoiser/*/artifact.json")} == trained


def test_finetune_of_a_checkpoint(
    tiny_collection: medlt.Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_finished", lambda recipe, config, progress: config)
    given: dict[str, Any] = {"output_dir": tmp_path / "run", "denoiser": {"rank": 4}, "denoiser.steps": 7}
    config: Any = medlt.finetune(tiny_collection, model=tmp_path, **given)
    assert (config.denoiser.kind, config.denoiser.train) == ("stable-diffusion", "lora")
    assert (config.denoiser.rank, config.denoiser.steps) == (4, 7)
    assert config.denoiser.model.path == config.codec.path == tmp_path
    assert config.method.kind == "noise"


def test_finetune_takes_a_model_once(tiny_collection: medlt.Collection, tmp_path: Path) -> None:
    with pytest.raises(medlt.InputError, match="model is given twice"):
        medlt.finetune(tiny_collection, model=tmp_path, denoiser={"kind": "unet"})


@pytest.mark.parametrize("content", [None, "method: noise\n", "method: [\n"])
def test_load_of_no_run(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(medlt.InputError) as raised:
        medlt.load(tmp_path)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_load_of_a_run_that_was_moved(tiny_run: medlt.Run, tmp_path: Path) -> None:
    (tmp_path / "moved").symlink_to(tiny_run.folder)
    moved = medlt.load(str(tmp_path / "moved"))
    assert moved.config.output_dir == tmp_path / "moved"
    assert len(moved.images()) == len(tiny_run.images())


def test_an_experiment_on_a_small_collection_is_brief_on_a_cpu_alone(tiny_collection: medlt.Collection) -> None:
    shipped = yaml.safe_load(catalogue.path("dicom_folder/quick").read_text())["evaluation"]
    brief = usual(tiny_collection, {}, None)
    assert brief["evaluation"] == shipped
    assert brief["threads"] == 1
    assert "evaluation" not in usual(tiny_collection, {}, "cuda")
