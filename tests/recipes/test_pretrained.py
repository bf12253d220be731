"""Pretrained weights in whole recipes: an experiment on a frozen body, and refusals before anything is written."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from medlt import config as configs
from medlt.config import EvaluateConfig, RunConfig
from medlt.data.phantom import FINDINGS
from medlt.recipes import augment, evaluate
from medlt.recipes._checks import check_config
from medlt.types import InputError

published = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "classify" / "weights.py")))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(published.write_model("vit", tmp_path_factory.mktemp("weights") / "vit"))


def experiment(finished: Path, out: Path, classifier: dict[str, Any], **changes: Any) -> EvaluateConfig:
    shared = {"steps": 4, "batch_size": 8, "evaluate_every": 2}
    tree = {
        "output_dir": str(out),
        "seed": 3,
        "data": {"kind": "manifest", "path": str(finished / "stages" / "data" / "manifest.parquet")},
        "targets": {"tail_below": 8, "head_above": 20},
        "classifier": shared | classifier,
        "evaluation_classifier": {"size": 32, **shared},
        "evaluation": {"seeds": 2, "n_bootstrap": 100, "steps": 4, "synthetic_fraction": 0.2, "synthetic_weight": 0.3},
        "sources": {"fusion": {"run": str(finished)}},
        "arms": {"fusion": {"source": "fusion"}, "focal": {"loss": "focal"}},
    }
    return EvaluateConfig.model_validate({**tree, **changes})


def test_an_experiment_on_a_frozen_body_gives_a_verdict_and_keeps_heads_alone(
    finished: Path, tmp_path: Path, vit: Path
) -> None:
    chosen = {"network": "folder", "weights": str(vit), "frozen": True, "size": 64}
    run = evaluate.main(experiment(finished, tmp_path / "run", chosen))
    arms = pd.read_parquet(run / "arms.parquet")
    assert {"real", "fusion", "focal"} <= set(arms["arm"])
    assert set(arms["augment"]) == {"none"}
    heads = [one.stat().st_size for one in run.glob("artifacts/classifier/*/classifier.safetensors")]
    assert min(heads) < 10_000 < (vit / "model.safetensors").stat().st_size
    recorded = "".join(file.read_text() for file in run.glob("artifacts/*/*/*.json"))
    assert str(vit) not in recorded


@pytest.mark.parametrize(
    ("classifier", "problem"),
    [
        ({"network": "folder", "weights": "none", "size": 64}, "classifier.weights: .*none is no folder"),
        ({"network": "resnet50", "weights": "none.safetensors"}, "classifier.weights: .* does not exist"),
        ({"network": "folder", "weights": "VIT", "size": 72}, "classifier.size: 72 is no multiple of 16"),
        ({"network": "folder", "weights": "VIT", "size": 64, "frozen": True, "augment": "light"}, "augment: none"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_folder_is_made(
    finished: Path, tmp_path: Path, vit: Path, classifier: dict[str, Any], problem: str
) -> None:
    given = {name: str(vit) if value == "VIT" else value for name, value in classifier.items()}
    with pytest.raises(InputError, match=problem) as error:
        evaluate.main(experiment(finished, tmp_path / "run", given))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_section_of_bad_weights_is_named(finished: Path, tmp_path: Path, vit: Path) -> None:
    bad = {"network": "folder", "weights": str(vit), "size": 72}
    with pytest.raises(InputError, match=r"^evaluation_classifier\.size: 72"):
        evaluate.main(experiment(finished, tmp_path / "run", {"size": 32}, evaluation_classifier=bad))


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"network": "folder"}, r"^config: classifier: network: folder needs pretrained weights"),
        ({"frozen": True}, r"^config: classifier: frozen: true needs pretrained weights"),
        (
            {"network": "small", "weights": "w.safetensors"},
            r"^config: classifier: no weights are published for network small",
        ),
        ({"network": "resnet51"}, r"^config: classifier\.network: 'resnet51' is not valid; did you mean 'resnet50'\?"),
        ({"precision": "fp16"}, r"^config: classifier\.precision: "),
    ],
)
def test_sections_that_contradict_themselves_are_refused_when_they_are_read(
    tmp_path: Path, section: dict[str, Any], problem: str
) -> None:
    tree = {"output_dir": str(tmp_path), "data": {"kind": "phantom"}, "codec": {"kind": "train"}, "classifier": section}
    with pytest.raises(InputError, match=problem):
        configs.parse(tree)


def test_roles_without_maps_or_privacy_are_refused_with_what_to_write(
    tmp_path: Path, tiny: Callable[[Path], RunConfig], vit: Path
) -> None:
    tree = json.loads(tiny(tmp_path / "run").model_dump_json())
    tree["classifier"] |= {"network": "folder", "weights": str(vit), "size": 64}
    with pytest.raises(
        InputError, match=r"method\.localise\.order: best needs .* write order: \[mask, box, side, code\]"
    ):
        check_config(configs.parse(tree))
    tree["method"]["localise"]["order"] = ["mask", "box", "side", "code"]
    check_config(configs.parse(tree))
    tree["privacy"] = {"epsilon": 8.0, "delta": 1e-3, "patients": 24, "findings": list(FINDINGS)}
    with pytest.raises(InputError, match=r"^privacy: classifier\.weights cannot be trained privately"):
        check_config(configs.parse(tree))


@pytest.mark.slow
def test_images_are_verified_by_a_pretrained_network_and_its_contents_are_in_their_key(
    tmp_path: Path, tiny: Callable[[Path], RunConfig], vit: Path, trained: Path
) -> None:
    tree = json.loads(tiny(tmp_path / "run").model_dump_json())
    tree["classifier"] |= {"network": "folder", "weights": str(vit), "size": 64, "frozen": True}
    tree |= {"evaluation": None, "artifacts_dir": str(trained)}
    tree["method"]["localise"]["order"] = ["mask", "box", "side", "code"]
    run = augment.main(configs.parse(tree))
    assert len(pd.read_parquet(run / "checks.parquet"))
    with pytest.raises(InputError, match="was made by another config"):
        augment.main(configs.parse(tree | {"classifier": tiny(tmp_path).classifier.model_dump()}))
