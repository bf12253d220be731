"""The check of a codec, before a denoiser is trained: as a command, and as the first warning of a run."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from medlt import config as configs
from medlt.classify.classifier import Classifier
from medlt.classify.networks import network
from medlt.cli import app
from medlt.config import RunConfig
from medlt.data.manifest import Manifest
from medlt.data.regions import Regions
from medlt.recipes import check_codec
from medlt.recipes._checks import check_config
from medlt.recipes._codec import MAP, lesion_maps, unmarked
from medlt.report.collect import collect
from medlt.report.summary import cautions
from medlt.types import InputError

Tiny = Callable[[Path], RunConfig]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs of this file."""
    return tmp_path_factory.mktemp("codecs")


@pytest.fixture(scope="module")
def checked(place: Path, tiny: Tiny) -> check_codec.Checked:
    """The check of a codec of eight training steps, and of the others."""
    return check_codec.main(tiny(place / "run"), try_others=True)


def test_a_codec_of_eight_steps_loses_findings_and_the_identity_none(checked: check_codec.Checked) -> None:
    result, others = checked.result, checked.others
    assert len(result.lost) > 3
    assert list(others) == ["codec.levels: 2", "codec: identity"]
    pixels = others["codec: identity"]
    assert pixels.lost == {}
    assert pixels.table["contrast"].dropna().to_numpy() == pytest.approx(1, abs=1e-6)
    assert pixels.table["auroc_difference"].dropna().abs().max() == 0
    assert (result.table["contrast"] < 0.8).all()
    assert set(result.table["contrast_by"]) == {"twin"}
    assert "No_Finding" not in result.table.index
    assert "codec.levels: 2" in result.sentence()
    assert pixels.advice == ()


