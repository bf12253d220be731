"""From a MIMIC-CXR-JPG folder to a verdict and an export, by the commands of docs/tutorials/mimic-cxr-lt.md.

The configs are those that ship. Overrides make images, networks and steps small, and change nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from medlt.cli import app
from medlt.data.layouts.cxr_lt import FINDINGS_2023, FINDINGS_2024
from medlt.data.layouts.mimic_cxr_lt import FINDINGS
from medlt.data.manifest import Manifest

TASK_1 = {*FINDINGS_2024} - {"Bulla", "Cardiomyopathy", "Hilum", "Osteopenia", "Scoliosis"}
CLASSIFIER = {"network": "small", "size": 32, "steps": 6, "batch_size": 8, "evaluate_every": 3}
TAIL = {"targets.tail_below": 4, "targets.head_above": 5}
GENERATOR = {
    **{"size": 32, "device": "cpu", "precision": "fp32", "threads": 1},
    **{f"codec.{key}": value for key, value in {"width": 8, "levels": 3, "steps": 8, "batch_size": 4}.items()},
    **{f"denoiser.{key}": value for key, value in {"width": 8, "levels": 2, "steps": 6, "batch_size": 8}.items()},
    **{"denoiser.warmup_steps": 1, "denoiser.precision": "fp32", "denoiser.checkpoint_every": 3},
    **{f"classifier.{key}": value for key, value in CLASSIFIER.items()},
    **{**TAIL, "targets.count": 5, "targets.max_per_finding": 1, "checks.verifier_quantile": 0.01},
}
FUSION = {
    **{"sparse.groups": 4, "sparse.vocabulary": 4, "sparse.width": 8, "sparse.generations": 1},
    **{"sparse.imitation_epochs": 1, "sparse.interaction_epochs": 1},
    **{"method.num_inference_steps": 8, "method.strength": 0.2, "method.localise.networks": 2},
    **{"method.localise.steps": 4, "method.localise.code_steps": 4},
}
LONGTAIL = {"method.num_inference_steps": 4, "checks.near_copy": "null"}
EVALUATION = {
    **{"device": "cpu", "threads": 1, **TAIL},
    **{f"classifier.{key}": value for key, value in CLASSIFIER.items()},
    **{"evaluation.seeds": 2, "evaluation.steps": 6, "evaluation.n_bootstrap": 100},
    **{"evaluation.synthetic_fraction": 0.2, "evaluation.synthetic_weight": 0.3},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def medlt(*command: str | Path, **overrides: Any) -> Any:
    """Run a command with --json; return its object."""
    settings = [f"{name}={value}" for name, value in overrides.items()]
    result = CliRunner().invoke(app, [*map(str, command), *settings, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def evaluated(config: str, manifest: str, source: str, run: str, **more: Any) -> dict[str, Any]:
    """Compare the images of `run` by a shipped experiment, without its other sources; return verdict.json."""
    sources = json.dumps({source: {"run": run}})
    arms = json.dumps({"LDAM-DRW": {"loss": "ldam", "training_strategy": "drw"}, source: {"source": source}})
    given = EVALUATION | {"data.path": manifest, "sources": sources, "arms": arms} | more
    out = Path(medlt("evaluate", config, **given)["out"])
    verdict: dict[str, Any] = json.loads((out / "verdict.json").read_text())
    assert verdict["verdict"] in ("helps", "no evidence", "harms", "cannot see")
    assert {"LDAM-DRW", source, f"duplicated for {source}"} == {one["arm"] for one in verdict["arms"]}
    return verdict


def has_synthetic(run: str) -> pd.DataFrame:
    """The synthetic rows of a run, of which there is at least one."""
    rows = Manifest.read(Path(run) / "manifest.parquet").rows
    assert rows["synthetic"].any()
    return rows[rows["synthetic"].astype(bool)]


class LongTailSet:
    """Reads a list as MIMIC_CXR_Dataset(data_dir, label_dir, split) of LongTailCXR does, and its images."""

    def __init__(self, data_dir: Path, label_dir: Path, split: str) -> None:
        classes = [*FINDINGS]
        table = pd.read_csv(label_dir / f"mimic-lt_single-label_{split}.csv")
        self.paths = [data_dir / path for path in table["path"]]
        self.labels = [classes.index(name) for name in table[classes].idxmax(axis=1)]
        self.per_class = table[classes].sum(axis=0).tolist()
        for path in self.paths:
            with Image.open(path) as image:
                image.load()


class ChexSet:
    """Reads a table as CheX_Dataset(imgpath, csvpath, views, unique_patients=False) of torchxrayvision does."""

    def __init__(self, imgpath: Path, name: str, views: Sequence[str]) -> None:
        table = pd.read_csv(imgpath / name)
        table["view"] = table["Frontal/Lateral"]
        table.loc[table["view"] == "Frontal", "view"] = table["AP/PA"]
        table = table[table["view"].replace({"Lateral": "L"}).isin(views)]
        self.pathologies = sorted({*FINDINGS[:14]} - {"No Finding"})
        for pathology in {*self.pathologies} - {"Support Devices"}:
            table.loc[table["No Finding"] == 1, pathology] = 0
        self.labels = table[self.pathologies].to_numpy(np.float32)
        self.labels[self.labels == -1] = np.nan
        part = "train" if "train" in name else "valid"
        self.patients = table["Path"].str.split(f"{part}/", expand=True)[1].str.split("/study", expand=True)[0].tolist()
        self.paths = [imgpath / path for path in table["Path"]]
        self.synthetic = table["synthetic"].tolist()
        for path in self.paths:
            with Image.open(path) as image:
                assert image.mode == "L"


def check_torchxrayvision(run: str, synthetic: set[str]) -> None:
    """Real and synthetic images, labels and patients of the manifest are those that CheX_Dataset reads."""
    medlt("export", run, "xrv", "--format", "torchxrayvision", "--real")
    manifest = Manifest.read(Path(run) / "manifest.parquet")
    rows = manifest.rows
    seen: dict[str, tuple[str, str]] = {}
    for name, split in (("train.csv", "train"), ("valid.csv", "val"), ("valid_test.csv", "test")):
        read = ChexSet(Path("xrv"), name, ["PA", "AP"])
        uids = [path.stem for path in read.paths]
        assert set(uids) == set(rows.index[rows["split"] == split])
        expected = (rows.loc[uids, read.pathologies] >= 0.5).to_numpy(np.float32)
        expected[rows.loc[uids, read.pathologies].isna()] = np.nan
        normal = (rows.loc[uids, "No Finding"] >= 0.5).to_numpy()
        devices = np.array([pathology == "Support Devices" for pathology in read.pathologies])
        expected[np.ix_(normal, ~devices)] = 0
        np.testing.assert_array_equal(read.labels, expected)
        assert {uid for uid, made in zip(uids, read.synthetic, strict=True) if made} == synthetic & set(uids)
        seen |= {uid: (split, patient) for uid, patient in zip(uids, read.patients, strict=True)}
    assert len(set(seen.values())) == rows["patient_id"].nunique() == len({p for _, p in seen.values()})


def test_one_finding_an_image(here: Path, jpg: Path, table: pd.DataFrame) -> None:
    """MIMIC-CXR-LT 2022: fusion, a single-label verdict, and the lists of LongTailCXR."""
    made = medlt("manifest", "mimic-cxr-lt", jpg, "single.parquet", "--release", "2022", "--view", "frontal")
    frontal = table[table["ViewPosition"].isin(["PA", "AP"])]
    assert made["rows"] == len(frontal)
    assert medlt("validate", "single.parquet")["rows"] == len(frontal)
    medlt("config", "copy", "mimic_cxr_lt/single_label_verdict")
    medlt("augment", "single_label_fusion.yaml", **GENERATOR, **FUSION, **{"data.path": "single.parquet"})
    run = "runs/mimic_single_fusion"
    images = has_synthetic(run)
    protocol = {"evaluation.test_set": "balanced", "evaluation.metric": "sensitivity"}
    verdict = evaluated("single_label_verdict.yaml", "single.parquet", "fusion", run, **protocol)
    assert verdict["test_images"] == (frontal["balanced"] & (frontal["split"] == "test")).sum()
    assert (verdict["metric"], verdict["comparison"]["metric"]) == ("sensitivity", "sensitivity")
    figures = pd.DataFrame(verdict["benchmark"]["figures"])
    assert set(figures["test_set"]) == {"balanced test"}
    assert set(figures["metric"]) == {"multi-class balanced accuracy", "macro F1"}

    medlt("export", run, "lists", "--format", "longtailcxr", "--real")
    whole = Path("lists").absolute()
    sets = {
        split: LongTailSet(whole, whole / "labels", split)
        for split in ("train", "balanced-val", "test", "balanced-test")
    }
    counts = frontal["split"].value_counts()
    assert len(sets["train"].paths) == counts["train"] + len(images)
    assert len(sets["balanced-val"].paths) == counts["validate"]
    assert len(sets["test"].paths) == counts["test"]
    assert len(sets["balanced-test"].paths) == verdict["test_images"]
    assert {*sets["balanced-test"].paths} <= {*sets["test"].paths}
    finding = frontal.set_index("dicom_id")["finding"]
    for one in sets.values():
        for path, label in zip(one.paths, one.labels, strict=True):
            wanted = images.at[path.stem, "finding"] if path.stem in images.index else finding[path.stem]
            assert FINDINGS[label] == wanted


def test_several_findings_an_image(here: Path, jpg: Path, table: pd.DataFrame) -> None:
    """MIMIC-CXR-LT 2023: Longtail Guidance, a multi-label verdict, and the table of torchxrayvision."""
    medlt("manifest", "mimic-cxr-lt", jpg, "mimic.parquet", "--release", "2023", "--view", "frontal")
    medlt("validate", "mimic.parquet")
    medlt("config", "copy", "mimic_cxr_lt/verdict")
    tail = {"targets.tail_below": 8, "targets.head_above": 12}
    medlt(
        "augment", "longtail.yaml", **GENERATOR | LONGTAIL | tail | {"targets.count": 9, "data.path": "mimic.parquet"}
    )
    images = has_synthetic("runs/mimic_longtail")
    verdict = evaluated("verdict.yaml", "mimic.parquet", "longtail", "runs/mimic_longtail", **tail)
    assert {one["metric"] for one in verdict["benchmark"]["figures"]} == {"mAP", "mAUC", "mF1"}
    given = ['sources={longtail: {run: "runs/mimic_longtail"}}', "arms={longtail: {source: longtail}}"]
    refused = CliRunner().invoke(app, ["evaluate", "verdict.yaml", *given, "evaluation.test_set=balanced"])
    assert refused.exit_code == 2
    assert "evaluation.test_set: balanced, but no test row has balanced_test" in refused.stderr
    check_torchxrayvision("runs/mimic_longtail", set(images.index))


@pytest.mark.parametrize(
    ("release", "task", "findings"),
    [("2023", (), 26), ("2024", ("--task", "1"), 40), ("2024", ("--task", "2"), 26), ("2024", (), 45)],
)
def test_the_challenges_have_a_manifest(
    here: Path, jpg: Path, release: str, task: tuple[str, ...], findings: int
) -> None:
    made = medlt("manifest", "cxr-lt", jpg, "challenge.parquet", "--release", release, *task, "--view", "frontal")
    manifest = Manifest.read(Path("challenge.parquet"))
    assert len(manifest.findings) == findings
    assert made["rows"] == len(manifest.rows)
    assert set(manifest.rows["view"]) == {"PA", "AP"}
    if release == "2023":
        assert manifest.findings == FINDINGS_2023
    medlt("validate", "challenge.parquet")


@pytest.mark.slow
def test_every_arm_of_the_single_label_experiment(here: Path, jpg: Path) -> None:
    """The shipped experiment makes the images of both its sources itself, and compares all of its arms."""
    medlt("manifest", "mimic-cxr-lt", jpg, "mimic_single.parquet", "--release", "2022", "--view", "frontal")
    medlt("config", "copy", "mimic_cxr_lt/single_label_verdict")
    small = {"fusion": GENERATOR | FUSION, "longtail": GENERATOR | LONGTAIL}
    sources = {
        name: {"config": f"single_label_{name}.yaml", "set": [f"{key}={value}" for key, value in given.items()]}
        for name, given in small.items()
    }
    out = Path(medlt("evaluate", "single_label_verdict.yaml", **EVALUATION, sources=json.dumps(sources))["out"])
    arms = pd.read_parquet(out / "arms.parquet")
    assert len(arms) == 11
    assert (arms["role"] == "synthetic").sum() == 3
    figures = pd.read_parquet(out / "benchmark.parquet")
    assert set(figures["test_set"]) == {"test", "balanced test"}
    assert set(figures["arm"]) == set(arms["arm"])


@pytest.mark.slow
def test_2024_to_the_images(here: Path, jpg: Path) -> None:
    """CXR-LT 2024, task 1, whose labels go through fusion with all of its 40 findings."""
    medlt("manifest", "cxr-lt", jpg, "mimic.parquet", "--release", "2024", "--task", "1", "--view", "frontal")
    medlt("config", "copy", "mimic_cxr_lt/fusion")
    counts = {"targets.tail_below": 7, "targets.head_above": 8, "targets.count": 8}
    medlt("augment", "fusion.yaml", **GENERATOR | FUSION | counts)
    assert len(has_synthetic("runs/mimic_fusion").filter(items=[*TASK_1]).columns) == 40