def test_the_result_is_written_and_read_from_the_store(
    checked: check_codec.Checked, place: Path, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    folder = checked.folder
    pd.testing.assert_frame_equal(
        pd.read_parquet(folder / "codec_check.parquet"), checked.result.table, check_dtype=False
    )
    listed = pd.read_csv(folder / "codec_check.csv", index_col="finding")
    assert list(listed["status"]) == list(checked.result.table["status"])
    record = json.loads((folder / "codec_check.json").read_text())
    assert record["lost"] == checked.result.lost
    assert record["rule"] == {"contrast": 0.8, "auroc": 0.05, "visible": 0.6}
    summary = json.loads((folder / "run.json").read_text())
    assert summary["codec_check"]["lost"] == checked.result.lost
    (used,) = [name for name in summary["artifacts"] if name.startswith("codec/")]
    before = sorted((folder / "artifacts" / "codec_check").glob("*/artifact.json"))
    assert len(before) == 3
    stamps = [path.stat().st_mtime_ns for path in before]
    with caplog.at_level(logging.WARNING):
        again = check_codec.main(tiny(place / "run"))
    assert [path.stat().st_mtime_ns for path in before] == stamps
    pd.testing.assert_frame_equal(again.result.table, checked.result.table)
    (line,) = [one.getMessage() for one in caplog.records if "the codec loses" in one.getMessage()]
    assert all(name in line for name in checked.result.lost)
    assert "\n" not in line
    assert used in json.loads((folder / "run.json").read_text())["artifacts"]


def test_the_command_prints_one_object_and_exits_1(checked: check_codec.Checked, place: Path, tiny: Tiny) -> None:
    config = place / "tiny.yaml"
    config.write_text(configs.dump(tiny(place / "run"), place))
    done = CliRunner().invoke(app, ["check", "codec", str(config), "--json"])
    assert done.exit_code == 1
    result = json.loads(done.stdout)
    assert result["lost"] == checked.result.lost
    assert [row["finding"] for row in result["findings"]] == list(checked.result.table.index)
    assert done.stderr.count("the codec loses") == 1
    table = CliRunner().invoke(app, ["check", "codec", str(config), "-q"])
    assert table.exit_code == 1
    assert all(name in table.stdout for name in checked.result.table.index)


def test_a_run_names_lost_findings_and_so_does_its_report(finished: Path) -> None:
    lost = json.loads((finished / "run.json").read_text())["codec_check"]["lost"]
    assert lost
    assert (finished / "codec_check.csv").is_file()
    assert "the codec loses" in (finished / "run.log").read_text()
    (caution,) = [one for one in cautions(collect(finished)) if "codec" in one]
    assert all(name in caution and reason in caution for name, reason in lost.items())


def test_what_decides_the_numbers_names_them(checked: check_codec.Checked) -> None:
    """Three codecs, three artifacts: the digest of the codec is part of the key."""
    tables = [one.table for one in (checked.result, *checked.others.values())]
    assert len({table["contrast"].iloc[0] for table in tables}) == 3


PRIVATE = {"size": 32, "data": {"kind": "phantom"}, "method": "noise", "codec": {"kind": "train"},
           "privacy": {"epsilon": 8, "delta": 1e-5, "patients": 360, "findings": ["Mass"]}}  # fmt: skip


@pytest.mark.parametrize("weight", ["perceptual_weight", "lesion_weight"])
def test_a_private_codec_takes_no_classifier_and_no_masks(weight: str, tmp_path: Path) -> None:
    """Neither is in the ledger."""
    codec = {"kind": "train", weight: 0.1}
    with pytest.raises(InputError, match=r"codec\.perceptual_weight and codec\.lesion_weight need"):
        check_config(configs.parse({**PRIVATE, "codec": codec, "output_dir": str(tmp_path)}))
    check_config(configs.parse({**PRIVATE, "codec": {"kind": "train", "edge": 1.0}, "output_dir": str(tmp_path)}))


def test_a_private_run_without_verifiers_is_not_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no verifier and no masks"):
        check_codec.main(configs.parse({**PRIVATE, "output_dir": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()


def boxed() -> SimpleNamespace:
    """Three images of two findings; one positive has boxes, one has none, one lesion is unknown."""
    rows = pd.DataFrame(
        {"path": ["a.png", "b.png", "c.png"], "patient_id": ["a", "b", "c"], "split": "train", "view": "PA",
         "Mass": [1.0, 1.0, 0.0], "Nodule": [0.0, 0.0, np.nan], "box_Mass": [[0.25, 0.5, 0.5, 1.0], None, None]},
        index=pd.Index(["a", "b", "c"], name="uid"),
    )  # fmt: skip
    manifest = Manifest(rows, ("Mass", "Nodule"), Path())
    images = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0)).mul(255).to(torch.uint8)
    return SimpleNamespace(
        train=manifest, manifest=manifest, findings=("Mass", "Nodule"), regions=Regions.of(manifest),
        images=lambda part, size, uids: images[[list(rows.index).index(uid) for uid in uids]],
    )  # fmt: skip


def test_lesion_maps_are_boxes_where_there_are_any_and_evidence_elsewhere() -> None:
    cohort: Any = boxed()
    run: Any = SimpleNamespace(config=SimpleNamespace(size=64))
    assert unmarked(cohort) == [("b", "Mass")]
    bare = lesion_maps(run, cohort, None)
    assert bare.shape == (3, 1, MAP, MAP)
    expected = torch.zeros(MAP, MAP, dtype=torch.uint8)
    expected[MAP // 2 :, MAP // 4 : MAP // 2] = 255
    assert torch.equal(bare[0, 0], expected)
    assert bare[1:].max() == 0
    classifier = Classifier(network("small", 2, seed=3), 64, {})
    seen = lesion_maps(run, cohort, classifier)
    assert torch.equal(seen[0], bare[0])
    assert seen[1].max() == 255
    assert seen[1].float().std() > 0
    assert seen[2].max() == 0  # nothing positive


@pytest.mark.parametrize("kind", ["identity", "folder"])
def test_the_advice_follows_the_config(kind: str) -> None:
    """Nothing keeps more than pixels, and Stable Diffusion has no pixels to choose."""
    from medlt.recipes._codec_check import advice

    tree: dict[str, Any] = {"output_dir": "run", "data": {"kind": "phantom"}, "size": 64,
                            "codec": {"kind": kind, **({"path": "vae"} if kind == "folder" else {})}}  # fmt: skip
    expected = () if kind == "identity" else ("size: 128", "codec: identity (loses nothing)")
    assert advice(configs.parse(tree)) == expected
    if kind == "folder":
        stable = {"kind": "stable-diffusion", "model": {"kind": "folder", "path": "sd"}}
        assert advice(configs.parse({**tree, "denoiser": stable})) == ("size: 128",)


@pytest.mark.real_data
def test_taesd_is_checked_on_real_radiographs(real_data: Path, tmp_path: Path) -> None:
    """By the boxes that radiologists drew; the identity, on the same lesions, keeps all of them."""
    findings = ["Atelectasis", "Cardiomegaly", "Effusion", "Mass", "Nodule", "Pneumonia", "Pneumothorax", "No_Finding"]
    tree = {
        "output_dir": str(tmp_path / "run"), "size": 64, "threads": 1,
        "data": {"kind": "csv", "table": str(real_data / "nih14" / "labels.csv"), "uid": "image_id",
                 "train_flag": "lt_train", "findings": findings,
                 "boxes": str(real_data / "labels_only" / "BBox_List_2017.csv.gz")},
        "codec": {"kind": "folder", "path": str(real_data / "weights" / "taesd_diffusers")},
        "targets": {"tail_below": 100, "head_above": 200, "count": 120},
        "checks": {"folds": 2}, "classifier": {"size": 64, "steps": 20, "evaluate_every": 20},
    }  # fmt: skip
    checked = check_codec.main(configs.parse(tree), try_others=True)
    table = checked.result.table
    boxes = table[table["contrast_by"] == "ring"]
    assert len(boxes) >= 3
    assert boxes["lesions"].between(1, 12).all()
    assert boxes["contrast"][boxes["lesions"] >= 3].between(0.2, 1.3).all()
    assert table["auroc_real"].notna().sum() >= 5
    assert (table["auroc_difference"].abs() < 0.3).all()
    pixels = checked.others["codec: identity"].table
    assert pixels.loc[boxes.index, "contrast"].to_numpy() == pytest.approx(1, abs=1e-6)
